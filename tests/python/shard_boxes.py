"""Parts of tensors, uneven, empty, along every dimension and along several: what tests of the operators' `shards` walk on
the CPU (test_ops_shards.py) and on a GPU (test_cuda.py).
"""

from __future__ import annotations

import torch
from cases import random
from torch import Tensor

# Whole shape, start and sizes of the shard.
BOXES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "rows": ((31, 9, 5), (7, 0, 0), (13, 9, 5)),
    "the_last_rows": ((9, 70), (8, 0), (1, 70)),
    "columns": ((40, 33), (0, 17), (40, 16)),
    "one_column": ((300, 2), (0, 1), (300, 1)),
    "the_middle": ((5, 12, 70), (0, 3, 0), (5, 4, 70)),
    "both_ends": ((30, 4, 50), (10, 0, 20), (11, 4, 25)),
    "three_splits": ((6, 7, 8, 9), (1, 2, 3, 4), (4, 3, 5, 5)),
    "vector": ((5000,), (1234,), (2047,)),
    "above_the_grain": ((401, 700), (100, 0), (200, 700)),
    "columns_above_the_grain": ((401, 700), (0, 350), (401, 350)),
    "empty": ((5, 3), (5, 0), (0, 3)),
    "all_of_it": ((5, 13), (0, 0), (5, 13)),
    "a_number": ((), (), ()),
}


def part_of(tensor: Tensor, box: str) -> Tensor:
    _, start, sizes = BOXES[box]
    for d, (first, n) in enumerate(zip(start, sizes, strict=True)):
        tensor = tensor.narrow(d, first, n)
    return tensor.clone()


def shards_of(*boxes: str) -> list[int]:
    return [number for box in boxes for number in (*BOXES[box][0], *BOXES[box][1])]


def whole(box: str, dtype: torch.dtype, seed: int) -> Tensor:
    return random(BOXES[box][0], dtype, seed)
