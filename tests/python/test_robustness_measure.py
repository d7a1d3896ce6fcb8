"""torch_ssam.robustness.measure: every number is that of a plain loop over the contexts; intervals cover; nothing is left behind.

False-alarm rates: coverage is held against the binomial's bound at 5 standard deviations, seeds fixed.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from robustness_models import convolutional, images, layer, left_alone
from torch import nn

from torch_ssam import robustness
from torch_ssam.noise import seeds
from torch_ssam.robustness import accuracy, measure

LITTLE: dict[str, Any] = {"bits": 3, "noise": 0.2, "flips": 0.05, "draws": 3}


def slow_accuracy(model: nn.Module) -> float:
    """Percent right over all of `images` at once."""
    batches = images()
    x, y = (torch.cat([batch[i] for batch in batches]) for i in range(2))
    with torch.no_grad():
        return 100.0 * float((model(x).argmax(1) == y).double().mean())


def mean_output(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.double().mean()


# -- the numbers -------------------------------------------------------------------------------------------------


def test_every_number_is_that_of_a_plain_loop() -> None:
    model = convolutional()
    own = seeds.measuring_seed(5)
    with left_alone(model):
        found = measure(
            model, images(), bits=(4, 2), noise=(0.1, 0.3), flips=(0.02,), draws=4, seed=5, flip_bits=6
        )
    assert found.metric == "accuracy"
    assert found.clean == pytest.approx(slow_accuracy(model))
    assert [(p.kind, p.level) for p in found.points] == [
        ("clean", 0),
        ("bits", 4),
        ("bits", 2),
        ("noise", 0.1),
        ("noise", 0.3),
        ("flips", 0.02),
    ]
    for bits in (4, 2):
        with robustness.quantized(model, bits):
            assert found.find("bits", bits).values == pytest.approx([slow_accuracy(model)])
        assert found.find("bits", bits).half_width is None
    contexts = {
        ("noise", 0.1): lambda i: robustness.noisy(model, 0.1, seed=own, draw=i),
        ("noise", 0.3): lambda i: robustness.noisy(model, 0.3, seed=own, draw=i),
        ("flips", 0.02): lambda i: robustness.bit_flips(model, 0.02, 6, seed=own, draw=i),
    }
    for (kind, level), context in contexts.items():
        values = []
        for i in range(4):
            with context(i):
                values.append(slow_accuracy(model))
        point = found.find(kind, level)
        assert point.values == pytest.approx(values)
        assert point.mean == pytest.approx(np.mean(values))
        # Student's quantile of 3 degrees of freedom at 95%
        assert point.half_width == pytest.approx(3.182446305 * np.std(values, ddof=1) / 2)
        assert point.interval == (point.mean - point.half_width, point.mean + point.half_width)


def test_options_reach_the_contexts() -> None:
    model = convolutional()
    own = seeds.measuring_seed(0)
    options: dict[str, Any] = {"per": 4, "grid": "affine", "step": "mse", "skip": "0"}
    found = measure(model, images(), relative_to="tensor", **LITTLE, **options)
    assert found.settings["levels"] == {"3": 8}
    assert found.settings["weights"] == ["4.weight", "6.weight"]
    with robustness.quantized(model, 3, **options):
        assert found.find("bits", 3).mean == pytest.approx(slow_accuracy(model))
    with robustness.noisy(model, 0.2, "tensor", seed=own, draw=2, skip="0"):
        assert found.find("noise", 0.2).values[2] == pytest.approx(slow_accuracy(model))
    with robustness.bit_flips(model, 0.05, 8, seed=own, draw=1, **options):
        assert found.find("flips", 0.05).values[1] == pytest.approx(slow_accuracy(model))


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    """A Linear layer's mean output is linear in its weights, so its mean under noise is that of the clean weights."""
    model = nn.Linear(30, 5, bias=False)
    x = torch.randn(20, 30)
    data = [(x, torch.zeros(20))]
    for confidence, seed in ((0.8, 1), (0.95, 2)):
        covered, runs = 0, 300
        for i in range(runs):
            found = measure(
                model,
                data,
                mean_output,
                bits=(),
                flips=(),
                noise=0.5,
                draws=5,
                confidence=confidence,
                seed=1000 * seed + i,
            )
            low, high = found.find("noise", 0.5).interval
            covered += low <= found.clean <= high
        assert abs(covered - confidence * runs) < 5 * math.sqrt(confidence * (1 - confidence) * runs)


