"""One coordinate, two layers, target 1: where S-SAM and plain gradient descent end on the landscape of O_R.

docs/experiments.md, and [CLS] Theorem 3.1b: lambda = sqrt(1 - eta^2 / |w*|).
Tests: tests/python/test_experiments.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from torch_ssam import theory
from torch_ssam.simulate import simulate

from ._common import COLOURS, Result, Setting, axes, mean_error, tail_mean

ETA = 0.5
STARTS = np.array([[2.0, 0.5], [0.25, 1.8], [-0.4, -1.9], [1.5, 1.6], [-1.8, 0.2], [0.3, -0.4], [0.1, 0.1]])


def run(setting: Setting) -> Result:
    replicates = setting.pick(256, 48)
    lr = 1e-3
    steps = setting.pick(60_000, 30_000)
    common: dict[str, Any] = {"lr": lr, "steps": steps, "init": STARTS.T, "seed": setting.seed}
    target = np.ones(len(STARTS))
    ssam = simulate(target, noise_std=ETA, replicates=replicates, record_every=100, **common)
    flow = simulate(target, noise_std=ETA, expected=True, record_every=20, **common)
    plain = simulate(target, noise_std=0.0, record_every=20, **common)

    shrinkage = float(theory.shrinkage_factor(1.0, ETA, 2))
    rows: list[dict[str, Any]] = []
    deviations = []
    for i, start in enumerate(STARTS):
        product, error = mean_error(tail_mean(ssam.product[:, :, i], 0.3))
        factor = np.sqrt(max(product, 0.0))
        deviations.append(factor / shrinkage - 1)
        gap = tail_mean(ssam.weights[:, :, 0, i] ** 2 - ssam.weights[:, :, 1, i] ** 2, 0.3).mean()
        end = plain.weights[-1, 0, :, i]
        rows.append(
            {
                "start": f"({start[0]:g}, {start[1]:g})",
                "lambda S-SAM": float(factor),
                "error (95%)": float(error / (2 * max(factor, 1e-9))),
                "lambda theory": shrinkage,
                "deviation %": 100 * float(deviations[-1]),
                "w1^2 - w2^2, S-SAM": float(gap),
                "w1^2 - w2^2, GD": float(end[0] ** 2 - end[1] ** 2),
                "product GD": float(end.prod()),
            }
        )

    figure, (plot, zoom) = axes(2, 5.0, 4.4)
    grid = np.linspace(-2.2, 2.2, 161)
    w1, w2 = np.meshgrid(grid, grid)
    surface = theory.regularized_loss(np.stack([w1, w2], axis=-1)[..., None], [1.0], ETA)
    plot.contourf(w1, w2, np.log(surface), levels=24, cmap="Greys", alpha=0.6)
    plot.plot(
        grid[grid > 0.4],
        1 / grid[grid > 0.4],
        "k:",
        linewidth=1,
        label="w1 w2 = 1 (minima of the plain loss)",
    )
    plot.plot(grid[grid < -0.4], 1 / grid[grid < -0.4], "k:", linewidth=1)
    for i, colour in enumerate(COLOURS[: len(STARTS)]):
        names = ("S-SAM, one run", "GD on O_R", "GD on O") if i == 0 else (None, None, None)
        plot.plot(*ssam.weights[:, 0, :, i].T, color=colour, linewidth=0.5, alpha=0.7, label=names[0])
        plot.plot(*flow.weights[:, 0, :, i].T, color=colour, linewidth=1.8, label=names[1])
        plot.plot(*plain.weights[:, 0, :, i].T, color=colour, linewidth=1, linestyle="--", label=names[2])
        plot.plot(*plain.weights[-1, 0, :, i], "x", color=colour)
        plot.plot(*STARTS[i], "o", color=colour, markersize=4)
        zoom.plot(ssam.steps * lr, ssam.product[:, :, i].mean(axis=1), color=colour, linewidth=1)
    for sign in (1, -1):
        plot.plot(sign * shrinkage, sign * shrinkage, "*", color="white", markeredgecolor="k", markersize=14)
    plot.set(xlabel="w1", ylabel="w2", xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), title="log O_R, starts and ends")
    plot.legend(fontsize=6.5, loc="lower right", framealpha=0.9)
    zoom.axhline(1 - ETA**2, color="k", linestyle="--", linewidth=1, label="theory: 1 - eta^2")
    zoom.set(
        xlabel="time (step size x steps)", ylabel="mean product over replicates", title="the product shrinks"
    )
    zoom.set_xlim(-0.2, 10)
    zoom.legend(fontsize=8)

    largest = float(np.max(np.abs(deviations)))
    error = max(row["error (95%)"] for row in rows)
    return Result(
        title="Shrinkage on the landscape of the regularised loss",
        claim="S-SAM leaves the curve of perfect fits and goes to the two balanced minima of O_R, from any "
        "start; gradient descent stops where it first meets the curve.",
        prediction=f"L = 2, w* = 1, eta = {ETA}: both weights tend to lambda = sqrt(1 - eta^2) = "
        f"{shrinkage:.5f} in size.",
        measured=f"{replicates} replicates from each of {len(STARTS)} starts, lr {lr:g}: lambda within "
        f"{100 * largest:.2f}% of theory, 95% error at most {100 * error / shrinkage:.2f}%.",
        verdict="End points of S-SAM are those of theory within 1%, whatever the start."
        if largest < 0.01
        else "End points of S-SAM differ from theory by more than 1%.",
        confirmed=largest < 0.01,
        rows=rows,
        figure=figure,
        notes=[
            "A constant step size leaves a bias of its own order in the mean (see the stationary law): that is the "
            "deviation beyond the 95% errors. Ends are means over the last 30% of the records; the right plot shows "
            f"the beginning, of time {lr * steps:g}.",
        ],
    )
