"""Noise and bit flips by hand and by slow references, and the exact bits afterwards, whatever happened inside.

False-alarm rates: frequencies are held against their exact binomial or normal bounds at 6 standard deviations, seeds fixed.
"""

from __future__ import annotations

import gc
import math
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from robustness_models import bits_of, convolutional, images, layer, left_alone
from torch import nn

import torch_ssam
from torch_ssam import robustness

Context = Callable[[nn.Module], AbstractContextManager[None]]

CONTEXTS: dict[str, Context] = {
    "quantized": lambda m: robustness.quantized(m, 3),
    "mse": lambda m: robustness.quantized(m, 2, step="mse", per=3, grid="affine"),
    "noisy": lambda m: robustness.noisy(m, 0.3),
    "absolute": lambda m: robustness.noisy(m, 0.3, None),
    "read": lambda m: robustness.noisy(m, 0.3, "tensor", kind="read"),
    "flips": lambda m: robustness.bit_flips(m, 0.2, 6),
}


@pytest.fixture(params=CONTEXTS)
def context(request: pytest.FixtureRequest) -> Context:
    return CONTEXTS[request.param]


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


# -- the exact bits back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_exact_bits_are_back(context: Context, dtype: torch.dtype) -> None:
    model = convolutional().to(dtype)
    x = images()[0][0].to(dtype)
    clean = weights(model)
    with left_alone(model):
        with context(model), torch.no_grad():
            model(x)
            for p, before in zip(model.parameters(), clean, strict=True):
                assert torch.equal(p, before) == (p.dim() < 2)  # biases and BatchNorm stay
        assert torch.equal(model(x), model(x))


def test_the_exact_bits_are_back_after_an_exception_and_after_ctrl_c(context: Context) -> None:
    model = convolutional()
    for error in (KeyError, KeyboardInterrupt):
        with left_alone(model), pytest.raises(error), context(model):
            raise error
    with left_alone(model), pytest.raises(KeyboardInterrupt), context(model):
        signal.raise_signal(signal.SIGINT)


def test_the_exact_bits_are_back_if_the_context_is_let_go_of(context: Context) -> None:
    model = convolutional()
    with left_alone(model):
        opened = context(model)
        opened.__enter__()
        del opened
        gc.collect()


def test_the_exact_bits_are_back_where_weights_were_written_to_inside(context: Context) -> None:
    model = convolutional()
    x, y = images()[0]
    with left_alone(model), context(model):
        loss = nn.functional.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                if p.dim() >= 2:
                    p.sub_(g)


def test_the_exact_bits_are_back_where_parameters_were_moved_inside(context: Context) -> None:
    """`.half()` and the like give a parameter other memory; the old one is put back."""
    model = convolutional()
    with left_alone(model):
        addresses = [p.data_ptr() for p in model.parameters() if p.dim() >= 2]
        with context(model):
            for p in model.parameters():
                if p.dim() >= 2:
                    p.data = p.data.half()
                    p.requires_grad_(False)
        assert [p.data_ptr() for p in model.parameters() if p.dim() >= 2] == addresses


def test_gradients_taken_inside_stay(context: Context) -> None:
    """A step of quantisation-aware or noisy training: the gradient at disturbed weights, for the clean ones."""
    model = convolutional()
    clean = weights(model)
    x, y = images()[0]
    with context(model):
        nn.functional.cross_entropy(model(x), y).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model[6].parameters())
    assert all(map(torch.equal, weights(model), clean))


@pytest.mark.parametrize("at", range(1, 30))
def test_the_exact_bits_are_back_if_ctrl_c_strikes_anywhere_while_entering(context: Context, at: int) -> None:
    """An interrupt at the n-th of the context's own function calls, on the way in or out."""
    model = convolutional()
    calls = 0

    def trace(frame: Any, event: str, _: object) -> None:
        nonlocal calls
        if (
            event == "call"
            and "robustness" in frame.f_code.co_filename
            and "tests" not in frame.f_code.co_filename
        ):
            calls += 1
            if calls == at:
                sys.setprofile(None)
                raise KeyboardInterrupt

    with left_alone(model):
        opened = context(model)
        try:
            sys.setprofile(trace)
            with opened:
                pass
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        del opened


def test_contexts_nest_and_each_puts_back_what_it_found() -> None:
    model = convolutional()
    with left_alone(model), robustness.quantized(model, 3):
        rounded = weights(model)
        with robustness.noisy(model, 0.1), robustness.bit_flips(model, 0.1):
            assert not torch.equal(model[0].weight, rounded[0])
        assert all(map(torch.equal, weights(model), rounded))


def test_a_context_may_be_entered_again_but_not_inside_itself(context: Context) -> None:
    model = convolutional()
    opened = context(model)
    with left_alone(model):
        with opened:
            first = weights(model)
        with opened:
            again = weights(model)
            with pytest.raises(RuntimeError, match="inside itself"), opened:
                pass
            assert all(map(torch.equal, weights(model), again))
    if context is not CONTEXTS["read"]:  # whose draws go on
        assert all(map(torch.equal, first, again))


