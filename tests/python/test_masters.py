"""master_dtype: 16-bit parameters whose clean weights and momentum are kept in float32.

The reference is SSAM itself on float32 copies, whose own tests stand on plain references: the 16-bit model gets the
rounding of what the float32 one holds, and gives its gradients back. Then every master has the bits of the copy, every
parameter those of its rounding. A plain loop in float64 checks the whole once more.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import front_helpers as front
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import torch_ssam

SIXTEEN = [torch.bfloat16, torch.float16]
MASTER = {"master_dtype": torch.float32}


def ssam(model: nn.Module, make: Callable[..., Any] = front.ssam, **options: Any) -> Any:
    return make(model, **{**MASTER, "noise_std": 0.05, **options})


def masters(opt: Any) -> list[Tensor]:
    state = opt.state_dict()["state"]
    return [state[key]["master"].clone() for key in sorted(state)]


def momenta(opt: Any) -> list[Tensor]:
    """What the update keeps of every tensor."""
    state, names = (
        opt.state_dict()["state"],
        ("momentum_buffer", "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    )
    return [state[key][name].clone() for key in sorted(state) for name in names if name in state[key]]


def rounded(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [t.to(dtype) for t in tensors]


def copy_values(to: nn.Module, source: nn.Module) -> None:
    with torch.no_grad():
        for p, q in zip(to.parameters(), source.parameters(), strict=True):
            p.copy_(q)


def float32_copies(
    dtype: torch.dtype, steps: int, make: Callable[..., Any] = front.ssam, **options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and momentum of float32 copies, driven by the gradients that their roundings have in a 16-bit model."""
    model, copies = front.Net(dtype=dtype), front.Net()
    copy_values(copies, model)
    opt = make(copies, **{"noise_std": 0.05, **options})
    for x, y in front.batches(steps, dtype=dtype):
        with opt.perturb():
            copy_values(model, copies)
            model.zero_grad()
            front.loss_of(model, x, y).backward()
            for p, q in zip(copies.parameters(), model.parameters(), strict=True):
                assert q.grad is not None
                p.grad = q.grad.float()
        opt.step()
    return front.snapshot(copies), momenta(opt)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.0, "weight_decay": 0.0},
    {"nesterov": True},
    {"dampening": 0.5, "maximize": True, "lr": 0.01},
    {"distribution": "rademacher"},
    {"radius": 3.0},
    {"scale": "filter"},
    {"scale": "tensor", "radius": 3.0},
    {"scale": "element"},
    {"scale": "fisher"},
    {"lr": torch.tensor(0.05)},
    {"noise_std": 0.0},
    {"make": front.adamw},
    {"make": front.adamw, "amsgrad": True, "scale": "filter", "radius": 3.0},
    {"make": front.adamw, "maximize": True, "scale": "element", "lr": torch.tensor(0.01)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=front.case_name)
@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_masters_have_the_bits_of_float32_copies_however_they_are_driven(
    dtype: torch.dtype, options: dict[str, Any]
) -> None:
    weights, momentum = float32_copies(dtype, 6, **options)
    for drive in (front.by_perturb, front.by_closure, front.by_stock_loop):
        model = front.Net(dtype=dtype)
        opt = ssam(model, keep_perturbed=drive is front.by_stock_loop, **options)
        opt.train()
        drive(opt, model, front.batches(6, dtype=dtype))
        opt.eval()
        assert front.same_bits(masters(opt), weights), drive
        assert front.same_bits(momenta(opt), momentum), drive
        assert front.same_bits(front.snapshot(model), rounded(weights, dtype)), drive
        assert opt.draw == 6


