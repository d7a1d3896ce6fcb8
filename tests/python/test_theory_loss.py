"""Loss, regulariser and derivatives against enumerated +-eta noise, quadrature, autograd and mpmath.

Enumerating all signs of a small network gives expectations without error, so E O(W + xi) = O_R(W) and its
derivatives are checked to rounding, with correlated coordinates and different noise in the layers.
"""

import itertools

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_ssam import theory

CASES = [(1, 3), (2, 1), (2, 3), (3, 2), (4, 2), (5, 1)]


def random_case(depth, features, seed=0):
    rng = np.random.default_rng([seed, depth, features])
    factor = rng.standard_normal((features, features + 1))
    return (
        rng.standard_normal((depth, features)),
        rng.standard_normal(features) * 2,
        rng.uniform(0.1, 0.8, depth),
        factor @ factor.T,
    )


def covariances(covariance):
    return [None, np.diag(covariance).copy(), covariance]


def plain_loss(weights, target, covariance=None):
    """(w* - p)^T Sigma (w* - p) in torch, for values and for autograd."""
    residual = torch.as_tensor(target) - weights.prod(dim=-2)
    if covariance is None:
        return (residual**2).sum(-1)
    covariance = torch.as_tensor(covariance)
    covariance = torch.diag(covariance) if covariance.ndim == 1 else covariance
    return torch.einsum("...h,hk,...k->...", residual, covariance, residual)


def expected_loss(weights, target, noise_std, covariance=None):
    """Mean of the plain loss over all signs of +-noise_std, differentiable."""
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=weights.numel())), dtype=torch.float64)
    noise = signs.reshape(-1, *weights.shape) * torch.as_tensor(noise_std)[:, None]
    return plain_loss(weights + noise, target, covariance).mean()


@pytest.mark.parametrize(("depth", "features"), CASES)
def test_regularized_loss_is_the_exact_mean_over_all_signs_of_the_noise(depth, features):
    weights, target, noise_std, covariance = random_case(depth, features)
    for c in covariances(covariance):
        exact = expected_loss(torch.tensor(weights), target, noise_std, c).item()
        plain = plain_loss(torch.tensor(weights), target, c).item()
        assert theory.regularized_loss(weights, target, noise_std, c) == pytest.approx(exact, rel=1e-12)
        assert theory.loss(weights, target, c) == pytest.approx(plain, rel=1e-12)
        assert theory.regularizer(weights, noise_std, c) == pytest.approx(exact - plain, rel=1e-10)


@pytest.mark.parametrize(("depth", "features"), CASES)
def test_autograd_through_the_enumerated_mean_gives_gradient_and_hessian(depth, features):
    weights, target, noise_std, covariance = random_case(depth, features, seed=1)
    w = torch.tensor(weights)
    for c in covariances(covariance):

        def mean(v, c=c):
            return expected_loss(v, target, noise_std, c)

        gradient = torch.func.grad(mean)(w).numpy()
        np.testing.assert_allclose(
            theory.regularized_gradient(weights, target, noise_std, c), gradient, rtol=1e-10, atol=1e-11
        )
        hessian = torch.func.hessian(mean)(w).numpy()  # (depth, features, depth, features)
        computed = theory.regularized_hessian(weights, target, noise_std, c)
        if c is None or c.ndim == 1:
            blocks = np.moveaxis(np.diagonal(hessian, axis1=1, axis2=3), -1, 0)
            np.testing.assert_allclose(computed, blocks, rtol=1e-10, atol=1e-10)
        else:
            np.testing.assert_allclose(computed, hessian, rtol=1e-10, atol=1e-10)


def test_gaussian_quadrature_agrees_that_gaussian_noise_has_the_same_objective():
    weights, target, noise_std, _ = random_case(3, 1)
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(5)  # exact to degree 9 in each weight
    node_weights = node_weights / node_weights.sum()
    exact = sum(
        np.prod(node_weights[list(k)])
        * (target[0] - np.prod(weights[:, 0] + noise_std * nodes[list(k)])) ** 2
        for k in itertools.product(range(5), repeat=3)
    )
    assert theory.regularized_loss(weights, target, noise_std) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("noise_std", [1e-12, 1e-8, 1e-4, 1.0, 1e3])
@pytest.mark.parametrize("depth", [2, 3, 10])
def test_regularizer_keeps_its_digits_for_tiny_noise(noise_std, depth):
    weights = np.random.default_rng(depth).uniform(0.5, 2, (depth, 4))
    with mp.workdps(60):
        exact = mp.mpf(0)
        for column in weights.T:
            squares = [mp.mpf(float(w)) ** 2 for w in column]
            exact += mp.fprod(s + mp.mpf(noise_std) ** 2 for s in squares) - mp.fprod(squares)
        assert abs(mp.mpf(theory.regularizer(weights, noise_std)) / exact - 1) < 1e-14


def test_gradient_and_hessian_are_right_at_zero_weights_without_a_division():
    for depth in (2, 3, 4):
        for zeros in range(depth + 1):
            w = np.linspace(0.5, 1.5, depth)[:, None]
            w[:zeros] = 0
            noise_std = np.full(depth, 0.4)

            def mean(v, noise_std=noise_std):
                return expected_loss(v, np.array([1.3]), noise_std)

            np.testing.assert_allclose(
                theory.regularized_gradient(w, [1.3], 0.4), torch.func.grad(mean)(torch.tensor(w)), atol=1e-13
            )
            np.testing.assert_allclose(
                theory.regularized_hessian(w, [1.3], 0.4)[0],
                torch.func.hessian(mean)(torch.tensor(w))[:, 0, :, 0],
                atol=1e-13,
            )


@given(st.integers(2, 6), st.integers(0, 10**6), st.floats(1e-3, 3.0))
@settings(max_examples=100, deadline=None)
def test_the_regularizer_bounds_the_weights(depth, seed, noise_std):
    weights = np.random.default_rng(seed).standard_normal((depth, 3)) * 2
    bound = theory.regularizer(weights, noise_std) / noise_std ** (2 * (depth - 1))
    assert (weights**2).sum() <= bound * (1 + 1e-12)
