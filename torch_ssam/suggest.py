"""suggest_noise_std: the noise that changes what a model says by a target, asked once, of a fresh or of a trained model.

The question of schedules.AdaptiveNoiseStd, with its measures (noise/output_change.py), answered by bisection: the same
draws of noise at every level, so that the mean change is a smooth curve. `python -m torch_ssam.noise` is its command.
Tests: test_suggest.py, test_command_lines.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from torch_ssam import _checks
from torch_ssam._common.extras import need
from torch_ssam._common.measured_model import MeasuredModel, add_noise
from torch_ssam.noise import holders, output_change, seeds
from torch_ssam.noise.options import DISTRIBUTIONS, SCALES, Distribution, Scale
from torch_ssam.noise.weight_noise import WeightNoise
from torch_ssam.sharpness._estimate import Floats, student_quantile
from torch_ssam.sharpness._evaluate import to_device, trainable

STEP = 4.0  # between the levels of the search for a bracket
LOWEST, HIGHEST = 1e-9, 1e3  # levels that are tried
NEAR = 0.01  # of the target, where the bisection ends


@dataclass(frozen=True)
class SuggestedNoise:
    """What `suggest_noise_std` found.

    Attributes:
        noise_std: the standard deviation at which the mean change over draws is the target, within 1% of it.
        interval: where it may lie, for the draws were few: (low, high), at 95%. It says nothing of other batches.
        target, measure, scale, distribution: as asked.
        levels: noise_std of each level tried, ascending, shape (levels,).
        changes: of each level, the change under each draw, shape (levels, draws).
    """

    noise_std: float
    interval: tuple[float, float]
    target: float
    measure: str
    scale: str
    distribution: str
    levels: Floats
    changes: Floats

    def __str__(self) -> str:
        low, high = self.interval
        lines = [
            f"noise_std={self.noise_std:.3g} with scale={self.scale!r} changes the outputs by {self.measure} {self.target:g}.",
            f"95% over {self.changes.shape[1]} draws: {low:.3g} to {high:.3g}.",
            "",
            f"{'noise_std':>10}  {self.measure}",
        ]
        mean = self.changes.mean(1)
        return "\n".join([*lines, *(f"{s:10.3g}  {c:.3g}" for s, c in zip(self.levels, mean, strict=True))])

    def plot(self, axis: Any = None) -> Any:
        """The curve on a matplotlib axis (a new figure's, made without a display, where None); returns its figure."""
        if axis is None:
            figure = need("matplotlib.figure", "noise", "the plot of a suggestion").Figure(
                figsize=(5, 3.5), layout="constrained"
            )
            axis = figure.subplots()
        shown = np.isfinite(self.changes).all(1) & (self.changes > 0).all(1)
        axis.plot(self.levels[shown], self.changes[shown], color="#56b4e9", linewidth=0.7)
        axis.plot(self.levels[shown], self.changes[shown].mean(1), "o-", color="#0072b2")
        axis.axhline(self.target, color="#5f6368", linestyle=":")
        axis.axvspan(*self.interval, color="#d55e00", alpha=0.3)
        axis.axvline(self.noise_std, color="#d55e00")
        axis.set(xscale="log", yscale="log", xlabel=f"noise_std, scale={self.scale!r}", ylabel=self.measure)
        axis.set_title(f"noise_std={self.noise_std:.3g} for {self.target:g}")
        return axis.figure

    def save(self, folder: str | Path) -> None:
        """noise.txt, noise.csv (the curve) and noise.png (needs matplotlib)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "noise.txt").write_text(f"{self}\n", encoding="utf-8")
        head = ",".join(["noise_std", *(f"draw_{k}" for k in range(self.changes.shape[1]))])
        rows = [
            ",".join(map(repr, map(float, (s, *c)))) for s, c in zip(self.levels, self.changes, strict=True)
        ]
        (folder / "noise.csv").write_text("\n".join([head, *rows, ""]), encoding="utf-8")
        self.plot().savefig(folder / "noise.png", dpi=150)


def suggest_noise_std(
    model: nn.Module,
    batches: Any,
    *,
    target: float = 0.05,
    measure: Literal["kl", "mse"] | Callable[[Any, Any], Any] = "kl",
    scale: Scale = "isotropic",
    distribution: Distribution = "gaussian",
    params: Iterable[Tensor] | None = None,
    draws: int = 8,
    max_batches: int = 8,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    seed: int = 0,
) -> SuggestedNoise:
    r"""The noise_std at which noise on the weights changes the model's outputs by a target.

    .. math::
        \frac{1}{K} \sum_k c(f(w), f(w + \sigma \xi_k)) = t

    for c the measure, a mean over the examples of the batches, and K draws xi_k that are the same at every sigma. Found by
    bisection in log sigma, to 1% of t. The noise of a fresh model says little of the trained one's: ask again, or let
    `schedules.AdaptiveNoiseStd` follow it. The model, its buffers and torch's random generators are afterwards what they
    were, bit for bit. Modules run in the mode that they are in: `model.train()` first asks as training does, with
    BatchNorm by batch and dropout (the same masks at clean and noisy weights); `model.eval()` as evaluation does.

    Costs about 8 levels times draws times batches forwards, and one copy of the model.

    Args:
        model: the module, at clean weights (after `opt.eval()` with keep_perturbed).
        batches: an iterable of inputs, or of tuples or lists whose first part is the input, such as a DataLoader; dicts are
            given by keyword. Or one tensor or one such pair. Moved to the model's device.
        target: t > 0, in units of the measure.
        measure: "kl", "mse" or a function of (clean, noisy) outputs, as in `schedules.AdaptiveNoiseStd`.
        scale: what noise_std is multiplied by, as for `SSAM`; not "fisher", which needs the gradients of steps.
        distribution: "gaussian" or "rademacher".
        params: the tensors that get noise; None for all of the model that require gradients.
        draws: K >= 2.
        max_batches: how many batches are read, >= 1.
        forward: function of (model, input) that gives the outputs; None for model(input), and its `.logits` where it
            returns an object that has them.
        seed: of the noise, an int; not that of a training with this seed.

    Returns:
        SuggestedNoise: `noise_std`, its `interval`, the curve (`levels`, `changes`), `plot()`, `save(folder)`; `print` it.

    Raises:
        TypeError, ValueError: options out of range, no batches, outputs that the measure cannot compare or that are not
            finite at the clean weights; no noise that changes the outputs by the target.
        RuntimeError: the weights hold an optimizer's noise.

    Example:
        >>> import torch, torch_ssam
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> found = torch_ssam.suggest_noise_std(model, [torch.randn(64, 4)], scale="absmax")
        >>> 0.1 < found.interval[0] < found.noise_std < found.interval[1] < 1.0
        True
        >>> opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=found.noise_std, scale="absmax")
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module.")
    target = _checks.number("target", target, open_low=True)
    compared = output_change.resolve(measure)
    _checks.one_of("scale", scale, tuple(name for name in SCALES if name != "fisher"))
    _checks.one_of("distribution", distribution, DISTRIBUTIONS)
    draws = _checks.count("draws", draws, low=2)
    if forward is not None and not callable(forward):
        raise TypeError(
            f"forward is a {type(forward).__name__}; expected a function of (model, input), or None."
        )
    tensors = trainable(model, params)
    if holders.any_held(tensors):
        raise RuntimeError(
            "the weights hold noise now: leave perturb(), or call the optimizer's eval(), first, so that there are clean "
            "outputs to compare with."
        )
    own = seeds.measuring_seed(_checks.integer("seed", seed))
    noise = WeightNoise(tensors, distribution=distribution, scale=scale, seed=own)
    inputs = _inputs(batches, _checks.count("max_batches", max_batches), tensors[0].device)
    curve = _Curve(model, noise, inputs, forward or _outputs, compared, draws)
    with curve.measured, torch.no_grad():
        curve.start()
        below, above = _bracket(curve, target)
        found = _bisected(curve, target, below, above)
    levels = np.array(sorted(curve.found))
    name = measure if isinstance(measure, str) else getattr(measure, "__name__", "change")
    return SuggestedNoise(
        found,
        _interval(curve, found),
        target,
        name,
        scale,
        distribution,
        levels,
        np.stack([curve.found[level] for level in levels.tolist()]),
    )


