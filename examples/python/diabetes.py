"""Part (a): sparse linear regression with a diagonal linear network, S-SAM beside SGD and beside the theory.

On whitened data each coordinate h is a problem of its own with target w*_h = E y x_h. SGD ends at w*, least
squares. S-SAM balances the layers, |w_1h| = ... = |w_Lh|, and ends at the shrinkage-thresholding of w*
(arXiv 2503.11891, Theorem 3.1; docs/theory.md): small coefficients become 0. Tests: tests/python/test_demo.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from data import Regression, load_whitened_diabetes
from torch.nn.functional import mse_loss

import torch_ssam
from torch_ssam import theory

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    noise_std: float = 0.35
    depths: tuple[int, ...] = (2, 3)
    # Every layer starts at this value, the last at 0: a balanced start with a positive product cannot reach a
    # negative target (docs/theory.md: signs); 0 lets each coordinate choose its sign.
    starts: tuple[float, ...] = (0.8, 1.0, 1.2)
    lr: float = 0.03
    batch: int = 34
    epochs: int = 300
    decay_every: int = 30  # epochs between steps of harmonic_lr: lr, lr/2, lr/3, ...

    def quick(self) -> Settings:
        return Settings(starts=(1.0,), epochs=60, decay_every=10)


@dataclass(frozen=True)
class Task:
    method: str
    depth: int
    start: float
    seed: int
    settings: Settings


@dataclass
class Run:
    """time: sums of learning rates; gap: mean over coordinates of w_1^2 - w_L^2 at each of them."""

    task: Task
    coefficients: Array
    time: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)


def initial_layers(depth: int, start: float) -> list[float]:
    return [start] * (depth - 1) + [0.0]


def train(task: Task) -> Run:
    """One run. Coefficients are averaged over the second half of the steps, against the noise of each."""
    problem, s = load_whitened_diabetes(), task.settings
    x, y = torch.from_numpy(problem.inputs), torch.from_numpy(problem.outputs)
    model = torch_ssam.DiagonalLinear(
        x.shape[1],
        task.depth,
        readout="sum",
        init_scale=initial_layers(task.depth, task.start),
        dtype=torch.float64,
    )
    optimizer: torch.optim.Optimizer
    if task.method == "S-SAM":
        optimizer = torch_ssam.SSAM(
            model.parameters(), lr=s.lr, noise_std=s.noise_std, keep_perturbed=True, seed=task.seed
        )
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=s.lr)
    schedule = torch_ssam.schedules.harmonic_lr(optimizer)
    order = torch.Generator().manual_seed(task.seed)
    average, time = torch.zeros(x.shape[1], dtype=torch.float64), 0.0
    averaged_epochs = s.epochs - s.epochs // 2
    run = Run(task, np.empty(0))
    for epoch in range(s.epochs):
        run.time.append(time)
        run.gap.append(float(model.balance_gaps()[0, -1].mean().detach()))
        _set_mode(optimizer, training=True)
        for batch in torch.randperm(len(x), generator=order).split(s.batch):
            optimizer.zero_grad()
            mse_loss(model(x[batch]), y[batch]).backward()
            optimizer.step()
            time += optimizer.param_groups[0]["lr"]
        _set_mode(optimizer, training=False)
        if epoch >= s.epochs - averaged_epochs:
            average += model.product().detach() / averaged_epochs
        if (epoch + 1) % s.decay_every == 0:
            schedule.step()
    run.coefficients = average.numpy()
    return run


def _set_mode(optimizer: Any, training: bool) -> None:
    """keep_perturbed: noisy weights to train on, clean ones to look at. torch.optim.SGD has neither."""
    if isinstance(optimizer, torch_ssam.SSAM):
        optimizer.train(training)


def expected_gap(problem: Regression, depth: int, start: float, settings: Settings, times: Array) -> Array:
    """Mean over coordinates of w_1^2 - w_L^2 in theory: its rate is 4 eta^2 A_1L on the expected path.

    The weights, which A_1L needs for depth > 2, follow gradient descent on O_R.
    """
    step = 0.02
    weights = np.repeat(np.array(initial_layers(depth, start))[:, None], len(problem.target), 1)
    log_gap = np.zeros(len(problem.target))
    grid, means = [0.0], [start**2]
    while grid[-1] < times[-1]:
        log_gap -= step * theory.balancing_rate(weights, settings.noise_std)[0, -1]
        weights = weights - step * theory.regularized_gradient(weights, problem.target, settings.noise_std)
        grid.append(grid[-1] + step)
        means.append(float(start**2 * np.exp(log_gap).mean()))
    return np.interp(times, grid, means)


def decay_rate(times: Array, gap: Array, until: float = 0.1) -> float:
    """Rate of the gap's exponential decay: least squares while it is above `until` times its start."""
    below = np.flatnonzero(gap < until * gap[0])
    end = max(int(below[0]) if len(below) else len(gap), 2)
    return -float(np.polyfit(times[:end], np.log(np.maximum(gap[:end], 1e-12)), 1)[0])


def run(
    settings: Settings, run_all: Callable[[Callable[[Task], Run], list[Task], str], list[Run]]
) -> dict[str, Any]:
    """All runs; returns numbers, as JSON has them."""
    problem = load_whitened_diabetes()
    tasks = [
        Task(method, depth, start, seed, settings)
        for depth in settings.depths
        for method in ("S-SAM", "SGD")
        for seed, start in enumerate(settings.starts)
    ]
    runs = run_all(train, tasks, "diabetes: S-SAM and SGD")
    result: dict[str, Any] = {
        "names": problem.names,
        "target": problem.target.tolist(),
        "noise_std": settings.noise_std,
        "depths": {},
    }
    for depth in settings.depths:
        limit = theory.limit_product(problem.target, settings.noise_std, depth)
        found = {
            method: np.array(
                [r.coefficients for r in runs if r.task.depth == depth and r.task.method == method]
            )
            for method in ("S-SAM", "SGD")
        }
        curves = []
        for r in runs:
            if r.task.depth != depth:
                continue
            times, gap = np.array(r.time), np.array(r.gap)
            curve = {"method": r.task.method, "start": r.task.start, "time": r.time, "gap": r.gap}
            if r.task.method == "S-SAM":
                theory_gap = expected_gap(problem, depth, r.task.start, settings, times)
                curve["theory"] = theory_gap.tolist()
                curve["rates"] = [decay_rate(times, gap), decay_rate(times, theory_gap)]
            curves.append(curve)
        result["depths"][str(depth)] = {
            "threshold": theory.existence_threshold(settings.noise_std, depth),
            "theory": np.asarray(limit).tolist(),
            "S-SAM": found["S-SAM"].mean(0).tolist(),
            "SGD": found["SGD"].mean(0).tolist(),
            "deviation S-SAM": float(np.abs(found["S-SAM"] - limit).max()),
            "deviation SGD": float(np.abs(found["SGD"] - problem.target).max()),
            "rate bound": theory.balancing_rate_bound(settings.noise_std, depth),
            "curves": curves,
        }
    return result
