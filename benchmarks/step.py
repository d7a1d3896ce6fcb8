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


def eager_ssam(params: list[torch.nn.Parameter], fused: bool = True) -> Callable[[], object]:
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


def compiled_ssam(params: list[torch.nn.Parameter]) -> Callable[[], object]:
    """Eager S-SAM given to torch.compile: noise, momentum update and copy back in fused loops."""
    momenta = [torch.zeros_like(p) for p in params]
    values = [p.detach() for p in params]
    grads = [p.grad for p in params]

    @torch.compile  # type: ignore[untyped-decorator]
    def perturb(values: list[Tensor]) -> list[Tensor]:
        clean = [v.clone() for v in values]
        for v in values:
            v.add_(torch.randn_like(v), alpha=STD)
        return clean

    @torch.compile  # type: ignore[untyped-decorator]
    def update(values: list[Tensor], clean: list[Tensor], grads: list[Tensor], momenta: list[Tensor]) -> None:
        for v, w, g, m in zip(values, clean, grads, momenta, strict=True):
            m.mul_(MOMENTUM).add_(g)
            v.copy_(w - LR * m)

    def step() -> None:
        with torch.no_grad():
            update(values, perturb(values), grads, momenta)

    return step


def lpf_sgd(params: list[torch.nn.Parameter]) -> Callable[[], object]:
    """LPF-SGD's step as its paper gives it (arXiv 2201.08025): noise by filter norm, added and subtracted."""
    opt = torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, fused=True)

    def step() -> None:
        with torch.no_grad():
            noise = []
            for p in params:
                filters = p.view(p.shape[0], -1) if p.dim() > 1 else p.view(1, -1)
                scale = STD * filters.norm(dim=1, keepdim=True)
                noise.append((torch.randn_like(filters) * scale).view_as(p))
            torch._foreach_add_(params, noise)
            torch._foreach_sub_(params, noise)
        opt.step()

    return step


def ivon(params: list[torch.nn.Parameter]) -> Callable[[], object] | None:
    """IVON's step (ivon-opt), which also draws Gaussian weights; None where it is not installed."""
    try:
        from ivon import IVON  # type: ignore[import-not-found]
    except ImportError:
        return None
    opt = IVON(params, lr=LR, ess=1e4)
    grads = [p.grad for p in params]

    def step() -> None:
        with opt.sampled_params(train=True):
            for p, g in zip(params, grads, strict=True):
                p.grad = g
        opt.step()

    return step


def ours(
    params: list[torch.nn.Parameter], distribution: str, keep: bool, memory: str = "copy"
) -> Callable[[], object]:
    opt = torch_ssam.SSAM(
        params,
        lr=LR,
        noise_std=STD,
        momentum=MOMENTUM,
        distribution=distribution,
        keep_perturbed=keep,
        memory=memory,
        seed=0,
    )
    if keep:
        opt.train()
        return opt.step

    first = params[0]

    def step() -> None:
        with opt.perturb():
            first.grad = first.grad.detach()  # type: ignore[union-attr]  # a pass counts where a gradient changes
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
    sides: dict[str, Callable[[], object] | None] = {
        "fused SGD": fused_sgd(tensors(sizes)),
        "keep, Gaussian": ours(tensors(sizes), "gaussian", keep=True),
        "keep, Rademacher": ours(tensors(sizes), "rademacher", keep=True),
        "perturb(), Gaussian": ours(tensors(sizes), "gaussian", keep=False),
        "perturb(), Gaussian, regenerate": ours(tensors(sizes), "gaussian", False, "regenerate"),
        "eager S-SAM": eager_ssam(tensors(sizes)),
    }
    if case == "32M":
        sides["torch.compile of it"] = compiled_ssam(tensors(sizes))
        sides["LPF-SGD, eager"] = lpf_sgd(tensors(sizes))
        sides["IVON"] = ivon(tensors(sizes))
    if case in ("11M", "500x1k"):
        sides["eager S-SAM, foreach SGD"] = eager_ssam(tensors(sizes), fused=False)
    return title, alternate({name: side for name, side in sides.items() if side is not None}, rounds)


def table(cases: list[str], rounds: int = 15) -> list[str]:
    """Markdown rows: time over fused SGD's, and over that of S-SAM with keep_perturbed."""
    return rows([run(case, rounds) for case in cases], "fused SGD", "keep, Gaussian")


def rows(timings: list[tuple[str, Timing]], beside: str, ours: str) -> list[str]:
    """The table of all sides but one, over that one and over ours."""
    lines = [f"| Size | side | time / {beside} (quartiles) | time / {ours} |", "|---|---|---|---|"]
    for title, timing in timings:
        for side in timing.seconds:
            if side == beside:
                continue
            low, high = timing.spread(side, beside)
            lines.append(
                f"| {title} | {side} | {timing.ratio(side, beside):.2f} ({low:.2f} to {high:.2f}) "
                f"| {timing.ratio(side, ours):.1f} |"
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
