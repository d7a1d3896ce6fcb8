"""Worst-case sharpness within a ball, by projected gradient ascent.

Tests: tests/python/test_sharpness.py, test_sharpness_models.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_ssam import _checks
from torch_ssam._common.measured_model import shift, wide
from torch_ssam._common.progress import resolve_progress
from torch_ssam.ops.plain_numbers import float64_of

from ._evaluate import Data, Evaluator, LossFunction, Mode, finite, measuring_noise


@dataclass(frozen=True)
class WorstCase:
    """The largest increase of the loss that was found within a ball; see `worst_case`."""

    #: L(w + xi) - L(w) at the best xi found, >= 0: a lower bound on the maximum.
    increase: float
    #: |xi|_2 of that xi, at most `radius` up to rounding; 0 where no increase was found.
    radius_used: float
    radius: float
    #: L(w) at the clean weights.
    loss: float
    #: Best increase so far after every gradient, over all restarts: never falls.
    history: tuple[float, ...]
    #: The best increase of every start: the gradient's direction first, then the random ones.
    by_start: tuple[float, ...]
    #: The best xi found, one tensor a parameter; float32 for 16-bit parameters, so that w + xi is the point found.
    perturbation: tuple[Tensor, ...]

    def __str__(self) -> str:
        return (
            f"worst-case sharpness at least {self.increase:.4g} within radius {self.radius:g} "
            f"(found at {self.radius_used:.4g})"
        )


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(float64_of(t.detach()).square().sum()) for t in tensors))


def _along(tensors: Sequence[Tensor], length: float) -> list[Tensor]:
    """The direction of the tensors with the length given, in `wide` dtypes."""
    norm = _norm(tensors)
    if not norm > 0:
        return [torch.zeros_like(t, dtype=wide(t)) for t in tensors]
    return [t.to(wide(t)) * (length / norm) for t in tensors]


def worst_case(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    radius: float,
    *,
    steps: int = 20,
    restarts: int = 3,
    params: Iterable[Tensor] | None = None,
    seed: int | None = 0,
    mode: Mode = "eval",
    progress: bool | Callable[[int, int], object] | None = None,
) -> WorstCase:
    """Worst-case sharpness S_max(w, radius) = max_{|xi|_2 <= radius} L(w + xi) - L(w), from below.

    Projected ascent along the normalised full gradient, from the boundary in the gradient's direction (the
    point that SAM evaluates) and from `restarts` random points of it. A step that lowers the loss is taken
    back and halved, so every ascent, and the best so far, is monotone. What is found is attained by some xi:
    a lower bound on the maximum, which further restarts and steps may raise. A model that draws random numbers
    (dropout in train mode) draws the same ones in every evaluation.

    Args:
        model, loss_fn, data, mode: as in `average`.
        radius: of the ball in all of `params` together, Euclidean, > 0, in units of the weights.
        steps: gradients an ascent, >= 1.
        restarts: random starts beside the gradient's, >= 0.
        params: tensors to move; None for all of the model's that require gradients.
        seed: of the random starts, which are not the noise of a training with this seed.
        progress: True for a tqdm bar, or a function of (gradients done, gradients at most).

    Returns: WorstCase. The model is afterwards what it was, as in `average`.
    Raises: HiddenParameters, a ValueError: the loss depends on parameters that autograd does not see.

    >>> import torch, torch_ssam
    >>> layer = torch_ssam.DiagonalLinear(1, init_scale=1.0)
    >>> result = worst_case(layer, torch.nn.functional.mse_loss, [(torch.ones(1, 1), torch.zeros(1, 1))], 2**0.5)
    >>> round(result.increase, 4)  # both layers go to 2: 16 - 1
    15.0
    """
    evaluator = Evaluator(model, loss_fn, data, params, mode)
    radius = _checks.number("radius", radius, open_low=True)
    steps = _checks.count("steps", steps)
    restarts = _checks.count("restarts", restarts, low=0)
    noise = measuring_noise(evaluator.params, 1.0, seed)
    report, close = resolve_progress(progress, steps * (restarts + 1), "gradient")
    advice = "Lower the radius."
    history: list[float] = []
    by_start: list[float] = []
    best, best_at = 0.0, [torch.zeros_like(p, dtype=wide(p)) for p in evaluator.params]
    generators = evaluator.generators
    same = generators.state()

    def evaluate(xi: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        generators.set(same)
        loss, gradient = evaluator.loss_and_gradient(shift(evaluator.params, (1.0, xi)))
        return finite(loss, f"within the ball of radius {radius:g}", advice), gradient

    try:
        with evaluator.ready():
            clean, gradient = evaluator.loss_and_gradient(check=True)
            finite(clean, "at the clean weights", "Check the model and the data.")
            for start in range(restarts + 1):
                way = gradient if start == 0 else [noise.noise(p, sample=start) for p in evaluator.params]
                xi, step = _along(way, radius), radius
                loss, slope = evaluate(xi)
                for done in range(1, steps + 1):
                    if loss - clean > best:
                        best, best_at = loss - clean, xi
                    history.append(best)
                    if report is not None:
                        report(start * steps + done, steps * (restarts + 1))
                    if done == steps or step < 1e-5 * radius or _norm(slope) == 0:
                        break
                    ahead = [x + s for x, s in zip(xi, _along(slope, step), strict=True)]
                    trial = _along(ahead, radius) if _norm(ahead) > radius else ahead
                    trial_loss, trial_slope = evaluate(trial)
                    if trial_loss > loss:
                        xi, loss, slope, step = trial, trial_loss, trial_slope, 1.5 * step
                    else:
                        step /= 2
                by_start.append(loss - clean)
    finally:
        close()
    return WorstCase(
        increase=best,
        radius_used=_norm(best_at),
        radius=radius,
        loss=clean,
        history=tuple(history),
        by_start=tuple(by_start),
        perturbation=tuple(best_at),
    )
