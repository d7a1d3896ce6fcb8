"""The step of keep_perturbed that nearly all are, as one call past the dispatcher (ops/direct.py).

One group of tensors on the CPU, all of them perturbed by the step before, with gradients, and nothing but noise after
the update. What is looked at here is of the group; every tensor is looked at afresh in the call. Tests: test_direct.py.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from torch_ssam.noise.options import ROW_SCALES
from torch_ssam.noise.state import NoiseState
from torch_ssam.ops import direct


class Steps(Protocol):
    """A FusedOptimizer, as far as it is asked here."""

    param_groups: list[dict[str, Any]]
    state: Any
    _noise: NoiseState
    _rule: str
    _counts_steps: bool

    def _numbers(self, group: dict[str, Any], device: torch.device) -> tuple[list[float], Tensor | None]: ...

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]: ...


_CPU = torch.device("cpu")

#: The options of the noise that `step_directly` hands on, or for which it leaves the step to the dispatcher, or that
#: mean nothing to a step of keep_perturbed. An option that is not here would be passed over in silence: hand it on, or
#: answer False where it is set, and add it. tests/python/test_direct.py compares this with NOISE_OPTIONS.
SERVED_OPTIONS = frozenset(
    {
        *("noise_std", "distribution", "scale"),  # handed on
        *("weight_clip", "memory"),  # another step; copies are part of what is handed on
        *("fisher_decay", "fisher_factor", "channel_dim"),  # of scales by rows, which take another step
        *("samples", "antithetic", "clean_weight", "keep_perturbed"),  # one pass a step, by check_noise
    }
)


def is_plain(group: dict[str, Any]) -> bool:
    """Whether nothing but noise follows the update: no clipping, no projection, no numbers of rows."""
    return group["radius"] is None and group["weight_clip"] is None and group["scale"] not in ROW_SCALES


def step_directly(optimizer: Steps) -> bool:
    """Updates and perturbs anew; False, and nothing written, where the step is another one."""
    groups, noise = optimizer.param_groups, optimizer._noise
    known = noise.only_ones_together() if len(groups) == 1 else None
    if known is None or direct.is_watched():
        return False
    group = groups[0]
    members, together = known
    left = together.as_left()
    noise_std = float(group["noise_std"])
    if left is None or noise_std == 0.0 or group["master_dtype"] is not None:
        return False
    if not is_plain(group) or not noise.size.knows(group):
        return False
    numbers, lr_tensor = optimizer._numbers(group, _CPU)
    if lr_tensor is not None:
        return False
    generator, draw = noise.generator.on(_CPU)
    if not direct.step(
        group["params"],
        members.params,
        members.keys,
        members.places,
        noise._applied,
        *left,
        together.copies,
        optimizer.state,
        optimizer._state_names(group),
        optimizer._counts_steps,
        optimizer._rule,
        numbers,
        generator,
        draw + 1,
        noise_std,
        group["distribution"],
        group["scale"],
    ):
        return False
    noise.written(members)
    return True
