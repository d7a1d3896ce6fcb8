"""Sharpness of diagonal networks against Hypothesis, autograd, grids and SciPy.

Minima over factorisations are searched for, traces come from autograd's Hessian, the projected ascent meets
the closed one-coordinate form, a fine grid and SciPy's SLSQP from many starts.
"""

import mpmath as mp
import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_ssam import theory


def test_hessian_trace_is_the_trace_of_the_autograd_hessian_of_the_loss():
    rng = np.random.default_rng(0)
    weights, target = rng.standard_normal((3, 4)), rng.standard_normal(4)
    factor = rng.standard_normal((4, 6))
    for covariance in (np.eye(4), factor @ factor.T):

        def loss(w, covariance=covariance):
            r = torch.tensor(target) - w.prod(0)
            return r @ torch.tensor(covariance) @ r

        hessian = torch.func.hessian(loss)(torch.tensor(weights)).reshape(12, 12)
        trace = torch.trace(hessian).item()
        assert theory.hessian_trace(weights, covariance) == pytest.approx(trace, rel=1e-12)


def test_average_sharpness_of_little_noise_is_half_its_variance_times_the_hessian_trace():
    weights = np.random.default_rng(1).uniform(0.5, 1.5, (4, 3))
    covariance = np.array([1.0, 2.0, 0.5])
    for noise_std in (1e-3, 1e-5, 1e-7):
        first_order = noise_std**2 / 2 * theory.hessian_trace(weights, covariance)
        assert theory.average_sharpness(weights, noise_std, covariance) == pytest.approx(
            first_order, rel=20 * noise_std**2 + 1e-14
        )


@given(st.integers(2, 7), st.integers(0, 10**6), st.floats(1e-2, 2.0))
@settings(max_examples=150, deadline=None)
def test_the_balanced_factorisation_is_the_flattest(depth, seed, noise_std):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.2, 3, (depth, 2)) * rng.choice([-1, 1], (depth, 2))
    product = weights.prod(0)
    sharpness = theory.minimal_average_sharpness(product, noise_std, depth)
    trace = theory.minimal_hessian_trace(product, depth)
    assert theory.average_sharpness(weights, noise_std) >= sharpness * (1 - 1e-12)
    assert theory.hessian_trace(weights) >= trace * (1 - 1e-12)
    balanced = np.tile(np.abs(product) ** (1 / depth), (depth, 1))
    assert theory.average_sharpness(balanced, noise_std) == pytest.approx(sharpness, rel=1e-11)
    assert theory.hessian_trace(balanced) == pytest.approx(trace, rel=1e-11)


def test_scipy_finds_no_flatter_factorisation_with_noise_of_its_own_in_each_layer():
    noise_std = np.array([0.2, 0.5, 1.3])
    product = 1.7

    def sharpness(logs):
        weights = np.exp(np.append(logs, np.log(product) - logs.sum()))
        return np.prod(weights**2 + noise_std**2) - product**2

    best = min(
        scipy.optimize.minimize(sharpness, x0, method="BFGS", options={"gtol": 1e-10}).fun
        for x0 in np.random.default_rng(2).standard_normal((5, 2))
    )
    assert theory.minimal_average_sharpness([product], noise_std, 3) == pytest.approx(best, rel=1e-8)


@pytest.mark.parametrize("depth", [2, 3, 5, 10])
def test_minimal_sharpness_keeps_its_digits(depth):
    with mp.workdps(60):
        for product in (1e-8, 0.3, 1e8):
            for noise_std in (1e-9, 1e-3, 5.0):
                u = mp.mpf(product) ** (mp.mpf(2) / depth)
                exact = (u + mp.mpf(noise_std) ** 2) ** depth - mp.mpf(product) ** 2
                value = theory.minimal_average_sharpness(-product, noise_std, depth)
                assert abs(mp.mpf(value) / exact - 1) < 1e-14
            exact = 2 * depth * mp.mpf(product) ** (mp.mpf(2 * (depth - 1)) / depth)
            assert abs(mp.mpf(theory.minimal_hessian_trace(product, depth)) / exact - 1) < 1e-14


