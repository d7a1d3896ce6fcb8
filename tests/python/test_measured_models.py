"""Measuring leaves no trace: whatever a model writes to itself as it runs, and wherever a measure is stopped, every bit is
put back, and each evaluation begins at the same model. Nothing is copied that cannot be. test_peers.py, rows 37, 41 and 43.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from self_writing_models import MODELS, Batches, MaxNorm, describe, numbers, state, words
from test_sharpness import MEASURES
from test_signals import InterruptAt, _traced
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import torch_ssam
from torch_ssam import compare, pac_bayes, sharpness
from torch_ssam._common.measured_model import MeasuredModel, add_noise, shift
from torch_ssam.compare import _measures
from torch_ssam.noise import seeds


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # conftest puts it back


def data_of(pairs: Batches) -> compare.Data:
    whole = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    return compare.Data("numbers", whole, whole, whole, 3)


ALL: dict[str, Callable[..., Any]] = {
    **MEASURES,
    "compare": lambda m, f, d: sharpness.compare(
        m,
        {"a": m, "b": {k: v * 1.1 if v.is_floating_point() else v for k, v in m.state_dict().items()}},
        f,
        d,
        samples=2,
        points=3,
    ),
    "gibbs_risk": lambda m, f, d: pac_bayes.gibbs_risk(m, d, 0.1, draws=4, batch_size=2),
    "suggest_noise_std": lambda m, f, d: torch_ssam.suggest_noise_std(m, d, target=0.01, draws=2),
    "certify": lambda m, f, d: pac_bayes.certify(
        m, m, d, noise_std=[0.1, 0.2], draws=4, pilot_draws=2, batch_size=2
    ),
    "compare's evaluate": lambda m, f, d: _measures.evaluate(m, data_of(d), data_of(d).test),
    "compare's rounding": lambda m, f, d: _measures.rounded_score(m, data_of(d), 4),
}
CURVATURE = ("hessian_trace", "top_eigenvalues", "layer_balance", "compare")


def with_gradients(name: str) -> tuple[nn.Module, Batches]:
    """The model in an unusual state: part of it in eval, with gradients on some parameters."""
    torch.manual_seed(3)
    make, data = MODELS[name]
    model = make()
    next(iter(model.children())).eval()
    for p in [p for p in model.parameters() if p.requires_grad][::2]:
        p.grad = torch.ones_like(p)
    return model, data()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("measure", ALL)
@pytest.mark.parametrize("name", MODELS)
def test_every_measure_leaves_every_bit_whatever_the_model_does(name: str, measure: str) -> None:
    if measure in CURVATURE:
        pytest.importorskip("curvlinops")
    model, data = with_gradients(name)
    before = state(model)
    if measure == "compare's rounding" and name in ("spectral_norm", "weight_norm"):
        with pytest.raises(ValueError, match="computed at each call"):
            ALL[measure](model, cross_entropy, data)
    else:
        ALL[measure](model, cross_entropy, data)
    assert state(model) == before
    if measure in MEASURES:
        ALL[measure](model, cross_entropy, data, mode="train")
        assert state(model) == before


# -- stopped in the middle -------------------------------------------------------------------------------------------


class Stop(Exception):
    """What a model raises."""


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("measure", ALL)
@pytest.mark.parametrize("name", ["max_norm", "replacing", "busy"])
def test_a_measure_that_is_stopped_leaves_every_bit(
    name: str, measure: str, error: type[BaseException]
) -> None:
    if measure in CURVATURE:
        pytest.importorskip("curvlinops")
    for last in range(0, 20, 3):
        model, data = with_gradients(name)
        before = state(model)
        calls = 0

        def stop(*_: Any, last: int = last) -> None:
            nonlocal calls
            calls += 1
            if calls > last:
                raise error

        model.register_forward_hook(stop)
        try:
            ALL[measure](model, cross_entropy, data)
        except error:
            assert state(model) == before  # before any handler runs
        else:
            break
    assert last > 2


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="NOT TESTED here: the opcode names are Python 3.11's"
)
def test_an_interrupt_at_any_point_leaves_every_bit() -> None:
    model = nn.Embedding(3, 2, max_norm=0.5)
    x = torch.arange(3)
    noise = torch_ssam.WeightNoise(model.parameters(), 0.5, seed=0)
    before = state(model)
    for n in range(5000):
        tracer = InterruptAt(n, KeyboardInterrupt())
        measured = MeasuredModel(model, training=False)
        try:
            with _traced(tracer), measured:
                add_noise(noise)(measured)
                model(x)
                measured.restore()
        except KeyboardInterrupt:
            assert state(model) == before, f"at point {n}, {tracer.where}"
        if tracer.left >= 0:
            break
    assert 200 < n < 4999


# -- what is measured ------------------------------------------------------------------------------------------------


def test_the_average_under_max_norm_is_that_of_fresh_copies() -> None:
    model, data = MaxNorm(), words()
    found = sharpness.average(model, cross_entropy, data, 0.3, samples=3)
    noise = torch_ssam.WeightNoise(
        [p for p in model.parameters() if p.requires_grad], 0.3, seed=seeds.measuring_seed(0)
    )

    def loss(sign: int) -> float:
        own = copy.deepcopy(model)  # which may shorten its rows
        with torch.no_grad():
            for p, q in zip(own.parameters(), model.parameters(), strict=True):
                if q.requires_grad:
                    p.add_(noise.noise(q), alpha=sign)
            return sum(float(cross_entropy(own(x), y)) * len(y) for x, y in data) / 10

    values = []
    for draw in range(3):
        noise.load_state_dict({"seed": noise.seed, "draw": draw})
        values.append((loss(1) + loss(-1)) / 2 - loss(0))
    assert found.values == pytest.approx(values, rel=1e-4, abs=1e-6)
    assert found.loss == pytest.approx(loss(0))


def test_the_noise_of_a_measure_has_the_bits_of_weight_noise() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for scale in ("isotropic", "filter", "tensor", "element"):
            model = nn.Linear(33, 5).to(dtype)
            noise = torch_ssam.WeightNoise(model.parameters(), 0.3, scale=scale, seed=4)
            with noise.applied(negate=True, advance=False):
                expected = [describe(p)[-1] for p in model.parameters()]
            measured = MeasuredModel(model)
            with measured:
                add_noise(noise, negate=True)(measured)
                assert [describe(p)[-1] for p in model.parameters()] == expected
            assert noise.draw == 1


@pytest.mark.parametrize("name", ["averaged", "spectral_norm", "replacing"])
def test_every_evaluation_begins_at_the_same_model(name: str) -> None:
    torch.manual_seed(0)
    make, data = MODELS[name]
    model = make()
    still = [[torch.zeros_like(p) for p in model.parameters() if p.requires_grad]]
    found = sharpness.average(model, cross_entropy, data(), 0.0, samples=4, mode="train")
    assert not found.values.any()
    line = sharpness.landscape(
        model, cross_entropy, data(), directions=still, normalize=False, points=4, mode="train"
    )
    assert set(line.losses.tolist()) == {found.loss}


def test_a_model_is_moved_under_autocast_too() -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(4, 3), numbers()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # keeps its casts of weights to the end of the block
        line = sharpness.landscape(model, cross_entropy, data, points=3)
        risks = sharpness.average(model, cross_entropy, data, 0.1, samples=3).values
    assert len(set(line.losses.tolist())) == 3
    assert len(set(risks.tolist())) == 3


def test_weights_are_clean_while_progress_is_told() -> None:
    model, data = MaxNorm(), words()
    before = state(model)
    seen = []

    def tell(*_: int) -> None:
        seen.append({k: v for k, v in state(model).items() if "training" not in k and k != "random"})

    sharpness.average(model, cross_entropy, data, 0.3, samples=2, progress=tell)
    sharpness.landscape(model, cross_entropy, data, points=3, progress=tell)
    sharpness.worst_case(model, cross_entropy, data, 0.3, steps=2, progress=tell)
    pac_bayes.gibbs_risk(model, data, 0.3, draws=2, progress=tell)
    assert len(seen) >= 9
    assert all(now == {k: before[k] for k in now} for now in seen)


def test_a_measured_model_is_not_entered_twice_and_its_moves_need_it() -> None:
    model = nn.Linear(2, 2)
    measured = MeasuredModel(model)
    before = state(model)
    with measured, pytest.raises(RuntimeError, match="inside itself"), measured:
        pass
    assert state(model) == before
    with pytest.raises(RuntimeError, match="enter the context first"):
        shift([model.weight], (1.0, [torch.ones(2, 2)]))(measured)
    assert state(model) == before


# -- models that cannot be copied ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["weight_norm", "pruned", "locked"])
def test_checkpoints_of_models_that_cannot_be_copied_are_compared(name: str) -> None:
    model, data = MODELS[name][0](), numbers()
    model(data[0][0])
    with pytest.raises((RuntimeError, TypeError)):
        copy.deepcopy(model)
    other = {k: 1.5 * v for k, v in model.state_dict().items()}
    before = state(model)
    report = sharpness.compare(model, {"a": model, "b": other}, cross_entropy, data, samples=2, points=3)
    assert state(model) == before
    alone = sharpness.average(model, cross_entropy, data, 0.01, samples=2)
    assert report.values["a"]["average sharpness"] == alone.mean
    model.load_state_dict(other)
    alone = sharpness.average(model, cross_entropy, data, 0.01, samples=2)
    assert report.values["b"]["average sharpness"] == pytest.approx(alone.mean, rel=1e-6)
    assert report.values["b"]["loss"] != report.values["a"]["loss"]


class Extra(nn.Module):
    """State beside tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.gain = 2.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gain * self.layer(x)
        return out

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.gain)

    def set_extra_state(self, state: Tensor) -> None:
        self.gain = float(state)


