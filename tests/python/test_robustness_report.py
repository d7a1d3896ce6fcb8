"""Tables, plots, JSON and pages of measurements and comparisons; paired differences by hand; the command line."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from robustness_models import convolutional, images, left_alone
from torch import nn

from torch_ssam import robustness
from torch_ssam._common.html_page import Table
from torch_ssam.robustness import Comparison, Robustness, compare, measure, report
from torch_ssam.robustness.__main__ import main

LITTLE: dict[str, Any] = {"bits": (4, 2), "noise": 0.2, "flips": 0.05, "draws": 3}


@pytest.fixture(scope="module")
def found() -> Robustness:
    return measure(convolutional(), images(), first_and_last="both", **LITTLE)


def other() -> nn.Sequential:
    model = convolutional()
    with torch.no_grad():
        model[6].weight.mul_(-1)
    return model


@pytest.fixture(scope="module")
def both() -> Comparison:
    return compare({"one": convolutional(), "two": other()}, images(), **LITTLE)


# -- JSON --------------------------------------------------------------------------------------------------------


def test_json_gives_the_same_measurement_back(found: Robustness, tmp_path: Path) -> None:
    text = found.to_json(tmp_path / "one.json")
    assert (tmp_path / "one.json").read_text() == text
    for source in (text, tmp_path / "one.json", str(tmp_path / "one.json")):
        again = Robustness.from_json(source)
        assert again.points == found.points
        assert again.notes == found.notes
        assert again.to_json() == text
        assert str(again) == str(found)
    json.loads(text, parse_constant=pytest.fail)  # no NaN outside of what JSON allows


def test_json_keeps_what_is_not_finite() -> None:
    values = iter([1.0, 1.0, float("nan"), float("inf"), float("-inf"), 2.0])
    odd = measure(
        convolutional(), None, lambda model: next(values), bits=(8, 4), noise=0.1, flips=(), draws=3
    )
    again = Robustness.from_json(odd.to_json())
    assert again.find("bits", 8).values == (1.0,)
    assert math.isnan(again.find("bits", 4).mean)
    assert again.find("noise", 0.1).values == (float("inf"), float("-inf"), 2.0)
    assert math.isnan(again.find("noise", 0.1).mean)
    assert again.to_json() == odd.to_json()


def test_json_of_a_comparison(both: Comparison, tmp_path: Path) -> None:
    both.to_json(tmp_path / "both.json")
    again = Comparison.from_json(tmp_path / "both.json")
    assert {name: r.points for name, r in again.results.items()} == {
        n: r.points for n, r in both.results.items()
    }
    assert str(again) == str(both)


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"format": "torch_ssam.robustness", "version": 9}', '{"format": 1, "version": 1}']
)
def test_json_of_something_else_is_refused(text: str) -> None:
    for kind in (Robustness, Comparison):
        with pytest.raises(ValueError, match="expected what to_json"):
            kind.from_json(text)


def test_json_with_a_damaged_point_is_refused(found: Robustness, both: Comparison, tmp_path: Path) -> None:
    record = json.loads(found.to_json())
    for name, value in (("kind", "drift"), ("mean", None), ("values", 3), ("statistics", "new")):
        damaged = copy.deepcopy(record)
        damaged["points"][1][name] = value
        with pytest.raises(ValueError, match="is no measurement of robustness"):
            Robustness.from_json(json.dumps(damaged))
    with pytest.raises(ValueError, match="is no measurement"):
        Robustness.from_json(both.to_json())
    with pytest.raises(FileNotFoundError):
        Robustness.from_json(tmp_path / "none.json")


# -- tables and plots --------------------------------------------------------------------------------------------


def test_the_table_has_a_row_a_disturbance_and_says_the_levels() -> None:
    found = measure(convolutional(), images(), **LITTLE)
    table = found.table()
    assert [row[0] for row in table.rows] == [
        "clean",
        "4 bits, 15 levels",
        "2 bits, 3 levels",
        "noise 0.2",
        "flips 0.05, 8 bits",
    ]
    assert table.header == ["", "accuracy", "minus clean"]
    for row, point in zip(table.rows, found.points, strict=True):
        assert row[1].startswith(f"{point.mean:.2f}")
        assert ("+-" in row[1]) == (point.half_width is not None)
        if point.kind != "clean":
            assert float(row[2]) == pytest.approx(point.mean - found.clean, abs=0.006)
    full = measure(convolutional(), images(), grid="full", **LITTLE)
    assert full.table().rows[2][0] == "2 bits, 4 levels"
    assert "grid full" in str(full)


def test_the_table_has_a_column_a_variant(found: Robustness) -> None:
    table = found.table()
    assert table.header == ["", "accuracy", "first and last kept"]
    assert all(len(row) == 3 for row in table.rows)
    assert len(table.rows) == 5


def test_small_metrics_keep_their_digits() -> None:
    found = measure(convolutional(), images(), lambda o, t: o.double().abs().mean() / 100, **LITTLE)
    assert found.clean < 0.1
    assert found.table().rows[0][1] == f"{found.clean:.4f}"


def test_text_of_a_table_lines_up() -> None:
    table = Table("title", ["", "wide column"], [["a", "1"], ["long name", "22"]], "note")
    assert (
        table.text() == "title\n           wide column\na                    1\nlong name           22\nnote"
    )


def test_the_plot_has_a_panel_a_kind_and_a_curve_a_variant(found: Robustness) -> None:
    pytest.importorskip("matplotlib")
    figure = found.plot()
    assert [axis.get_xlabel() for axis in figure.axes] == [
        "bits a weight",
        "standard deviation of the noise",
        "probability that a bit flips",
    ]
    for axis in figure.axes:
        assert len(axis.containers) == 2
    only = measure(convolutional(), images(), bits=3, noise=None, flips=None)
    assert len(only.plot().axes) == 1
    nothing = measure(convolutional(), images(), bits=None, noise=None, flips=None)
    assert [p.kind for p in nothing.points] == ["clean"]
    nothing.plot()


def test_a_report_without_disturbances_has_no_plot(tmp_path: Path) -> None:
    clean = measure(convolutional(), images(), bits=(), noise=(), flips=())
    clean.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "robustness.txt",
        "robustness.json",
        "robustness.html",
    }
    assert "<img" not in (tmp_path / "robustness.html").read_text()


def test_save_writes_text_json_plot_and_page(found: Robustness, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found.save(tmp_path / "new" / "folder")
    files = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert files == {"robustness.txt", "robustness.json", "robustness.png", "robustness.html"}
    page = (tmp_path / "new" / "folder" / "robustness.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "data:image/png;base64," in page
    assert "2 bits, 3 levels" in page
    assert "<script" not in page
    assert (tmp_path / "new" / "folder" / "robustness.txt").read_text() == f"{found}\n"


# -- comparisons -------------------------------------------------------------------------------------------------


def test_models_are_measured_as_alone_and_differences_are_paired(both: Comparison) -> None:
    alone = measure(other(), images(), **LITTLE)
    assert both.results["two"].points == alone.points
    first = both.results["one"]
    point = first.find("noise", 0.2)
    gaps = np.subtract(alone.find("noise", 0.2).values, point.values)
    mean, half = both.difference("two", point) or (None, None)
    assert mean == pytest.approx(gaps.mean())
    assert half == pytest.approx(
        4.302652730 * gaps.std(ddof=1) / math.sqrt(3)
    )  # Student, 2 degrees of freedom
    assert both.difference("two", first.find("bits", 2)) == (
        alone.find("bits", 2).mean - first.find("bits", 2).mean,
        None,
    )
    table, differences = both.tables()
    assert table.header == ["", "one", "two"]
    assert differences.header == ["", "two"]
    assert len(table.rows) == len(differences.rows) == 5


def test_state_dicts_and_files_are_loaded_into_the_model(both: Comparison, tmp_path: Path) -> None:
    torch.save({"state_dict": other().state_dict()}, tmp_path / "two.pt")
    model = convolutional()
    with left_alone(model):
        found = compare(
            {"one": model.state_dict(), "two": tmp_path / "two.pt"}, images(), model=model, **LITTLE
        )
    assert {name: r.points for name, r in found.results.items()} == {
        n: r.points for n, r in both.results.items()
    }


def test_checkpoints_that_cannot_be_measured_are_refused() -> None:
    model = convolutional()
    for bad, says in (
        ({}, "checkpoints is empty"),
        ([model], "checkpoints is a list"),
        ({"a": model, "b": model.state_dict()}, "'b' is a OrderedDict without a model"),
        ({"a": "nowhere.pt"}, "'a' is a str without a model"),
    ):
        with left_alone(model), pytest.raises((TypeError, ValueError), match=says):
            compare(bad, images(), **LITTLE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is no file"):
        compare({"a": "nowhere.pt"}, images(), model=model, **LITTLE)
    with pytest.raises(ValueError, match="does not fit the model"):
        compare({"a": {"weight": torch.ones(1)}}, images(), model=model, **LITTLE)
    with pytest.raises(ValueError, match="seed is None"):
        compare({"a": model}, images(), seed=None, **LITTLE)


def test_measurements_of_different_runs_stand_side_by_side(both: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = {}
    for name, result in both.results.items():
        paths[name] = tmp_path / f"{name}.json"
        result.to_json(paths[name])
    page = report(paths, tmp_path / "report")
    assert page == tmp_path / "report" / "robustness.html"
    assert (tmp_path / "report" / "robustness.txt").read_text() == f"{both}\n"
    report(both, tmp_path / "again")
    assert (tmp_path / "again" / "robustness.json").read_text() == both.to_json()
    report(both.results["one"], tmp_path / "single")


def test_points_that_only_one_has_leave_a_gap() -> None:
    one = measure(convolutional(), images(), bits=(4, 3), noise=None, flips=0.1, draws=2)
    two = measure(other(), images(), bits=(4, 2), noise=None, flips=0.1, draws=3)
    table, differences = Comparison({"one": one, "two": two}).tables()
    cells = {row[0]: row[1:] for row in table.rows}
    gaps = {row[0]: row[1:] for row in differences.rows}
    assert cells["3 bits, 7 levels"][1] == ""
    assert cells["2 bits, 3 levels"][0] == ""
    assert gaps["3 bits, 7 levels"] == gaps["2 bits, 3 levels"] == gaps["flips 0.1, 8 bits"] == [""]
    assert gaps["4 bits, 15 levels"] != [""]


def test_reports_of_something_else_are_refused(found: Robustness, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="results is a list"):
        report([found], tmp_path)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="results is a dict of 0"):
        report({}, tmp_path)
    with pytest.raises(ValueError, match="several metrics"):
        report(
            {"a": found, "b": measure(convolutional(), None, lambda m: 1.0, bits=2, noise=(), flips=())},
            tmp_path,
        )
    assert list(tmp_path.iterdir()) == []


# -- the command line --------------------------------------------------------------------------------------------

MODULE = """
from robustness_models import convolutional, images
def make(): return convolutional(), images()
def whole(): return convolutional(), images(), lambda o, t: o.mean(), [x for x, _ in images()]
def short(): return (convolutional(),)
def wrong(): return "model", images()
def single(): return convolutional()
def interrupted():
    def metric(outputs, targets): raise KeyboardInterrupt
    return convolutional(), images(), metric
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "robustness_example.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "robustness_example", raising=False)
    for name, model in (("one", convolutional()), ("two", other())):
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
    return tmp_path


