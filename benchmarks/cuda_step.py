"""The optimizer step on a GPU: S-SAM against torch.optim.SGD(fused=True), S-SAM written with foreach
operations, and that under torch.compile, with the memory bandwidth that each reaches.

python benchmarks/cuda_step.py [--rounds N] [--write]     FAIL_WITHOUT_CUDA=1 makes a missing GPU an error
Times are CUDA events around many steps; the sides alternate; the table has medians. Bytes are those that a
side moves. Without a GPU it says so and measures nothing; `--rehearse` runs the same code on the CPU with
small tensors, to see that it runs: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.step import LR, MOMENTUM, STD, fused_sgd, ours  # noqa: E402

Sizes = dict[str, list[int]]
SIZES: Sizes = {
    "32M, 12 tensors": [32 * 2**20 // 12] * 12,
    "32M, 500 tensors": [32 * 2**20 // 500] * 500,
    "1M, 161 tensors": [2**20 // 161] * 161,
}
REHEARSED: Sizes = {"4k, 3 tensors": [1365] * 3}
Step = Callable[[], object]


def tensors(sizes: list[int], dtype: torch.dtype, device: str) -> list[torch.nn.Parameter]:
    """Parameters of these sizes with gradients that are never zero."""
    out = []
    for n in sizes:
        p = torch.nn.Parameter(torch.randn(n, device=device, dtype=dtype))
        p.grad = torch.full_like(p, 1e-3)
        out.append(p)
    return out


def by_hand(params: list[torch.nn.Parameter], compiled: bool) -> Step:
    """What a user writes: save and perturb before the gradient; restore and SGD after it.

    Two functions, for in between the model reads the noisy weights: compiled as one, the noise would be found to
    be unused and left out.
    """
    weights = [p.detach() for p in params]
    clean = [torch.empty_like(w) for w in weights]
    buffers = [torch.zeros_like(w) for w in weights]
    grads = [p.grad for p in params if p.grad is not None]

    def perturb() -> None:
        torch._foreach_copy_(clean, weights)
        torch._foreach_add_(weights, [torch.randn_like(w) for w in weights], alpha=STD)

    def update() -> None:
        torch._foreach_copy_(weights, clean)
        torch._foreach_mul_(buffers, MOMENTUM)
        torch._foreach_add_(buffers, grads)
        torch._foreach_add_(weights, buffers, alpha=-LR)

    before, after = (torch.compile(f) if compiled else f for f in (perturb, update))

    def step() -> None:
        before()
        after()

    return step


# Reads and writes of an element that a side makes: of weights, gradients, buffers, clean copies and noise.
SIDES: dict[str, tuple[Callable[[list[torch.nn.Parameter]], Step], int]] = {
    "SGD fused": (fused_sgd, 5),
    "SSAM keep_perturbed": (lambda p: ours(p, "gaussian", keep=True), 6),
    "SSAM keep_perturbed, rademacher": (lambda p: ours(p, "rademacher", keep=True), 6),
    "SSAM perturb + step": (lambda p: ours(p, "gaussian", keep=False), 3 + 2 + 5),
    "S-SAM foreach": (lambda p: by_hand(p, compiled=False), 2 + 1 + 3 + 2 + 2 + 3 + 3),
    "S-SAM torch.compile": (lambda p: by_hand(p, compiled=True), 3 + 5),
}


def milliseconds(step: Step, repeats: int, device: str) -> float:
    if device == "cpu":
        begin = time.perf_counter()
        for _ in range(repeats):
            step()
        return 1e3 * (time.perf_counter() - begin) / repeats
    start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(repeats):
        step()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / repeats


def table(all_sizes: Sizes, rounds: int, device: str) -> list[str]:
    """Markdown rows: time, beside fused SGD, and achieved bandwidth."""
    lines = ["| parameters | dtype | side | ms | beside SGD fused | GB/s |", "|---|---|---|---|---|---|"]
    for title, sizes in all_sizes.items():
        for dtype in (torch.float32, torch.bfloat16):
            torch.compiler.reset()  # else functions of other sizes count as recompilations, up to a limit
            steps = {name: make(tensors(sizes, dtype, device)) for name, (make, _) in SIDES.items()}
            for step in steps.values():
                milliseconds(step, 3, device)  # compiles, allocates, warms up
            times: dict[str, list[float]] = {name: [] for name in steps}
            for _ in range(rounds):
                for name, step in steps.items():
                    times[name].append(milliseconds(step, 20, device))
            base = statistics.median(times["SGD fused"])
            for name, (_, moves) in SIDES.items():
                ms = statistics.median(times[name])
                bandwidth = moves * dtype.itemsize * sum(sizes) / ms / 1e6
                lines.append(
                    f"| {title} | {str(dtype)[6:]} | {name} | {ms:.3f} | {ms / base:.2f} | {bandwidth:.0f} |"
                )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="measurements, each of all in turns")
    parser.add_argument("--write", action="store_true", help="write docs/cuda_benchmarks.md")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, small, only to see that it runs")
    args = parser.parse_args()
    if args.rehearse:
        print("Rehearsal on the CPU: these figures mean nothing.")
        print("\n".join(table(REHEARSED, args.rounds, "cpu")))
        return
    if not torch.cuda.is_available():
        print("benchmarks/cuda_step.py: no CUDA GPU here, nothing measured")
        raise SystemExit(1 if os.environ.get("FAIL_WITHOUT_CUDA") == "1" else 0)
    properties = torch.cuda.get_device_properties(0)
    gpu = f"{properties.name}, {properties.multi_processor_count} multiprocessors"
    head = f"Written by benchmarks/cuda_step.py on {gpu}, PyTorch {torch.__version__}."
    lines = ["# CUDA benchmarks", "", head, "", *table(SIZES, args.rounds, "cuda"), ""]
    print("\n".join(lines))
    if args.write:
        (ROOT / "docs" / "cuda_benchmarks.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