def test_extra_state_of_a_checkpoint_is_measured_and_taken_out_again() -> None:
    torch.manual_seed(0)
    model, data = Extra(), numbers()
    first = model.state_dict()
    second = {**first, "_extra_state": torch.tensor(0.0)}
    report = sharpness.compare(model, {"a": first, "b": second}, cross_entropy, data, samples=2, points=3)
    assert model.gain == 2.0
    assert report.values["b"]["loss"] == pytest.approx(math.log(3))
    assert report.values["a"]["loss"] != pytest.approx(math.log(3))


def test_a_checkpoint_that_does_not_fit_is_named_before_anything_is_measured() -> None:
    model, data = nn.Linear(4, 3), numbers()
    before = state(model)
    bad = {"weight": torch.ones(3, 4)}
    with pytest.raises(ValueError, match="'b' does not fit"):
        sharpness.compare(model, {"a": model, "b": bad}, lambda p, y: pytest.fail("measured"), data)
    assert state(model) == before


def test_frozen_matrices_alone_have_no_balance_in_a_comparison() -> None:
    pytest.importorskip("curvlinops")
    model = nn.Linear(4, 3)
    model.weight.requires_grad_(False)
    report = sharpness.compare(
        model, {"a": model, "b": model.state_dict()}, cross_entropy, numbers(), samples=2, points=3
    )
    assert "imbalance" not in report.values["a"]
