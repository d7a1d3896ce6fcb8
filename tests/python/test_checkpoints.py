"""Checkpoints, copies and pickles: a run that is saved and resumed ends in the bits of one that was not, in every mode,
through torch.load(weights_only=True), copy.deepcopy and pickle; and what other optimizers saved loads without
switching the noise off. test_peers.py, rows 13 and 24.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import front_helpers as front
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torch_ssam

MODES: dict[str, tuple[Callable[..., Any], dict[str, Any], front.Drive]] = {
    "perturb": (front.ssam, {}, front.by_perturb),
    "no momentum": (front.ssam, {"momentum": 0.0}, front.by_perturb),
    "closure": (front.ssam, {"nesterov": True}, front.by_closure),
    "perturbations": (front.ssam, {"samples": 2, "antithetic": True}, front.by_perturbations),
    "kept": (front.ssam, {"keep_perturbed": True}, front.by_stock_loop),
    "filter kept": (front.ssam, {"scale": "filter", "keep_perturbed": True}, front.by_stock_loop),
    "element kept": (front.ssam, {"scale": "element", "keep_perturbed": True}, front.by_stock_loop),
    "fisher perturb": (front.ssam, {"scale": "fisher"}, front.by_perturb),
    "fisher kept": (front.ssam, {"scale": "fisher", "keep_perturbed": True}, front.by_stock_loop),
    "adamw": (front.adamw, {"amsgrad": True}, front.by_perturb),
    "adamw kept": (front.adamw, {"keep_perturbed": True}, front.by_stock_loop),
    "adamw filter kept": (front.adamw, {"scale": "filter", "keep_perturbed": True}, front.by_stock_loop),
    "wrap fisher": (front.wrapped_adamw, {"scale": "fisher"}, front.by_perturb),
    "wrap fisher kept": (
        front.wrapped_adamw,
        {"scale": "fisher", "keep_perturbed": True},
        front.by_stock_loop,
    ),
    "wrap perturb": (front.wrapped_adamw, {}, front.by_perturb),
    "wrap kept": (front.wrapped_adamw, {"keep_perturbed": True}, front.by_stock_loop),
}


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def finish(opt: Any, model: nn.Module) -> list[Tensor]:
    opt.eval()
    return [*front.snapshot(model), *front.optimizer_bits(opt), torch.tensor([opt.seed, opt.draw])]


@pytest.mark.parametrize("mode", sorted(MODES))
@pytest.mark.parametrize("saved_in", ["train", "eval"])
@pytest.mark.parametrize("at", [0, 3])
def test_a_resumed_run_ends_in_the_bits_of_an_uninterrupted_one(mode: str, saved_in: str, at: int) -> None:
    make, options, drive = MODES[mode]
    todo = front.batches(6)
    model = front.Net()
    opt = make(model, **options)
    opt.train()
    drive(opt, model, todo[:at])
    if saved_in == "eval":
        opt.eval()
    saved = through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    opt.train()
    drive(opt, model, todo[at:])

    torch.manual_seed(999)
    other = front.Net(seed=5)
    resumed = make(other, **{**options, "seed": 12345})
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["opt"])
    assert resumed.seed == 7
    resumed.train()
    drive(resumed, other, todo[at:])
    assert front.same_bits(finish(resumed, other), finish(opt, model))


@pytest.mark.parametrize("mode", sorted(MODES))
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("copied_in", ["train", "eval"])
def test_copies_and_pickles_continue_alike_and_apart(mode: str, how: str, copied_in: str) -> None:
    make, options, drive = MODES[mode]
    todo = front.batches(5)
    model = front.Net()
    opt = make(model, **options)
    opt.train()
    drive(opt, model, todo[:2])
    if copied_in == "eval":
        opt.eval()
    pair = (model, opt)
    other, twin = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert type(twin) is type(opt)
    assert (twin.seed, twin.draw) == (opt.seed, opt.draw)
    before = front.snapshot(other)
    for one, its in ((opt, model), (twin, other)):
        one.train()
        drive(one, its, todo[2:])
        if one is opt and (copied_in == "eval" or mode not in ("kept", "adamw kept", "wrap kept")):
            assert front.same_bits(other.parameters(), before)
    assert front.same_bits(finish(twin, other), finish(opt, model))


def test_a_gradient_taken_before_pickling_may_be_used_after_it() -> None:
    model = front.Net()
    opt = front.ssam(model)
    with opt.perturb():
        front.loss_of(model, *front.data()).backward()
    other, twin = copy.deepcopy((model, opt))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        q.grad = p.grad.clone()  # type: ignore[union-attr]
    opt.step()
    twin.step()
    assert front.same_bits(model.parameters(), other.parameters())


def test_copying_inside_perturb_is_refused() -> None:
    model = front.Net()
    opt = front.ssam(model)
    with opt.perturb():
        with pytest.raises(RuntimeError, match="leave the context first"):
            pickle.dumps(opt)
        with pytest.raises(RuntimeError, match="leave the context first"):
            copy.deepcopy(opt)


def test_the_state_dict_of_sgd_loads_and_keeps_the_noise_on() -> None:
    plain = front.Net()
    sgd = torch.optim.SGD(plain.parameters(), lr=0.03, momentum=0.8, weight_decay=0.2)
    front.by_stock_loop(sgd, plain, front.batches(3))
    model = front.Net(seed=3)
    opt = front.ssam(model, noise_std=0.25, distribution="rademacher", radius=50.0)
    draw = opt.draw
    model.load_state_dict(plain.state_dict())
    opt.load_state_dict(through_a_file(sgd.state_dict()))
    group = opt.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.03, 0.8, 0.2)
    assert (group["noise_std"], group["distribution"], group["radius"]) == (0.25, "rademacher", 50.0)
    assert (opt.seed, opt.draw) == (7, draw)
    assert front.same_bits(front.optimizer_bits(opt), front.optimizer_bits(sgd))
    clean = front.snapshot(model)
    with opt.perturb():
        assert not front.same_bits(model.parameters(), clean)
        front.loss_of(model, *front.data()).backward()
    opt.step()


def test_the_state_dict_of_sgd_without_momentum_starts_momentum_at_the_first_step() -> None:
    plain = front.Net()
    sgd = torch.optim.SGD(plain.parameters(), lr=0.03)
    front.by_stock_loop(sgd, plain, front.batches(1))
    model = front.Net()
    opt = front.ssam(model, noise_std=0.0)
    opt.load_state_dict(sgd.state_dict())
    assert not opt.state
    opt.param_groups[0]["momentum"] = 0.9
    opt.param_groups[0]["dampening"] = 0.5
    front.by_stock_loop(opt, model, front.batches(1))
    for p in model.parameters():
        torch.testing.assert_close(opt.state[p]["momentum_buffer"], p.grad, rtol=1e-6, atol=1e-7)


def test_a_checkpoint_of_ssam_loads_into_sgd() -> None:
    model, plain = front.Net(), front.Net()
    opt = front.ssam(model)
    front.by_perturb(opt, model, front.batches(2))
    plain.load_state_dict(model.state_dict())
    sgd = torch.optim.SGD(plain.parameters(), lr=1.0, momentum=0.5)
    sgd.load_state_dict(opt.state_dict())
    assert sgd.param_groups[0]["momentum"] == 0.9
    front.by_stock_loop(sgd, plain, front.batches(1))


def test_the_state_dict_of_the_base_alone_loads_into_the_wrapper() -> None:
    plain = front.Net()
    base = torch.optim.AdamW(plain.parameters(), lr=0.02)
    front.by_stock_loop(base, plain, front.batches(2))
    model = front.Net()
    opt = front.wrapped_adamw(model)
    opt.load_state_dict(through_a_file(base.state_dict()))
    assert opt.param_groups[0]["noise_std"] == 0.3
    front.by_perturb(opt, model, front.batches(1))


def test_a_wrapped_checkpoint_taken_before_the_first_step_in_train_resumes() -> None:
    model = front.Net()
    opt = front.wrapped_adamw(model, keep_perturbed=True)
    opt.train()
    saved = opt.state_dict()
    other = front.Net(seed=3)
    resumed = front.wrapped_adamw(other, keep_perturbed=True)
    resumed.load_state_dict(copy.deepcopy(saved))
    resumed.train()
    front.by_stock_loop(resumed, other, front.batches(1))
    front.by_stock_loop(opt, model, front.batches(1))
    assert front.same_bits(finish(resumed, other), finish(opt, model))


FOREIGN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no dict": lambda d: [1],
    "model's": lambda d: front.Net().state_dict(),
    "no state": lambda d: {"param_groups": d["param_groups"]},
    "more groups": lambda d: {**d, "param_groups": d["param_groups"] * 2},
    "fewer tensors": lambda d: {**d, "param_groups": [{**d["param_groups"][0], "params": [0, 1]}]},
    "bad noise": lambda d: {**d, "param_groups": [{**d["param_groups"][0], "noise_std": -1.0}]},
    "bad momentum": lambda d: {**d, "param_groups": [{**d["param_groups"][0], "momentum": float("nan")}]},
    "clean weights of another shape": lambda d: {**d, "state": {0: {"clean": torch.ones(2)}}},
}


@pytest.mark.parametrize("what", sorted(FOREIGN))
@pytest.mark.parametrize("kept", [False, True])
def test_a_state_dict_that_does_not_fit_is_refused_and_changes_nothing(what: str, kept: bool) -> None:
    model = front.Net()
    opt = front.ssam(model, keep_perturbed=kept)
    opt.train()
    drive = front.by_stock_loop if kept else front.by_perturb
    drive(opt, model, front.batches(2))
    before = [*front.snapshot(model), *front.optimizer_bits(opt)]
    groups = repr(opt.param_groups)
    with pytest.raises(ValueError, match=r"load_state_dict|noise_std|momentum"):
        opt.load_state_dict(FOREIGN[what](opt.state_dict()))
    assert front.same_bits([*front.snapshot(model), *front.optimizer_bits(opt)], before)
    assert repr(opt.param_groups) == groups
    assert opt.draw == 2
    drive(opt, model, front.batches(1))


def test_schedulers_resume_with_the_optimizer() -> None:
    def run(resume_at: int | None) -> list[Tensor]:
        model = front.Net()
        opt = front.ssam(model)
        plans = [torch_ssam.schedules.harmonic_lr(opt), torch_ssam.schedules.CosineNoiseStd(opt, 6, 3.0)]
        for k, batch in enumerate(front.batches(6)):
            if k == resume_at:
                saved = through_a_file(
                    {
                        "m": model.state_dict(),
                        "o": opt.state_dict(),
                        "s": [plan.state_dict() for plan in plans],
                    }
                )
                model = front.Net(seed=8)
                opt = front.ssam(model, seed=None)
                plans = [
                    torch_ssam.schedules.harmonic_lr(opt),
                    torch_ssam.schedules.CosineNoiseStd(opt, 6, 3.0),
                ]
                for plan, state in zip(plans, saved["s"], strict=True):
                    plan.load_state_dict(state)
                opt.load_state_dict(saved["o"])
                model.load_state_dict(saved["m"])
            front.by_perturb(opt, model, [batch])
            for plan in plans:
                plan.step()
        return finish(opt, model)

    assert front.same_bits(run(None), run(3))


def test_module_and_optimizer_of_own_noise_resume_together() -> None:
    def step(layer: nn.Module, opt: Any, k: int) -> None:
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(k))
        opt.zero_grad()
        layer(x).square().mean().backward()
        opt.step()

    def make() -> tuple[nn.Module, Any]:
        layer = torch_ssam.DiagonalLinear(5, 3, noise_std=0.2, seed=3)
        return layer, torch_ssam.SSAM(layer.parameters(), lr=0.1, noise_std=0.0, momentum=0.9)

    layer, opt = make()
    for k in range(2):
        step(layer, opt, k)
    saved = through_a_file([layer.state_dict(), opt.state_dict()])
    other, resumed = make()
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for k in range(2, 4):
        step(layer, opt, k)
        step(other, resumed, k)
    assert front.same_bits(other.state_dict().values(), layer.state_dict().values())


def test_fisher_sums_of_another_shape_are_refused_and_nothing_changes() -> None:
    model = front.Net()
    opt = front.ssam(model, scale="fisher")
    front.by_perturb(opt, model, front.batches(2))
    saved = opt.state_dict()
    sums = [saved["state"][i]["fisher"] for i in range(4)]
    assert [f.shape for f in sums] == [(7,), (1,), (7,), (1,)]
    assert all(bool((f > 0).all()) for f in sums)
    before = [f.clone() for f in sums]
    bad = {**saved, "state": {**saved["state"], 0: {**saved["state"][0], "fisher": torch.ones(3)}}}
    with pytest.raises(ValueError, match=r"3 Fisher sums for parameter 0 of shape \(7, 5\); expected 7"):
        opt.load_state_dict(bad)
    assert front.same_bits([saved["state"][i]["fisher"] for i in range(4)], before)
    assert front.same_bits(list(opt._noise.scales.fisher_sums().values()), before)


def test_the_state_of_a_plain_optimizer_starts_the_fisher_sums_anew() -> None:
    model = front.Net()
    opt = front.ssam(model, scale="fisher", momentum=0.0)
    front.by_perturb(opt, model, front.batches(2))
    opt.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())
    assert opt._noise.scales.fisher_sums() == {}


def test_what_was_loaded_does_not_follow_the_optimizer_that_it_came_from() -> None:
    model, other = front.Net(), front.Net()
    opt, again = (front.ssam(m, keep_perturbed=True) for m in (model, other))
    opt.train()
    front.by_stock_loop(opt, model, front.batches(2))
    expected = opt.clean_state_dict(model)
    expected = {name: value.clone() for name, value in expected.items()}
    again.load_state_dict(opt.state_dict())
    front.by_stock_loop(opt, model, front.batches(3))
    again.eval()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in expected.items())


@pytest.mark.parametrize("make", ["SSAM", "wrap"])
def test_options_in_numpy_numbers_are_saved_as_pythons(make: str) -> None:
    p = nn.Parameter(torch.ones(3))
    noise: dict[str, Any] = {
        "noise_std": np.float64(0.1),
        "samples": np.int64(2),
        "antithetic": np.bool_(True),
    }
    opt: Any = (
        torch_ssam.SSAM([p], lr=np.float32(0.1), **noise)
        if make == "SSAM"
        else torch_ssam.wrap(
            torch.optim.SGD([{"params": [p], "noise_std": np.float64(0.1)}], lr=0.1), **noise
        )
    )
    opt.add_param_group({"params": [nn.Parameter(torch.ones(3))], "noise_std": np.float32(0.25)})
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    opt.load_state_dict(torch.load(file, weights_only=True))
    assert [g["noise_std"] for g in opt.param_groups] == [0.1, 0.25]
    assert [type(g["samples"]) for g in opt.param_groups] == [int, int]
