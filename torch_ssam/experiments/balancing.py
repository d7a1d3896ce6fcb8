"""How fast noise balances the layers, from weights whose product is already right.

docs/experiments.md, and [CLS] Theorem 3.1a: d/dt (w_i^2 - w_j^2) = -4 eta^2 A_ij (w_i^2 - w_j^2), never
slower than 4 eta^(2L-2). The rate is fitted to the logarithm of the mean gap of S-SAM's replicates, and of
gradient descent on O_R. Tests: tests/python/test_experiments.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from torch_ssam import theory
from torch_ssam.simulate import simulate

from ._common import COLOURS, Floats, Result, Setting, axes, half_width

ETAS = (0.3, 0.5, 0.8)
DEPTHS = (2, 3, 4)
FOLDS = 2.0  # e-foldings of the gap over which a rate is fitted


def start(depth: int) -> Floats:
    return np.array([2.0, 0.5, *[1.0] * (depth - 2)])


def slope(time: Floats, values: Floats) -> float:
    """Of a straight line through the points."""
    return float(np.polyfit(time, values, 1)[0])


def gap_and_rate(weights: Floats, eta: float) -> tuple[Floats, Floats]:
    """w_1^2 - w_2^2 and 4 eta^2 A_12 of every record and replicate, from weights (records, replicates,
    depth, 1)."""
    # Record by record, because the formulas return every pair of layers.
    gap = np.stack([theory.balance_gaps(record)[..., 0, 1, 0] for record in weights])
    rate = np.stack([theory.balancing_rate(record, eta)[..., 0, 1, 0] for record in weights])
    return gap, rate


def run(setting: Setting) -> Result:
    replicates = setting.pick(6000, 1000)
    tolerance = setting.pick(1.0, 5.0)
    groups = 10
    rows: list[dict[str, Any]] = []
    figure, plots = axes(3, 4.2, 3.8)
    for plot, depth in zip(plots, DEPTHS, strict=True):
        for eta, colour in zip(ETAS, COLOURS, strict=False):
            # A stochastic step biases the rate by the order of lr, the more so the deeper and the noisier.
            lr = {2: 1e-3, 3: 5e-4, 4: 4e-4}[depth] * (0.6 if eta == 0.8 else 1.0) * setting.pick(1, 3)
            # Until the gap of the expected dynamics has fallen by FOLDS e-foldings.
            guess = simulate(
                1.0,
                depth,
                noise_std=eta,
                lr=lr,
                steps=40_000,
                init=start(depth),
                expected=True,
                record_every=10,
            )
            expected, _ = gap_and_rate(guess.weights, eta)
            end = int(np.argmax(expected[:, 0] < expected[0, 0] * np.exp(-FOLDS)))
            steps = int(guess.steps[end])
            run = simulate(
                1.0,
                depth,
                noise_std=eta,
                lr=lr,
                steps=steps,
                init=start(depth),
                replicates=replicates,
                seed=setting.seed,
                record_every=max(1, steps // 100),
            )
            time = run.steps * lr
            gap, rate = gap_and_rate(run.weights, eta)
            # d/dt E gap = -E[rate gap]: the theorem's rate, weighted by the gap where the weights are random.
            drift = (rate * gap).mean(axis=1) / gap.mean(axis=1)
            predicted = np.concatenate([[0.0], -np.cumsum((drift[1:] + drift[:-1]) / 2 * np.diff(time))])
            fits = [slope(time, np.log(part.mean(axis=1))) for part in np.array_split(gap, groups, axis=1)]
            measured, theirs = -slope(time, np.log(gap.mean(axis=1))), -slope(time, predicted)
            error = half_width(np.array(fits))
            descent = -slope(guess.steps[: end + 1] * lr, np.log(expected[: end + 1, 0]))
            path = theory.balancing_rate(guess.weights[: end + 1, 0], eta)[:, 0, 1, 0]
            area = (
                np.concatenate(
                    [[0.0], np.cumsum((path[1:] + path[:-1]) / 2 * np.diff(guess.steps[: end + 1]))]
                )
                * lr
            )
            bound = theory.balancing_rate_bound(eta, depth)
            rows.append(
                {
                    "L": depth,
                    "eta": eta,
                    "rate S-SAM": measured,
                    "error (95%)": float(error),
                    "rate theory": theirs,
                    "deviation %": 100 * (measured / theirs - 1),
                    "rate GD on O_R": descent,
                    "theory GD": slope(guess.steps[: end + 1] * lr, area),
                    "deviation GD %": 100 * (descent / slope(guess.steps[: end + 1] * lr, area) - 1),
                    "lower bound": bound,
                }
            )
            plot.semilogy(time, gap.mean(axis=1), color=colour, linewidth=1.2, label=f"eta = {eta}")
            plot.semilogy(
                time,
                gap[0, 0] * np.exp(predicted),
                "k--",
                linewidth=0.8,
                label="theory" if eta == 0.8 else None,
            )
            plot.semilogy(time, gap[0, 0] * np.exp(-bound * time), ":", color=colour, linewidth=1)
        plot.set(title=f"L = {depth}", xlabel="time (step size x steps)", ylabel="mean of w1^2 - w2^2")
        plot.set_xscale("log")
        plot.set_xlim(left=0.02)
        plot.legend(fontsize=8)
    stochastic = max(abs(row["deviation %"]) for row in rows)
    exact = max(abs(row["deviation GD %"]) for row in rows)
    above = all(row["rate GD on O_R"] >= 0.995 * row["lower bound"] for row in rows)
    good = stochastic < tolerance and exact < 1 and above
    return Result(
        title="Noise balances the layers",
        claim="The gaps w_i^2 - w_j^2 decay exponentially, although the product is right from the start.",
        prediction="Rate 4 eta^2 A_ij along the path, never below 4 eta^(2L-2) (dotted); for L = 2 both "
        "are 4 eta^2.",
        measured=f"{replicates} replicates of S-SAM for each L and eta: fitted rates within "
        f"{stochastic:.2f}% of theory "
        f"(95% errors up to {max(100 * r['error (95%)'] / r['rate theory'] for r in rows):.2f}%); gradient "
        f"descent on O_R within {exact:.2f}%.",
        verdict=f"Rates agree with theory within {tolerance:g}% and respect the lower bound."
        if good
        else f"Some rate is off by more than {tolerance:g}%, or below the bound.",
        confirmed=good,
        rows=rows,
        figure=figure,
        notes=[
            "Where the weights are random, the theory's rate is the mean of 4 eta^2 A_ij weighted by the gap.",
            "Where deviations exceed the 95% errors they are real: the theory is about flow in continuous time, and "
            "steps of size lr leave a bias of that order. lr was lowered until it was small against 1%.",
        ],
    )
