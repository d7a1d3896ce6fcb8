"""Part (b): SGD, S-SAM and SAM on a small convolutional network where 30% of the training labels are wrong.

Each method is tuned over a grid of the same size on one validation split, then trained with fresh seeds. A
seed decides the wrong labels, the initial weights and the order of the batches, the same for every method, so
that differences are paired. SGD's grid holds its own regulariser, weight decay. Sharpness is
E L(w + xi) - L(w) over antithetic Gaussian noise of one size, the same draws for all.
Tests: tests/python/test_demo.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import Images, load_images
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import torch_ssam
from torch_ssam.compare import SAM, estimate, plain_cnn, wrong_labels

METHODS = ("SGD", "S-SAM", "SAM")
# What each grid varies beside the learning rate. S-SAM and SAM have the smallest of SGD's weight decays.
KNOBS = {"SGD": "weight_decay", "S-SAM": "noise_std", "SAM": "rho"}


@dataclass(frozen=True)
class Settings:
    folder: Path | None = None
    train: int = 4000
    validation: int = 2000
    wrong_labels: float = 0.3
    epochs: int = 10
    batch: int = 100
    seeds: int = 5
    rates: tuple[float, ...] = (0.03, 0.1)
    weight_decays: tuple[float, ...] = (5e-4, 3e-3, 1e-2)
    noise_stds: tuple[float, ...] = (0.015, 0.03, 0.06)
    rhos: tuple[float, ...] = (0.05, 0.1, 0.2)
    sharpness_std: float = 0.03
    sharpness_pairs: int = 8

    def quick(self) -> Settings:
        return replace(
            self,
            train=1500,
            validation=500,
            epochs=2,
            seeds=2,
            rates=(0.1,),
            weight_decays=self.weight_decays[:2],
            noise_stds=self.noise_stds[:2],
            rhos=self.rhos[:2],
            sharpness_pairs=2,
        )

    def grid(self, method: str) -> list[dict[str, float]]:
        values = {"SGD": self.weight_decays, "S-SAM": self.noise_stds, "SAM": self.rhos}[method]
        common = {} if method == "SGD" else {"weight_decay": self.weight_decays[0]}
        return [{"lr": lr, KNOBS[method]: value, **common} for lr in self.rates for value in values]


@dataclass(frozen=True)
class Task:
    method: str
    options: dict[str, float]
    seed: int
    settings: Settings
    test: bool  # whether to look at the test images; tuning does not


@dataclass(frozen=True)
class Split:
    train: Tensor
    labels: Tensor  # as given
    correct: Tensor
    validation: Tensor
    validation_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int


@lru_cache(maxsize=1)
def _loaded(folder: Path | None) -> Images:
    return load_images(folder)


def split(settings: Settings, seed: int) -> Split:
    """Training and validation images, the same for all seeds; wrong labels, of other classes, by seed."""
    images = _loaded(settings.folder)
    order = np.random.default_rng(0).permutation(len(images.train_images))
    n = min(settings.train, len(order) * 4 // 5)
    chosen, held_out = order[:n], order[n : n + settings.validation]
    mean, std = images.train_images[chosen].mean(), images.train_images[chosen].std()

    def scaled(pixels: Any) -> Tensor:
        return (
            torch.from_numpy((pixels - mean) / std).unsqueeze(1).contiguous(memory_format=torch.channels_last)
        )

    correct = images.train_labels[chosen]
    labels = wrong_labels(correct, images.classes, settings.wrong_labels, seed)
    return Split(
        scaled(images.train_images[chosen]),
        torch.from_numpy(labels),
        torch.from_numpy(correct),
        scaled(images.train_images[held_out]),
        torch.from_numpy(images.train_labels[held_out]),
        scaled(images.test_images),
        torch.from_numpy(images.test_labels),
        images.classes,
    )


def make_optimizer(
    method: str, model: nn.Module, options: dict[str, float], seed: int
) -> torch.optim.Optimizer:
    if method == "S-SAM":
        return torch_ssam.SSAM(model.parameters(), momentum=0.9, keep_perturbed=True, seed=seed, **options)  # type: ignore[arg-type]
    if method == "SAM":
        return SAM(model.parameters(), momentum=0.9, fused=True, **options)
    return torch.optim.SGD(model.parameters(), momentum=0.9, fused=True, **options)  # type: ignore[arg-type]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return 100.0 * right / len(labels)


@torch.no_grad()
def mean_loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float(cross_entropy(model(images), labels))


def average_sharpness(model: nn.Module, images: Tensor, labels: Tensor, settings: Settings) -> float:
    """E L(w + xi) - L(w) by Monte Carlo over pairs +-xi; seed 0: every network sees the same noise."""
    noise = torch_ssam.WeightNoise(model.parameters(), settings.sharpness_std, seed=0)
    losses = []
    for _ in range(settings.sharpness_pairs):
        with noise.applied(advance=False):
            losses.append(mean_loss(model, images, labels))
        with noise.applied(negate=True):
            losses.append(mean_loss(model, images, labels))
    return float(np.mean(losses)) - mean_loss(model, images, labels)


def train(task: Task) -> dict[str, float]:
    """One run: seconds of CPU for the training loop alone, and what the end weights do."""
    settings, data = task.settings, split(task.settings, task.seed)
    torch.manual_seed(task.seed)
    model = plain_cnn(data.train.shape[2], data.train.shape[3], data.classes)
    optimizer = make_optimizer(task.method, model, task.options, task.seed)
    batches = -(-len(data.train) // settings.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * batches)
    order = torch.Generator().manual_seed(task.seed)
    start = time.process_time()
    if isinstance(optimizer, torch_ssam.SSAM):
        optimizer.train()  # from here the weights are noisy, and the loop is that of any optimizer
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(data.train), generator=order).split(settings.batch):
            x, y = data.train[batch], data.labels[batch]

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                optimizer.zero_grad()
                loss = cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)  # type: ignore[arg-type]
            schedule.step()
    if isinstance(optimizer, torch_ssam.SSAM):
        optimizer.eval()
    result = {"seconds": time.process_time() - start}
    result["validation accuracy"] = accuracy(model, data.validation, data.validation_labels)
    if task.test:
        wrong = data.labels != data.correct
        some = slice(0, 1000)
        result["test accuracy"] = accuracy(model, data.test, data.test_labels)
        result["wrong labels learnt"] = accuracy(model, data.train[wrong], data.labels[wrong])
        result["training loss"] = mean_loss(model, data.train[some], data.labels[some])
        result["sharpness"] = average_sharpness(model, data.train[some], data.labels[some], settings)
    return result


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval by Student's t (infinite for one value)."""
    return estimate(values)[:2]


