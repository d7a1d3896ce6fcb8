"""The optimizer step on a GPU: S-SAM against torch.optim.SGD(fused=True), S-SAM written with foreach
operations, and that under torch.compile, with the memory bandwidth that each reaches.

python benchmarks/cuda_step.py [--rounds N] [--write]     FAIL_WITHOUT_CUDA=1 makes a missing GPU an error
Times are CUDA events around many steps; the sides alternate; the table has medians. Bytes are those that a
step must move. Without a GPU it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LR, MOMENTUM, STD = 0.01, 0.9, 0.01
SIZES = {
    "32M, 12 tensors": [32 * 2**20 // 12] * 12,
    "32M, 500 tensors": [32 * 2**20 // 500] * 500,
    "1M, 161 tensors": [2**20 // 161] * 161,
}
Step = Callable[[], object]


def tensors(sizes: list[int], dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Parameters of these sizes with gradients that are never zero."""
    out = []
    for n in sizes:
        p = torch.nn.Parameter(torch.randn(n, device="cuda", dtype=dtype))
        p.grad = torch.full_like(p, 1e-3)
        out.append(p)
    return out


def fused_sgd(params: list[torch.nn.Parameter]) -> Step:
    return torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, fused=True).step


def eager(params: list[torch.nn.Parameter], compiled: bool) -> Step:
    """What a user writes by hand: save, perturb, restore, SGD."""
    buffers = [torch.zeros_like(p) for p in params]
    grads = [p.grad for p in params if p.grad is not None]

    def work(weights: list[torch.Tensor]) -> None:
        clean = [w.clone() for w in weights]
        torch._foreach_add_(weights, [torch.randn_like(w) for w in weights], alpha=STD)
        torch._foreach_copy_(weights, clean)
        torch._foreach_mul_(buffers, MOMENTUM)
        torch._foreach_add_(buffers, grads)
        torch._foreach_add_(weights, buffers, alpha=-LR)

    run = torch.compile(work) if compiled else work
    data = [p.detach() for p in params]
    return lambda: run(data)


def ours(params: list[torch.nn.Parameter], keep: bool, distribution: str = "gaussian") -> Step:
    import torch_ssam

    opt = torch_ssam.SSAM(
        params,
        lr=LR,
        noise_std=STD,
        momentum=MOMENTUM,
        keep_perturbed=keep,
        distribution=distribution,
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


# Bytes an element of size 1 byte must move: reads and writes of weights, gradients, buffers and clean copies.
SIDES: dict[str, tuple[Callable[[list[torch.nn.Parameter]], Step], int]] = {
    "SGD fused": (fused_sgd, 5),
    "SSAM keep_perturbed": (lambda p: ours(p, keep=True), 6),
    "SSAM keep_perturbed, rademacher": (lambda p: ours(p, keep=True, distribution="rademacher"), 6),
    "SSAM perturb + step": (lambda p: ours(p, keep=False), 3 + 2 + 5),
    "S-SAM foreach": (lambda p: eager(p, compiled=False), 21),
    "S-SAM torch.compile": (lambda p: eager(p, compiled=True), 5),
}


def milliseconds(step: Step, repeats: int) -> float:
    start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(repeats):
        step()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / repeats


def table(rounds: int) -> list[str]:
    """Markdown rows: time, beside fused SGD, and achieved bandwidth."""
    lines = ["| parameters | dtype | side | ms | beside SGD fused | GB/s |", "|---|---|---|---|---|---|"]
    for title, sizes in SIZES.items():
        for dtype in (torch.float32, torch.bfloat16):
            steps = {name: make(tensors(sizes, dtype)) for name, (make, _) in SIDES.items()}
            for step in steps.values():
                milliseconds(step, 3)  # compiles, allocates, warms up
            times: dict[str, list[float]] = {name: [] for name in steps}
            for _ in range(rounds):
                for name, step in steps.items():
                    times[name].append(milliseconds(step, 20))
            base = statistics.median(times["SGD fused"])
            for name, (_, moves) in SIDES.items():
                ms = statistics.median(times[name])
                bandwidth = moves * dtype.itemsize * sum(sizes) / ms / 1e6
                lines.append(
                    f"| {title} | {str(dtype)[6:]} | {name} | {ms:.3f} | {ms / base:.2f} | {bandwidth:.0f} |"
                )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="write docs/cuda_benchmarks.md")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/cuda_step.py: no CUDA GPU here, nothing measured")
        raise SystemExit(1 if os.environ.get("FAIL_WITHOUT_CUDA") == "1" else 0)
    properties = torch.cuda.get_device_properties(0)
    gpu = f"{properties.name}, {properties.multi_processor_count} multiprocessors"
    head = f"Written by benchmarks/cuda_step.py on {gpu}, PyTorch {torch.__version__}."
    lines = ["# CUDA benchmarks", "", head, "", *table(args.rounds), ""]
    print("\n".join(lines))
    if args.write:
        (ROOT / "docs" / "cuda_benchmarks.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
