"""What `measure` found, kept as plain numbers: tables, a plot, JSON, a page. Tests: tests/python/test_robustness_report.py."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch_ssam._common.files import replace_file
from torch_ssam._common.html_page import Table

from . import _show
from ._points import FIRST_AND_LAST, KINDS, STATISTICS, Measurement, Point

FORMAT = "torch_ssam.robustness"


@dataclass(frozen=True)
class Robustness(Measurement):
    """What is left of a model under disturbances of its weights; see `measure`."""

    def table(self) -> Table:
        """A row a disturbance: the metric, and by how much it differs from the clean one."""
        return _show.measured_table(self)

    def __str__(self) -> str:
        return self.table().text()

    def plot(self) -> Any:
        """A matplotlib figure, made without a display: the metric against bits, noise and flips."""
        return _show.figure({"": self})

    def html(self, title: str = "Robustness of weights") -> str:
        """The table and the plot as one page, its image inside."""
        return _show.report_page(title, {"": self}, [self.table()])

    def to_json(self, path: str | Path | None = None) -> str:
        """Everything as JSON, written to a file too if one is named. NaN and infinities are strings."""
        record = {"format": FORMAT, "version": 1, **asdict(self)}
        text = json.dumps(_worded(record), indent=1, allow_nan=False)
        if path is not None:
            replace_file(Path(path), text)
        return text

    @staticmethod
    def from_json(source: str | Path) -> Robustness:
        """What `to_json` wrote, from its text or a file.

        Raises: ValueError: something else. OSError: no such file.
        """
        record, where = _show.read_json(source)
        try:
            if record["format"] != FORMAT or record["version"] != 1:
                raise ValueError(f"format {record['format']!r}, version {record['version']!r}")
            points = tuple(_point(one) for one in record["points"])
            return Robustness(
                str(record["metric"]), points, dict(record["settings"]), tuple(map(str, record["notes"]))
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{where} is no measurement of robustness ({type(error).__name__}: {error}); expected what to_json() wrote."
            ) from None

    def save(self, folder: str | Path) -> None:
        """robustness.txt, .json, .png and .html (the last two need matplotlib)."""
        _show.save(folder, str(self), self.to_json(), {"": self}, [self.table()])


def _point(record: dict[str, Any]) -> Point:
    for name, known in (("kind", KINDS), ("statistics", STATISTICS), ("first_and_last", FIRST_AND_LAST)):
        if record[name] not in known:
            raise ValueError(f"{name} is {record[name]!r}; expected one of {', '.join(known)}")
    half = record["half_width"]
    return Point(
        record["kind"],
        float(record["level"]),
        record["statistics"],
        record["first_and_last"],
        float(record["mean"]),
        None if half is None else float(half),
        tuple(map(float, record["values"])),
    )


def _worded(value: Any) -> Any:
    """The same with numbers that are not finite as words, since JSON has none for them."""
    if isinstance(value, dict):
        return {str(key): _worded(member) for key, member in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_worded(member) for member in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