def test_to_a_precision_more_draws_are_made() -> None:
    model = nn.Linear(30, 5, bias=False)
    data = [(torch.randn(20, 30), torch.zeros(20))]
    options: dict[str, Any] = {"bits": (), "flips": (), "noise": 0.5, "draws": 5}
    rough = measure(model, data, mean_output, **options).find("noise", 0.5)
    assert rough.half_width is not None
    fine = measure(model, data, mean_output, precision=rough.half_width / 3, **options).find("noise", 0.5)
    assert len(fine.values) > 20
    assert fine.half_width is not None
    assert fine.half_width <= rough.half_width / 3 * 1.001
    assert fine.values[:5] == rough.values
    few = measure(model, data, mean_output, precision=rough.half_width / 3, max_draws=7, **options)
    assert len(few.find("noise", 0.5).values) == 7


def test_read_noise_is_new_in_every_batch_and_every_draw() -> None:
    model = convolutional()
    own = seeds.measuring_seed(0)
    found = measure(model, images(), kind="read", **LITTLE).find("noise", 0.2)
    right = 0
    with robustness.noisy(model, 0.2, kind="read", seed=own, draw=1 << 32), torch.no_grad():
        for x, y in images():
            right += int((model(x).argmax(1) == y).sum())
    assert found.values[1] == pytest.approx(100 * right / 40)
    assert found.values != measure(model, images(), **LITTLE).find("noise", 0.2).values


def test_models_with_random_numbers_draw_the_same_ones_in_every_evaluation() -> None:
    class Random(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.rand(())

    model = Random(3, 2)
    data = [(torch.randn(4, 3), torch.zeros(4))]
    with left_alone(model):
        found = measure(model, data, mean_output, bits=(), noise=0.0, flips=(), draws=4)
    assert set(found.find("noise", 0.0).values) == {found.clean}


# -- BatchNorm, first and last, folding --------------------------------------------------------------------------


def test_statistics_are_gathered_anew_under_every_disturbance() -> None:
    model = convolutional()
    with torch.no_grad():
        model[1].running_mean.add_(1.0)  # stale: gathering helps the clean model too
    calibration = [x for x, _ in images(64)]
    with left_alone(model):
        found = measure(model, images(), statistics="both", calibration=calibration, **LITTLE)
    assert found.variants() == [("as_trained", "in"), ("anew", "in")]

    def gathered(each: nn.Module) -> float:
        fresh = copy.deepcopy(each)
        torch.optim.swa_utils.update_bn(calibration, fresh)
        return slow_accuracy(fresh.eval())

    assert found.find("clean", 0, statistics="anew").mean == pytest.approx(gathered(model))
    assert found.clean == pytest.approx(slow_accuracy(model))
    own = seeds.measuring_seed(0)
    with robustness.quantized(model, 3):
        assert found.find("bits", 3, statistics="anew").mean == pytest.approx(gathered(model))
        assert found.find("bits", 3).mean == pytest.approx(slow_accuracy(model))
    with robustness.noisy(model, 0.2, seed=own, draw=1):
        assert found.find("noise", 0.2, statistics="anew").values[1] == pytest.approx(gathered(model))


def test_calibration_may_be_tuples_or_a_function_and_leaves_dropout_off() -> None:
    model = nn.Sequential(*convolutional()[:4], nn.Dropout(0.9), *convolutional()[4:]).eval()
    outputs = []
    for calibration in (images(), [x for x, _ in images()], lambda m: [m(x) for x, _ in images()]):
        with left_alone(model):
            found = measure(
                model, images(), mean_output, statistics="anew", calibration=calibration, **LITTLE
            )
        outputs.append([p.values for p in found.points])
    assert outputs[0] == outputs[1] == outputs[2]


def test_statistics_anew_without_batchnorm_are_noted() -> None:
    model = layer([1.0, 0.5], [-1.0, 0.2])
    data = [(torch.randn(6, 2), torch.zeros(6, dtype=torch.int64))]
    found = measure(model, data, statistics="both", **LITTLE)
    assert found.variants() == [("as_trained", "in")]
    assert "no BatchNorm" in found.notes[0]
    assert "no BatchNorm" in str(found)


@pytest.mark.parametrize("calibration", [None, 3, "data", torch.ones(2, 2), iter([torch.ones(1, 1, 8, 8)])])
def test_statistics_anew_need_calibration_data(calibration: object) -> None:
    model = convolutional()
    with left_alone(model), pytest.raises(TypeError, match="calibration is a"):
        measure(model, images(), statistics="anew", calibration=calibration, **LITTLE)


def test_calibration_without_a_batch_is_refused() -> None:
    model = convolutional()
    with left_alone(model), pytest.raises(ValueError, match="calibration ran no batch"):
        measure(model, images(), statistics="anew", calibration=[], **LITTLE)


def test_first_and_last_are_those_that_run_first_and_last() -> None:
    class Backwards(nn.Module):
        """Registered last to first."""

        def __init__(self) -> None:
            super().__init__()
            self.head, self.body, self.stem = nn.Linear(8, 3), nn.Linear(8, 8), nn.Linear(64, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(torch.relu(self.body(torch.relu(self.stem(x.flatten(1))))))
            return out

    torch.manual_seed(0)
    model = Backwards()
    with left_alone(model):
        found = measure(model, images(), first_and_last="both", **LITTLE)
    assert found.settings["first_and_last"] == ["head", "stem"]
    assert "head, stem" in found.notes[0]
    with robustness.quantized(model, 3, skip=("head", "stem")):
        assert found.find("bits", 3, first_and_last="out").mean == pytest.approx(slow_accuracy(model))
    with robustness.quantized(model, 3):
        assert found.find("bits", 3, first_and_last="in").mean == pytest.approx(slow_accuracy(model))


def test_first_and_last_of_two_layers_leave_nothing() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 3))
    with left_alone(model), pytest.raises(ValueError, match="first_and_last leaves nothing to disturb: 1, 2"):
        measure(model, images(), first_and_last="out", **LITTLE)


