"""Whether autograd sees all that the loss depends on: what it does not see would count 0, and be called exact.

The graph claims that some parameters have no gradient, and others no curvature. Where it does, the numbers are asked:
what has no gradient must leave the loss alone when it moves, what has no curvature the gradient. Where the loss passes
a custom autograd.Function, one product with the Hessian is held against differences of gradients. Networks without such
parameters and functions pay nothing. docs/sharpness.md has the rates of false alarm. Tests: test_hidden_parameters.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from torch_ssam._common.measured_model import Move, shift, wide
from torch_ssam.noise.saved_model import Generators
from torch_ssam.noise.weight_noise import WeightNoise
from torch_ssam.ops.plain_numbers import float64_of

from ._estimate import Floats

# How far parameters move, relative to their root mean square: those without a gradient; all, for those without curvature,
# so little that what a mask makes constant stays so; all, for differences of gradients, which also take a quarter of it.
HIDDEN_STEP, FLAT_STEP, DIFFERENCE_STEP = 1e-2, 1e-5, 1e-3

REMEDY = (
    "Reentrant activation checkpointing (pass use_reentrant=False, or evaluate without it), a custom "
    "autograd.Function that calls modules, and code under no_grad() or detach() hide parameters from autograd. "
    "Mend that; or leave the parameters out by requires_grad_(False) or params=; or use `average`, which needs no gradient."
)


class Evaluation(Protocol):
    """What is asked of an `Evaluator`, which asks this file in turn."""

    model: nn.Module
    params: list[Tensor]
    generators: Generators
    custom_functions: set[str]

    def loss(self, at: Move | None = None) -> float: ...

    def loss_and_gradient(self, at: Move | None = None) -> tuple[float, list[Tensor]]: ...


class HiddenParameters(ValueError):
    """The loss depends on parameters in ways that autograd does not see."""


def names(evaluator: Evaluation, params: Sequence[Tensor]) -> str:
    """Up to three of them by the names that they have in the model."""
    named = {id(p): name for name, p in evaluator.model.named_parameters()}
    found = [named.get(id(p), f"a tensor of shape {tuple(p.shape)}") for p in params]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def check_reached(evaluator: Evaluation, reached: Sequence[bool]) -> None:
    """Refuses parameters without a gradient (False in `reached`) that the loss depends on."""
    unreached = [p for p, known in zip(evaluator.params, reached, strict=True) if not known]

    def depends(params: list[Tensor]) -> bool:
        step = shift(params, (HIDDEN_STEP, _direction(params, HIDDEN_STEP)))
        return _changes(evaluator, lambda at: np.array([evaluator.loss(at)]), step)

    if unreached and depends(unreached):
        found = next(([p] for p in unreached if depends([p])), unreached)
        raise HiddenParameters(
            f"the loss depends on {names(evaluator, found)}, and autograd does not see it: its gradient and curvature "
            f"would count 0. {REMEDY}"
        )


def check_flat(evaluator: Evaluation, flat: Sequence[int]) -> None:
    """Refuses parameters whose gradient has no graph and yet depends on the parameters."""

    def gradients(at: Move | None) -> Floats:
        gradient = evaluator.loss_and_gradient(at)[1]
        return _row([gradient[i] for i in flat])

    if not flat:
        return
    step = shift(evaluator.params, (FLAT_STEP, _direction(evaluator.params, FLAT_STEP)))
    if _changes(evaluator, gradients, step):
        raise HiddenParameters(
            f"the gradient for {names(evaluator, [evaluator.params[i] for i in flat])} depends on the parameters, and "
            "autograd does not see how: its curvature would count 0, since the backward of a custom "
            f"autograd.Function cannot be differentiated, or stops at a detach(). {REMEDY}"
        )


def check_product(
    evaluator: Evaluation, places: Sequence[int], product: Callable[[list[Tensor]], list[Tensor]]
) -> None:
    """Refuses products with the Hessian that are not the derivative of the gradient, where custom functions are passed.

    Differences of gradients by two step sizes tell how far they are to be trusted: little where ReLUs switch.
    """
    params = [evaluator.params[i] for i in places]
    custom = evaluator.custom_functions
    if not custom or any(torch.finfo(p.dtype).eps > 0.1 * DIFFERENCE_STEP for p in params):
        return
    direction, start = _direction(params, 0.0), evaluator.generators.state()

    def gradient(step: float) -> Floats:
        evaluator.generators.set(start)
        found = evaluator.loss_and_gradient(shift(params, (step, direction)))[1]
        return _row([found[i] for i in places])

    def difference(step: float) -> Floats:
        return (gradient(step) - gradient(-step)) / (2 * step)

    coarse, fine = difference(DIFFERENCE_STEP), difference(DIFFERENCE_STEP / 4)
    evaluator.generators.set(start)
    found = _row(product([d.to(p.dtype) for d, p in zip(direction, params, strict=True)]))
    evaluator.generators.set(start)
    norm = np.linalg.norm
    if norm(found - fine) > max(10 * norm(coarse - fine), 0.02 * max(norm(found), norm(fine))):
        raise HiddenParameters(
            f"products with the Hessian are not the derivative of the gradient: the loss passes the custom "
            f"autograd.Function {', '.join(sorted(custom))}, whose backward autograd cannot differentiate in full "
            "(results saved in its forward, a detach(), a straight-through estimator). Write it with differentiable "
            "operations on saved inputs; evaluate without it; or use `average`, which needs no gradient."
        )


def custom_functions(loss: Tensor) -> set[str]:
    """Names of the custom autograd.Functions, other than this package's own, that a loss passes."""
    found: set[str] = set()
    seen, ahead = {loss.grad_fn}, [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None:
            continue
        if isinstance(node, BackwardCFunction):
            function = type(node)._forward_cls
            if not function.__module__.startswith("torch_ssam."):
                found.add(function.__name__)
        for before, _ in node.next_functions:
            if before not in seen:
                seen.add(before)
                ahead.append(before)
    return found


def _row(tensors: Sequence[Tensor]) -> Floats:
    found: Floats = torch.cat([float64_of(t.detach()).reshape(-1) for t in tensors]).cpu().numpy()
    return found


def _direction(params: list[Tensor], relative: float) -> list[Tensor]:
    """Gaussian noise of each tensor's size; larger where the dtype cannot hold that share of it."""
    noise = WeightNoise(params, 1.0, seed=0)
    found = []
    for p in params:
        size = float(float64_of(p.detach()).square().mean().sqrt()) if p.numel() else 0.0
        coarse = torch.finfo(p.dtype).eps / relative if relative else 1.0
        found.append(noise.noise(p).to(wide(p)) * max(1.0, coarse) * (size or 1.0))
    return found


def _changes(evaluator: Evaluation, measure: Callable[[Move | None], Floats], at: Move) -> bool:
    """Whether a measurement changes after a move, by more than rounding and than it differs from itself.

    Where it never comes twice alike, a move that changes nothing is taken for one that does in about 1 of 10,000.
    """
    start = evaluator.generators.state()

    def again(at: Move | None) -> Floats:
        evaluator.generators.set(start)
        return measure(at)

    clean, moved = again(None), again(at)
    change = float(np.abs(moved - clean).max())
    rounding = 4 * torch.finfo(wide(evaluator.params[0])).eps * float(np.abs(clean).max())
    differs = change > rounding and all(change > 10 * np.abs(again(None) - clean).max() for _ in range(4))
    evaluator.generators.set(start)
    return differs
