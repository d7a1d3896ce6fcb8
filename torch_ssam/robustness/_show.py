"""Tables, plots and the page of one measurement or several side by side. Tests: tests/python/test_robustness_report.py."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch_ssam._common.extras import need
from torch_ssam._common.files import replace_file
from torch_ssam._common.html_page import Table, image, page, png

from ._points import Measurement, Point

COLOURS = ("#5f6368", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LINES = ("-", "--", ":", "-.")
MARKERS = "osD^vPX*"


def places_of(results: Iterable[Measurement]) -> int:
    """Decimals to show: of a metric in the tens two, of one around 1 three or four."""
    size = max(abs(result.clean) for result in results)
    return 2 if size >= 10 else 3 if size >= 1 else 4


def number(value: float, places: int, sign: bool = False) -> str:
    """With so many decimals, fewer where it is large."""
    if not math.isfinite(value) or abs(value) >= 1e5:
        return f"{value:.4g}"
    return f"{value:+.{places}f}" if sign else f"{value:.{places}f}"


def with_interval(mean: float, half: float | None, places: int, sign: bool = False) -> str:
    """mean +- half; the mean alone where nothing is random."""
    shown = number(mean, places, sign)
    return shown if half is None or not math.isfinite(mean) else f"{shown} +- {number(half, places)}"


def shown(point: Point, places: int) -> str:
    """The metric under one disturbance, as a table shows it."""
    text = with_interval(point.mean, point.half_width, places)
    failed = sum(not math.isfinite(value) for value in point.values)
    return f"{text} ({failed} of {len(point.values)} draws)" if failed and len(point.values) > 1 else text


def variant_name(statistics: str, first_and_last: str) -> str:
    """What a column is called that is not the usual measurement."""
    words = ["statistics anew"] if statistics == "anew" else []
    words += ["first and last kept"] if first_and_last == "out" else []
    return ", ".join(words)


def meaning(settings: Mapping[str, Any]) -> str:
    """What the numbers are, in words."""
    per = settings["per"]
    shared = f"each {per}" if isinstance(per, str) else f"{per} weights of a filter"
    unit = {"filter": "its filter's largest weight", "tensor": "its tensor's largest weight", None: "1"}
    how = "one draw a chip" if settings["kind"] == "programming" else "a new draw each forward pass"
    folded = " BatchNorm folded first." if settings["fold"] else ""
    return (
        f"Bits: grid {settings['grid']}, a step for {shared} ({settings['step']}). Noise: standard deviation in units of "
        f"{unit[settings['relative_to']]}, {how}. Flips: probability for each bit of a stored weight. +- is half a "
        f"{100 * settings['confidence']:g}% interval over draws.{folded}"
    )


def measured_table(result: Measurement) -> Table:
    """Of one model: a column a variant, and without variants the difference from clean."""
    rows: dict[str, list[str]] = {}
    variants, places = result.variants(), places_of([result])
    header = [""] + [variant_name(*variant) or result.metric for variant in variants]
    for variant in variants:
        clean = result.find("clean", 0, statistics=variant[0])
        for point in result.points:
            if point.variant == variant:
                cells = rows.setdefault(point.name(result.settings), [])
                cells.append(shown(point, places))
                if len(variants) == 1:
                    gap = number(point.mean - clean.mean, places, sign=True)
                    cells.append("" if point.kind == "clean" else gap)
    if len(variants) == 1:
        header.append("minus clean")
    notes = " ".join((meaning(result.settings), *result.notes))
    title = f"{result.metric} under disturbed weights"
    return Table(title, header, [[name, *cells] for name, cells in rows.items()], notes)


def read_json(source: str | Path) -> tuple[Any, str]:
    """The record in a text or a file, and what to call it.

    Raises: ValueError: no JSON. OSError: no such file.
    """
    inside = isinstance(source, str) and source.lstrip().startswith("{")
    where = "the text" if inside else str(source)
    text = source if inside else Path(source).read_text(encoding="utf-8")
    try:
        return json.loads(str(text)), where
    except ValueError as error:
        raise ValueError(f"{where} is no JSON ({error}); expected what to_json() wrote.") from None


# -- plots -------------------------------------------------------------------------------------------------------

LABELS = {
    "bits": "bits a weight",
    "noise": "standard deviation of the noise",
    "flips": "probability that a bit flips",
}


def _kinds(results: Mapping[str, Measurement]) -> list[str]:
    """The disturbances that were measured, each a panel."""
    return [kind for kind in LABELS if any(p.kind == kind for r in results.values() for p in r.points)]


def figure(results: Mapping[str, Measurement]) -> Any:
    """The metric against bits, noise and flips: a colour a model, a line style a variant."""
    kinds = _kinds(results)
    plots = need("matplotlib.figure", "robustness", "the plot of a robustness report").Figure(
        figsize=(4.6 * max(len(kinds), 1), 4.0), layout="constrained"
    )
    axes = dict(zip(kinds, plots.subplots(1, max(len(kinds), 1), squeeze=False)[0], strict=False))
    for i, (name, result) in enumerate(results.items()):
        for j, variant in enumerate(result.variants()):
            label = ", ".join(filter(None, (name, variant_name(*variant)))) or result.metric
            look = {
                "color": COLOURS[i % len(COLOURS)],
                "marker": MARKERS[i % len(MARKERS)],
                "linestyle": LINES[j % len(LINES)],
            }
            for kind, axis in axes.items():
                _curve(
                    axis, [p for p in result.points if p.variant == variant and p.kind == kind], label, look
                )
                clean = result.find("clean", 0, statistics=variant[0]).mean
                axis.axhline(clean, color=look["color"], linewidth=0.8, alpha=0.35)
    metric = next(iter(results.values())).metric
    for kind, axis in axes.items():
        axis.set(xlabel=LABELS[kind], ylabel=metric)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
        if kind == "bits":
            axis.invert_xaxis()
            axis.set_xticks(
                sorted({int(p.level) for r in results.values() for p in r.points if p.kind == kind})
            )
        if kind == "flips" and all(p.level > 0 for r in results.values() for p in r.points if p.kind == kind):
            axis.set_xscale("log")
    if kinds:
        handles, labels = axes[kinds[0]].get_legend_handles_labels()
        if len(labels) > 1:
            plots.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8)
    plots.suptitle(f"{metric} under disturbed weights; horizontal lines: clean", fontsize=11)
    return plots


def _curve(axis: Any, points: Sequence[Point], label: str, look: Mapping[str, Any]) -> None:
    ordered = sorted((p for p in points if math.isfinite(p.mean)), key=lambda p: p.level)
    halves = [p.half_width if p.half_width and math.isfinite(p.half_width) else 0.0 for p in ordered]
    axis.errorbar(
        [p.level for p in ordered],
        [p.mean for p in ordered],
        yerr=halves if any(halves) else None,
        label=label,
        markersize=5,
        linewidth=1.4,
        capsize=3,
        **look,
    )


# -- the page ----------------------------------------------------------------------------------------------------


def report_page(title: str, results: Mapping[str, Measurement], tables: Sequence[Table]) -> str:
    """One HTML page with the tables and, its image inside, the plot."""
    first = next(iter(results.values()))
    picture = ""
    if _kinds(results):
        alt = f"{first.metric} against bits, noise and flips"
        picture = f"<section>{image(png(figure(results)), alt)}</section>"
    sections = "".join(f"<section>{table.html()}</section>" for table in tables)
    details = "".join(
        f"<details><summary>Settings{html.escape(f' of {name}' if name else '')}</summary><dl>"
        + "".join(
            f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>"
            for key, value in result.settings.items()
        )
        + "</dl></details>"
        for name, result in results.items()
    )
    header = (
        "<p>What is left of a model when its weights are rounded to few bits, written into noisy cells, or hit by bit "
        "flips.</p>"
    )
    body = f"{picture}{sections}<section>{details}</section>"
    return page(title, header, body, "Made by torch_ssam.robustness.")


def save(
    folder: str | Path, text: str, record: str, results: Mapping[str, Measurement], tables: Sequence[Table]
) -> None:
    """robustness.json and .txt, then, with the plot where there is one, .html and .png."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    replace_file(place / "robustness.json", record)
    replace_file(place / "robustness.txt", text + "\n")
    whole = report_page("Robustness of weights", results, tables)
    if _kinds(results):
        replace_file(place / "robustness.png", png(figure(results)))
    replace_file(place / "robustness.html", whole)
