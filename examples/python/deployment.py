"""Part (c): SGD and S-SAM once each, then their weights rounded to few bits and written into noisy cells.

A setting of torch_ssam.compare with the options that its study chose (docs/results_deployment.md), so that nothing is
tuned here. Finished runs are recorded in out/deployment and are not made again. Tests: tests/python/test_demo.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from torch_ssam.compare import METHODS, Comparison, Setting, compare, rich_bar

COMPARED = ("sgd", "sgd-clip", "ssam-deploy")


def setting(folder: Path | None = None) -> Setting:
    """The comparison; a folder of idx files in place of Fashion-MNIST."""
    return Setting(
        "deployment",
        data="fashion-mnist",
        model="cnn-bn",
        folder=folder,
        test=2000,
        epochs=8,
        rates=(0.1,),
        adam_rates=(1e-3,),
        knob_values=1,
        methods=COMPARED,
        seeds=2,
        robustness_seeds=0,
        sharpness_draws=2,
        bits=(),
        deployment=True,
        deployment_draws=2,
        curve_points=1,
    )


def quick(full: Setting) -> Setting:
    """Less data, fewer epochs."""
    return replace(full, train=1000, validation=300, test=300, epochs=2)


def run(chosen: Setting, out: Path, workers: int, console: Console) -> Comparison:
    """Trains and measures."""
    with rich_bar("deployment: training, then rounding and noise", console) as report:
        (found,) = compare(chosen, out=out, workers=workers, stages=("tuning", "test"), progress=report)
    return found


def numbers(found: Comparison) -> dict[str, Any]:
    """As JSON has them."""
    return {METHODS[name].title: list(found.results(METHODS[name], "target").values()) for name in COMPARED}
