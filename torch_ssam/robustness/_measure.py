"""The metric of a model against bits, noise and flips, with intervals over draws.

Tests: tests/python/test_robustness_measure.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from torch_ssam import _checks
from torch_ssam._common.measured_model import MeasuredModel
from torch_ssam._common.progress import resolve_progress
from torch_ssam._version import __version__
from torch_ssam.noise import seeds
from torch_ssam.sharpness._estimate import Floats, Plan

from ._activations import quantized_activations
from ._contexts import Disturbed, Kind, RelativeTo, flipping, noise_on, rounding
from ._evaluate import Evaluation, Metric, Order, Statistics, accuracy, has_statistics
from ._fold import fold_batchnorm
from ._points import FIRST_AND_LAST, STATISTICS, FirstAndLast, Point, StatisticsAsked
from ._quantizers import Grid, Quantizer, Step, check_bits
from ._result import Robustness
from ._weights import ChannelDim, Skip, Weight, check_model, check_per, chosen_weights

Context = AbstractContextManager[None]
Numbers = Iterable[float] | float | None


@dataclass(frozen=True)
class _Disturbance:
    kind: str
    level: Any
    #: The context of a draw, for these weights.
    make: Callable[[int, list[Weight]], Context]

    @property
    def random(self) -> bool:
        return self.kind != "bits"


@dataclass(frozen=True)
class _Ways:
    """How weights of a model are disturbed, but for the level."""

    model: nn.Module
    per: str | int
    grid: Grid
    step: Step
    relative_to: RelativeTo
    kind: Kind
    flip_bits: int
    activation_bits: int | None
    skip: Skip
    seed: int

    def rounded(self, bits: int, _: int, weights: list[Weight]) -> Context:
        disturbed = Disturbed(weights, rounding(bits, self.per, self.grid, self.step))
        if self.activation_bits is None:
            return disturbed
        activations = quantized_activations(self.model, self.activation_bits, grid=self.grid, skip=self.skip)
        return _both(disturbed, activations)

    def noise(self, std: float, draw: int, weights: list[Weight]) -> Context:
        apart = 32 if self.kind == "read" else 0  # bits: the reads of a chip go on from its number
        return noise_on(self.model, weights, std, self.relative_to, self.kind, self.seed, draw << apart)

    def stored(self, rate: float, draw: int, weights: list[Weight]) -> Context:
        change = flipping(rate, self.flip_bits, self.seed, draw, self.per, self.grid, self.step)
        return Disturbed(weights, change)

    def disturbances(self, bits: Any, noise: Any, flips: Any) -> list[_Disturbance]:
        """One for each level."""
        made = (
            ("bits", _levels("bits", bits, check_bits), self.rounded),
            ("noise", _levels("noise", noise, _checks.number), self.noise),
            ("flips", _levels("flips", flips, _checks.number), self.stored),
        )
        return [
            _Disturbance(kind, level, partial(make, level)) for kind, levels, make in made for level in levels
        ]

    def levels(self, bits: int) -> int:
        """How many values a row can hold."""
        return Quantizer(bits, self.grid, self.step).levels


def measure(
    model: nn.Module,
    data: Any,
    metric: Metric = accuracy,
    *,
    bits: Iterable[int] | int | None = (8, 4, 3, 2),
    noise: Numbers = (0.05, 0.1, 0.2, 0.3),
    flips: Numbers = (0.001, 0.01),
    draws: int = 8,
    max_draws: int = 1000,
    precision: float | None = None,
    confidence: float = 0.95,
    per: str | int = "filter",
    grid: Grid = "narrow",
    step: Step = "absmax",
    relative_to: RelativeTo = "filter",
    kind: Kind = "programming",
    flip_bits: int = 8,
    activation_bits: int | None = None,
    statistics: StatisticsAsked = "as_trained",
    calibration: Any = None,
    first_and_last: FirstAndLast = "in",
    skip: Skip = (),
    channel_dim: ChannelDim = None,
    fold: bool = False,
    seed: int | None = 0,
    progress: bool | Callable[[int, int], object] | None = None,
) -> Robustness:
    """What is left of a model when its weights are disturbed: a metric against bits, noise and bit flips.

    Each disturbance on its own, in eval mode: weights rounded (`quantized`), noisy (`noisy`), or stored in `flip_bits` bits
    that flip (`bit_flips`). Noise and flips are drawn `draws` times; the interval is Student's, to a precision by Stein's
    two stages, as in `sharpness.average`. Draw i is the same chip at every level, and for every model of the same shapes.
    A model that draws random numbers draws the same ones in every evaluation.

    Args:
        model: any module; with tied, frozen, integer and 16-bit parameters as `quantized` says.
        data: batches (inputs, targets) that can be read again, as in `sharpness`; None where metric runs the model itself.
        metric: function of (outputs, targets) that gives one number, the mean over a batch; batches count by the length of
            their targets. Without data: function of the model. Default `accuracy`, in percent.
        bits: numbers of bits, each 2 to 16; None or () for none.
        noise: standard deviations, each >= 0, in units of `relative_to`; None or () for none.
        flips: probabilities that a bit flips; None or () for none.
        draws, max_draws, precision, confidence: of the interval. draws >= 2; with a precision, a half-width > 0 in units of
            the metric, those of the first stage, and max_draws in all.
        per, grid, step: of the rounding, as in `quantized`; of the stored bits that flip too.
        relative_to, kind: of the noise, as in `noisy`.
        flip_bits: of a stored weight, 2 to 16.
        activation_bits: where weights are rounded, inputs of their layers are too, to so many bits, 2 to 16, as in
            `quantized_activations`; None for not.
        statistics: of BatchNorm: "as_trained", "anew", gathered under each disturbance from `calibration`, or "both".
        calibration: batches of inputs, or of tuples that start with them, such as the training DataLoader; or a function
            that runs the model over such. Only BatchNorm layers are in training mode meanwhile.
        first_and_last: "in", "out" (the first and the last layer with weights, in the order of calls, stay as they are), or
            "both".
        skip, channel_dim: as in `quantized`.
        fold: fold BatchNorm into the layers before it first (`fold_batchnorm`), in a copy; for per="tensor".
        seed: of noise and flips; not those of a training with this seed, on which the weights depend.
        progress: True for a tqdm bar, or a function of (evaluations done, to do).

    Returns: Robustness: `print` it, `find` a point, `plot()`, `to_json()`, `save(folder)`. The model is afterwards what it
    was.
    Raises: TypeError, ValueError: options out of range or unknown, before anything is measured; a metric of the clean model
    that is not finite. Under a disturbance NaN and infinities are reported as such.

    >>> import torch
    >>> from torch_ssam import robustness
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 0.2], [0.0, 1.0]]))
    >>> data = [(torch.tensor([[1.0, 0.0], [0.1, 1.0]]), torch.tensor([0, 1]))]
    >>> found = robustness.measure(model, data, bits=(4, 2), noise=0.1, flips=(), draws=4)
    >>> found.clean, found.find("bits", 2).mean, len(found.find("noise", 0.1).values)
    (100.0, 100.0, 4)
    """
    check_model(model)
    plan = Plan.of(draws, max_draws, precision, confidence)
    all_statistics = _one_or_both("statistics", statistics, STATISTICS)
    all_ends = _one_or_both("first_and_last", first_and_last, FIRST_AND_LAST)
    weights = chosen_weights(model, skip, channel_dim)
    names = [weight.names[0] for weight in weights]
    if _checks.flag("fold", fold):
        model, weights = _folded(model, names, data, metric, channel_dim)
    evaluation = Evaluation(model, data, metric, weights[0].param.device)
    flip_bits = check_bits("flip_bits", flip_bits)
    if activation_bits is not None:
        activation_bits = check_bits("activation_bits", activation_bits)
    drawn_by = seeds.measuring_seed(seed)
    ways = _Ways(
        model, check_per(per), grid, step, relative_to, kind, flip_bits, activation_bits, skip, drawn_by
    )
    asked = ways.disturbances(bits, noise, flips)
    for one in (*ways.disturbances(2, 0.0, 0.0), *asked):
        one.make(0, weights)  # refuses what is out of range or unknown, also where it would not be used
    settings: dict[str, Any] = {
        **{name: [one.level for one in asked if one.kind == name] for name in ("bits", "noise", "flips")},
        **{"draws": plan.samples, "precision": plan.precision, "confidence": plan.confidence},
        **{"per": per, "grid": grid, "step": step, "relative_to": relative_to, "kind": kind},
        "levels": {str(one.level): ways.levels(one.level) for one in asked if one.kind == "bits"},
        **{
            "flip_bits": flip_bits,
            "activation_bits": activation_bits,
            "fold": fold,
            "seed": seed,
            "weights": names,
            "torch_ssam": __version__,
        },
    }
    notes: list[str] = []
    gather: Callable[[], None] | None = None
    if "anew" in all_statistics and not has_statistics(model):
        all_statistics = ("as_trained",)
        notes.append("The model has no BatchNorm with running statistics: none are gathered anew.")
    elif "anew" in all_statistics:
        gather = Statistics(model, calibration, weights[0].param.device).gather
    variants = [(statistic, ends) for statistic in all_statistics for ends in all_ends]
    total = len(variants) * (1 + sum(plan.samples if one.random else 1 for one in asked))
    run, order = _Run(model, evaluation, gather, progress, total), Order(model, weights)
    points = []
    try:
        with run.measured:
            for statistic, ends in variants:
                anew = statistic == "anew"
                with order.watched():
                    clean = run.clean(anew)
                points.append(Point("clean", 0.0, statistic, ends, clean, None, (clean,)))
                left = _without(weights, order.ends()) if ends == "out" else weights
                for one in asked:
                    values, half = run.values(one, plan, left, anew)
                    with np.errstate(invalid="ignore"):  # inf - inf
                        mean = float(np.mean(values))
                    points.append(
                        Point(one.kind, float(one.level), statistic, ends, mean, half, tuple(values.tolist()))
                    )
    finally:
        run.close()
    if "out" in all_ends:
        settings["first_and_last"] = [name for name, _ in order.ends()]
        notes.append(f"Kept as first and last: {', '.join(settings['first_and_last'])}.")
    return Robustness(evaluation.name, tuple(points), settings, tuple(notes))


@contextmanager
def _both(first: Context, second: Context) -> Iterator[None]:
    with first, second:
        yield


class _Run:
    """Evaluates the metric under one disturbance after another, each from the model as it was, inside of `measured`."""

    def __init__(
        self,
        model: nn.Module,
        evaluation: Evaluation,
        gather: Callable[[], None] | None,
        progress: Any,
        total: int,
    ) -> None:
        self.measured = MeasuredModel(model, training=False)
        self._evaluation, self._gather = evaluation, gather
        self._report, self.close = resolve_progress(progress, total, "evaluation")
        self._done, self._total = 0, total
        self._random = self.measured.generators.state()

    def _evaluate(self, context: Context, anew: bool) -> float:
        self.measured.generators.set(self._random)  # the same dropout and the same order of batches for all
        with context:
            if anew and self._gather is not None:
                self._gather()
            value = self._evaluation()
        self.measured.restore()
        self._done += 1
        if self._report is not None:
            self._report(self._done, max(self._total, self._done))
        return value

    def clean(self, anew: bool) -> float:
        """Of the model as it is."""
        value = self._evaluate(nullcontext(), anew)
        if not math.isfinite(value):
            raise ValueError(
                f"metric {self._evaluation.name} is {value} for the model as it is; expected a finite number. Check the "
                "model and the data."
            )
        return value

    def values(
        self, one: _Disturbance, plan: Plan, left: list[Weight], anew: bool
    ) -> tuple[Floats, float | None]:
        """Under a disturbance, draw by draw, and half the width of the interval of their mean."""
        if not one.random:
            return np.array([self._evaluate(one.make(0, left), anew)]), None
        drawn, half, _ = plan.run(lambda i: np.asarray(self._evaluate(one.make(i, left), anew)), None, "draw")
        return drawn, float(half)


def _one_or_both(name: str, value: Any, choices: tuple[str, ...]) -> tuple[str, ...]:
    chosen = _checks.one_of(name, value, (*choices, "both"))
    return choices if chosen == "both" else (chosen,)


def _levels(name: str, given: Any, check: Callable[[str, Any], Any]) -> list[Any]:
    """The levels asked for, each once."""
    if given is None:
        return []
    if isinstance(given, str | bytes):
        raise TypeError(f"{name} is {given!r}; expected a number or several.")
    several = isinstance(given, Iterable) and getattr(given, "ndim", 1) > 0
    return list(dict.fromkeys(check(name, level) for level in (given if several else [given])))


def _without(weights: list[Weight], ends: list[tuple[str, nn.Module]]) -> list[Weight]:
    """The weights that neither of these modules holds."""
    ending = {id(p) for _, module in ends for p in module._parameters.values() if p is not None}
    left = [weight for weight in weights if id(weight.param) not in ending]
    if not left:
        raise ValueError(
            f"first_and_last leaves nothing to disturb: {', '.join(name for name, _ in ends)} hold all weights; expected 'in'."
        )
    return left


def _folded(
    model: nn.Module, names: list[str], data: Any, metric: Metric, channel_dim: ChannelDim
) -> tuple[nn.Module, list[Weight]]:
    """A copy with BatchNorm folded, checked on the first batch, and the weights of these names in it."""
    with MeasuredModel(model):
        example = Evaluation(model, data, metric, next(model.parameters()).device).example()
        copied = fold_batchnorm(model, example)
    return copied, [w for w in chosen_weights(copied, (), channel_dim) if w.names[0] in names]