def test_a_plain_loop_in_float64_ends_in_the_same_masters() -> None:
    dtype, lr, decay, std = torch.bfloat16, 0.05, 0.01, 0.05
    model = front.Net(dtype=dtype)
    opt = ssam(model, lr=lr, weight_decay=decay, noise_std=std, momentum=0.9, seed=7)
    plain = front.Net(dtype=dtype)
    params = list(plain.parameters())
    weights = [p.detach().double() for p in params]
    velocity: list[Tensor] = []
    for k, (x, y) in enumerate(front.batches(5, dtype=dtype)):
        front.by_perturb(opt, model, [(x, y)])
        with torch.no_grad():
            for i, (p, w) in enumerate(zip(params, weights, strict=True)):
                zeros = torch.zeros(w.shape, dtype=torch.float64)
                z = front.expected_noise(zeros, 7, k, i, 1.0)
                # Noise of few bits: what float32 makes of it decides how the 16-bit parameter is rounded.
                p.copy_(w.float() + np.float32(std) * z.float())
        grads = torch.autograd.grad(front.loss_of(plain, x, y), params)
        for i, (w, g) in enumerate(zip(weights, grads, strict=True)):
            step = g.double() + decay * w
            velocity[i:] = [0.9 * velocity[i] + step if k else step, *velocity[i + 1 :]]
            weights[i] = w - lr * velocity[i]
    for master, w in zip(masters(opt), weights, strict=True):
        torch.testing.assert_close(master.double(), w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_inside_a_pass_parameters_are_the_rounding_of_master_and_noise(dtype: torch.dtype) -> None:
    model = front.Net(dtype=dtype)
    opt = ssam(model, noise_std=0.3)
    front.by_perturb(opt, model, front.batches(2, dtype=dtype))
    before = masters(opt)
    with opt.perturb():
        for i, (p, master) in enumerate(zip(model.parameters(), before, strict=True)):
            expected = front.expected_noise(master, opt.seed, opt.draw, i, 0.3).to(dtype)
            assert front.same_bits([p], [expected])
            assert not torch.equal(p, master.to(dtype))
    assert front.same_bits(front.snapshot(model), rounded(before, dtype))
    assert front.same_bits(masters(opt), before)


def test_several_passes_a_step_and_accumulation_update_the_masters_once() -> None:
    model = front.Net(dtype=torch.bfloat16)
    opt = ssam(model, samples=3, antithetic=True, clean_weight=0.25)
    front.by_perturbations(opt, model, front.batches(3, dtype=torch.bfloat16))
    again = front.Net(dtype=torch.bfloat16)
    other = ssam(again, samples=3, antithetic=True, clean_weight=0.25)
    for x, y in front.batches(3, dtype=torch.bfloat16):
        other.zero_grad()
        for _ in other.perturbations():
            front.loss_of(again, x, y).backward()
        w, v = (masters(other) or [p.detach().float() for p in again.parameters()]), momenta(other)
        grads = [p.grad.float() for p in again.parameters() if p.grad is not None]
        other.step()
        # The formula, on float32 tensors, of what accumulated.
        step = [g + 0.01 * a for g, a in zip(grads, w, strict=True)]
        new = [0.9 * b + s for b, s in zip(v, step, strict=True)] if v else step
        for master, a, b in zip(masters(other), w, new, strict=True):
            torch.testing.assert_close(master, a - 0.05 * b, rtol=3e-7, atol=3e-7)
    assert front.same_bits(masters(opt), masters(other))


# -- what it is for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_updates_below_half_an_ulp_add_up_with_masters_and_vanish_without(dtype: torch.dtype) -> None:
    step = torch.finfo(dtype).eps / 8  # a quarter of half an ulp of 1
    ends = {}
    for name, options in {"without": {}, "with": MASTER}.items():
        w = nn.Parameter(torch.ones(65, dtype=dtype))
        opt = torch_ssam.SSAM([w], lr=1.0, noise_std=0.0, **options)
        for _ in range(64):
            w.grad = torch.full_like(w, step)
            opt.step()
        ends[name] = w.detach()
    assert torch.equal(ends["without"], torch.ones(65, dtype=dtype))
    assert torch.equal(ends["with"], torch.full((65,), 1 - 64 * step, dtype=dtype))


def test_small_noise_reaches_a_16_bit_weight_through_its_master() -> None:
    """A master between two bfloat16 numbers: noise below half an ulp decides to which of them it is rounded."""
    w = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    ulp = torch.finfo(torch.bfloat16).eps
    held = {}
    for name, options in {"without": {}, "with": MASTER}.items():
        with torch.no_grad():
            w.fill_(1.0)
        opt = torch_ssam.SSAM([w], lr=1.0, noise_std=ulp / 16, seed=3, **options)
        with opt.perturb():
            w.grad = torch.full_like(w, -ulp * 7 / 16)  # the master ends at 1 + 7/16 ulp, which rounds to 1
        opt.step()
        assert bool((w == 1).all())
        with opt.perturb():
            held[name] = (w != 1).double().mean().item()
    assert held["without"] == 0.0
    # P(N(0, 1) > 1) = 0.1587 within five standard deviations of a mean of 4096
    assert held["with"] == pytest.approx(0.1587, abs=5 * 0.0058)


def digits() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16.0, dtype=torch.float32), torch.tensor(y)


