"""torch_ssam.compare: statistics by hand, budgets counted, records that survive kills, reports that stand alone.

Runs are tiny; what a comparison finds is in docs/results.md, not asserted here.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from compare_cases import SMALL, _one_thread  # noqa: F401
from rich.console import Console

from torch_ssam import compare, robustness
from torch_ssam._common import images as shared_images
from torch_ssam._common.workers import Workers
from torch_ssam.compare import (
    METHODS,
    SAM,
    SETTINGS,
    Comparison,
    Data,
    Setting,
    _compare,
    _measures,
    _models,
    _plots,
    _tables,
)
from torch_ssam.compare import __main__ as cli
from torch_ssam.compare._records import Store, describe
from torch_ssam.compare._stepper import Stepper
from torch_ssam.compare._training import Run, load, step_seconds, train
from torch_ssam.compare._verdict import advice, direction, verdict

ROOT = Path(__file__).resolve().parents[2]

TINY = replace(
    SMALL,
    methods=("sgd", "sam", "ssam", "ssam-filter-split", "adamw", "adamw-noise"),
    robustness_seeds=1,
    lr_factors=(4.0,),
    epoch_factors=(0.5,),
    bits=(8, 3),
    curve_points=2,
)


# -- statistics --------------------------------------------------------------------------------------------------


def test_the_interval_is_students_by_hand() -> None:
    found = compare.estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.n) == (3.0, 5)
    # t_{0.975, 4} = 2.776445, s = sqrt(2.5)
    assert found.half_width == pytest.approx(2.776445105 * (2.5 / 5) ** 0.5, rel=1e-8)
    assert (found.low, found.high) == (3.0 - found.half_width, 3.0 + found.half_width)


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert compare.estimate([7.0]).text(1) == "7.0"
    assert compare.estimate([]).text(1) == ""
    assert direction(compare.estimate([7.0])) == "one seed, no interval"


def test_differences_are_paired_by_seed() -> None:
    # Differences 1, 2, 3 of seeds 0, 1, 2, in whatever order they come; seed 3 is in one of them only.
    gap = compare.paired({2: 13.0, 0: 1.0, 1: 7.0}, {0: 0.0, 1: 5.0, 2: 10.0, 3: 99.0})
    assert gap.mean == 2.0
    assert gap.half_width == pytest.approx(4.302652729911275 / 3**0.5)
    assert direction(gap) == "no difference shown"
    assert (
        direction(compare.estimate([1.0, 1.1])) == "above" if compare.estimate([1.0, 1.1]).low > 0 else True
    )


def test_calibration_error_by_hand() -> None:
    # Bin (0.8, 0.867]: two of confidence 0.85, one right: |1 - 1.7|. Bin (0.933, 1]: 1.0 right and 0.95 wrong: |1 - 1.95|.
    found = compare.calibration_error([0.85, 0.85, 1.0, 0.95], [True, False, True, False])
    assert found == pytest.approx((0.7 + 0.95) / 4)
    assert compare.calibration_error([1.0, 1.0], [True, True]) == 0.0


def test_a_confidence_on_the_edge_of_a_bin_is_in_the_lower_one() -> None:
    # 0.2 = 3/15 belongs to (2/15, 3/15]; in one bin with 0.15 the errors cancel, in two they would not.
    assert compare.calibration_error([0.2, 0.15], [False, False]) == pytest.approx(0.175)
    assert compare.calibration_error([0.0], [False]) == 0.0


# -- methods -----------------------------------------------------------------------------------------------------


def test_sam_takes_the_gradient_at_distance_rho_uphill() -> None:
    # L = |w|^2 / 2 + w_1: gradient g = w + e_1, so the second gradient is g + rho g / |g|.
    w = torch.nn.Parameter(torch.tensor([2.0, 4.0]))
    optimizer = SAM([w], lr=0.1, rho=0.5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = w.square().sum() / 2 + w[0]
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 12.0
    g = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(w.detach(), torch.tensor([2.0, 4.0]) - 0.1 * (g + 0.5 * g / 5))


def test_sam_with_rho_0_is_sgd() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(20, 5), torch.randint(0, 3, (20,))
    models = [torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)]
    models[1].load_state_dict(models[0].state_dict())
    options = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.01}
    optimizers = [
        SAM(models[0].parameters(), rho=0.0, **options),
        torch.optim.SGD(models[1].parameters(), **options),
    ]
    for _ in range(5):
        for model, optimizer in zip(models, optimizers, strict=True):

            def closure(model=model, optimizer=optimizer):
                optimizer.zero_grad()
                loss = cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert torch.equal(models[0].weight, models[1].weight)


def test_every_method_has_a_grid_of_the_same_size_in_every_setting() -> None:
    for setting in SETTINGS.values():
        for form in (setting, setting.short()):
            assert len({len(form.grid(method)) for method in METHODS.values()}) == 1


@pytest.mark.parametrize("name", list(METHODS))
def test_the_budget_of_gradients_is_counted_and_equal(name: str) -> None:
    method = METHODS[name]
    if method.optimizer == "sgd-analog":
        pytest.importorskip("aihwkit_lightning", reason="NOT TESTED here: aihwkit-lightning")
    run = Run("tune", TINY, method, TINY.grid(method)[-1], 0, method.epochs(TINY.epochs))
    result = train(run)
    assert result["gradients"] == TINY.epochs * TINY.train * method.budget
    assert not result["diverged"]
    assert result["validation score"] > 20  # ten classes: it has learnt


def test_without_noise_a_split_batch_is_sgd() -> None:
    """The control's gradient is the mean over the parts, so that without BatchNorm it is SGD's."""
    data = load(TINY, 0)
    models = [_models.make_model(_models.mlp, data, 0) for _ in range(2)]
    options = {"lr": 0.1, "weight_decay": 5e-4}
    for name, model in zip(("sgd", "sgd-split"), models, strict=True):
        stepper = Stepper(METHODS[name], model, options, 5, 0)
        losses = [
            float(stepper.step(lambda x, y, m=model: data.loss(m(x), y), *(t[:49] for t in data.train)))
            for _ in range(4)
        ]
        stepper.finish()
        assert losses[-1] < losses[0]
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_noise_grows_eleven_fold_over_training() -> None:
    data = load(TINY, 0)
    model = _models.make_model(_models.mlp, data, 0)
    stepper = Stepper(
        METHODS["ssam-filter-split"], model, {"lr": 0.1, "noise_std": 0.003, "weight_decay": 0.0}, 20, 0
    )
    seen = []
    for _ in range(20):
        seen.append(stepper.optimizer.param_groups[0]["noise_std"])
        stepper.step(lambda x, y: data.loss(model(x), y), data.train[0][:8], data.train[1][:8])
    assert seen[0] == 0.003
    assert seen[-1] == pytest.approx(0.033)
    assert stepper.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


def test_a_run_depends_on_its_seed_alone() -> None:
    run = Run("test", TINY, METHODS["ssam"], TINY.grid(METHODS["ssam"])[0], 3, 2)
    first, again, other = train(run), train(run), train(replace(run, seed=4))
    # Not to the last bit: MKL's sums depend on where in memory a tensor lies.
    assert first["loss"] == pytest.approx(again["loss"], rel=1e-5)
    assert first["sharpness"] == pytest.approx(again["sharpness"], rel=0.05, abs=1e-4)
    assert abs(first["loss"] - other["loss"]) > 1e-5 * first["loss"]
    assert [point["epoch"] for point in first["curve"]] == [1, 2]
    assert first["curve"][-1]["validation score"] == first["validation score"]


def test_a_run_that_diverges_ends_and_says_so() -> None:
    run = Run("test", TINY, METHODS["sgd"], {"lr": 1e6, "weight_decay": 0.0}, 0, 4)
    result = train(run)
    assert result["diverged"] is True
    assert result["sharpness"] is None
    assert result["gradients"] < 4 * TINY.train
    json.dumps(result, allow_nan=False)


def test_the_test_split_is_not_looked_at_in_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = _measures.evaluate

    def watched(model, data, pair):
        seen.append(pair is data.test)
        return original(model, data, pair)

    monkeypatch.setattr("torch_ssam.compare._training.evaluate", watched)
    run = Run("tune", TINY, METHODS["sgd"], TINY.grid(METHODS["sgd"])[0], 0, 1)
    assert "score" not in train(run)
    assert seen
    assert not any(seen)
    assert "score" in train(replace(run, purpose="robust"))
    assert any(seen)


def test_the_cost_of_a_step_is_measured_for_every_method() -> None:
    seconds = step_seconds(TINY, repeats=2)
    assert set(seconds) == set(TINY.methods)
    assert all(value > 0 for value in seconds.values())


# -- measures ----------------------------------------------------------------------------------------------------


def test_rounding_leaves_2_to_the_bits_values_and_comes_off_again() -> None:
    model = torch.nn.Linear(40, 50)
    before = model.weight.detach().clone()
    with robustness.quantized(model, 3, per="tensor"):
        values = model.weight.unique()
        assert len(values) <= 7
        step = before.abs().max() / 3
        assert float((model.weight.detach() - before).abs().max()) <= float(step) / 2 + 1e-6
        assert float(model.weight.detach().abs().max()) == float(before.abs().max())
    assert torch.equal(model.weight, before)


def test_weights_that_are_not_finite_have_no_rounded_score() -> None:
    pair = (torch.randn(4, 2), torch.tensor([0, 1, 1, 0]))
    data = Data("known", pair, pair, pair, 2)
    model = torch.nn.Linear(2, 2)
    assert _measures.rounded_score(model, data, 8) is not None
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    assert _measures.rounded_score(model, data, 8) is None
    assert _measures.rounded_score(torch.nn.Identity(), data, 8) is None


def test_scores_of_a_known_classifier_and_a_known_regression() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    pair = (logits, torch.tensor([0, 1, 1, 0]))
    data = Data("known", pair, pair, pair, 2)
    found = _measures.evaluate(torch.nn.Identity(), data, pair)
    assert found["score"] == 75.0
    assert found["loss"] == pytest.approx(float(cross_entropy(*pair)))
    y = torch.tensor([1.0, 2.0, 3.0, 6.0])
    pair = (torch.tensor([[1.0], [2.0], [3.0], [4.0]]), y)
    found = _measures.evaluate(torch.nn.Identity(), Data("numbers", pair, pair, pair, 1), pair)
    assert found["score"] == pytest.approx(100 * (1 - 4 / 14))
    assert found["loss"] == pytest.approx(1.0)


def test_batchnorm_statistics_are_those_of_the_clean_weights() -> None:
    setting = replace(TINY, model="resnet", train=60)
    data = load(setting, 0)
    model = _models.make_model(setting.model_factory, data, 0)
    _measures.refresh_statistics(model, data)
    first = model[0](data.train[0])
    torch.testing.assert_close(model[1].running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


# -- data and models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SETTINGS))
def test_every_setting_has_data_and_a_model_that_fit(name: str) -> None:
    setting = replace(SETTINGS[name], train=60, validation=40)
    data = setting.data_factory(setting, 0)
    model = _models.make_model(setting.model_factory, data, 0)
    x, y = (t[:4] for t in data.train)
    loss = data.loss(model(x), y)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in model.parameters())
    assert (len(data.train[1]), len(data.validation[1])) == (60, 40)
    assert (data.correct is not None) == (setting.wrong_labels > 0)


def test_a_fine_tuned_network_starts_from_what_its_seed_was_pretrained_to() -> None:
    setting = replace(SETTINGS["deploy-finetuned"], train=60, validation=40)
    data = setting.data_factory(setting, 0)
    assert data.pretraining is not None
    x, y = data.pretraining
    assert 0 < len(x) <= 300
    assert set(y.tolist()) == set(range(5))  # of ten classes
    seen = {image.numpy().tobytes() for pair in (data.train, data.validation, data.test) for image in pair[0]}
    assert not any(image.numpy().tobytes() in seen for image in x)
    one, same, other = (
        _models.make_model(setting.model_factory, data, seed).state_dict() for seed in (0, 0, 1)
    )
    fresh = _models.make_model(_models.vit, data, 0).state_dict()
    for name, value in one.items():
        assert torch.equal(value, same[name])
        assert torch.equal(value, fresh[name]) == name.startswith("head.")
    assert not torch.equal(one["embed.convolution.weight"], other["embed.convolution.weight"])


def test_no_test_example_is_in_training_or_validation() -> None:
    for name in ("digits", "breast-cancer", "diabetes", "text"):
        setting = replace(TINY, data=name, train=300, validation=60, model="linear")
        data = setting.data_factory(setting, 0)
        parts = [
            {row.numpy().tobytes() for row in part[0]} for part in (data.train, data.validation, data.test)
        ]
        if name != "text":  # source files share lines
            assert not parts[0] & parts[1], name
            assert not parts[2] & (parts[0] | parts[1]), name


def test_wrong_labels_are_wrong_in_the_share_asked_for_and_differ_by_seed() -> None:
    correct = np.random.default_rng(0).integers(0, 10, 3000)
    first, again, other = (compare.wrong_labels(correct, 10, 0.3, seed) for seed in (0, 0, 1))
    assert abs((first != correct).mean() - 0.3) < 4 * (0.3 * 0.7 / 3000) ** 0.5  # and the seed is fixed
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first.min(), first.max()) == (0, 9)


def test_without_fashion_mnist_digits_come_with_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shared_images, "FASHION_MNIST", tmp_path / "absent")
    monkeypatch.setattr(
        "torch_ssam.compare._data._images", lambda name, folder: shared_images.load_images(folder)
    )
    setting = replace(SETTINGS["fashion-mlp"], train=60, validation=40)
    data = setting.data_factory(setting, 0)
    assert data.name == "scikit-learn's digits"
    assert "Fashion-MNIST was asked for and is not installed" in data.note


def test_the_causal_transformer_does_not_look_ahead() -> None:
    setting = replace(SETTINGS["text-transformer"], train=20, validation=10)
    data = setting.data_factory(setting, 0)
    model = _models.make_model(setting.model_factory, data, 0)
    x = data.train[0][:2].clone()
    before = model(x)
    x[:, 40:] = 1
    after = model(x)
    torch.testing.assert_close(before[:, :40], after[:, :40])
    assert not torch.allclose(before[:, 40:], after[:, 40:])


def test_targets_of_text_are_the_next_characters() -> None:
    setting = replace(SETTINGS["text-transformer"], train=20, validation=10)
    data = setting.data_factory(setting, 0)
    x, y = data.train
    assert torch.equal(x[:, 1:], y[:, :-1])


# -- the whole, records, resuming --------------------------------------------------------------------------------


def outcome(comparison: Comparison) -> list[dict[str, object]]:
    """All rows without times."""
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in comparison.rows()]


def records(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.json")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    out = tmp_path_factory.mktemp("whole")
    calls: list[tuple[int, int]] = []
    (found,) = compare.compare(TINY, out=out, workers=1, progress=lambda d, n: calls.append((d, n)))
    assert calls[0][0] == 0
    assert calls[-1][0] == calls[-1][1]
    return out, found


def test_the_whole_comparison_has_every_run(whole: tuple[Path, Comparison]) -> None:
    _, found = whole
    methods = len(TINY.methods)
    parts: dict[str, int] = {}
    for row in found.rows():
        parts[row["part"]] = parts.get(row["part"], 0) + 1
    assert parts == {
        "tuning": 2 * methods,
        "equal gradients": 2 * methods,
        "equal time": 2 * methods,
        "lr x 4": methods,
        "epochs x 0.5": methods,
    }
    for method in found.methods:
        grid = [(options, result["validation score"]) for options, result in found.grid(method)]  # type: ignore[index]
        assert found.chosen(method) == max(grid, key=lambda point: point[1])[0]
        assert found.estimate(method).n == 2
        assert found.estimate(method, "quantised 3").n == 2
        assert set(found.values(method, "gradients").values()) == {4.0 * 200}
        tried = found.robust_run(method, 0, "lr", 4.0)
        assert tried is not None
        assert tried.options["lr"] == 4 * found.chosen(method)["lr"]  # type: ignore[index]
    assert found.difference(found.method("sgd"), found.method("sgd")).mean == 0.0


def test_a_second_call_runs_nothing(whole: tuple[Path, Comparison], monkeypatch: pytest.MonkeyPatch) -> None:
    out, found = whole
    before = records(out)

    def never(job: object) -> None:
        raise AssertionError(f"ran again: {job}")

    monkeypatch.setattr(_compare, "execute", never)
    (again,) = compare.compare(TINY, out=out, workers=1)
    assert records(out) == before
    assert outcome(again) == outcome(found)


@pytest.mark.parametrize(
    "change",
    [{"train": 190}, {"wrong_labels": 0.2}, {"batch": 40}, {"epochs": 6}, {"model": "linear"}],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_setting_is_not_taken_for_the_old_one(
    whole: tuple[Path, Comparison], change: dict[str, object]
) -> None:
    out, _ = whole
    changed = Comparison(replace(TINY, **change), Store(out / "tiny"))  # type: ignore[arg-type]
    for method in changed.methods:
        assert all(result is None for _, result in changed.grid(method))


def test_more_seeds_and_a_larger_grid_make_the_new_runs_only(whole: tuple[Path, Comparison]) -> None:
    out, found = whole
    more = Comparison(replace(TINY, seeds=3), Store(out / "tiny"))
    seeds = {job.run.seed for job in more.jobs("test") if job.run is not None}
    assert seeds == {2}
    assert found.jobs("tuning") == found.jobs("test") == found.jobs("robustness") == []
    larger = Comparison(replace(TINY, knob_values=2), Store(out / "tiny"))
    assert len(larger.jobs("tuning")) == 2 * len(TINY.methods)
    assert larger.chosen(larger.method("sgd")) is None  # not before the whole grid has run


def test_a_damaged_record_is_named_and_made_again(whole: tuple[Path, Comparison], tmp_path: Path) -> None:
    _, found = whole
    run = found.tuning_runs(found.method("sgd"))[0]
    store = Store(tmp_path)
    store.write("label", describe(run), {"validation score": 1.0})
    path = store.path("label", describe(run))
    assert store.read("label", describe(run)) == {"validation score": 1.0}
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="damaged"):
        assert store.read("label", describe(run)) is None
    path.write_text(json.dumps({"description": {"purpose": "other"}, "result": {}}))
    with pytest.warns(UserWarning, match="record of another run"):
        assert store.read("label", describe(run)) is None


def test_a_record_that_cannot_be_written_whole_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write("label", {"a": 1}, {"b": 2})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.read("label", {"a": 1}) is None


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from dataclasses import replace
from test_compare import KILLED
from torch_ssam import compare
if __name__ == "__main__":
    compare.compare(KILLED, out={out!r}, workers=2)
"""