def _inputs(batches: Any, most: int, device: torch.device) -> list[Any]:
    """The inputs of the first batches, on the device."""
    if isinstance(batches, Tensor | Mapping):
        batches = [batches]
    elif isinstance(batches, tuple) and batches and all(isinstance(part, Tensor) for part in batches):
        batches = [batches]  # one pair of inputs and targets
    if not isinstance(batches, Iterable) or isinstance(batches, str | bytes):
        raise TypeError(
            f"batches is a {type(batches).__name__}; expected an iterable of inputs, or of pairs that start with one, such "
            "as a DataLoader."
        )
    inputs = [
        to_device(batch[0] if isinstance(batch, tuple | list) and batch else batch, device)
        for batch in itertools.islice(batches, most)
    ]
    if not inputs:
        raise ValueError("batches is empty; expected at least one batch of inputs.")
    return inputs


def _outputs(model: nn.Module, inputs: Any) -> Any:
    given = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    return given if isinstance(given, Tensor) else getattr(given, "logits", given)


class _Curve:
    """The change at each level of the noise, draw by draw, inside of `measured`."""

    def __init__(
        self,
        model: nn.Module,
        noise: WeightNoise,
        inputs: list[Any],
        forward: Callable[[nn.Module, Any], Any],
        measure: output_change.Measure,
        draws: int,
    ) -> None:
        self.found: dict[float, Floats] = {}
        self.measured = MeasuredModel(model, (p for group in noise.param_groups for p in group["params"]))
        self._model, self._noise, self._forward = model, noise, forward
        self._inputs, self._measure, self._draws = inputs, measure, draws
        self._clean: list[Any] = []

    def start(self) -> None:
        """The outputs at the clean weights."""
        self._random = self.measured.generators.state()
        self._clean = self._all_outputs()
        for clean in self._clean:
            value = float(output_change.change(self._measure, clean, clean))
            if not math.isfinite(value):
                raise ValueError(
                    f"the measure of the clean outputs against themselves is {value}; expected a finite number. Check that "
                    "the model's outputs are finite, and differ between examples."
                )

    def _all_outputs(self) -> list[Any]:
        self.measured.generators.set(self._random)  # the same dropout at every level
        outputs = [self._forward(self._model, inputs) for inputs in self._inputs]
        self.measured.restore()
        return outputs

    def mean(self, level: float) -> float:
        """The mean over draws at a noise_std; infinite where any is not finite."""
        if level not in self.found:
            for group in self._noise.param_groups:
                group["noise_std"] = level
            self.found[level] = np.array([self._of_draw(k) for k in range(self._draws)])
        mean = float(self.found[level].mean())
        return mean if math.isfinite(mean) else math.inf

    def _of_draw(self, draw: int) -> float:
        self._noise.load_state_dict({"seed": self._noise.seed, "draw": draw})
        add_noise(self._noise, advance=False)(self.measured)
        noisy = self._all_outputs()
        total = examples = 0.0
        for one, other in zip(self._clean, noisy, strict=True):
            count = len(one) if isinstance(one, Tensor) and one.dim() else 1
            total += count * float(output_change.change(self._measure, one, other))
            examples += count
        return total / examples


