"""torch_ssam.simulate: against plain NumPy recursions, against SSAM itself, and against theory; bits,
failures, Ctrl-C.

False alarms: the statistical tests use bounds at 5 standard deviations, together below 1e-5 a seed; seeds
are fixed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference
import torch

import torch_ssam
from torch_ssam import theory
from torch_ssam.simulate import simulate

Floats = npt.NDArray[np.float64]


def by_hand(
    target: Floats,
    start: Floats,
    *,
    noise_std: Any,
    lr: float,
    steps: int,
    seed: int,
    distribution: str = "gaussian",
    harmonic: bool = False,
    radius: float | None = None,
    covariance: Floats | None = None,
    data: tuple[Floats, Floats] | None = None,
    batches: list[npt.NDArray[np.int64]] | None = None,
) -> Floats:
    """The recursion as it is written in docs/theory.md, start and result (replicates, depth, d)."""
    w = start.copy()
    replicates, depth, d = w.shape
    eta = np.broadcast_to(
        np.reshape(noise_std, np.shape(noise_std) + (1,) * (np.ndim(noise_std) == 1)), (depth, d)
    )
    for k in range(steps):
        layers = [
            reference.noise(replicates * d, seed=seed, draw=k, place=layer, distribution=distribution)
            for layer in range(depth)
        ]
        v = w + eta * np.stack(layers, axis=0).reshape(depth, replicates, d).transpose(1, 0, 2)
        p = v.prod(axis=1)
        if data is not None:
            chosen = [np.arange(len(data[1]))] * replicates if batches is None else list(batches[k])
            pull = np.stack(
                [(data[1][i] - data[0][i] @ q) @ data[0][i] / len(i) for i, q in zip(chosen, p, strict=True)]
            )
        else:
            pull = (target - p) @ (np.eye(d) if covariance is None else covariance)
        others = np.stack([np.delete(v, layer, axis=1).prod(axis=1) for layer in range(depth)], axis=1)
        w = w + (lr / (k + 1) if harmonic else lr) * 2 * pull[:, None] * others
        if radius is not None:
            norm = np.sqrt((w**2).sum(axis=(1, 2), keepdims=True))
            w = np.where(norm > radius, w * radius / norm, w)
    return w


def problem(d: int = 7, depth: int = 3, replicates: int = 4) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(5)
    return rng.normal(size=d), rng.normal(size=(replicates, depth, d))


def correlated(d: int) -> Floats:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(2 * d, d))
    return np.asarray(x.T @ x / (2 * d))


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("d", [1, 7, 64, 100])
def test_follows_a_plain_loop_with_the_noise_of_the_contract(d: int, distribution: str) -> None:
    target, start = problem(d)
    options: dict[str, Any] = {
        "noise_std": 0.25,
        "lr": 0.02,
        "steps": 30,
        "seed": -(2**40) + 3,
        "distribution": distribution,
    }
    run = simulate(target, 3, init=start, replicates=4, **options)
    np.testing.assert_allclose(run.weights[-1], by_hand(target, start, **options), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "options",
    [
        {"noise_std": [0.1, 0.2, 0.4]},
        {"noise_std": np.linspace(0.05, 0.3, 21).reshape(3, 7)},
        {"noise_std": 0.2, "harmonic": True},
        {"noise_std": 0.2, "radius": 2.0},
        {"noise_std": 0.2, "covariance": correlated(7)},
        {"noise_std": 0.2, "covariance": correlated(7), "radius": 2.0, "harmonic": True},
    ],
)
def test_every_option_follows_the_plain_loop(options: dict[str, Any]) -> None:
    target, start = problem()
    common: dict[str, Any] = {"lr": 0.02, "steps": 40, "seed": 9}
    expected = by_hand(target, start, **common, **options)
    options = dict(options)
    decay = "harmonic" if options.pop("harmonic", False) else None
    run = simulate(target, 3, init=start, replicates=4, lr_decay=decay, **common, **options)
    np.testing.assert_allclose(run.weights[-1], expected, rtol=1e-11, atol=1e-12)


def test_mini_batches_are_drawn_as_documented() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 7)), rng.normal(size=50)
    _, start = problem()
    steps, size = 25, 6
    batches = []
    for k in range(steps):
        words = reference.noise_words(
            9, k, 2**32 - 1, 0, np.arange(4 * size // 4, dtype=np.uint64)
        ).T.reshape(-1)
        batches.append(
            (words.astype(np.uint64) * np.uint64(50) >> np.uint64(32)).astype(np.int64).reshape(4, size)
        )
    options: dict[str, Any] = {"noise_std": 0.2, "lr": 0.01, "steps": steps, "seed": 9, "data": (x, y)}
    run = simulate(None, 3, init=start, replicates=4, batch_size=size, **options)
    np.testing.assert_allclose(
        run.weights[-1], by_hand(np.zeros(7), start, batches=batches, **options), rtol=1e-11
    )
    assert len(np.unique(np.concatenate(batches))) > 40
    whole = simulate(None, 3, init=start, replicates=4, **options)
    np.testing.assert_allclose(whole.weights[-1], by_hand(np.zeros(7), start, **options), rtol=1e-11)
    errors = ((y - whole.product[-1] @ x.T) ** 2).mean(axis=1)
    np.testing.assert_allclose(whole.loss[-1], errors, rtol=1e-12)


def test_it_is_ssam_on_a_batch_of_networks() -> None:
    target, start = problem(replicates=3)
    run = simulate(
        target, 3, init=start, replicates=3, noise_std=0.25, lr=0.02, steps=20, seed=77, radius=None
    )
    layers = [torch.tensor(start[:, i]).requires_grad_() for i in range(3)]
    optimizer = torch_ssam.SSAM(layers, lr=0.02, noise_std=0.25, seed=77)
    for _ in range(20):
        optimizer.zero_grad()
        with optimizer.perturb():
            (torch.tensor(target) - layers[0] * layers[1] * layers[2]).square().sum().backward()
        optimizer.step()
    ends = np.stack([layer.detach().numpy() for layer in layers], axis=1)
    np.testing.assert_allclose(run.weights[-1], ends, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("covariance", [None, np.linspace(0.5, 2.0, 7), correlated(7)])
@pytest.mark.parametrize("noise_std", [0.3, 1e-4, [0.1, 0.3, 0.5]])
def test_expected_dynamics_are_descent_on_the_regularized_loss(covariance: Any, noise_std: Any) -> None:
    target, w = problem(replicates=2)
    run = simulate(
        target,
        3,
        init=w,
        replicates=2,
        noise_std=noise_std,
        lr=0.01,
        steps=200,
        expected=True,
        covariance=covariance,
    )
    for _ in range(200):
        w = w - 0.01 * theory.regularized_gradient(w, target, noise_std, covariance)
    np.testing.assert_allclose(run.weights[-1], w, rtol=1e-10, atol=1e-12)


def test_expected_dynamics_on_data_are_descent_with_their_covariance() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=50)
    sigma, solution = x.T @ x / 50, np.linalg.lstsq(x, y, rcond=None)[0]
    options: dict[str, Any] = {"noise_std": 0.3, "lr": 0.01, "steps": 100, "expected": True}
    on_data = simulate(None, 2, data=(x, y), **options)
    on_covariance = simulate(solution, 2, covariance=sigma, **options)
    np.testing.assert_allclose(on_data.weights, on_covariance.weights, rtol=1e-10)
    np.testing.assert_allclose(on_data.step_size_bound, on_covariance.step_size_bound, rtol=1e-10)
    floor = ((y - x @ solution) ** 2).mean()
    np.testing.assert_allclose(on_data.loss, on_covariance.loss + floor, rtol=1e-10)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_the_mean_step_is_the_gradient_of_the_regularized_loss(distribution: str) -> None:
    # 21 means at 5 standard errors each: one false alarm in about 1e5 seeds. The variance is the theory's,
    # too.
    target, start = problem()
    n = 40_000
    run = simulate(
        target,
        3,
        init=start[0],
        replicates=n,
        noise_std=0.4,
        lr=1.0,
        steps=1,
        seed=3,
        distribution=distribution,
    )
    gradients = run.weights[0] - run.weights[1]
    error = gradients.std(axis=0) / np.sqrt(n)
    assert (
        np.abs(gradients.mean(axis=0) - theory.regularized_gradient(start[0], target, 0.4)) < 5 * error
    ).all()
    spread = (gradients - gradients.mean(axis=0)) ** 2
    variance = theory.gradient_variance(start[0], target, 0.4, distribution)
    assert (np.abs(spread.mean(axis=0) - variance) < 5 * spread.std(axis=0) / np.sqrt(n) + 1e-9).all()


def test_replicates_and_coordinates_are_independent() -> None:
    # 45 correlations of 20,000 steps at 5 standard deviations.
    run = simulate(np.ones(5), 2, replicates=2, noise_std=1.0, lr=1.0, steps=1, seed=1, init=1.0)
    several = [
        simulate(np.ones(5), 2, replicates=2, noise_std=1.0, lr=1.0, steps=1, seed=s).weights[-1]
        for s in range(20)
    ]
    assert len({part.tobytes() for part in several}) == 20
    many = simulate(np.ones(10), 2, replicates=20_000, noise_std=1.0, lr=1.0, steps=1, seed=1).weights[-1][
        :, 0
    ]
    correlations = np.corrcoef(many.T)[np.triu_indices(10, 1)]
    assert (np.abs(correlations) < 5 / np.sqrt(20_000)).all()
    assert not np.array_equal(run.weights[-1, 0], run.weights[-1, 1])


@pytest.mark.parametrize("kind", ["separable", "covariance", "radius", "data", "expected"])
def test_any_number_of_threads_gives_the_same_bits(kind: str) -> None:
    rng = np.random.default_rng(2)
    options: dict[str, Any] = {
        "separable": {},
        "covariance": {"covariance": correlated(33)},
        "radius": {"radius": 4.0},
        "data": {"data": (rng.normal(size=(40, 33)), rng.normal(size=40)), "batch_size": 3},
        "expected": {"expected": True},
    }[kind]
    runs = [
        simulate(np.ones(33), 3, replicates=21, noise_std=0.3, lr=0.01, steps=70, threads=n, **options)
        for n in (1, 2, 5)
    ]
    for run in runs[1:]:
        assert reference.same_bits(torch.tensor(run.weights), torch.tensor(runs[0].weights))
        assert np.array_equal(run.loss, runs[0].loss)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_coordinates_alone_and_coordinates_together_are_the_same_bits(depth: int, distribution: str) -> None:
    # Without a radius depths 2 to 4 have a loop of their own; a radius that is never met takes the general one.
    options: dict[str, Any] = {
        "noise_std": np.linspace(0.1, 0.4, depth * 70).reshape(depth, 70),
        "lr": 0.02,
        "lr_decay": "harmonic",
        "covariance": np.linspace(0.5, 1.5, 70),
        "steps": 90,
        "replicates": 3,
        "distribution": distribution,
    }
    alone = simulate(np.linspace(-1, 2, 70), depth, **options)
    together = simulate(np.linspace(-1, 2, 70), depth, radius=1e6, **options)
    assert alone.weights.tobytes() == together.weights.tobytes()


@pytest.mark.parametrize("variant", ["plain", "avx2", "avx512"])
def test_every_cpu_variant_gives_the_same_bits(variant: str) -> None:
    code = (
        "import hashlib, numpy as np; from torch_ssam.simulate import _C, simulate\n"
        "run = simulate(np.linspace(-1, 2, 70), 3, replicates=3, noise_std=0.3, lr=0.01, steps=50, seed=4)\n"
        "print(_C.simulate_capability(), hashlib.sha256(run.weights.tobytes()).hexdigest())"
    )
    environment = {**os.environ, "TORCH_SSAM_CPU_CAPABILITY": variant}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    chosen, digest = done.stdout.split()
    if chosen != variant:
        pytest.skip(f"NOT TESTED here: this processor or build lacks {variant}")
    run = simulate(np.linspace(-1, 2, 70), 3, replicates=3, noise_std=0.3, lr=0.01, steps=50, seed=4)
    import hashlib

    assert digest == hashlib.sha256(run.weights.tobytes()).hexdigest()


def test_records_are_the_steps_asked_for_and_do_not_change_the_run() -> None:
    options: dict[str, Any] = {"noise_std": 0.3, "lr": 0.01, "steps": 105, "replicates": 2}
    dense = simulate([1.0, 2.0], 2, record_every=1, **options)
    sparse = simulate([1.0, 2.0], 2, record_every=10, **options)
    assert dense.steps.tolist() == list(range(106))
    assert sparse.steps.tolist() == [*range(0, 105, 10), 105]
    assert np.array_equal(sparse.weights, dense.weights[sparse.steps])
    assert sparse.weights.shape == (12, 2, 2, 2)
    assert sparse.loss.shape == sparse.balance_gap.shape == (12, 2)
    np.testing.assert_allclose(sparse.product, sparse.weights.prod(axis=2), rtol=1e-15)
    squares = sparse.weights**2
    np.testing.assert_allclose(sparse.balance_gap, np.ptp(squares, axis=2).max(axis=-1), atol=1e-15)
    np.testing.assert_allclose(
        sparse.loss, ((np.array([1.0, 2.0]) - sparse.product) ** 2).sum(axis=-1), rtol=1e-12
    )
    assert len(simulate(1.0, steps=0, noise_std=0.1, lr=0.1).steps) == 1
    assert 90 <= len(simulate(1.0, steps=12_345, noise_std=0.1, lr=0.001).steps) <= 102


def test_init_of_every_shape_means_what_it_says() -> None:
    full = np.broadcast_to(np.array([2.0, 0.5])[None, :, None], (3, 2, 4))
    options: dict[str, Any] = {"noise_std": 0.1, "lr": 0.01, "steps": 5, "replicates": 3}
    runs = [simulate(np.ones(4), 2, init=init, **options) for init in ([2.0, 0.5], full[0], full)]
    for run in runs:
        assert np.array_equal(run.weights[0], full)
        assert np.array_equal(run.weights, runs[0].weights)
