"""What the theory functions take and give: shapes, batches, tensors, large arrays, and errors that help."""

import doctest
import inspect

import numpy as np
import pytest
import torch

from torch_ssam import theory

W = np.random.default_rng(0).standard_normal((3, 4))
T = np.random.default_rng(1).standard_normal(4)

# One call of every function of weights and target, for shapes and types; (w, t) with leading dimensions.
CALLS = {
    "loss": lambda w, t: theory.loss(w, t),
    "regularizer": lambda w, t: theory.regularizer(w, 0.3),
    "regularized_loss": lambda w, t: theory.regularized_loss(w, t, [0.1, 0.2, 0.3], np.ones(4)),
    "regularized_gradient": lambda w, t: theory.regularized_gradient(w, t, 0.3),
    "regularized_hessian": lambda w, t: theory.regularized_hessian(w, t, 0.3),
    "full_hessian": lambda w, t: theory.regularized_hessian(w, t, 0.3, np.eye(4)),
    "average_sharpness": lambda w, t: theory.average_sharpness(w, 0.3),
    "worst_case_sharpness": lambda w, t: theory.worst_case_sharpness(w, t, 0.2),
    "minimal_average_sharpness": lambda w, t: theory.minimal_average_sharpness(t, 0.3, 3),
    "minimal_hessian_trace": lambda w, t: theory.minimal_hessian_trace(t, 3),
    "hessian_trace": lambda w, t: theory.hessian_trace(w),
    "balance_gaps": lambda w, t: theory.balance_gaps(w),
    "balancing_rate": lambda w, t: theory.balancing_rate(w, 0.3),
    "balancing_factor": lambda w, t: theory.balancing_factor(w, t, 0.3, 0.1),
    "shrinkage_factor": lambda w, t: theory.shrinkage_factor(t, 0.3, 3),
    "limit_product": lambda w, t: theory.limit_product(t, 0.3, 3, np.eye(4) + 0.1),
    "critical_points": lambda w, t: theory.critical_points(t, 0.3, 3).minimum,
    "critical_points_flag": lambda w, t: theory.critical_points(t, 0.3, 3).minimum_is_global,
    "step_size_bound": lambda w, t: theory.step_size_bound(w, t, 0.3),
    "projection_radius": lambda w, t: theory.projection_radius(t, 0.3, 3),
    "critical_radius": lambda w, t: theory.critical_radius(t, 0.3, 3),
    "coordinate_bounds": lambda w, t: theory.coordinate_bounds(t, 0.3, 3),
    "gradient_variance": lambda w, t: theory.gradient_variance(w, t, 0.3),
    "stationary_covariance": lambda w, t: theory.stationary_covariance(t, 0.3, 0.01, 3),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_batch_gives_what_its_items_give_one_by_one(name):
    rng = np.random.default_rng(2)
    weights, targets = rng.standard_normal((2, 5, 3, 4)), rng.standard_normal((2, 5, 4))
    together = np.asarray(CALLS[name](weights, targets))
    for b in np.ndindex(2, 5):
        assert np.array_equal(together[b], CALLS[name](weights[b], targets[b]), equal_nan=True)
    assert np.asarray(CALLS[name](weights[:0], targets[:0])).shape == (0, *together.shape[1:])


@pytest.mark.parametrize("name", CALLS)
def test_a_tensor_in_gives_a_float64_tensor_out_and_the_same_numbers(name):
    w, t = torch.tensor(W, requires_grad=True), torch.tensor(T)
    result = CALLS[name](w, t)
    assert isinstance(result, torch.Tensor)
    assert result.dtype is (torch.bool if name.endswith("flag") else torch.float64)
    assert not result.requires_grad
    assert np.array_equal(result.numpy(), CALLS[name](W, T), equal_nan=True)


def test_one_target_gives_results_without_the_feature_dimension():
    assert isinstance(theory.shrinkage_factor(2.0, 0.5, 3), float)
    assert isinstance(theory.limit_product(2, 0.5, 3), float)
    assert theory.critical_points(2.0, 0.5, 3).minimum.shape == (3,)
    assert theory.critical_points(2.0, 0.5, 3).minimum_is_global is True
    assert theory.coordinate_bounds(2.0, 0.5, 3).shape == (3,)
    assert theory.stationary_covariance(2.0, 0.5, 0.01, 3).shape == (3, 3)
    assert theory.loss(W, 2.0) == theory.loss(W, np.full(4, 2.0))


def test_other_dtypes_and_strides_are_taken_as_their_float64_values():
    assert theory.loss(np.array([[2], [1]], dtype=np.int32), [3]) == 1.0
    low = torch.tensor(W).bfloat16()
    assert theory.regularizer(low, 0.3).item() == theory.regularizer(low.double().numpy(), 0.3)
    wide = np.random.default_rng(3).standard_normal((4, 6))
    assert theory.loss(wide[:, ::2].T, T) == theory.loss(np.ascontiguousarray(wide[:, ::2].T), T)


BAD_VALUES = [
    (lambda: theory.loss(T, T), "shape \\(..., depth, features\\), got shape \\(4,\\)"),
    (lambda: theory.loss(W, T[:2]), "one value per coordinate, got 2 values for weights of 4"),
    (lambda: theory.loss(np.full((3, 4), np.nan), T), "weights must be finite, got nan"),
    (lambda: theory.loss(W, [1, 2, np.inf, 0]), "target must be finite, got inf"),
    (lambda: theory.loss(np.zeros((0, 4)), T), "at least one layer"),
    (lambda: theory.loss(np.zeros((5, 3, 4)), np.zeros((2, 4))), "must broadcast"),
    (lambda: theory.loss([[1, 2], [3]], T), "rectangular"),
    (lambda: theory.loss(W, T, np.ones(3)), "covariance must cover the coordinates"),
    (lambda: theory.loss(W, T, np.ones((4, 3))), "covariance must have shape"),
    (lambda: theory.loss(W, T, np.ones((2, 4, 4))), "covariance must have shape"),
    (lambda: theory.loss(W, T, np.triu(np.ones((4, 4)))), "symmetric"),
    (
        lambda: theory.loss(W, T, np.ones((4, 4)) + np.eye(4) - np.diag([2, 0, 0, 0])),
        "variances|semidefinite",
    ),
    (lambda: theory.regularizer(W, -0.1), "noise_std must be a finite number >= 0, got -0.1"),
    (lambda: theory.regularizer(W, np.nan), "noise_std"),
    (lambda: theory.regularizer(W, [0.1, 0.2]), "one number per layer, got 2 numbers for depth 3"),
    (lambda: theory.regularizer(W, []), "got no numbers"),
    (lambda: theory.regularizer(W, [[0.1]]), "got shape \\(1, 1\\)"),
    (lambda: theory.balancing_rate(W, [0.1, 0.2, 0.3]), "same noise_std in every layer"),
    (lambda: theory.balancing_factor(W, T, 0.1, -1.0), "lr must be a finite number >= 0, got -1"),
    (lambda: theory.balancing_factor(W, T, 0.1, [1.0, 2.0]), "lr must be one number"),
    (lambda: theory.shrinkage_factor(T, 0.1, 1), "depth must be at least 2, got 1"),
    (lambda: theory.shrinkage_factor(T, [0.1] * 3, 2), "3 numbers for depth 2"),
    (lambda: theory.critical_points(T, 0.0, 3), "noise_std must be a finite number > 0"),
    (lambda: theory.limit_product(T, 0.1, 2, np.diag([1.0, 0, 1, 1])), "variances > 0"),
    (lambda: theory.step_size_bound(W, T, 0.1, np.eye(4), sharp=True), "sharp=False"),
    (lambda: theory.worst_case_sharpness(W, T, -1.0), "radius"),
    (lambda: theory.worst_case_sharpness(W, T, 1.0, restarts=-1), "restarts"),
    (lambda: theory.gradient_variance(W, T, 0.1, "cauchy"), "'gaussian' or 'rademacher', got 'cauchy'"),
    (lambda: theory.stationary_covariance(T, 0.1, 0.0, 2), "lr must be a finite number > 0"),
    (lambda: theory.gaussian_kl(W, 0.0, 0.0, 1.0), "noise_std must be a finite number > 0"),
    (lambda: theory.gaussian_kl(W, T, 0.1, 1.0), "prior must be a number"),
    (lambda: theory.kl_inverse(1.1, 0.1), "q must lie in \\[0, 1\\], got 1.1"),
    (lambda: theory.kl_inverse(0.1, -0.1), "c must be a number >= 0"),
    (lambda: theory.kl_inverse([0.1, 0.2], [0.1, 0.2, 0.3]), "must broadcast"),
    (lambda: theory.pac_bayes_bound(0.1, -1.0, 100), "kl"),
    (lambda: theory.pac_bayes_bound(0.1, 1.0, 0), "at least 1"),
    (lambda: theory.pac_bayes_bound(0.1, 1.0, 100, 1.0), "delta must lie in \\(0, 1\\)"),
    (lambda: theory.pac_bayes_bound(0.1, 1.0, 100, kind="magic"), "'catoni', got 'magic'"),
]


@pytest.mark.parametrize("case", range(len(BAD_VALUES)))
def test_values_that_make_no_sense_raise_a_value_error_that_says_why(case):
    call, message = BAD_VALUES[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: theory.loss("weights", T),
        lambda: theory.loss(W, None),
        lambda: theory.loss(W + 1j, T),
        lambda: theory.loss(torch.tensor(W) + 1j, T),
        lambda: theory.loss(W > 0, T),
        lambda: theory.regularizer(W, "0.1"),
        lambda: theory.shrinkage_factor(T, 0.1, 2.5),
        lambda: theory.gradient_variance(W, T, 0.1, 3),
    ],
)
def test_wrong_types_raise_a_type_error(call):
    with pytest.raises(TypeError, match="must"):
        call()


