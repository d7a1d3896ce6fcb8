"""The shapes, dtypes and layouts that every operator test walks, and tensors with values that are never
zero.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

# The parallel grain is 2^14 to 2^16 elements; the last size is above the largest and no multiple of anything.
SIZES = (0, 1, 7, 8, 15, 16, 17, 31, 33, 65, 4097, 70001)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SIXTEEN = (torch.bfloat16, torch.float16)
# (dtype of clean weights, dtype of parameters)
PAIRS = (*((dtype, dtype) for dtype in DTYPES), *((torch.float32, dtype) for dtype in SIXTEEN))


def sgd(
    lr: float = 0.1,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> tuple[str, list[float]]:
    """The rule and the numbers of an update by SGD's family (csrc/math/rules/sgd.h)."""
    return "sgd", [lr, momentum, dampening, weight_decay, float(nesterov), float(maximize)]


def adamw(
    lr: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
) -> tuple[str, list[float]]:
    """The rule and the numbers of an update by AdamW (csrc/math/rules/adamw.h)."""
    return "adamw", [lr, beta1, beta2, eps, weight_decay, float(amsgrad), float(maximize)]


Layout = Callable[[torch.dtype], torch.Tensor]

# Empty tensors in each memory layout. Sizes are odd; the large ones are above the parallel grain.
LAYOUTS: dict[str, Layout] = {
    "scalar": lambda dtype: torch.empty((), dtype=dtype),
    "contiguous": lambda dtype: torch.empty(9, 7, 13, dtype=dtype),
    "strided_1d": lambda dtype: torch.empty(2 * 4097 + 1, dtype=dtype)[1::2],
    "transposed": lambda dtype: torch.empty(33, 65, dtype=dtype).t(),
    "transposed_large": lambda dtype: torch.empty(301, 233, dtype=dtype).t(),
    "channels_last": lambda dtype: torch.empty(3, 5, 7, 11, dtype=dtype).to(
        memory_format=torch.channels_last
    ),
    "channels_last_large": lambda dtype: torch.empty(31, 8, 17, 17, dtype=dtype).to(
        memory_format=torch.channels_last
    ),
    "slice": lambda dtype: torch.empty(20, 41, 9, dtype=dtype)[1:-2, 3::5, ::2],
    "permuted_slice": lambda dtype: torch.empty(6, 10, 14, dtype=dtype)[::2, 1:].permute(2, 0, 1),
    "storage_offset": lambda dtype: torch.empty(1000, dtype=dtype)[3:804],
    "empty_matrix": lambda dtype: torch.empty(5, 0, 3, dtype=dtype).permute(2, 0, 1),
    "ones_in_shape": lambda dtype: torch.empty(1, 17, 1, 3, dtype=dtype).permute(3, 0, 2, 1),
}


@functools.cache
def _values(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(n, generator=generator, dtype=torch.float64) * 1.75 + 0.25
    return values * (torch.randint(0, 2, (n,), generator=generator) * 2 - 1)


def random_like(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    """Fills `tensor` in place with values of size 1/4 to 2, of either sign, the same for every layout."""
    return tensor.copy_(_values(tensor.numel(), seed).reshape(tensor.shape))


def random(shape: int | tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return random_like(torch.empty(shape, dtype=dtype), seed)


def same_layout(tensor: torch.Tensor, layout: str, seed: int) -> torch.Tensor:
    """Another tensor of this layout and dtype, with values of its own."""
    return random_like(LAYOUTS[layout](tensor.dtype), seed)


def generator_of(seed: int = 1234567890123, draw: int = 42) -> torch.Tensor:
    return torch.tensor([seed, draw], dtype=torch.int64)
