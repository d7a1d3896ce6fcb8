"""What every experiment shares: its settings, its result, error bars, and how both are shown and saved.

An experiment is a function of a Setting that returns a Result; it prints nothing and writes nothing itself.
Tests: tests/python/test_experiments.py.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from torch_ssam._common.extras import need
from torch_ssam._common.html_page import png
from torch_ssam.simulate import Simulation, simulate

Floats = npt.NDArray[Any]
T = TypeVar("T")

# Colours that stay apart for readers who do not see red and green.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def settle(
    target: Any, depth: int, *, lr: float, steps: tuple[int, int], init: Any, seed: int, **options: Any
) -> Simulation:
    """A run with coarse steps, of size 4 lr, then one with fine steps, of size lr, from where it ended: that one.

    Coarse steps get there, fine ones measure: the bias is of the order of lr.
    """
    coarse = simulate(target, depth, lr=4 * lr, steps=steps[0], init=init, seed=seed, **options)
    return simulate(target, depth, lr=lr, steps=steps[1], init=coarse.weights[-1], seed=seed + 1, **options)


@dataclass(frozen=True)
class Setting:
    quick: bool = False
    seed: int = 0

    def pick(self, full: T, quick: T) -> T:
        return quick if self.quick else full


@dataclass
class Result:
    title: str
    claim: str
    prediction: str
    measured: str
    verdict: str
    confirmed: bool
    #: The table that is saved, a dict a row; `shown` are the columns of the report, all where empty.
    rows: list[dict[str, Any]]
    figure: Any
    notes: list[str] = field(default_factory=list)
    shown: tuple[str, ...] = ()
    seconds: float = 0.0
    #: The claim holds in part, as the verdict says; `confirmed` is then False.
    partly: bool = False

    def png(self) -> bytes:
        return png(self.figure)

    def save(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.png").write_bytes(self.png())
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)

    def mark(self) -> str:
        return "confirmed" if self.confirmed else "confirmed in part" if self.partly else "not confirmed"

    def columns(self) -> list[str]:
        return list(self.shown or self.rows[0])

    def text(self) -> str:
        cells = [[show(row[column]) for column in self.columns()] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(self.columns(), *cells, strict=True)]
        table = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in [self.columns(), *cells]
        ]
        lines = [self.title, "=" * len(self.title), f"Claim:    {self.claim}", f"Theory:   {self.prediction}"]
        lines += [f"Measured: {self.measured}", "", *table, ""]
        lines += [f"Note: {note}" for note in self.notes]
        return "\n".join([*lines, f"Verdict:  {self.mark().upper()}. {self.verdict}  ({self.seconds:.1f} s)"])


def show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def axes(columns: int = 1, width: float = 4.6, height: float = 3.6) -> tuple[Any, list[Any]]:
    """A figure with a row of plots, made without pyplot, so that no display or backend is touched."""
    figure = need("matplotlib.figure", "experiments", "a figure").Figure(
        figsize=(width * columns, height), layout="constrained"
    )
    plots = figure.subplots(1, columns, squeeze=False)[0]
    for plot in plots:
        plot.spines[["top", "right"]].set_visible(False)
        plot.grid(alpha=0.25, linewidth=0.6)
    return figure, list(plots)


def half_width(values: Floats, axis: int = 0) -> Floats:
    """Half the width of the 95% interval (Student's t) of the mean of independent values."""
    n = values.shape[axis]
    quantile = need("scipy.stats", "experiments", "Student's interval").t.ppf(0.975, n - 1)
    return np.asarray(quantile * values.std(axis=axis, ddof=1) / np.sqrt(n))


def mean_error(values: npt.ArrayLike) -> tuple[float, float]:
    """Mean of independent values and the half width of its 95% interval."""
    v = np.asarray(values, dtype=float).ravel()
    return float(v.mean()), float(half_width(v))


def tail_mean(values: Floats, share: float = 0.5) -> Floats:
    """Mean over the last records: (records, ...) to (...)."""
    mean: Floats = values[-max(1, int(len(values) * share)) :].mean(axis=0)
    return mean


def column_mean(values: Floats) -> tuple[Floats, Floats]:
    """Mean over the first axis and the half width of its 95% interval."""
    mean: Floats = values.mean(axis=0)
    return mean, half_width(values)


def worst(values: Sequence[float] | Floats) -> float:
    return float(np.max(np.abs(np.asarray(values, dtype=float))))
