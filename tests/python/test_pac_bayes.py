"""torch_ssam.pac_bayes: the bound is theory's on independently computed parts, holds where the true risk is known,
and refuses what would make it wrong.
"""

from __future__ import annotations

import copy
import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torch_ssam
from torch_ssam import pac_bayes, theory

Pair = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # conftest puts it back


def sign(weight: float = 1.0) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(weight)
    return model


def flipped(n: int, rate: float, seed: int) -> Pair:
    """x = +-1 with label x > 0, wrong at a rate."""
    rng = np.random.default_rng(seed)
    x = rng.choice([-1.0, 1.0], n)
    y = (x > 0) ^ (rng.random(n) < rate)
    return torch.tensor(x, dtype=torch.float32).unsqueeze(1), torch.tensor(y, dtype=torch.int64)


def gibbs(clean: float, noise_std: float) -> float:
    """Risk of sign(w x), w ~ N(1, noise_std^2), where the clean weight errs at a rate."""
    other = NormalDist().cdf(-1 / noise_std)
    return clean * (1 - other) + (1 - clean) * other


def test_the_risk_of_the_gibbs_classifier_is_the_known_one() -> None:
    x, y = flipped(300, 0.2, 0)
    clean = float(((x[:, 0] > 0) != (y > 0)).float().mean())
    found = pac_bayes.gibbs_risk(sign(), (x, y), 0.8, draws=1500, batch_size=8)
    exact = gibbs(clean, 0.8)
    # Each draw's risk has a standard deviation below 1/2: 5 standard errors, false alarm 6e-7.
    assert abs(found.mean - exact) < 5 * 0.5 / math.sqrt(1500)
    assert found.upper == pytest.approx(theory.kl_inverse(found.mean, math.log(2 / 0.05) / 1500))
    assert found.n == 300


def test_the_bound_is_theorys_on_its_parts() -> None:
    torch.manual_seed(0)
    prior = nn.Linear(5, 3)
    model = copy.deepcopy(prior)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    x, y = torch.randn(700, 5), torch.randint(0, 3, (700,))
    data = list(zip(x.split(300), y.split(300), strict=True))
    found = pac_bayes.certify(model, prior.state_dict(), data, noise_std=0.1, prior_std=[0.3, 0.1], draws=300)
    squared = sum(
        float((a.detach().double() - b.detach().double()).square().sum())
        for a, b in zip(model.parameters(), prior.parameters(), strict=True)
    )
    upper = theory.kl_inverse(found.risk, math.log(2 / 0.025) / 300)
    candidates = []
    for j, std in enumerate([0.3, 0.1], 1):
        ratio = (0.1 / std) ** 2
        kl = 0.5 * (squared / std**2 + 18 * (ratio - 1 - math.log(ratio)))
        delta = 0.025 * 6 / (math.pi**2 * j**2)
        candidates.append(
            (theory.kl_inverse(upper, (kl + math.log(2 * math.sqrt(700) / delta)) / 700), kl, std)
        )
    best = min(candidates)
    assert (found.bound, found.kl, found.prior_std) == pytest.approx(best, rel=1e-9)
    assert found.risk_upper == pytest.approx(upper)
    assert found.distance == pytest.approx(math.sqrt(squared))
    assert (found.n, found.parameters, found.draws, found.noise_std) == (700, 18, 300, 0.1)
    assert found.delta_pac_bayes + found.delta_monte_carlo == found.delta == 0.05
    with torch.no_grad():
        assert found.deterministic_risk == pytest.approx(float((model(x).argmax(1) != y).double().mean()))


def test_the_bound_holds_where_the_true_risk_is_known() -> None:
    # 40 data sets at delta 0.2; with the bound at its worst, 20 failures have probability 3e-5.
    truth = gibbs(0.1, 0.5)
    bounds = [
        pac_bayes.certify(
            sign(), sign(), flipped(80, 0.1, seed), noise_std=0.5, delta=0.2, draws=60, seed=seed
        ).bound
        for seed in range(40)
    ]
    assert sum(bound < truth for bound in bounds) < 20
    assert np.mean(bounds) < 0.6  # and says something


