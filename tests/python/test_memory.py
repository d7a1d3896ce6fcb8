"""Memory beyond SGD and AdamW is one copy of the parameters at any moment. Measured from the allocations that PyTorch's own
allocator reports to its profiler, so that what the C++ operators take counts too; never by resident size.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import sgd
from torch import nn

import torch_ssam

COUNT, SIZE = 6, 40_000
COPY = 4 * COUNT * SIZE
# Generators, scalars, partial sums: far below one tensor.
SLACK = 4 * SIZE // 8


def peak_bytes(body: Callable[[], Any]) -> tuple[int, int]:
    """(peak, at the end) of the memory that PyTorch's CPU allocator has handed out since `body` began."""
    # Tensors of an earlier test that die in a reference cycle must not be freed in here.
    gc.collect()
    gc.disable()
    try:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            body()
    finally:
        gc.enable()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak, now


def params_with_gradients() -> list[nn.Parameter]:
    params = [nn.Parameter(torch.randn(SIZE)) for _ in range(COUNT)]
    for p in params:
        p.grad = torch.randn(SIZE)
    return params


def gradient(opt: Any) -> None:
    """A backward pass that takes no memory: a pass counts where a gradient changes."""
    first = opt.param_groups[0]["params"][0]
    first.grad = first.grad.detach()


def perturb(opt: Any) -> None:
    with opt.perturb():
        gradient(opt)
    opt.step()


def perturbations(opt: Any) -> None:
    for _ in opt.perturbations():
        gradient(opt)
    opt.step()


def stock(opt: Any) -> None:
    opt.step()


def evaluate(opt: Any) -> None:
    opt.step()
    opt.eval()
    opt.train()
    opt.step()


WAYS: dict[str, tuple[Callable[[Any], None], dict[str, Any]]] = {
    "perturb": (perturb, {}),
    "perturbations": (perturbations, {"samples": 3, "antithetic": True, "clean_weight": 0.5}),
    "kept": (stock, {"keep_perturbed": True}),
    "kept, with a radius": (stock, {"keep_perturbed": True, "radius": 1.0}),
    "kept, evaluating": (evaluate, {"keep_perturbed": True}),
}
# The base of torch, ours, options of both, and how many tensors each parameter has in its state.
RULES: dict[str, tuple[Any, Any, dict[str, Any], int]] = {
    "sgd": (torch.optim.SGD, torch_ssam.SSAM, {}, 0),
    "momentum": (torch.optim.SGD, torch_ssam.SSAM, {"momentum": 0.9}, 1),
    "adamw": (torch.optim.AdamW, torch_ssam.SSAMAdamW, {}, 2),
    "amsgrad": (torch.optim.AdamW, torch_ssam.SSAMAdamW, {"amsgrad": True}, 3),
}
REGENERATED = ("perturb", "perturbations", "kept", "kept, evaluating")


def test_the_measurement_sees_a_tensor_that_comes_and_goes() -> None:
    assert peak_bytes(lambda: torch.empty(SIZE)) == (4 * SIZE, 0)


@pytest.mark.parametrize(
    ("way", "memory"),
    [*((way, "copy") for way in sorted(WAYS)), *((way, "regenerate") for way in REGENERATED)],
)
@pytest.mark.parametrize("rule", RULES)
def test_memory_beyond_the_base_is_one_copy_of_the_parameters_or_none(
    rule: str, way: str, memory: str
) -> None:
    """Beyond SGD with and without momentum, and beyond AdamW."""
    make_base, make, update, states = RULES[rule]
    drive, options = WAYS[way]
    copy = COPY if memory == "copy" else 0
    base = make_base(params_with_gradients(), lr=0.1, fused=True, **update)
    base_peak, base_end = peak_bytes(lambda: [base.step() for _ in range(3)])
    opt = make(params_with_gradients(), lr=0.1, noise_std=0.1, memory=memory, **update, **options)

    def run() -> None:
        opt.train()
        for _ in range(3):
            drive(opt)

    peak, end = peak_bytes(run)
    steps = (
        4 * COUNT if make_base is torch.optim.AdamW else 0
    )  # torch counts them in tensors, and ours in ints
    assert base_end == states * COPY + steps
    assert peak - base_peak <= copy + SLACK
    assert copy - steps <= end - base_end <= copy + SLACK, "the clean copy is kept and nothing else"


