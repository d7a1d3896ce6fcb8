"""perturb_, perturb_from_clean_, perturbed, restore_ and advance_ against the NumPy reference: sizes,
dtypes, layouts, mixed lists, thread counts, float32 clean weights beside 16-bit parameters. All
comparisons are bit for bit, but for float64 weights with a noise_std that is no power of two (1 ulp).
"""

from __future__ import annotations

import pytest
import reference
import torch
from cases import DTYPES, LAYOUTS, PAIRS, SIXTEEN, SIZES, generator_of, random, random_like, same_layout
from reference import same_bits

ops = torch.ops.torch_ssam
DISTRIBUTIONS = ("gaussian", "rademacher")
STD = 2.0**-7
SEED, DRAW = 1234567890123, 42


def expected_perturbed(
    clean: torch.Tensor, place: int, dtype: torch.dtype | None = None, *, std: float = STD, **stream: object
) -> torch.Tensor:
    z = reference.noise(clean.numel(), place=place, **{"seed": SEED, "draw": DRAW, **stream})  # type: ignore[arg-type]
    return reference.perturbed(clean, std, z, dtype)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_perturb_saves_the_clean_weights_and_writes_clean_plus_noise(
    n: int, dtype: torch.dtype, distribution: str
) -> None:
    weights = random(n, dtype, seed=n)
    param, clean = weights.clone(), torch.full_like(weights, 99.0)
    ops.perturb_([param], [clean], generator_of(), [5], STD, distribution)
    assert same_bits(clean, weights)
    assert same_bits(param, expected_perturbed(weights, 5, distribution=distribution))
    assert same_bits(ops.perturbed(weights, generator_of(), 5, STD, distribution), param)
    ops.restore_([param], [clean])
    assert same_bits(param, weights)


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_moves_every_element(dtype: torch.dtype) -> None:
    weights = random(4097, dtype, seed=1)
    for distribution in DISTRIBUTIONS:
        moved = ops.perturbed(weights, generator_of(), 0, 0.25, distribution) != weights
        # One in some hundred Gaussian values is too small to move a bfloat16 weight.
        assert float(moved.double().mean()) > (0.97 if distribution == "gaussian" else 0.9999)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_noise_follows_the_logical_index_in_every_layout(layout: str, dtype: torch.dtype) -> None:
    param = same_layout(torch.empty(0, dtype=dtype), layout, seed=3)
    weights = param.clone(memory_format=torch.contiguous_format)
    expected = expected_perturbed(weights, 1)
    for clean in (torch.empty_like(weights), LAYOUTS[layout](dtype)):
        random_like(param, 3)
        ops.perturb_([param], [clean], generator_of(), [1], STD)
        assert same_bits(clean, weights)
        assert same_bits(param, expected)
        ops.restore_([param], [clean])
        assert same_bits(param, weights)
    assert same_bits(ops.perturbed(param, generator_of(), 1, STD), expected)


@pytest.mark.parametrize("layout", ["strided_1d", "slice", "storage_offset"])
def test_memory_between_the_elements_is_left_alone(layout: str) -> None:
    view = LAYOUTS[layout](torch.float32)
    base = view._base
    assert base is not None
    base.fill_(-7.0)
    inside = torch.zeros_like(base, dtype=torch.bool)
    inside.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(True)
    ops.perturb_([view], [torch.empty(view.shape)], generator_of(), [0], STD, "rademacher")
    assert bool((base[~inside] == -7.0).all())
    assert bool((base[inside] != -7.0).all())


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("n", SIZES)
def test_float32_clean_weights_are_rounded_once_to_sixteen_bits(n: int, dtype: torch.dtype) -> None:
    clean = random(n, torch.float32, seed=n)
    before, param = clean.clone(), torch.full((n,), 99.0, dtype=dtype)
    ops.perturb_from_clean_([param], [clean], generator_of(), [0], STD)
    assert same_bits(param, expected_perturbed(clean, 0, dtype))
    assert same_bits(clean, before)


