"""Several models or checkpoints under the same disturbances, side by side. Tests: tests/python/test_robustness_report.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from torch_ssam._common.checkpoints import Checkpoint, LoadedModel, read_checkpoint
from torch_ssam._common.files import replace_file
from torch_ssam._common.html_page import Table
from torch_ssam.sharpness._estimate import student_quantile

from . import _show
from ._evaluate import Metric, accuracy
from ._measure import measure
from ._points import Point
from ._result import FORMAT, Robustness
from ._weights import check_model


@dataclass(frozen=True)
class Comparison:
    """What is left of several models under the same disturbances; see `compare`."""

    #: By name, in the order of the tables; differences are from the first.
    results: dict[str, Robustness]

    def __post_init__(self) -> None:
        found = self.results
        if (
            not isinstance(found, dict)
            or not found
            or not all(isinstance(r, Robustness) for r in found.values())
        ):
            came = f"a dict of {len(found)}" if isinstance(found, dict) else type(found).__name__
            raise TypeError(
                f"results is {came}; expected a dict of one or more, name -> what measure() gave."
            )
        if any(str(name) == "" for name in found):
            raise ValueError("results has an empty name; expected a name for each.")
        if len({result.metric for result in found.values()}) > 1:
            named = ", ".join(f"{name}: {result.metric}" for name, result in found.items())
            raise ValueError(f"the measurements are of several metrics ({named}); expected one.")

    def difference(self, name: str, point: Point) -> tuple[float, float | None] | None:
        """Metric of a model minus the first's under one disturbance: mean, half-width; paired draw by draw.

        None where one of the two lacks the point, or draws of its own number.
        """
        first = _same(next(iter(self.results.values())), point)
        other = _same(self.results[name], point)
        if first is None or other is None or len(first.values) != len(other.values):
            return None
        confidence = float(self.results[name].settings["confidence"])
        with np.errstate(invalid="ignore"):  # inf - inf
            gaps = np.subtract(other.values, first.values)
            if len(gaps) == 1:
                return float(gaps[0]), None
            half = (
                student_quantile(confidence, len(gaps) - 1) * float(np.std(gaps, ddof=1)) / np.sqrt(len(gaps))
            )
        return float(gaps.mean()), float(half)

    def tables(self) -> list[Table]:
        """The metric of every model, and the paired differences from the first."""
        first = next(iter(self.results.values()))
        known: dict[tuple[Any, ...], Point] = {}
        for result in self.results.values():
            for point in result.points:
                known.setdefault((*point.variant, point.kind, point.level), point)
        rows, gaps, places = [], [], _show.places_of(self.results.values())
        others = list(self.results)[1:]
        for point in known.values():
            owner = next(result for result in self.results.values() if _same(result, point) is not None)
            label = point.name(owner.settings)
            words = _show.variant_name(*point.variant)
            label = f"{label}, {words}" if words else label
            cells = [_same(result, point) for result in self.results.values()]
            rows.append([label, *("" if cell is None else _show.shown(cell, places) for cell in cells)])
            differences = [self.difference(name, point) for name in others]
            gaps.append(
                [
                    label,
                    *(
                        "" if gap is None else _show.with_interval(*gap, places, sign=True)
                        for gap in differences
                    ),
                ]
            )
        notes = {name: " ".join(result.notes) for name, result in self.results.items() if result.notes}
        remarks = " ".join(f"{name}: {text}" for name, text in notes.items())
        note = _show.meaning(first.settings) + (f" {remarks}" if remarks else "")
        title = f"{first.metric} under disturbed weights"
        tables = [Table(title, ["", *self.results], rows, note)]
        if others:
            tables.append(
                Table(
                    f"minus {next(iter(self.results))}, the same chips paired",
                    ["", *others],
                    gaps,
                    "+- is half an interval over draws, not over trainings.",
                )
            )
        return tables

    def __str__(self) -> str:
        return "\n\n".join(table.text() for table in self.tables())

    def plot(self) -> Any:
        """A matplotlib figure: the metric against bits, noise and flips, a colour a model."""
        return _show.figure(self.results)

    def html(self, title: str = "Robustness of weights") -> str:
        """Tables and plot as one page, its image inside."""
        return _show.report_page(title, self.results, self.tables())

    def to_json(self, path: str | Path | None = None) -> str:
        """Everything as JSON, written to a file too if one is named."""
        models = {name: json.loads(result.to_json()) for name, result in self.results.items()}
        text = json.dumps({"format": f"{FORMAT}.comparison", "version": 1, "models": models}, indent=1)
        if path is not None:
            replace_file(Path(path), text)
        return text

    @staticmethod
    def from_json(source: str | Path) -> Comparison:
        """What `to_json` wrote, from its text or a file.

        Raises: ValueError: something else. OSError: no such file.
        """
        record, where = _show.read_json(source)
        try:
            if record["format"] != f"{FORMAT}.comparison" or record["version"] != 1:
                raise ValueError(f"format {record['format']!r}, version {record['version']!r}")
            return Comparison(
                {name: Robustness.from_json(json.dumps(one)) for name, one in record["models"].items()}
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{where} is no comparison of robustness ({type(error).__name__}: {error}); expected what to_json() wrote."
            ) from None

    def save(self, folder: str | Path) -> None:
        """robustness.txt, .json, .png and .html (the last two need matplotlib)."""
        _show.save(folder, str(self), self.to_json(), self.results, self.tables())


def _same(result: Robustness, point: Point) -> Point | None:
    """The point of a measurement that stands for the same disturbance."""
    for other in result.points:
        if (other.kind, other.level, other.variant) == (point.kind, point.level, point.variant):
            return other
    return None


def compare(
    checkpoints: Mapping[str, Checkpoint],
    data: Any,
    metric: Metric = accuracy,
    *,
    model: nn.Module | None = None,
    progress: bool | Callable[[int, int], object] | None = None,
    **options: Any,
) -> Comparison:
    """What is left of several models or checkpoints under the same disturbances, and by how much they differ.

    Draw i is the same chip for every model of the same shapes, so that noise and flips are compared draw by draw: the
    second table has paired differences from the first checkpoint. Intervals are over draws; they do not cover what another
    training with another seed would give.

    Args:
        checkpoints: one or more by name: a module, or a state_dict or a file that torch.save wrote (read with weights_only=True;
            one under "state_dict" or "model" is found) for `model`.
        data, metric: as in `measure`.
        model: the architecture of state_dicts and files; loaded with each in turn, and afterwards what it was.
        progress: True for tqdm bars, or a function of (done, to do), for each checkpoint.
        options: the other options of `measure`. seed is a number.

    Returns: Comparison: `print` it, `plot()`, `save(folder)`. All models are afterwards what they were.
    Raises: TypeError, ValueError: as `measure`; a checkpoint that does not fit; none of them is measured before all are read.

    >>> import torch
    >>> from torch_ssam import robustness
    >>> data = [(torch.tensor([[1.0, 0.0], [0.1, 1.0]]), torch.tensor([0, 1]))]
    >>> one, two = (torch.nn.Linear(2, 2, bias=False) for _ in range(2))
    >>> _ = one.weight.data.copy_(torch.eye(2)), two.weight.data.copy_(torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    >>> found = robustness.compare({"far": one, "near": two}, data, bits=2, noise=0.3, flips=None)
    >>> found.results["far"].find("bits", 2).mean, found.results["near"].find("bits", 2).mean
    (100.0, 50.0)
    """
    if not isinstance(checkpoints, Mapping) or not checkpoints:
        came = "empty" if isinstance(checkpoints, Mapping) else f"a {type(checkpoints).__name__}"
        raise TypeError(f"checkpoints is {came}; expected a dict, name -> module, state_dict or file.")
    if options.get("seed", 0) is None:
        raise ValueError("seed is None, which would give every model other chips; expected a number.")
    loaded = {str(name): _loaded(model, str(name), one) for name, one in checkpoints.items()}
    for context in loaded.values():
        with context:
            pass  # what does not fit is said before anything is measured
    results = {}
    for name, context in loaded.items():
        with context:
            results[name] = measure(context.model, data, metric, progress=progress, **options)
    return Comparison(results)


def _loaded(model: nn.Module | None, name: str, checkpoint: Checkpoint) -> LoadedModel:
    own = checkpoint if isinstance(checkpoint, nn.Module) else model
    if own is None:
        raise ValueError(
            f"checkpoint {name!r} is a {type(checkpoint).__name__} without a model to load it into; expected model= or a module."
        )
    check_model(own)
    return LoadedModel(own, name, read_checkpoint(name, checkpoint))


def report(
    results: Robustness | Comparison | Mapping[str, Robustness | str | Path], folder: str | Path
) -> Path:
    """Writes the report of measurements to a folder: robustness.html, .txt, .png and .json.

    Args:
        results: what `measure` or `compare` gave, or several measurements by name, each as it is or as the JSON file (or text)
            that its to_json() wrote: measurements made in different runs, side by side.
        folder: made where it is missing.

    Returns: the path of robustness.html.
    Raises: TypeError, ValueError: something else, metrics of several names. OSError: no such file.
    """
    if isinstance(results, Mapping):
        results = Comparison(
            {
                str(name): one if isinstance(one, Robustness) else Robustness.from_json(one)
                for name, one in results.items()
            }
        )
    if not isinstance(results, Robustness | Comparison):
        raise TypeError(
            f"results is a {type(results).__name__}; expected what measure() or compare() gave, or a dict of measurements."
        )
    results.save(folder)
    return Path(folder) / "robustness.html"