def test_a_covariance_that_is_not_semidefinite_is_refused_and_one_that_is_barely_so_is_not():
    # Every pair of coordinates is possible, the three together are not: the smallest eigenvalue is -0.8.
    indefinite = np.full((3, 3), -0.9) + 1.9 * np.eye(3)
    with pytest.raises(ValueError, match="positive semidefinite, got one whose correlations of the first 3"):
        theory.loss(np.ones((2, 3)), np.ones(3), indefinite)
    rng = np.random.default_rng(0)
    for rank in (1, 2, 30, 59, 60):  # of 60: singular up to rounding, of very different scales, with zeros
        x = rng.standard_normal((rank, 60)) * np.logspace(-6, 6, 60)
        x[:, 7] = 0
        covariance = x.T @ x / rank
        assert np.isfinite(theory.loss(np.ones((2, 60)), np.ones(60), covariance))
        shifted = covariance - 1e-3 * np.diag(np.diag(covariance)) * (rank < 60)
        if rank < 60:
            with pytest.raises(ValueError, match="semidefinite"):
                theory.loss(np.ones((2, 60)), np.ones(60), shifted)


def test_every_public_function_has_an_example_that_runs():
    results = doctest.testmod(theory)
    assert results.failed == 0
    functions = [getattr(theory, name) for name in theory.__all__ if name != "CriticalPoints"]
    assert results.attempted == len(functions)
    assert all(inspect.getdoc(f).count(">>>") == 1 for f in functions)


def test_a_hundred_thousand_coordinates_are_one_call():
    rng = np.random.default_rng(4)
    weights, target = rng.standard_normal((3, 100_000)), rng.standard_normal(100_000)
    for name in ("regularized_loss", "regularized_gradient", "regularized_hessian", "step_size_bound"):
        assert np.isfinite(getattr(theory, name)(weights, target, 0.3)).all()
    assert np.isfinite(theory.gradient_variance(weights, target, 0.3)).all()
    assert theory.worst_case_sharpness(weights, target, 0.5, restarts=0) > 0
    limits = theory.limit_product(target, 0.6, 3)
    assert np.array_equal(limits != 0, np.abs(target) >= theory.existence_threshold(0.6, 3))