@pytest.mark.parametrize(("master", "model"), PAIRS)
def test_perturb_from_clean_is_perturb_for_each_sample_and_sign(
    master: torch.dtype, model: torch.dtype
) -> None:
    clean = random((33, 65), master, seed=4)
    for sample, negate in ((0, False), (0, True), (1, False), (2**32 - 1, True)):
        param = torch.empty(65, 33, dtype=model).t()
        ops.perturb_from_clean_([param], [clean], generator_of(), [9], STD, "gaussian", sample, negate)
        assert same_bits(
            param, expected_perturbed(clean, 9, model, std=-STD if negate else STD, sample=sample)
        )
        if master == model:
            other, saved = clean.clone(), torch.empty_like(clean)
            ops.perturb_([other], [saved], generator_of(), [9], STD, "gaussian", sample, negate)
            assert same_bits(other, param.contiguous())


@pytest.mark.parametrize("std", [0.0, 1e-3, 0.1, 3.0])
def test_any_noise_std_in_float64_is_within_an_ulp_and_zero_is_exact(std: float) -> None:
    weights = random(4097, torch.float64, seed=5)
    actual, expected = ops.perturbed(weights, generator_of(), 0, std), expected_perturbed(weights, 0, std=std)
    size = weights.abs() + (expected - weights).abs()
    assert bool(((actual - expected).abs() <= reference.ulp(torch.float64) * size).all())
    if std == 0.0:
        assert torch.equal(actual, weights)


@pytest.mark.parametrize("std", [1e-3, 0.1, 3.0])
def test_any_noise_std_in_float32_is_bit_exact(std: float) -> None:
    weights = random(4097, torch.float32, seed=5)
    assert same_bits(ops.perturbed(weights, generator_of(), 0, std), expected_perturbed(weights, 0, std=std))


@pytest.mark.parametrize(
    ("seed", "draw", "offset"),
    [(-5, -9, 0), (-5, -9, 3), (2**40, 2**33, 2**33), (-(2**63), 2**63 - 1, 1), (3, 5, -7), (3, 0, -(2**40))],
)
def test_draw_offset_adds_to_the_draw_for_any_int64(seed: int, draw: int, offset: int) -> None:
    weights = random(300, torch.float32, seed=6)
    wrapped = (draw + offset + 2**63) % 2**64 - 2**63
    actual = ops.perturbed(weights, generator_of(seed, draw), 0, STD, draw_offset=offset)
    assert same_bits(actual, expected_perturbed(weights, 0, seed=seed, draw=wrapped))
    assert same_bits(actual, ops.perturbed(weights, generator_of(seed, wrapped), 0, STD))
    param = weights.clone()
    ops.perturb_([param], [weights.clone()], generator_of(seed, draw), [0], STD, draw_offset=offset)
    assert same_bits(param, actual)


def mixed_list() -> list[torch.Tensor]:
    """Tensors of every dtype and many layouts and sizes in one list, the largest in the middle."""
    tensors = [random(n, dtype, seed=n) for n in (0, 1, 31, 65) for dtype in DTYPES]
    tensors.append(random(200003, torch.float32, seed=8))
    tensors += [
        same_layout(torch.empty(0, dtype=dtype), layout, seed=9)
        for layout in ("scalar", "transposed_large", "slice", "empty_matrix", "channels_last")
        for dtype in DTYPES
    ]
    return tensors


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_mixed_list_gives_each_tensor_the_bits_it_gets_alone_for_any_thread_count(
    distribution: str,
) -> None:
    places = [3 * i + 1 for i in range(len(mixed_list()))]
    expected = [
        expected_perturbed(tensor, place, distribution=distribution)
        for tensor, place in zip(mixed_list(), places, strict=True)
    ]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        params = mixed_list()
        clean = [torch.empty_like(p) for p in params]
        ops.perturb_(params, clean, generator_of(), places, STD, distribution)
        assert same_bits(params, expected)
        assert same_bits(clean, mixed_list())
        ops.restore_(params, clean)
        assert same_bits(params, mixed_list())


