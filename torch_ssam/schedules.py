"""Schedules for lr and noise_std, with the interface of torch's LR schedulers.

`harmonic_lr` is the step size alpha / (k + 1) under which S-SAM converges (arXiv 2503.11891: sum alpha_k =
inf, sum alpha_k^2 < inf). The others change noise_std, for SSAM and for wrap alike. Tests: test_schedules.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from torch_ssam import _checks


def _one_over(step: int) -> float:
    return 1.0 / (step + 1)


def harmonic_lr(optimizer: Optimizer, last_epoch: int = -1) -> LambdaLR:
    """Learning rate lr / (k + 1) after k calls of the scheduler's `step()`.

    Example:
        >>> import torch, torch_ssam
        >>> opt = torch_ssam.SSAM([torch.nn.Parameter(torch.ones(1))], lr=1.0, noise_std=0.0)
        >>> schedule = torch_ssam.schedules.harmonic_lr(opt)
        >>> opt.step(); schedule.step(); opt.param_groups[0]["lr"]
        0.5
    """
    return LambdaLR(optimizer, _one_over, last_epoch)


class NoiseStdScheduler:
    """Sets each group's noise_std to initial_noise_std * factor(step); subclasses give the factor.

    Args:
        optimizer: an SSAM or wrapped optimizer, whose groups have "noise_std".
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if "noise_std" not in (getattr(optimizer, "param_groups", None) or [{}])[0]:
            raise TypeError(
                f"{type(self).__name__} got a {type(optimizer).__name__} without noise_std in its groups; "
                f"expected "
                "torch_ssam.SSAM or torch_ssam.wrap(optimizer)."
            )
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_noise_std", float(group["noise_std"]))
        self.last_epoch = -1
        self.step()

    def factor(self, step: int) -> float:
        """noise_std after `step` steps, as a multiple of the initial one."""
        raise NotImplementedError

    def step(self, epoch: int | None = None) -> None:
        """Moves on by one step, or to a given one."""
        reached = self.last_epoch + 1 if epoch is None else epoch
        factor = _checks.number("the factor of noise_std", self.factor(reached))
        self.last_epoch = reached
        for group in self.optimizer.param_groups:
            initial = group.setdefault("initial_noise_std", float(group["noise_std"]))
            group["noise_std"] = initial * factor
        self._moved()

    def _moved(self) -> None:
        """Called when every group's noise_std is set."""

    def get_last_noise_std(self) -> list[float]:
        """The noise_std of each group now."""
        return [float(group["noise_std"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer and functions."""
        return {k: v for k, v in self.__dict__.items() if k != "optimizer" and not callable(v)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where `state_dict()` was taken; the optimizer's own state_dict carries the noise_std."""
        self.__dict__.update(state_dict)


class LambdaNoiseStd(NoiseStdScheduler):
    """noise_std = initial * f(step).

    Example:
        >>> import torch, torch_ssam
        >>> opt = torch_ssam.SSAM([torch.nn.Parameter(torch.ones(1))], noise_std=0.1)
        >>> schedule = torch_ssam.schedules.LambdaNoiseStd(opt, lambda k: 0.5**k)
        >>> schedule.step(); opt.param_groups[0]["noise_std"]
        0.05
    """

    def __init__(self, optimizer: Optimizer, f: Callable[[int], float]) -> None:
        if not callable(f):
            raise TypeError(f"f is {f!r}; expected a function of the step.")
        self.f = f
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        return self.f(step)


class CosineNoiseStd(NoiseStdScheduler):
    r"""Ramps noise_std from initial to `factor` times initial over `steps` steps and holds it there.

    initial * [1 + (factor - 1) (1 - cos(pi t / T)) / 2]: LPF-SGD's schedule (arXiv 2201.08025).

    Args:
        optimizer: an SSAM or wrapped optimizer.
        steps: T >= 1, the length of the ramp.
        factor: the end value as a multiple of the initial one, >= 0.

    Example:
        >>> import torch, torch_ssam
        >>> opt = torch_ssam.SSAM([torch.nn.Parameter(torch.ones(1))], noise_std=0.1)
        >>> schedule = torch_ssam.schedules.CosineNoiseStd(opt, steps=2, factor=11)
        >>> schedule.step(); round(opt.param_groups[0]["noise_std"], 6)
        0.6
    """

    def __init__(self, optimizer: Optimizer, steps: int, factor: float) -> None:
        self.steps = _checks.count("steps", steps)
        self.end_factor = _checks.number("factor", factor)
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        progress = min(step, self.steps) / self.steps
        return 1.0 + (self.end_factor - 1.0) * (1.0 - math.cos(math.pi * progress)) / 2.0


class LayerwiseNoise(NoiseStdScheduler):
    r"""Noise on one layer at a time: step k gives one parameter group its noise_std and all others 0.

    Layer-wise perturbation of Orvieto et al. (arXiv 2206.04613), a layer being a parameter group. Over the
    layers the mean objective is the same in turn as at random. With keep_perturbed the noise that
    `optimizer.step()` writes is the group's of the step before, as with every change of noise_std.

    Args:
        optimizer: an SSAM or wrapped optimizer with a parameter group for each layer.
        order: "cyclic", one group after the other, or "random", each step an independent choice.
        f: noise_std of the chosen group as a multiple of its initial one, a function of the step; None for 1.
        seed: seed of the random order, an int.

    Raises:
        ValueError, TypeError: an unknown order, f or seed of another kind, an optimizer without noise_std.

    Example:
        >>> import torch, torch_ssam
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        >>> layers = [{"params": list(m.parameters())} for m in model if list(m.parameters())]
        >>> opt = torch_ssam.SSAM(layers, noise_std=0.1)
        >>> schedule = torch_ssam.schedules.LayerwiseNoise(opt)
        >>> schedule.get_last_noise_std()
        [0.1, 0.0]
        >>> schedule.step(); schedule.get_last_noise_std()
        [0.0, 0.1]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        order: str = "cyclic",
        *,
        f: Callable[[int], float] | None = None,
        seed: int = 0,
    ) -> None:
        self.order = _checks.one_of("order", order, ("cyclic", "random"))
        if f is not None and not callable(f):
            raise TypeError(f"f is {f!r}; expected a function of the step, or None.")
        self.f = f
        self.seed = _checks.integer("seed", seed)
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        return 1.0 if self.f is None else self.f(step)

    def chosen(self, step: int) -> int:
        """The number of the parameter group that has noise after `step` steps."""
        count = len(self.optimizer.param_groups)
        if self.order == "cyclic":
            return step % count
        return random.Random(f"{self.seed} {step}").randrange(
            count
        )  # a function of the step, so that it resumes

    def _moved(self) -> None:
        chosen = self.chosen(self.last_epoch)
        for i, group in enumerate(self.optimizer.param_groups):
            if i != chosen:
                group["noise_std"] = 0.0