def test_fold_measures_a_copy_with_batchnorm_folded() -> None:
    model = convolutional()
    with left_alone(model):
        found = measure(model, images(), fold=True, per="tensor", skip="6", **LITTLE)
    assert found.clean == pytest.approx(slow_accuracy(model))
    assert found.settings["weights"] == ["0.weight", "4.weight"]
    folded = robustness.fold_batchnorm(model)
    with robustness.quantized(folded, 3, per="tensor", skip="6"):
        assert found.find("bits", 3).mean == pytest.approx(slow_accuracy(folded))
    assert "BatchNorm folded first" in str(found)


# -- metrics -----------------------------------------------------------------------------------------------------


def test_a_metric_is_averaged_over_examples_of_unequal_batches() -> None:
    model = convolutional()
    batches = images(21)  # 16 and 5
    found = measure(model, batches, mean_output, bits=(), noise=(), flips=())
    with torch.no_grad():
        assert found.clean == pytest.approx(
            float(model(torch.cat([x for x, _ in batches])).double().mean()), rel=1e-6
        )


def test_without_data_the_metric_runs_the_model() -> None:
    model = convolutional()
    with left_alone(model):
        alone = measure(model, None, slow_accuracy, **LITTLE)
        usual = measure(model, images(), **LITTLE)
    assert alone.metric == "slow accuracy"
    for a, b in zip(alone.points, usual.points, strict=True):
        assert a.values == pytest.approx(b.values)


def test_nan_under_a_disturbance_is_reported_and_breaks_nothing() -> None:
    clean = convolutional()

    def fragile(model: nn.Module) -> float:
        moved = (model[0].weight - clean[0].weight).abs().max()
        return float("nan") if moved > 0.15 else float("inf") if moved > 0.1 else 1.0

    model = copy.deepcopy(clean)
    with left_alone(model):
        found = measure(
            model, None, fragile, bits=(8, 2), noise=(0.0, 0.2, 9.0), flips=(), draws=6, precision=0.1
        )
    assert found.find("bits", 8).mean == 1.0
    assert math.isnan(found.find("bits", 2).mean)
    assert found.find("noise", 0.0).interval == (1.0, 1.0)
    bad = found.find("noise", 9.0)
    assert math.isnan(bad.mean)
    assert bad.half_width is not None
    assert math.isnan(bad.half_width)
    assert len(bad.values) == 6
    assert "nan (6 of 6 draws)" in str(found)


def test_a_clean_metric_that_is_not_finite_is_an_error() -> None:
    model = convolutional()
    for value in (float("nan"), float("inf")):
        with left_alone(model), pytest.raises(ValueError, match=r"is (nan|inf) for the model as it is"):
            measure(model, images(), lambda outputs, targets, value=value: value, **LITTLE)


