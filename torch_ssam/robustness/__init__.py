"""What is left of a model when its weights are disturbed: rounded to few bits, noisy, or hit by bit flips.

What it has::

    quantized, noisy, bit_flips   contexts in which a model's weights are disturbed; afterwards their exact bits are back
    quantized_activations         a context in which layers get inputs of few bits
    fold_batchnorm                a copy without BatchNorm, as tools make it that deploy networks
    measure                       a metric against bits, noise and flips, with intervals over draws
    compare                       several models or checkpoints under the same disturbances; also python -m torch_ssam.robustness
    report                        measurements of different runs on one page
    accuracy                      the metric where none is given, in percent

For any model, metric and data; docs/robustness.md is the guide. Tests: tests/python/test_robustness_*.py.
"""

from __future__ import annotations

from ._activations import quantized_activations
from ._compare import Comparison, compare, report
from ._contexts import bit_flips, noisy, quantized
from ._evaluate import accuracy
from ._fold import fold_batchnorm
from ._measure import measure
from ._points import Point
from ._result import Robustness

__all__ = [
    "Comparison",
    "Point",
    "Robustness",
    "accuracy",
    "bit_flips",
    "compare",
    "fold_batchnorm",
    "measure",
    "noisy",
    "quantized",
    "quantized_activations",
    "report",
]


def __dir__() -> list[str]:
    return __all__