KILLED = replace(TINY, name="killed", methods=("sgd", "ssam"), epochs=6, robustness_seeds=0, seeds=2)


@pytest.mark.slow
def test_a_killed_comparison_goes_on_where_it_was_and_leaves_no_workers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), out=str(out)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment)
    deadline = time.monotonic() + 300
    while len(records(out)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    children = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = records(out)
    assert len(before) >= 3
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in children)
    for content, _ in records(out).values():
        json.loads(content)
    (resumed,) = compare.compare(KILLED, out=out, workers=1)
    after = records(out)
    assert {name: after[name] for name in before} == before
    (straight,) = compare.compare(KILLED, out=tmp_path / "straight", workers=1)
    for method in straight.methods:
        expected = straight.values(method, "loss")
        assert resumed.values(method, "loss") == pytest.approx(expected, rel=1e-2)
        assert resumed.values(method, "gradients") == {0: 1200.0, 1: 1200.0}


@pytest.mark.slow
def test_the_script_of_the_docs_runs_in_worker_processes(tmp_path: Path) -> None:
    """Its functions are the main module's, which has another name in the workers."""
    page = (ROOT / "docs" / "compare.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page.split("## From Python")[1], re.DOTALL)
    data = """
import torch
torch.manual_seed(0)
x, x_validation, x_test = (torch.randn(64, 6) for _ in range(3))
y, y_validation, y_test = (torch.randint(0, 10, (64,)) for _ in range(3))
"""
    changed = block.replace("epochs=20", "epochs=1, seeds=2, batch=32").replace(
        'out="out/mine"', 'out="out/mine", workers=2'
    )
    assert changed.count("workers=2") == 1
    assert "seeds=2" in changed
    (tmp_path / "script.py").write_text(data + changed)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out" / "mine" / "report.html").exists()


def _children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def test_an_exception_in_a_worker_is_passed_on() -> None:
    with Workers(2) as pool, pytest.raises(ValueError, match="invalid literal"):
        list(pool.results(int, ["1", "one"]))


# -- the report --------------------------------------------------------------------------------------------------


def test_the_report_stands_alone_and_the_csv_has_every_run(whole: tuple[Path, Comparison]) -> None:
    out, found = whole
    path = compare.write_report([found], out)
    text = path.read_text()
    assert re.findall(r'(?:src|href)="([^"#]{1,12})', text) == ["data:image/p"] * 3
    assert "<script" not in text
    assert "http" not in re.sub(r'data:image/png;base64,[^"]*', "", text)
    for method in found.methods:
        assert method.title in text
        assert found.estimate(method).text(2) in text
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.rows())
    assert {row["method"] for row in rows} == set(TINY.methods)
    markdown = (out / "report.md").read_text()
    assert all(f"| {method.title} |" in markdown for method in found.methods)
    for name in ("scores", "curves", "robustness"):
        assert (out / "tiny" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.rglob(".*"))