def trained_loss(dtype: torch.dtype, **options: Any) -> float:
    """Cross-entropy on scikit-learn's digits, in float32, after training at a small learning rate."""
    x, y = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).to(dtype)
    opt = torch_ssam.SSAM(model.parameters(), lr=0.002, momentum=0.9, noise_std=0.01, seed=1, **options)
    order = torch.Generator().manual_seed(2)
    for _ in range(12):
        for batch in torch.randperm(len(x), generator=order).split(64):
            with opt.perturb():
                loss = nn.functional.cross_entropy(model(x[batch].to(dtype)).float(), y[batch])
                loss.backward()
            opt.step()
            opt.zero_grad()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model.float()(x), y))


def test_training_in_bfloat16_reaches_the_loss_of_float32_with_masters_and_not_without() -> None:
    full = trained_loss(torch.float32)
    with_masters = trained_loss(torch.bfloat16, **MASTER)
    without = trained_loss(torch.bfloat16)
    assert abs(with_masters - full) < 0.02 * full
    assert without > 1.1 * full


# -- groups of all kinds -------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """16-bit and float32 tensors in one group, one of them frozen, one without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        net = front.Net(dtype=torch.bfloat16)
        self.first, self.second = net.first, net.second
        self.bias = nn.Parameter(net.bias.detach().float())
        self.scale = nn.Parameter(net.scale.detach().half())
        self.frozen = nn.Parameter(torch.ones(3, dtype=torch.bfloat16), requires_grad=False)
        self.unused = nn.Parameter(torch.full((9,), 1.5, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(x @ self.first.float().T + self.bias)
        return self.scale.float() * (hidden @ self.second.float())


@pytest.mark.parametrize("options", [{}, {"radius": 3.0}, {"scale": "filter"}, {"momentum": 0.0}], ids=str)
def test_a_group_of_mixed_tensors_trains_alike_in_both_forms(options: dict[str, Any]) -> None:
    ends = []
    for kept in (False, True):
        model = Mixed()
        opt = ssam(model, keep_perturbed=kept, **options)
        opt.train()
        (front.by_stock_loop if kept else front.by_perturb)(opt, model, front.batches(4))
        opt.eval()
        held = opt.state_dict()["state"]
        place = {name: i for i, (name, _) in enumerate(model.named_parameters())}
        with_master = {name for name, i in place.items() if "master" in held.get(i, {})}
        assert with_master == {"first", "second", "scale", "unused"}
        assert torch.equal(model.frozen, torch.ones(3, dtype=torch.bfloat16))
        ends.append([*front.snapshot(model), *front.optimizer_bits(opt)])
        if "momentum" not in options:
            types = {
                name: held[i]["momentum_buffer"].dtype
                for name, i in place.items()
                if "momentum_buffer" in held.get(i, {})
            }
            assert types == dict.fromkeys(("first", "second", "bias", "scale"), torch.float32)
    assert front.same_bits(*ends)


def test_masters_differ_by_group_and_float32_parameters_are_as_without() -> None:
    def run(options: dict[str, Any]) -> list[Tensor]:
        model = front.Net()
        opt = front.ssam(model, **options)
        front.by_perturb(opt, model, front.batches(3))
        assert all("master" not in entry for entry in opt.state_dict()["state"].values())
        return [*front.snapshot(model), *front.optimizer_bits(opt)]

    assert front.same_bits(run({}), run(MASTER))
    first, second = front.Net(dtype=torch.bfloat16), front.Net(seed=1, dtype=torch.bfloat16)
    groups = [{"params": list(first.parameters()), **MASTER}, {"params": list(second.parameters())}]
    opt = torch_ssam.SSAM(groups, lr=0.05, noise_std=0.05, seed=7)
    both = nn.ModuleList([first, second])
    for x, y in front.batches(2, dtype=torch.bfloat16):
        with opt.perturb():
            (front.loss_of(first, x, y) + front.loss_of(second, x, y)).backward()
        opt.step()
        opt.zero_grad()
    state = opt.state_dict()["state"]
    assert sorted(key for key, entry in state.items() if "master" in entry) == [0, 1, 2, 3]
    assert len(list(both.parameters())) == 8


def test_a_strided_parameter_and_an_empty_one_have_masters() -> None:
    base = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).bfloat16()
    w, empty = nn.Parameter(base.t()), nn.Parameter(torch.empty(0, 3, dtype=torch.bfloat16))
    opt = torch_ssam.SSAM([w, empty], lr=0.1, momentum=0.9, noise_std=0.1, seed=0, **MASTER)
    for _ in range(3):
        with opt.perturb():
            (w.float().square().sum() + empty.float().sum()).backward()
        opt.step()
        opt.zero_grad()
    assert front.same_bits([w.detach()], [masters(opt)[0].bfloat16()])


# -- clean weights, AMP, copies ------------------------------------------------------------------------------


def test_everything_that_hands_out_clean_weights_hands_out_their_rounding() -> None:
    model = front.Net(dtype=torch.bfloat16)
    opt = ssam(model, keep_perturbed=True)
    opt.train()
    front.by_stock_loop(opt, model, front.batches(3, dtype=torch.bfloat16))
    clean = rounded(masters_in_train(opt), torch.bfloat16)
    noisy = front.snapshot(model)
    assert not front.same_bits(noisy, clean)
    assert front.same_bits(opt.clean_state_dict(model).values(), clean)
    handles = opt.attach(model)
    assert front.same_bits(model.state_dict().values(), clean)
    for handle in handles:
        handle.remove()
    with opt.clean_weights():
        assert front.same_bits(front.snapshot(model), clean)
    assert front.same_bits(front.snapshot(model), noisy)
    opt.eval()
    assert front.same_bits(front.snapshot(model), clean)


def masters_in_train(opt: torch_ssam.SSAM) -> list[Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch_ssam.PerturbedWeightsSaved)
        return masters(opt)


@pytest.mark.parametrize("kept", [False, True])
def test_a_scaler_that_skips_a_step_leaves_masters_and_weights(kept: bool) -> None:
    model = front.Net(dtype=torch.bfloat16)
    opt = ssam(model, keep_perturbed=kept)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    opt.train()
    for k, (x, y) in enumerate(front.batches(4, dtype=torch.bfloat16)):
        before = masters_in_train(opt) if k else []
        opt.zero_grad()
        if kept:
            scaler.scale(front.loss_of(model, x, y)).backward()
        else:
            with opt.perturb():
                scaler.scale(front.loss_of(model, x, y)).backward()
        if k == 2:
            assert model.bias.grad is not None
            model.bias.grad[0] = float("inf")
        scaler.step(opt)
        scaler.update()
        if k:
            assert front.same_bits(masters_in_train(opt), before) == (k == 2)
    opt.eval()
    assert scaler.get_scale() == 2.0
    assert front.same_bits(front.snapshot(model), rounded(masters(opt), torch.bfloat16))
    assert all(bool(m.isfinite().all()) for m in masters(opt))


def test_an_exception_inside_a_pass_puts_the_rounding_back() -> None:
    model = front.Net(dtype=torch.bfloat16)
    opt = ssam(model)
    front.by_perturb(opt, model, front.batches(2, dtype=torch.bfloat16))
    before = masters(opt)
    with pytest.raises(front.Alarm), opt.perturb():
        raise front.Alarm
    assert front.same_bits(front.snapshot(model), rounded(before, torch.bfloat16))
    assert front.same_bits(masters(opt), before)


@pytest.mark.parametrize("kept", [False, True])
def test_a_copy_of_model_and_optimizer_goes_on_with_the_same_bits(kept: bool) -> None:
    model = front.Net(dtype=torch.bfloat16)
    opt = ssam(model, keep_perturbed=kept)
    drive = front.by_stock_loop if kept else front.by_perturb
    opt.train()
    drive(opt, model, front.batches(3, dtype=torch.bfloat16))
    ends = []
    for one_model, one in (copy.deepcopy((model, opt)), (model, opt)):
        drive(one, one_model, front.batches(3, dtype=torch.bfloat16))
        one.eval()
        ends.append([*front.snapshot(one_model), *front.optimizer_bits(one)])
    assert front.same_bits(*ends)


# -- checkpoints ---------------------------------------------------------------------------------------------


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


Load = Callable[[nn.Module, torch_ssam.SSAM, dict[str, Any]], None]


def model_first(model: nn.Module, opt: torch_ssam.SSAM, saved: dict[str, Any]) -> None:
    model.load_state_dict(saved["model"])
    opt.load_state_dict(saved["opt"])


def optimizer_first(model: nn.Module, opt: torch_ssam.SSAM, saved: dict[str, Any]) -> None:
    opt.load_state_dict(saved["opt"])
    opt.state_dict()  # as frameworks look at it in between
    model.load_state_dict(saved["model"])


@pytest.mark.parametrize("load", [model_first, optimizer_first])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_a_checkpoint_resumes_bit_for_bit(dtype: torch.dtype, kept: bool, load: Load) -> None:
    todo = front.batches(6, dtype=dtype)
    drive = front.by_stock_loop if kept else front.by_perturb
    model = front.Net(dtype=dtype)
    opt = ssam(model, keep_perturbed=kept)
    opt.train()
    drive(opt, model, todo[:3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch_ssam.PerturbedWeightsSaved)
        saved = through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})  # kept: model is noisy
    drive(opt, model, todo[3:])
    opt.eval()

    again = front.Net(seed=5, dtype=dtype)
    other = ssam(again, keep_perturbed=kept, seed=99)
    other.train()
    drive(other, again, todo[:1])  # something to be overwritten
    load(again, other, saved)
    other.train()
    drive(other, again, todo[3:])
    other.eval()
    assert front.same_bits(front.snapshot(again), front.snapshot(model))
    assert front.same_bits(front.optimizer_bits(other), front.optimizer_bits(opt))
    assert other.param_groups[0]["master_dtype"] is torch.float32


