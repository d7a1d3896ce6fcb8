"""The simulator beside an eager PyTorch loop and beside its own noise, as ratios of processor time in one run.

    python benchmarks/simulate.py [--seconds S] [--turns N]
The loop is what one would write: randn_like, the product, backward, an in-place update, float64, one
thread, all replicates in one tensor. The noise alone is what the simulator draws, by the same code and
without a simulation: its arithmetic limit. Sides take turns, so that other work on the machine meets all;
processor time, medians over the turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import harness
from torch_ssam.simulate import _C, simulate

DEPTH, ETA, LR = 3, 0.1, 0.01

# Runs so many steps with so many replicates and coordinates.
Side = Callable[[int, int, int], None]


def eager(steps: int, replicates: int, features: int) -> None:
    target = torch.ones(features, dtype=torch.float64)
    weights = torch.ones(DEPTH, replicates, features, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        perturbed = weights + ETA * torch.randn_like(weights)
        loss = (target - perturbed.prod(dim=0)).square().sum()
        loss.backward()
        with torch.no_grad():
            assert weights.grad is not None
            weights.add_(weights.grad, alpha=-LR)
            weights.grad = None


def simulated(steps: int, replicates: int, features: int) -> None:
    simulate(
        [1.0] * features,
        DEPTH,
        noise_std=ETA,
        lr=LR,
        steps=steps,
        replicates=replicates,
        threads=1,
        record_every=steps,
    )


def noise_alone(steps: int, replicates: int, features: int) -> None:
    _C.simulate_noise_alone(features=features, depth=DEPTH, steps=steps, replicates=replicates)


def seconds_of(side: Side, steps: int, size: tuple[int, int]) -> float:
    start = time.process_time()
    side(steps, *size)
    return time.process_time() - start


def steps_for(side: Side, size: tuple[int, int], seconds: float) -> int:
    steps = 64
    while (took := seconds_of(side, steps, size)) < seconds / 4:
        steps *= 4
    return max(64, int(steps * seconds / took))


def compare(
    beside: Side, replicates: int, features: int, seconds: float, turns: int
) -> tuple[float, float, str]:
    """Microseconds a step and replicate of the other side and of the simulator; a row with their ratios."""
    size = (replicates, features)
    # At least 2000 steps: the last 64, which the diagnosis looks at one by one, cost three times the others.
    steps = {side: steps_for(side, size, seconds) for side in (simulated, beside)}
    steps[simulated] = max(2000, steps[simulated])
    times: dict[Side, list[float]] = {side: [] for side in steps}
    for _ in range(turns):
        for side, count in steps.items():
            times[side].append(seconds_of(side, count, size) / count / replicates * 1e6)
    ours, theirs = statistics.median(times[simulated]), statistics.median(times[beside])
    quicker = beside is noise_alone
    ratios = sorted((a / b if quicker else b / a) for a, b in zip(*times.values(), strict=True))
    row = (
        f"| {replicates} | {features} | {beside.__name__.replace('_', ' ')} | {theirs:.3g} | {ours:.3g} | "
        f"{statistics.median(ratios):.3g} ({ratios[0]:.3g} to {ratios[-1]:.3g}) |"
    )
    return theirs, ours, row


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="processor time of one turn")
    parser.add_argument("--turns", type=int, default=7, help="measurements, each of all in turns")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(harness.machine())
    print(
        f"Depth {DEPTH}, one thread, simulator {_C.simulate_capability()}; microseconds a step and replicate.\n"
    )
    print("| replicates | d | beside | it | simulate | ratio |")
    print("|---|---|---|---|---|---|")
    results = []
    for beside, replicates, features in (
        (eager, 1, 100),
        (eager, 64, 100),
        (noise_alone, 1, 100),
        (noise_alone, 64, 1000),
    ):
        results.append(compare(beside, replicates, features, options.seconds, options.turns))
        print(results[-1][2], flush=True)
    loops = results[0][0] / results[1][1]
    print("\nRatio: how many times quicker than the loop; how many times the noise alone.")
    print(f"64 replicates are {loops:.0f} times quicker than 64 loops over one.")


if __name__ == "__main__":
    main()
