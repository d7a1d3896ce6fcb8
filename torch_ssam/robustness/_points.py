"""The numbers of a measurement: a point for each disturbance. Tests: tests/python/test_robustness_measure.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

KINDS = ("clean", "bits", "noise", "flips")
STATISTICS = ("as_trained", "anew")
FIRST_AND_LAST = ("in", "out")
StatisticsAsked = Literal["as_trained", "anew", "both"]
FirstAndLast = Literal["in", "out", "both"]

Variant = tuple[str, str]  # statistics, first and last layer


@dataclass(frozen=True)
class Point:
    """The metric under one disturbance."""

    #: "clean", "bits", "noise" or "flips".
    kind: str
    #: Bits, standard deviation of the noise, or rate of flips; 0 where clean.
    level: float
    #: "as_trained", or "anew" where BatchNorm's statistics were gathered under the disturbance.
    statistics: str
    #: Whether the first and the last layer were disturbed too: "in" or "out".
    first_and_last: str
    #: Mean over the draws, in units of the metric; NaN if it was NaN in one of them.
    mean: float
    #: Half the width of its confidence interval; None where nothing is random.
    half_width: float | None
    #: The metric of every draw. Draw i of one seed is the same chip for every model of the same shapes.
    values: tuple[float, ...]

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the confidence interval."""
        half = self.half_width or 0.0
        return self.mean - half, self.mean + half

    @property
    def variant(self) -> Variant:
        """Statistics, and first and last layer."""
        return self.statistics, self.first_and_last

    def name(self, settings: Mapping[str, Any]) -> str:
        """What a row of a table is called."""
        if self.kind == "bits":
            activations = settings.get("activation_bits")  # files of older versions do not have it
            more = "" if activations is None else f", activations {activations} bits"
            return f"{self.level:g} bits, {settings['levels'][f'{self.level:g}']} levels{more}"
        if self.kind == "noise":
            return f"noise {self.level:g}"
        if self.kind == "flips":
            return f"flips {self.level:g}, {settings['flip_bits']} bits"
        if self.kind == "clean":
            return "clean"
        raise ValueError(f"kind is {self.kind!r}; expected one of {', '.join(KINDS)}.")


@dataclass(frozen=True)
class Measurement:
    """The numbers of a measurement, without what shows them."""

    #: Name of the metric.
    metric: str
    points: tuple[Point, ...]
    #: The options of `measure`, and what they came to: levels, names of the first and last layer.
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def clean(self) -> float:
        """The metric of the model as it is."""
        return self.find("clean", 0).mean

    def find(
        self, kind: str, level: float, *, statistics: str | None = None, first_and_last: str | None = None
    ) -> Point:
        """The point of a disturbance; of several the first, statistics as trained and all layers disturbed before others.

        Raises: ValueError: it was not measured.
        """
        for point in self.points:
            fits = point.kind == kind and math.isclose(point.level, level, rel_tol=1e-12)
            if (
                fits
                and statistics in (None, point.statistics)
                and first_and_last in (None, point.first_and_last)
            ):
                return point
        measured = ", ".join(dict.fromkeys(p.name(self.settings) for p in self.points))
        raise ValueError(f"{kind} {level:g} was not measured so; expected one of {measured}.")

    def variants(self) -> list[Variant]:
        """The ways of measuring that were asked for: (statistics, first and last layer)."""
        return list(dict.fromkeys(point.variant for point in self.points))
