"""Products of correlated coordinates: optimality conditions of the LASSO, autograd, and actual descent."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from torch_ssam import theory


def correlated(seed, features, extra=3):
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((features, features + extra))
    return rng, factor @ factor.T / (features + extra)


def objective(target, noise_std, covariance):
    """O_R with a full covariance, in torch."""
    target, covariance = torch.tensor(target), torch.tensor(covariance)

    def value(w):
        p = w.prod(0)
        penalty = (w**2 + noise_std**2).prod(0) - (w**2).prod(0)
        return (target - p) @ covariance @ (target - p) + (torch.diag(covariance) * penalty).sum()

    return value


@given(st.integers(0, 10**6), st.integers(1, 8), st.floats(0.05, 1.2))
@settings(max_examples=60, deadline=None)
@example(958, 4, 0.875)  # rounding alone keeps the sweeps moving by more than an ulp of the targets
def test_depth_two_meets_the_optimality_conditions_of_the_weighted_lasso(seed, features, noise_std):
    rng, covariance = correlated(seed, features)
    target = rng.standard_normal(features) * 2
    product = theory.limit_product(target, noise_std, 2, covariance)
    pull = covariance @ (target - product)
    limit = noise_std**2 * np.diag(covariance)
    active = product != 0
    scale = np.abs(covariance).max() * np.abs(target).max()
    np.testing.assert_allclose(pull[active], (limit * np.sign(product))[active], atol=1e-12 * scale)
    assert (np.abs(pull[~active]) <= limit[~active] + 1e-12 * scale).all()


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("seed", range(6))
def test_the_balanced_weights_with_the_limit_product_are_a_local_minimum(seed, depth):
    rng, covariance = correlated(seed, 4)
    target = rng.standard_normal(4) * 2
    noise_std = 0.4
    product = theory.limit_product(target, noise_std, depth, covariance)
    weights = np.tile(np.abs(product) ** (1 / depth), (depth, 1))
    weights[0] *= np.sign(product)
    value = objective(target, noise_std, covariance)
    w = torch.tensor(weights)
    assert torch.func.grad(value)(w).abs().max() < 1e-10
    hessian = torch.func.hessian(value)(w).reshape(4 * depth, 4 * depth)
    assert torch.linalg.eigvalsh(hessian)[0] > 0


@pytest.mark.parametrize("depth", [2, 3])
def test_gradient_descent_from_a_large_start_ends_at_the_limit_product(depth):
    covariance = np.array([[1.0, 0.3, -0.2], [0.3, 2.0, 0.1], [-0.2, 0.1, 0.5]])
    target, noise_std = np.array([2.0, -1.5, 0.03]), 0.4
    weights = np.tile((3 * np.abs(target)) ** (1 / depth), (depth, 1))
    weights[0] *= np.sign(target)
    w = weights
    for _ in range(20_000):
        pull = covariance @ (target - w.prod(0))
        others = np.array(
            [np.delete(w, i, axis=0) for i in range(depth)]
        )  # (layer left out, the rest, features)
        extra = (others**2 + noise_std**2).prod(1) - (others**2).prod(1)
        w = w + 0.02 * (pull * others.prod(1) - np.diag(covariance) * w * extra)
    limit = theory.limit_product(target, noise_std, depth, covariance)
    assert limit[2] == 0
    np.testing.assert_allclose(w.prod(0), limit, atol=1e-9)


def test_a_diagonal_covariance_leaves_every_coordinate_alone():
    target = np.array([3.0, -0.5, 2.0])
    for depth in (2, 3):
        alone = theory.limit_product(target, 0.5, depth)
        assert np.array_equal(theory.limit_product(target, 0.5, depth, [1.0, 2.0, 0.1]), alone)
        full = theory.limit_product(target, 0.5, depth, np.diag([1.0, 2.0, 0.1]))
        np.testing.assert_allclose(full, alone, rtol=1e-14)


def test_a_collinear_design_still_settles_on_a_minimiser_of_the_lasso():
    covariance = np.array([[1.0, 1.0], [1.0, 1.0]])
    product = theory.limit_product([1.0, 1.0], 0.5, 2, covariance)
    assert product.sum() == pytest.approx(1.75, rel=1e-12)  # both pulls are 0.25 = noise_std^2
