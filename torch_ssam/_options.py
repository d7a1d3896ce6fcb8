"""Checks of the hyperparameters that fronts own; shapes, dtypes and devices are the operators' to check.

Each check stands here once and serves SSAM, wrap, WeightNoise, DiagonalLinear and the schedules.
Tests: tests/python/test_bad_input.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist

DISTRIBUTIONS = ("gaussian", "rademacher")
SCALES = ("isotropic",)
LATER_SCALES = ("tensor", "filter", "element", "fisher")


def number(name: str, value: Any, *, low: float = 0.0, open_low: bool = False) -> float:
    """A finite float >= low (> low where `open_low`)."""
    bound = f"a finite number {'>' if open_low else '>='} {low:g}"
    if isinstance(value, bool) or not isinstance(value, int | float | torch.Tensor):
        try:
            value = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected {bound}.") from None
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        raise ValueError(f"{name} is a tensor of shape {tuple(value.shape)}; expected {bound}.")
    result = float(value)
    if not math.isfinite(result) or result < low or (open_low and result == low):
        raise ValueError(f"{name} is {result}; expected {bound}.")
    return result


def count(name: str, value: Any, *, low: int = 1, high: int = 2**32 - 1) -> int:
    """An int from low to high."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected an int.")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; expected {low} to {high}.")
    return value


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of the names."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}.")
    return str(value)


def check_noise(group: dict[str, Any]) -> None:
    """The noise options of one parameter group, wherever they came from."""
    number("noise_std", group["noise_std"])
    one_of("distribution", group["distribution"], DISTRIBUTIONS)
    if group["scale"] in LATER_SCALES:
        raise NotImplementedError(
            f"scale={group['scale']!r} is not available in this version; expected 'isotropic'. "
            "Give groups their own noise_std to scale noise by layer."
        )
    one_of("scale", group["scale"], SCALES)
    count("samples", group["samples"])
    if not isinstance(group["antithetic"], bool):
        raise TypeError(f"antithetic is {group['antithetic']!r}; expected True or False.")
    if number("clean_weight", group["clean_weight"]) >= 1.0:
        raise ValueError(
            f"clean_weight is {group['clean_weight']}; expected 0 <= clean_weight < 1 "
            "(the share of the gradient at the clean weights)."
        )
    if not isinstance(group["keep_perturbed"], bool):
        raise TypeError(f"keep_perturbed is {group['keep_perturbed']!r}; expected True or False.")
    if group["keep_perturbed"] and passes_of(group) > 1:
        raise ValueError(
            "keep_perturbed=True keeps one perturbation in the parameters, so it goes with samples=1, "
            f"antithetic=False, clean_weight=0; got samples={group['samples']}, "
            f"antithetic={group['antithetic']}, clean_weight={group['clean_weight']}. "
            "Use perturbations() with keep_perturbed=False for several passes a step."
        )


def check_parameter(param: Any, index: int) -> None:
    """What can be perturbed; said at construction rather than at the first step."""
    if param.layout != torch.strided or param.is_complex() or not param.is_floating_point():
        kind = "sparse" if param.layout != torch.strided else str(param.dtype).removeprefix("torch.")
        raise ValueError(
            f"parameter {index} of the group is {kind}; expected a dense float64, float32, bfloat16 or float16 tensor. "
            "Leave it out of the parameters, or convert it."
        )


# How a step is driven is one thing for the whole optimizer.
COMMON = ("samples", "antithetic", "clean_weight", "keep_perturbed")


def check_common(group: dict[str, Any], first: dict[str, Any]) -> None:
    """All groups share the options that decide how many passes a step makes."""
    for name in COMMON:
        if group[name] != first[name]:
            raise ValueError(
                f"{name} is {group[name]!r} in one parameter group and {first[name]!r} in another; "
                "expected the same in all groups, since a pass runs the whole model."
            )


def passes_of(group: dict[str, Any]) -> int:
    """Forward and backward passes a step."""
    return int(group["samples"]) * (2 if group["antithetic"] else 1) + (1 if group["clean_weight"] > 0 else 0)


def resolve_seed(seed: int | None) -> int:
    """The seed of the noise: as given, or drawn from torch's default generator (rank 0's in a process group)."""
    if seed is None:
        seed = int(torch.randint(0, 2**62, (1,), dtype=torch.int64).item())
        if dist.is_available() and dist.is_initialized():
            shared = [seed]
            dist.broadcast_object_list(shared, src=0)
            seed = shared[0]
    elif isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed is {seed!r} ({type(seed).__name__}); expected an int or None.")
    elif not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed is {seed}; expected a 64-bit integer.")
    return seed