def test_autocast_sees_the_disturbed_weights(context: Context) -> None:
    """Its cache keeps casts of weights for a whole block."""
    model = convolutional()
    x = images()[0][0]
    with left_alone(model), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        clean = model(x)
        with context(model):
            assert not torch.equal(model(x), clean)
        assert torch.equal(model(x), clean)


# -- noise -----------------------------------------------------------------------------------------------------


def test_noise_is_weight_noise_in_units_of_the_range() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 5))
    params = [p.detach().requires_grad_() for p in model.parameters()]
    xi = torch_ssam.WeightNoise(params, 1.0, seed=7)
    for draw in range(2):
        xi.load_state_dict({"seed": 7, "draw": draw})
        drawn = [xi.noise(p) for p in params]
        for relative_to in ("filter", "tensor", None):
            clean = weights(model)
            with left_alone(model), robustness.noisy(model, 0.2, relative_to, seed=7, draw=draw):
                for p, w, z in zip(model.parameters(), clean, drawn, strict=True):
                    if p.dim() < 2:
                        assert torch.equal(p, w)
                        continue
                    shape = (-1, *[1] * (w.dim() - 1))
                    top = {
                        "filter": w.flatten(1).abs().amax(1).view(shape),
                        "tensor": w.abs().max(),
                        None: torch.ones(()),
                    }[relative_to]
                    assert torch.allclose(p, w + 0.2 * top * z, rtol=1e-6, atol=1e-7)


def test_noise_has_the_standard_deviation_asked_for() -> None:
    model = nn.Linear(1000, 40)
    clean = model.weight.detach().clone()
    tops = clean.abs().amax(1)
    with robustness.noisy(model, 0.1):
        z = (model.weight.detach() - clean) / (0.1 * tops[:, None])
    assert abs(float(z.mean())) < 6 / math.sqrt(z.numel())
    assert abs(float(z.square().mean()) - 1) < 6 * math.sqrt(2 / z.numel())
    each = z.square().mean(1)
    assert bool(((each - 1).abs() < 6 * math.sqrt(2 / 1000)).all())


def test_a_chip_depends_on_seed_draw_and_place_only() -> None:
    model = convolutional()

    def disturbed(**options: Any) -> list[torch.Tensor]:
        with left_alone(model), robustness.noisy(model, 0.1, **options):
            return weights(model)

    def flipped(**options: Any) -> list[torch.Tensor]:
        with left_alone(model), robustness.bit_flips(model, 0.1, **options):
            return weights(model)

    for make in (disturbed, flipped):
        first = make(seed=1)
        assert all(map(torch.equal, make(seed=1, draw=0), first))
        torch.set_num_threads(2)
        assert all(map(torch.equal, make(seed=1), first))
        assert not torch.equal(make(seed=2)[0], first[0])
        assert not torch.equal(make(seed=1, draw=1)[0], first[0])
        others = make(seed=1, skip="0")  # leaving the first layer out changes no other's noise
        assert not torch.equal(others[0], first[0])
        assert torch.equal(others[4], first[4])


def test_a_seed_of_none_is_taken_from_torch() -> None:
    model = convolutional()
    for make in (
        lambda: robustness.noisy(model, 0.1, seed=None),
        lambda: robustness.bit_flips(model, 0.1, seed=None),
    ):
        found = []
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            with make():
                found.append(weights(model)[0])
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])


def test_noise_of_16_bit_weights_is_that_of_float32_rounded_once() -> None:
    model = convolutional().to(torch.bfloat16)
    wide = convolutional()
    wide.load_state_dict(model.state_dict())
    with left_alone(model), robustness.noisy(model, 0.1), robustness.noisy(wide, 0.1):
        for p, q in zip(model.parameters(), wide.parameters(), strict=True):
            assert torch.equal(p, q.to(torch.bfloat16))


def test_a_filter_of_zeros_gets_no_relative_noise() -> None:
    model = layer([0.0, 0.0], [1.0, -2.0])
    with robustness.noisy(model, 0.5):
        assert model.weight[0].tolist() == [0.0, 0.0]
        assert (model.weight[1] != torch.tensor([1.0, -2.0])).all()


def test_columns_of_a_transposed_layer_have_ranges_of_their_own() -> None:
    model = nn.ConvTranspose1d(50, 2, 1, bias=False)
    with torch.no_grad():
        model.weight[:, 1] = 0.0
    clean = model.weight.detach().clone()
    with robustness.noisy(model, 0.5):
        moved = model.weight.detach() != clean
    assert bool(moved[:, 0].all())
    assert not bool(moved[:, 1].any())


def test_noise_of_nothing_leaves_the_weights() -> None:
    model = convolutional()
    before = [bits_of(p) for p in model.parameters()]
    for context in (robustness.noisy(model, 0.0), robustness.noisy(model, 0, kind="read")):
        with context:
            assert [bits_of(p) for p in model.parameters()] == before


