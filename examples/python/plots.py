"""The demo's two figures: the diabetes data's coefficients and balance; the images' results.

Drawn from the numbers of out/demo.json alone. Tests: tests/python/test_demo.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from images import METHODS, interval
from matplotlib import pyplot as plt

from torch_ssam import theory

COLOURS = {"SGD": "#7f7f7f", "S-SAM": "#0b6fb8", "SAM": "#d9772b"}


def plot_diabetes(result: dict[str, Any], path: Path) -> None:
    depths = result["depths"]
    figure, axes = plt.subplots(
        len(depths), 2, figsize=(12, 4.6 * len(depths)), squeeze=False, layout="constrained"
    )
    for row, (depth, part) in zip(axes, depths.items(), strict=True):
        _coefficients(row[0], result, int(depth), part)
        _balance(row[1], int(depth), part)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _coefficients(axis: Any, result: dict[str, Any], depth: int, part: dict[str, Any]) -> None:
    target = np.array(result["target"])
    reach = 1.15 * np.abs(target).max()
    grid = np.linspace(-reach, reach, 801)
    limit = theory.limit_product(grid, result["noise_std"], depth)
    for side in (grid < 0, grid > 0):  # for depth > 2 the limit jumps at the threshold: no line across
        for zero in (True, False):
            piece = side & ((limit == 0) == zero)
            label = "theory" if side[-1] and not zero else None
            axis.plot(grid[piece], limit[piece], color="black", linewidth=1.3, label=label)
    axis.plot(grid, grid, color=COLOURS["SGD"], linewidth=0.8, linestyle=":", label="w*: least squares")
    for method, marker in (("SGD", "s"), ("S-SAM", "o")):
        axis.plot(target, part[method], marker, color=COLOURS[method], markersize=7, label=method, alpha=0.9)
    level = -0.98 * reach
    for i, h in enumerate(np.argsort(target)):  # names at two heights, where neighbours are close
        axis.axvline(target[h], color="0.92", linewidth=0.8, zorder=0)
        axis.text(target[h], level + (i % 3) * 0.075 * reach, result["names"][h], ha="center", fontsize=8)
    axis.set(
        title=f"Coefficients, depth {depth}",
        xlabel="target w* = E[y x]",
        ylabel="coefficient found",
        ylim=(-1.05 * reach, 1.05 * reach),
    )
    axis.legend(loc="upper left", fontsize=9)


def _balance(axis: Any, depth: int, part: dict[str, Any]) -> None:
    first = {"S-SAM": True, "SGD": True, "theory": True}

    def label(name: str) -> str | None:
        shown, first[name] = first[name], False
        return name if shown else None

    end = 0.0
    for curve in part["curves"]:
        time, gap = np.array(curve["time"]), np.array(curve["gap"])
        end = max(end, time[-1])
        axis.plot(
            time,
            np.abs(gap / gap[0]),
            color=COLOURS[curve["method"]],
            linewidth=1.0,
            alpha=0.8,
            label=label(curve["method"]),
        )
        if "theory" in curve:
            axis.plot(
                time,
                np.array(curve["theory"]) / gap[0],
                "--",
                color="black",
                linewidth=1.1,
                label=label("theory"),
            )
    if depth > 2:  # for depth 2 it is the rate itself
        time = np.linspace(0, end, 200)
        slowest = np.exp(-part["rate bound"] * time)
        axis.plot(time, slowest, ":", color="#b02a30", label="slowest rate allowed, 4 η^(2L-2)")
    axis.set_yscale("log")
    axis.set(
        title=f"Balance of the layers, depth {depth}",
        xlabel="time (sum of learning rates)",
        ylabel="|mean gap| / its start, gap = w₁² - w_L²",
        ylim=(1e-3, 2),
    )
    axis.legend(loc="lower left", fontsize=9)


def plot_images(result: dict[str, Any], path: Path) -> None:
    panels = (
        ("test accuracy", "Test accuracy, % (correct labels)"),
        ("sharpness", "Average sharpness E L(w + ξ) - L(w)"),
        ("seconds", "Training time, CPU seconds"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    for axis, (name, title) in zip(axes, panels, strict=True):
        for place, method in enumerate(METHODS):
            values = [run[name] for run in result["methods"][method]["runs"]]
            mean, half = interval(values)
            spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else np.zeros(1)
            axis.plot(place - 0.12 + spread, values, "o", color=COLOURS[method], alpha=0.55, markersize=6)
            axis.errorbar(
                place + 0.22,
                mean,
                half if np.isfinite(half) else 0.0,
                fmt="D",
                color=COLOURS[method],
                capsize=6,
                markersize=6,
            )
        axis.set_xticks(range(len(METHODS)), METHODS)
        axis.set_xlim(-0.6, len(METHODS) - 0.4)
        axis.set_title(title, fontsize=11)
        axis.grid(axis="y", color="0.9")
        if name != "test accuracy":
            axis.set_ylim(bottom=0)
    s = result["settings"]
    figure.suptitle(
        f"{result['data']}, {100 * s['wrong_labels']:g}% wrong training labels. "
        "Dots: seeds; diamonds: mean and 95% interval"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
