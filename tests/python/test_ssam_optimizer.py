"""SSAM as a torch.optim.Optimizer: hooks, repr, groups, frozen and tied parameters, views, modules with buffers, inference
mode, seeds. What must hold whichever way it is driven.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import nn

import torch_ssam


def test_step_hooks_run_once_a_step_around_the_closure() -> None:
    model = front.Net()
    opt = front.ssam(model)
    seen: list[str] = []
    opt.register_step_pre_hook(lambda *_: seen.append("before"))
    opt.register_step_post_hook(lambda *_: seen.append("after"))
    opt.step(lambda: seen.append("closure"))
    assert seen == ["before", "closure", "after"]


def test_state_dict_hooks_see_the_noise_state() -> None:
    opt = front.ssam(front.Net())
    seen: dict[str, Any] = {}

    def post(_: Any, state_dict: dict[str, Any]) -> None:
        seen.update(state_dict["param_groups"][0])

    opt.register_state_dict_pre_hook(lambda _: seen.update(pre=True))
    opt.register_state_dict_post_hook(post)
    opt.state_dict()
    assert seen["pre"]
    assert (seen["seed"], seen["draw"]) == (7, 0)
    opt.register_state_dict_post_hook(lambda *_: {"other": 1})
    assert opt.state_dict() == {"other": 1}


def test_load_state_dict_hooks_may_rewrite_what_is_loaded() -> None:
    opt = front.ssam(front.Net())
    state_dict = opt.state_dict()
    seen: list[int] = []

    def unwrap(_: Any, wrapped: dict[str, Any]) -> Any:
        return wrapped["inner"]

    opt.register_load_state_dict_pre_hook(unwrap)
    opt.register_load_state_dict_post_hook(lambda one: seen.append(one.draw))
    state_dict["param_groups"][0]["draw"] = 41
    opt.load_state_dict({"inner": state_dict})
    assert seen == [41]


def test_repr_names_the_options_that_differ() -> None:
    text = repr(front.ssam(front.Net(), radius=2.0))
    assert text.startswith("SSAM (")
    for option in ("noise_std: 0.3", "radius: 2.0", "momentum: 0.9"):
        assert option in text


def test_an_added_group_is_perturbed_with_the_next_places() -> None:
    model = front.Net()
    first, *rest = model.parameters()
    opt = torch_ssam.SSAM([first], lr=0.1, noise_std=0.3, seed=7)
    front.by_perturb(opt, model, front.batches(1))
    opt.add_param_group({"params": rest, "noise_std": 0.1, "distribution": "rademacher"})
    expected = list(front.perturbed_copies(opt))
    with opt.perturb():
        assert front.same_bits(model.parameters(), expected)
        front.loss_of(model, *front.data()).backward()
    opt.step()


def test_frozen_parameters_keep_their_place_and_their_bits() -> None:
    model = front.Net()
    frozen = list(model.parameters())[1]
    frozen.requires_grad_(False)
    opt = front.ssam(model)
    clean = frozen.detach().clone()
    expected = list(front.perturbed_copies(opt))
    assert front.same_bits([expected[1]], [clean])
    with opt.perturb():
        assert front.same_bits(model.parameters(), expected)
        front.loss_of(model, *front.data()).backward()
    opt.step()
    assert front.same_bits([frozen], [clean])


def test_tied_weights_are_perturbed_and_updated_once() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
    model[0].weight = model[2].weight = weight
    for params in (list(model.parameters()), [weight, weight]):
        opt = torch_ssam.SSAM(params, lr=0.5, noise_std=0.3, seed=3)
        clean = weight.detach().clone()
        expected = front.expected_noise(weight, 3, 0, 0, 0.3)
        with opt.perturb():
            assert front.same_bits([weight], [expected])
            weight.sum().backward()
        assert front.same_bits([weight], [clean])
        opt.step()
        torch.testing.assert_close(weight.detach(), clean - 0.5)
        opt.zero_grad()
        assert len(opt.param_groups[0]["params"]) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "how", [{}, {"keep_perturbed": True}, {"radius": 3.0}, {"nesterov": True, "scale": "filter"}]
)
@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("kind", ["SSAM", "SSAMAdamW"])
def test_momentum_goes_on_in_a_model_that_changes_its_dtype(
    kind: str, dtype: torch.dtype, how: dict[str, Any], part: bool
) -> None:
    """As after a load into an optimizer of the new model, bit for bit. With `part` one tensor keeps its dtype."""

    def make(model: nn.Module) -> Any:
        options = {"lr": 0.1, "noise_std": 0.3, "seed": 7, **how}
        if kind == "SSAMAdamW":
            options.pop("nesterov", None)
            return torch_ssam.SSAMAdamW(model.parameters(), **options)
        return torch_ssam.SSAM(model.parameters(), momentum=0.9, **options)

    def change(model: nn.Module) -> None:
        for p in list(model.parameters())[part:]:
            p.data = p.data.to(dtype)

    def train(model: nn.Module, opt: Any) -> None:
        opt.train()
        for _ in range(2):
            opt.zero_grad()
            with nullcontext() if "keep_perturbed" in how else opt.perturb():
                sum(p.float().sin().square().sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
            opt.step()
        opt.eval()

    model, other = front.Net(), front.Net()
    opt, resumed = make(model), make(other)
    train(model, opt)
    other.load_state_dict(model.state_dict())
    change(model)
    change(other)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for one, its in ((opt, model), (resumed, other)):
        train(its, one)
    assert front.same_bits(model.parameters(), other.parameters())
    assert front.same_bits(front.optimizer_bits(opt), front.optimizer_bits(resumed))


def test_a_model_in_double_follows_torch_s_sgd() -> None:
    model, plain = front.Net(), front.Net()
    opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.0, momentum=0.9)
    expected = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for dtype in (torch.float32, torch.float64):
        for one, its in ((opt, model), (expected, plain)):
            its.to(dtype)
            one.zero_grad()
            front.loss_of(its, *front.data(dtype=dtype)).backward()
            one.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)  # torch keeps its momentum in float32


def test_views_of_one_flat_buffer_are_fine() -> None:
    flat = torch.randn(100)
    params = [nn.Parameter(flat[:33]), nn.Parameter(flat[33:40]), nn.Parameter(flat[40:].view(6, 10).t())]
    clean = flat.clone()
    opt = torch_ssam.SSAM(params, noise_std=0.3, seed=3)
    with opt.perturb():
        assert bool((flat != clean).all())
    assert front.same_bits([flat], [clean])


def test_batch_norm_statistics_are_gathered_once_a_pass() -> None:
    norm = nn.BatchNorm1d(5)
    opt = torch_ssam.SSAM(norm.parameters(), noise_std=0.1, seed=0)
    with opt.perturb():
        norm(front.data()[0]).square().mean().backward()
    assert int(norm.num_batches_tracked) == 1


def test_a_graph_from_before_the_perturbation_is_refused_by_autograd() -> None:
    model = front.Net()
    opt = front.ssam(model)
    loss = front.loss_of(model, *front.data())
    with opt.perturb(), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_perturb_works_under_no_grad_and_inference_mode_and_leaves_nothing_of_it_behind() -> None:
    model = front.Net()
    opt = front.ssam(model)
    clean = front.snapshot(model)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode(), opt.perturb():
            assert not front.same_bits(model.parameters(), clean)
        assert front.same_bits(model.parameters(), clean)
    front.by_perturb(opt, model, front.batches(2))
    opt.load_state_dict(opt.state_dict())
    assert opt.draw == 4


def test_the_seed_comes_from_the_default_generator_and_manual_seed_decides_it() -> None:
    def seeds() -> list[int]:
        torch.manual_seed(5)
        return [torch_ssam.SSAM(front.Net().parameters()).seed for _ in range(2)]

    assert seeds() == seeds()
    assert len(set(seeds())) == 2


def test_optimizers_and_models_can_be_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        layer = torch_ssam.DiagonalLinear(3)
        opt = torch_ssam.SSAM(layer.parameters(), noise_std=0.1)
    assert layer.weight.is_meta
    assert opt.draw == 0


def test_a_learning_rate_on_another_device_is_not_read_before_the_update() -> None:
    """To read one that lies on a GPU would wait for the GPU; a meta tensor cannot be read at all."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(3))]} for _ in range(2)]
    opt = torch_ssam.SSAM(groups, lr=0.1, noise_std=0.1)
    opt.param_groups[1]["lr"] = torch.tensor(0.1, device="meta")
    opt._check_before(list(opt._noise.placed()))
    opt.param_groups[1]["momentum"] = -1.0
    with pytest.raises(ValueError, match="momentum"):
        opt._check_before(list(opt._noise.placed()))
