"""Step sizes and regions: Hessian norms and descent measured on a NumPy O_R, regions on roots of polynomials.

The guarantees are checked where they are claimed, for gradient descent on O_R;
Hypothesis looks for exceptions.
"""

import itertools

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_ssam import theory


def objective(w, target, noise_std, covariance):
    """O_R in torch; noise_std (depth,), covariance (features, features)."""
    p = w.prod(0)
    squares = w**2
    penalty = (squares + noise_std[:, None] ** 2).prod(0) - squares.prod(0)
    return (target - p) @ covariance @ (target - p) + (torch.diag(covariance) * penalty).sum()


def random_case(seed, depth, features, kind):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((depth, features)) * rng.choice([0.1, 1, 2])
    target = rng.standard_normal(features) * rng.choice([0, 1, 5])
    noise_std = rng.uniform(0.1, 1.0, depth) if rng.random() < 0.5 else np.full(depth, rng.uniform(0.1, 1.0))
    factor = rng.standard_normal((features, features + 2))
    covariance = {"white": None, "diagonal": rng.uniform(0.1, 3, features), "full": factor @ factor.T}[kind]
    matrix = np.eye(features) if covariance is None else covariance
    matrix = np.diag(matrix) if matrix.ndim == 1 else matrix
    return weights, target, noise_std, covariance, torch.tensor(matrix)


@pytest.mark.parametrize("kind", ["white", "diagonal", "full"])
@pytest.mark.parametrize("sharp", [False, True])
@given(seed=st.integers(0, 10**9), depth=st.integers(2, 5), features=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_below_the_bound_every_step_descends_by_the_stated_amount(kind, sharp, seed, depth, features):
    if sharp and kind == "full":
        return
    weights, target, noise_std, covariance, matrix = random_case(seed, depth, features, kind)
    bound = theory.step_size_bound(weights, target, noise_std, covariance, sharp=sharp)
    w = torch.tensor(weights, requires_grad=True)
    value = objective(w, torch.tensor(target), torch.tensor(noise_std), matrix)
    (gradient,) = torch.autograd.grad(value, w)
    for delta in (0.01, 0.5, 0.9):
        lr = (1 - delta) * bound
        after = objective(w - lr * gradient, torch.tensor(target), torch.tensor(noise_std), matrix)
        assert after <= value - delta * lr * (gradient**2).sum() + 1e-13 * value


@pytest.mark.parametrize("kind", ["white", "diagonal", "full"])
@pytest.mark.parametrize("sharp", [False, True])
def test_the_hessian_is_below_two_over_the_bound(kind, sharp):
    if sharp and kind == "full":
        return
    for seed, depth in itertools.product(range(25), (2, 3, 5)):
        weights, target, noise_std, covariance, matrix = random_case(seed, depth, 2, kind)
        hessian = torch.func.hessian(objective)(
            torch.tensor(weights), torch.tensor(target), torch.tensor(noise_std), matrix
        ).reshape(2 * depth, 2 * depth)
        norm = torch.linalg.eigvalsh(hessian).abs().max().item()
        bound = theory.step_size_bound(weights, target, noise_std, covariance, sharp=sharp)
        assert norm <= 2 / bound * (1 + 1e-12)


def test_the_bound_of_a_full_covariance_uses_its_largest_eigenvalue():
    for features in (1, 2, 5, 40):
        weights, target, noise_std, _, matrix = random_case(features, 3, features, "full")
        covariance = matrix.numpy()
        kappa = np.linalg.eigvalsh(covariance)[-1] / np.diag(covariance).min()
        value = objective(*map(torch.tensor, (weights, target, noise_std)), matrix).item()
        smoothness = (3 + kappa + np.sqrt((3 + kappa) ** 2 + 4)) * value / noise_std.min() ** 2
        if features > 1:
            bound = theory.step_size_bound(weights, target, noise_std, covariance)
            assert bound == pytest.approx(2 / smoothness, rel=1e-12)


@given(st.integers(0, 10**9), st.integers(2, 5), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_outside_the_projection_radius_the_gradient_points_outwards(seed, depth, features):
    weights, target, noise_std, _, matrix = random_case(seed, depth, features, "white")
    radius = theory.projection_radius(target, noise_std, depth)
    w = torch.tensor(weights * max(radius, 1e-3) / np.linalg.norm(weights))
    gradient = torch.func.grad(objective)(w, torch.tensor(target), torch.tensor(noise_std), matrix)
    assert (gradient * w).sum() >= -1e-12 * (gradient * w).abs().sum()


def positive_roots(target, noise_std):
    """y with (y^2 + 1)^(L-1) prod eta = |w*| y^(L-2), by the companion matrix."""
    depth = len(noise_std)
    polynomial = np.polynomial.Polynomial([1, 0, 1]) ** (depth - 1) * np.prod(noise_std)
    polynomial = polynomial - np.polynomial.Polynomial([0] * (depth - 2) + [abs(target)])
    roots = polynomial.roots()
    return roots[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)].real


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_every_critical_point_lies_in_the_critical_radius(depth):
    rng = np.random.default_rng(depth)
    for _ in range(20):
        noise_std = rng.uniform(0.1, 0.8, depth)
        target = rng.standard_normal(4) * 3
        largest = [max(positive_roots(t, noise_std), default=0.0) for t in target]
        norm = np.sqrt(np.sum(np.square(largest)) * np.sum(noise_std**2))
        assert norm <= theory.critical_radius(target, noise_std, depth) * (1 + 1e-9)


@pytest.mark.parametrize("depth", [2, 3, 10])
def test_the_critical_radius_keeps_its_digits_where_the_terms_cancel(depth):
    with mp.workdps(60):
        for noise_std in (0.1, 1.0, 1e-6):
            for factor in (1 + 1e-15, 1 + 1e-8, 2.0, 1e8):
                target = noise_std**depth * factor
                inside = mp.mpf(target) ** (mp.mpf(2) / depth) - mp.mpf(noise_std) ** 2
                exact = mp.sqrt(depth * max(inside, 0))
                value = theory.critical_radius(target, noise_std, depth)
                assert abs(mp.mpf(value) - exact) <= 1e-14 * exact


@given(st.integers(0, 10**9), st.integers(2, 5))
@settings(max_examples=100, deadline=None)
def test_on_every_face_of_the_box_descent_points_inwards(seed, depth):
    weights, target, noise_std, _, matrix = random_case(seed, depth, 2, "white")
    bounds = theory.coordinate_bounds(target, noise_std, depth)
    assert bounds.shape == weights.shape
    inside = np.clip(weights, -bounds, bounds)
    for layer, sign in itertools.product(range(depth), (-1, 1)):
        w = inside.copy()
        w[layer] = sign * bounds[layer]
        gradient = torch.func.grad(objective)(*map(torch.tensor, (w, target, noise_std)), matrix)[
            layer
        ].numpy()
        assert (sign * gradient >= -1e-12 * (1 + np.abs(gradient))).all()
