"""Values that nobody should pass: for the tests that make random wrong calls and load random wrong checkpoints.

Used by test_random_calls.py, test_fuzzed_state.py and test_state_machine.py; `make stress` sets TORCH_SSAM_STRESS, which
multiplies their numbers and makes them differ each time.
"""

from __future__ import annotations

import math
import os
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

STRESS = int(os.environ.get("TORCH_SSAM_STRESS", "1"))
SEED = 0 if STRESS == 1 else random.SystemRandom().randrange(2**32)
ORDINARY = (TypeError, ValueError, RuntimeError, OverflowError, NotImplementedError)


def odd_tensor(chance: random.Random) -> Any:
    dtype = chance.choice(
        (torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64)
    )
    shape = chance.choice(((), (0,), (1,), (3,), (5, 4), (2, 3, 4), (1, 1), (3, 0, 2)))
    plain = torch.ones(shape, dtype=dtype)
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: plain,
        lambda: plain.to("meta"),
        lambda: plain.to_sparse() if plain.dim() else plain,
        lambda: torch.ones(1, dtype=dtype).expand(5),
        lambda: torch.ones(4, 5, dtype=dtype).t(),
        lambda: torch._neg_view(torch.ones(3)),
        lambda: torch.ones(3, dtype=torch.complex64).conj(),
        lambda: torch.full((3,), math.nan),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: nn.Parameter(torch.ones(3)),
        lambda: nn.parameter.UninitializedParameter(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # prototypes of torch
        return chance.choice(kinds)()


def odd_value(chance: random.Random) -> Any:
    values: tuple[Any, ...] = (
        None, True, False, -1, 0, 1, 2, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), 10**30,
        0.5, -0.0, -1.0, math.nan, math.inf, -math.inf, 1e308, 5e-324, 1j,
        "", "gaussian", "rademacher", "Gaussian\0", "rows", "element", "\ud800", b"gaussian",
        [], (), {}, [None], [1, "a"], {"params": None}, np.float32(2), np.ones(3), np.array("x"), object(), int,
    )  # fmt: skip
    return odd_tensor(chance) if chance.random() < 0.3 else chance.choice(values)


def mutated(value: Any, chance: random.Random) -> Any:
    """The value itself in another state, or something else altogether."""
    if isinstance(value, list) and value and chance.random() < 0.6:
        kind = chance.randrange(5)
        position = chance.randrange(len(value))
        if kind == 0:
            return value[:-1]
        if kind == 1:
            return [*value, value[position]]
        if kind == 2:
            return [odd_value(chance) if k == position else one for k, one in enumerate(value)]
        if kind == 3:
            return [odd_tensor(chance) if k == position else one for k, one in enumerate(value)]
        return value[::-1]
    if isinstance(value, Tensor) and chance.random() < 0.6:
        return odd_tensor(chance)
    return odd_value(chance)
