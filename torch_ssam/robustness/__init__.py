"""What is left of a model when its weights are disturbed: rounded to few bits, noisy, or hit by bit flips.

Tests: tests/python/test_robustness_*.py.
"""

from __future__ import annotations

from ._contexts import bit_flips, noisy, quantized
from ._fold import fold_batchnorm

__all__ = ["bit_flips", "fold_batchnorm", "noisy", "quantized"]
