"""Sharpness of any model under any loss and data: how much the loss rises when the weights move.

What it has::

    average       E L(w + xi) - L(w) by Monte Carlo over WeightNoise, with a confidence interval
    worst_case    the largest L(w + xi) - L(w) for xi within a radius, by projected ascent, from below
    hessian_trace Hutchinson's estimator over curvlinops' operator; top_eigenvalue(s) by Lanczos
    layer_balance squared norms of the layers, and the traces of their Hessian blocks
    landscape     the loss on a line or a square, filter-normalised, with its plot
    compare       a report that sets checkpoints side by side; also python -m torch_ssam.sharpness

All take (model, loss_fn, data) with loss_fn(outputs, targets) the mean loss of a batch, and data an iterable
of (inputs, targets) batches that can be read again, such as a DataLoader. The model and torch's random generators are
afterwards what they were, whatever the model does as it runs (`MeasuredModel`). On a `DiagonalLinear` they agree with the closed
forms of `torch_ssam.theory`. docs/sharpness.md is the guide. Tests: tests/python/test_sharpness.py,
test_sharpness_models.py, test_measured_models.py.
"""

from __future__ import annotations

from ._average import AverageSharpness, average
from ._balance import LayerBalance, layer_balance
from ._compare import Comparison, compare
from ._curvature import (
    HessianTrace,
    hessian_trace,
    top_eigenvalue,
    top_eigenvalues,
)
from ._landscape import Landscape, filter_normalized, landscape
from ._visible import HiddenParameters
from ._worst_case import WorstCase, worst_case

__all__ = [
    "AverageSharpness",
    "Comparison",
    "HessianTrace",
    "HiddenParameters",
    "Landscape",
    "LayerBalance",
    "WorstCase",
    "average",
    "compare",
    "filter_normalized",
    "hessian_trace",
    "landscape",
    "layer_balance",
    "top_eigenvalue",
    "top_eigenvalues",
    "worst_case",
]


def __dir__() -> list[str]:
    return __all__
