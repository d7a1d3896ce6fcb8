"""A PAC-Bayes certificate for classifiers that S-SAM trained on images, with the test error beside it.

    python examples/python/certificate.py                 # Fashion-MNIST: all classes, then two
    python examples/python/certificate.py --quick         # a minute, on fewer images; looser bounds

The training images are split in two. S-SAM trains the prior's mean w_0 on the first part; from there it goes on,
briefly, on the second, to the posterior's mean w. The bound is about the second part. How long it goes on trades
empirical risk against KL. The test images are looked at once, at the end, and no choice depends on them.
Tests: tests/python/test_certificate.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import DataError, Images, load_images
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import torch_ssam
from torch_ssam import pac_bayes
from torch_ssam.compare import plain_cnn

# Fashion-MNIST: T-shirts, pullovers, coats and shirts against sandals, sneakers, bags and boots.
TOPS, FOOTWEAR_AND_BAGS = (0, 2, 4, 6), (5, 7, 8, 9)


@dataclass(frozen=True)
class Problem:
    name: str
    classes: int
    train: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor


def ten(images: Images) -> Problem:
    return Problem(
        f"{images.name}, all {images.classes} classes",
        images.classes,
        torch.from_numpy(images.train_images),
        torch.from_numpy(images.train_labels),
        torch.from_numpy(images.test_images),
        torch.from_numpy(images.test_labels),
    )


def binary(images: Images) -> Problem:
    def chosen(pixels: Any, labels: Any) -> tuple[Tensor, Tensor]:
        keep = np.isin(labels, TOPS + FOOTWEAR_AND_BAGS)
        return torch.from_numpy(pixels[keep]), torch.from_numpy(
            np.isin(labels[keep], FOOTWEAR_AND_BAGS).astype(np.int64)
        )

    return Problem(
        f"{images.name}, classes {TOPS} against {FOOTWEAR_AND_BAGS}",
        2,
        *chosen(images.train_images, images.train_labels),
        *chosen(images.test_images, images.test_labels),
    )


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    options: argparse.Namespace,
    *,
    epochs: int,
    lr: float,
    cosine: bool,
    seed: int,
    title: str,
) -> None:
    """Stock S-SAM with momentum 0.9."""
    optimizer = torch_ssam.SSAM(
        model.parameters(), lr=lr, noise_std=options.train_noise, momentum=0.9, keep_perturbed=True, seed=seed
    )
    steps = epochs * -(-len(x) // options.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
    order = torch.Generator().manual_seed(seed)
    optimizer.train()
    with tqdm(total=steps, desc=title, unit="step", disable=options.quiet) as bar:
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=order).split(options.batch):
                optimizer.zero_grad()
                cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
                if schedule is not None:
                    schedule.step()
                bar.update()
    optimizer.eval()


@torch.no_grad()
def test_error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the examples that the model gets wrong."""
    wrong = sum(int((model(a).argmax(1) != b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return wrong / len(y)


def certify(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    order = torch.randperm(len(problem.train), generator=torch.Generator().manual_seed(options.seed))
    if options.limit is not None:
        order = order[: options.limit]
    cut = round(options.prior_share * len(order))
    first, second = order[:cut], order[cut:]
    # Constants of the preprocessing are part of the prior: from the first part alone.
    mean, std = problem.train[first].mean(), problem.train[first].std()

    def scaled(pixels: Tensor) -> Tensor:
        return ((pixels - mean) / std).unsqueeze(1).contiguous(memory_format=torch.channels_last)

    torch.manual_seed(options.seed)
    prior = plain_cnn(problem.train.shape[1], problem.train.shape[2], problem.classes, options.channels)
    x, y = scaled(problem.train[second]), problem.labels[second]
    train(
        prior,
        scaled(problem.train[first]),
        problem.labels[first],
        options,
        epochs=options.epochs,
        lr=options.lr,
        cosine=True,
        seed=options.seed,
        title="prior",
    )
    model = copy.deepcopy(prior)
    train(
        model,
        x,
        y,
        options,
        epochs=options.fine_tune,
        lr=options.fine_tune_lr,
        cosine=False,
        seed=options.seed + 1,
        title="posterior",
    )
    certificate = pac_bayes.certify(
        model,
        prior,
        (x, y),
        noise_std=options.noise_std,
        delta=options.delta,
        draws=options.draws,
        seed=options.seed,
        progress=None if options.quiet else True,
    )
    test = scaled(problem.test), problem.test_labels
    gibbs = pac_bayes.gibbs_risk(
        model, test, certificate.noise_std, draws=options.draws // 4, seed=options.seed + 1
    )
    result = {
        "data": problem.name,
        "prior examples": cut,
        "prior test error": test_error(prior, *test),
        "test error": test_error(model, *test),
        "test error, randomised": gibbs.mean,
        "seconds": time.perf_counter() - start,
        "certificate": asdict(certificate),
    }
    print(f"\n{problem.name}; prior from {cut} images, {certificate.n} for the bound\n{certificate}")
    clean, bound = result["test error"], certificate.bound
    print(f"Measured on {len(test[1])} test images:")
    print(f"  error of the clean weights w    {clean:.4f}  (the prior's: {result['prior test error']:.4f})")
    print(f"  error of the randomised ones    {gibbs.mean:.4f}")
    print(f"  bound minus the two             {bound - clean:+.4f}, {bound - gibbs.mean:+.4f}")
    print(f"  time                            {result['seconds']:.0f} s", flush=True)
    return result


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add: Callable[..., Any] = parser.add_argument
    add("--data", type=Path, help="folder with MNIST's four idx files; default Debian's Fashion-MNIST")
    add(
        "--task",
        choices=("ten", "binary", "both"),
        default="both",
        help="binary needs Fashion-MNIST's classes",
    )
    add(
        "--prior-share",
        type=float,
        default=0.5,
        help="share of the training images that the prior is trained on",
    )
    add("--limit", type=int, help="use so many training images; default all")
    add("--epochs", type=int, default=12, help="of the prior")
    add("--lr", type=float, default=0.05, help="of the prior, with a cosine")
    add("--fine-tune", type=int, default=1, help="epochs from the prior to the posterior")
    add("--fine-tune-lr", type=float, default=0.001, help="of the posterior; a larger one buys risk with KL")
    add("--batch", type=int, default=100, help="examples of a gradient")
    add("--channels", type=int, default=32, help="of the first convolution; the second has twice as many")
    add("--train-noise", type=float, default=0.03, help="noise_std of S-SAM")
    add(
        "--noise-std",
        type=float,
        nargs="+",
        default=[0.03, 0.02, 0.015, 0.01],
        help="the posterior's, to choose from",
    )
    add("--delta", type=float, default=0.05, help="probability that the bound fails")
    add("--draws", type=int, default=20_000, help="of noise, with 32 images each")
    add("--seed", type=int, default=0, help="of everything random")
    add("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    add("--out", type=Path, help="file for all numbers, JSON")
    add("--quiet", action="store_true", help="no progress bars")
    add("--quick", action="store_true", help="8000 images, 3 epochs, 2000 draws")
    options = parser.parse_args(arguments)
    if options.quick:
        options.limit, options.epochs, options.draws = 8000, 3, 2000
    if not 0 < options.prior_share < 1:
        parser.error(f"--prior-share is {options.prior_share:g}; expected a number between 0 and 1")
    for name in ("epochs", "draws", "batch", "channels", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; expected at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    try:
        images = load_images(options.data)
    except DataError as error:
        raise SystemExit(f"certificate.py: {error}") from None
    if options.task != "ten" and images.classes != 10:
        raise SystemExit(f"certificate.py: {images.name} has {images.classes} classes; pass --task ten.")
    wanted = {"ten": (ten,), "binary": (binary,), "both": (ten, binary)}[options.task]
    results = [certify(make(images), options) for make in wanted]
    if options.out is not None:
        machine = f"{platform.machine()}, {options.threads} threads, PyTorch {torch.__version__}"
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(
            json.dumps({"command": sys.argv, "machine": machine, "results": results}, indent=1, default=str)
        )
    return results


if __name__ == "__main__":
    main()
