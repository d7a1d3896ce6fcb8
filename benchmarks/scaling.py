"""Nanoseconds an element from 1,000 to 256M parameters, 1 to 2,000 tensors and 1 or 2 threads, as a plot.

python -m benchmarks.scaling [--largest 28] [--out docs/images/scaling.png]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import torch_ssam

from .step import fused_sgd, ours, tensors


def nanoseconds(call: Callable[[], object], elements: int, rounds: int = 7) -> float:
    call()
    start = time.perf_counter()
    call()
    repeats = max(1, int(0.02 / max(time.perf_counter() - start, 1e-7)))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        seconds.append((time.perf_counter() - start) / repeats)
    return statistics.median(seconds) / elements * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("--largest", type=int, default=28, help="log2 of the largest number of parameters")
    parser.add_argument("--out", type=Path, default=Path("docs/images/scaling.png"), help="the plot")
    args = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    sizes = [2**k for k in range(10, args.largest + 1, 2)]
    for threads, style in ((1, "--"), (2, "-")):
        torch.set_num_threads(threads)
        for name, colour in (("S-SAM, keep_perturbed", "C0"), ("SGD(fused=True)", "C1")):
            times = []
            for size in sizes:
                params = tensors([size])
                call = (
                    ours(params, "gaussian", keep=True)
                    if name.startswith("S") and "SAM" in name
                    else fused_sgd(params)
                )
                times.append(nanoseconds(call, size))
                print(
                    f"{name}, {threads} threads, {size} parameters: {times[-1]:.3f} ns an element", flush=True
                )
                del params, call
            left.plot(sizes, times, style, color=colour, marker="o", label=f"{name}, {threads} thread(s)")
    counts = [1, 4, 16, 64, 250, 500, 1000, 2000]
    for threads, style in ((1, "--"), (2, "-")):
        torch.set_num_threads(threads)
        for total, colour in ((2**20, "C2"), (2**22, "C3")):
            times = [
                nanoseconds(ours(tensors([total // n] * n), "gaussian", keep=True), total // n * n)
                for n in counts
            ]
            for n, value in zip(counts, times, strict=True):
                print(
                    f"{total} parameters in {n} tensors, {threads} threads: {value:.3f} ns an element",
                    flush=True,
                )
            right.plot(
                counts,
                times,
                style,
                color=colour,
                marker="o",
                label=f"{total // 2**20}M, {threads} thread(s)",
            )
    left.set(xscale="log", yscale="log", xlabel="parameters in one tensor", ylabel="ns an element, one step")
    right.set(xscale="log", xlabel="tensors", title="S-SAM, keep_perturbed")
    left.set_title("one tensor")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.text(
        0.5,
        0.005,
        f"kernels: {torch.ops.torch_ssam.cpu_capability()}; torch_ssam {torch_ssam.__version__}",
        ha="center",
        fontsize=7,
    )
    figure.tight_layout()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
