"""What is measured of a trained network: score, loss, calibration, rounded weights, sharpness.

The score is what methods are chosen and compared by: accuracy in %, for regression the explained variance
R^2 in %. Tests: tests/python/test_compare.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_ssam import robustness, sharpness
from torch_ssam._common.measured_model import MeasuredModel
from torch_ssam.noise.options import Scale
from torch_ssam.ops.plain_numbers import float64_of
from torch_ssam.optim.clean_weights import update_bn

from ._data import Data, Pair
from ._statistics import calibration_error

BATCH = 500


def batches(pair: Pair) -> list[Pair]:
    """The examples in batches for evaluating."""
    return list(zip(pair[0].split(BATCH), pair[1].split(BATCH), strict=True))  # type: ignore[no-untyped-call]


def refresh_statistics(model: nn.Module, data: Data, examples: int | None = None) -> None:
    """BatchNorm's statistics at the weights that the model holds, over the first training examples (None: all)."""
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        update_bn(data.train[0][:examples].split(BATCH), model)  # type: ignore[no-untyped-call]


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, pair: Pair) -> dict[str, float]:
    """score and loss, and for classes the expected calibration error in %, of the model in eval mode."""
    loss, confidence, right = 0.0, [], []
    residual = 0.0
    with MeasuredModel(model, training=False):
        for x, y in batches(pair):
            outputs = model(x)
            loss += float(data.loss(outputs, y)) * len(y)
            if data.classifies:
                best = outputs.flatten(0, -2).softmax(-1).max(-1)
                confidence.append(best.values)
                right.append(best.indices == y.flatten())
            else:
                residual += float(float64_of(outputs.squeeze(-1) - y).square().sum())
    found = {"loss": loss / len(pair[1])}
    if data.classifies:
        hits = torch.cat(right).numpy()
        found["score"] = 100.0 * float(hits.mean())
        p = torch.nan_to_num(torch.cat(confidence)).numpy()  # a diverged network is sure of nothing
        found["calibration error"] = 100.0 * calibration_error(p, hits)
    else:
        spread = float(float64_of(pair[1] - pair[1].mean()).square().sum())
        found["score"] = 100.0 * (1.0 - residual / spread)
    return found


def rounded_score(model: nn.Module, data: Data, bits: int) -> float | None:
    """The test score with rounded weights, each tensor by its own step; None where weights are not finite, or there are none."""
    weights = [p for p in model.parameters() if p.dim() >= 2]
    if not weights or not all(bool(p.isfinite().all()) for p in weights):
        return None
    with robustness.quantized(model, bits, per="tensor"):
        return evaluate(model, data, data.test)["score"]


def measure_sharpness(
    model: nn.Module, data: Data, noise_std: float, filter_std: float, draws: int
) -> dict[str, float | None]:
    """Average sharpness of the training loss on 1,000 examples, isotropic and in proportion to the filters.

    None where the loss under noise is not finite.
    """
    examples = batches((data.train[0][:1000], data.train[1][:1000]))
    found: dict[str, float | None] = {}
    asked: tuple[tuple[str, Scale, float], ...] = (
        ("sharpness", "isotropic", noise_std),
        ("filter sharpness", "filter", filter_std),
    )
    for name, scale, std in asked:
        try:
            result = sharpness.average(model, data.loss, examples, std, scale=scale, samples=draws)
        except ValueError:
            found[name] = None
        else:
            found[name] = result.mean
    return found


def finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