def _bracket(curve: _Curve, target: float) -> tuple[float, float]:
    """Two levels between which the change passes the target."""
    level = 0.01
    if curve.mean(level) < target:
        while curve.mean(level * STEP) < target:
            level *= STEP
            if level > HIGHEST:
                raise ValueError(
                    f"noise_std={level:.3g} changes the outputs by {curve.mean(level):.3g} only; expected the target {target:g} "
                    "below that. Take a smaller target, or check that the parameters matter for the outputs."
                )
        return level, level * STEP
    while curve.mean(level / STEP) >= target:
        level /= STEP
        if level < LOWEST:
            raise ValueError(
                f"noise_std={level:.3g} changes the outputs by {curve.mean(level):.3g} still; expected less than the target "
                f"{target:g} somewhere. Check that the model gives the same outputs for the same weights."
            )
    return level / STEP, level


def _bisected(curve: _Curve, target: float, below: float, above: float) -> float:
    """The level at which the change is the target, by bisection in log space at the point that a power law suggests."""
    middle = below
    for _ in range(60):
        low, high = curve.mean(below), curve.mean(above)
        share = 0.5
        if low > 0.0 and math.isfinite(high):
            share = min(max(math.log(target / low) / math.log(high / low), 0.1), 0.9)
        middle = below * math.exp(share * math.log(above / below))
        value = curve.mean(middle)
        if abs(value - target) <= NEAR * target or above / below < 1 + 1e-9:
            return middle
        below, above = (middle, above) if value < target else (below, middle)
    return middle


def _interval(curve: _Curve, found: float) -> tuple[float, float]:
    """Of noise_std at 95%, from Student's of the mean change over draws, by the slope of the curve in log space."""
    values = curve.found[found]
    half = student_quantile(0.95, len(values) - 1) * float(values.std(ddof=1)) / len(values) ** 0.5
    finite = [s for s in curve.found if 0.0 < curve.mean(s) < math.inf]
    below = max([s for s in finite if s <= found / 1.05], default=found)
    above = min([s for s in finite if s >= found * 1.05], default=found)
    slope = 2.0  # of a change that is quadratic in the noise
    if below < above:
        slope = math.log(curve.mean(above) / curve.mean(below)) / math.log(above / below)
    spread = half / (float(values.mean()) * slope) if slope > 0 else math.inf
    return found * math.exp(-spread), found * math.exp(min(spread, 700.0))
