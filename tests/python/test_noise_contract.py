"""The noise contract: every value of the operators' noise, bit for bit, from (seed, draw, place, element,
sample) alone, against a NumPy reference; the published answers of Threefry; and statistics at a fixed
seed.

False alarms: each statistical bound is at 5 standard deviations or p = 5e-7, so all of this file's
together would fail a perfect generator about once in 10^4 seeds. The seed is fixed; a failure means that
the numbers changed.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from cases import generator_of

ops = torch.ops.torch_ssam
DISTRIBUTIONS = ("gaussian", "rademacher")
N = 1 << 20


def noise_of(
    n: int, *, seed: int = 7, draw: int = 3, place: int = 0, sample: int = 0, distribution: str = "gaussian"
) -> torch.Tensor:
    """The operators' own standard noise: a perturbed zero, noise_std 1."""
    return ops.perturbed(torch.zeros(n), generator_of(seed, draw), place, 1.0, distribution, sample)


def test_threefry_reference_gives_the_published_answers() -> None:
    table = Path(__file__).parents[1] / "data" / "threefry4x32_20.txt"
    rows = [line.split() for line in table.read_text().splitlines() if line and not line.startswith("#")]
    assert len(rows) == 3
    for row in rows:
        words = [int(word, 16) for word in row]
        counter = np.array(words[:4], np.uint32).reshape(4, 1)
        assert reference.threefry4x32(words[4:8], counter)[:, 0].tolist() == words[8:]


def test_fma_reference_rounds_once() -> None:
    # 1 + 2^-24 + 2^-60 rounds up in one step; through float64 it would be a tie and go to even, down.
    tie = reference.fma32(np.float32(1 + 2.0**-23), np.float32(2.0**-24), np.float32(1))
    assert tie[0] == np.float32(1 + 2.0**-23)
    below = reference.fma32(np.float32(1 - 2.0**-24), np.float32(2.0**-24), np.float32(1))
    assert below[0] == np.float32(1)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(
    ("seed", "draw", "place", "sample"),
    [
        (0, 0, 0, 0),
        (1, 2, 3, 4),
        (-1, -1, 2**32 - 1, 2**32 - 1),
        (2**40 + 5, 2**33 + 7, 2**31, 2**31),
        (-(2**63), 2**63 - 1, 1, 0),
        (2**63 - 1, -(2**63), 0, 1),
    ],
)
def test_noise_is_the_documented_function(
    seed: int, draw: int, place: int, sample: int, distribution: str
) -> None:
    expected = reference.noise(
        5000, seed=seed, draw=draw, place=place, sample=sample, distribution=distribution
    )
    actual = noise_of(5000, seed=seed, draw=draw, place=place, sample=sample, distribution=distribution)
    # Adding to a zero weight loses the sign of a zero, and nothing else.
    assert np.array_equal(actual.numpy(), expected)


def test_every_part_of_the_stream_changes_the_noise() -> None:
    base = {"seed": 7, "draw": 3, "place": 0, "sample": 0}
    values = {"base": noise_of(64, **base)}
    for name in base:
        for step in (1, 2**31) if name in ("place", "sample") else (1, 2**31, 2**32, 2**62):
            values[f"{name} + {step}"] = noise_of(64, **{**base, name: base[name] + step})
    for a in values:
        for b in values:
            assert a == b or not torch.equal(values[a], values[b]), (a, b)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_noise_is_the_same_for_any_tensor_size(distribution: str) -> None:
    long = noise_of(70001, distribution=distribution)
    for n in (1, 63, 64, 65, 2047, 2049, 65537):
        assert torch.equal(noise_of(n, distribution=distribution), long[:n])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_noise_is_the_same_for_any_thread_count(distribution: str) -> None:
    values = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        values.append(noise_of(300001, distribution=distribution))
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_all_dtypes_see_the_same_float32_noise(distribution: str) -> None:
    z = noise_of(4097, distribution=distribution)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        values = ops.perturbed(torch.zeros(4097, dtype=dtype), generator_of(7, 3), 0, 1.0, distribution)
        assert torch.equal(values, z.to(dtype))


def test_flushing_denormals_changes_no_noise() -> None:
    expected = noise_of(50000)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        flushed = noise_of(50000)
    finally:
        torch.set_flush_denormal(False)
    assert reference.same_bits(flushed, expected)


