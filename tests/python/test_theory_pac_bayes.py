"""KL divergences, their inverse and the PAC-Bayes bounds against mpmath, PyTorch, SciPy and simulation."""

import math

import mpmath as mp
import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_ssam import _C, theory


def test_gaussian_kl_is_that_of_torch_distributions_with_a_width_for_every_weight():
    rng = np.random.default_rng(0)
    weights, prior = rng.standard_normal((3, 5)), rng.standard_normal((3, 5))
    for noise_std, prior_std in [
        (0.3, 2.0),
        (rng.uniform(0.1, 1, 3), 0.5),
        (rng.uniform(0.1, 1, (3, 5)), rng.uniform(0.1, 1, 3)),
    ]:
        spread = [np.reshape(s, (-1, 1)) if np.ndim(s) == 1 else s for s in (noise_std, prior_std)]
        eta, s = (torch.tensor(np.broadcast_to(v, weights.shape).copy()) for v in spread)
        exact = torch.distributions.kl_divergence(
            torch.distributions.Normal(torch.tensor(weights), eta),
            torch.distributions.Normal(torch.tensor(prior), s),
        ).sum()
        assert theory.gaussian_kl(weights, prior, noise_std, prior_std) == pytest.approx(
            exact.item(), rel=1e-12
        )


@pytest.mark.parametrize(
    "ratio", [1e-6, 0.3, 0.5, 0.8, 1 - 1e-5, 1 - 1e-12, 1, 1 + 1e-12, 1 + 1e-4, 1.25, 3, 1e6]
)
def test_gaussian_kl_keeps_its_digits_for_nearly_equal_widths(ratio):
    noise_std, prior_std = 0.7 * ratio, 0.7
    with mp.workdps(60):
        square = (mp.mpf(noise_std) / mp.mpf(prior_std)) ** 2
        exact = (square - 1 - mp.log(square)) / 2
        value = mp.mpf(theory.gaussian_kl([0.0], 0.0, noise_std, prior_std))
        assert abs(value - exact) <= 1e-14 * exact


WIDTHS = [
    5e-324, 1e-310, 1e-300, 1e-160, 1e-100, 1e-8, 0.7, 1.0, 1e8, 1e99, 1e101,
    1.5e154, 1.8e154, 2e154, 1e170, 1e300, 1.7e308,
]  # fmt: skip


@pytest.mark.parametrize("prior_std", WIDTHS)
def test_gaussian_kl_is_exact_for_extreme_widths_and_inf_only_where_it_overflows(prior_std):
    with mp.workdps(700):
        for noise_std in WIDTHS:
            square = (mp.mpf(noise_std) / mp.mpf(prior_std)) ** 2
            exact = (square - 1 - mp.log(square)) / 2
            value = theory.gaussian_kl([0.0], 0.0, noise_std, prior_std)
            if exact > mp.mpf(np.finfo(float).max):
                assert value == math.inf
            else:
                assert abs(mp.mpf(value) - exact) <= 1e-15 * exact


@pytest.mark.parametrize(
    ("weight", "centre", "prior_std", "exact"),
    [
        (1.7e308, -1.7e308, 1.7e308, 2.0),  # their difference overflows
        (1.5e154, 0.0, 1.0, 1.125e308),  # the square does, but not its half
        (1e160, 0.0, 1.0, math.inf),
        (1.7e308, -1.7e308, 5e-324, math.inf),
    ],
)
def test_gaussian_kl_of_far_weights_is_inf_only_where_it_overflows(weight, centre, prior_std, exact):
    assert theory.gaussian_kl([weight], centre, prior_std, prior_std) == pytest.approx(exact, rel=1e-15)


RISKS = [0.0, 1e-300, 1e-20, 1e-8, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-9, 1 - 2.0**-53, 1.0]
BUDGETS = [0.0, 1e-30, 1e-16, 1e-9, 1e-3, 0.1, 0.7, 2.0, 10.0, 40.0, 800.0]


