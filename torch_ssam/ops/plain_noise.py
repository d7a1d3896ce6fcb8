"""The noise contract (csrc/math/noise.h, docs/noise.md) in plain PyTorch, for devices that have no kernels of ours.

Threefry's words are int64 tensors that hold 32 bits: the very words of the kernels. Rademacher noise is the same; Gaussian noise
is the same polynomials in float32, within 2^-20 of the kernels' (nearly all of it the same bits). Some hundred passes over
memory, a chunk of elements at a time. Tests: tests/python/test_plain_operators.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torch_ssam.ops.plain_numbers import multiply_add, square_root

DISTRIBUTIONS = ("gaussian", "rademacher")

_MASK = 0xFFFFFFFF
_LANES = 16
_GAUSSIAN_BLOCK = 4 * _LANES
_RADEMACHER_BLOCK = 32 * _GAUSSIAN_BLOCK
#: Elements made at a time, whole blocks of both kinds: some 20 MB beside the tensors.
CHUNK = 128 * _RADEMACHER_BLOCK

# Of two rounds each, four pairs between injections of the key (csrc/math/threefry.h).
_ROTATIONS = (((10, 26), (11, 21)), ((13, 27), (23, 5)), ((6, 20), (17, 11)), ((25, 10), (18, 20)))


class Stream(NamedTuple):
    """Everything that an element's noise depends on but its index, as 32-bit words."""

    seed_low: int
    seed_high: int
    place: int
    sample: int
    draw_low: int
    draw_high: int


def stream_of(seed: int, draw: int, place: int, sample: int) -> Stream:
    """Seeds and draws are 64-bit numbers that wrap."""
    return Stream(seed & _MASK, seed >> 32 & _MASK, place, sample, draw & _MASK, draw >> 32 & _MASK)


def _mix(a: Tensor, b: Tensor, rotation: int) -> None:
    a.add_(b).bitwise_and_(_MASK)
    high = b.bitwise_left_shift(rotation).bitwise_and_(_MASK)
    b.bitwise_right_shift_(32 - rotation).bitwise_or_(high).bitwise_xor_(a)


def threefry(key: Sequence[int], counter: Sequence[Tensor]) -> list[Tensor]:
    """Threefry4x32 with 20 rounds of int64 tensors of 32-bit words."""
    whole = 0x1BD11BDA ^ key[0] ^ key[1] ^ key[2] ^ key[3]
    keys = (*key, whole)
    w = [word.clone() for word in counter]

    def inject(number: int) -> None:
        for i in range(4):
            w[i].add_((keys[(number + i) % 5] + (number if i == 3 else 0)) & _MASK).bitwise_and_(_MASK)

    inject(0)
    for number in range(1, 6):
        for (a0, a1), (b0, b1) in _ROTATIONS[:2] if number % 2 else _ROTATIONS[2:]:
            _mix(w[0], w[1], a0)
            _mix(w[2], w[3], a1)
            _mix(w[0], w[3], b0)
            _mix(w[2], w[1], b1)
        inject(number)
    return w


def noise_words(stream: Stream, first: int, last: int, device: torch.device) -> list[Tensor]:
    """The four words of the counters `first` to `last`, each of them (counters / 16, 16)."""
    counters = torch.arange(first, last, dtype=torch.int64, device=device).view(-1, _LANES)
    low, high = counters & _MASK, (counters >> 32) & _MASK
    draws = [torch.full_like(low, half) for half in (stream.draw_low, stream.draw_high)]
    return threefry(stream[:4], (low, high, *draws))


def _signed_to_float(word: Tensor) -> Tensor:
    """Of 32-bit words, as signed integers."""
    return (word - ((word >> 31) << 32)).to(torch.float32)


def _bits_to_float(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)


def _horner(x: Tensor, coefficients: Sequence[str]) -> Tensor:
    value = torch.full_like(x, float.fromhex(coefficients[0]))
    for coefficient in coefficients[1:]:
        value = multiply_add(value, x, float.fromhex(coefficient))
    return value


# Of minus_two_log and gaussian_pair in csrc/math/noise.h, which says where they come from.
_LOG = (
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
_MINUS_TWO_LN_2 = float.fromhex("-0x1.62e430p+0")


def minus_two_log(word: Tensor) -> Tensor:
    """-2 ln(u) for u = ((word >> 1) | 1) / 2^31."""
    scaled = ((word >> 1) | 1).to(torch.float32)
    shifted = scaled.view(torch.int32).to(torch.int64) - 0x4EB504F3
    exponent = (shifted >> 23).to(torch.float32)
    t = _bits_to_float((shifted & 0x007FFFFF) + 0x3F3504F3) - 1.0
    mantissa_part = multiply_add(t * t, _horner(t, _LOG), -(t + t))
    return multiply_add(exponent, _MINUS_TWO_LN_2, mantissa_part)


def gaussian_pair(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    """Box-Muller."""
    radius = square_root(minus_two_log(radius_word))
    x = _signed_to_float(angle_word | 1).mul_(2.0**-31)
    z = x * x
    cosine = multiply_add(-x, x, 1.0).mul_(_horner(z, _COSINE))
    mirror = 1.0 - 2.0 * (angle_word & 1).to(torch.float32)
    return (radius * cosine).mul_(mirror), radius.mul_(x.mul_(_horner(z, _SINE)))


def standard_noise(stream: Stream, distribution: str, begin: int, end: int, device: torch.device) -> Tensor:
    """float32 noise of the elements `begin` to `end`; `begin` is a multiple of CHUNK."""
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution is {distribution!r}; expected one of {', '.join(DISTRIBUTIONS)}.")
    gaussian = distribution == "gaussian"
    block = _GAUSSIAN_BLOCK if gaussian else _RADEMACHER_BLOCK
    first, last = begin // block, -(-end // block)
    words = noise_words(stream, first * _LANES, last * _LANES, device)
    if gaussian:
        pairs = (*gaussian_pair(words[0], words[1]), *gaussian_pair(words[2], words[3]))
        return torch.stack(pairs, 1).view(-1)[: end - begin]
    # (blocks, bits, words, lanes)
    bits = torch.arange(32, device=device).view(1, -1, 1, 1)
    noise = ((torch.stack(words, 1).unsqueeze(1) >> bits) & 1).to(torch.float32)
    return noise.mul_(-2.0).add_(1.0).view(-1)[: end - begin]