def test_a_report_of_nothing_is_a_report_and_says_so(tmp_path: Path) -> None:
    nothing = Comparison(TINY, Store(tmp_path / "tiny"))
    assert "Not finished" in compare.write_report([nothing], tmp_path).read_text()


def test_plots_tables_and_columns_without_data_are_left_out(
    whole: tuple[Path, Comparison], tmp_path: Path
) -> None:
    nothing = compare.write_report([Comparison(TINY, Store(tmp_path / "tiny"))], tmp_path).read_text()
    assert "<img" not in nothing
    assert re.findall("<h3>(.*?)</h3>", nothing) == [
        "All settings: test score, mean and 95% interval",
        "Equal budget of gradients",
        "Tuning: validation score",
    ]
    assert not list(tmp_path.rglob("*.png"))

    out, _ = whole
    some = Comparison(replace(TINY, methods=("sgd", "ssam"), robustness_seeds=0), Store(out / "tiny"))
    figures = _plots.all_plots(some)
    assert [axis.get_xlabel() for axis in figures["robustness"].axes] == [
        "bits a weight, rounded after training"
    ]
    tables = [table.markdown() for table in _tables.all_tables(some)]
    assert "minus SAM" not in "".join(tables)
    (robustness,) = (text for text in tables if text.startswith("**Robustness"))
    assert "|  | 8 bits | 3 bits |" in robustness
    overview = _tables.overview_table([some]).markdown().splitlines()[2]
    assert overview == "|  | SGD | S-SAM by validation | its score | minus SGD |"