def run(
    settings: Settings,
    run_all: Callable[[Callable[[Task], dict[str, float]], list[Task], str], list[dict[str, float]]],
) -> dict[str, Any]:
    """Tunes, then trains with fresh seeds; returns numbers, as JSON has them."""
    tuning_seed = 1000
    trials = [
        Task(method, options, tuning_seed, settings, test=False)
        for method in METHODS
        for options in settings.grid(method)
    ]
    scores = run_all(train, _longest_first(trials), "images: tuning on the validation split")
    by_trial = dict(zip(map(_key, _longest_first(trials)), scores, strict=True))
    methods: dict[str, Any] = {}
    for method in METHODS:
        grid = [(t.options, by_trial[_key(t)]["validation accuracy"]) for t in trials if t.method == method]
        methods[method] = {"grid": grid, "chosen": max(grid, key=lambda entry: entry[1])[0]}
    finals = _longest_first(
        [
            Task(m, methods[m]["chosen"], seed, settings, test=True)
            for m in METHODS
            for seed in range(settings.seeds)
        ]
    )
    results = run_all(train, finals, "images: the chosen settings")
    for method in METHODS:
        methods[method]["runs"] = [r for t, r in zip(finals, results, strict=True) if t.method == method]
    data = _loaded(settings.folder)
    actual = split(settings, 0)
    return {
        "data": data.name,
        "settings": {
            **asdict(settings),
            "folder": str(settings.folder) if settings.folder else None,
            "train": len(actual.train),
            "validation": len(actual.validation),
        },
        "methods": methods,
    }


def _longest_first(tasks: list[Task]) -> list[Task]:
    """SAM's runs take twice as long: first, so that no core waits at the end."""
    return sorted(tasks, key=lambda task: task.method != "SAM")


def _key(task: Task) -> tuple[str, tuple[tuple[str, float], ...]]:
    return task.method, tuple(sorted(task.options.items()))