@pytest.mark.parametrize("kept", [False, True])
def test_wrapped_optimizers_hold_one_copy_more_than_their_base(kept: bool) -> None:
    base = torch.optim.AdamW(params_with_gradients(), fused=True)
    base_peak, _ = peak_bytes(lambda: [base.step() for _ in range(2)])
    inner = torch.optim.AdamW(params_with_gradients(), fused=True)
    opt = torch_ssam.wrap(inner, 0.1, keep_perturbed=kept)

    def run() -> None:
        opt.train()
        for _ in range(2):
            (stock if kept else perturb)(opt)

    peak, _ = peak_bytes(run)
    assert peak - base_peak <= COPY + SLACK


def test_a_state_dict_taken_in_train_copies_nothing_and_loading_holds_one_copy() -> None:
    opt = torch_ssam.SSAM(params_with_gradients(), noise_std=0.1, momentum=0.9, keep_perturbed=True)
    opt.train()
    opt.step()
    kept: list[Any] = []
    assert peak_bytes(lambda: kept.append(opt.state_dict()))[0] <= SLACK
    assert peak_bytes(lambda: opt.load_state_dict(kept[0]))[0] <= COPY + SLACK
    kept.clear()
    peak, _ = peak_bytes(opt.train)
    assert peak <= COPY + SLACK


def test_diagonal_linear_stores_no_noise() -> None:
    depth, features = 4, 50_000
    ends = []
    for noise_std in (0.0, 0.5):
        layer = torch_ssam.DiagonalLinear(features, depth, noise_std=noise_std, readout="sum")
        x = torch.randn(2, features)
        kept: list[Any] = []
        peak, held = peak_bytes(lambda layer=layer, x=x, kept=kept: kept.append(layer(x)))  # type: ignore[misc]
        assert peak < 4 * features
        backward, _ = peak_bytes(lambda kept=kept: kept[0].sum().backward())  # type: ignore[misc]
        ends.append((held, backward))
    (held, backward), (noisy_held, noisy_backward) = ends
    assert noisy_held - held < 4096
    assert noisy_backward - backward < 4096


class MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2: ten numbers, of which the eighth is the bytes in use."""

    _fields_ = (("before", ctypes.c_size_t * 7), ("in_use", ctypes.c_size_t), ("after", ctypes.c_size_t * 2))


def test_calls_that_an_operator_refuses_keep_no_memory() -> None:
    """A string argument is the operator's to free, whatever else is wrong with the call: two took 96 bytes a call."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("NOT TESTED here: this C library has no mallinfo2 (glibc >= 2.33)")
    libc.mallinfo2.restype = MallocInfo
    ops = torch.ops.torch_ssam
    weights, clean, generator = [torch.ones(3)], [torch.ones(3)], torch.tensor([1, 2])
    calls: dict[str, Callable[[], Any]] = {
        "perturb_": lambda: ops.perturb_(weights, clean, generator, [0], -1.0),
        "perturb_from_clean_": lambda: ops.perturb_from_clean_(weights, clean, generator, [0, 1], 0.1),
        "perturbed": lambda: ops.perturbed(weights[0], generator, -1, 0.1),
        "update_and_perturb_": lambda: ops.update_and_perturb_(
            weights, clean, clean, [], *sgd(-1.0), generator, [0], 0.1
        ),
        "diagonal": lambda: ops.diagonal(weights[0], torch.ones(2, 2), generator, -1.0),
    }

    def refused(call: Callable[[], Any], times: int) -> None:
        for _ in range(times):
            with pytest.raises((ValueError, RuntimeError)):
                call()

    for name, call in calls.items():
        refused(call, 50)
        gc.collect()
        before = libc.mallinfo2().in_use
        refused(call, 1000)
        gc.collect()
        assert libc.mallinfo2().in_use - before < 16_000, name
