"""Rounding weights to few bits: each formula of a quantiser once, on rows that share a step.

A row is a filter, a tensor or a group; `_weights` makes rows of a weight. A code k in [low, high] stands for
(k - zero) * step, and a weight w gets the code clamp(round(w / step) + zero, low, high), halves to even. In the
order of its operations this is torchao's, with which "full" and "affine" agree bit for bit in float32.
Tests: tests/python/test_robustness_quantizers.py, test_robustness_torchao.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from torch_ssam import _checks
from torch_ssam.ops.plain_numbers import wide

Grid = Literal["narrow", "full", "affine"]
Step = Literal["absmax", "mse"]
GRIDS: tuple[str, ...] = get_args(Grid)
STEPS: tuple[str, ...] = get_args(Step)

#: The search of step="mse": so many factors a round, over (0, 1], then on both sides of the best one.
COARSE, FINE = 64, 8


class Encoded(NamedTuple):
    """Rows of weights as codes: (rows, columns), and (rows, 1) each for step and zero."""

    codes: Tensor
    step: Tensor
    zero: Tensor

    def values(self) -> Tensor:
        """The weights that the codes stand for."""
        return (self.codes - self.zero) * self.step


@dataclass(frozen=True)
class Quantizer:
    """How rows become codes of `bits` bits; see `quantized` for the options. Checked at construction.

    >>> import torch
    >>> Quantizer(2, "narrow", "absmax").encode(torch.tensor([[1.0, 0.5, -0.6]])).values()
    tensor([[ 1.,  0., -1.]])
    """

    bits: int
    grid: str = "narrow"
    step: str = "absmax"

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", check_bits("bits", self.bits))
        _checks.one_of("grid", self.grid, GRIDS)
        _checks.one_of("step", self.step, STEPS)

    @property
    def low(self) -> int:
        """The smallest code."""
        half = int(2 ** (self.bits - 1))
        return 1 - half if self.grid == "narrow" else -half

    @property
    def high(self) -> int:
        """The largest code."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def levels(self) -> int:
        """How many values a row can hold."""
        return self.high - self.low + 1

    def encode(self, rows: Tensor) -> Encoded:
        """Codes, step and zero of rows (rows, columns) of float32 or float64, all finite."""
        # The smallest normal number: rows of zeros stay zeros, and nothing divides by zero.
        tiny = torch.finfo(rows.dtype).tiny
        least, most = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
        if self.grid == "affine":
            step = ((most - least) / (self.high - self.low)).clamp(min=tiny)
            zero = (self.low - torch.round(least / step)).clamp(self.low, self.high)
        else:
            step = (torch.maximum(-least, most) / ((self.high - self.low) / 2)).clamp(min=tiny)
            zero = torch.zeros_like(step)
        if self.step == "mse":
            step = self._search(rows, step, zero, tiny)
        return Encoded(self._codes(rows, step, zero), step, zero)

    def _codes(self, rows: Tensor, step: Tensor, zero: Tensor) -> Tensor:
        return (torch.round(rows * (1.0 / step)) + zero).clamp(self.low, self.high)

    def _search(self, rows: Tensor, whole: Tensor, zero: Tensor, tiny: float) -> Tensor:
        """The step r * whole, 0 < r <= 1, of the least squared error of each row; of equal ones the largest r.

        r = 1, 63/64, ..., 1/64 first, then the best one and 7 on either side of it, 1/512 apart. `zero` stays: both ends of the
        range shrink alike.
        """
        best = torch.full_like(whole, torch.inf, dtype=wide(whole.device))
        factor = torch.ones_like(whole)
        around = torch.zeros_like(whole)
        coarse = [k / COARSE for k in range(COARSE, 0, -1)]
        fine = [k / (COARSE * FINE) for k in range(FINE - 1, -FINE, -1) if k != 0]
        for offsets in (coarse, fine):
            for offset in offsets:
                r = (around + offset).clamp(max=1)
                step = (whole * r).clamp(min=tiny)
                values = Encoded(self._codes(rows, step, zero), step, zero).values()
                error = (values - rows).square().sum(1, keepdim=True, dtype=wide(rows.device))
                better = error < best
                best, factor = torch.where(better, error, best), torch.where(better, r, factor)
            around = factor
        return (whole * factor).clamp(min=tiny)


def check_bits(name: str, bits: Any) -> int:
    """2 to 16: with one bit there is no zero, and float32 does not hold many more than 16."""
    return _checks.count(name, bits, low=2, high=16)
