"""Which form of noise that sets itself is best: targets, measures and speeds of `schedules.AdaptiveNoiseStd`.

Forms: one run of the tuning seed for each form and network, scored on the validation split, as in the study of deployment
(docs/results_deployment.md), whose records it reads and adds to. Seeds: the best two of them on the test split, 5 seeds. Noisy:
wrong labels beside fixed noise. The forms stood here before the first run. Results: docs/results_adaptive_noise.md.

    python -m benchmarks.adaptive_noise --out out/compare [--stage forms seeds noisy]
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torch_ssam.compare import METHODS, SETTINGS, Method, Setting
from torch_ssam.compare._compare import TUNING_SEED
from torch_ssam.compare._records import Job, Store, execute
from torch_ssam.compare._training import Run

#: What is tried: the target, and options of AdaptiveNoiseStd. The first three are the study's own grid.
FORMS: dict[str, tuple[float, dict[str, Any]]] = {
    "KL 0.05": (0.05, {}),
    "KL 0.1": (0.1, {}),
    "KL 0.02": (0.02, {}),
    "KL 0.2": (0.2, {}),
    "KL 0.1, every 5": (0.1, {"every": 5}),
    "KL 0.1, every 20": (0.1, {"every": 20}),
    "KL 0.1, every 20, rate 0.2": (0.1, {"every": 20, "rate": 0.2}),
    "KL 0.1, rate 0.2": (0.1, {"rate": 0.2}),
    "KL 0.1, rate 0.05": (0.1, {"rate": 0.05}),
    "MSE 0.05": (0.05, {"measure": "mse"}),
    "MSE 0.1": (0.1, {"measure": "mse"}),
    "MSE 0.2": (0.2, {"measure": "mse"}),
}
#: Networks, and the learning rates that validation chose for KL in the study of deployment.
NETWORKS = {"deploy-mlp": 0.03, "deploy-cnn-bn": 0.1, "deploy-vit": 3e-3}
#: The best two of the tuning seed by the mean over the networks, which are run with 5 seeds.
BEST = ("KL 0.1", "MSE 0.1")
#: 30% wrong labels, residual network: no noise, fixed noise that rises over half of the steps, noise that sets itself.
NOISY = replace(
    SETTINGS["deploy-resnet"],
    name="deploy-resnet-noisy",
    wrong_labels=0.3,
    weight_decay=0.003,
    epochs=20,
    methods=("sgd", "ssam-deploy", "ssam-adaptive"),
)


STAGES = ("forms", "seeds", "noisy")
#: Of a test run: the disturbances that are tabled, with the step of the least squared error and statistics gathered anew.
TABLED = ("bits 3 mse anew", "bits 2 mse anew", "noise 0.2 anew", "noise 0.3 anew")


def adaptive(setting: Setting) -> Method:
    """The study's method of noise that sets itself for this setting."""
    return METHODS["adamw-adaptive" if "adamw-adaptive" in setting.methods else "ssam-adaptive"]


def form_run(setting: Setting, lr: float, form: str, purpose: str = "tune", seed: int = TUNING_SEED) -> Run:
    """The run of a form, on the tuning seed unless another is given."""
    target, looks = FORMS[form]
    method = adaptive(setting)
    tried = replace(method, options={**method.options, **looks})
    decay = {} if "weight_decay" in method.options else {"weight_decay": setting.weight_decay}
    options = {"lr": lr, "target": target, **decay}
    return Run(purpose, setting, tried, options, seed, tried.epochs(setting.epochs))


def noisy_runs(purpose: str, seeds: range, only: tuple[str, ...] = ()) -> list[tuple[str, Run]]:
    """On wrong labels: without noise, fixed noise and noise that sets itself, by name."""
    runs = []
    base = {"lr": 0.1, "weight_decay": NOISY.weight_decay}
    clip = {"weight_clip": 2.0}
    for seed in seeds:
        points: list[tuple[str, Method, dict[str, float]]] = [
            ("clipped, no noise", METHODS["sgd-clip"], {**base, **clip})
        ]
        points += [
            (f"fixed {std:g}", METHODS["ssam-deploy"], {**base, "noise_std": std, **clip})
            for std in (0.05, 0.1, 0.2, 0.3)
        ]
        points += [
            (f"KL {target:g}", METHODS["ssam-adaptive"], {**base, "target": target})
            for target in (0.02, 0.05, 0.1, 0.2)
        ]
        runs += [
            (name, Run(purpose, NOISY, method, options, seed, NOISY.epochs))
            for name, method, options in points
            if not only or name in only
        ]
    return runs


def main() -> int:
    made = argparse.ArgumentParser(allow_abbrev=False, description="Forms of noise that sets itself.")
    made.add_argument("--out", type=Path, default=Path("out/compare"), help="folder of records and CSV")
    made.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES), help="what to run")
    made.add_argument("--only", default="", help="names of the noisy stage's 5 seeds, with commas between")
    options = made.parse_args()
    torch.set_num_threads(1)
    runs: list[tuple[str, str, Run]] = []
    if "forms" in options.stage:
        for name, lr in NETWORKS.items():
            setting = SETTINGS[name]
            runs += [(name, form, form_run(setting, lr, form)) for form in FORMS]
    if "seeds" in options.stage:
        for name, lr in NETWORKS.items():
            setting = SETTINGS[name]
            runs += [
                (name, form, form_run(setting, lr, form, "test", seed))
                for form in BEST
                for seed in range(setting.seeds)
            ]
    if "noisy" in options.stage:
        runs += [
            (NOISY.name, form, run) for form, run in noisy_runs("tune", range(TUNING_SEED, TUNING_SEED + 1))
        ]
        if options.only:
            chosen = tuple(options.only.split(","))
            runs += [(NOISY.name, form, run) for form, run in noisy_runs("test", range(5), chosen)]
    columns = ["setting", "form", "purpose", "seed", "validation score", "target score", "score", "seconds"]
    with (options.out / "adaptive_noise.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow([*columns, *TABLED])
        for name, form, run in runs:
            store = Store(options.out / name)
            job = Job(run.setting, store.folder, run)
            if not job.done():
                execute(job)
            result = store.result(run)
            assert result is not None
            numbers = [result.get(column) for column in columns[4:]]
            numbers += [result.get("deployment", {}).get(name) for name in TABLED]
            table.writerow([name, form, run.purpose, run.seed, *numbers])
            file.flush()
            print(name, form, run.purpose, run.seed, *numbers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
