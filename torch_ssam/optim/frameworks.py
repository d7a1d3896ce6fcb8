"""What the callbacks of frameworks share: the optimizer inside of a framework's wrapper, and names of metrics in a log.

Tests: tests/python/test_frameworks.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch_ssam.optim.base import NoiseDriver


def noise_optimizers(optimizers: Iterable[Any]) -> list[NoiseDriver]:
    """Those of this package, taken out of what frameworks wrap them in (DeepSpeed's optimizer in Accelerate's: twice)."""
    found = []
    for one in optimizers:
        while not isinstance(one, NoiseDriver) and getattr(one, "optimizer", None) is not None:
            one = one.optimizer
        found.append(one)
    return [one for one in found if isinstance(one, NoiseDriver)]


def expected_some(found: list[NoiseDriver], callback: object) -> list[NoiseDriver]:
    """Raises TypeError where there is none."""
    if not found:
        raise TypeError(
            f"{type(callback).__name__} found no optimizer of torch_ssam; expected SSAM, SSAMAdamW or wrap(optimizer)."
        )
    return found


def named(found: list[dict[str, float]], before: str) -> dict[str, float]:
    """Metrics of one optimizer, or of several with their numbers, under one heading."""
    if len(found) == 1:
        return {f"{before}{name}": value for name, value in found[0].items()}
    return {f"{before}{k}/{name}": value for k, one in enumerate(found) for name, value in one.items()}