def test_a_checkpoint_made_without_masters_starts_them_from_the_parameters() -> None:
    todo = front.batches(5, dtype=torch.bfloat16)
    model = front.Net(dtype=torch.bfloat16)
    opt = ssam(model, master_dtype=None)
    front.by_perturb(opt, model, todo[:2])
    saved = through_a_file(opt.state_dict())

    again = front.Net(dtype=torch.bfloat16)
    copy_values(again, model)
    other = ssam(again)
    other.load_state_dict(saved)
    assert other.param_groups[0]["master_dtype"] is torch.float32
    buffers = [b.float() for b in momenta(opt)]
    assert front.same_bits(momenta(other), buffers)
    with other.perturb():
        pass
    assert front.same_bits(masters(other), [p.detach().float() for p in again.parameters()])
    front.by_perturb(other, again, todo[2:])
    assert all(b.dtype == torch.float32 for b in momenta(other))


def test_a_checkpoint_with_masters_loads_without_them_and_into_torchs_sgd() -> None:
    model = front.Net(dtype=torch.bfloat16)
    opt = ssam(model)
    front.by_perturb(opt, model, front.batches(2, dtype=torch.bfloat16))
    saved = through_a_file(opt.state_dict())
    assert saved["param_groups"][0]["master_dtype"] == "float32"

    again = front.Net(dtype=torch.bfloat16)
    copy_values(again, model)
    other = ssam(again, master_dtype=None)
    other.load_state_dict(saved)
    assert other.param_groups[0]["master_dtype"] is None
    front.by_perturb(other, again, front.batches(1, dtype=torch.bfloat16))
    assert all("master" not in entry for entry in other.state_dict()["state"].values())
    assert all(b.dtype == torch.bfloat16 for b in momenta(other))
    torch.optim.SGD(again.parameters(), lr=0.1, momentum=0.9).load_state_dict(saved)


