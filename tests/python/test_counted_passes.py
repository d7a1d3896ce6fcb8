"""Which passes count: those in which a gradient changes. A step refuses gradients that were not made at perturbed
weights, whatever made them, and takes all that were. test_peers.py, rows 7, 12 and 39.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torch_ssam

MAKERS: dict[str, Callable[..., Any]] = {"ssam": front.ssam, "wrap": front.wrapped_adamw}


def refused() -> Any:
    return pytest.raises(RuntimeError, match="without a gradient at perturbed weights")


def backward(model: nn.Module) -> None:
    front.loss_of(model, *front.data()).backward()


def nothing(opt: Any, model: nn.Module) -> None:
    pass


def own_zero(opt: Any, model: nn.Module) -> None:
    opt.zero_grad()


def own_zeros(opt: Any, model: nn.Module) -> None:
    opt.zero_grad(set_to_none=False)


def foreign_zero(opt: Any, model: nn.Module) -> None:
    model.zero_grad()


def foreign_zeros(opt: Any, model: nn.Module) -> None:
    model.zero_grad(set_to_none=False)


CLEARS = [nothing, own_zero, own_zeros, foreign_zero, foreign_zeros]


@pytest.mark.parametrize("clear", CLEARS)
@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.parametrize("loop", [False, True])
def test_an_empty_pass_and_a_plain_backward_are_refused_and_named(
    loop: bool, kind: str, clear: Callable[[Any, nn.Module], None]
) -> None:
    model = front.Net()
    opt = MAKERS[kind](model)
    front.by_perturb(opt, model, front.batches(2))
    clean = front.snapshot(model)
    for before in (True, False):
        clear(opt, model)
        if before:
            backward(model)
        if loop:
            for _ in opt.perturbations():
                front.loss_of(model, *front.data())
        else:
            with opt.perturb():
                front.loss_of(model, *front.data())
        if not before:
            backward(model)
        with pytest.raises(RuntimeError, match=r"(?s)perturbed weights.*no p\.grad changed.*\(1\) `with opt"):
            opt.step()
        assert front.same_bits(model.parameters(), clean)
    clear(opt, model)
    with opt.perturb():
        backward(model)
    opt.step()
    assert not front.same_bits(model.parameters(), clean)


@pytest.mark.parametrize("clear", CLEARS)
@pytest.mark.parametrize("inside", [False, True])
def test_a_pass_counts_however_gradients_were_cleared(
    inside: bool, clear: Callable[[Any, nn.Module], None]
) -> None:
    model = front.Net()
    opt = front.ssam(model)
    for _ in range(3):
        if not inside:
            clear(opt, model)
        with opt.perturb():
            if inside:
                clear(opt, model)
            backward(model)
        opt.step()


@pytest.mark.parametrize("way", ["perturb", "perturbations"])
def test_a_pass_that_leaves_no_gradient_at_all_gives_leave_to_a_step_that_moves_nothing(way: str) -> None:
    """As torch.optim's."""
    model = front.Net()
    opt = front.ssam(model)
    front.by_perturb(opt, model, front.batches(1))
    clean = front.snapshot(model)
    opt.zero_grad()
    if way == "perturb":
        with opt.perturb():
            pass
    else:
        for _ in opt.perturbations():
            pass
    opt.step()
    assert front.same_bits(model.parameters(), clean)
    with refused():  # no pass since
        opt.step()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_clearing_gradients_inside_a_later_pass_starts_anew(set_to_none: bool) -> None:
    for backward_after in (True, False):
        model = front.Net()
        opt = front.ssam(model)
        with opt.perturb():
            backward(model)
        with opt.perturb():
            opt.zero_grad(set_to_none)
            if backward_after:
                backward(model)
        if backward_after or set_to_none:
            opt.step()
        else:
            with refused():
                opt.step()


def test_zeros_count() -> None:
    model = front.Net()
    opt = front.ssam(model, momentum=0.0, weight_decay=0.0)
    with opt.perturb():
        (0.0 * front.loss_of(model, *front.data())).backward()
    opt.step()
    with opt.perturb():  # zeros that are added to zeros
        (0.0 * front.loss_of(model, *front.data())).backward()
    opt.step()


def test_a_gradient_that_is_assigned_inside_counts_and_one_outside_does_not() -> None:
    model = front.Net()
    opt = front.ssam(model)
    params = list(model.parameters())
    for inside in (True, False):
        opt.zero_grad()
        with opt.perturb():
            grads = torch.autograd.grad(front.loss_of(model, *front.data()), params)
            if inside:
                for p, grad in zip(params, grads, strict=True):
                    p.grad = grad
        if not inside:
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad
            with refused():
                opt.step()
            return
        opt.step()


