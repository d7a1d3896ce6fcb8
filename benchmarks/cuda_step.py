"""The optimizer step on a GPU: S-SAM against torch.optim.SGD(fused=True), SSAMAdamW against AdamW(fused=True), SAM's step,
S-SAM written with foreach operations, and that under torch.compile, with the memory bandwidth that each reaches.

python benchmarks/cuda_step.py [--rounds N] [--write]     FAIL_WITHOUT_CUDA=1 makes a missing GPU an error
Times are CUDA events around many steps; a side alternates with the fused optimizer beside it; the table has medians, each
row printed as it is there, the most telling sizes first. Bytes are those that a side moves. Without a GPU it says so and
measures nothing; `--rehearse` runs the same code on the CPU with small tensors, to see that it runs: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch_ssam  # noqa: E402
from benchmarks import adamw  # noqa: E402
from benchmarks.step import LR, MOMENTUM, STD, fused_sgd, ours  # noqa: E402

Sizes = dict[str, list[int]]
# A decoder of 1.2B parameters: embedding, and 16 layers of attention (8 of 32 heads for keys and values), MLP and norms.
_LAYER = [2048 * 2048, 512 * 2048, 512 * 2048, 2048 * 2048, 8192 * 2048, 8192 * 2048, 8192 * 2048, 2048, 2048]
SIZES: Sizes = {
    "32M, 12 tensors": [32 * 2**20 // 12] * 12,
    "32M, 500 tensors": [32 * 2**20 // 500] * 500,
    "1.2B, 147 tensors": [128256 * 2048, *(16 * _LAYER), 2048, 2048],
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


def sam(params: list[torch.nn.Parameter]) -> Step:
    """What SAM adds to a step: to the worst point and back. Its second gradient, which S-SAM does not take, is not counted."""
    base = fused_sgd(params)
    weights, grads = [p.detach() for p in params], [p.grad for p in params if p.grad is not None]

    def step() -> None:
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        ascent = torch._foreach_mul(grads, 0.05 / norm)
        torch._foreach_add_(weights, ascent)
        torch._foreach_sub_(weights, ascent)
        base()

    return step


def with_masters(params: list[torch.nn.Parameter]) -> Step:
    options: dict[str, Any] = {"momentum": MOMENTUM, "master_dtype": torch.float32, "keep_perturbed": True}
    opt = torch_ssam.SSAM(params, lr=LR, noise_std=STD, seed=0, **options)
    opt.train()
    return opt.step


@dataclass
class Side:
    make: Callable[[list[torch.nn.Parameter]], Step]
    moves: int  # reads and writes of an element: of weights, gradients, buffers, clean copies and noise
    beside: str = "SGD fused"
    only: torch.dtype | None = None


SIDES: dict[str, Side] = {
    "SGD fused": Side(fused_sgd, 5),
    "SSAM keep_perturbed": Side(lambda p: ours(p, "gaussian", keep=True), 6),
    "SSAM keep_perturbed, rademacher": Side(lambda p: ours(p, "rademacher", keep=True), 6),
    "SSAM keep_perturbed, masters": Side(with_masters, 10, only=torch.bfloat16),  # 20 bytes
    "SSAM perturb + step": Side(lambda p: ours(p, "gaussian", keep=False), 3 + 2 + 5),
    "SAM, without its second gradient": Side(sam, 1 + 2 + 3 + 3 + 5),
    "S-SAM foreach": Side(lambda p: by_hand(p, compiled=False), 2 + 1 + 3 + 2 + 2 + 3 + 3),
    "S-SAM torch.compile": Side(lambda p: by_hand(p, compiled=True), 3 + 5),
    "AdamW fused": Side(adamw.fused_adamw, 7, "AdamW fused"),
    "SSAMAdamW keep_perturbed": Side(adamw.ours, 8, "AdamW fused"),
    "SSAMAdamW keep_perturbed, rademacher": Side(
        lambda p: adamw.ours(p, distribution="rademacher"), 8, "AdamW fused"
    ),
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


HEAD = ["| parameters | dtype | side | ms | beside fused | GB/s |", "|---|---|---|---|---|---|"]


def table(all_sizes: Sizes, rounds: int, device: str) -> Iterator[str]:
    """Markdown rows: time, beside the fused optimizer of its rule, and achieved bandwidth."""
    yield from HEAD
    for title, sizes in all_sizes.items():
        for dtype in (torch.float32, torch.bfloat16):
            for name, side in SIDES.items():
                if side.only not in (None, dtype):
                    continue
                torch.compiler.reset()  # else functions of other sizes count as recompilations, up to a limit
                pair = {each: SIDES[each].make(tensors(sizes, dtype, device)) for each in {name, side.beside}}
                for step in pair.values():
                    milliseconds(step, 3, device)  # compiles, allocates, warms up
                times: dict[str, list[float]] = {each: [] for each in pair}
                for _ in range(rounds):
                    for each, step in pair.items():
                        times[each].append(milliseconds(step, 20, device))
                ms, base = statistics.median(times[name]), statistics.median(times[side.beside])
                bandwidth = side.moves * dtype.itemsize * sum(sizes) / ms / 1e6
                yield f"| {title} | {str(dtype)[6:]} | {name} | {ms:.3f} | {ms / base:.2f} | {bandwidth:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="measurements, each of all in turns")
    parser.add_argument("--write", action="store_true", help="write docs/cuda_benchmarks.md")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, small, only to see that it runs")
    args = parser.parse_args()
    if args.rehearse:
        print("Rehearsal on the CPU: these figures mean nothing.")
        for line in table(REHEARSED, args.rounds, "cpu"):
            print(line, flush=True)
        return
    if not torch.cuda.is_available():
        print("benchmarks/cuda_step.py: no CUDA GPU here, nothing measured")
        raise SystemExit(1 if os.environ.get("FAIL_WITHOUT_CUDA") == "1" else 0)
    properties = torch.cuda.get_device_properties(0)
    gpu = f"{properties.name}, {properties.multi_processor_count} multiprocessors"
    head = f"Written by benchmarks/cuda_step.py on {gpu}, PyTorch {torch.__version__}."
    lines = ["# CUDA benchmarks", "", head, ""]
    print("\n".join(lines))
    for line in table(SIZES, args.rounds, "cuda"):
        print(line, flush=True)
        lines.append(line)
    lines.append("")
    if args.write:
        (ROOT / "docs" / "cuda_benchmarks.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