QUICK = ["--bits", "4,2", "--noise", "0.2", "--flips", "0.05", "--draws", "3"]


def test_the_command_line_measures_and_reports(
    here: Path, both: Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    code = main(["robustness_example:make", "one=one.pt", "two=two.pt", *QUICK, "--quiet", "--out", "out"])
    assert code == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(str(both))
    assert printed.err == ""
    assert (
        Comparison.from_json(here / "out" / "robustness.json").results["two"].points
        == both.results["two"].points
    )


def test_the_command_line_measures_a_model_as_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robustness_example:make", *QUICK, "--quiet"]) == 0
    assert capsys.readouterr().out == f"{measure(convolutional(), images(), **LITTLE)}\n"
    options = [
        "--per",
        "tensor",
        "--grid",
        "affine",
        "--step",
        "mse",
        "--relative-to",
        "none",
        "--kind",
        "read",
    ]
    more = ["--flip-bits", "4", "--statistics", "anew", "--skip", "6", "--skip", "0", "--seed", "3"]
    assert main(["robustness_example:whole", *QUICK, *options, *more, "--quiet"]) == 0
    printed = capsys.readouterr().out
    expected = measure(
        convolutional(),
        images(),
        lambda o, t: o.mean(),
        **LITTLE,
        **{
            "per": "tensor",
            "grid": "affine",
            "step": "mse",
            "relative_to": None,
            "kind": "read",
            "flip_bits": 4,
        },
        **{"statistics": "anew", "calibration": [x for x, _ in images()], "skip": ("6", "0"), "seed": 3},
    )
    assert printed == f"{expected}\n"


def test_the_command_line_shows_progress(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    assert main(["robustness_example:make", "--bits", "2", "--noise", "none", "--flips", "none"]) == 0
    assert "2.00/2.00" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["robustness_example"], "is no MODULE:FUNCTION"),
        (["nowhere_at_all:make"], "there is no module 'nowhere_at_all'"),
        (["robustness_example:other"], "has no 'other'"),
        (["robustness_example:short"], "returned 1 members; expected (model, data)"),
        (["robustness_example:single"], "returned a Sequential; expected (model, data)"),
        (["robustness_example:wrong"], "returned a str first; expected the model"),
        (["robustness_example:make", "three.pt"], "three.pt is no file"),
        (["robustness_example:make", "robustness_example.py"], "robustness_example.py cannot be read"),
        (["robustness_example:make", "one.pt", "one.pt"], "each name once"),
        (["robustness_example:make", "--bits", "1"], "bits is 1; expected 2 to 16"),
        (["robustness_example:make", "--noise", "-1"], "noise is -1.0; expected"),
        (["robustness_example:make", "--per", "row"], "per is 'row'; expected"),
        (["robustness_example:make", "--skip", "head"], "skip has 'head'"),
        (["robustness_example:make", "--statistics", "anew"], "calibration is a NoneType"),
    ],
)
def test_the_command_line_says_what_is_wrong_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main([*arguments, "--quiet"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("robustness: ")
    assert printed.err.count("\n") == 1
    assert says in printed.err


@pytest.mark.parametrize("bad", [["--bits", "4.5"], ["--grid", "odd"], ["--dra", "3"], ["--flips", "often"]])
def test_the_command_line_refuses_what_it_cannot_read(here: Path, bad: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["robustness_example:make", *bad])
    assert ended.value.code == 2


def test_the_command_line_stops_at_ctrl_c(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robustness_example:interrupted", "--quiet"]) == 130
    assert capsys.readouterr().err == "robustness: stopped.\n"


def test_help_is_enough_to_use_it() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "torch_ssam.robustness", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for word in ("MODULE:FUNCTION", "(model, data)", "--statistics", "--first-and-last", "example:make"):
        assert word in shown
    assert robustness.__doc__ is not None
