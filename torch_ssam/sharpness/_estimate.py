"""Means of independent draws with a confidence interval, to a number of draws or to a precision.

To a precision by Stein's two stages (C. Stein, Ann. Math. Statist. 16, 1945): the variance s^2 of the first
n_0 draws fixes the number of draws N >= (t s / h)^2, with t Student's quantile of n_0 - 1 degrees of freedom.
Then mean +- t s / sqrt(N) covers with the stated confidence exactly, for normal values, where stopping as soon
as an interval happens to be short would not. Tests: tests/python/test_sharpness.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from torch_ssam import _checks
from torch_ssam._common.progress import resolve_progress

Floats = npt.NDArray[np.float64]


def student_quantile(confidence: float, degrees: int) -> float:
    """t with P(|T| <= t) = confidence for Student's T: Abramowitz and Stegun 26.7.3-4, inverted by bisection.

    From 1000 degrees of freedom on, the first two terms of 26.7.5, right to 1e-6.

    >>> round(student_quantile(0.95, 9), 6)
    2.262157
    """
    if degrees >= 1000:
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    odd = degrees % 2 == 1
    k = np.arange(1, (degrees - 1) // 2 if odd else degrees // 2, dtype=np.float64)
    factors = np.cumprod(2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))

    def within(theta: float) -> float:
        cosine = math.cos(theta)
        series = 1.0 + float(np.sum(factors * cosine ** (2 * k)))
        if not odd:
            return math.sin(theta) * series
        return (theta + (math.sin(theta) * cosine * series if degrees > 1 else 0.0)) * 2 / math.pi

    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


@dataclass(frozen=True)
class Plan:
    """How many draws to make, and what to say of their mean; checked at construction."""

    samples: int
    max_samples: int
    precision: float | None
    confidence: float

    @staticmethod
    def of(samples: Any, max_samples: Any, precision: Any, confidence: Any) -> Plan:
        samples = _checks.count("samples", samples, low=2)
        max_samples = _checks.count("max_samples", max_samples, low=2)
        confidence = _checks.number("confidence", confidence, open_low=True)
        if confidence >= 1:
            raise ValueError(f"confidence is {confidence:g}; expected 0 < confidence < 1, such as 0.95.")
        if precision is not None:
            precision = _checks.number("precision", precision, open_low=True)
            if max_samples < samples:
                raise ValueError(
                    f"max_samples is {max_samples} and samples, the draws of the first stage, {samples}; "
                    "expected max_samples >= samples."
                )
        return Plan(samples, max_samples, precision, confidence)

    def run(self, draw: Callable[[int], Floats], progress: Any, unit: str) -> tuple[Floats, Floats, bool]:
        """Values (draws, ...), half-widths of the intervals (...), and whether the precision was reached.

        A draw gives one value or several; the precision is asked of the first.
        """
        report, close = resolve_progress(progress, self.samples, unit)
        values: list[Floats] = []

        def go_on_to(total: int) -> None:
            while len(values) < total:
                values.append(np.asarray(draw(len(values)), dtype=np.float64))
                if report is not None:
                    report(len(values), total)

        try:
            go_on_to(self.samples)
            with np.errstate(invalid="ignore"):  # values that are not finite have an interval of NaN
                half = student_quantile(self.confidence, self.samples - 1) * np.std(values, axis=0, ddof=1)
            wanted = self.samples
            if self.precision is not None and math.isfinite(float(half.flat[0])):
                wanted = max(wanted, math.ceil((float(half.flat[0]) / self.precision) ** 2))
                go_on_to(min(wanted, self.max_samples))
        finally:
            close()
        return np.stack(values), half / math.sqrt(len(values)), wanted <= len(values)
