"""Roots, thresholds and critical points of O_R against mpmath at 60 digits, at and around every threshold.

The reference bisects the equation (1 + x)^(2(L-1)) prod eta^2 = w*^2 x^(L-2) for the exact values of the
doubles that went in; Hessians and gradients come from torch.autograd on the loss of docs/theory.md.
"""

import functools
import math

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_ssam import theory

DEPTHS = [2, 3, 4, 5, 6, 7, 8, 10, 13]
EPS = 2.0**-52


@pytest.fixture(autouse=True)
def sixty_digits():
    with mp.workdps(60):
        yield


def noise_product(noise_std, depth):
    levels = [noise_std] * depth if np.ndim(noise_std) == 0 else list(noise_std)
    return mp.fprod(mp.mpf(float(level)) for level in levels)


def exact_roots(target, noise_std, depth):
    """x = (|w_l| / eta_l)^2 of the saddle and of the minimum, or None."""
    return bisected_roots(abs(float(target)), noise_product(noise_std, depth), depth)


@functools.cache
def bisected_roots(size, noise, depth):
    tau2 = (mp.mpf(size) / noise) ** 2
    x0 = mp.mpf(depth - 2) / depth

    def above(x):  # decreasing to x0, increasing from there
        return (1 + x) ** (2 * (depth - 1)) - tau2 * x ** (depth - 2)

    if depth == 2:
        return None, (mp.sqrt(tau2) - 1 if tau2 > 1 else None)
    if tau2 == 0 or above(x0) > 0:
        return None, None

    def bisect(low, high, sign):  # in log x; sign * above increases from low to high
        low, high = mp.log(low), mp.log(high)
        for _ in range(230):
            middle = (low + high) / 2
            if sign * above(mp.exp(middle)) < 0:
                low = middle
            else:
                high = middle
        return mp.exp((low + high) / 2)

    top = max(x0, tau2 ** (mp.mpf(1) / depth)) * 2
    bottom = min(x0, tau2 ** (-mp.mpf(1) / (depth - 2))) / 2
    return bisect(bottom, x0, -1), bisect(x0, top, 1)


def exact_threshold(noise_std, depth):
    extra = (mp.mpf(2 * (depth - 1)) / (depth - 2)) ** (mp.mpf(depth - 2) / 2) if depth > 2 else 1
    factor = (mp.mpf(2 * (depth - 1)) / depth) ** (mp.mpf(depth) / 2) * extra
    return noise_product(noise_std, depth) * factor


def relative_error(value, exact):
    exact = mp.mpf(exact)
    if exact == 0:
        return float(abs(value))
    return float(abs(mp.mpf(float(value)) / exact - 1))


def targets_around_thresholds(noise_std, depth):
    existence = theory.existence_threshold(noise_std, depth)
    globally = theory.global_threshold(noise_std, depth)
    below = math.nextafter(existence, 0)
    near = [
        existence,
        below,
        math.nextafter(existence, math.inf),
        existence * (1 + 1e-12),
        existence * (1 + 1e-6),
    ]
    near += [existence * 0.99, existence * 1.01, globally, math.nextafter(globally, 0), globally * 1.3]
    far = [1e-8, 1e-4, 0.03, 1.0, 7.0, 1e4, 1e8, -1e-8, -1.0, -1e8, 0.0]
    return near + [-x for x in near] + far


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("noise_std", [0.1, 1.0, 1e-7])
def test_roots_have_full_double_precision_at_and_around_every_threshold(noise_std, depth):
    targets = targets_around_thresholds(noise_std, depth)
    factors = theory.shrinkage_factor(targets, noise_std, depth)
    limits = theory.limit_product(targets, noise_std, depth)
    points = theory.critical_points(targets, noise_std, depth)
    for h, target in enumerate(targets):
        smaller, larger = exact_roots(target, noise_std, depth)
        if larger is None:
            assert factors[h] == 0
            assert limits[h] == 0
            assert np.isnan(points.minimum[:, h]).all()
            continue
        share = larger / (1 + larger)
        assert relative_error(factors[h], share ** (mp.mpf(depth - 1) / depth)) <= 3 * EPS
        assert relative_error(limits[h], mp.mpf(target) * share ** (depth - 1)) <= 2 * EPS
        assert relative_error(points.minimum[1, h], mp.mpf(noise_std) * mp.sqrt(larger)) <= 2 * EPS
        assert np.sign(points.minimum[0, h]) == np.sign(target)
        if smaller is not None:
            assert relative_error(points.saddle[1, h], mp.mpf(noise_std) * mp.sqrt(smaller)) <= 2 * EPS