def test_read_noise_is_new_in_every_forward_pass() -> None:
    model = convolutional()
    x = images()[0][0]
    chips = []
    for draw in range(3):
        with robustness.noisy(model, 0.1, seed=3, draw=draw), torch.no_grad():
            chips.append(model(x))
    with left_alone(model), robustness.noisy(model, 0.1, kind="read", seed=3), torch.no_grad():
        read = [model(x) for _ in range(3)]
    assert all(map(torch.equal, read, chips))
    assert not torch.equal(read[0], read[1])
    with left_alone(model), robustness.noisy(model, 0.1, seed=3), torch.no_grad():
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf"), "much", None, True])
def test_a_std_that_is_no_number_from_0_up_is_refused(bad: object) -> None:
    model = convolutional()
    with left_alone(model), pytest.raises((TypeError, ValueError), match=r"std is .*; expected"):
        robustness.noisy(model, bad)


@pytest.mark.parametrize(
    "bad",
    [{"relative_to": "row"}, {"kind": "drift"}, {"draw": -1}, {"draw": 0.5}, {"seed": "a"}, {"seed": 2**63}],
)
def test_unknown_options_of_noise_are_refused(bad: dict[str, Any]) -> None:
    (name,) = bad
    model = convolutional()
    with left_alone(model), pytest.raises((TypeError, ValueError), match=f"{name} is .*; expected"):
        robustness.noisy(model, 0.1, **bad)


# -- bit flips -------------------------------------------------------------------------------------------------


def slow_flips(codes: list[int], bits: int, rate: float, seed: int, place: int, draw: int) -> list[int]:
    """Bit by bit, with words taken one at a time from NumPy's generator."""
    source = np.random.Philox(
        key=np.array([seed, place], dtype=np.uint64), counter=np.array([0, 0, 0, draw], dtype=np.uint64)
    )
    waiting: list[int] = []
    flipped = []
    for code in codes:
        pattern = code % 2**bits
        for j in range(bits):
            if not waiting:
                word = int(source.random_raw())
                waiting = [word % 2**32, word // 2**32]
            if waiting.pop(0) < int(rate * 2**32):
                pattern ^= 1 << j
        flipped.append(pattern - 2**bits if pattern >= 2 ** (bits - 1) else pattern)
    return flipped


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 1.0])
def test_flips_are_those_of_a_slow_reference(bits: int, rate: float) -> None:
    high = 2 ** (bits - 1) - 1
    torch.manual_seed(0)
    codes = torch.randint(-high, high + 1, (7, 11)).double()
    codes[:, 0] = high  # so that the step is 1
    model = nn.Sequential(nn.Identity(), nn.Linear(11, 7, dtype=torch.float64))
    with torch.no_grad():
        model[1].weight.copy_(codes)
    with left_alone(model), robustness.bit_flips(model, rate, bits, seed=11, draw=2):
        found = model[1].weight.flatten().tolist()
    assert found == slow_flips([int(c) for c in codes.flatten()], bits, rate, 11, 0, 2)


def test_bits_flip_at_the_rate_asked_for_each_as_often() -> None:
    bits, rate, n = 5, 0.02, 600_000
    model = nn.Linear(600, 1000, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randint(-15, 16, (1000, 600)).float())
        model.weight[:, 0] = 15
    codes = model.weight.detach().to(torch.int64)
    with robustness.bit_flips(model, rate, bits):
        changed = (model.weight.detach().to(torch.int64) % 32) ^ (codes % 32)
    bound = 6 * math.sqrt(rate * (1 - rate) * n)
    for j in range(bits):
        assert abs(int((changed >> j & 1).sum()) - rate * n) < bound
    both = int(((changed & 3) == 3).sum())  # independent of each other
    assert abs(both - rate**2 * n) < 6 * math.sqrt(rate**2 * n)


def test_no_flips_is_rounding() -> None:
    model = convolutional()
    for options in ({}, {"grid": "affine"}, {"per": 4, "step": "mse"}):
        with robustness.quantized(model, 4, **options):
            rounded = weights(model)
        with robustness.bit_flips(model, 0.0, 4, **options):
            assert all(map(torch.equal, weights(model), rounded))


def test_flips_decode_with_step_and_zero_point() -> None:
    model = layer([3.0, 1.0, 0.0])  # affine, 2 bits: step 1, codes 1, -1, -2; all bits flipped: -2, 0, 1
    with robustness.bit_flips(model, 1.0, 2, grid="affine"):
        assert model.weight.tolist() == [[0.0, 2.0, 3.0]]
    model = layer([3.0, 1.0, 0.0])  # full: step 2, codes 1 (1.5 cut), 0 (0.5 to even), 0
    with robustness.bit_flips(model, 1.0, 2, grid="full"):
        assert model.weight.tolist() == [[-4.0, -2.0, -2.0]]


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), "often", None])
def test_rates_outside_0_to_1_are_refused(bad: object) -> None:
    model = convolutional()
    with left_alone(model), pytest.raises((TypeError, ValueError), match=r"rate is .*; expected"):
        robustness.bit_flips(model, bad, 8)
