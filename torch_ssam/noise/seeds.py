"""Seeds: given, drawn from torch's generator, one for all ranks or one for each, and another for measuring.

Tests: tests/python/test_noise_contract.py, test_distributed.py.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

from .._checks import count, flag, integer


def in_process_group() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized()


def resolve_seed(seed: int | None) -> int:
    """The seed of the noise: as given, or from torch's default generator (rank 0's in a process group)."""
    if seed is None:
        seed = int(torch.randint(0, 2**62, (1,), dtype=torch.int64, device="cpu").item())
        if in_process_group():
            shared = [seed]
            dist.broadcast_object_list(shared, src=0)
            seed = shared[0]
        return seed
    result = integer("seed", seed, "an int or None")
    if not -(2**63) <= result < 2**63:
        raise ValueError(f"seed is {result}; expected a 64-bit integer.")
    return result


def saved_generator(seed: Any, draw: Any) -> tuple[int, int]:
    """Seed and draw of a checkpoint."""
    if seed is None:  # which would ask for a new one
        raise ValueError("seed is None; expected the int that state_dict() saved.")
    return resolve_seed(seed), count("draw", draw, low=0, high=2**63 - 1)


def stream_of(noise_per_rank: bool) -> int:
    """What is added to the seed on this rank: 0, or the rank where every rank has noise of its own."""
    if not flag("noise_per_rank", noise_per_rank):
        return 0
    if in_process_group():
        return dist.get_rank()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RuntimeError(
            "noise_per_rank=True before torch.distributed is initialised: every rank would draw the same noise. "
            "Call torch.distributed.init_process_group() before constructing the optimizer."
        )
    return 0


def measuring_seed(seed: int | None) -> int:
    """The seed of noise that measures weights: not that of the noise which trained them with the same seed.

    A Monte Carlo estimate is right for weights that do not depend on its draws.
    """
    value = (resolve_seed(seed) ^ 0x6D656173757265) % 2**64  # "measure"
    return value - 2**64 if value >= 2**63 else value
