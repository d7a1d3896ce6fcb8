"""The simulator beside an eager PyTorch loop, as ratios of the time a step and replicate take, in one run.

    python benchmarks/simulate.py [--seconds S]
The loop is what one would write: randn_like, the product, backward, an in-place update, float64, one
thread, all replicates in one tensor. Both take turns, so that other work on the machine meets both;
processor time, medians over the turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from torch_ssam.simulate import _C, simulate

D, DEPTH, ETA, LR = 100, 3, 0.1, 0.01


def eager(replicates: int, steps: int) -> None:
    target = torch.ones(D, dtype=torch.float64)
    weights = torch.ones(DEPTH, replicates, D, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        perturbed = weights + ETA * torch.randn_like(weights)
        loss = (target - perturbed.prod(dim=0)).square().sum()
        loss.backward()
        with torch.no_grad():
            assert weights.grad is not None
            weights.add_(weights.grad, alpha=-LR)
            weights.grad = None


def simulated(replicates: int, steps: int) -> None:
    simulate(
        [1.0] * D,
        DEPTH,
        noise_std=ETA,
        lr=LR,
        steps=steps,
        replicates=replicates,
        threads=1,
        record_every=steps,
    )


def cost(run: Callable[[int, int], None], replicates: int, seconds: float) -> tuple[float, int]:
    """Processor seconds a step, and how many steps fill `seconds`."""
    steps = 64
    while True:
        start = time.process_time()
        run(replicates, steps)
        took = time.process_time() - start
        if took > seconds / 4:
            return took / steps, max(64, int(steps * seconds / took))
        steps *= 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="processor time of one turn")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"d = {D}, depth {DEPTH}, one thread, {_C.simulate_capability()}; microseconds a step and "
        "replicate, and ratio"
    )
    alone = 0.0
    for replicates in (1, 64):
        counts = {run: cost(run, replicates, options.seconds)[1] for run in (eager, simulated)}
        times: dict[Callable[[int, int], None], list[float]] = {eager: [], simulated: []}
        for _ in range(options.turns):
            for run, steps in counts.items():
                start = time.process_time()
                run(replicates, steps)
                times[run].append((time.process_time() - start) / steps / replicates * 1e6)
        ratios = sorted(a / b for a, b in zip(times[eager], times[simulated], strict=True))
        ours, theirs = statistics.median(times[simulated]), statistics.median(times[eager])
        alone = alone or theirs
        print(
            f"replicates {replicates:2d}: eager {theirs:7.2f}, simulate {ours:6.3f}, ratio "
            f"{statistics.median(ratios):5.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}); "
            f"to an eager loop over single replicates {alone / ours:5.0f}"
        )


if __name__ == "__main__":
    main()
