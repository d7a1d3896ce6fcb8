"""Rounded weights: by hand, and as a slow search in exact fractions finds them.

The slow reference rounds every weight to the nearest level (of two, the one with the even code) in fractions, so it can
differ from float arithmetic only where a weight lies on a tie. Random ones do not, but for the most negative weight of a
"full" row: it lies half a step beyond a level by construction, and either level is as near.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from robustness_models import layer, left_alone

from torch_ssam import robustness
from torch_ssam.robustness._quantizers import GRIDS, Quantizer
from torch_ssam.robustness._weights import rows_of

TOL = 1e-6


def rounded(model: torch.nn.Linear, bits: int, **options: object) -> list[list[float]]:
    with left_alone(model), robustness.quantized(model, bits, **options):
        found: list[list[float]] = model.weight.tolist()
    return found


def slowly(weights: list[float], bits: int, grid: str) -> list[float]:
    """One row, in fractions."""
    half = 2 ** (bits - 1)
    low, high = (1 - half if grid == "narrow" else -half), half - 1
    exact = [Fraction(w) for w in weights]
    least, most = min([*exact, Fraction(0)]), max([*exact, Fraction(0)])
    if grid == "affine":
        step = (most - least) / (high - low)
        zero = low - round(least / step) if step else 0
    else:
        step, zero = max(-least, most) * 2 / (high - low), 0
    if step == 0:
        return [0.0] * len(weights)
    return [float((min(max(round(w / step) + zero, low), high) - zero) * step) for w in exact]


def test_narrow_has_levels_on_both_sides_alike() -> None:
    assert rounded(layer([1.0, 0.4, -0.6], [-3.0, 1.5, 0.0]), 2) == [[1.0, 0.0, -1.0], [-3.0, 0.0, 0.0]]
    assert rounded(layer([3.0, 1.5, -2.5]), 3) == [[3.0, 2.0, -2.0]]  # step 1: halves to even


def test_full_has_one_level_more_below() -> None:
    # 2 bits: step 3 / 1.5 = 2, codes -2 to 1; 3 / 2 = 1.5 rounds to 2 and is cut to 1, -1.5 to -2.
    assert rounded(layer([3.0, 1.0, -3.0, -1.5]), 2, grid="full") == [[2.0, 0.0, -4.0, -2.0]]


def test_affine_spans_what_is_there_and_keeps_zero() -> None:
    # 2 bits from 0 to 3: step 1, code -2 stands for 0.
    assert rounded(layer([3.0, 1.4, 0.2]), 2, grid="affine") == [[3.0, 1.0, 0.0]]
    assert rounded(layer([-3.0, -1.4, 0.0]), 2, grid="affine") == [[-3.0, -1.0, 0.0]]
    assert rounded(layer([2.0, -1.0, 0.0]), 2, grid="affine") == [[2.0, -1.0, 0.0]]


def test_steps_are_shared_as_per_says() -> None:
    rows = [4.0, 1.0, 0.5], [1.0, 0.2, -1.0]
    assert rounded(layer(*rows), 2) == [[4.0, 0.0, 0.0], [1.0, 0.0, -1.0]]
    assert rounded(layer(*rows), 2, per="tensor") == [[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert rounded(layer(*rows), 2, per=2) == [
        [4.0, 0.0, 0.5],
        [1.0, 0.0, -1.0],
    ]  # the last group has one member
    assert rounded(layer(*rows), 2, per=100) == rounded(layer(*rows), 2)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("step", ["absmax", "mse"])
@pytest.mark.parametrize("per", ["filter", "tensor", 2])
def test_a_filter_of_zeros_stays_zeros(grid: str, step: str, per: str | int) -> None:
    assert rounded(layer([0.0, 0.0, 0.0]), 3, grid=grid, step=step, per=per) == [[0.0, 0.0, 0.0]]
    tiny = rounded(layer([1e-45, 0.0, -1e-42]), 3, grid=grid, step=step, per=per)  # below the normal numbers
    assert all(abs(w) < 1e-37 for w in tiny[0])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("columns", [1, 7, 33])
def test_weights_are_those_of_a_slow_exact_search(grid: str, bits: int, columns: int) -> None:
    torch.manual_seed(bits * 100 + columns)
    model = layer(*(torch.randn(5, columns, dtype=torch.float64) + 0.3).tolist(), dtype=torch.float64)
    expected = [slowly(row, bits, grid) for row in model.weight.tolist()]
    found = rounded(model, bits, grid=grid)
    for weights, ours, others in zip(model.weight.tolist(), found, expected, strict=True):
        top = max(map(abs, weights))
        for w, a, b in zip(weights, ours, others, strict=True):
            if grid == "full" and w == -top:
                assert abs(a - w) == pytest.approx(abs(b - w), rel=1e-5)
            else:
                assert a == pytest.approx(b, rel=TOL, abs=TOL)
    levels = {len(set(row)) for row in found}
    assert max(levels) <= Quantizer(bits, grid).levels


@pytest.mark.parametrize("grid", GRIDS)
def test_no_weight_is_further_than_half_a_step_from_its_own(grid: str) -> None:
    """Except what "full" cuts off above: its largest code is half a step short of the range."""
    torch.manual_seed(0)
    rows = torch.randn(9, 50, dtype=torch.float64)
    encoded = Quantizer(4, grid, "absmax").encode(rows)
    gap = (encoded.values() - rows).abs() / encoded.step
    assert float(gap[rows < rows.amax(1, keepdim=True)].max()) <= 0.5 + 1e-9
    assert float(gap.max()) <= (0.5 if grid != "affine" else 1.0) + 1e-9  # an affine zero point is rounded


def test_the_number_of_levels_is_what_the_grid_says() -> None:
    for bits, grid in itertools.product(range(2, 17), GRIDS):
        assert Quantizer(bits, grid).levels == 2**bits - (grid == "narrow")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_mse_step_is_never_worse_and_the_best_of_a_fine_search(grid: str, bits: int) -> None:
    torch.manual_seed(bits)
    rows = torch.randn(6, 200, dtype=torch.float64)
    plain, best = (Quantizer(bits, grid, step).encode(rows) for step in ("absmax", "mse"))
    ratio = (best.step / plain.step)[:, 0]
    assert bool((ratio > 0).all())
    assert bool((ratio <= 1).all())

    def error(factor: float) -> torch.Tensor:
        step = plain.step * factor
        codes = (torch.round(rows / step) + plain.zero).clamp(plain.codes.min(), plain.codes.max())
        return ((codes - plain.zero) * step - rows).square().sum(1)

    assert torch.allclose(error(1.0), (plain.values() - rows).square().sum(1))
    found = (best.values() - rows).square().sum(1)
    coarse = torch.stack([error(k / 64) for k in range(1, 65)]).amin(0)
    finest = torch.stack([error(k / 4096) for k in range(1, 4097)]).amin(0)
    assert bool((found <= coarse * (1 + 1e-9)).all())
    assert bool((found <= finest * 1.1).all())  # a step within 1/1024 of the best
    if bits == 2:
        assert bool((found < 0.6 * error(1.0)).all())  # three or four levels: most is gained there


def test_rounding_what_is_rounded_changes_nothing() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(20, 5)
    with robustness.quantized(model, 4):
        once = model.weight.detach().clone()
        with robustness.quantized(model, 4):
            assert torch.equal(model.weight, once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_are_rounded_in_float32_and_once_to_their_dtype(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(40, 8).to(dtype)
    as_float = torch.nn.Linear(40, 8)
    as_float.load_state_dict(model.state_dict())
    with left_alone(model), robustness.quantized(model, 4), robustness.quantized(as_float, 4):
        assert model.weight.dtype == dtype
        assert torch.equal(model.weight, as_float.weight.to(dtype))


@pytest.mark.parametrize("per", ["filter", "tensor", 1, 3, 5, 1000])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (5, 2, 3, 3), (1, 7)])
def test_rows_put_together_are_the_tensor(per: str | int, shape: tuple[int, ...]) -> None:
    weights = torch.randn(shape).transpose(0, 1)
    for axis in range(len(shape)):
        rows, undo = rows_of(weights, axis, per)
        assert torch.equal(undo(rows), weights)
        if per == "filter":
            assert torch.equal(rows[0], weights.select(axis, 0).reshape(-1))


@pytest.mark.parametrize("bits", [1, 0, -3, 17, 2.5, "4", None, True])
def test_bits_out_of_range_are_refused(bits: object) -> None:
    model = layer([1.0, 2.0])
    with left_alone(model):
        with pytest.raises((TypeError, ValueError), match=r"bits is .*; expected"):
            robustness.quantized(model, bits)
        with pytest.raises((TypeError, ValueError), match=r"bits is .*; expected"):
            robustness.bit_flips(model, 0.1, bits)


@pytest.mark.parametrize("bad", [{"grid": "odd"}, {"step": "max"}, {"per": "row"}, {"per": 0}, {"per": 1.5}])
def test_unknown_options_are_refused(bad: dict[str, object]) -> None:
    (name,) = bad
    model = layer([1.0, 2.0])
    with left_alone(model), pytest.raises((TypeError, ValueError), match=f"{name} is .*; expected"):
        robustness.quantized(model, 4, **bad)
