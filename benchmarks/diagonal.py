"""DiagonalLinear's forward and backward against the better of two ways to write it in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import torch_ssam

from .harness import Timing, alternate

SHAPES = [(1_000_000, 1), (100_000, 32), (1000, 1024), (100, 64)]
DEPTHS = [2, 3, 8]


def _chain(x: Tensor, weight: Tensor) -> Tensor:
    y = x
    for layer in weight:
        y = y * layer
    return y


def _prod(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight.prod(0)


def _both(forward: Callable[[], Tensor], x: Tensor, weight: Tensor, grad: Tensor) -> Callable[[], object]:
    def call() -> None:
        x.grad = weight.grad = None
        forward().backward(grad)

    return call


def run(features: int, batch: int, depth: int, rounds: int = 15) -> Timing:
    torch.manual_seed(0)
    layer = torch_ssam.DiagonalLinear(features, depth)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
    x = torch.randn(batch, features, requires_grad=True)
    grad = torch.randn(batch, features)
    weight = layer.weight
    # What forward and backward must move: x twice, grad, y, grad_x; the weights twice and their gradient.
    words = 5 * batch * features + 3 * depth * features
    source, target = torch.randn(words // 2), torch.empty(words // 2)
    sides = {
        "ours": _both(lambda: layer(x), x, weight, grad),
        "x*w1*...*wL": _both(lambda: _chain(x, weight), x, weight, grad),
        "x*W.prod(0)": _both(lambda: _prod(x, weight), x, weight, grad),
        "copy": lambda: target.copy_(source),
    }
    return alternate(sides, rounds)


def table(rounds: int = 15) -> list[str]:
    lines = [
        "| features, batch | depth | best of PyTorch / ours | ours / copy of the same bytes |",
        "|---|---|---|---|",
    ]
    for features, batch in SHAPES:
        for depth in DEPTHS:
            t = run(features, batch, depth, rounds)
            best = min(("x*w1*...*wL", "x*W.prod(0)"), key=t.median)
            lines.append(
                f"| {features}, {batch} | {depth} | {t.ratio(best, 'ours'):.1f} | {t.ratio('ours', 'copy'):.2f} |"
            )
    return lines
