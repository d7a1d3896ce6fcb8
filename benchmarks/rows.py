"""Steps with keep_perturbed whose noise follows the range of filters, or whose filters are clipped, beside fused SGD.

Filters of 512 to 25,600 weights stay in a cache and take one pass over memory, those of a million weights two.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

import torch_ssam

from .harness import Timing, alternate
from .step import LR, MOMENTUM, STD, fused_sgd, rows

WEIGHTS = 32_000_000
LENGTHS = (512, 4608, 25_600, 1_000_000)
SIDES: dict[str, dict[str, Any]] = {
    "isotropic": {},
    "absmax": {"scale": "absmax"},
    "weight_clip": {"weight_clip": 2.5},
    "absmax, weight_clip": {"scale": "absmax", "weight_clip": 2.5},
}


def matrix(length: int) -> list[torch.nn.Parameter]:
    """A weight of filters of this length, with a gradient that is never zero."""
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(WEIGHTS // length, length, generator=generator))
    p.grad = torch.randn(p.shape, generator=generator) * 1e-3
    return [p]


def ours(params: list[torch.nn.Parameter], options: dict[str, Any]) -> Callable[[], object]:
    opt = torch_ssam.SSAM(
        params, lr=LR, noise_std=STD, momentum=MOMENTUM, keep_perturbed=True, seed=0, **options
    )
    opt.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gaussian weights have that many outliers
        opt.step()  # counts what it clips
    return opt.step


def run(length: int, rounds: int) -> tuple[str, Timing]:
    sides = {"fused SGD": fused_sgd(matrix(length))}
    sides |= {name: ours(matrix(length), options) for name, options in SIDES.items()}
    return f"32M in filters of {length:,}", alternate(sides, rounds)


def table(rounds: int = 15) -> list[str]:
    """Markdown rows: time over fused SGD's, and over that of isotropic noise."""
    return rows([run(length, rounds) for length in LENGTHS], "fused SGD", "isotropic")
