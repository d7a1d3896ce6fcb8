"""Slow, plain references for the operators, written from the documented formulas and not from the
kernels.

The noise contract (header of csrc/math/noise.h) in NumPy's uint32 and float32 arithmetic, with an fma
made of exact float64 products and rounding to odd; the updates in float64; the diagonal product in
float64. Used by test_noise_contract.py, test_ops_*.py, and free to be used by the tests of the fronts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Words = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]

# Rotations of Threefry4x32 (Salmon et al. 2011, table 2): pairs of columns, eight rounds, then again.
_ROTATIONS = ((10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20))
_PARITY = 0x1BD11BDA


def threefry4x32(key: Sequence[int], counter: Words, rounds: int = 20) -> Words:
    """counter (4, n) -> words (4, n)."""
    k = [np.uint32(word & 0xFFFFFFFF) for word in key]
    k.append(np.uint32(_PARITY) ^ k[0] ^ k[1] ^ k[2] ^ k[3])
    x = [row.astype(np.uint32) for row in counter]
    with np.errstate(over="ignore"):
        for number in range(rounds // 4 + 1):
            for i in range(4):
                x[i] = x[i] + k[(number + i) % 5]
            x[3] = x[3] + np.uint32(number)
            if number == rounds // 4:
                break
            for r in range(4 * number, 4 * number + 4):
                first, second = (1, 3) if r % 2 == 0 else (3, 1)
                for accumulator, mixed, rotation in zip(
                    (0, 2), (first, second), _ROTATIONS[r % 8], strict=True
                ):
                    x[accumulator] = x[accumulator] + x[mixed]
                    left, right = np.uint32(rotation), np.uint32(32 - rotation)
                    x[mixed] = ((x[mixed] << left) | (x[mixed] >> right)) ^ x[accumulator]
    return np.stack(x)


def fma32(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> Floats:
    """a * b + c rounded once to float32: an exact product, and a sum rounded to odd before the cast."""
    product = np.asarray(a, np.float32).astype(np.float64) * np.asarray(b, np.float32).astype(np.float64)
    product, addend = np.broadcast_arrays(product, np.asarray(c, np.float32).astype(np.float64))
    total = np.array(product + addend, ndmin=1)
    part = total - product
    error = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    even = (error != 0) & (bits % 2 == 0)
    bits += np.where(even, np.where((error > 0) == (total > 0), 1, -1), 0)
    return total.astype(np.float32)


def _polynomial(x: Floats, coefficients: Sequence[str]) -> Floats:
    value = np.full_like(x, np.float32(float.fromhex(coefficients[0])))
    for text in coefficients[1:]:
        value = fma32(value, x, np.float32(float.fromhex(text)))
    return value


# Contract numbers, highest power first; tools/fit_noise_polynomials.py derives them.
_LOGARITHM = (
    "0x1.37a546p-3",
    "-0x1.08b288p-2",
    "0x1.0f4146p-2",
    "-0x1.2254bep-2",
    "0x1.5424f2p-2",
    "-0x1.99a544p-2",
    "0x1.000438p-1",
    "-0x1.55554ep-1",
    "0x1.fffff8p-1",
)
_SINE = ("0x1.4701dep-13", "-0x1.32e974p-8", "0x1.466f3ep-4", "-0x1.4abbf0p-1", "0x1.921fb6p+0")
_COSINE = ("0x1.8bd856p-16", "-0x1.d4786ep-11", "0x1.472a76p-6", "-0x1.de9e60p-3", "0x1p+0")


def minus_two_log(word: Words) -> Floats:
    u = ((word >> np.uint32(1)) | np.uint32(1)).astype(np.float32)
    fraction, exponent = np.frexp(u)  # fraction in [1/2, 1)
    small = fraction < np.frombuffer(np.uint32(0x3F3504F3).tobytes(), np.float32)[0]  # below sqrt(1/2)
    fraction = np.where(small, fraction * np.float32(2), fraction).astype(np.float32)
    exponent = exponent - small - 31
    t = (fraction - np.float32(1)).astype(np.float32)
    mantissa_part = fma32((t * t).astype(np.float32), _polynomial(t, _LOGARITHM), np.float32(-2) * t)
    return fma32(exponent.astype(np.float32), np.float32(float.fromhex("-0x1.62e430p+0")), mantissa_part)


def gaussian_pair(radius_word: Words, angle_word: Words) -> tuple[Floats, Floats]:
    radius = np.sqrt(minus_two_log(radius_word)).astype(np.float32)
    x = (angle_word | np.uint32(1)).view(np.int32).astype(np.float32) * np.float32(2.0**-31)
    z = (x * x).astype(np.float32)
    sine = (x * _polynomial(z, _SINE)).astype(np.float32)
    cosine = (fma32(-x, x, np.float32(1)) * _polynomial(z, _COSINE)).astype(np.float32)
    first = (radius * cosine).astype(np.float32)
    return np.where(angle_word & 1, -first, first).astype(np.float32), (radius * sine).astype(np.float32)


def noise_words(seed: int, draw: int, place: int, sample: int, counters: npt.NDArray[np.uint64]) -> Words:
    """Words (4, n) of the given 64-bit counters."""
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, place, sample)
    draws = [np.full(counters.shape, (draw >> shift) & 0xFFFFFFFF, np.uint32) for shift in (0, 32)]
    low = (counters & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    high = (counters >> np.uint64(32)).astype(np.uint32)
    return threefry4x32(key, np.stack([low, high, *draws]))


@functools.lru_cache(maxsize=256)
def noise(
    n: int,
    *,
    seed: int,
    draw: int,
    place: int = 0,
    sample: int = 0,
    distribution: str = "gaussian",
    begin: int = 0,
) -> Floats:
    """Standard noise of elements begin .. begin + n - 1; read only, it is kept for the next call."""
    element = np.arange(begin, begin + n, dtype=np.uint64)
    block = np.uint64(64 if distribution == "gaussian" else 2048)
    inside = element % block
    lane, word, bit = inside % np.uint64(16), inside // np.uint64(16) % np.uint64(4), inside // np.uint64(64)
    words = noise_words(seed, draw, place, sample, np.uint64(16) * (element // block) + lane)
    if distribution == "gaussian":
        pairs = np.stack([*gaussian_pair(words[0], words[1]), *gaussian_pair(words[2], words[3])])
        return pairs[word.astype(np.int64), np.arange(n)]
    chosen = words[word.astype(np.int64), np.arange(n)]
    return np.where((chosen >> bit.astype(np.uint32)) & 1, -1, 1).astype(np.float32)


def perturbed(
    clean: torch.Tensor, noise_std: float, z: Floats, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """clean + noise_std * z: one rounding in float32 (float64 for float64 weights), one to the dtype.

    In float64 two roundings, exact where noise_std is a power of two.
    """
    flat = clean.detach().reshape(-1)
    if clean.dtype == torch.float64:
        values = torch.from_numpy(flat.numpy() + noise_std * z.astype(np.float64))
    else:
        values = torch.from_numpy(fma32(np.float32(noise_std), z, flat.to(torch.float32).numpy()))
    return values.to(dtype or clean.dtype).reshape(clean.shape)


def sgd_update(
    weight: torch.Tensor,
    grad: torch.Tensor,
    buffer: torch.Tensor | None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first_step: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """(weight, momentum buffer, size of the terms) in float64, as torch.optim.SGD documents them."""
    w, g = weight.double(), grad.double()
    g = -g if maximize else g
    g = g + weight_decay * w
    size = g.abs() + (weight_decay * w).abs()
    moved = None
    if momentum != 0:
        assert buffer is not None
        old = torch.zeros_like(w) if first_step else buffer.double()
        factor = 1.0 if first_step else 1.0 - dampening
        moved = momentum * old + factor * g
        size = size * (1 + momentum) + (momentum * old).abs() * (1 + momentum)
        g = g + momentum * moved if nesterov else moved
    return w - lr * g, moved, w.abs() + lr * size


def adamw_update(
    weight: torch.Tensor,
    grad: torch.Tensor,
    buffers: list[torch.Tensor],
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """(weight, buffers, size of the terms) in float64, as torch.optim.AdamW documents them."""
    w, g = weight.double(), grad.double()
    g = -g if maximize else g
    m, v, *most = (b.double() for b in buffers)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    most = [torch.maximum(most[0], v)] if amsgrad else []
    root = (most[0] if amsgrad else v).sqrt() / (1 - beta2**step) ** 0.5
    # The terms of m may cancel: its error is that of their sizes.
    sizes = beta1 * buffers[0].double().abs() + (1 - beta1) * g.abs()
    rate = lr / (1 - beta1**step)
    after = (1 - lr * weight_decay) * w - rate * m / (root + eps)
    return after, [m, v, *most], w.abs() + rate * sizes / (root + eps)


def diagonal(input: torch.Tensor, weight: torch.Tensor, readout: bool = False) -> torch.Tensor:
    """y = x * w_1 * ... * w_L, summed over the last dimension with readout; differentiable, float64."""
    output: torch.Tensor = input.double() * weight.double().prod(dim=0)
    return output.sum(dim=-1) if readout else output


def diagonal_gradients(
    grad_output: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, readout: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of input and weight in float64, each product of the other layers written out."""
    g, x, w = grad_output.double(), input.double(), weight.double()
    g = g.unsqueeze(-1) if readout else g
    total = (g * x).sum(dim=tuple(range(x.dim() - 1))) if x.dim() > 1 else g * x
    others = [torch.cat([w[:i], w[i + 1 :]]).prod(dim=0) for i in range(w.shape[0])]
    return (g * w.prod(dim=0)).expand(x.shape), torch.stack([total * other for other in others])


def ulp(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps)


def same_bits(a: Any, b: Any) -> bool:
    """Equality of every bit: NaN equals the same NaN, 0 is not -0."""
    if isinstance(a, torch.Tensor):
        views = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        as_integers = [t.detach().contiguous().view(views[t.element_size()]) for t in (a, b)]
        return torch.equal(as_integers[0], as_integers[1])
    return len(a) == len(b) and all(same_bits(x, y) for x, y in zip(a, b, strict=True))