def test_a_checkpoint_in_memory_is_not_written_to_by_later_steps() -> None:
    model = front.Net(dtype=torch.bfloat16)
    opt = ssam(model)
    front.by_perturb(opt, model, front.batches(2, dtype=torch.bfloat16))
    saved = copy.deepcopy(opt.state_dict())
    kept = [saved["state"][key]["master"].clone() for key in sorted(saved["state"])]
    opt.load_state_dict(saved)
    front.by_perturb(opt, model, front.batches(2, dtype=torch.bfloat16))
    assert front.same_bits([saved["state"][key]["master"] for key in sorted(saved["state"])], kept)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("master", "got a str as 'master' of parameter 0"),
        (torch.zeros(3), r"got one of shape \(3,\) as 'master' of parameter 0"),
        (torch.zeros(7, 5, dtype=torch.int64), "got a tensor of torch.int64"),
    ],
)
def test_a_wrong_master_is_refused_and_nothing_changes(value: Any, message: str) -> None:
    model = front.Net(dtype=torch.bfloat16)
    opt = ssam(model)
    front.by_perturb(opt, model, front.batches(2, dtype=torch.bfloat16))
    before = front.optimizer_bits(opt)
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][0]["master"] = value
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(saved)
    assert front.same_bits(front.optimizer_bits(opt), before)


