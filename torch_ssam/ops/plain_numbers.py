"""In which dtype the plain operators compute, where sums in float64 are made, and the sum that every perturbation is
(csrc/math/stored.h).

Tests: tests/python/test_plain_operators.py, test_no_float64.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Device types without float64: sums are in float32 there.
NARROW = ("mps",)


def opmath(dtype: torch.dtype) -> torch.dtype:
    """What values stored in this dtype are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(device: torch.device) -> torch.dtype:
    """The widest dtype of a device, for sums."""
    return torch.float32 if device.type in NARROW else torch.float64


def float64_of(values: Tensor) -> Tensor:
    """In float64: on their device, or on the CPU where that has none."""
    return (values if wide(values.device) == torch.float64 else values.cpu()).double()


def _split(a: Tensor) -> tuple[Tensor, Tensor]:
    """Two float32 of 12 bits each whose sum is `a`, so that their products are exact (Dekker 1971)."""
    big = a * 4097.0
    high = big - (big - a)
    return high, a - high


def _narrow_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """In float32 alone: the errors of the product and of the sum are found exactly, and added at the end."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    lost = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    total = product + c
    of_c = total - product
    lost = lost + ((product - (total - of_c)) + (c - of_c))
    return torch.where(lost.isfinite(), total + lost, total)


def multiply_add(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """a b + c for float32 with one rounding, as the kernels have it but for one result in a great many."""
    if wide(a.device) == torch.float64:
        return (a.double() * b).add_(c).float()
    b, c = (torch.as_tensor(value, dtype=a.dtype, device=a.device) for value in (b, c))
    return _narrow_multiply_add(a, b, c)


def square_root(a: Tensor) -> Tensor:
    """Of float32, rounded once: PyTorch's own is off by an ulp in places."""
    return a.double().sqrt().float() if wide(a.device) == torch.float64 else a.sqrt()


def add_noise(weights: Tensor, noise_std: float, noise: Tensor) -> Tensor:
    """weights + noise_std noise; the same bits wherever an element lies in a chunk."""
    if weights.dtype == torch.float64:
        return (noise.double() * noise_std).add_(weights)
    return multiply_add(noise, torch.tensor(noise_std, dtype=torch.float32).item(), weights)
