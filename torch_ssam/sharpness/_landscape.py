"""The loss along one or two filter-normalised directions, and its plot. Tests: tests/python/test_sharpness.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torch_ssam import _checks
from torch_ssam._common.extras import need
from torch_ssam._common.measured_model import shift
from torch_ssam._common.progress import resolve_progress
from torch_ssam.ops.plain_numbers import float64_of

from ._estimate import Floats
from ._evaluate import Data, Evaluator, LossFunction, Mode, measuring_noise


def filter_normalized(params: Sequence[Tensor], direction: Sequence[Tensor]) -> list[Tensor]:
    """The direction with the norm of the weights in every filter (Li et al. 2018, arXiv 1712.09913, section 4).

    d_f <- d_f |w_f| / |d_f| for each filter f, an index of dimension 0; tensors of fewer than two dimensions
    (biases, BatchNorm) get 0, as in the paper. Makes plots of networks comparable whose filters differ in
    scale only.

    >>> import torch
    >>> filter_normalized([torch.tensor([[3.0, 4.0], [0.0, 1.0]])], [torch.ones(2, 2)])
    [tensor([[3.5355, 3.5355],
            [0.7071, 0.7071]])]
    """
    if len(params) != len(direction) or any(
        p.shape != d.shape for p, d in zip(params, direction, strict=True)
    ):
        raise ValueError(
            f"direction has shapes {[tuple(d.shape) for d in direction]}; expected those of the parameters, "
            f"{[tuple(p.shape) for p in params]}."
        )
    result = []
    for p, d in zip(params, direction, strict=True):
        if p.dim() < 2:
            result.append(torch.zeros_like(d))
            continue
        shape = (-1, *([1] * (p.dim() - 1)))
        weight, length = (float64_of(t.detach().flatten(1)).norm(dim=1).reshape(shape) for t in (p, d))
        factor = torch.where(length > 0, weight / length, torch.zeros_like(length))
        result.append((float64_of(d.detach()) * factor).to(p.dtype).to(p.device))
    return result


@dataclass(frozen=True)
class Landscape:
    """Losses on a line or a square grid through the weights; see `landscape`."""

    #: Positions along each direction, (points,): in units of the weights' norms, filter by filter.
    positions: Floats
    #: (points,), or (points, points) with the first direction down; inf or NaN where the loss is.
    losses: Floats

    def draw(self, axis: Any, label: str | None = None) -> None:
        """On a matplotlib axis: a curve, or contours."""
        if self.losses.ndim == 1:
            axis.plot(self.positions, self.losses, label=label)
            axis.set(xlabel="position along the direction", ylabel="loss")
            return
        shown = np.where(np.isfinite(self.losses), self.losses, np.nan)
        contours = axis.contourf(self.positions, self.positions, shown.T, levels=20)
        axis.plot(0, 0, "+", color="white", markersize=10)
        axis.set(xlabel="first direction", ylabel="second direction", aspect="equal")
        if label is not None:
            axis.set_title(label)
        axis.figure.colorbar(contours, ax=axis, label="loss")

    def figure(self) -> Any:
        """A matplotlib figure, made without a display."""
        figure = need("matplotlib.figure", "sharpness", "the plot of a landscape").Figure(
            figsize=(5.5, 4.2), layout="constrained"
        )
        self.draw(figure.subplots())
        return figure

    def save(self, path: str | Path) -> None:
        """The figure as an image, of the type that the name says."""
        self.figure().savefig(path, dpi=120)


def landscape(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    *,
    dimensions: int = 1,
    extent: float = 1.0,
    points: int = 21,
    directions: Sequence[Sequence[Tensor]] | None = None,
    normalize: bool = True,
    params: Iterable[Tensor] | None = None,
    seed: int | None = 0,
    mode: Mode = "eval",
    progress: bool | Callable[[int, int], object] | None = None,
) -> Landscape:
    """Loss L(w + a d_1) or L(w + a d_1 + b d_2), a and b from -extent to extent, around the clean weights.

    A model that draws random numbers (dropout in train mode) draws the same ones at every point.

    Args:
        model, loss_fn, data, params, mode: as in `average`.
        dimensions: 1 or 2.
        extent: > 0; with normalised directions 1 moves every filter by its own norm.
        points: along each direction, >= 2; odd, for the clean weights to be one of them.
        directions: one or two lists of tensors, shaped as the parameters; None for Gaussian ones.
        normalize: filter-normalise the directions (`filter_normalized`).
        seed: of the Gaussian directions: the same for every model of the same shapes, and not the noise of a
            training with this seed.
        progress: True for a tqdm bar, or a function of (points done, points to do).

    Returns: Landscape, with `figure()` and `save(path)` (need matplotlib). The model is afterwards what it was, as in `average`.

    >>> import torch, torch_ssam
    >>> layer = torch_ssam.DiagonalLinear(1, depth=1, init_scale=1.0)
    >>> data = [(torch.ones(1, 1), torch.ones(1, 1))]
    >>> landscape(layer, torch.nn.functional.mse_loss, data, points=3).losses
    array([1., 0., 1.])
    """
    evaluator = Evaluator(model, loss_fn, data, params, mode)
    dimensions = _checks.count("dimensions", dimensions, high=2)
    extent = _checks.number("extent", extent, open_low=True)
    points = _checks.count("points", points, low=2)
    normalize = _checks.flag("normalize", normalize)
    if directions is None:
        noise = measuring_noise(evaluator.params, 1.0, seed)
        directions = [[noise.noise(p, sample=k) for p in evaluator.params] for k in range(dimensions)]
    elif len(directions) != dimensions:
        raise ValueError(
            f"directions has {len(directions)} members; expected {dimensions}, as dimensions says."
        )
    scaled = [filter_normalized(evaluator.params, d) for d in directions]  # checks the shapes too
    ways = scaled if normalize else [list(d) for d in directions]
    positions = np.linspace(-extent, extent, points)
    grid = [(a,) for a in positions] if dimensions == 1 else [(a, b) for a in positions for b in positions]
    report, close = resolve_progress(progress, len(grid), "point")
    losses: list[float] = []
    try:
        generators = evaluator.generators
        same = generators.state()
        with evaluator.ready():
            for place in grid:
                generators.set(same)
                terms = ((float(a), way) for a, way in zip(place, ways, strict=True))
                losses.append(evaluator.loss(shift(evaluator.params, *terms)))
                if report is not None:
                    report(len(losses), len(grid))
    finally:
        close()
    return Landscape(positions, np.array(losses).reshape((points,) * dimensions))