def closed_form_gain(weights, target, radius):
    """One coordinate whose product grows away from its target: docs/theory.md's largest |p|, by SciPy's brentq."""
    w = np.abs(weights)

    def length(c):
        return (((np.sqrt(w**2 + 4 * c) - w) / 2) ** 2).sum() - radius**2

    c = scipy.optimize.brentq(length, 0, radius * (radius + w.max()) * 2, xtol=1e-16, rtol=1e-15)
    largest = np.prod((w + np.sqrt(w**2 + 4 * c)) / 2) * np.sign(np.prod(weights))
    return (target - largest) ** 2 - (target - np.prod(weights)) ** 2


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("radius", [1e-6, 1e-2, 0.5, 3.0, 50.0])
def test_worst_case_in_one_coordinate_is_the_closed_form_where_the_product_moves_away(radius, depth):
    rng = np.random.default_rng(depth)
    for _ in range(4):
        weights = rng.uniform(0.3, 2, depth) * rng.choice([-1, 1], depth)
        target = -np.sign(np.prod(weights)) * rng.uniform(0, 2)
        value = theory.worst_case_sharpness(weights[:, None], [target], radius)
        tolerance = 1e-11 + 1e-14 / radius  # the closed form subtracts two losses
        assert value == pytest.approx(closed_form_gain(weights, target, radius), rel=tolerance)


def test_worst_case_matches_a_fine_grid_also_where_the_sign_must_turn():
    angle = np.linspace(0, 2 * np.pi, 400_001)
    for weights, target, radius in [
        ((1.0, 1.2), 5.0, 1.5),
        ((0.3, 0.2), 4.0, 2.0),
        ((0.0, 1.0), 1.0, 0.7),
        ((0.0, 0.0), 1.0, 1.0),
        ((1.0, 1.0), 1.0, 0.1),
        ((-1.0, 0.1), 2.0, 0.5),
    ]:
        loss = (target - (weights[0] + radius * np.cos(angle)) * (weights[1] + radius * np.sin(angle))) ** 2
        exact = loss.max() - (target - np.prod(weights)) ** 2
        value = theory.worst_case_sharpness(np.array(weights)[:, None], [target], radius)
        assert value == pytest.approx(exact, rel=1e-9)
        assert value >= exact * (1 - 1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_scipy_from_many_starts_finds_no_worse_case(seed):
    rng = np.random.default_rng(seed)
    depth, features = (2, 4) if seed % 2 else (3, 3)
    weights, target = rng.standard_normal((depth, features)), rng.standard_normal(features)
    radius = rng.choice([0.1, 0.6, 2.0])
    start_loss = ((target - weights.prod(0)) ** 2).sum()

    def negative_loss(xi):
        return -((target - (weights + xi.reshape(weights.shape)).prod(0)) ** 2).sum()

    ball = {"type": "ineq", "fun": lambda xi: radius**2 - xi @ xi}
    best = 0.0
    for _ in range(12):
        x0 = rng.standard_normal(weights.size)
        x0 *= radius / np.linalg.norm(x0)
        result = scipy.optimize.minimize(
            negative_loss, x0, method="SLSQP", constraints=[ball], options={"ftol": 1e-12}
        )
        xi = result.x * min(1, radius / np.linalg.norm(result.x))
        best = max(best, -negative_loss(xi) - start_loss)
    assert theory.worst_case_sharpness(weights, target, radius) >= best * (1 - 1e-9)


def test_worst_case_exceeds_the_average_over_the_sphere_and_vanishes_without_radius():
    rng = np.random.default_rng(9)
    weights, target = rng.standard_normal((3, 5)), rng.standard_normal(5)
    assert theory.worst_case_sharpness(weights, target, 0.0) == 0
    worst = theory.worst_case_sharpness(weights, target, 0.8)
    noise = rng.standard_normal((2000, 3, 5))
    noise *= 0.8 / np.linalg.norm(noise, axis=(1, 2), keepdims=True)
    sampled = theory.loss(weights + noise, target) - theory.loss(weights, target)
    assert worst >= sampled.max()