def test_the_noise_is_chosen_on_pilot_draws_and_measured_on_fresh_ones() -> None:
    seen: list[float] = []
    model = sign()

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(float(model.weight.detach()))
        return pac_bayes.zero_one(outputs, targets)

    counts: list[tuple[int, int]] = []
    found = pac_bayes.certify(
        model,
        sign(1.02),
        flipped(500, 0.1, 1),
        noise_std=[2.0, 0.2, 0.01],
        draws=100,
        pilot_draws=50,
        loss=loss,
        progress=lambda *now: counts.append(now),
    )
    # 2.0 errs often, 0.01 pays 2 nats more: either way the choice is the smallest of the pilot's bounds.
    assert found.noise_std == 0.2 == min(found.tried, key=lambda row: row[3])[0]
    assert [row[0] for row in found.tried] == [2.0, 0.2, 0.01]
    noise = [
        round((w - 1) / std, 4)
        for w, std in zip(seen, [2.0] * 50 + [0.2] * 50 + [0.01] * 50 + [0.2] * 100, strict=False)
    ]
    assert len(set(noise)) > 0.95 * 250  # no draw comes twice
    assert counts[-1] == (250, 250)
    assert model.weight.item() == 1.0


@pytest.mark.parametrize("seed", [0, 7, -1])
def test_no_draw_is_of_the_noise_that_ssam_trained_on_with_the_same_seed(seed: int) -> None:
    model = nn.Linear(3, 2)
    clean = [p.detach().clone() for p in model.parameters()]
    seen: list[tuple[float, ...]] = []

    def keep() -> None:
        noise = [(p.detach() - w) / 0.1 for p, w in zip(model.parameters(), clean, strict=True)]
        seen.append(tuple(torch.cat([z.reshape(-1) for z in noise]).double().tolist()))

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        keep()
        return pac_bayes.zero_one(outputs, targets)

    opt = torch_ssam.SSAM(model.parameters(), lr=0.0, noise_std=0.1, antithetic=True, samples=2, seed=seed)
    for _ in range(60):
        for _ in opt.perturbations():
            keep()
            model(torch.ones(1, 3)).sum().backward()
        opt.step()
    trained, seen = np.array(seen), []
    data = torch.zeros(20, 3), torch.zeros(20, dtype=torch.int64)
    pac_bayes.certify(model, model, data, noise_std=[0.1], draws=60, batch_size=2, loss=loss, seed=seed)
    pac_bayes.gibbs_risk(model, data, 0.1, draws=60, batch_size=2, loss=loss, seed=seed)
    measured = np.array(seen)
    assert trained.shape == (240, 8)
    measured = measured[np.abs(measured).max(1) > 0]  # without the clean weights' own risk
    assert measured.shape == (120, 8)
    # Rounding of w + noise is 1e-6 of the noise here; 8 numbers so close by chance: 1e-30.
    apart = np.abs(trained[:, None] - measured[None]).max(2)
    assert apart.min() > 1e-3


def test_the_certificate_says_what_it_rests_on() -> None:
    found = pac_bayes.certify(sign(), sign(), flipped(200, 0.1, 1), noise_std=0.1, draws=50)
    text = str(found)
    for part in (
        f"{found.bound:.4f}",
        f"{found.risk:.4f}",
        "n = 200",
        "delta 0.05",
        "KL",
        "Gibbs",
        "independent",
        "0-1 error",
    ):
        assert part in text
    assert len(found.assumptions) >= 5


