"""The optimizer step against torch.optim.SGD(fused=True) and eager S-SAM, over the sizes that users have.

Forward and backward are left out: gradients are there, and a side does what a training step adds around them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import torch_ssam

from .harness import Timing, alternate

MOMENTUM, LR, STD = 0.9, 0.01, 0.01


def tensors(sizes: list[int]) -> list[torch.nn.Parameter]:
    """Parameters of these sizes, with gradients that are never zero."""
    generator = torch.Generator().manual_seed(0)
    params = []
    for size in sizes:
        p = torch.nn.Parameter(torch.randn(size, generator=generator))
        p.grad = torch.randn(size, generator=generator) * 1e-3
        params.append(p)
    return params


def fused_sgd(params: list[torch.nn.Parameter]) -> Callable[[], object]:
    opt = torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, fused=True)
    return opt.step


def eager_ssam(
    params: list[torch.nn.Parameter], foreach: bool = True, fused: bool = True
) -> Callable[[], object]:
    """What a user writes by hand: clone, randn_like, foreach add, copy back, SGD."""
    opt = torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, fused=fused or None, foreach=(not fused) or None)

    def step() -> None:
        with torch.no_grad():
            clean = [p.clone() for p in params]
            noise = [torch.randn_like(p) for p in params]
            torch._foreach_add_(params, noise, alpha=STD)
            torch._foreach_copy_(params, clean)
        opt.step()

    return step


def ours(params: list[torch.nn.Parameter], distribution: str, keep: bool) -> Callable[[], object]:
    opt = torch_ssam.SSAM(
        params,
        lr=LR,
        noise_std=STD,
        momentum=MOMENTUM,
        distribution=distribution,
        keep_perturbed=keep,
        seed=0,
    )
    if keep:
        opt.train()
        return opt.step

    def step() -> None:
        with opt.perturb():
            pass
        opt.step()

    return step


CASES: dict[str, tuple[str, list[int]]] = {
    "32M": ("32M in 16 tensors", [2**21] * 16),
    "11M": ("11M in 60 tensors", [2**18 if i % 3 else 2**14 for i in range(60)]),
    "500x1k": ("500 tensors of 1k", [1000] * 500),
    "300": ("300 parameters in 4 tensors", [192, 12, 84, 12]),
}


def run(case: str, rounds: int = 15) -> tuple[str, Timing]:
    """One row of the table: every side on its own copy of the same tensors."""
    title, sizes = CASES[case]
    sides: dict[str, Callable[[], object]] = {
        "fused SGD": fused_sgd(tensors(sizes)),
        "keep, Gaussian": ours(tensors(sizes), "gaussian", keep=True),
        "keep, Rademacher": ours(tensors(sizes), "rademacher", keep=True),
        "perturb(), Gaussian": ours(tensors(sizes), "gaussian", keep=False),
        "eager S-SAM": eager_ssam(tensors(sizes)),
    }
    return title, alternate(sides, rounds)


def table(cases: list[str], rounds: int = 15) -> list[str]:
    """Markdown rows: time over fused SGD's, and how many times faster than eager S-SAM."""
    lines = [
        "| Size | side | time / fused SGD (quartiles) | eager S-SAM / time |",
        "|---|---|---|---|",
    ]
    for case in cases:
        title, timing = run(case, rounds)
        for side in timing.seconds:
            if side == "fused SGD":
                continue
            low, high = timing.spread(side, "fused SGD")
            lines.append(
                f"| {title} | {side} | {timing.ratio(side, 'fused SGD'):.2f} ({low:.2f} to {high:.2f}) "
                f"| {timing.ratio('eager S-SAM', side):.1f} |"
            )
    return lines


def memory_beyond_sgd() -> str:
    """Bytes our optimizer holds beyond SGD's momentum, in copies of the parameters."""
    params = tensors([2**16] * 4)
    opt = torch_ssam.SSAM(params, lr=LR, noise_std=STD, momentum=MOMENTUM, keep_perturbed=True, seed=0)
    opt.train()
    opt.step()
    held: list[Tensor] = list(opt._noise.applied_clean().values())
    bytes_held = sum(t.numel() * t.element_size() for t in held)
    copies = bytes_held / sum(p.numel() * p.element_size() for p in params)
    return f"Clean copies held: {copies:.2f} copies of the parameters."