def exact_kl_inverse(q, c):
    q, c = mp.mpf(q), mp.mpf(c)
    if q == 1 or c == 0:
        return q

    def kl(p):
        return (q * mp.log(q / p) if q else 0) + (1 - q) * mp.log((1 - q) / (1 - p))

    low, high = q, mp.mpf(1)
    for _ in range(1400 if q < 1e-30 else 260):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if kl(middle) <= c else (low, middle)
    return low


@pytest.mark.parametrize("q", RISKS)
def test_kl_inverse_has_full_double_precision(q):
    with mp.workdps(80):
        for c in BUDGETS:
            exact = exact_kl_inverse(q, c)
            assert abs(mp.mpf(theory.kl_inverse(q, c)) - exact) <= 8 * mp.mpf(2) ** -53 * exact


@given(st.floats(0, 1), st.floats(0, 50))
@settings(max_examples=200, deadline=None)
def test_kl_inverse_lies_between_q_and_one_and_below_pinsker(q, c):
    p = theory.kl_inverse(q, c)
    assert q <= p <= 1
    assert p <= q + math.sqrt(c / 2) + 1e-15


@pytest.mark.parametrize("risk", [0.0, 0.02, 0.3, 0.9])
@pytest.mark.parametrize("kl", [0.0, 3.0, 400.0])
@pytest.mark.parametrize("n", [50, 60_000])
def test_bounds_are_their_formulas_solved_by_other_means(risk, kl, n):
    delta = 0.03
    budget = kl + math.log(2 * math.sqrt(n) / delta)
    with mp.workdps(50):
        seeger = float(exact_kl_inverse(risk, budget / n))
        exponent = mp.mpf("0.8") * risk + (kl + mp.log(1 / mp.mpf(delta))) / n
        catoni = float(min(1, (1 - mp.exp(-exponent)) / (1 - mp.exp(-mp.mpf("0.8")))))
    thiemann = scipy.optimize.minimize_scalar(
        lambda t: risk / (1 - t / 2) + budget / (n * t * (1 - t / 2)),
        bounds=(1e-6, 2 - 1e-6),
        options={"xatol": 1e-12},
    ).fun
    assert theory.pac_bayes_bound(risk, kl, n, delta) == pytest.approx(seeger, rel=1e-13)
    assert theory.pac_bayes_bound(risk, kl, n, delta, "catoni", catoni_c=0.8) == pytest.approx(
        catoni, rel=1e-13
    )
    assert theory.pac_bayes_bound(risk, kl, n, delta, "thiemann") == pytest.approx(min(1, thiemann), rel=1e-7)
    maurer = theory.pac_bayes_bound(risk, kl, n, delta, "maurer")
    assert maurer == pytest.approx(min(1, risk + math.sqrt(budget / (2 * n))), rel=1e-13)
    assert seeger <= maurer * (1 + 1e-14)
    assert seeger <= theory.pac_bayes_bound(risk, kl, n, delta, "thiemann") * (1 + 1e-14)


@pytest.mark.parametrize("kind", ["seeger", "maurer", "thiemann", "catoni"])
def test_bounds_fail_no_more_often_than_promised(kind):
    # Posterior = prior (KL 0), risk known. 20000 data sets; failures beyond delta by 5 standard errors: 3e-7.
    rng = np.random.default_rng(3)
    n, risk, delta, sets = 200, 0.15, 0.1, 20_000
    empirical = rng.binomial(n, risk, sets) / n
    failures = (theory.pac_bayes_bound(empirical, 0.0, n, delta, kind) < risk).mean()
    assert failures <= delta + 5 * math.sqrt(delta * (1 - delta) / sets)


def test_confidence_over_the_prior_grid_and_over_draws_adds_up():
    assert sum(_C.prior_grid_delta(j, 0.05) for j in range(1, 20_000)) == pytest.approx(0.05, rel=1e-4)
    # 100 draws of a posterior's risk: failures beyond delta by 5 standard errors: 3e-7.
    means = np.random.default_rng(4).binomial(100, 0.2, 5000) / 100
    failures = np.mean([_C.sampled_risk_bound(mean, 100, 0.1) < 0.2 for mean in means])
    assert failures <= 0.1 + 5 * math.sqrt(0.09 / 5000)
