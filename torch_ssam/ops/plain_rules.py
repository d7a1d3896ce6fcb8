"""The update rules of csrc/math/rules in plain PyTorch: their numbers with ranges, what they keep, and the update of a chunk.

A rule's `update` takes the clean weights, gradients and buffers of a chunk in the dtype that is computed in, writes the buffers
and returns the new weights. Without fused multiply-adds, so within some ulp of the kernels. Errors read as csrc/ops/rules.cpp's.
Tests: tests/python/test_plain_operators.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

Lr = float | Tensor  # a tensor of no dimensions, in the widest dtype of its device


class Range(NamedTuple):
    """What a number may be, in figures and in words."""

    low: float
    high: float
    text: str
    whole: bool = False


LARGEST = float.fromhex("0x1.fffffep+127")
NONNEGATIVE = Range(0.0, LARGEST, "a finite number >= 0 (and within float32's range)")
BELOW_ONE = Range(0.0, math.nextafter(1.0, 0.0), "a number >= 0 and < 1")
FINITE = Range(-sys.float_info.max, sys.float_info.max, "a finite number")
ZERO_OR_ONE = Range(0.0, 1.0, "0 or 1", whole=True)


class Rule:
    """One call's numbers of a rule."""

    name: ClassVar[str]
    numbers: ClassVar[dict[str, Range]]
    counts_steps: ClassVar[bool]

    def __init__(self, numbers: Sequence[float]) -> None:
        if len(numbers) != len(self.numbers):
            raise ValueError(
                f"torch_ssam: numbers has {len(numbers)} entries; the rule '{self.name}' expects {len(self.numbers)}: "
                f"{', '.join(self.numbers)}."
            )
        for (name, allowed), value in zip(self.numbers.items(), numbers, strict=True):
            if not (allowed.low <= value <= allowed.high and (not allowed.whole or value == int(value))):
                raise ValueError(f"torch_ssam: {name} is {value:g}; expected {allowed.text}.")
        self.of = dict(zip(self.numbers, numbers, strict=True))

    def buffers(self) -> tuple[str, ...]:
        """The names of what is kept beside every weight."""
        raise NotImplementedError

    def update(self, clean: Tensor, grad: Tensor, buffers: list[Tensor], lr: Lr, step: int) -> Tensor:
        """The new clean weights; writes the buffers. `step` is 0 where the call does not say."""
        raise NotImplementedError


class Sgd(Rule):
    """csrc/math/rules/sgd.h."""

    name = "sgd"
    numbers: ClassVar[dict[str, Range]] = {
        "lr": NONNEGATIVE,
        "momentum": NONNEGATIVE,
        "dampening": FINITE,
        "weight_decay": NONNEGATIVE,
        "nesterov": ZERO_OR_ONE,
        "maximize": ZERO_OR_ONE,
    }
    counts_steps = False

    def __init__(self, numbers: Sequence[float]) -> None:
        super().__init__(numbers)
        if self.of["nesterov"] and not (self.of["momentum"] > 0 and self.of["dampening"] == 0):
            raise ValueError(
                f"torch_ssam: nesterov=True with momentum {self.of['momentum']:g} and dampening {self.of['dampening']:g}; "
                "Nesterov momentum expects momentum > 0 and dampening 0."
            )

    def buffers(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.of["momentum"] else ()

    def update(self, clean: Tensor, grad: Tensor, buffers: list[Tensor], lr: Lr, step: int) -> Tensor:
        of = self.of
        g = -grad if of["maximize"] else grad
        if of["weight_decay"]:
            g = g + of["weight_decay"] * clean
        if buffers:
            v = buffers[0]
            v.mul_(0.0 if step == 1 else of["momentum"]).add_(
                g * (1.0 if step == 1 else 1.0 - of["dampening"])
            )
            g = g + of["momentum"] * v if of["nesterov"] else v
        rate = lr.to(clean.dtype) if isinstance(lr, Tensor) else lr
        return clean - rate * g


class AdamW(Rule):
    """csrc/math/rules/adamw.h."""

    name = "adamw"
    numbers: ClassVar[dict[str, Range]] = {
        "lr": NONNEGATIVE,
        "beta1": BELOW_ONE,
        "beta2": BELOW_ONE,
        "eps": NONNEGATIVE,
        "weight_decay": NONNEGATIVE,
        "amsgrad": ZERO_OR_ONE,
        "maximize": ZERO_OR_ONE,
    }
    counts_steps = True

    def buffers(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if self.of["amsgrad"] else 2]

    def update(self, clean: Tensor, grad: Tensor, buffers: list[Tensor], lr: Lr, step: int) -> Tensor:
        of = self.of
        beta1, beta2 = of["beta1"], of["beta2"]
        step_size: Lr = lr * (1.0 / (1.0 - beta1**step))
        decay: Lr = 1.0 - lr * of["weight_decay"]
        if isinstance(step_size, Tensor):
            step_size = step_size.to(clean.dtype)
        if isinstance(decay, Tensor):
            decay = decay.to(clean.dtype)

        g = -grad if of["maximize"] else grad
        m, v = buffers[:2]
        change = g - m
        m.copy_(g - beta1 * change if 1.0 - beta1 >= 0.5 else m + (1.0 - beta1) * change)
        v.mul_(beta2).add_(((1.0 - beta2) * g).mul_(g))
        x = v
        if of["amsgrad"]:
            x = torch.maximum(buffers[2], v, out=buffers[2])
        denominator = x.sqrt().mul_(1.0 / math.sqrt(1.0 - beta2**step)).add_(of["eps"])
        return clean * decay - step_size * (m / denominator)


RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (Sgd, AdamW)}


def check_rule(name: str, numbers: Sequence[float]) -> Rule:
    """The rule that a call names, with its numbers checked."""
    if name not in RULES:
        raise ValueError(
            f"torch_ssam: rule is '{name}'; expected one of: {' '.join(RULES)} (csrc/math/rules.h)."
        )
    return RULES[name](numbers)