@pytest.mark.parametrize("value", [None, "80", torch.ones(3), [1.0]])
def test_a_metric_that_gives_no_number_is_an_error(value: object) -> None:
    model = convolutional()
    with (
        left_alone(model),
        pytest.raises((TypeError, ValueError), match=r"metric .* gave .*; expected one number"),
    ):
        measure(model, images(), lambda outputs, targets: value, **LITTLE)


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 1, 2, 3, 7])
def test_the_model_is_as_it_was_when_a_metric_fails_at_any_evaluation(
    error: type[BaseException], at: int
) -> None:
    model = convolutional().train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    calls = 0

    def failing(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        nonlocal calls
        calls += 1
        if calls > 3 * at:
            raise error
        return 1.0

    with left_alone(model), pytest.raises(error):
        measure(
            model,
            images(),
            failing,
            statistics="anew",
            calibration=images(),
            first_and_last="both",
            kind="read",
            **LITTLE,
        )


def test_modes_and_gradients_are_as_they_were() -> None:
    model = convolutional().train()
    model[1].eval()
    grads = [torch.ones_like(p) for p in model.parameters()]
    for p, g in zip(model.parameters(), grads, strict=True):
        p.grad = g
    with left_alone(model):
        measure(model, images(), **LITTLE)
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tied_frozen_and_16_bit_weights_are_measured(dtype: torch.dtype) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
            self.two.weight = self.one.weight
            self.frozen = nn.Linear(64, 3).requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.frozen(torch.relu(self.two(torch.relu(self.one(x.flatten(1))))))
            return out

    model = Tied().to(dtype)
    with left_alone(model):
        data = [(x.to(dtype), y) for x, y in images()]
        found = measure(model, data, mean_output, **LITTLE)
    assert found.settings["weights"] == ["one.weight", "frozen.weight"]
    assert all(p.mean != found.clean for p in found.points[1:])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_scripted_models_are_measured_as_they_were_before_scripting() -> None:
    model = convolutional()
    scripted = torch.jit.script(model)
    with left_alone(model):
        usual = measure(model, images(), first_and_last="both", **LITTLE)
        found = measure(scripted, images(), first_and_last="both", **LITTLE)
    assert found.points == usual.points
    with pytest.raises(TypeError, match="kind is 'read' and the model is a ScriptModule"):
        measure(scripted, images(), kind="read", **LITTLE)


def test_sequence_models_are_measured_whole() -> None:
    """Recurrent and attention weights, and an embedding tied to the head, classes last."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.recurrent = nn.Embedding(20, 16), nn.LSTM(16, 16, batch_first=True)
            self.attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.head = nn.Linear(16, 20)
            self.head.weight = self.embedding.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.attention(self.recurrent(self.embedding(x))[0]))
            return out

    torch.manual_seed(0)
    model = Words()
    x = torch.randint(20, (8, 12))
    with left_alone(model):
        found = measure(model, [(x, x.roll(-1, 1))], first_and_last="both", **LITTLE)
    assert found.settings["first_and_last"] == ["embedding", "head"]
    assert found.settings["weights"] == [
        "embedding.weight",
        "recurrent.weight_ih_l0",
        "recurrent.weight_hh_l0",
        "attention.self_attn.in_proj_weight",
        "attention.self_attn.out_proj.weight",
        "attention.linear1.weight",
        "attention.linear2.weight",
    ]
    outputs = []
    for skip in ((), "embedding", ("recurrent", "attention")):
        with robustness.quantized(model, 2, skip=skip), torch.no_grad():
            outputs.append(model.eval()(x))
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


def test_compiled_models_see_the_disturbed_weights() -> None:
    model = convolutional()
    compiled = torch.compile(model, backend="eager")
    found = measure(compiled, images(), kind="read", **LITTLE)
    usual = measure(model, images(), kind="read", **LITTLE)
    assert [p.values for p in found.points] == [pytest.approx(p.values) for p in usual.points]


def test_progress_counts_evaluations() -> None:
    seen: list[tuple[int, int]] = []
    measure(convolutional(), images(), progress=lambda done, total: seen.append((done, total)), **LITTLE)
    assert seen == [(i + 1, 8) for i in range(8)]  # clean, one for bits, three for noise, three for flips


# -- accuracy ----------------------------------------------------------------------------------------------------


def test_accuracy_takes_classes_last_or_second() -> None:
    scores = torch.randn(4, 7, 5)
    best = scores.argmax(-1)
    wrong = best.clone()
    wrong[0, :] = (wrong[0] + 1) % 5
    assert accuracy(scores, best) == 100.0
    assert accuracy(scores, wrong) == 75.0
    assert accuracy(scores.movedim(-1, 1), wrong) == 75.0
    assert accuracy(torch.tensor([0.1, 0.9]), torch.tensor(1)) == 100.0


def test_accuracy_counts_nan_as_wrong() -> None:
    scores = torch.tensor([[float("nan"), 0.0], [1.0, 0.0]])
    assert accuracy(scores, torch.tensor([0, 0])) == 50.0


@pytest.mark.parametrize(
    ("outputs", "targets", "says"),
    [
        (torch.ones(3, 2), torch.ones(3), "integers"),
        (
            torch.ones(3, 2),
            torch.ones(4, dtype=torch.int64),
            r"outputs of shape \(3, 2\) for targets of shape \(4,\)",
        ),
        (torch.ones(3, 1), torch.zeros(3, dtype=torch.int64), "one class"),
        (torch.ones(3, 2), torch.tensor([0, 1, 2]), "targets from 0 to 2 for 2 classes"),
        (torch.ones(3, 2), torch.tensor([0, 1, -100]), "targets from -100"),
        ([1.0], torch.tensor([0]), "got list"),
        (torch.ones(0, 2), torch.zeros(0, dtype=torch.int64), "no targets"),
    ],
)
def test_accuracy_refuses_what_it_cannot_count(outputs: Any, targets: Any, says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        accuracy(outputs, targets)


# -- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"bits": 1}, "bits is 1; expected 2 to 16"),
        ({"bits": (4, 17)}, "bits is 17; expected 2 to 16"),
        ({"bits": 4.5}, r"bits is 4\.5"),
        ({"bits": "84"}, "bits is '84'"),
        ({"noise": (0.1, -0.1)}, r"noise is -0\.1; expected"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"flips": 1.5}, r"rate is 1\.5; expected"),
        ({"flips": -0.5}, r"flips is -0\.5; expected"),
        ({"flip_bits": 1}, "flip_bits is 1; expected 2 to 16"),
        ({"flip_bits": 1, "flips": ()}, "flip_bits is 1; expected 2 to 16"),
        ({"draws": 1}, "1; expected 2 to"),
        ({"confidence": 1.0}, "confidence is 1"),
        ({"precision": 0.0}, "precision is"),
        ({"per": "row"}, "per is 'row'"),
        ({"per": "row", "bits": (), "flips": ()}, "per is 'row'"),
        ({"grid": "odd"}, "grid is 'odd'"),
        ({"grid": "odd", "bits": (), "flips": ()}, "grid is 'odd'"),
        ({"step": "best"}, "step is 'best'"),
        ({"relative_to": "row"}, "relative_to is 'row'"),
        ({"relative_to": "row", "noise": None}, "relative_to is 'row'"),
        ({"kind": "drift"}, "kind is 'drift'"),
        ({"statistics": "new"}, "statistics is 'new'; expected one of 'as_trained', 'anew', 'both'"),
        ({"first_and_last": True}, "first_and_last is True"),
        ({"skip": "nothing"}, "skip has 'nothing'"),
        ({"fold": 1}, "fold is 1"),
        ({"seed": "a"}, "seed is 'a'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_measured(bad: dict[str, Any], says: str) -> None:
    model = convolutional()

    def never(outputs: object, targets: object) -> float:
        raise AssertionError("measured")

    with left_alone(model), pytest.raises((TypeError, ValueError), match=says):
        measure(model, images(), never, **{**LITTLE, **bad})


def test_bad_models_data_and_metrics_are_refused() -> None:
    model = convolutional()
    for data, says in ((3, "data is a int"), ([], "data has no batches"), (iter(images()), "an iterator")):
        with left_alone(model), pytest.raises((TypeError, ValueError), match=says):
            measure(model, data, **LITTLE)
    with pytest.raises(TypeError, match="model is a str"):
        measure("model", images(), **LITTLE)  # type: ignore[arg-type]
    with left_alone(model), pytest.raises(TypeError, match="metric is a str"):
        measure(model, images(), "accuracy", **LITTLE)  # type: ignore[arg-type]
    with (
        left_alone(model),
        pytest.raises(ValueError, match="noise 7 was not measured so; expected one of clean"),
    ):
        measure(model, images(), **LITTLE).find("noise", 7)