def test_tables_are_printed_before_the_report_is_written(
    whole: tuple[Path, Comparison], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError("no space left")

    out, found = whole
    monkeypatch.setattr(cli, "chosen_settings", lambda options: [TINY])
    monkeypatch.setattr(cli, "write_report", fails)
    assert cli.main(["--report", "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert found.estimate(found.method("ssam")).text(2) in printed.out
    assert printed.err == "compare: no space left\n"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_options_chosen_are_never_cut_off(whole: tuple[Path, Comparison], width: int) -> None:
    _, found = whole
    shown = io.StringIO()
    _tables.main_table(found).show(Console(file=shown, width=width))
    cells = [line.split("│")[-2].strip() for line in shown.getvalue().splitlines() if line.startswith("│")]
    for method in found.methods:
        chosen = _tables.options_text(found.chosen(method))
        assert chosen.replace(" ", "") in "".join(cells).replace(" ", "")
    assert "…" not in shown.getvalue()


def test_the_verdict_is_computed_from_the_numbers(
    whole: tuple[Path, Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, found = whole
    scores = {"sgd": {0: 80.0, 1: 81.0}, "sam": {0: 82.0, 1: 84.0}}
    scores |= {"adamw": {0: 70.0, 1: 71.0}, "adamw-noise": {0: 70.0, 1: 71.0}}
    monkeypatch.setattr(
        found, "validation_score", lambda m, by="": {"ssam": 3.0, "sgd": 2.0}.get(m.name, 1.0)
    )
    for gain, words in (
        (1.5, "Use SSAM(params, lr="),
        (0.0, "Stay with SGD(params, lr="),
        (-1.0, "is worse, -1.00 ± 0.00"),
    ):

        def values(method, measure, arm="gradients", gain=gain):
            return scores.get(method.name, {0: 80.0 + gain, 1: 81.0 + gain})

        monkeypatch.setattr(found, "values", values)
        lines = verdict(found)
        assert lines[0] == advice(found)
        assert f"{gain:+.2f} ± 0.00" in lines[0]
        assert words in lines[0]
        assert f"{gain:+.2f} ± 0.00" in lines[1]
        assert "no difference shown" in lines[2] or "below" in lines[2]


# -- the user's own ----------------------------------------------------------------------------------------------


def own_data(setting: Setting, seed: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(180, 5, generator=generator)
    y = (x.sum(1) > 0).long()
    return Data("own", (x[:100], y[:100]), (x[100:140], y[100:140]), (x[140:], y[140:]), 2)


def own_model(data: Data) -> torch.nn.Module:
    return torch.nn.Linear(data.features, data.outputs)


OWN = replace(TINY, name="own", methods=("sgd", "ssam"), robustness_seeds=0)


def test_models_and_data_of_ones_own(tmp_path: Path) -> None:
    setting = replace(OWN, data=own_data, model=own_model, rates=(0.3,), adam_rates=(0.1,))
    (found,) = compare.compare(setting, out=tmp_path, workers=1)
    assert found.estimate(found.method("ssam")).mean > 80
    assert found.rows()[0]["data"] == "own"


def test_a_method_of_ones_own(tmp_path: Path) -> None:
    own = compare.Method("mine", "Mine", "ssam", "noise_std", (0.02, 0.04, 0.08), {"scale": "tensor"})
    setting = replace(
        OWN, data=own_data, model=own_model, rates=[0.3], adam_rates=[0.1], methods=["sgd", own]
    )
    (found,) = compare.compare(setting, out=tmp_path, workers=1, stages=("tuning",))
    assert found.chosen(own) == {"lr": 0.3, "noise_std": 0.02, "weight_decay": 5e-4}
    assert found.best_ssam() is own


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Setting("a", data="nonsense"), "data is 'nonsense'; expected one of fashion-mnist"),
        (lambda: Setting("a", model="os:nothing"), "'os:nothing' cannot be imported"),
        (lambda: Setting("a", model="os:sep"), "'os:sep' is a str; expected a function"),
        (lambda: Setting("a/b"), "name is 'a/b'; expected letters"),
        (lambda: Setting("a", wrong_labels=1.5), "wrong_labels is 1.5; expected 0 to 1"),
        (lambda: Setting("a", epochs=0), "epochs is 0; expected 1"),
        (lambda: Setting("a", rates=(0.1,)), "expected as many"),
        (lambda: Setting("a", weight_decay=-1.0), "weight_decay is -1"),
        (lambda: Setting("a", methods=("ssam",)), "expected 'sgd' among them"),
        (lambda: Setting("a", methods=("sgd", "adam")), "method is 'adam'; expected one of 'sgd'"),
        (lambda: Setting("a", methods=("sgd", "sgd")), "and each once"),
        (lambda: compare.Method("a", "A", "adam", "rho", (1, 2, 3)), "optimizer is 'adam'; expected one of 'sgd'"),
        (lambda: compare.Method("a", "A", "sgd", "lr", (1, 2, 3)), "knob is 'lr'; expected one of"),
        (lambda: compare.Method("a", "A", "sgd", "rho", (1, 2)), "expected three"),
        (lambda: Setting("a", bits=(1,)), "bits is 1; expected 2 to 16"),
        (lambda: compare.compare("nothing"), "setting is 'nothing'; expected one of 'fashion-resnet'"),
        (lambda: compare.compare([TINY, TINY]), "each name once"),
        (lambda: compare.compare(3), "settings is a int"),
        (lambda: compare.compare(TINY, stages=("testing",)), "stage is 'testing'"),
        (lambda: compare.compare(TINY, workers=0), "workers is 0"),
        (lambda: load(replace(TINY, data=lambda setting, seed: 3), 0), "gave int; expected torch_ssam.compare.Data"),
        (lambda: _models.make_model(lambda data: 3, load(TINY, 0), 0), "gave int; expected a torch.nn.Module"),  # type: ignore[arg-type,return-value]
        (lambda: _models.cnn(own_data(TINY, 0)), "model 'cnn' needs images"),
        (lambda: _models.vit_pretrained(load(TINY, 0)), "needs data with another task to pretrain on"),
        (lambda: load(replace(TINY, data="fashion-mnist-pretrained", train=10**6, validation=10**6), 0), "expected some to"),
        (lambda: _models.transformer(own_data(TINY, 0)), "needs int64 tokens"),
        (lambda: load(replace(TINY, data="diabetes", wrong_labels=0.3), 0), "has numbers to predict"),
        (lambda: load(replace(TINY, data="text", train=10**7), 0), "too little source code"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError, shared_images.DataError), match=re.escape(message)):
        make()


# -- the command line --------------------------------------------------------------------------------------------

FAST = [
    "--train",
    "60",
    "--validation",
    "40",
    "--epochs",
    "2",
    "--batch",
    "30",
    "--rates",
    "0.1",
    "--adam-rates",
    "0.003",
]
FEW = [
    "--knob-values",
    "1",
    "--methods",
    "sgd,ssam",
    "--seeds",
    "2",
    "--robustness-seeds",
    "0",
    "--workers",
    "1",
]


def test_the_command_line_runs_reports_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [
        "--data",
        "digits",
        "--model",
        "test_compare:own_model_of_images",
        *FAST,
        *FEW,
        "--out",
        str(out),
    ]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "S-SAM isotropic" in printed
    assert "digits-test_compare.own_model_of_images" in printed
    assert (out / "report.html").is_file()
    before = records(out)
    assert cli.main([*arguments, "--report", "--quiet"]) == 0
    assert records(out) == before
    assert capsys.readouterr().out == ""


def own_model_of_images(data: Data) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), own_model(data))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no setting was named; expected one of fashion-resnet"),
        (["nothing"], "setting 'nothing' is not known"),
        (["digits-mlp", "--data", "digits"], "give one or the other"),
        (["--data", "digits"], "--data and --model go together"),
        (["digits-mlp", "--name", "mine"], "--name is for"),
        (["digits-mlp", "--epochs", "0"], "epochs is 0; expected 1"),
        (["digits-mlp", "--methods", "ssam"], "expected 'sgd' among them"),
        (["digits-mlp", "--workers", "0"], "workers is 0"),
        (["fashion-mlp", "--folder", "nowhere"], "nowhere is no folder"),
        (["--data", "digits", "--model", "no_such_module:f"], "cannot be imported"),
        (["diabetes-mlp", "--wrong-labels", "0.3"], "has numbers to predict"),
        (["digits-mlp", "--stages", "test"], "Run stage 'tuning' first"),
    ],
)
def test_the_command_line_ends_with_one_line_where_it_makes_no_sense(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("compare: ")
    assert message in printed
    assert printed.count("\n") == 1


def test_a_note_on_the_data_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def noted(setting: Setting, seed: int) -> Data:
        return replace(own_data(setting, seed), note="these are other data")

    setting = replace(OWN, data=noted, model=own_model)
    monkeypatch.setattr(cli, "chosen_settings", lambda options: [setting])
    assert cli.main(["--out", str(tmp_path), "--report", "--quiet"]) == 0
    assert "own: these are other data" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "compare", stopped)
    assert cli.main(["digits-mlp", "--quiet", "--out", str(tmp_path)]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_the_short_form_is_of_all_settings_and_small() -> None:
    settings = cli.chosen_settings(cli.parser().parse_args(["--short"]))
    assert [setting.name for setting in settings] == list(SETTINGS)
    assert all(setting.train <= 1200 and setting.seeds == 3 for setting in settings)
