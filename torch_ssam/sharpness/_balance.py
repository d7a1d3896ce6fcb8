"""How evenly the layers share the weights and the curvature. Tests: tests/python/test_sharpness.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from torch_ssam.nn.diagonal_linear import DiagonalLinear
from torch_ssam.ops.plain_numbers import float64_of

from ._curvature import hessian_diagonal
from ._estimate import Floats, Plan
from ._evaluate import Data, Evaluator, LossFunction, Mode


@dataclass(frozen=True)
class LayerBalance:
    """How evenly the layers share the weights and the curvature; see `layer_balance`."""

    names: tuple[str, ...]
    #: |W_l|^2 of every layer.
    squared_norms: Floats
    #: |W_i|^2 - |W_j|^2, (layers, layers); on a DiagonalLinear the sum over features of its `balance_gaps`.
    gaps: Floats
    #: log(largest / smallest squared norm); 0 is balance, inf where a layer is zero.
    imbalance: float
    #: Trace of every layer's block of the Hessian, its half-width, and log(largest / smallest); None without
    #: loss_fn and data.
    traces: Floats | None = None
    traces_half_width: Floats | None = None
    trace_imbalance: float | None = None


def _spread(values: Floats) -> float:
    low, high = float(values.min()), float(values.max())
    return math.inf if low <= 0 < high else math.log(high / low) if high > 0 else 0.0


def layer_balance(
    model: nn.Module,
    loss_fn: LossFunction | None = None,
    data: Data | None = None,
    *,
    confidence: float = 0.95,
    samples: int = 16,
    seed: int | None = 0,
    mode: Mode = "eval",
    progress: bool | Callable[[int, int], object] | None = None,
) -> LayerBalance:
    """Squared norms of the layers' weights and, with a loss and data, the traces of their Hessian blocks.

    A layer is a parameter of two or more dimensions that requires gradients; each layer of a `DiagonalLinear`
    is one. Biases are left out. On diagonal networks S-SAM drives w_i^2 - w_j^2 to 0 (arXiv 2503.11891, theorem 3.1).
    Between layers of different shapes it is the traces that it tends to make equal: rescaling layers at an
    unchanged product, eta^2 / 2 times their sum is least there.

    Args: as in `hessian_trace`; loss_fn and data together or not at all (traces need curvlinops).
    Returns: LayerBalance.

    >>> import torch_ssam
    >>> layer = torch_ssam.DiagonalLinear(3, init_scale=[2.0, 1.0])
    >>> layer_balance(layer).squared_norms
    array([12.,  3.])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module.")
    if (loss_fn is None) != (data is None):
        raise ValueError("layer_balance got one of loss_fn and data; expected both, for traces, or neither.")
    diagonal = {id(m.weight) for m in model.modules() if isinstance(m, DiagonalLinear)}
    chosen = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.dim() >= 2]
    if not chosen:
        raise ValueError("the model has no parameter of two or more dimensions that requires gradients.")

    def by_layer(p: Tensor, terms: Tensor) -> list[float]:
        values: list[float] = terms.flatten(1).sum(1).tolist() if id(p) in diagonal else [float(terms.sum())]
        return values

    names = tuple(
        layer
        for name, p in chosen
        for layer in ([f"{name}[{i}]" for i in range(len(p))] if id(p) in diagonal else [name])
    )
    norms = np.array([v for _, p in chosen for v in by_layer(p, float64_of(p.detach()).square())])
    result = LayerBalance(names, norms, norms[:, None] - norms[None, :], _spread(norms))
    if loss_fn is None or data is None:
        return result
    evaluator = Evaluator(model, loss_fn, data, [p for _, p in chosen], mode)
    mean, half, *_ = hessian_diagonal(
        evaluator,
        "layer_balance with a loss",
        Plan.of(samples, samples, None, confidence),
        seed,
        lambda i, term: by_layer(evaluator.params[i], term),
        progress,
    )
    return replace(result, traces=mean[1:], traces_half_width=half[1:], trace_imbalance=_spread(mean[1:]))
