"""Whole training steps, forward and backward included: what a user gains or pays by changing the optimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_ssam

from .harness import Timing, alternate

LR, STD, MOMENTUM = 0.01, 0.01, 0.9


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut (He et al., arXiv 1512.03385)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.first(x)))
        return F.relu(self.norm2(self.second(y)) + self.shortcut(x))


def resnet18() -> nn.Sequential:
    """ResNet-18 as it is used on 32 x 32 images: 11M parameters in 62 tensors."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inside = 64
    for outside, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(inside, outside, stride), Block(outside, outside, 1)]
        inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def _resnet_sides() -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    x, y = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))

    def stock(make: Callable[[nn.Module], torch.optim.Optimizer]) -> Callable[[], object]:
        model = resnet18()
        opt = make(model)
        if isinstance(opt, torch_ssam.SSAM):
            opt.train()

        def step() -> None:
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()

        return step

    def sam() -> Callable[[], object]:
        model = resnet18()
        opt = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, fused=True)
        params = list(model.parameters())

        def step() -> None:
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            grads = [p.grad for p in params if p.grad is not None]
            norm = torch.stack(torch._foreach_norm(grads)).norm()
            with torch.no_grad():
                ascent = torch._foreach_mul(grads, 0.05 / norm)
                torch._foreach_add_(params, ascent)
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                torch._foreach_sub_(params, ascent)
            opt.step()

        return step

    def perturbed() -> Callable[[], object]:
        model = resnet18()
        opt = torch_ssam.SSAM(model.parameters(), lr=LR, noise_std=STD, momentum=MOMENTUM, seed=0)

        def step() -> None:
            opt.zero_grad()
            with opt.perturb():
                F.cross_entropy(model(x), y).backward()
            opt.step()

        return step

    return {
        "SGD(fused=True)": stock(
            lambda m: torch.optim.SGD(m.parameters(), lr=LR, momentum=MOMENTUM, fused=True)
        ),
        "S-SAM, keep_perturbed": stock(
            lambda m: torch_ssam.SSAM(
                m.parameters(), lr=LR, noise_std=STD, momentum=MOMENTUM, keep_perturbed=True, seed=0
            )
        ),
        "S-SAM, perturb()": perturbed(),
        "SAM, two gradients": sam(),
    }


def _diagonal_sides() -> dict[str, Callable[[], object]]:
    """300 parameters, depth 3, one example a step, squared loss."""
    x, y = torch.randn(1, 100), torch.tensor([1.0])
    layer = torch_ssam.DiagonalLinear(100, 3, readout="sum")
    opt = torch_ssam.SSAM(
        layer.parameters(), lr=1e-4, noise_std=STD, momentum=MOMENTUM, keep_perturbed=True, seed=0
    )
    opt.train()

    def ours() -> None:
        opt.zero_grad()
        (layer(x) - y).square().sum().backward()
        opt.step()

    weights = [nn.Parameter(torch.ones(100)) for _ in range(3)]
    sgd = torch.optim.SGD(weights, lr=1e-4, momentum=MOMENTUM, foreach=True)

    def eager() -> None:
        with torch.no_grad():
            clean = [w.clone() for w in weights]
            for w in weights:
                w.add_(torch.randn_like(w), alpha=STD)
        sgd.zero_grad()
        ((x * weights[0] * weights[1] * weights[2]).sum(-1) - y).square().sum().backward()
        with torch.no_grad():
            for w, c in zip(weights, clean, strict=True):
                w.copy_(c)
        sgd.step()

    scalar = nn.Parameter(torch.ones(100))

    def autograd_alone() -> None:
        """The least that a loop with one parameter, one operator and backward() costs."""
        scalar.grad = None
        (scalar.sum() - 1.0).square().backward()

    return {"eager loop": eager, "ours": ours, "autograd alone": autograd_alone}


def table(rounds: int = 15) -> list[str]:
    timing: Timing = alternate(_resnet_sides(), max(3, rounds // 3))
    lines = ["| ResNet-18, batch 64, 32 x 32 | time / SGD(fused=True) (quartiles) |", "|---|---|"]
    for side in timing.seconds:
        low, high = timing.spread(side, "SGD(fused=True)")
        lines.append(f"| {side} | {timing.ratio(side, 'SGD(fused=True)'):.3f} ({low:.3f} to {high:.3f}) |")
    timing = alternate(_diagonal_sides(), rounds)
    lines += ["", "| DiagonalLinear(100, depth=3), one example | eager loop / time |", "|---|---|"]
    for side in timing.seconds:
        if side != "eager loop":
            lines.append(f"| {side} | {timing.ratio('eager loop', side):.2f} |")
    return lines
