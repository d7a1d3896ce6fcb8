"""One run: trains a network by a method and measures what it came to; and the cost of a step of each method.

A seed decides the first weights, the order of the batches, the wrong labels and the noise; all but the noise are
the same for every method, so that differences are paired. Gradients are counted where they are taken. Seconds are
of the training loop alone, of one thread: processor time, which a busy machine does not lengthen much, and the
clock's. Tests: tests/python/test_compare.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._data import DATA, Data
from ._deployment import survival, target_score
from ._measures import evaluate, finite, measure_sharpness, refresh_statistics, rounded_score
from ._method import Method
from ._models import make_model
from ._settings import Setting
from ._stepper import Stepper


@dataclass(frozen=True)
class Run:
    """A run to make: purpose "tune" (validation alone), "test" (all measures) or "robust" (the test score)."""

    purpose: str
    setting: Setting
    method: Method
    options: dict[str, float]
    seed: int
    epochs: int


@lru_cache(maxsize=2)
def _load(setting: Setting, seed: int) -> Data:
    data = setting.data_factory(setting, seed)
    if not isinstance(data, Data):
        raise TypeError(
            f"data {setting.data_name!r} gave {type(data).__name__}; expected torch_ssam.compare.Data."
        )
    return data


def load(setting: Setting, seed: int) -> Data:
    """The data of a seed; read once where it is the same for all."""
    same = setting.data in DATA and setting.wrong_labels == 0 if isinstance(setting.data, str) else False
    return _load(setting, 0 if same else seed)


def _points(epochs: int, count: int) -> set[int]:
    """The epochs after which a learning curve has a point: `count` of them, evenly, the last among them."""
    return {round(epochs * (i + 1) / count) for i in range(count)} - {0} | {epochs}


def train(run: Run) -> dict[str, Any]:
    """Makes the run; the numbers of its record.

    "seconds" is processor time and "wall seconds" the clock's; "gradients" counts examples times gradients. A
    run whose loss stops being finite is "diverged", ends there and is measured as it is.
    """
    setting, data = run.setting, load(run.setting, run.seed)
    model = make_model(setting.model_factory, data, run.seed)
    x, y = data.train
    steps = run.epochs * -(-len(x) // setting.batch)
    stepper = Stepper(run.method, model, run.options, steps, run.seed)
    counted = 0

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal counted
        counted += len(targets)
        return data.loss(model(inputs), targets)

    order = torch.Generator().manual_seed(run.seed)
    points = _points(run.epochs, setting.curve_points) if run.purpose == "test" else set()
    curve, seconds, wall, diverged = [], 0.0, 0.0, False
    model.train()
    for epoch in range(1, run.epochs + 1):
        start, start_wall = time.process_time(), time.perf_counter()
        losses = []
        for rows in torch.randperm(len(x), generator=order).split(setting.batch):  # type: ignore[no-untyped-call]
            losses.append(stepper.step(loss_of, x[rows], y[rows]))
        seconds += time.process_time() - start
        wall += time.perf_counter() - start_wall
        mean_loss = float(torch.stack(losses).mean())
        diverged = not np.isfinite(mean_loss)
        if epoch in points or (diverged and points):
            with stepper.clean():
                refresh_statistics(model, data, 2000)
                now = evaluate(model, data, data.validation)
            curve.append(
                {
                    "epoch": epoch,
                    "gradients": counted,
                    "seconds": seconds,
                    "training loss": mean_loss,
                    "validation score": now["score"],
                    "validation loss": now["loss"],
                }
            )
        if diverged:
            break
    stepper.finish()
    refresh_statistics(model, data)
    found: dict[str, Any] = {
        "seconds": seconds,
        "wall seconds": wall,
        "gradients": counted,
        "diverged": diverged,
        "validation score": evaluate(model, data, data.validation)["score"],
    }
    if setting.deployment and run.purpose == "tune":
        found["target score"] = target_score(model, data, data.validation)
    if run.purpose != "tune":
        found.update(evaluate(model, data, data.test))
    if run.purpose == "test":
        found["curve"] = curve
        found.update(_measures(model, data, setting))
    return finite(found)  # type: ignore[no-any-return]


def _measures(model: torch.nn.Module, data: Data, setting: Setting) -> dict[str, Any]:
    x, y = data.train
    on_training = evaluate(model, data, data.train)
    found: dict[str, Any] = {
        "training score": on_training["score"],
        "training loss": on_training["loss"],
        "quantised": {},
    }
    if data.correct is not None:
        wrong = y != data.correct
        if y.dim() == 1 and bool(wrong.any()):
            found["wrong labels learnt"] = evaluate(model, data, (x[wrong], y[wrong]))["score"]
    if setting.deployment:
        found["deployment"] = survival(model, data, data.test, setting.deployment_draws)
    for bits in setting.bits:
        found["quantised"][str(bits)] = rounded_score(model, data, bits)
    found.update(
        measure_sharpness(
            model, data, setting.sharpness_std, setting.sharpness_filter_std, setting.sharpness_draws
        )
    )
    return found


def step_seconds(setting: Setting, repeats: int = 9) -> dict[str, float]:
    """Processor seconds that one step of each method takes: the median over rounds in which all take turns.

    Turns, because a machine's speed drifts: what matters is the ratio to SGD's step.
    """
    data = load(setting, 0)
    x, y = data.train[0][: setting.batch], data.train[1][: setting.batch]
    workers = []
    for method in setting.chosen_methods():
        model = make_model(setting.model_factory, data, 0)
        model.train()
        stepper = Stepper(method, model, setting.grid(method)[0], 4 * repeats, 0)

        def loss_of(inputs: Tensor, targets: Tensor, model: torch.nn.Module = model) -> Tensor:
            return data.loss(model(inputs), targets)

        workers.append((method.name, stepper, loss_of))
    times: dict[str, list[float]] = {name: [] for name, *_ in workers}
    for _ in range(repeats):
        for name, stepper, loss_of in workers:
            start = time.process_time()
            for _ in range(2):
                stepper.step(loss_of, x, y)
            times[name].append((time.process_time() - start) / 2)
    return {name: float(np.median(values[1:])) for name, values in times.items()}
