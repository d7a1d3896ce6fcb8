"""Means over seeds with 95% intervals, and paired differences. Tests: tests/python/test_compare.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from torch_ssam.sharpness._estimate import student_quantile


class Estimate(NamedTuple):
    """mean +- half_width over n values; the half-width is infinite for one value, both are NaN for none."""

    mean: float
    half_width: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    def text(self, digits: int, sign: bool = False) -> str:
        """ "86.45 ± 0.12", or the mean alone where there is no interval."""
        if self.n == 0:
            return ""
        mean = f"{self.mean:{'+' if sign else ''}.{digits}f}"
        return f"{mean} ± {self.half_width:.{digits}f}" if math.isfinite(self.half_width) else mean


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean of independent values, and half the width of its interval by Student's t.

    >>> estimate([1.0, 2.0, 3.0]).text(3)
    '2.000 ± 2.484'
    """
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, 0)
    if n == 1:
        return Estimate(float(values[0]), math.inf, 1)
    half = student_quantile(confidence, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(float(np.mean(values)), half, n)


def paired(values: Mapping[int, float], reference: Mapping[int, float], confidence: float = 0.95) -> Estimate:
    """The mean difference over the seeds that both have, seed by seed.

    Pairing takes out what a seed does to both: its first weights, order of batches and wrong labels.

    >>> paired({0: 3.0, 1: 5.0, 2: 9.0}, {1: 4.0, 0: 1.0}).text(2, sign=True)
    '+1.50 ± 6.35'
    """
    return estimate(
        [values[seed] - reference[seed] for seed in sorted(values.keys() & reference)], confidence
    )


def calibration_error(confidence: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """Expected calibration error: sum over 15 equal bins of confidence of n_b / n |accuracy - confidence|.

    Naeini et al. (AAAI 2015) and Guo et al. (arXiv 1706.04599). Bin b holds confidences in (b/15, (b+1)/15].

    >>> round(calibration_error([0.9, 0.9, 0.6, 0.6], [True, False, True, True]), 6)  # bins of 2 and 2
    0.4
    """
    p = np.asarray(confidence, dtype=np.float64)
    hit = np.asarray(right, dtype=np.float64)
    bins = np.clip(np.ceil(p * 15).astype(int) - 1, 0, 14)
    gap = np.bincount(bins, hit - p, 15)
    return float(np.abs(gap).sum() / len(p))
