"""Gradient noise against enumerated signs and quadrature; the stationary law against SciPy's Lyapunov solver.

Enumeration gives the covariance of the Rademacher gradient without error, Gauss-Hermite nodes that of the
Gaussian one (polynomials of degree at most 8 in each weight, 5 nodes are exact to degree 9).
"""

import itertools

import mpmath as mp
import numpy as np
import pytest
import scipy.linalg
import torch

from torch_ssam import theory


def nodes(distribution):
    if distribution == "rademacher":
        return np.array([-1.0, 1.0]), np.array([0.5, 0.5])
    points, probabilities = np.polynomial.hermite_e.hermegauss(5)
    return points, probabilities / probabilities.sum()


def noisy_gradients(weights, target, noise_std, distribution):
    """grad O(w + xi) of one coordinate for every combination of nodes, and their probabilities."""
    points, probabilities = nodes(distribution)
    choice = np.array(list(itertools.product(range(len(points)), repeat=len(weights))))
    w = weights + noise_std * points[choice]
    others = np.array([np.delete(w, i, axis=1).prod(1) for i in range(len(weights))]).T
    gradient = -2 * (target - w.prod(1, keepdims=True)) * others
    return gradient, probabilities[choice].prod(1)


def exact_covariance(weights, target, noise_std, distribution):
    gradient, probability = noisy_gradients(weights, target, noise_std, distribution)
    centred = gradient - probability @ gradient
    return (centred * probability[:, None]).T @ centred


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_gradient_covariance_is_exact_for_every_pair_of_layers(depth, distribution):
    rng = np.random.default_rng(depth)
    weights, target = rng.standard_normal((depth, 3)), rng.standard_normal(3) * 2
    weights[0, 0] = 0
    noise_std = rng.uniform(0.2, 0.9, depth)
    full = theory.gradient_variance(weights, target, noise_std, distribution, full=True)
    variance = theory.gradient_variance(weights, target, noise_std, distribution)
    for h in range(3):
        exact = exact_covariance(weights[:, h], target[h], noise_std, distribution)
        np.testing.assert_allclose(full[h], exact, rtol=1e-10, atol=1e-12 * np.abs(exact).max())
        np.testing.assert_allclose(variance[:, h], np.diag(exact), rtol=1e-10)


@pytest.mark.parametrize("noise_std", [1e-10, 1e-5, 1.0])
def test_gradient_variance_keeps_its_digits_for_tiny_noise(noise_std):
    weights, target = [1.1, -0.7, 1.9], -1.3
    computed = theory.gradient_variance(np.array(weights)[:, None], [target], noise_std)[:, 0]
    with mp.workdps(60):
        w = [mp.mpf(v) for v in weights]
        eta2 = mp.mpf(noise_std) ** 2
        t = mp.mpf(target)
        for i in range(3):
            others = [w[k] for k in range(3) if k != i]
            second = 4 * t**2 * mp.fprod(v**2 + eta2 for v in others)
            second -= 8 * t * w[i] * mp.fprod(v**3 + 3 * v * eta2 for v in others)
            second += 4 * (w[i] ** 2 + eta2) * mp.fprod(v**4 + 6 * v**2 * eta2 + 3 * eta2**2 for v in others)
            mean = -2 * t * mp.fprod(others) + 2 * w[i] * mp.fprod(v**2 + eta2 for v in others)
            assert abs(mp.mpf(float(computed[i])) / (second - mean**2) - 1) < 1e-13


def test_sampled_gaussian_gradients_have_the_stated_covariance():
    # 10 entries beyond 6 standard errors of the mean of n products: false alarm about 2e-8.
    rng = np.random.default_rng(5)
    weights, target, noise_std, n = np.array([0.8, -1.1, 0.6, 0.9]), 1.4, 0.4, 200_000
    w = weights + noise_std * rng.standard_normal((n, 4))
    others = np.array([np.delete(w, i, axis=1).prod(1) for i in range(4)]).T
    gradient = -2 * (target - w.prod(1, keepdims=True)) * others
    centred = gradient - gradient.mean(0)
    products = centred[:, :, None] * centred[:, None, :]
    error = products.mean(0) - theory.gradient_variance(weights[:, None], [target], noise_std, full=True)[0]
    assert (np.abs(error) <= 6 * products.std(0) / np.sqrt(n)).all()


def autograd_hessian(weights, target, noise_std):
    def objective(w):
        return (target - w.prod()) ** 2 + (w**2 + torch.tensor(noise_std) ** 2).prod() - (w**2).prod()

    return torch.func.hessian(objective)(torch.tensor(weights)).numpy()


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("per_layer", [False, True])
def test_scipy_solves_the_same_lyapunov_equation(per_layer, depth, distribution):
    noise_std = np.linspace(0.3, 0.6, depth) if per_layer else np.full(depth, 0.45)
    target = np.array([1.9, -2.4, 0.02, -0.01, 0.0])
    lr = 0.02
    computed = theory.stationary_covariance(target, noise_std, lr, depth, distribution)
    points = np.nan_to_num(theory.critical_points(target, noise_std, depth).minimum)
    for h in range(len(target)):
        drift = np.eye(depth) - lr * autograd_hessian(points[:, h], target[h], noise_std)
        noise = exact_covariance(points[:, h], target[h], noise_std, distribution)
        exact = scipy.linalg.solve_discrete_lyapunov(drift, lr**2 * noise)
        np.testing.assert_allclose(computed[h], exact, rtol=1e-8, atol=1e-10 * np.abs(exact).max())


def test_simulated_weights_under_small_constant_steps_have_the_predicted_covariance():
    # 6000 independent coordinates: a variance has relative standard error 1.8%; the 9% allowed is 5 of them
    # (three entries, false alarm about 2e-6), terms of higher order in lr included.
    rng = np.random.default_rng(7)
    target, noise_std, lr, copies = 1.0, 0.3, 0.004, 6000
    start = theory.critical_points([target], noise_std, 2).minimum
    w = np.tile(start, (1, copies))
    for _ in range(3500):
        noisy = w + noise_std * rng.standard_normal(w.shape)
        w -= lr * -2 * (target - noisy[0] * noisy[1]) * noisy[::-1]
    predicted = theory.stationary_covariance(target, noise_std, lr, 2)
    np.testing.assert_allclose(np.cov(w), predicted, atol=0.09 * predicted.max())


def test_the_law_is_refused_or_infinite_where_the_minimum_is_not_stable():
    with pytest.raises(ValueError, match="lr must be below"):
        theory.stationary_covariance([4.0], 0.5, 0.9, 2)
    assert np.isinf(theory.stationary_covariance([1.0], 1.0, 0.01, 2)).all()  # exactly at the threshold
    assert np.isinf(theory.stationary_covariance([6.75], 1.0, 0.01, 4)).all()