def test_weights_and_flags_come_back_also_after_an_exception() -> None:
    model = nn.Sequential(nn.Linear(1, 4), nn.Dropout(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = copy.deepcopy(model.state_dict())
    calls = 0

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return pac_bayes.zero_one(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        pac_bayes.certify(model, model, flipped(50, 0.1, 0), noise_std=0.1, draws=10, loss=loss)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_what_carries_no_noise_must_be_the_priors() -> None:
    model = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    prior = copy.deepcopy(model)
    model[1].running_mean += 1
    with pytest.raises(ValueError, match=r"1\.running_mean carries no noise"):
        pac_bayes.certify(model, prior, flipped(50, 0.1, 0), noise_std=0.1, draws=10)
    frozen, prior = sign(), sign(2.0)
    model = nn.Sequential(nn.Linear(1, 1), frozen.requires_grad_(False))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[1].weight += 1
    with pytest.raises(ValueError, match=r"1\.weight carries no noise"):
        pac_bayes.certify(model, other, flipped(50, 0.1, 0), noise_std=0.1, draws=10)
    assert pac_bayes.certify(model, model, flipped(50, 0.1, 0), noise_std=0.1, draws=10).parameters == 2


class Shifted(nn.Module):
    """A classifier with a buffer that its state_dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1)
        self.register_buffer("shift", torch.zeros(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.shift


def test_buffers_that_are_not_saved_must_be_the_priors_too() -> None:
    prior = Shifted()
    model = copy.deepcopy(prior)
    data = flipped(50, 0.1, 0)
    assert pac_bayes.certify(model, prior, data, noise_std=0.1, draws=10).kl == 0
    with pytest.raises(ValueError, match=r"(?s)prior is a state_dict.*the model has shift.*as a module"):
        pac_bayes.certify(model, prior.state_dict(), data, noise_std=0.1, draws=10)
    whole = {**prior.state_dict(), **dict(prior.named_buffers())}
    assert pac_bayes.certify(model, whole, data, noise_std=0.1, draws=10).kl == 0
    model.shift += 1
    for given in (prior, whole):
        with pytest.raises(ValueError, match="shift carries no noise"):
            pac_bayes.certify(model, given, data, noise_std=0.1, draws=10)
    model.register_buffer("another", torch.zeros(1), persistent=False)
    with pytest.raises(ValueError, match="differ in another; expected the same architecture"):
        pac_bayes.certify(model, prior, data, noise_std=0.1, draws=10)


class Extra(nn.Linear):
    """A layer with a state of its own in its state_dict."""

    def __init__(self, extra: object) -> None:
        super().__init__(1, 1)
        self.extra = extra
        with torch.no_grad():
            self.weight.fill_(1.0)
            self.bias.fill_(0.0)

    def get_extra_state(self) -> object:
        return self.extra

    def set_extra_state(self, state: object) -> None:
        self.extra = state


class Opaque:
    """Without ==, so that no two can be told to be alike."""


ONES = torch.ones(2)


@pytest.mark.parametrize(
    ("extra", "equal", "other"),
    [
        ({"steps": 3}, {"steps": 3}, {"steps": 4}),
        ({"steps": 3}, {"steps": 3}, {"count": 3}),
        ({"a": [ONES, (1, "x")]}, {"a": [torch.ones(2), (1, "x")]}, {"a": [torch.zeros(2), (1, "x")]}),
        ([ONES], [torch.ones(2)], [torch.ones(2, dtype=torch.float64)]),
        ([ONES], [torch.ones(2)], [torch.ones(1)]),
        ([ONES], [torch.ones(2)], [torch.ones(2), 1]),
        ([ONES], [torch.ones(2)], [1.0]),
        ({"a": np.ones(2)}, {"a": np.ones(2)}, {"a": np.ones(0)}),
        ({"a": np.ones(1)}, {"a": np.ones(1)}, {"a": 1.0}),
        (torch.ones(2), torch.ones(2), torch.zeros(2)),
        ((1,), (1,), [1]),
        (None, None, 0),
        (Opaque, Opaque, Opaque()),
    ],
)
def test_extra_state_must_be_the_priors(extra: object, equal: object, other: object) -> None:
    data = flipped(50, 0.1, 0)
    for prior in (Extra(equal), Extra(equal).state_dict()):
        assert pac_bayes.certify(Extra(extra), prior, data, noise_std=0.1, draws=10).kl == 0
    for prior in (Extra(other), Extra(other).state_dict()):
        with pytest.raises(ValueError, match="_extra_state carries no noise"):
            pac_bayes.certify(Extra(extra), prior, data, noise_std=0.1, draws=10)


def test_extra_state_that_is_a_tensor_in_one_of_the_two_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in _extra_state"):
        pac_bayes.certify(Extra(1.0), Extra(torch.tensor(1.0)), flipped(50, 0.1, 0), noise_std=0.1, draws=10)


@pytest.mark.parametrize(
    "several",
    [
        [0.1, 0.25],
        (0.1, 0.25),
        np.array([0.1, 0.25]),
        torch.tensor([0.1, 0.25], dtype=torch.float64),
        nn.Parameter(torch.tensor([0.1, 0.25], dtype=torch.float64)),
        [torch.tensor(0.1, dtype=torch.float64), np.float64(0.25)],
    ],
)
@pytest.mark.parametrize("name", ["noise_std", "prior_std"])
def test_grids_come_as_sequences_arrays_and_tensors_alike(name: str, several: Any) -> None:
    options: dict[str, Any] = {"noise_std": 0.1, "draws": 20, "pilot_draws": 20}
    expected = pac_bayes.certify(sign(), sign(), DATA, **{**options, name: [0.1, 0.25]})
    assert pac_bayes.certify(sign(), sign(), DATA, **{**options, name: several}) == expected


@pytest.mark.parametrize(
    "one",
    [
        0.25,
        np.array(0.25),
        np.float32(0.25),
        torch.tensor(0.25),
        torch.tensor([0.25], dtype=torch.bfloat16),
        np.array([0.25]),
    ],
)
def test_one_width_comes_as_a_number_an_array_or_a_tensor_alike(one: Any) -> None:
    found = pac_bayes.certify(sign(), sign(), DATA, noise_std=one, draws=20)
    assert found == pac_bayes.certify(sign(), sign(), DATA, noise_std=0.25, draws=20)
    assert (found.noise_std, found.prior_std) == (0.25, 0.25)


def test_tied_weights_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(1, 1, bias=False)
            self.second = nn.Linear(1, 1, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x) + self.second(x)

    model = Tied()
    prior = copy.deepcopy(model)
    with torch.no_grad():
        model.first.weight += 0.1
    found = pac_bayes.certify(model, prior, flipped(50, 0.1, 0), noise_std=0.1, draws=10)
    assert found.parameters == 1
    assert found.kl == pytest.approx(0.5, rel=1e-5)


def test_zero_one_loss() -> None:
    nan = math.nan
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0], [nan, 1.0]])
    assert pac_bayes.zero_one(scores, torch.tensor([1, 1, 1])).tolist() == [0, 1, 1]
    assert pac_bayes.zero_one(torch.tensor([2.0, -1.0, nan]), torch.tensor([1, 1, 0])).tolist() == [0, 1, 1]
    assert pac_bayes.zero_one(torch.tensor([[2.0], [-1.0]]), torch.tensor([True, False])).tolist() == [0, 0]
    with pytest.raises(ValueError, match="expected"):
        pac_bayes.zero_one(torch.ones(3, 2), torch.ones(3, 2))


@pytest.mark.parametrize("kind", ["seeger", "maurer", "thiemann", "catoni"])
def test_every_kind_of_bound_is_theorys(kind: str) -> None:
    found = pac_bayes.certify(sign(), sign(), flipped(400, 0.1, 0), noise_std=0.1, draws=50, kind=kind)
    assert found.bound == pytest.approx(theory.pac_bayes_bound(found.risk_upper, 0.0, 400, 0.025, kind))
    assert ("Catoni" in str(found)) == (kind == "catoni")


DATA = flipped(20, 0.1, 0)


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        ((sign(), nn.Linear(2, 1), DATA), {}, ValueError, "same architecture"),
        ((sign(), [1.0], DATA), {}, TypeError, "prior is a list"),
        ((sign(), sign(), []), {}, ValueError, "no batches"),
        ((sign(), sign(), iter([DATA])), {}, TypeError, "iterator"),
        ((sign(), sign(), [({"x": DATA[0]}, DATA[1])]), {}, TypeError, "inputs of a batch"),
        ((sign(), sign(), DATA), {"noise_std": 0.0}, ValueError, "noise_std"),
        ((sign(), sign(), DATA), {"noise_std": []}, ValueError, "noise_std is empty"),
        ((sign(), sign(), DATA), {"noise_std": np.array([])}, ValueError, "noise_std is empty"),
        (
            (sign(), sign(), DATA),
            {"noise_std": torch.ones(2, 3)},
            ValueError,
            r"noise_std has shape \(2, 3\)",
        ),
        ((sign(), sign(), DATA), {"noise_std": np.ones((1, 1))}, ValueError, r"noise_std has shape \(1, 1\)"),
        ((sign(), sign(), DATA), {"noise_std": b"1"}, TypeError, "noise_std is b'1'"),
        ((sign(), sign(), DATA), {"noise_std": {0.1: 1}}, TypeError, "noise_std is {0.1: 1}"),
        ((sign(), sign(), DATA), {"noise_std": torch.tensor(-1.0)}, ValueError, "noise_std is -1"),
        ((sign(), sign(), DATA), {"prior_std": [0.1, -1.0]}, ValueError, "prior_std"),
        ((sign(), sign(), DATA), {"delta": 1.0}, ValueError, "delta"),
        ((sign(), sign(), DATA), {"draws": 0}, ValueError, "draws"),
        ((sign(), sign(), DATA), {"kind": "mcallester"}, ValueError, "kind"),
        ((sign(), sign(), DATA), {"loss": lambda p, y: p[:, 0] ** 2 + 1}, ValueError, r"expected \[0, 1\]"),
        ((sign(), sign(), DATA), {"loss": lambda p, y: p.mean()}, ValueError, "one value an example"),
        ((sign(), sign(), DATA), {"loss": 3}, TypeError, "loss is a int"),
    ],
)
def test_bad_input_is_named(arguments: tuple, options: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        pac_bayes.certify(*arguments, **{"noise_std": 0.1, "draws": 5, **options})


def test_the_module_is_public() -> None:
    assert torch_ssam.pac_bayes is pac_bayes
