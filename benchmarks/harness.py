"""Timing for all benchmarks: the sides alternate in one run, and what counts are medians and their ratios.

Times on a shared machine drift; two sides measured in turn drift together, so ratios hold where single times do not.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass
class Timing:
    """Seconds a call of each side, one entry a round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, beside: str) -> float:
        """Median over rounds of the ratio within a round."""
        pairs = zip(self.seconds[name], self.seconds[beside], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def spread(self, name: str, beside: str) -> tuple[float, float]:
        """Quartiles of that ratio."""
        ratios = sorted(a / b for a, b in zip(self.seconds[name], self.seconds[beside], strict=True))
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        return low, high


def alternate(sides: dict[str, Callable[[], object]], rounds: int = 15, min_time: float = 0.02) -> Timing:
    """Times the sides in turn, each long enough a round (calls repeated) for the clock.

    Each goes once unmeasured before its turn: while the others ran, its memory left the caches, and on machines that
    reclaim what lies idle it left the fast pages too, which made SGD's 512 MiB look five times slower at times.
    """
    repeats: dict[str, int] = {}
    for name, call in sides.items():
        call()
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        repeats[name] = max(1, int(min_time / max(once, 1e-7)))
    timing = Timing({name: [] for name in sides})
    for _ in range(rounds):
        for name, call in sides.items():
            n = repeats[name]
            call()
            start = time.perf_counter()
            for _ in range(n):
                call()
            timing.seconds[name].append((time.perf_counter() - start) / n)
    return timing


def machine() -> str:
    """Processor, threads, versions: what a figure depends on. No host name."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )[0]
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}, {compiler}; kernels {torch.ops.torch_ssam.cpu_capability()}, "
        f"PyTorch's {torch.backends.cpu.get_cpu_capability()}"
    )
