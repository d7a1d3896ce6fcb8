"""The theory of S-SAM on diagonal linear networks: every formula of docs/theory.md as a function.

[CLS] is G. Clara, S. Langer, J. Schmidt-Hieber, "Training Diagonal Linear Networks with Stochastic
Sharpness-Aware Minimization", arXiv 2503.11891; (D) marks what is derived beyond it. Notation: depth L,
products p = prod_l w_l, target w*, noise_std eta, lr alpha, covariance Sigma = E x x^T, P_i = prod_{k!=i}
w_k, A_i = prod_{k!=i} (w_k^2 + eta_k^2); P_ij and A_ij leave out i and j.

Throughout: `weights` has shape (..., depth, features) and `target` (..., features), or is one number for all
coordinates; leading dimensions broadcast and are kept. `noise_std` is a number >= 0 or one per layer.
`covariance` is None for whitened data, (features,) for its diagonal, or (features, features). Arguments are
numbers, sequences, NumPy arrays or tensors of any real dtype; inside it is float64 in C++ (csrc/theory). A
tensor in gives a float64 tensor on the CPU without a graph, anything else a NumPy array, or a float where no
dimension is left. Values or shapes that make no sense raise ValueError, types TypeError. Coordinates of
weights and target are in units of the model: noise_std has the unit of the weights, losses that of the target
squared.
Tests: tests/python/test_theory_*.py; each checks against an independent computation.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal, NamedTuple

import numpy as np

from torch_ssam._theory_arrays import (
    Batch,
    as_array,
    as_covariance,
    as_integer,
    as_noise,
    as_number,
    give,
)
from torch_ssam.noise.options import Distribution

#: Names of `pac_bayes_bound`.
BoundKind = Literal["seeger", "maurer", "thiemann", "catoni"]

# Through importlib, because a compiled module has no annotations for mypy to read.
_C: Any = importlib.import_module("torch_ssam._C")

__all__ = [
    "CriticalPoints",
    "average_sharpness",
    "balance_gaps",
    "balancing_factor",
    "balancing_rate",
    "balancing_rate_bound",
    "coordinate_bounds",
    "critical_points",
    "critical_radius",
    "existence_threshold",
    "gaussian_kl",
    "global_threshold",
    "gradient_variance",
    "hessian_trace",
    "kl_inverse",
    "limit_product",
    "loss",
    "minimal_average_sharpness",
    "minimal_hessian_trace",
    "pac_bayes_bound",
    "projection_radius",
    "regularized_gradient",
    "regularized_hessian",
    "regularized_loss",
    "regularizer",
    "shrinkage_factor",
    "stationary_covariance",
    "step_size_bound",
    "worst_case_sharpness",
]


def __dir__() -> list[str]:
    return __all__


def loss(weights: Any, target: Any, covariance: Any = None) -> Any:
    """Squared loss O(W) = (w* - p)^T Sigma (w* - p) [CLS], (D) for the covariance.

    Args: weights (..., depth, features); target (..., features); covariance None, (features,) or (features,
    features).
    Returns: shape (...). Label noise of variance s^2 would add s^2.

    >>> loss([[2.0], [0.5]], [3.0])
    4.0
    """
    batch = Batch(weights, target)
    return batch.unfold(_C.loss(batch.weights, batch.target, as_covariance(covariance)))


def regularizer(weights: Any, noise_std: Any, covariance: Any = None) -> Any:
    """What noise adds to the loss: R(W) = sum_h Sigma_hh [prod_l (w_lh^2 + eta_l^2) - p_h^2].

    [CLS], (D) for the covariance and noise that differs by layer. Only the diagonal of the covariance enters.
    On whitened data, with one eta, R bounds the weights: |W|^2 <= R(W) / eta^(2(L-1)).
    Args: weights (..., depth, features); noise_std a number or (depth,); covariance as in `loss`.
    Returns: shape (...), >= 0.

    >>> regularizer([[1.0], [1.0]], 0.5)
    0.5625
    """
    batch = Batch(weights)
    return batch.unfold(_C.regularizer(batch.weights, as_noise(noise_std), as_covariance(covariance)))


def regularized_loss(weights: Any, target: Any, noise_std: Any, covariance: Any = None) -> Any:
    """What S-SAM minimises: O_R(W) = O(W) + R(W) = E_xi O(W + xi) [CLS].

    The same for Gaussian and Rademacher noise: only independence, mean 0 and the variance enter (D).
    Args: weights (..., depth, features); target (..., features); noise_std a number or (depth,); covariance
    as in `loss`. Returns: shape (...).

    >>> regularized_loss([[1.0], [1.0]], [3.0], 0.5)
    4.5625
    """
    batch = Batch(weights, target)
    return batch.unfold(
        _C.regularized_loss(batch.weights, batch.target, as_noise(noise_std), as_covariance(covariance))
    )


def regularized_gradient(weights: Any, target: Any, noise_std: Any, covariance: Any = None) -> Any:
    """Gradient of O_R, the expected step direction of S-SAM.

    g_ih = -2 [Sigma (w* - p)]_h P_i + 2 Sigma_hh (w_i A_i - p P_i); whitened, -2 w* P_i + 2 w_i A_i.
    [CLS], (D) for the covariance and noise that differs by layer.
    Args: as `regularized_loss`. Returns: the shape of weights (with leading dimensions broadcast).

    >>> regularized_gradient([[1.0], [1.0]], [3.0], 0.5)
    array([[-3.5],
           [-3.5]])
    """
    batch = Batch(weights, target)
    return batch.unfold(
        _C.regularized_gradient(batch.weights, batch.target, as_noise(noise_std), as_covariance(covariance))
    )


def regularized_hessian(weights: Any, target: Any, noise_std: Any, covariance: Any = None) -> Any:
    """Hessian of O_R.

    Whitened: H_ii = 2 A_i, H_ij = 4 w_i w_j A_ij - 2 w* P_ij within a coordinate, 0 between coordinates
    [CLS]; (D) for a covariance and noise that differs by layer.
    Args: as `regularized_loss`.
    Returns: the blocks (..., features, depth, depth) where covariance is None or a diagonal; with a full
    covariance all of it, (..., depth, features, depth, features), entry [i, h, j, k] for w_ih and w_jk.

    >>> regularized_hessian([[1.0], [1.0]], [3.0], 0.5)
    array([[[ 2.5, -2. ],
            [-2. ,  2.5]]])
    """
    batch = Batch(weights, target)
    return batch.unfold(
        _C.regularized_hessian(batch.weights, batch.target, as_noise(noise_std), as_covariance(covariance))
    )


def average_sharpness(weights: Any, noise_std: Any, covariance: Any = None) -> Any:
    """Average sharpness S_avg(W) = E_xi O(W + xi) - O(W), which on these networks is `regularizer` [CLS].

    To order eta^2 it is eta^2 / 2 times `hessian_trace`. Args and result: as `regularizer`.

    >>> average_sharpness([[1.0], [1.0]], 0.5)
    0.5625
    """
    batch = Batch(weights)
    return batch.unfold(_C.average_sharpness(batch.weights, as_noise(noise_std), as_covariance(covariance)))


def worst_case_sharpness(
    weights: Any, target: Any, radius: float, *, restarts: int = 8, seed: int = 0
) -> Any:
    """Worst-case sharpness S_max(W, radius) = max_{|xi|_2 <= radius} O(W + xi) - O(W), whitened data.

    By projected gradient ascent from the gradient, from the best single coordinates and from `restarts`
    random directions (a fixed stream from `seed`). The value is attained by some xi, so it is a lower bound
    on the maximum; in every case that could be checked (closed form, grid, SciPy) it is the maximum.
    Args: weights (..., depth, features); target (..., features); radius >= 0, in units of the weights.
    Returns: shape (...), >= 0.

    >>> round(worst_case_sharpness([[1.0], [1.0]], [0.0], 2**0.5), 12)  # both layers go to 2: 16 - 1
    15.0
    """
    batch = Batch(weights, target)
    return batch.unfold(
        _C.worst_case_sharpness(
            batch.weights,
            batch.target,
            as_number("radius", radius),
            as_integer("restarts", restarts),
            as_integer("seed", seed) & (2**64 - 1),
        )
    )


def minimal_average_sharpness(product: Any, noise_std: Any, depth: int) -> Any:
    """Smallest S_avg of all weights with this product: sum_h [(|p|^(2/L) + eta^2)^L - p^2] ([CLS] Lemma 3.2).

    Attained at the balanced factorisation |w_1| = ... = |w_L|. With per-layer noise, eta is the geometric
    mean and |w_l| / eta_l is what is equal (D).
    Args: product (..., features) or a number; noise_std a number or (depth,); depth >= 2. Returns: shape
    (...).

    >>> minimal_average_sharpness([1.0], 0.5, 2)
    0.5625
    """
    batch = Batch(target=product, name="product")
    return batch.unfold(
        _C.minimal_average_sharpness(batch.target, as_noise(noise_std), as_integer("depth", depth))
    )


def minimal_hessian_trace(product: Any, depth: int) -> Any:
    """Smallest Tr Hess O of all weights with this product, 2 L sum_h |p|^(2(L-1)/L) ([CLS] Lemma 3.2).

    Args: product (..., features) or a number; depth >= 2. Returns: shape (...).

    >>> minimal_hessian_trace([4.0], 2)
    16.0
    """
    batch = Batch(target=product, name="product")
    return batch.unfold(_C.minimal_hessian_trace(batch.target, as_integer("depth", depth)))


def hessian_trace(weights: Any, covariance: Any = None) -> Any:
    """Trace of the Hessian of the loss O, 2 sum_h Sigma_hh sum_i P_i^2 [CLS], (D) for the covariance.

    Args: weights (..., depth, features); covariance as in `loss`. Returns: shape (...).

    >>> hessian_trace([[2.0], [0.5]])
    8.5
    """
    batch = Batch(weights)
    return batch.unfold(_C.hessian_trace(batch.weights, as_covariance(covariance)))


def balance_gaps(weights: Any) -> Any:
    """Balance gaps w_i^2 - w_j^2 of every pair of layers.

    Args: weights (..., depth, features). Returns: shape (..., depth, depth, features), antisymmetric in the
    layers.

    >>> balance_gaps([[2.0], [0.5]])[0, 1]
    array([3.75])
    """
    batch = Batch(weights)
    return batch.unfold(_C.balance_gaps(batch.weights))


def balancing_rate(weights: Any, noise_std: Any) -> Any:
    """Rate at which gradient flow of O_R closes the balance gaps.

    d/dt gap_ij = -4 eta^2 A_ij gap_ij ([CLS] Theorem 3.1a), whitened data.
    Args: weights (..., depth, features); noise_std a number, or equal numbers: different noise in the layers
    leaves no law for a single gap, and raises ValueError.
    Returns: shape (..., depth, depth, features); 0 where i = j.

    >>> balancing_rate([[2.0], [0.5]], 0.5)[0, 1]
    array([1.])
    """
    batch = Batch(weights)
    return batch.unfold(_C.balancing_rate(batch.weights, as_noise(noise_std)))


def balancing_rate_bound(noise_std: Any, depth: int) -> float:
    """Lower bound 4 eta^(2L-2) on every balancing rate, at any weights ([CLS] Theorem 3.1a).

    Args: noise_std a number (equal in all layers); depth >= 2.

    >>> balancing_rate_bound(0.5, 3)
    0.25
    """
    return float(_C.balancing_rate_bound(as_noise(noise_std), as_integer("depth", depth)))


def balancing_factor(weights: Any, target: Any, noise_std: Any, lr: float) -> Any:
    """What one step of gradient descent on O_R multiplies each balance gap by (D), exactly.

    (1 - 2 alpha eta^2 A_ij)^2 - (2 alpha c)^2 with c = w* P_ij - w_i w_j A_ij, whitened data.
    Args: weights (..., depth, features); target (..., features); noise_std as in `balancing_rate`; lr >= 0.
    Returns: shape (..., depth, depth, features); 1 where i = j, where the gap is 0.

    >>> balancing_factor([[2.0], [0.5]], [1.0], 0.5, 0.1)[0, 1]
    array([0.9025])
    """
    batch = Batch(weights, target)
    return batch.unfold(
        _C.balancing_factor(batch.weights, batch.target, as_noise(noise_std), as_number("lr", lr))
    )


def shrinkage_factor(target: Any, noise_std: Any, depth: int) -> Any:
    """Shrinkage lambda with |p| = lambda^L |w*| at the non-zero minimum of O_R, else 0.

    The largest root of lambda^2 - lambda^((L-2)/(L-1)) + eta^2 / |w*|^(2/L) = 0 ([CLS] Theorem 3.1b), in full
    double precision also next to the threshold; L = 2: sqrt(1 - eta^2 / |w*|). Per-layer noise: eta is the
    geometric mean.
    Args: target, any shape; noise_std a number or (depth,); depth >= 2. Returns: the shape of target, in [0,
    1]; 1 where noise_std is 0 and the target is not.

    >>> round(shrinkage_factor(1.0, 0.6, 2), 15)
    0.8
    """
    batch = Batch(target=target)
    return batch.unfold_target(
        _C.shrinkage_factor(batch.target, as_noise(noise_std), as_integer("depth", depth))
    )


def limit_product(target: Any, noise_std: Any, depth: int, covariance: Any = None) -> Any:
    """Product at the minimum that S-SAM tends to from a large start with the right signs.

    Whitened data or a diagonal covariance: T(w*) = sign(w*) lambda^L |w*| from the existence threshold up,
    else 0 ([CLS] Theorem 3.1b). Full covariance (D): the products solve p_h = T(w*_h + sum_{k!=h} Sigma_hk
    (w*_k - p_k) / Sigma_hh), found by cyclic sweeps from p = w*. For L = 2 that is the minimiser of the
    weighted LASSO (w* - p)^T Sigma (w* - p) + 2 eta^2 sum_h Sigma_hh |p_h|. For L >= 3 there can be several
    such minima; a coordinate that falls to 0 in the sweeps stays there, as 0 is a local minimum for the
    dynamics too.
    Args: target (..., features) or a number; noise_std a number or (depth,); depth >= 2; covariance as in
    `loss`, with a positive diagonal. Returns: the shape of target. Raises RuntimeError where a nearly
    singular covariance keeps the sweeps from settling.

    >>> limit_product([2.0, -2.0, 0.5], 1.0, 2)
    array([ 1., -1.,  0.])
    """
    batch = Batch(target=target)
    return batch.unfold_target(
        _C.limit_product(
            batch.target, as_noise(noise_std), as_integer("depth", depth), as_covariance(covariance)
        )
    )


def existence_threshold(noise_std: Any, depth: int) -> float:
    """|w*| from which O_R has non-zero critical points, of which it then has a minimum; for L = 2, above which.

    At the threshold itself the two that appear are one, and the Hessian there is singular.
    eta^L (2(L-1)/L)^(L/2) (2(L-1)/(L-2))^((L-2)/2) ([CLS] Theorem 3.1b); L = 2: eta^2. The smallest double at
    or above that number, so that for L >= 3 `abs(target) >= existence_threshold(...)` says exactly where
    `limit_product` is non-zero. Per-layer noise: prod eta_l in place of eta^L.
    Args: noise_std a number or (depth,); depth >= 2.

    >>> existence_threshold(1.0, 4)
    6.75
    """
    return float(_C.existence_threshold(as_noise(noise_std), as_integer("depth", depth)))


def global_threshold(noise_std: Any, depth: int) -> float:
    """|w*| from which the non-zero minimum lies below O_R(0) (D).

    With x = m^2 / eta^2 there, (x + 1)^(L-1) (x - 1) + 1 = 0, x > 0; L = 2: eta^2. Rounded up to a double as
    `existence_threshold`. Args: noise_std a number or (depth,); depth >= 2.

    >>> round(global_threshold(1.0, 3), 12)
    3.330190676786
    """
    return float(_C.global_threshold(as_noise(noise_std), as_integer("depth", depth)))


class CriticalPoints(NamedTuple):
    """Balanced critical points of O_R, NaN where there is none; see `critical_points`.

    minimum, saddle: weights (..., depth, features) whose first layer has the target's sign, the others >= 0.
    Flipping the signs of an even number of layers gives the rest. L = 2 has no saddle but W = 0.
    minimum_eigenvalues, saddle_eigenvalues, zero_eigenvalues: of the coordinate's Hessian there, ascending
    along depth.
    minimum_is_global: the non-zero minimum exists and lies below O_R(0). zero_is_minimum: W = 0 is a local
    minimum.
    """

    minimum: Any
    saddle: Any
    minimum_eigenvalues: Any
    saddle_eigenvalues: Any
    zero_eigenvalues: Any
    minimum_is_global: Any
    zero_is_minimum: Any


def critical_points(target: Any, noise_std: Any, depth: int) -> CriticalPoints:
    """All critical points of O_R, up to signs, on whitened data ([CLS] Theorem 3.1b, (D)).

    m = |w_l| solves (m^2 + eta^2)^(L-1) = |w*| m^(L-2): W = 0, for L >= 3 two positive roots above the
    existence threshold (the larger the minimum), for L = 2 one. With a = m^2 + eta^2 the eigenvalues are 2
    a^(L-2) (L m^2 - (L-2) eta^2) once and 4 eta^2 a^(L-2), L-1 times. Per-layer noise: |w_l| = eta_l m.
    Args: target (..., features) or a number; noise_std > 0, a number or (depth,); depth >= 2.
    Returns: CriticalPoints; a number as target gives weights of shape (depth,).

    >>> critical_points([2.0], 1.0, 2).minimum
    array([[1.],
           [1.]])
    """
    batch = Batch(target=target)
    arrays = _C.critical_points(batch.target, as_noise(noise_std), as_integer("depth", depth))
    return CriticalPoints(*(batch.unfold_target(array) for array in arrays))


def step_size_bound(
    weights: Any, target: Any, noise_std: Any, covariance: Any = None, *, sharp: bool = False
) -> Any:
    """Step size 2 / M below which gradient descent on O_R decreases it at every step (D).

    The form of [CLS] Theorem 4.2. M = (L + sqrt(L^2 + (L-1)^2)) O_R / eta^2 with the largest coordinate's
    O_R, eta the smallest layer's; full covariance: M = [(L + kappa) + sqrt((L + kappa)^2 + (L-1)^2)] O_R /
    eta^2, kappa = lambda_max(Sigma) / min_h Sigma_hh. lr = (1 - delta) * this decreases O_R by at least delta
    lr |grad|^2. A guarantee for the expected gradient: a single stochastic step has none.
    Args: as `regularized_loss`, noise_std > 0; sharp: use M_1 = max_h [(L+1) q^2 + 2 (L-1) |w*| q] / eta^2, q
    = |w*| + sqrt(O_R), which is larger steps mostly, without a full covariance. Returns: shape (...).

    >>> round(step_size_bound([[1.0], [1.0]], [1.0], 1.0), 6)
    0.157379
    """
    batch = Batch(weights, target)
    return batch.unfold(
        _C.step_size_bound(
            batch.weights, batch.target, as_noise(noise_std), as_covariance(covariance), bool(sharp)
        )
    )


def projection_radius(target: Any, noise_std: Any, depth: int) -> Any:
    """Radius for projected S-SAM: max(1, sqrt(L) / (2 eta^(L-1))) |w*|_2 ([CLS] Theorem 4.4, constant (D)).

    Outside it <grad O_R, W> >= 0. Per-layer noise: the smallest product of all eta but one, for eta^(L-1).
    Args: target (..., features) or a number; noise_std > 0, a number or (depth,); depth >= 2. Returns: shape
    (...).

    >>> projection_radius([3.0, 4.0], 1.0, 4)
    5.0
    """
    batch = Batch(target=target)
    return batch.unfold(_C.projection_radius(batch.target, as_noise(noise_std), as_integer("depth", depth)))


def critical_radius(target: Any, noise_std: Any, depth: int) -> Any:
    """Radius r that holds all critical points: r^2 = L sum_h (|w*_h|^(2/L) - eta^2)_+ (D).

    Per-layer noise: r^2 = sum_l eta_l^2 sum_h ((|w*_h| / prod eta)^(2/L) - 1)_+.
    Args: target (..., features) or a number; noise_std > 0, a number or (depth,); depth >= 2. Returns: shape
    (...).

    >>> round(critical_radius([3.0], 1.0, 2), 12)
    2.0
    """
    batch = Batch(target=target)
    return batch.unfold(_C.critical_radius(batch.target, as_noise(noise_std), as_integer("depth", depth)))


def coordinate_bounds(target: Any, noise_std: Any, depth: int) -> Any:
    """A box |w_l| <= max(eta, |w*| / (2 eta)^(L-1)) on whose faces -grad O_R points inwards (D).

    Per-layer noise: max(eta_l, |w*| / prod_{k!=l} (2 eta_k)). Made for clamping weights to it.
    Args: target (..., features) or a number; noise_std > 0, a number or (depth,); depth >= 2.
    Returns: bounds with the shape of weights, (..., depth, features); (depth,) for a number as target.

    >>> coordinate_bounds([4.0], 0.5, 2)
    array([[4.],
           [4.]])
    """
    batch = Batch(target=target)
    return batch.unfold_target(
        _C.coordinate_bounds(batch.target, as_noise(noise_std), as_integer("depth", depth))
    )


def gradient_variance(
    weights: Any,
    target: Any,
    noise_std: Any,
    distribution: Distribution = "gaussian",
    *,
    full: bool = False,
) -> Any:
    """Variance of S-SAM's stochastic gradient g~ = grad O(W + xi) around grad O_R, whitened data (D).

    Gaussian: E[g~_i^2] = 4 w*^2 A_i - 8 w* w_i prod_{k!=i} (w_k^3 + 3 w_k eta^2) + 4 a_i prod_{k!=i} (w_k^4 +
    6 w_k^2 eta^2 + 3 eta^4), less g_i^2; computed without that cancellation. Rademacher: eta^4 for 3 eta^4.
    Args: weights (..., depth, features); target (..., features); noise_std a number or (depth,); distribution
    "gaussian" or "rademacher"; full: the covariances between the layers of a coordinate too (coordinates are
    independent). Returns: the shape of weights, or (..., features, depth, depth) with full.

    >>> gradient_variance([[0.0], [0.0]], [1.0], 1.0)
    array([[16.],
           [16.]])
    """
    batch = Batch(weights, target)
    compute = _C.gradient_covariance if full else _C.gradient_variance
    return batch.unfold(compute(batch.weights, batch.target, as_noise(noise_std), _name(distribution)))


def stationary_covariance(
    target: Any,
    noise_std: Any,
    lr: float,
    depth: int,
    distribution: Distribution = "gaussian",
) -> Any:
    """Covariance of the weights under constant steps, from the recursion linearised at the minimum (D).

    C = (I - lr H) C (I - lr H) + lr^2 S, a discrete Lyapunov equation per coordinate, with H the Hessian of
    O_R and S the full covariance of the noisy gradient (`gradient_variance`) at the point of `limit_product`:
    the `minimum` of `critical_points`, else W = 0. Of first order in lr: it holds for small steps away from
    the threshold, where the weights stay near one minimum. Whitened data.
    Args: target (..., features) or a number; noise_std > 0, a number or (depth,); lr > 0 with lr H < 2, else
    ValueError; depth >= 2; distribution as in `gradient_variance`.
    Returns: shape (..., features, depth, depth); infinite exactly at a threshold, where H is singular.

    >>> stationary_covariance([0.0], 1.0, 0.1, 2).round(6)
    array([[[0.333333, 0.      ],
            [0.      , 0.333333]]])
    """
    batch = Batch(target=target)
    result = _C.stationary_covariance(
        batch.target,
        as_noise(noise_std),
        as_number("lr", lr),
        as_integer("depth", depth),
        _name(distribution),
    )
    return batch.unfold_target(result, axis=-3)


def gaussian_kl(weights: Any, prior: Any, noise_std: Any, prior_std: Any) -> float:
    """KL divergence of the posterior N(weights, noise_std^2) from the prior N(prior, prior_std^2).

    1/2 [|w - w0|^2 / s^2 + k (eta^2 / s^2 - 1 - ln(eta^2 / s^2))] over all k weights, in nats.
    Args: weights, any shape; prior a number or the shape of weights; noise_std and prior_std > 0, numbers,
    one per layer (the first dimension of weights) or one per weight.

    >>> gaussian_kl([1.0, 1.0], 0.0, 0.5, 0.5)
    4.0
    """
    w = as_array("weights", weights)
    parts = []
    for name, value in (("prior", prior), ("noise_std", noise_std), ("prior_std", prior_std)):
        array = as_array(name, value)
        if array.ndim and array.shape not in (w.shape, w.shape[:1]):
            raise ValueError(
                f"{name} must be a number, one per layer {w.shape[:1]} or one per weight {w.shape}, "
                f"got shape {array.shape}"
            )
        parts.append(array.reshape(-1))
    return float(_C.gaussian_kl(w.reshape(-1), *parts))


def kl_inverse(q: Any, c: Any) -> Any:
    """Largest p in [q, 1] with kl(q || p) = q ln(q/p) + (1-q) ln((1-q)/(1-p)) <= c.

    Args: q in [0, 1], c >= 0, numbers or arrays that broadcast. Returns: their shape.

    >>> round(kl_inverse(0.0, 1.0), 12)  # 1 - exp(-1)
    0.632120558829
    """
    arrays = _broadcast(q=q, c=c)
    return give(_C.kl_inverse(*arrays).reshape(arrays[0].shape), q, c)


def pac_bayes_bound(
    empirical_risk: Any,
    kl: Any,
    n: Any,
    delta: Any = 0.05,
    kind: BoundKind = "seeger",
    *,
    catoni_c: float = 1.0,
) -> Any:
    """Upper bound on the true risk of the posterior, with probability 1 - delta over n independent examples.

    With B = KL + ln(2 sqrt(n) / delta): "seeger" kl_inverse(risk, B / n); "maurer" risk + sqrt(B / (2n));
    "thiemann" risk / (1 - t/2) + B / (n t (1 - t/2)), t = 2 / (sqrt(2 n risk / B + 1) + 1); "catoni" (1 -
    exp(-C risk - (KL + ln(1/delta)) / n)) / (1 - exp(-C)) with C = catoni_c fixed before the data are seen.
    At most 1, since the loss lies in [0, 1].
    Args: empirical_risk in [0, 1], of the posterior; kl >= 0 in nats; n >= 1; delta in (0, 1); these
    broadcast.
    Returns: their shape.

    >>> round(pac_bayes_bound(0.1, 50.0, 10_000), 6)
    0.135468
    """
    arrays = _broadcast(empirical_risk=empirical_risk, kl=kl, n=n, delta=delta)
    bound = _C.pac_bayes_bound(*arrays, _name(kind, "kind"), as_number("catoni_c", catoni_c))
    return give(bound.reshape(arrays[0].shape), empirical_risk, kl, n, delta)


def _name(value: Any, argument: str = "distribution") -> str:
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be a string, got {type(value).__name__} {value!r}")
    return value


def _broadcast(**arguments: Any) -> list[Any]:
    arrays = [as_array(name, value) for name, value in arguments.items()]
    try:
        return [np.ascontiguousarray(a).reshape(a.shape) for a in np.broadcast_arrays(*arrays)]
    except ValueError:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(arguments, arrays, strict=True))
        raise ValueError(f"arguments must broadcast, got shapes {shapes}") from None
