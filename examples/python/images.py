"""Part (b): SGD, S-SAM and SAM on a small convolutional network where 30% of the training labels are wrong.

A setting of torch_ssam.compare, which tunes each method over a grid of the same size and then runs fresh seeds. SGD's
grid holds its own regulariser, weight decay; S-SAM and SAM have the smallest of SGD's. SAM has all epochs here, and so
twice the gradients and the time. Finished runs are recorded in out/noisy-labels and are not made again.
Tests: tests/python/test_demo.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from torch_ssam.compare import Method, Setting, compare, estimate, rich_bar

COMPARED = (
    Method("sgd", "SGD", "sgd", "weight_decay", (5e-4, 3e-3, 1e-2)),
    Method("ssam", "S-SAM", "ssam", "noise_std", (0.015, 0.03, 0.06)),
    Method("sam", "SAM", "sam", "rho", (0.05, 0.1, 0.2), gradients=2, budget=2.0),
)
METHODS = tuple(method.title for method in COMPARED)
# What each grid varies beside the learning rate.
KNOBS = {method.title: method.knob for method in COMPARED}


def setting(folder: Path | None = None) -> Setting:
    """The comparison; a folder of idx files in place of Fashion-MNIST."""
    return Setting(
        "noisy-labels",
        data="fashion-mnist",
        model="cnn",
        folder=folder,
        train=4000,
        validation=2000,
        wrong_labels=0.3,
        epochs=10,
        methods=COMPARED,
        robustness_seeds=0,
        sharpness_std=0.03,
        sharpness_draws=8,
        bits=(),
        curve_points=1,
    )


def quick(full: Setting) -> Setting:
    """Less data, fewer epochs, a grid of two, two seeds."""
    return replace(
        full,
        train=1500,
        validation=500,
        epochs=2,
        seeds=2,
        rates=(0.1,),
        adam_rates=(1e-3,),
        knob_values=2,
        sharpness_draws=2,
    )


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval by Student's t (infinite for one value)."""
    return estimate(values)[:2]


def run(chosen: Setting, out: Path, workers: int, console: Console) -> dict[str, Any]:
    """Tunes, then trains with fresh seeds; returns numbers, as JSON has them."""
    with rich_bar("images: tuning, then the test runs", console) as report:
        (found,) = compare(chosen, out=out, workers=workers, stages=("tuning", "test"), progress=report)
    methods: dict[str, Any] = {}
    for method in found.methods:
        grid = [(options, result["validation score"]) for options, result in found.grid(method) if result]
        runs = [{**result, "test accuracy": result["score"]} for result in found.results(method).values()]
        methods[method.title] = {"grid": grid, "chosen": found.chosen(method), "runs": runs}
    return {
        "data": found.data.name,
        "settings": {
            "train": len(found.data.train[1]),
            "validation": len(found.data.validation[1]),
            **{
                name: getattr(chosen, name)
                for name in ("wrong_labels", "epochs", "batch", "seeds", "sharpness_std")
            },
        },
        "methods": methods,
    }