# -- parameters changed behind the optimizer's back ----------------------------------------------------------


def trained(**options: Any) -> tuple[front.Net, torch_ssam.SSAM]:
    model = front.Net(dtype=torch.bfloat16)
    opt = ssam(model, **options)
    front.by_perturb(opt, model, front.batches(3, dtype=torch.bfloat16))
    return model, opt


def test_weights_loaded_into_the_model_are_taken_as_clean() -> None:
    model, opt = trained()
    new = front.Net(seed=9, dtype=torch.bfloat16)
    model.load_state_dict(new.state_dict())
    with opt.perturb():
        pass
    assert front.same_bits(front.snapshot(model), front.snapshot(new))
    assert front.same_bits(masters(opt), [p.detach().float() for p in new.parameters()])


def test_a_step_without_a_pass_takes_written_weights_too() -> None:
    model, opt = trained(noise_std=0.0)
    with torch.no_grad():
        model.bias.fill_(2.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.param_groups[0].update(momentum=0.0, weight_decay=0.0)
    before = masters(opt)
    opt.step()
    after = masters(opt)
    assert torch.equal(after[1], torch.full((7,), 2.0))
    assert front.same_bits([after[0], *after[2:]], [before[0], *before[2:]])


def test_an_edit_of_some_weights_leaves_the_others_as_fine_as_they_were() -> None:
    model, opt = trained()
    before = masters(opt)
    assert not torch.equal(before[0], before[0].bfloat16().float())
    with torch.no_grad():
        model.first[2] = 0.0  # pruning, say
    with opt.perturb():
        pass
    expected = before[0].clone()
    expected[2] = 0.0
    assert front.same_bits(masters(opt), [expected, *before[1:]])


def test_writing_the_same_weights_again_changes_nothing() -> None:
    """Loading what is there, a broadcast at the start of DDP, weights swapped with an average and back."""
    model, opt = trained()
    before, held = masters(opt), copy.deepcopy(model.state_dict())
    model.load_state_dict({name: torch.zeros_like(value) for name, value in held.items()})
    model.load_state_dict(held)
    with opt.perturb():
        pass
    assert front.same_bits(masters(opt), before)
    for p in model.parameters():  # and new memory
        p.data = p.data.clone()
    with opt.perturb():
        pass
    assert front.same_bits(masters(opt), before)


@pytest.mark.parametrize("kept", [False, True])
def test_writing_to_a_perturbed_parameter_is_noticed_and_named(kept: bool) -> None:
    model = front.Net(dtype=torch.bfloat16)
    opt = ssam(model, keep_perturbed=kept)
    drive = front.by_stock_loop if kept else front.by_perturb
    opt.train()
    drive(opt, model, front.batches(2, dtype=torch.bfloat16))
    before = masters_in_train(opt)

    def write() -> None:
        with contextlib.nullcontext() if kept else opt.perturb(), torch.no_grad():
            model.bias.fill_(3.0)
        opt.eval()

    with pytest.raises(RuntimeError, match="Parameter 1 of shape"):
        write()
    opt.train()
    opt.eval()
    if not kept:
        with opt.perturb():
            pass
    after = masters(opt)
    assert torch.equal(after[1], torch.full((7,), 3.0))
    assert front.same_bits([after[0], *after[2:]], [before[0], *before[2:]])


@pytest.mark.parametrize("noise_std", [0.0, 0.05])
def test_masters_that_a_group_turned_off_do_not_come_back(noise_std: float) -> None:
    model, opt = trained(momentum=0.0, noise_std=noise_std)
    opt.param_groups[0]["master_dtype"] = None
    front.by_perturb(opt, model, front.batches(1, dtype=torch.bfloat16))
    now = front.snapshot(model)
    opt.param_groups[0]["master_dtype"] = torch.float32
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.param_groups[0].update(noise_std=0.0, weight_decay=0.0)
    opt.step()
    assert front.same_bits(front.snapshot(model), now)
    assert front.same_bits(masters(opt), [p.float() for p in now])


def test_a_model_that_becomes_float32_needs_no_masters_any_more() -> None:
    model, opt = trained(momentum=0.0)
    model.float()
    front.by_perturb(opt, model, front.batches(2))
    assert all(p.dtype == torch.float32 for p in model.parameters())


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, "float32", 32, float])
def test_master_dtype_is_float32_or_none(dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"master_dtype is .*; expected torch.float32"):
        torch_ssam.SSAM([nn.Parameter(torch.ones(3))], master_dtype=dtype)


def test_masters_do_not_go_with_regenerated_noise_or_finer_parameters() -> None:
    w = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match='memory="regenerate" with master_dtype'):
        torch_ssam.SSAM([w], memory="regenerate", **MASTER)
    with pytest.raises(ValueError, match="parameter 1 of the group is float64, which is finer"):
        torch_ssam.SSAM([w, nn.Parameter(torch.ones(2, dtype=torch.float64))], **MASTER)
    opt = torch_ssam.SSAM([w], **MASTER)
    with pytest.raises(ValueError, match="parameter 0 of the group is float64"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.float64))]})
    assert len(opt.param_groups) == 1


def test_wrap_and_weight_noise_have_no_masters() -> None:
    w = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match="master_dtype"):
        torch_ssam.wrap(torch.optim.AdamW([w]), **MASTER)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="master_dtype"):
        torch_ssam.WeightNoise([w], 0.1, **MASTER)  # type: ignore[arg-type]
