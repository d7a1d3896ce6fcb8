"""Balancing laws against an ODE solver on the gradient flow of O_R, and against steps of gradient descent.

The gradients here are written out from docs/theory.md's scalar formula in the test itself.
"""

import numpy as np
import pytest
import scipy.integrate
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_ssam import theory


def gradient(weights, target, noise_std):
    """g_i = -2 w* P_i + 2 w_i A_i, by leaving out rows."""
    rows = []
    for i in range(len(weights)):
        others = np.delete(weights, i, axis=0)
        rows.append(-2 * target * others.prod(0) + 2 * weights[i] * (others**2 + noise_std**2).prod(0))
    return np.array(rows)


def gaps(weights):
    return weights[:, None] ** 2 - weights[None] ** 2


def test_balance_gaps_are_differences_of_squares():
    weights = np.random.default_rng(0).standard_normal((4, 3))
    np.testing.assert_allclose(theory.balance_gaps(weights), gaps(weights), atol=1e-15)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_gaps_of_the_gradient_flow_change_at_the_stated_rate(depth):
    rng = np.random.default_rng(depth)
    weights, target, noise_std = rng.standard_normal((depth, 2)), rng.standard_normal(2), 0.6
    velocity = -gradient(weights, target, noise_std)
    flow = 2 * weights * velocity  # d/dt w^2
    rate = theory.balancing_rate(weights, noise_std)
    np.testing.assert_allclose(flow[:, None] - flow[None], -rate * gaps(weights), atol=1e-12)
    assert (rate[~np.eye(depth, dtype=bool)] >= theory.balancing_rate_bound(noise_std, depth)).all()


def test_the_integrated_flow_loses_its_gaps_at_least_as_fast_as_the_bound():
    weights, target, noise_std = np.array([[2.0], [0.5], [1.0]]), np.array([1.0]), 0.7
    times = np.linspace(0, 2, 9)
    solution = scipy.integrate.solve_ivp(
        lambda _, w: -gradient(w.reshape(3, 1), target, noise_std).ravel(),
        (0, 2),
        weights.ravel(),
        t_eval=times,
        rtol=1e-10,
        atol=1e-12,
    )
    start = abs(gaps(weights)[0, 1, 0])
    bound = theory.balancing_rate_bound(noise_std, 3)
    for time, w in zip(times, solution.y.T, strict=True):
        assert abs(w[0] ** 2 - w[1] ** 2) <= start * np.exp(-bound * time) * (1 + 1e-8)


@given(st.integers(2, 6), st.integers(0, 10**6), st.floats(0.0, 2.0), st.floats(0.0, 0.3))
@settings(max_examples=100, deadline=None)
def test_one_step_of_gradient_descent_multiplies_every_gap_by_the_factor(depth, seed, noise_std, lr):
    rng = np.random.default_rng(seed)
    weights, target = rng.uniform(-1.5, 1.5, (depth, 3)), rng.standard_normal(3)
    after = weights - lr * gradient(weights, target, noise_std)
    expected = theory.balancing_factor(weights, target, noise_std, lr) * gaps(weights)
    scale = (after**2).max() + (weights**2).max()
    np.testing.assert_allclose(gaps(after), expected, atol=1e-12 * scale, rtol=1e-9)


def test_for_small_steps_the_factor_is_one_less_the_rate():
    weights, target = np.random.default_rng(3).standard_normal((3, 2)), np.array([1.0, -0.5])
    lr = 1e-7
    factor = theory.balancing_factor(weights, target, 0.5, lr)
    np.testing.assert_allclose((1 - factor) / lr, theory.balancing_rate(weights, 0.5), atol=1e-4)
