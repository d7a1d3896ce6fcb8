"""What PyTorch's documentation says of every torch.optim.Optimizer, beyond its inputs and schedulers (test_optimizer_suite.py),
against SSAM and wrap in both forms of driving: hooks and their order, local and global; state_dict and load_state_dict
hooks; loading into parameters of another dtype; groups edited in place; the options foreach, fused, capturable and
differentiable; that gradients are read only; names in profiles; copies of attributes; no cycles. The claims are those
of torch's documentation and of its test/test_optim.py.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import torch_ssam

OPTIONS: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
Make = Callable[..., Any]


def ssam(params: Any, noise_std: float = 0.3, **noise: Any) -> Any:
    return torch_ssam.SSAM(params, noise_std=noise_std, seed=7, **OPTIONS, **noise)


def wrapped(params: Any, noise_std: float = 0.3, **noise: Any) -> Any:
    return torch_ssam.wrap(torch.optim.SGD(params, **OPTIONS), noise_std, seed=7, **noise)


MAKERS = [pytest.param(ssam, id="ssam"), pytest.param(wrapped, id="wrap")]


def drive(opt: Any, model: nn.Module, todo: front.Batches, kept: bool) -> None:
    if kept:
        opt.train()
        front.by_stock_loop(opt, model, todo)
        opt.eval()
    else:
        front.by_perturb(opt, model, todo)


@pytest.fixture
def global_hooks() -> Iterator[list[str]]:
    seen: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("global before")),
        register_optimizer_step_post_hook(lambda *_: seen.append("global after")),
    ]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("kept", [False, True])
def test_global_hooks_run_around_the_optimizer_s_own(global_hooks: list[str], kept: bool) -> None:
    model = front.Net()
    opt = ssam(model.parameters(), keep_perturbed=kept)
    opt.register_step_pre_hook(lambda *_: global_hooks.append("before"))
    opt.register_step_post_hook(lambda *_: global_hooks.append("after"))
    drive(opt, model, front.batches(2), kept)
    assert global_hooks == ["global before", "before", "after", "global after"] * 2


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kept", [False, True])
def test_a_step_pre_hook_may_replace_the_arguments_and_handles_remove_hooks(make: Make, kept: bool) -> None:
    model = front.Net()
    opt = make(model.parameters(), keep_perturbed=kept)
    called: list[int] = []

    def closure() -> torch.Tensor:
        called.append(1)
        opt.zero_grad()
        loss = front.loss_of(model, *front.data())
        loss.backward()
        return loss

    handle = opt.register_step_pre_hook(lambda one, *_: ((one, closure), {}))
    opt.train()
    assert isinstance(opt.step(), torch.Tensor)
    assert called
    handle.remove()
    before = len(called)
    front.loss_of(model, *front.data()).backward()
    if kept:
        opt.step()
    else:
        with pytest.raises(RuntimeError, match="perturb"):
            opt.step()
    assert len(called) == before


def test_what_a_pre_hook_does_to_gradients_counts_for_the_step() -> None:
    clipped, by_hand = front.Net(), front.Net()
    one, other = ssam(clipped.parameters()), ssam(by_hand.parameters())

    def clip(opt: Any, *_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(opt.param_groups[0]["params"], 0.01)

    one.register_step_pre_hook(clip)
    for x, y in front.batches(2):
        front.by_perturb(one, clipped, [(x, y)])
        other.zero_grad()
        with other.perturb():
            front.loss_of(by_hand, x, y).backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.01)
        other.step()
    assert front.same_bits(clipped.parameters(), by_hand.parameters())


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kept", [False, True])
def test_state_dict_and_load_hooks_run_in_the_order_of_registration_and_prepend_puts_one_first(
    make: Make, kept: bool
) -> None:
    model = front.Net()
    opt = make(model.parameters(), keep_perturbed=kept)
    drive(opt, model, front.batches(1), kept)
    seen: list[str] = []
    for register in (
        opt.register_state_dict_pre_hook,
        opt.register_state_dict_post_hook,
        opt.register_load_state_dict_pre_hook,
        opt.register_load_state_dict_post_hook,
    ):
        what = register.__name__.removeprefix("register_").removesuffix("_hook")
        register(lambda *_, name=f"{what} 1": seen.append(name))
        register(lambda *_, name=f"{what} 2": seen.append(name))
        register(lambda *_, name=f"{what} 0": seen.append(name), prepend=True)
    opt.load_state_dict(opt.state_dict())
    steps = ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post")
    assert seen == [f"{step} {k}" for step in steps for k in range(3)]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [False, True])
def test_state_loads_into_parameters_of_another_dtype_as_sgd_s_does(
    make: Make, dtype: torch.dtype, kept: bool
) -> None:
    model = front.Net()
    opt = make(model.parameters(), keep_perturbed=kept)
    drive(opt, model, front.batches(2), kept)
    saved = opt.state_dict()
    other = front.Net(dtype=dtype)
    fresh = make(other.parameters(), keep_perturbed=kept)
    fresh.load_state_dict(copy.deepcopy(saved))
    plain = torch.optim.SGD(other.parameters(), **OPTIONS)
    plain.load_state_dict({"state": copy.deepcopy(saved["state"]), "param_groups": saved["param_groups"]})
    for p in other.parameters():
        ours, theirs = fresh.state[p]["momentum_buffer"], plain.state[p]["momentum_buffer"]
        assert ours.dtype == dtype
        assert front.same_bits([ours], [theirs])
    before = front.snapshot(other)
    drive(fresh, other, front.batches(1, dtype=dtype), kept)
    assert all(not torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))
    assert fresh.draw == opt.draw + 1 or kept


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kept", [False, True])
def test_options_edited_in_the_groups_count_from_the_next_step(make: Make, kept: bool) -> None:
    edited, plain = front.Net(), front.Net()
    opt = make(edited.parameters(), noise_std=0.0, keep_perturbed=kept)
    sgd = torch.optim.SGD(plain.parameters(), **OPTIONS, foreach=False)
    edits = ({"lr": 0.01}, {"momentum": 0.5}, {"weight_decay": 0.3}, {"maximize": True}, {"dampening": 0.4})
    opt.train()
    for edit, batch in zip(edits, front.batches(len(edits)), strict=True):
        for one in (opt, sgd):
            one.param_groups[0].update(edit)
        front.by_stock_loop(opt, edited, [batch])
        front.by_stock_loop(sgd, plain, [batch])
        for ours, theirs in zip(edited.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["foreach", "fused", "capturable"])
def test_options_that_choose_torch_s_kernels_are_no_options_of_ssam_and_change_nothing_in_a_base(
    name: str,
) -> None:
    with pytest.raises(TypeError, match=name):
        torch_ssam.SSAM(front.Net().parameters(), **{name: True})
    plain, chosen = front.Net(), front.Net()
    one = torch_ssam.wrap(torch.optim.Adam(plain.parameters()), 0.3, seed=1)
    value = name != "capturable"  # which torch has for accelerators only
    other = torch_ssam.wrap(torch.optim.Adam(chosen.parameters(), **{name: value}), 0.3, seed=1)
    front.by_perturb(one, plain, front.batches(3))
    front.by_perturb(other, chosen, front.batches(3))
    assert other.param_groups[0][name] is value
    for ours, theirs in zip(plain.parameters(), chosen.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kept", [False, True])
def test_differentiable_is_refused_wherever_it_comes_from_and_nothing_changes(kept: bool) -> None:
    with pytest.raises(TypeError, match="differentiable"):
        torch_ssam.SSAM(front.Net().parameters(), differentiable=True)  # type: ignore[call-arg]
    model = front.Net()
    base = torch.optim.SGD(model.parameters(), lr=0.1, differentiable=True)
    with pytest.raises(ValueError, match="differentiable=True"):
        torch_ssam.wrap(base, 0.1)
    assert "noise_std" not in base.param_groups[0]
    opt = ssam(model.parameters(), keep_perturbed=kept)
    with pytest.raises(ValueError, match="differentiable=True"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))], "differentiable": True})
    assert len(opt.param_groups) == 1
    before = front.snapshot(model)
    with pytest.raises(ValueError, match="differentiable=True"):
        opt.load_state_dict(base.state_dict())
    assert opt.draw == 0
    assert front.same_bits(model.parameters(), before)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kept", [False, True])
def test_gradients_are_read_and_never_written(make: Make, kept: bool) -> None:
    model = front.Net()
    opt = make(model.parameters(), keep_perturbed=kept)
    opt.train()
    with opt.perturb() if not kept else torch.enable_grad():
        front.loss_of(model, *front.data()).backward()
    grads = [p.grad for p in model.parameters()]
    bits, versions = front.snapshot(grads), [g._version for g in grads]
    opt.step()
    assert front.same_bits(grads, bits)
    assert [g._version for g in grads] == versions
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_clears_gradients_either_way(make: Make, to_none: bool) -> None:
    model = front.Net()
    opt = make(model.parameters())
    front.by_perturb(opt, model, front.batches(1))
    opt.zero_grad(set_to_none=to_none)
    for p in model.parameters():
        assert p.grad is None if to_none else bool((p.grad == 0).all())


def test_defaults_hold_every_option_and_do_not_change_with_the_groups() -> None:
    opt = ssam(front.Net().parameters(), scale="filter")
    options = set(opt.param_groups[0]) - {"params", "seed", "draw"}
    assert set(opt.defaults) == options
    opt.param_groups[0]["lr"] = 3.0
    assert opt.defaults["lr"] == 0.05
    assert opt.defaults["scale"] == "filter"


@pytest.mark.parametrize("make", MAKERS)
def test_a_deep_copy_has_every_public_attribute(make: Make) -> None:
    opt = make(front.Net().parameters())

    def public(one: Any) -> set[str]:
        return {name for name in vars(one) if not name.startswith("_")}

    assert public(copy.deepcopy(opt)) == public(opt)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kept", [False, True])
def test_an_optimizer_goes_as_soon_as_it_is_let_go(make: Make, kept: bool) -> None:
    """No cycle that would hold the copy of the weights until the garbage collector comes by."""
    model = front.Net()
    opt = make(model.parameters(), keep_perturbed=kept)
    drive(opt, model, front.batches(2), kept)
    gone = weakref.ref(opt)
    gc.collect()
    gc.disable()
    try:
        del opt
        assert gone() is None
    finally:
        gc.enable()


def test_profiles_name_the_step() -> None:
    model = front.Net()
    opt = ssam(model.parameters())
    with torch.profiler.profile() as profile:
        front.by_perturb(opt, model, front.batches(1))
    assert "Optimizer.step#SSAM.step" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("make", MAKERS)
def test_torch_s_own_step_is_left_as_it_was_for_other_optimizers(make: Make) -> None:
    """Hooks and patches sit on our classes, not on torch.optim.Optimizer."""
    model = front.Net()
    make(model.parameters())
    sgd = torch.optim.SGD(front.Net(seed=1).parameters(), lr=0.1)
    assert type(sgd).step is torch.optim.SGD.step
    assert not sgd._optimizer_step_pre_hooks
    assert not sgd._optimizer_step_post_hooks