# --- statistics, 2^20 values unless said otherwise.


def standard_errors(values: torch.Tensor, mean: float, variance: float) -> float:
    """How many standard errors the mean of `values` lies from `mean`."""
    return float((values.double().mean() - mean).abs() / math.sqrt(variance / values.numel()))


def test_gaussian_moments_are_those_of_the_normal_law() -> None:
    z = noise_of(N)
    # mean, variance and covariance with the cube, by E z^2k = 1, 3, 15, 105, 945, 10395.
    assert standard_errors(z, 0, 1) < 5
    assert standard_errors(z**2, 1, 2) < 5
    assert standard_errors(z**3, 0, 15) < 5
    assert standard_errors(z**4, 3, 96) < 5
    assert standard_errors(z.double() ** 6, 15, 10395 - 225) < 5


@pytest.mark.parametrize("j", range(4))
def test_each_of_the_four_words_is_normal_by_kolmogorov_smirnov(j: int) -> None:
    z = noise_of(4 * N).reshape(-1, 4, 16)[:, j].reshape(-1).double().sort().values
    n = z.numel()
    distribution = torch.special.ndtr(z)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((distribution - steps[:-1]).max(), (steps[1:] - distribution).max())
    assert float(distance) * math.sqrt(n) < 2.76  # P = 2 exp(-2 2.76^2) = 5e-7


def test_gaussian_tails_have_the_right_weight() -> None:
    z = noise_of(1 << 24).abs()
    for bound, probability in (
        (3.0, 2.699796e-3),
        (4.0, 6.334248e-5),
        (4.5, 6.795346e-6),
        (5.0, 5.733031e-7),
    ):
        expected = probability * z.numel()
        assert abs(int((z > bound).sum()) - expected) < 5 * math.sqrt(expected), bound
    assert float(z.max()) <= math.sqrt(62 * math.log(2)) + 1e-6


def test_gaussian_is_symmetric_within_each_pair() -> None:
    # Box-Muller's two values are independent: signs, squares and the mirrored half circle.
    z = noise_of(4 * N).reshape(-1, 4, 16)
    for a, b in ((0, 1), (2, 3), (0, 2), (1, 3)):
        x, y = z[:, a].reshape(-1).double(), z[:, b].reshape(-1).double()
        assert standard_errors(x * y, 0, 1) < 5
        assert standard_errors((x**2 - 1) * (y**2 - 1), 0, 4) < 5
        assert standard_errors((x > 0).double() * (y > 0).double(), 0.25, 3 / 16) < 5


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_neighbours_at_any_lag_are_uncorrelated(distribution: str) -> None:
    z = noise_of(N + 4096, distribution=distribution).double()
    for lag in (1, 2, 3, 4, 8, 15, 16, 17, 32, 48, 63, 64, 65, 128, 1024, 2047, 2048, 2049, 4096):
        assert standard_errors(z[:N] * z[lag : lag + N], 0, 1) < 5, lag
        if distribution == "gaussian":
            assert standard_errors((z[:N] ** 2 - 1) * (z[lag : lag + N] ** 2 - 1), 0, 4) < 5, lag


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_neighbouring_streams_are_uncorrelated(distribution: str) -> None:
    z = noise_of(N, distribution=distribution).double()
    for other in (
        {"seed": 8},
        {"seed": 7 + 2**32},
        {"draw": 4},
        {"draw": 3 + 2**32},
        {"place": 1},
        {"sample": 1},
    ):
        assert standard_errors(z * noise_of(N, distribution=distribution, **other).double(), 0, 1) < 5, other


def test_rademacher_is_one_fair_sign_an_element() -> None:
    z = noise_of(N, distribution="rademacher")
    assert torch.equal(z.abs(), torch.ones(N))
    assert standard_errors(z, 0, 1) < 5
    # Each of the 32 bits and each of the 64 words of a block alone.
    blocks = z.reshape(-1, 32, 64).double()
    assert float((blocks.mean(dim=(0, 2)).abs() * math.sqrt(N / 32)).max()) < 5.5
    assert float((blocks.mean(dim=(0, 1)).abs() * math.sqrt(N / 64)).max()) < 5.5
