"""The plots of a comparison: scores, learning curves, robustness. Needs matplotlib.

Tests: tests/python/test_compare.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from torch_ssam._common.extras import need

from . import _deployment
from ._compare import Comparison
from ._method import Method
from ._statistics import Estimate
from ._tables import measure_of, score_name

#: A family of methods has a colour; its members differ by marker and by line.
COLOURS = {"sgd": "#5f6368", "sam": "#d55e00", "ssam": "#0072b2", "adamw": "#009e73"}
MARKERS, LINES = "osD^vP", ("-", "--", ":", "-.")


def _styles(methods: list[Method]) -> dict[str, dict[str, Any]]:
    seen: dict[str, int] = {}
    styles = {}
    for method in methods:
        family = method.name.partition("-")[0]
        i = seen[family] = seen.get(family, -1) + 1
        styles[method.name] = {
            "color": COLOURS.get(family, "#000000"),
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": LINES[i % len(LINES)],
        }
    return styles


def _figure(columns: int, width: float = 5.2, height: float = 4.4) -> tuple[Any, list[Any]]:
    figure = need("matplotlib.figure", "compare", "the report of a comparison").Figure(
        figsize=(width * columns, height), layout="constrained"
    )
    plots = list(figure.subplots(1, columns, squeeze=False)[0])
    for plot in plots:
        plot.spines[["top", "right"]].set_visible(False)
        plot.grid(alpha=0.25, linewidth=0.6)
    return figure, plots


def scores(comparison: Comparison) -> Any:
    """Test scores of every seed with mean and interval, and differences from SGD; None without results."""
    if not any(comparison.values(method, "score") for method in comparison.methods):
        return None
    figure, (left, right) = _figure(2, 6.4, 0.42 * len(comparison.methods) + 1.4)
    styles, sgd = _styles(comparison.methods), comparison.method("sgd")
    for place, method in enumerate(comparison.methods):
        colour = styles[method.name]["color"]
        values = list(comparison.values(method, "score").values())
        found = comparison.estimate(method)
        left.plot(values, [place - 0.15] * len(values), "o", color=colour, alpha=0.5, markersize=5)
        gap = comparison.difference(method, sgd)
        for plot, one in ((left, found), (right, gap)):
            if one.n and not (plot is right and method is sgd):
                bar = one.half_width if math.isfinite(one.half_width) else 0.0
                plot.errorbar(
                    one.mean,
                    place + 0.15 * (plot is left),
                    xerr=bar,
                    fmt="D",
                    color=colour,
                    capsize=5,
                    markersize=6,
                )
    right.axvline(0, color="0.4", linewidth=1)
    left.set_yticks(range(len(comparison.methods)), [method.title for method in comparison.methods])
    right.set_yticks(range(len(comparison.methods)), [""] * len(comparison.methods))
    for plot in (left, right):
        plot.set_ylim(len(comparison.methods) - 0.4, -0.6)
    left.set_xlabel(score_name(comparison))
    right.set_xlabel("minus SGD, points, paired by seed")
    figure.suptitle(f"{comparison.name}: equal gradients; seeds (dots), mean and 95% interval", fontsize=11)
    return figure


def curves(comparison: Comparison) -> Any:
    """Validation score over gradients and over time, and the training loss that each method saw; mean of seeds. None
    without results."""
    if not any(result["curve"] for m in comparison.methods for result in comparison.results(m).values()):
        return None
    figure, plots = _figure(3)
    styles = _styles(comparison.methods)
    panels = (
        ("gradients", "validation score", "gradients of examples"),
        ("seconds", "validation score", "CPU seconds"),
        ("gradients", "training loss", "gradients of examples"),
    )
    for method in comparison.methods:
        results = list(comparison.results(method).values())
        shortest = min((len(result["curve"]) for result in results), default=0)
        for plot, (x, y, label) in zip(plots, panels, strict=True):
            if shortest:
                xs, ys = (
                    np.array(
                        [
                            [math.nan if p[key] is None else p[key] for p in r["curve"][:shortest]]
                            for r in results
                        ]
                    ).mean(0)
                    for key in (x, y)
                )
                plot.plot(xs, ys, label=method.title, markersize=4, linewidth=1.3, **styles[method.name])
            plot.set_xlabel(label)
            plot.set_ylabel(y if y == "validation score" else "training loss, as the method saw it")
    plots[2].set_yscale("log")
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(f"{comparison.name}: learning curves at the clean weights, mean of seeds", fontsize=11)
    return figure


#: A panel: its label, and for each method the points (level, score) that there are.
Panel = tuple[str, dict[str, list[tuple[float, float]]]]


def _panels(comparison: Comparison) -> list[Panel]:
    """What was varied: learning rate and epochs where there is more than the chosen value, and bits of the weights."""
    setting = comparison.setting
    factors = {"lr": setting.lr_factors, "epochs": setting.epoch_factors}
    panels: list[Panel] = []
    for what, label in (("lr", "learning rate / chosen"), ("epochs", "epochs / chosen")):
        found = {
            method.name: [(f, comparison.robustness(method, what, f)) for f in sorted({*factors[what], 1.0})]
            for method in comparison.methods
        }
        panels.append((label, _finite(found)))
    found = {
        method.name: [(bits, comparison.estimate(method, f"quantised {bits}")) for bits in setting.bits]
        for method in comparison.methods
    }
    panels.append(("bits a weight, rounded after training", _finite(found)))
    return [
        (label, lines) for label, lines in panels if {x for line in lines.values() for x, _ in line} - {1.0}
    ]


def _finite(found: dict[str, list[tuple[float, Estimate]]]) -> dict[str, list[tuple[float, float]]]:
    return {
        name: [(x, one.mean) for x, one in line if one.n and math.isfinite(one.mean)]
        for name, line in found.items()
    }


def robustness(comparison: Comparison) -> Any:
    """Test scores over multiples of the learning rate and of the epochs, and over bits of the weights: a panel for each
    of these that was varied, None where none was."""
    panels = _panels(comparison)
    if not panels:
        return None
    figure, plots = _figure(len(panels))
    styles = _styles(comparison.methods)
    for plot, (label, lines) in zip(plots, panels, strict=True):
        for method in comparison.methods:
            xs, ys = [x for x, _ in lines[method.name]], [y for _, y in lines[method.name]]
            plot.plot(xs, ys, markersize=5, label=method.title, **styles[method.name])
        levels = sorted({x for line in lines.values() for x, _ in line})
        if 1.0 in levels:
            plot.set_xscale("log", base=2)
        plot.set_xticks(levels, [f"{x:g}" for x in levels])
        plot.set_xlabel(label)
    plots[0].set_ylabel(score_name(comparison))
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(f"{comparison.name}: robustness", fontsize=11)
    return figure


def deployment_figure(comparison: Comparison) -> Any:
    """Test accuracy over bits, and over noise in units of each filter's largest weight, as a matplotlib figure.

    Options chosen by accuracy under disturbances. None where it was not measured.
    """
    arm, panels = "target", (("bits", _deployment.BITS), ("noise", _deployment.NOISE))
    if not any(comparison.values(m, "bits 2 mse anew", arm) for m in comparison.methods):
        return None
    figure, plots = _figure(2, 5.6, 4.6)
    styles = _styles(comparison.methods)
    for plot, (kind, levels) in zip(plots, panels, strict=True):
        ends = [(max(levels) + 1, "score")] if kind == "bits" else [(0.0, "score")]
        measures = [*ends, *((level, measure_of((kind, level))) for level in levels)]
        for method in comparison.methods:
            found = [
                (x, comparison.estimate(method, comparison.resolved(method, measure, arm), arm))
                for x, measure in measures
            ]
            line = [(x, one.mean, one.half_width) for x, one in found if one.n]
            if line:
                xs, ys, bars = zip(*line, strict=True)
                plot.errorbar(
                    xs,
                    ys,
                    yerr=[bar if math.isfinite(bar) else 0.0 for bar in bars],
                    label=method.title,
                    markersize=5,
                    linewidth=1.5,
                    capsize=3,
                    **styles[method.name],
                )
        ticks = [x for x, _ in measures]
        plot.set_xticks(ticks, ["clean" if x == ends[0][0] else f"{x:g}" for x in ticks])
        if kind == "bits":
            plot.invert_xaxis()
    plots[0].set_ylabel(score_name(comparison))
    plots[0].set_xlabel("bits a weight")
    plots[1].set_xlabel("noise, in units of each filter's largest weight")
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(
        f"{comparison.name}: rounded and noisy weights, mean and 95% interval over seeds", fontsize=11
    )
    return figure


def all_plots(comparison: Comparison) -> dict[str, Any]:
    """The plots of one setting that have data, by name."""
    made = {
        "scores": scores(comparison),
        "deployment": deployment_figure(comparison),
        "curves": curves(comparison),
        "robustness": robustness(comparison),
    }
    return {name: figure for name, figure in made.items() if figure is not None}