@pytest.mark.parametrize("depth", DEPTHS)
def test_eigenvalues_at_critical_points_keep_their_digits_next_to_the_threshold(depth):
    noise_std = 0.1
    targets = targets_around_thresholds(noise_std, depth)
    points = theory.critical_points(targets, noise_std, depth)
    eta2 = mp.mpf(noise_std) ** 2
    for h, target in enumerate(targets):
        pairs = zip(
            exact_roots(target, noise_std, depth),
            (points.saddle_eigenvalues[:, h], points.minimum_eigenvalues[:, h]),
            strict=True,
        )
        for root, computed in pairs:
            if root is None or (target == 0):
                continue
            a = eta2 * (1 + root)
            once = 2 * a ** (depth - 2) * eta2 * (depth * root - (depth - 2))
            others = 4 * eta2 * a ** (depth - 2)
            expected = sorted([once] + [others] * (depth - 1))
            assert max(map(relative_error, computed, expected)) <= 32 * EPS


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("noise_std", [0.1, 1.0, 2.5e-4, "per layer"])
def test_thresholds_are_the_smallest_doubles_not_below_the_exact_ones(noise_std, depth):
    if noise_std == "per layer":
        noise_std = np.linspace(0.1, 1.7, depth)
    existence = theory.existence_threshold(noise_std, depth)
    assert mp.mpf(math.nextafter(existence, 0)) < exact_threshold(noise_std, depth) <= mp.mpf(existence)

    globally = theory.global_threshold(noise_std, depth)
    if depth == 2:
        exact = noise_product(noise_std, depth)
    else:
        low, high = mp.mpf("0.3"), 1 - mp.mpf(2) ** -depth
        for _ in range(220):
            x = (low + high) / 2
            low, high = (x, high) if (1 + x) ** (depth - 1) * (1 - x) > 1 else (low, x)
        exact = noise_product(noise_std, depth) * (1 + x) ** (depth - 1) / x ** (mp.mpf(depth - 2) / 2)
    assert mp.mpf(math.nextafter(globally, 0)) < exact <= mp.mpf(globally)


@pytest.mark.parametrize("depth", [3, 4, 5, 10])
@pytest.mark.parametrize("noise_std", [0.1, 0.7, 1e-3])
def test_a_minimum_exists_exactly_from_the_existence_threshold_up(noise_std, depth):
    threshold = theory.existence_threshold(noise_std, depth)
    limits = theory.limit_product([math.nextafter(threshold, 0), threshold, -threshold], noise_std, depth)
    assert limits[0] == 0
    assert limits[1] > 0
    assert limits[2] == -limits[1]


@pytest.mark.parametrize("noise_std", [0.1, 0.7, 1e-3])
@pytest.mark.parametrize("scale", [1, 1 + 1e-15, 1 + 1e-9, 1.5, 1e6])
def test_depth_two_soft_thresholds_the_product(noise_std, scale):
    target = noise_std * noise_std * scale
    exact = max(mp.mpf(target) - mp.mpf(noise_std) ** 2, 0)
    assert relative_error(theory.limit_product(target, noise_std, 2), exact) <= 2 * EPS


@pytest.mark.parametrize("depth", [2, 3, 4, 7])
def test_the_global_threshold_is_where_the_minimum_reaches_the_loss_at_zero(depth):
    noise_std = 0.4
    threshold = theory.global_threshold(noise_std, depth)
    for target, expected in [(threshold * 0.999, False), (threshold * 1.001, True)]:
        point = theory.critical_points([target], noise_std, depth)
        assert bool(point.minimum_is_global[0]) is expected
        if np.isfinite(point.minimum).all():
            w = [mp.mpf(float(v)) for v in point.minimum[:, 0]]
            p = mp.fprod(w)
            at_minimum = (
                (mp.mpf(target) - p) ** 2 + mp.fprod(v * v + mp.mpf(noise_std) ** 2 for v in w) - p * p
            )
            at_zero = mp.mpf(target) ** 2 + mp.mpf(noise_std) ** (2 * depth)
            assert (at_minimum < at_zero) is expected


