"""The options of updates, and what all groups of an optimizer share.

Tests: tests/python/test_bad_input.py.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch

from torch_ssam._checks import Option, check_each, flag, number

P = ParamSpec("P")
R = TypeVar("R")

# How a step is driven is one thing for the whole optimizer.
COMMON = ("samples", "antithetic", "clean_weight", "keep_perturbed")


def _radius(name: str, value: Any) -> None:
    if value is not None:
        number(name, value, open_low=True)


def _betas(name: str, value: Any) -> None:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(
            f"{name} is {value!r}; expected a pair of numbers >= 0 and < 1, such as (0.9, 0.999)."
        )
    for i, beta in enumerate(value):
        if number(f"{name}[{i}]", beta) >= 1.0:
            raise ValueError(f"{name}[{i}] is {beta}; expected 0 <= {name}[{i}] < 1.")


def _master_dtype(name: str, value: Any) -> None:
    if value is not None and value is not torch.float32:
        raise ValueError(
            f"{name} is {value!r}; expected torch.float32, for bfloat16 and float16 parameters, or None."
        )


#: Options of every optimizer whose update is ours.
FUSED_OPTIONS: dict[str, Option] = {
    "maximize": Option(False, flag, "ascend instead of descend"),
    "radius": Option(None, _radius, "of the ball that the group's stacked parameters are projected onto"),
    "master_dtype": Option(None, _master_dtype, "of the clean weights of 16-bit parameters"),
}
#: Those of SSAM, whose update is SGD's.
SGD_OPTIONS: dict[str, Option] = {
    "lr": Option(0.1, number, "learning rate"),
    "momentum": Option(0.0, number, "momentum factor"),
    "dampening": Option(0.0, partial(number, low=-math.inf), "dampening of momentum"),
    "weight_decay": Option(0.0, number, "L2 penalty on the clean weights"),
    "nesterov": Option(False, flag, "Nesterov momentum"),
}
#: Those of SSAMAdamW.
ADAMW_OPTIONS: dict[str, Option] = {
    "lr": Option(1e-3, number, "learning rate"),
    "betas": Option((0.9, 0.999), _betas, "how much the averages of gradients and of their squares keep"),
    "eps": Option(1e-8, number, "added to the root of the average of squares"),
    "weight_decay": Option(1e-2, number, "share of the clean weights that a step takes off, times lr"),
    "amsgrad": Option(False, flag, "divide by the largest average of squares so far"),
}


def check_fused(group: dict[str, Any]) -> None:
    """The options of one group that every update of ours has."""
    check_each(FUSED_OPTIONS, group)
    if group["master_dtype"] is not None and group["memory"] == "regenerate":
        raise ValueError(
            'memory="regenerate" with master_dtype: the masters are the clean weights, and are kept in any case. '
            'Use memory="copy", which makes no further copy beside masters.'
        )


def check_sgd(group: dict[str, Any]) -> None:
    """The options of the update of one group of SSAM."""
    check_each(SGD_OPTIONS, group)
    momentum, dampening = float(group["momentum"]), float(group["dampening"])
    if group["nesterov"] and (momentum <= 0 or dampening != 0):
        raise ValueError(
            f"nesterov=True with momentum={momentum:g} and dampening={dampening:g}; Nesterov momentum expects "
            "momentum > 0 and dampening 0."
        )


def check_adamw(group: dict[str, Any]) -> None:
    """The options of the update of one group of SSAMAdamW."""
    check_each(ADAMW_OPTIONS, group)
    if group.get("decoupled_weight_decay") is False and float(group["weight_decay"]) != 0.0:
        raise ValueError(
            f"weight_decay={float(group['weight_decay']):g} with decoupled_weight_decay=False, as torch.optim.Adam has "
            "it: there it is added to the gradient, here taken off the weights. Set weight_decay=0 before saving, or "
            "train with wrap(torch.optim.Adam(...))."
        )


def check_common(group: dict[str, Any], first: dict[str, Any]) -> None:
    """All groups share the options that decide how many passes a step makes."""
    for name in COMMON:
        if group[name] != first[name]:
            raise ValueError(
                f"{name} is {group[name]!r} in one parameter group and {first[name]!r} in another; "
                "expected the same in all groups, since a pass runs the whole model."
            )


def check_caller() -> None:
    """Refuses to be the optimizer_class of ZeroRedundancyOptimizer, which gives it this rank's parameters only."""
    frame: Any = sys._getframe(1)
    for _ in range(6):
        frame = frame.f_back
        if frame is None:
            return
        if frame.f_globals.get("__name__") == "torch.distributed.optim.zero_redundancy_optimizer":
            raise TypeError(
                "ZeroRedundancyOptimizer got an optimizer of torch_ssam as its optimizer_class, which would perturb "
                "only the parameters that this rank updates. Wrap it from outside: "
                "torch_ssam.wrap(ZeroRedundancyOptimizer(params, torch.optim.SGD, lr=0.1), noise_std=0.01)."
            )


def by_name(*of_torch: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Of a constructor (self, params, lr, *, ...): says so where more than that comes without names.

    `of_torch` are the names of what follows lr in the torch optimizer that ours takes the place of.
    """

    def decorate(construct: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(construct)
        def call(*args: P.args, **options: P.kwargs) -> R:
            if len(args) > 3:
                more = args[3:]
                meant = ", ".join(f"{name}={value!r}" for name, value in zip(of_torch, more, strict=False))
                raise TypeError(
                    f"{type(args[0]).__name__}() got {', '.join(map(repr, more))} after lr without a name; expected every "
                    f"option after lr by name. Was {meant} meant, as torch.optim has them in that order?"
                )
            return construct(*args, **options)

        return call

    return decorate
