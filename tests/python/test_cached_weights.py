"""Blocks in which PyTorch remembers what it computed from weights (autocast's casts, parametrize.cached): passes, steps
and measures inside one give the bits that they give without its cache. Row 40 of test_peers.py; autocast's own tests of
training are in test_loops.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import torch_ssam
from torch_ssam import sharpness

BLOCKS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {  # with the cache, and without it
    "parametrize": (parametrize.cached, contextlib.nullcontext),
    "autocast": (
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    ),
}


def layer() -> nn.Module:
    torch.manual_seed(0)
    return parametrizations.weight_norm(nn.Linear(5, 3))


@pytest.mark.parametrize("way", ["perturb", "perturbations", "closure", "kept"])
@pytest.mark.parametrize("memory", ["copy", "regenerate"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_passes_and_steps_see_their_own_weights(kind: str, memory: str, way: str) -> None:
    ends = []
    for block in BLOCKS[kind]:
        model = layer()
        options: dict[str, Any] = {"kept": {"keep_perturbed": True}, "perturb": {}}.get(way, {"samples": 2})
        opt = torch_ssam.SSAM(model.parameters(), noise_std=0.5, seed=0, memory=memory, **options)
        with block():
            model(front.data()[0])  # computed at the clean weights
            opt.train()
            drive = front.by_stock_loop if way == "kept" else getattr(front, f"by_{way}")
            drive(opt, model, front.batches(3))
            last = model(front.data()[0]).detach()
            opt.eval()
            clean = model(front.data()[0]).detach()
        ends.append([*front.snapshot(model), last, clean])
    assert front.same_bits(*ends)
    kept_noise = not torch.equal(last, clean)
    assert kept_noise == (way == "kept")


@pytest.mark.parametrize("kind", BLOCKS)
def test_loaded_clean_weights_are_seen(kind: str) -> None:
    model = layer()
    opt = torch_ssam.SSAM(model.parameters(), noise_std=0.5, keep_perturbed=True, seed=0)
    x = front.data()[0]
    cached, plain = BLOCKS[kind]
    with plain():
        expected = model(x).detach()
    opt.attach(model)
    opt.train()
    saved = opt.state_dict()
    with cached():
        model(x)
        opt.load_state_dict(saved)
        opt.eval()
        assert front.same_bits([model(x).detach()], [expected])


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.mse_loss(outputs.float(), targets)


MEASURES: dict[str, Callable[[nn.Module], float]] = {
    "average": lambda m: sharpness.average(m, mse, front.batches(1), 0.2, samples=2, seed=0).mean,
    "worst_case": lambda m: (
        sharpness.worst_case(m, mse, front.batches(1), 0.5, steps=3, restarts=1, seed=0).increase
    ),
    "landscape": lambda m: float(
        sharpness.landscape(m, mse, front.batches(1), points=3, seed=0).losses.sum()
    ),
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("kind", BLOCKS)
def test_measures_of_sharpness_see_the_weights_that_they_write(kind: str, name: str) -> None:
    found = []
    for block in BLOCKS[kind]:
        model = layer()
        with block():
            model(front.data()[0])
            found.append(MEASURES[name](model))
    assert found[0] == found[1] != 0.0
