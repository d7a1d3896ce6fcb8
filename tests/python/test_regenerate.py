"""memory="regenerate": the stated bound on its rounding, the numbers of memory="copy" where nothing rounds, and what it
refuses. Interrupts are in test_signals.py, memory in test_memory.py.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import nn

import torch_ssam

LARGEST = 6.56  # of the standard noise (csrc/math/noise.h)


@pytest.mark.parametrize(
    ("dtype", "unit"), [(torch.float32, 2.0**-24), (torch.float64, 2.0**-53)], ids=["float32", "float64"]
)
def test_rounding_over_ten_thousand_steps_stays_within_the_stated_bound(
    dtype: torch.dtype, unit: float
) -> None:
    steps, std = 10_000, 0.05
    weights = torch.randn(400, dtype=dtype, generator=torch.Generator().manual_seed(0))
    p = nn.Parameter(weights.clone())
    noise = torch_ssam.WeightNoise([p], std, memory="regenerate", seed=1)
    drift = torch.zeros_like(weights)
    for _ in range(steps):
        with noise.applied():
            assert not torch.equal(p, weights)
        drift = torch.maximum(drift, (p.detach() - weights).abs())
    bound = steps * unit * (2 * weights.abs() + LARGEST * std) * (1 + 1e-3)
    assert bool((drift <= bound).all())
    assert float(drift.max()) > 0, "it does round: the bound is about something"
    # Rounding errors of both signs: the weights wander like a random walk, far below the bound.
    assert float(drift.max()) <= 10 * steps**0.5 * unit * float(2 * weights.abs().max() + LARGEST * std)


@pytest.mark.parametrize("way", sorted(front.ONE_PASS))
@pytest.mark.parametrize("make", [front.ssam, front.adamw, front.wrapped_sgd], ids=["ssam", "adamw", "wrap"])
def test_it_trains_as_a_copy_does_up_to_rounding(way: str, make: Callable[..., Any]) -> None:
    ends = []
    for memory in ("copy", "regenerate"):
        model = front.Net(dtype=torch.float64)
        opt = make(model, memory=memory)
        front.ONE_PASS[way](opt, model, front.batches(20, dtype=torch.float64))
        ends.append(front.snapshot(model))
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@front.both_rules
def test_keep_perturbed_trains_as_a_copy_does_also_over_a_checkpoint(make: Callable[..., Any]) -> None:
    ends = []
    for memory in ("copy", "regenerate"):
        model = front.Net(dtype=torch.float64)
        opt = make(model, memory=memory, keep_perturbed=True)
        opt.train()
        front.by_stock_loop(opt, model, front.batches(6, dtype=torch.float64))
        carried = copy.deepcopy(opt.state_dict())
        opt.eval()
        clean = front.snapshot(model)
        for key, p in enumerate(clean):
            torch.testing.assert_close(carried["state"][key]["clean"], p, rtol=0, atol=1e-15)
        resumed = make(model, memory=memory, keep_perturbed=True)
        resumed.load_state_dict(carried)
        resumed.train()
        front.by_stock_loop(resumed, model, front.batches(6, dtype=torch.float64))
        resumed.eval()
        ends.append(front.snapshot(model))
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kept", [False, True])
def test_the_clean_bits_are_back_where_nothing_rounds(kept: bool) -> None:
    model = front.Net()
    front.on_a_grid(model)
    clean = front.snapshot(model)
    opt = front.ssam(model, **front.REGENERATED, keep_perturbed=kept)
    for _ in range(3):
        if kept:
            opt.train()
            assert not front.same_bits(model.parameters(), clean)
            opt.eval()
        else:
            with contextlib.suppress(front.Alarm), opt.perturb():
                assert not front.same_bits(model.parameters(), clean)
                raise front.Alarm
        assert front.same_bits(model.parameters(), clean)


def test_a_noise_std_changed_inside_does_not_matter_to_what_is_taken_off() -> None:
    model = front.Net()
    front.on_a_grid(model)
    clean = front.snapshot(model)
    opt = front.ssam(model, **front.REGENERATED)
    with opt.perturb():
        opt.param_groups[0].update(noise_std=9.0, distribution="gaussian", memory="copy")
    assert front.same_bits(model.parameters(), clean)


def test_parameters_written_to_inside_are_named_and_the_others_restored() -> None:
    model = front.Net()
    front.on_a_grid(model)
    clean = front.snapshot(model)
    opt = front.ssam(model, **front.REGENERATED)
    with (
        pytest.raises(torch_ssam.PerturbedWeightsChanged, match=r"Parameter 1 of shape \(7,\)"),
        opt.perturb(),
        torch.no_grad(),
    ):
        model.bias.fill_(3.0)
    clean[1] = torch.full((7,), 3.0)
    assert front.same_bits(model.parameters(), clean)


def test_groups_may_differ_in_memory() -> None:
    model = front.Net()
    front.on_a_grid(model)
    params = list(model.parameters())
    opt = torch_ssam.SSAM(
        [{"params": params[:2], **front.REGENERATED}, {"params": params[2:], "noise_std": 0.1}],
        lr=0.0,
        keep_perturbed=True,
        seed=3,
    )
    clean = front.snapshot(model)
    opt.train()
    front.by_stock_loop(opt, model, front.batches(3))
    assert not front.same_bits(model.parameters(), clean)
    opt.eval()
    assert front.same_bits(model.parameters(), clean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_parameters_are_refused(dtype: torch.dtype) -> None:
    model = front.Net(dtype=dtype)
    with pytest.raises(ValueError, match="expected float32 or float64"):
        front.ssam(model, memory="regenerate")
    with pytest.raises(ValueError, match="expected float32 or float64"):
        torch_ssam.WeightNoise(model.parameters(), 0.1, memory="regenerate")


def test_a_module_cast_to_sixteen_bits_later_is_refused_before_anything_is_written() -> None:
    model = front.Net()
    opt = front.ssam(model, memory="regenerate")
    model.half()
    clean = front.snapshot(model)
    with pytest.raises(ValueError, match="expected float32 or float64"), opt.perturb():
        pass
    assert front.same_bits(model.parameters(), clean)


def test_an_unknown_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="memory is 'none'; expected one of 'copy', 'regenerate'"):
        front.ssam(front.Net(), memory="none")
