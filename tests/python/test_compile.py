"""torch.compile and FakeTensor: every operator passes opcheck, and a compiled training step goes on without compiling
again while schedulers change lr and noise_std. test_peers.py, row 21.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import front_helpers as front
import pytest
import torch
from cases import sgd
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import torch_ssam


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.config.error_on_recompile = False
    torch._dynamo.reset()


def stock(opt: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = front.loss_of(model, x, y)
    loss.backward()
    opt.step()
    opt.zero_grad()
    return loss.detach()


def perturb(opt: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with opt.perturb():
        loss = front.loss_of(model, x, y)
        loss.backward()
    opt.step()
    opt.zero_grad()
    return loss.detach()


def closure(opt: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    def one() -> Tensor:
        opt.zero_grad()
        loss = front.loss_of(model, x, y)
        loss.backward()
        return loss

    result: Tensor = opt.step(one)
    return result.detach()


def perturbations(opt: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    for _ in opt.perturbations():
        loss = front.loss_of(model, x, y)
        loss.backward()
    opt.step()
    opt.zero_grad()
    return loss.detach()


STEPS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "perturb": (perturb, {}),
    "closure": (closure, {}),
    "perturbations": (perturbations, {"samples": 2}),
    "kept": (stock, {"keep_perturbed": True}),
}


@pytest.mark.parametrize("way", sorted(STEPS))
@pytest.mark.parametrize("what", ["step", "model"])
@pytest.mark.parametrize(
    "make", [front.ssam, front.adamw, front.wrapped_adamw], ids=["ssam", "adamw", "wrap"]
)
def test_schedulers_of_lr_and_noise_std_compile_nothing_again_and_the_numbers_stay(
    way: str, what: str, make: Callable[..., Any]
) -> None:
    step, options = STEPS[way]
    ends = []
    for compiled in (True, False):
        counter = CompileCounterWithBackend("eager")
        model: Any = front.Net()
        opt = make(model, **options)
        run, net = step, model
        if compiled:
            run = torch.compile(step, backend=counter) if what == "step" else step
            net = torch.compile(model, backend=counter) if what == "model" else model
        lr = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
        noise = torch_ssam.schedules.LambdaNoiseStd(opt, lambda k: 0.95**k)
        opt.train()
        for k, (x, y) in enumerate(front.batches(8)):
            torch._dynamo.config.error_on_recompile = k >= 2
            run(opt, net, x, y)
            lr.step()
            noise.step()
            if k == 2:
                settled = counter.frame_count
        torch._dynamo.config.error_on_recompile = False
        assert counter.frame_count == settled
        assert not compiled or counter.frame_count >= 1, "nothing was compiled: the test would prove nothing"
        opt.eval()
        ends.append([*front.snapshot(model), *front.optimizer_bits(opt)])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


# -- opcheck -------------------------------------------------------------------------------------------------


def lists(count: int = 3) -> list[Tensor]:
    return [torch.randn(2, 5), torch.randn(7), torch.randn(())][:count]


def generator() -> Tensor:
    return torch.tensor([3, 1], dtype=torch.int64)


SAMPLES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "perturb_": lambda: (lists(), lists(), generator(), [0, 1, 2], 0.1, "gaussian", 0, False, 0),
    "perturb_from_clean_": lambda: (
        lists(), lists(), generator(), [0, 1, 2], 0.1, "rademacher", 2, True, 1, "isotropic", None,
        [9, 5, 4, 0, 8, 1],
    ),
    "restore_": lambda: (lists(), lists()),
    "follow_": lambda: (lists(), lists()),
    "advance_": lambda: (generator(), 1),
    "update_": lambda: (lists(), lists(), lists(), *sgd(0.1, 0.9, 0.0, 0.01, True)),
    "update_and_perturb_": lambda: (
        lists(), lists(), lists(), lists(), *sgd(0.1, 0.9, 0.0, 0.01), generator(), [0, 1, 2], 0.3, "gaussian", 1,
        "isotropic", None, None, [1, 1, 2],
    ),
    "update_rows_and_perturb_": lambda: (
        lists(), lists(), lists(), lists(), *sgd(0.1, 0.9, 0.0, 0.01), generator(), [0, 1, 2], 1.2,
        [torch.ones(2), torch.ones(1), torch.ones(1)], 0.3, "gaussian", 1, "rows", "absmax",
    ),
    "add_squares_": lambda: (torch.ones((), dtype=torch.float64), lists()),
    "project_": lambda: (lists(), 1.0, torch.full((1,), 9.0, dtype=torch.float64)),
    "row_scales_": lambda: ([torch.ones(2), torch.ones(1), torch.ones(1)], lists(), [], 0.0),
    "row_fisher_": lambda: ([torch.ones(2), torch.ones(7), torch.ones(1)], lists(), 0.9),
    "clip_rows_": lambda: (lists(), 1.1),
    "perturbed": lambda: (torch.randn(4, 5), generator(), 0, 0.1, "gaussian", 0, False, 0),
    "diagonal": lambda: (
        torch.randn(4, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True), generator(), 0.1, "gaussian", True,
    ),
    "diagonal_backward": lambda: (
        torch.randn(4, 5), torch.randn(4, 5), torch.randn(3, 5), None, 0.0, "gaussian", False, True, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_operator_passes_opcheck(name: str) -> None:
    operator = getattr(torch.ops.torch_ssam, name).default
    tests = ["test_schema", "test_faketensor", "test_autograd_registration"]
    if name in ("diagonal", "diagonal_backward"):
        tests.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(operator, SAMPLES[name](), test_utils=tests)


def test_every_operator_with_tensors_is_checked_here() -> None:
    names = {
        schema.name.removeprefix("torch_ssam::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("torch_ssam::") and any("Tensor" in str(a.type) for a in schema.arguments)
    }
    assert names == set(SAMPLES)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_fake_tensors_go_through_every_operator(name: str) -> None:
    operator = getattr(torch.ops.torch_ssam, name)
    real = copy.deepcopy(SAMPLES[name]())
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [
            mode.from_tensor(a)
            if isinstance(a, Tensor)
            else [mode.from_tensor(t) for t in a]
            if isinstance(a, list) and a and isinstance(a[0], Tensor)
            else a
            for a in real
        ]
        result = operator(*fake)
    expected = operator(*real)
    for a, b in zip(*(list(r) if isinstance(r, tuple) else [r] for r in (result, expected)), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