def autograd_objective(target, noise_std):
    eta = torch.as_tensor(noise_std, dtype=torch.float64)
    return lambda w: (target - w.prod()) ** 2 + (w**2 + eta**2).prod() - (w**2).prod()


@pytest.mark.parametrize("depth", [2, 3, 4, 6])
@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("target", [2.5, -2.5, 40.0])
def test_autograd_agrees_that_critical_points_are_critical_and_on_their_hessians(target, per_layer, depth):
    noise_std = np.linspace(0.2, 0.5, depth) if per_layer else 0.3
    points = theory.critical_points([target], noise_std, depth)
    for weights, eigenvalues in [
        (points.minimum, points.minimum_eigenvalues),
        (points.saddle, points.saddle_eigenvalues),
        (np.zeros((depth, 1)), points.zero_eigenvalues),
    ]:
        if depth == 2 and weights is points.saddle:
            assert np.isnan(weights).all()
            continue
        w = torch.tensor(weights[:, 0])
        objective = autograd_objective(target, noise_std)
        gradient = torch.func.grad(objective)(w)
        hessian = torch.func.hessian(objective)(w)
        assert gradient.abs().max() <= 1e-12 * (1 + hessian.abs().max())
        np.testing.assert_allclose(torch.linalg.eigvalsh(hessian), eigenvalues[:, 0], rtol=1e-9, atol=1e-12)
    assert points.minimum_eigenvalues.min() > 0
    assert bool(points.zero_is_minimum[0]) is (depth > 2)
    if depth > 2:
        assert points.saddle_eigenvalues.min() < 0 < points.saddle_eigenvalues.max()


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_per_layer_noise_gives_the_root_of_the_equation_scaled_by_each_layer(depth):
    noise_std = np.linspace(0.05, 0.9, depth)
    for target in [0.6, 3.0, -11.0, theory.existence_threshold(noise_std, depth) * (1 + 1e-13)]:
        _, larger = exact_roots(target, noise_std, depth)
        if larger is None:
            continue
        weights = theory.critical_points(target, noise_std, depth).minimum
        expected = [mp.mpf(float(eta)) * mp.sqrt(larger) for eta in noise_std]
        assert max(map(relative_error, np.abs(weights), expected)) <= 3 * EPS


@given(target=st.floats(-1e8, 1e8), noise_std=st.floats(1e-8, 1e4), depth=st.integers(2, 40))
@settings(max_examples=200, deadline=None)
def test_shrinkage_always_shrinks_and_keeps_the_sign(target, noise_std, depth):
    factor = theory.shrinkage_factor(target, noise_std, depth)
    limit = theory.limit_product(target, noise_std, depth)
    assert 0 <= factor <= 1
    assert abs(limit) <= abs(target)
    assert limit * target >= 0
    assert math.isclose(abs(limit), factor**depth * abs(target), rel_tol=1e-13 * depth, abs_tol=1e-300)
    assert (factor > 0) == (abs(target) >= theory.existence_threshold(noise_std, depth)) or depth == 2


@pytest.mark.parametrize("depth", [2, 3, 10, 60])
def test_extreme_scales_neither_overflow_nor_lose_the_root(depth):
    for target, noise_std in [
        (1e300, 1e-300),
        (1e-300, 1e-300),
        (5e-324, 1e-200),
        (1e8, 1e-40),
        (1e300, 1e25),
    ]:
        factor = theory.shrinkage_factor(target, noise_std, depth)
        _, larger = exact_roots(target, noise_std, depth)
        expected = 0 if larger is None else (larger / (1 + larger)) ** (mp.mpf(depth - 1) / depth)
        assert relative_error(factor, expected) <= 4 * EPS


def test_without_noise_nothing_shrinks():
    assert theory.shrinkage_factor([2.0, 0.0, -1.0], 0.0, 3).tolist() == [1.0, 0.0, 1.0]
    assert theory.limit_product([2.0, 0.0, -1.0], 0.0, 3).tolist() == [2.0, 0.0, -1.0]
    assert theory.existence_threshold(0.0, 3) == 0