def test_many_small_tensors_give_the_same_bits_for_any_thread_count() -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        params = [random(n % 97, torch.float32, seed=n) for n in range(700)]
        ops.perturb_(params, [torch.empty_like(p) for p in params], generator_of(), list(range(700)), STD)
        results.append(params)
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])
    for place in (0, 1, 96, 97, 333, 699):
        weights = random(place % 97, torch.float32, seed=place)
        assert same_bits(results[0][place], expected_perturbed(weights, place))


def test_restore_gives_back_nan_payloads_infinities_and_negative_zeros() -> None:
    bits = torch.tensor([0x7FC00001, 0x7F800001, -0x400000, -0x80000000, 0x7F800000, 1], dtype=torch.int64)
    weights = bits.to(torch.int32).view(torch.float32)
    param, clean = weights.clone(), torch.empty(6)
    ops.perturb_([param], [clean], generator_of(), [0], STD)
    ops.restore_([param], [clean])
    assert same_bits(param, weights)
    halves = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    for dtype in SIXTEEN:
        weights = halves.view(dtype)
        param, clean = weights.clone(), torch.empty_like(weights)
        ops.perturb_([param], [clean], generator_of(), [0], STD)
        assert same_bits(clean, weights)
        ops.restore_([param], [clean])
        assert same_bits(param, weights)


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_restore_rounds_float32_clean_weights_as_torch_does(dtype: torch.dtype) -> None:
    exponents = torch.arange(-160, 140, dtype=torch.float64).exp2()  # subnormals of either type, and overflow
    mantissas = torch.tensor([1.0, 1.5, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-23])
    numbers = (exponents[:, None] * mantissas.double()).float().flatten()
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan")])
    clean = torch.cat([numbers, -numbers, special, random(70000, torch.float32, seed=1)])
    for n in (0, 1, 7, 8, 15, 16, 17, 31, 33, 65, 4097, clean.numel()):
        for source, step in ((clean[:n], 1), (clean[: 2 * (n // 2)].view(-1, 2).t(), 2)):
            param = torch.empty(source.numel() * step, dtype=dtype)[::step].view(source.shape)
            ops.restore_([param], [source])
            expected = source.to(dtype)
            assert torch.equal(param.isnan(), expected.isnan())
            assert same_bits(param.nan_to_num(), expected.nan_to_num())


def test_operators_do_not_move_the_generator() -> None:
    generator = generator_of()
    weights = random(10, torch.float32, seed=1)
    ops.perturb_([weights], [weights.clone()], generator, [0], STD, draw_offset=5)
    ops.perturbed(weights, generator, 0, STD)
    assert generator.tolist() == [SEED, DRAW]


def test_advance_wraps_around_like_an_unsigned_counter() -> None:
    for draw, step, expected in ((5, 3, 8), (5, -7, -2), (2**63 - 1, 1, -(2**63)), (-1, 1, 0)):
        generator = generator_of(-4, draw)
        ops.advance_(generator, step)
        assert generator.tolist() == [-4, expected]


def test_an_empty_list_is_nothing_to_do() -> None:
    ops.perturb_([], [], generator_of(), [], STD)
    ops.perturb_from_clean_([], [], generator_of(), [], STD)
    ops.restore_([torch.empty(0)], [torch.empty(0)])


def test_perturbed_keeps_the_memory_layout_and_leaves_the_weights() -> None:
    weights = random_like(torch.empty(3, 5, 7, 11).to(memory_format=torch.channels_last), 1)
    before = weights.clone()
    output = ops.perturbed(weights, generator_of(), 0, STD)
    assert output.stride() == weights.stride()
    assert same_bits(weights, before)
