"""Noise by rows and by element: row_scales_ and row_fisher_ against float64 norms and, bit for bit, against their
documented order of addition; the scaled perturbations against the NumPy noise, for sizes, dtypes, layouts, thread
counts and CPU variants.
"""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from cases import DTYPES, LAYOUTS, PAIRS, SIZES, generator_of, random, random_like, same_layout, sgd
from reference import same_bits

ops = torch.ops.torch_ssam
STD = 2.0**-7  # a power of two: its products are exact
SEED, DRAW = 1234567890123, 42
DISTRIBUTIONS = ("gaussian", "rademacher")


def fma64(value: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """value^2 + total; exact before the sum for float32 values and narrower ones, so one rounding."""
    return value * value + total


def documented_sum(row: torch.Tensor) -> float:
    """Pieces of 4096; in each 16 lanes, then a tree of widths 8, 4, 2, 1; pieces in order."""
    total = 0.0
    for piece in row.double().split(4096):
        lanes = torch.zeros(16, dtype=torch.float64)
        for part in piece.split(16):
            lanes[: len(part)] = fma64(part, lanes[: len(part)])
        for width in (8, 4, 2, 1):
            lanes = lanes[:width] + lanes[width : 2 * width]
        total += float(lanes[0])
    return total


def row_scales_of(weights: torch.Tensor, rows: int, kind: str = "norm") -> torch.Tensor:
    scales = torch.full((rows,), -1.0)
    ops.row_scales_([scales], [weights], [], kind=kind)
    return scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", [(1, 4097), (3, 4096), (5, 17), (2, 3, 31), (33, 1), (1, 1), (2, 8193)], ids=str
)
def test_norms_have_the_documented_order_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weights = random(shape, dtype, seed=2)
    for rows in (1, shape[0]):
        expected = torch.tensor([documented_sum(r) for r in weights.reshape(rows, -1)], dtype=torch.float64)
        assert same_bits(row_scales_of(weights, rows), expected.sqrt().float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_one_row_has_the_norm_of_the_tensor(n: int, dtype: torch.dtype) -> None:
    weights = random(n, dtype, seed=n)
    expected = weights.double().square().sum().sqrt().reshape(1).float()
    torch.testing.assert_close(row_scales_of(weights, 1), expected, rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_do_not_depend_on_the_layout_or_on_threads(layout: str, dtype: torch.dtype) -> None:
    weights = same_layout(torch.empty(0, dtype=dtype), layout, seed=3)
    rows = weights.shape[0] if weights.dim() else 1
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results += [row_scales_of(weights, rows), row_scales_of(weights.contiguous(), rows)]
    assert all(same_bits(results[0], r) for r in results)
    if rows:
        expected = weights.double().reshape(rows, -1).square().sum(1).sqrt().float()
        torch.testing.assert_close(results[0], expected, rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_range_of_a_row_is_its_largest_magnitude(layout: str, dtype: torch.dtype) -> None:
    weights = same_layout(torch.empty(0, dtype=dtype), layout, seed=3)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for rows in {1, weights.shape[0] if weights.dim() else 1}:
            values = weights.reshape(rows, -1).abs()
            expected = values.amax(1) if values.numel() else torch.zeros(rows)
            assert same_bits(row_scales_of(weights, rows, "absmax"), expected.float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_range_is_never_nan_but_where_a_weight_is(dtype: torch.dtype) -> None:
    weights = torch.zeros(5, 5000, dtype=dtype)
    weights[1, 4999], weights[2, 17] = -3.0, -float("inf")
    weights[3, 0], weights[3, 4998], weights[4] = float("nan"), float("inf"), -0.0
    ranges = row_scales_of(weights, 5, "absmax")
    assert ranges[:3].tolist() == [0.0, 3.0, float("inf")]
    assert bool(ranges[3].isnan())
    assert same_bits(ranges[4], torch.tensor(0.0))


def test_fisher_divides_the_norm_and_forgets() -> None:
    weights, grads = random((4, 9), torch.float64, seed=1), random((4, 9), torch.float64, seed=2)
    fisher = torch.tensor([0.0, 1.0, 10.0, 1e4])
    expected = 0.9 * fisher.double() + grads.square().sum(1)
    ops.row_fisher_([fisher], [grads], 0.9)
    torch.testing.assert_close(fisher, expected.float(), rtol=1e-7, atol=0.0)
    scales = torch.empty(4)
    ops.row_scales_([scales], [weights], [fisher], 0.25)
    expected = weights.square().sum(1).sqrt() / (1 + 0.25 * fisher.double()).sqrt()
    torch.testing.assert_close(scales, expected.float(), rtol=1e-7, atol=0.0)
    ops.row_scales_([scales], [weights], [fisher], 0.0)
    assert same_bits(scales, row_scales_of(weights, 4))


def expected_by_rows(
    clean: torch.Tensor, scales: torch.Tensor, z: reference.Floats, dtype: torch.dtype | None = None
) -> torch.Tensor:
    repeated = scales.repeat_interleave(clean.numel() // max(1, scales.numel())).numpy()
    return reference.perturbed(clean, STD, z * repeated, dtype)  # float32 product


def expected_by_element(
    clean: torch.Tensor, z: reference.Floats, dtype: torch.dtype | None = None
) -> torch.Tensor:
    wide = clean.dtype == torch.float64
    w = (clean if wide else clean.float()).reshape(-1).numpy()
    scaled = (z.astype(w.dtype) * (abs(w) + w.dtype.type(0.01))).astype(w.dtype)
    if wide:
        return (clean.reshape(-1) + STD * torch.from_numpy(scaled)).reshape(clean.shape)
    return reference.perturbed(clean, STD, scaled, dtype)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_scaled_noise_of_every_size_and_dtype(n: int, dtype: torch.dtype, distribution: str) -> None:
    z = reference.noise(3 * n, seed=SEED, draw=DRAW, place=5, distribution=distribution)
    weights = random((3, n), dtype, seed=n)
    for scale, rows in (("rows", 1), ("rows", 3), ("element", 0)):
        scales = [row_scales_of(weights, rows)] if rows else None
        expected = expected_by_rows(weights, scales[0], z) if scales else expected_by_element(weights, z)
        param, clean = weights.clone(), torch.full_like(weights, 99.0)
        how = (generator_of(), [5], STD, distribution, 0, False, 0)
        ops.perturb_([param], [clean], *how, scale, scales)
        assert same_bits(clean, weights)
        assert same_bits(param, expected)
        param.fill_(99.0)
        ops.perturb_from_clean_([param], [clean], *how, scale, scales)
        assert same_bits(param, expected)
        one = (generator_of(), 5, STD, distribution, 0, False, 0, scale, scales)
        assert same_bits(ops.perturbed(weights, *one), expected)
        ops.restore_([param], [clean])
        assert same_bits(param, weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "transposed_large", "scalar"])
def test_noise_alone_is_what_is_added_in_one_rounding(layout: str, dtype: torch.dtype) -> None:
    weights = same_layout(torch.empty(0, dtype=dtype), layout, seed=3)
    z = reference.noise(weights.numel(), seed=SEED, draw=DRAW, place=1)
    zeros = torch.zeros(weights.shape, dtype=dtype)
    how = (generator_of(), 1, STD, "gaussian", 0, False, 0)
    alone = [ops.perturbed(weights, *how, noise_only=True)]
    assert same_bits(alone[0], reference.perturbed(zeros, STD, z))
    scales = row_scales_of(weights, weights.shape[0] if weights.dim() else 1)
    alone.append(ops.perturbed(weights, *how, "rows", [scales], noise_only=True))
    assert same_bits(alone[1], expected_by_rows(zeros, scales, z))
    alone.append(ops.perturbed(weights, *how, "element", noise_only=True))
    w = (weights if dtype == torch.float64 else weights.float()).reshape(-1).numpy()
    scaled = (z.astype(w.dtype) * (abs(w) + w.dtype.type(0.01))).astype(w.dtype)
    expected = torch.from_numpy(w.dtype.type(STD) * scaled).reshape(weights.shape).to(dtype)
    assert same_bits(alone[2], expected)
    assert all(float((noise != 0).float().mean()) > 0.99 for noise in alone)  # float16 underflows


@pytest.mark.parametrize(("master", "model"), PAIRS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scaled_noise_follows_the_logical_index_in_every_layout_and_pair(
    layout: str, master: torch.dtype, model: torch.dtype
) -> None:
    clean = same_layout(torch.empty(0, dtype=master), layout, seed=3)
    contiguous = clean.clone(memory_format=torch.contiguous_format)
    z = reference.noise(clean.numel(), seed=SEED, draw=DRAW, place=1)
    rows = clean.shape[0] if clean.dim() else 1
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for scale in ("rows", "element"):
            scales = [row_scales_of(contiguous, rows)] if scale == "rows" else None
            expected = (
                expected_by_rows(contiguous, scales[0], z, model)
                if scales
                else expected_by_element(contiguous, z, model)
            )
            for target in (torch.empty(clean.shape, dtype=model), LAYOUTS[layout](model)):
                how = (generator_of(), [1], STD, "gaussian", 0, False, 0, scale, scales)
                ops.perturb_from_clean_([target], [clean], *how)
                assert same_bits(target, expected)


@pytest.mark.parametrize(("master", "model"), PAIRS)
@pytest.mark.parametrize("layout", ["contiguous", "transposed_large", "channels_last_large", "scalar"])
def test_the_fused_step_with_noise_by_element_is_update_then_perturb(
    layout: str, master: torch.dtype, model: torch.dtype
) -> None:
    for momentum, distribution in ((0.0, "gaussian"), (0.9, "rademacher")):
        grad = same_layout(torch.empty(0, dtype=model), layout, seed=5)
        ends = []
        for fused in (True, False):
            clean = same_layout(torch.empty(0, dtype=master), layout, seed=3)
            buffer = [same_layout(torch.empty(0, dtype=master), layout, seed=4)] if momentum else []
            param = random_like(LAYOUTS[layout](model), 6)
            rule = sgd(0.1, momentum, 0.0, 0.01)
            noise: dict[str, Any] = {"distribution": distribution, "draw_offset": 1, "scale": "element"}
            if fused:
                ops.update_and_perturb_(
                    [param], [clean], [grad], buffer, *rule, generator_of(), [2], 0.3, **noise
                )
            else:
                ops.update_([clean], [grad], buffer, *rule)
                ops.perturb_from_clean_([param], [clean], generator_of(), [2], 0.3, **noise)
            ends.append([clean, param, *buffer])
        assert same_bits(*ends)


def test_every_cpu_variant_gives_the_same_bits(capability: str) -> None:
    weights = random((301, 233), torch.float32, seed=7)
    z = reference.noise(weights.numel(), seed=SEED, draw=DRAW, place=0)
    scales = row_scales_of(weights, 301)
    expected = torch.tensor([documented_sum(row) for row in weights], dtype=torch.float64).sqrt().float()
    assert same_bits(scales, expected)
    how = (generator_of(), 0, STD, "gaussian", 0, False, 0)
    assert same_bits(ops.perturbed(weights, *how, "rows", [scales]), expected_by_rows(weights, scales, z))
    assert same_bits(ops.perturbed(weights, *how, "element"), expected_by_element(weights, z))


def test_zero_rows_and_rows_without_elements() -> None:
    weights = torch.zeros(3, 5)
    weights[1] = 1.0
    scales = row_scales_of(weights, 3)
    noisy = ops.perturbed(weights, generator_of(), 0, 1.0, "rademacher", 0, False, 0, "rows", [scales])
    assert torch.equal(noisy[0], weights[0])
    assert bool((noisy[1] != 1.0).all())
    assert torch.equal(row_scales_of(torch.empty(4, 0), 4), torch.zeros(4))
    ops.row_scales_([torch.empty(0)], [torch.empty(0, 3)], [])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize(
    ("shape", "channel_dim"),
    [
        ((5, 7), 1),
        ((70, 1), 1),
        ((1, 70), 1),
        ((33, 300), 1),
        ((4, 6, 3, 3), 1),
        ((4, 6, 3, 3), 3),
        ((2, 65, 64), 1),
        ((301, 233), 1),
    ],
    ids=str,
)
def test_rows_along_another_dimension_have_their_own_scales(
    shape: tuple[int, ...], channel_dim: int, pair: tuple[torch.dtype, torch.dtype], distribution: str
) -> None:
    master, model = pair
    clean = random(shape, master, seed=11)
    numbers = torch.arange(1, shape[channel_dim] + 1).float() / 8
    alike = [-1 if d == channel_dim else 1 for d in range(len(shape))]
    z = reference.noise(clean.numel(), seed=SEED, draw=DRAW, place=3, distribution=distribution)
    scaled = torch.from_numpy(z).reshape(shape) * numbers.view(alike)
    expected = reference.perturbed(clean, STD, scaled.reshape(-1).numpy(), model)
    for layout in (clean, clean.transpose(0, 1).contiguous().transpose(0, 1)):
        params = torch.zeros(shape, dtype=model)
        ops.perturb_from_clean_(
            [params],
            [layout],
            generator_of(SEED, DRAW),
            [3],
            STD,
            distribution,
            0,
            False,
            0,
            "rows",
            [numbers],
            None,
            channel_dim,
        )
        assert same_bits(params, expected)
    if shape[channel_dim] != 1:
        with pytest.raises(ValueError, match=r"row_scales\[0\] has .* elements and params\[0\] has shape"):
            ops.perturbed(
                clean,
                generator_of(),
                0,
                STD,
                scale="rows",
                row_scales=[torch.ones(99)],
                channel_dim=channel_dim,
            )
    with pytest.raises(ValueError, match="channel_dim is -1; expected 0 or more"):
        ops.perturbed(clean, generator_of(), 0, STD, scale="rows", row_scales=[torch.ones(1)], channel_dim=-1)