def test_a_pass_that_changes_no_gradient_takes_nothing_from_an_earlier_one() -> None:
    """As FSDP2's micro-batches without a reduction: what they gather is in no p.grad yet."""
    ends = []
    for empty in (True, False):
        model = front.Net()
        opt = front.ssam(model)
        with opt.perturb():
            backward(model)
        if empty:
            with opt.perturb():
                pass
        opt.step()
        ends.append(front.snapshot(model))
    assert front.same_bits(*ends)


def test_passes_without_a_reduction_count_with_the_one_that_reduces() -> None:
    model = front.Net()
    opt = front.ssam(model)
    held: list[Tensor] = []
    params = list(model.parameters())
    for last in (False, False, True):
        with opt.perturb():
            held += torch.autograd.grad(front.loss_of(model, *front.data()), params)
            if last:
                for i, p in enumerate(params):
                    p.grad = sum(held[i :: len(params)])  # type: ignore[assignment]
    opt.step()
    assert opt.draw == 3


@pytest.mark.parametrize("used", ["first", "second"])
def test_parameters_may_take_turns(used: str) -> None:
    """The pass's own witness has no gradient this time."""
    first, second = front.Net(0), front.Net(1)
    opt = torch_ssam.SSAM([*first.parameters(), *second.parameters()], noise_std=0.1, seed=0)
    for model in (first, second, first, second):
        opt.zero_grad()
        with opt.perturb():
            backward(model)
        opt.step()
    model = first if used == "first" else second
    opt.zero_grad()
    with opt.perturb():
        pass
    backward(model)
    with refused():
        opt.step()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_backward_outside_is_named_also_where_checkpointing_recomputes(reentrant: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    opt = front.ssam(model)
    x, y = front.data()
    clean = front.snapshot(model)
    with opt.perturb():
        loss = (checkpoint(model, x.requires_grad_(), use_reentrant=reentrant) - y).square().mean()
    loss.backward()  # the recomputation ran at the clean weights
    with pytest.raises(RuntimeError, match=r"no p\.grad changed: backward\(\) belongs inside"):
        opt.step()
    assert front.same_bits(model.parameters(), clean)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_without_checkpointing_autograd_names_half_a_pass(where: str) -> None:
    """docs/faq.md explains its message."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    opt = front.ssam(model)
    if where == "forward":
        loss = front.loss_of(model, *front.data())
        with opt.perturb(), pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    else:
        with opt.perturb():
            loss = front.loss_of(model, *front.data())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_closures_count_as_ever() -> None:
    model = front.Net()
    opt = front.ssam(model)
    opt.step(lambda: None)  # torch.optim takes a closure that does nothing
    backward(model)
    clean = front.snapshot(model)
    opt.step(lambda: None)
    assert not front.same_bits(model.parameters(), clean)


def test_the_memory_of_gradients_that_are_cleared_inside_is_free_at_once() -> None:
    model = front.Net()
    opt = front.ssam(model)
    with opt.perturb():
        backward(model)
    opt.step()
    assert model.first.grad is not None
    held = weakref.ref(model.first.grad)
    with opt.perturb():
        assert held() is not None
        model.zero_grad()
        gc.collect()
        assert held() is None
        backward(model)
    opt.step()


def test_copies_and_pickles_watch_for_themselves() -> None:
    model = front.Net()
    opt = front.ssam(model)
    front.by_perturb(opt, model, front.batches(1))
    twin_model, twin = copy.deepcopy((model, opt))
    front.by_perturb(twin, twin_model, front.batches(1))
    with twin.perturb():
        pass
    with refused():
        twin.step()


def test_frozen_sparse_and_half_gradients_count() -> None:
    embedding = nn.Embedding(4, 3, sparse=True)
    opt = torch_ssam.wrap(torch.optim.SGD(embedding.parameters(), lr=0.1), noise_std=0.1, seed=0)
    for _ in range(2):
        with opt.perturb():
            embedding(torch.tensor([1, 2])).sum().backward()
        opt.step()
    half = nn.Linear(3, 2).bfloat16()
    other = torch_ssam.SSAM(half.parameters(), noise_std=0.1, samples=3, seed=0)
    for _ in other.perturbations():
        half(torch.ones(2, 3).bfloat16()).sum().backward()
    other.step()
    for _ in other.perturbations():
        pass
    with refused():
        other.step()
