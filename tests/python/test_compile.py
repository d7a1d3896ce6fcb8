"""torch.compile: operators pass opcheck, and a training step compiled around the optimizer stops recompiling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from front_helpers import Net, batches, loss_of, same_bits, snapshot
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import torch_ssam


def lists(count: int = 2) -> list[Tensor]:
    return [torch.randn(3 + i, 5) for i in range(count)]


def arguments() -> dict[str, tuple[Any, ...]]:
    generator = torch.tensor([3, 4])
    update = (0.1, 0.9, 0.0, 0.01, False, False, False)
    x, w = torch.randn(4, 6, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    return {
        "perturb_": (lists(), lists(), generator, [0, 1], 0.1),
        "perturb_from_clean_": (lists(), lists(), generator, [0, 1], 0.1),
        "perturbed": (torch.randn(7), generator, 0, 0.1),
        "restore_": (lists(), lists()),
        "advance_": (generator, 1),
        "update_": (lists(), lists(), lists(), 0.1, 0.9),
        "update_and_perturb_": (lists(), lists(), lists(), lists(), generator, [0, 1], *update, 0.1),
        "project_": (lists(), 0.5),
        "diagonal": (x, w, generator, 0.1, "gaussian", False),
        "diagonal_backward": (torch.randn(4, 6), x, w, None, 0.0, "gaussian", False, True, True),
    }


@pytest.mark.parametrize("name", list(arguments()))
def test_operators_pass_opcheck(name: str) -> None:
    operator = getattr(torch.ops.torch_ssam, name).default
    # test_autograd_registration wants an autograd kernel, which operators that write into weights have no use for.
    checks = ("test_schema", "test_faketensor")
    if name.startswith("diagonal"):
        checks += ("test_autograd_registration", "test_aot_dispatch_dynamic")
    torch.library.opcheck(operator, arguments()[name], test_utils=checks)


def run(compiled: bool, steps: int = 8) -> tuple[list[Tensor], int]:
    torch._dynamo.reset()
    counter = CompileCounter()
    model = Net()
    opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.1, momentum=0.9, seed=1)
    lr = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
    noise = torch_ssam.schedules.CosineNoiseStd(opt, 10, 2.0)

    def step(x: Tensor, y: Tensor) -> None:
        opt.zero_grad()
        with opt.perturb():
            loss_of(model, x, y).backward()
        opt.step()

    call: Callable[[Tensor, Tensor], None] = torch.compile(step, backend=counter) if compiled else step
    early = 0
    for i, (x, y) in enumerate(batches(steps)):
        call(x, y)
        lr.step()
        noise.step()
        if i == 2:
            early = counter.frame_count
    return snapshot(model), counter.frame_count - early


def test_a_compiled_step_with_schedulers_stops_recompiling_and_keeps_the_bits() -> None:
    eager, _ = run(compiled=False)
    weights, recompiled = run(compiled=True)
    assert recompiled == 0
    assert same_bits(weights, eager)
