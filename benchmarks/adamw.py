"""SSAMAdamW's step against torch.optim.AdamW(fused=True), AdamW with noise by hand, and `wrap`, over the sizes of step.py.

Forward and backward are left out, as there. IVON, which also draws Gaussian weights, is a row where it is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import torch_ssam

from .harness import Timing, alternate
from .step import CASES, STD, ivon, rows, tensors

LR = 1e-3


def fused_adamw(params: list[torch.nn.Parameter]) -> Callable[[], object]:
    return torch.optim.AdamW(params, lr=LR, fused=True).step


def eager(params: list[torch.nn.Parameter], fused: bool = True) -> Callable[[], object]:
    """What a user writes by hand: clone, randn_like, foreach add, copy back, AdamW."""
    opt = torch.optim.AdamW(params, lr=LR, fused=fused or None, foreach=(not fused) or None)

    def step() -> None:
        with torch.no_grad():
            clean = [p.clone() for p in params]
            noise = [torch.randn_like(p) for p in params]
            torch._foreach_add_(params, noise, alpha=STD)
            torch._foreach_copy_(params, clean)
        opt.step()

    return step


def compiled(params: list[torch.nn.Parameter]) -> Callable[[], object]:
    """The same by torch.compile: noise, update and copy back in fused loops, at a fixed step."""
    values, grads = [p.detach() for p in params], [p.grad for p in params]
    averages, squares = ([torch.zeros_like(v) for v in values] for _ in range(2))

    @torch.compile  # type: ignore[untyped-decorator]
    def perturb(values: list[Tensor]) -> list[Tensor]:
        clean = [v.clone() for v in values]
        for v in values:
            v.add_(torch.randn_like(v), alpha=STD)
        return clean

    @torch.compile  # type: ignore[untyped-decorator]
    def update(values: list[Tensor], clean: list[Tensor], grads: list[Tensor], kept: Any) -> None:
        for v, w, g, m, s in zip(values, clean, grads, *kept, strict=True):
            m.lerp_(g, 0.1)
            s.mul_(0.999).addcmul_(g, g, value=0.001)
            v.copy_(w * (1 - LR * 0.01) - LR * m / (s.sqrt() + 1e-8))

    def step() -> None:
        with torch.no_grad():
            update(values, perturb(values), grads, (averages, squares))

    return step


def kept(opt: Any) -> Callable[[], object]:
    opt.train()
    step: Callable[[], object] = opt.step
    return step


def ours(params: list[torch.nn.Parameter], keep: bool = True, **options: Any) -> Callable[[], object]:
    opt = torch_ssam.SSAMAdamW(params, lr=LR, noise_std=STD, keep_perturbed=keep, seed=0, **options)
    if keep:
        return kept(opt)

    first = params[0]

    def step() -> None:
        with opt.perturb():
            first.grad = first.grad.detach()  # type: ignore[union-attr]  # a pass counts where a gradient changes
        opt.step()

    return step


def wrapped(params: list[torch.nn.Parameter]) -> Callable[[], object]:
    base = torch.optim.AdamW(params, lr=LR, fused=True)
    return kept(torch_ssam.wrap(base, noise_std=STD, keep_perturbed=True, seed=0))


def run(case: str, rounds: int = 15) -> tuple[str, Timing]:
    """One row of the table: every side on its own copy of the same tensors."""
    title, sizes = CASES[case]
    sides: dict[str, Callable[[], object] | None] = {
        "fused AdamW": fused_adamw(tensors(sizes)),
        "keep, Gaussian": ours(tensors(sizes)),
        "keep, Rademacher": ours(tensors(sizes), distribution="rademacher"),
        "keep, Gaussian, amsgrad": ours(tensors(sizes), amsgrad=True),
        "perturb(), Gaussian": ours(tensors(sizes), keep=False),
        "update alone": torch_ssam.SSAMAdamW(tensors(sizes), lr=LR, noise_std=0.0).step,
        "wrap, keep, Gaussian": wrapped(tensors(sizes)),
        "eager AdamW with noise": eager(tensors(sizes)),
    }
    if case == "32M":
        sides["torch.compile of it"] = compiled(tensors(sizes))
        sides["IVON"] = ivon(tensors(sizes))
    else:
        sides["eager AdamW with noise, foreach"] = eager(tensors(sizes), fused=False)
    return title, alternate({name: side for name, side in sides.items() if side is not None}, rounds)


def table(cases: list[str], rounds: int = 15) -> list[str]:
    """Markdown rows: time over fused AdamW's, and over that of SSAMAdamW with keep_perturbed."""
    return rows([run(case, rounds) for case in cases], "fused AdamW", "keep, Gaussian")
