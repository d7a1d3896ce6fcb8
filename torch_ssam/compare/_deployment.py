"""What is left of a trained network when its weights are rounded or written into noisy hardware.

Weights rounded to few bits, or with Gaussian noise in units of each filter's largest weight, by
`torch_ssam.robustness.measure`. Rounding is to the nearest, with the step that the largest weight gives and with the
one of the least squared error, and by GPTQ; BatchNorm's statistics are as they are and gathered anew. Tests:
test_compare_deployment.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from torch_ssam import robustness
from torch_ssam._common.measured_model import MeasuredModel
from torch_ssam.robustness._points import STATISTICS
from torch_ssam.robustness._quantizers import STEPS

from ._data import Data, Pair
from ._gptq import gptq
from ._measures import BATCH, batches, evaluate, refresh_statistics

BITS = (4, 3, 2)
NOISE = (0.1, 0.2, 0.3)
#: What options can be chosen by: the mean score over these, with the MSE step and statistics gathered anew.
TARGET: tuple[tuple[str, float], ...] = (("bits", 3), ("bits", 2), ("noise", 0.2), ("noise", 0.3))
#: Examples that statistics of BatchNorm are gathered from.
CALIBRATION = 2000

#: The one disturbance that rounds activations too: weights to 3 bits, the inputs of their layers to 8.
WITH_ACTIVATIONS = "bits 3 mse anew, activations 8"


def key(kind: str, level: float, step: str = "mse", statistics: str = "anew") -> str:
    """What records call a disturbance; noise knows no step.

    >>> key("bits", 2), key("noise", 0.1, statistics="as_trained")
    ('bits 2 mse anew', 'noise 0.1 as_trained')
    """
    return f"{kind} {level:g} {step} {statistics}" if kind == "bits" else f"{kind} {level:g} {statistics}"


def name_of(disturbance: tuple[str, float]) -> str:
    """What tables call a disturbance.

    >>> name_of(("bits", 2)), name_of(("noise", 0.1))
    ('2 bits', 'noise 0.1')
    """
    kind, level = disturbance
    return f"{level:g} bits" if kind == "bits" else f"noise {level:g}"


def roundings(bits: int) -> list[str]:
    """The keys of all the ways in which weights are rounded to so many bits; GPTQ with statistics gathered anew alone."""
    nearest = [key("bits", bits, step, statistics) for step in STEPS for statistics in STATISTICS]
    return [*nearest, key("bits", bits, "gptq")]


def _measured(model: nn.Module, data: Data, pair: Pair, **options: Any) -> robustness.Robustness | None:
    """None where weights, or what the network says of clean ones, are not finite."""
    if not all(bool(p.isfinite().all()) for p in model.parameters()) or not any(
        p.dim() >= 2 for p in model.parameters()
    ):
        return None
    return robustness.measure(model, batches(pair), flips=(), calibration=_calibration(data), **options)


def _calibration(data: Data) -> list[Tensor]:
    return list(data.train[0][:CALIBRATION].split(BATCH))  # type: ignore[no-untyped-call]


def _calibrated(model: nn.Module, data: Data, pair: Pair, bits: int) -> float:
    """The score with weights rounded by GPTQ, statistics of BatchNorm gathered anew."""
    with MeasuredModel(model), gptq(model, bits, _calibration(data)):
        refresh_statistics(model, data, CALIBRATION)
        return evaluate(model, data, pair)["score"]


def survival(model: nn.Module, data: Data, pair: Pair, draws: int) -> dict[str, float]:
    """The score in % under each disturbance, by `key`; empty for a network that is not finite.

    Where there is no BatchNorm, "anew" has the values of "as_trained".
    """
    if not data.classifies:
        raise ValueError(
            f"{data.name} is a regression; expected classes, whose accuracy is what is measured."
        )
    found: dict[str, float] = {}
    for step in STEPS:
        result = _measured(
            model,
            data,
            pair,
            bits=BITS,
            noise=NOISE if step == STEPS[0] else (),
            draws=draws,
            step=step,
            statistics="both",
        )
        if result is None:
            return {}
        for point in result.points:
            if point.kind != "clean":
                found[key(point.kind, point.level, step, point.statistics)] = point.mean
    for name, value in list(found.items()):
        found.setdefault(name.replace(STATISTICS[0], STATISTICS[1]), value)
    for bits in BITS:
        found[key("bits", bits, "gptq")] = _calibrated(model, data, pair, bits)
    result = _measured(
        model, data, pair, bits=3, noise=(), step="mse", statistics="anew", activation_bits=8, draws=2
    )
    if result is not None:
        found[WITH_ACTIVATIONS] = result.find("bits", 3).mean
    return found


def target_score(model: nn.Module, data: Data, pair: Pair, draws: int = 2) -> float:
    """The mean score in % over TARGET; minus infinity for a network that is not finite."""
    levels = {kind: tuple(level for k, level in TARGET if k == kind) for kind in ("bits", "noise")}
    result = _measured(model, data, pair, **levels, draws=draws, step="mse", statistics="anew")
    if result is None:
        return -math.inf
    return float(torch.tensor([result.find(kind, level).mean for kind, level in TARGET]).mean())
