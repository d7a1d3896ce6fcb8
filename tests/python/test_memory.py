"""Memory beyond SGD is one copy of the parameters, at any moment of a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import torch_ssam


def peak_growth(step: Any) -> int:
    """Largest sum of live allocations made inside, in bytes, as the CPU allocator reports them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        torch.empty(1)  # the first allocation is not always reported
        step()
    live = peak = 0
    for event in prof.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def parameters() -> list[nn.Parameter]:
    params = [nn.Parameter(torch.randn(64, 64)) for _ in range(6)]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


@pytest.mark.parametrize("keep", [False, True])
def test_noise_adds_one_copy_and_later_steps_add_nothing(keep: bool) -> None:
    params = parameters()
    copy = sum(p.numel() * p.element_size() for p in params)
    opt = torch_ssam.SSAM(params, lr=0.1, noise_std=0.1, momentum=0.9, keep_perturbed=keep, seed=0)

    def step() -> None:
        if keep:
            opt.train()
        else:
            with opt.perturb():
                pass
        opt.step()

    first = peak_growth(step)  # momentum buffers, as SGD has them, and one clean copy
    assert 2 * copy <= first < 2 * copy + copy // 4
    assert peak_growth(step) < copy // 4


def test_plain_sgd_holds_no_clean_copy() -> None:
    params = parameters()
    copy = sum(p.numel() * p.element_size() for p in params)
    opt = torch_ssam.SSAM(params, lr=0.1, noise_std=0.0, momentum=0.9)
    assert copy <= peak_growth(opt.step) < copy + copy // 4
