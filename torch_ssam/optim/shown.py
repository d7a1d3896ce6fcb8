"""repr of a noise optimizer: the options that differ from their defaults, seed and draw, and how much each group holds.

torch.optim prints every option of every group, thirty lines in which the two that matter are hard to find. lr and
noise_std are shown in any case. Tests: test_shown.py.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# What is no option: the tensors, and what schedulers and checkpoints note in the groups.
NOT_SHOWN = {"params", "param_names", "initial_lr", "initial_noise_std", "seed", "draw"}
ALWAYS_SHOWN = ("lr", "noise_std")


def defaults_of_class(kind: type) -> dict[str, Any]:
    """The defaults of a constructor's arguments, by name."""
    parameters = inspect.signature(kind).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


def changed(group: dict[str, Any], defaults: dict[str, Any], constructed: dict[str, Any]) -> dict[str, Any]:
    """The options of a group that differ from their defaults.

    An option that the constructor does not name, as torch's have them for their own use, differs where it is not what it
    was constructed with.
    """
    first = {name: group[name] for name in ALWAYS_SHOWN if name in group}
    known = {**constructed, **defaults}
    order = [*(name for name in defaults if name in group), *(name for name in group if name not in defaults)]
    others = {name: group[name] for name in order if name not in NOT_SHOWN and name not in first}
    return {
        **first,
        **{name: v for name, v in others.items() if name not in known or not _same(v, known[name])},
    }


def describe_groups(optimizer: Optimizer, defaults: dict[str, Any], seed: int, draw: int) -> str:
    """The lines of the repr, between the name and its brackets."""
    lines = [f"seed {seed}, draw {draw}"]
    for i, group in enumerate(optimizer.param_groups):
        weights = sum(p.numel() for p in group["params"])
        tensors = f"{len(group['params'])} tensor{'s' if len(group['params']) != 1 else ''}"
        lines.append(f"Parameter Group {i}: {tensors}, {weights:,} weights")
        for name, value in changed(group, defaults, optimizer.defaults).items():
            lines.append(f"    {name}: {_shown(value)}")
    return "\n".join(lines)


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, Tensor) or isinstance(default, Tensor):
        return False
    return (type(value) is type(default) and bool(value == default)) or _equal_numbers(value, default)


def _equal_numbers(value: Any, default: Any) -> bool:
    kinds = (int, float)
    return isinstance(value, kinds) and isinstance(default, kinds) and value == default


def _shown(value: Any) -> str:
    if isinstance(value, Tensor) and value.numel() == 1 and value.is_cpu:
        return f"tensor({value.item():g})"
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else str(value)
