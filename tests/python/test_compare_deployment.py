"""torch_ssam.compare's settings about deployment: what is measured, what options are chosen by, and its baselines.

Runs are tiny; what a comparison finds is in docs/results_deployment.md, not asserted here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from compare_cases import SMALL, _one_thread  # noqa: F401

from torch_ssam import compare, robustness
from torch_ssam.compare import (
    METHODS,
    SAM,
    SETTINGS,
    Comparison,
    Data,
    Method,
    _deployment,
    _tables,
    _verdict,
)
from torch_ssam.compare._gptq import _columns, gptq, gptq_rows
from torch_ssam.compare._models import make_model
from torch_ssam.compare._qat import LearnedSteps
from torch_ssam.compare._records import describe
from torch_ssam.compare._stepper import Stepper
from torch_ssam.compare._training import Run, load
from torch_ssam.robustness._quantizers import Quantizer

TINY = replace(
    SMALL,
    test=100,
    methods=("sgd", "sgd-clip", "ssam-deploy", "qat"),
    curve_points=1,
    deployment=True,
    deployment_draws=2,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    torch.set_num_threads(1)
    (found,) = compare.compare(TINY, out=tmp_path_factory.mktemp("deployment"), workers=1)
    return found


# -- quantisation-aware training ---------------------------------------------------------------------------------


def test_learnt_steps_round_each_filter_and_their_gradients_are_lsqs() -> None:
    # One filter, bits 3: q = 3. w / s = (0.4, 1.6, -2.4, 5) rounds to (0, 2, -2, 3); the last one is clamped.
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.2, 0.8, -1.2, 2.5]]))
    learned = LearnedSteps(layer, 3)
    (step,) = learned.parameters()
    learned.start()
    assert step.item() == pytest.approx(2 * (0.2 + 0.8 + 1.2 + 2.5) / 4 / math.sqrt(3))
    with torch.no_grad():
        step.fill_(0.5)
    out = layer(torch.eye(4))
    assert torch.equal(out.flatten(), torch.tensor([0.0, 1.0, -1.0, 1.5]))
    out.sum().backward()
    # Straight through inside, nothing where clamped; of the step: round(x) - x inside, q where clamped (LSQ, equation 3).
    original = layer.parametrizations.weight.original
    assert torch.equal(original.grad, torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
    by_hand = (0 - 0.4) + (2 - 1.6) + (-2 + 2.4) + 3
    assert step.grad.item() == pytest.approx(by_hand / math.sqrt(4 * 3), rel=1e-5)


def test_learnt_steps_leave_rounded_plain_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learned = LearnedSteps(model, 2)
    x = torch.randn(2, 1, 4, 4)
    learned.start()
    rounded = model(x)
    learned.finish()
    assert {name for name, _ in model.named_parameters()} == set(before)
    assert torch.equal(model(x), rounded)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert torch.equal(p, before[name])
        else:
            assert all(len(row.abs().unique()) <= 2 for row in p.detach().flatten(1))


def test_training_is_rounded_from_the_share_of_the_steps_that_the_method_says() -> None:
    data = load(TINY, 0)
    model = make_model(TINY.model_factory, data, 0)
    stepper = Stepper(METHODS["qat-tuned"], model, {"lr": 0.1, "weight_decay": 0.0}, 10, 0)
    levels = []
    for _ in range(10):
        stepper.step(lambda x, y: data.loss(model(x), y), data.train[0][:20], data.train[1][:20])
        levels.append(len(model[1].weight.detach()[0].abs().unique()) <= 2)
    assert levels == [False] * 5 + [True] * 5


# -- GPTQ --------------------------------------------------------------------------------------------------------


def test_gptq_rows_of_inputs_without_correlation_are_rounded_to_the_nearest() -> None:
    torch.manual_seed(0)
    w = torch.randn(4, 12)
    nearest = Quantizer(3, "narrow", "mse").encode(w.double()).values()
    torch.testing.assert_close(gptq_rows(w, 2.0 * torch.eye(12, dtype=torch.float64), 3), nearest.float())


def test_gptq_changes_outputs_less_than_rounding_to_the_nearest() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 4) @ torch.randn(4, 16) + 0.1 * torch.randn(200, 16)
    layer = nn.Linear(16, 8)
    clean = layer(x).detach()
    before = layer.weight.detach().clone()
    with robustness.quantized(layer, 2, step="mse"):
        nearest = float((layer(x).detach() - clean).square().mean())
    with gptq(layer, 2, [x[:100], x[100:]]):
        assert all(len(row.abs().unique()) <= 2 for row in layer.weight.detach())
        assert float((layer(x).detach() - clean).square().mean()) < 0.7 * nearest
    assert torch.equal(layer.weight, before)


def test_gptqs_columns_of_a_convolution_are_what_its_outputs_are_products_of() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, (2, 3), stride=2, padding=1, dilation=1, bias=False)
    x = torch.randn(2, 2, 7, 8)
    by_columns = _columns(layer, x) @ layer.weight.flatten(1).T
    torch.testing.assert_close(by_columns, layer(x).permute(0, 2, 3, 1).flatten(0, 2))


def test_gptq_of_a_whole_network_rounds_every_weight_and_puts_every_bit_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten()
    )
    model.append(nn.Linear(16, 3))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with gptq(model, 2, [torch.randn(8, 1, 6, 6)]):
        for p in model.parameters():
            assert p.dim() < 2 or all(len(row.abs().unique()) <= 2 for row in p.detach().flatten(1))
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])


# -- the other methods -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["sgd-clip", "sam-clip", "ssam-clip", "ssam-deploy", "adamw-clip", "adamw-deploy", "ssam-adaptive"],
)
def test_clipped_methods_leave_clipped_weights(name: str) -> None:
    method = METHODS[name]
    run = Run("tune", TINY, method, TINY.grid(method)[0], 0, method.epochs(TINY.epochs))
    assert run.options.get("weight_clip", method.options.get("weight_clip")) == 2.0
    data = load(TINY, 0)
    model = make_model(TINY.model_factory, data, 0)
    stepper = Stepper(method, model, run.options, 20, 0)
    for _ in range(5):
        stepper.step(lambda x, y: data.loss(model(x), y), *(t[:20] for t in data.train))
    stepper.finish()
    for p in model.parameters():
        if p.dim() >= 2:
            # The RMS after clipping is at most the one before, so that the ratio can exceed 2 a little.
            ratio = p.detach().abs().amax(1) / p.detach().square().mean(1).sqrt()
            assert 1.0 < float(ratio.max()) < 2.5


def test_sam_clips_as_ssam_does() -> None:
    torch.manual_seed(0)
    weights = torch.randn(8, 50)
    weights[0, 0] = 9.0
    w = nn.Parameter(weights.clone())
    optimizer = SAM([w], lr=0.0, rho=0.1, weight_clip=1.5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    limit = 1.5 * weights.double().square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(w.detach(), weights.double().clamp(-limit, limit).float())


def test_noise_rises_from_0_over_half_of_the_steps() -> None:
    data = load(TINY, 0)
    model = make_model(TINY.model_factory, data, 0)
    options = {"lr": 0.1, "noise_std": 0.3, "weight_clip": 2.0, "weight_decay": 0.0}
    stepper, seen = Stepper(METHODS["ssam-deploy"], model, options, 8, 0), []
    weights, others = stepper.optimizer.param_groups
    assert {p.dim() for p in weights["params"]} == {2}
    assert {p.dim() for p in others["params"]} == {1}
    for _ in range(8):
        seen.append(weights["noise_std"])
        assert others["noise_std"] == 0.0
        stepper.step(lambda x, y: data.loss(model(x), y), data.train[0][:8], data.train[1][:8])
    assert seen == pytest.approx([0.0, 0.075, 0.15, 0.225, 0.3, 0.3, 0.3, 0.3])


@pytest.mark.parametrize("name", ["ssam-adaptive", "adamw-adaptive"])
def test_noise_that_sets_itself_moves_towards_the_target(name: str) -> None:
    data = load(TINY, 0)
    model = make_model(TINY.model_factory, data, 0)
    options = {**TINY.grid(METHODS[name])[0], "target": 0.5}
    stepper = Stepper(METHODS[name], model, options, 100, 0)
    for _ in range(35):  # looks at steps 1, 11, 21, 31: far below the target each time
        stepper.step(lambda x, y: data.loss(model(x), y), *(t[:20] for t in data.train))
    weights, others = stepper.optimizer.param_groups
    assert weights["noise_std"] == pytest.approx(0.02 * math.exp(0.4), rel=0.05)
    assert others["noise_std"] == 0.0


def test_options_of_noise_that_sets_itself_reach_it_and_are_said() -> None:
    looks = {"measure": "mse", "every": 5, "rate": 0.2}
    method = replace(METHODS["ssam-adaptive"], options={**METHODS["ssam-adaptive"].options, **looks})
    data = load(TINY, 0)
    model = make_model(TINY.model_factory, data, 0)
    stepper = Stepper(method, model, TINY.grid(method)[0], 100, 0)
    schedule = stepper._adaptive
    assert schedule is not None
    assert (schedule.measure, schedule.every, schedule.rate) == ("mse", 5, 0.2)
    words = "AdaptiveNoiseStd of target 0.05, measure='mse', every=5, rate=0.2"
    assert words in method.call(TINY.grid(method)[0])
    assert method.identity() != METHODS["ssam-adaptive"].identity()


# -- what is measured --------------------------------------------------------------------------------------------


def test_what_is_left_is_what_robustness_measures() -> None:
    data = load(TINY, 0)
    model = make_model(TINY.model_factory, data, 0)
    found = _deployment.survival(model, data, data.test, 3)
    batches = [data.test]
    by_hand = robustness.measure(model, batches, bits=2, noise=0.2, flips=(), draws=3, step="absmax")
    assert found["bits 2 absmax as_trained"] == by_hand.find("bits", 2).mean
    assert found["noise 0.2 as_trained"] == pytest.approx(by_hand.find("noise", 0.2).mean)
    assert found["bits 2 absmax anew"] == found["bits 2 absmax as_trained"]  # an MLP has no BatchNorm
    assert set(found) == {
        *(
            _deployment.key("bits", b, s, t)
            for b in (4, 3, 2)
            for s in ("absmax", "mse")
            for t in ("as_trained", "anew")
        ),
        *(_deployment.key("bits", b, "gptq") for b in (4, 3, 2)),
        _deployment.WITH_ACTIVATIONS,
        *(_deployment.key("noise", n, statistics=t) for n in (0.1, 0.2, 0.3) for t in ("as_trained", "anew")),
    }


def test_a_network_that_is_not_finite_has_nothing_left() -> None:
    data = load(TINY, 0)
    model = make_model(TINY.model_factory, data, 0)
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    assert _deployment.survival(model, data, data.test, 2) == {}
    assert _deployment.target_score(model, data, data.validation) == -math.inf


def test_a_regression_is_refused_in_words() -> None:
    pair = (torch.randn(4, 2), torch.randn(4))
    data = Data("numbers", pair, pair, pair, 1)
    with pytest.raises(ValueError, match="numbers is a regression; expected classes"):
        _deployment.survival(nn.Linear(2, 1), data, pair, 2)


def test_records_of_settings_without_deployment_are_found_again() -> None:
    plain = replace(TINY, deployment=False)
    run = Run("tune", plain, METHODS["sgd"], {"lr": 0.1, "weight_decay": 0.0}, 0, 1)
    assert "deployment_draws" not in describe(run)
    assert set(describe(run)["method"]) == {"optimizer", "fixed", "ramp", "split"}
    assert describe(run) != describe(replace(run, setting=TINY))


# -- the whole ---------------------------------------------------------------------------------------------------


def test_options_are_chosen_by_each_arms_own_score(whole: Comparison) -> None:
    assert whole.setting.arms == ("gradients", "target")
    for method in whole.methods:
        points = whole.grid(method)
        for arm, by in (("gradients", "validation score"), ("target", "target score")):
            best = max(result[by] for _, result in points)
            assert dict(points[[r[by] for _, r in points].index(best)][0]) == whole.chosen(method, arm)
        assert set(whole.results(method, "target")) == {0, 1}
        assert whole.epochs(method, "target") == whole.epochs(method)


def test_tables_plot_and_verdict_have_the_numbers(whole: Comparison, tmp_path: Path) -> None:
    method = whole.method("ssam-deploy")
    results = [r["deployment"] for r in whole.results(method, "target").values()]
    mean = max(sum(r[name] for r in results) / 2 for name in results[0] if name.startswith("bits 2"))
    table = _tables.deployment_table(whole, "target")
    row = next(row for row in table.rows if row[0] == method.title)
    assert row[4].startswith(f"{mean:.1f} ±")
    lines = _verdict.deployment_verdict(whole)
    assert lines[0].startswith(("Use SSAM(params, lr=", "Stay with S"))
    assert any(line.startswith("2 bits: ") for line in lines)
    assert any("trained for them" in line for line in lines)
    path = compare.write_report([whole], tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "Rounded and noisy weights, options chosen by accuracy under disturbances" in text
    assert "tiny: deployment" in text
    assert "Equal time" not in text


def test_settings_without_deployment_have_no_such_table(whole: Comparison) -> None:
    plain = Comparison(replace(TINY, deployment=False), whole.store)
    assert not _tables.deployment_table(plain, "target").has_data


@pytest.mark.parametrize("name", [name for name in SETTINGS if name.startswith("deploy-")])
def test_named_settings_have_each_method_once_and_both_kinds_of_control(name: str) -> None:
    setting = SETTINGS[name]
    names = [method.name for method in setting.chosen_methods()]
    assert {"sgd", "sam", "sam-clip"} <= set(names)
    assert any(n.endswith("-deploy") for n in names)
    assert any(METHODS[n].quantized_bits for n in names)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Method("m", "M", "sgd", "rho", (1.0, 2.0, 3.0), also=({},)), "expected three each"),
        (
            lambda: Method("m", "M", "sgd", "rho", (1.0, 2.0, 3.0), also=({"lr": 1.0},) * 3),
            "an option in also is 'lr'",
        ),
        (lambda: Method("m", "M", "sgd", "rho", (1.0, 2.0, 3.0), rise=1.0), "rise is 1; expected a share"),
        (lambda: Method("m", "M", "sgd", "rho", (1.0, 2.0, 3.0), quantized_bits=1), "quantized_bits is 1"),
        (lambda: replace(TINY, deployment="yes"), "deployment is 'yes'"),
        (lambda: replace(TINY, deployment_draws=1), "deployment_draws is 1"),
    ],
    ids=["also", "also-lr", "rise", "bits", "deployment", "draws"],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()
