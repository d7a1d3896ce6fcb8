"""Schedules for lr and noise_std, with the interface of torch's LR schedulers.

`harmonic_lr` is the step size alpha / (k + 1) under which S-SAM converges (arXiv 2503.11891: sum alpha_k =
inf, sum alpha_k^2 < inf). The others change noise_std, for SSAM and for wrap alike: by the step, or
(`AdaptiveNoiseStd`) by what the noise does to the model's outputs. Tests: test_schedules.py, test_adaptive_noise.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from torch_ssam import _checks
from torch_ssam.noise import output_change
from torch_ssam.ops.untraced import untraced
from torch_ssam.optim.base import NoiseDriver
from torch_ssam.optim.outputs import clean_and_noisy

__all__ = [
    "AdaptiveNoiseStd",
    "CosineNoiseStd",
    "LambdaNoiseStd",
    "LayerwiseNoise",
    "NoiseSchedule",
    "NoiseStdScheduler",
    "harmonic_lr",
]


def __dir__() -> list[str]:
    return __all__


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


class NoiseSchedule:
    """What all schedules of noise_std have: an optimizer whose groups have it, the values now, and a state_dict."""

    def __init__(self, optimizer: Optimizer) -> None:
        if "noise_std" not in (getattr(optimizer, "param_groups", None) or [{}])[0]:
            raise TypeError(
                f"{type(self).__name__} got a {type(optimizer).__name__} without noise_std in its groups; expected "
                "torch_ssam.SSAM or torch_ssam.wrap(optimizer)."
            )
        self.optimizer = optimizer
        self.last_epoch = -1

    def get_last_noise_std(self) -> list[float]:
        """The noise_std of each group now."""
        return [float(group["noise_std"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer and functions."""
        return {k: v for k, v in self.__dict__.items() if k != "optimizer" and not callable(v)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where `state_dict()` was taken; the optimizer's own state_dict carries the noise_std."""
        self.__dict__.update(state_dict)


class NoiseStdScheduler(NoiseSchedule):
    """Sets each group's noise_std to initial_noise_std * factor(step); subclasses give the factor.

    Args:
        optimizer: an SSAM or wrapped optimizer, whose groups have "noise_std".
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        for group in optimizer.param_groups:
            group.setdefault("initial_noise_std", float(group["noise_std"]))
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


class LambdaNoiseStd(NoiseStdScheduler):
    """noise_std = initial * f(step).

    Example:
        >>> import torch, torch_ssam
        >>> opt = torch_ssam.SSAM([torch.nn.Parameter(torch.ones(1))], noise_std=0.1)
        >>> schedule = torch_ssam.schedules.LambdaNoiseStd(opt, lambda k: 0.5**k)
        >>> schedule.step(); opt.param_groups[0]["noise_std"]
        0.05

        From 0, rising linearly over the first half of a training of 100 steps:

        >>> opt = torch_ssam.SSAM([torch.nn.Parameter(torch.ones(1))], noise_std=0.1)
        >>> schedule = torch_ssam.schedules.LambdaNoiseStd(opt, lambda k: min(1.0, k / 50))
        >>> opt.param_groups[0]["noise_std"]
        0.0
        >>> for _ in range(25): schedule.step()
        >>> opt.param_groups[0]["noise_std"]
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
        order: Literal["cyclic", "random"] = "cyclic",
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


class AdaptiveNoiseStd(NoiseSchedule):
    r"""Noise that sets itself: noise_std moves until noise changes the model's outputs by a target.

    .. math::
        \sigma \leftarrow \sigma \exp\left(r \, \mathrm{clamp}\left(\frac{t - c}{t}, -1, 1\right)\right)

    c is the change that the noise of the next pass makes to the outputs on a batch, t the target, r the rate; all groups
    with noise keep their ratios. noise_std has the unit of the weights, which is another for every network and layer; the
    target has none, and needs no labels. Both runs of the model have the same batch and the same dropout, and leave no
    trace: no draw of noise, no random number, no statistic of BatchNorm is used up. In a process group c is the mean over
    ranks, which must all call `step`. With samples=K it is that of the first draw.

    Costs two forwards without gradients every `every` steps, and waiting for their result: with every=10 about 7% of a
    step whose backward takes two forwards. Outputs that are not finite lower the noise at full rate.

    Args:
        optimizer: an SSAM, SSAMAdamW or wrapped optimizer with noise_std > 0: where it starts from.
        target: t > 0, in units of the measure. 0.05 nats is our trials' choice among 0.02, 0.05 and 0.1.
        measure: "kl", the mean over examples of KL(softmax(clean) | softmax(noisy)) in nats, classes in the last dimension;
            "mse", the mean squared change over the variance of the clean outputs over the batch, for regression; or a
            function of (clean, noisy) that gives a number >= 0 which grows with the noise.
        every: how many steps between looks, >= 1; the first `step` looks.
        rate: r > 0, the most by which log noise_std moves at a look.
        max_noise_std: bound > 0 of the largest noise_std of all groups, in its unit (`scale`).

    Attributes:
        last_change: c at the last look, a float, or None before the first.

    Raises:
        TypeError: an optimizer without noise, a measure of another kind.
        ValueError: options out of range; every group's noise_std is 0; noise_std above max_noise_std.

    With keep_perturbed a new noise_std takes effect at the next `optimizer.step()`, as with every schedule. With
    memory="regenerate" a look takes noise off and on once more, with the rounding that the option states. A graph of
    torch.compile is used as it is; a captured CUDA graph with noise in it keeps the noise_std of its capture.

    Example:
        >>> import torch, torch_ssam
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.01, scale="absmax", seed=0)
        >>> schedule = torch_ssam.schedules.AdaptiveNoiseStd(opt, target=0.05, every=1)
        >>> x, y = torch.randn(32, 4), torch.randint(3, (32,))
        >>> for _ in range(60):
        ...     with opt.perturb():
        ...         torch.nn.functional.cross_entropy(model(x), y).backward()
        ...     opt.step()
        ...     opt.zero_grad()
        ...     schedule.step(lambda: model(x))
        >>> 0.1 < schedule.get_last_noise_std()[0] < 0.5
        True
    """

    #: The largest noise_std is not lowered below this: from 0 it could not rise again.
    LOWEST = 1e-12

    def __init__(
        self,
        optimizer: Optimizer,
        target: float = 0.05,
        *,
        measure: Literal["kl", "mse"] | Callable[[Any, Any], Any] = "kl",
        every: int = 10,
        rate: float = 0.1,
        max_noise_std: float = 0.5,
    ) -> None:
        super().__init__(optimizer)
        if not isinstance(optimizer, NoiseDriver):
            raise TypeError(
                f"AdaptiveNoiseStd got a {type(optimizer).__name__}; expected torch_ssam.SSAM, SSAMAdamW or wrap(optimizer)."
            )
        self.target = _checks.number("target", target, open_low=True)
        self.measure = measure
        output_change.resolve(measure)
        self.every = _checks.count("every", every)
        self.rate = _checks.number("rate", rate, open_low=True)
        self.max_noise_std = _checks.number("max_noise_std", max_noise_std, open_low=True)
        self.last_change: float | None = None
        if self._largest() > self.max_noise_std:
            raise ValueError(
                f"noise_std is {self._largest():g}, above max_noise_std={self.max_noise_std:g}; expected a start below it."
            )

    def _largest(self) -> float:
        largest = max(self.get_last_noise_std())
        if largest == 0.0:
            raise ValueError(
                "noise_std is 0 in every group: no multiple of it changes what the model says. Start AdaptiveNoiseStd from a "
                "small positive one, such as 0.001."
            )
        return largest

    @untraced
    def step(self, outputs: Callable[[], Any]) -> None:
        """Counts a step, and every `every` steps looks what noise does to the outputs and moves noise_std.

        Call it after `optimizer.step()`, outside of passes.

        Args:
            outputs: function without arguments that gives the model's outputs on the batch, such as `lambda: model(x)`.
                Called twice at a look, without gradients, else not at all. Autocast belongs inside.

        Raises:
            RuntimeError: inside `perturb()`, or while a CUDA graph is captured.
            ValueError: every group's noise_std is 0.
            TypeError, ValueError: outputs that the measure cannot compare; noise_std then stays.
        """
        if not callable(outputs):
            raise TypeError(
                f"step() got a {type(outputs).__name__}; expected a function that gives the model's outputs on the batch, "
                "such as lambda: model(x)."
            )
        reached = self.last_epoch + 1
        if reached % self.every == 0:
            self._look(outputs)
        self.last_epoch = reached

    def _look(self, outputs: Callable[[], Any]) -> None:
        largest = self._largest()
        assert isinstance(self.optimizer, NoiseDriver)
        pair = clean_and_noisy(self.optimizer, outputs)
        found = output_change.change(output_change.resolve(self.measure), *pair)
        device = self.optimizer.param_groups[0]["params"][0].device
        self.last_change = output_change.mean_over_ranks(found, device)
        short = (self.target - self.last_change) / self.target
        factor = math.exp(self.rate * (max(-1.0, min(1.0, short)) if math.isfinite(short) else -1.0))
        factor = max(min(factor, self.max_noise_std / largest), min(1.0, self.LOWEST / largest))
        for group in self.optimizer.param_groups:
            group["noise_std"] = float(group["noise_std"]) * factor
