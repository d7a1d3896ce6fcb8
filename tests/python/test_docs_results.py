"""The picture of docs/results.md shows the page's own table, and the page's first lines count what the table says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def forest() -> ModuleType:
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("forest", ROOT / "docs" / "figures" / "forest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_holds_every_setting_of_the_table_once(forest: ModuleType) -> None:
    found = forest.rows(PAGE)
    assert len({row.setting for row in found}) == len(found) == 12
    assert found[0] == ("residual network, 30% wrong labels", (1.88, 0.65), (-0.28, 0.30))
    assert found[8] == ("transformer on text", (-2.12, 0.41), (8.10, 0.23))


def test_the_first_lines_of_the_results_count_what_the_table_says(forest: ModuleType) -> None:
    found = forest.rows(PAGE)

    def counts(which: int) -> tuple[int, int, int]:
        ahead = sum(row[which][0] > row[which][1] for row in found)
        behind = sum(-row[which][0] > row[which][1] for row in found)
        return ahead, len(found) - ahead - behind, behind

    words = " ".join(PAGE.split())
    assert counts(1) == (5, 6, 1)
    assert (
        "ahead of a tuned SGD in five of them (twice by more than a point), level in six, and 2 points behind"
        in words
    )
    assert sum(row.minus_sgd[0] > 1 for row in found) == 2
    assert counts(2) == (5, 6, 1)
    assert "ahead of SAM in five settings, level in six and behind in one" in words


def test_a_table_with_an_unreadable_cell_is_refused(forest: ModuleType) -> None:
    with pytest.raises(AttributeError):
        forest.rows(
            "| at full length | a | b | c | d |\n|---|---|---|---|---|\n| one | | | +1.0 | +1 ± 2 |\n"
        )


@pytest.fixture(scope="module")
def deployment() -> ModuleType:
    pytest.importorskip("matplotlib")
    path = ROOT / "docs" / "figures" / "deployment.py"
    spec = importlib.util.spec_from_file_location("deployment", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_deployment_are_those_of_its_runs(deployment: ModuleType) -> None:
    page = (ROOT / "docs" / "results_deployment.md").read_text(encoding="utf-8")
    runs = deployment.read(ROOT / "docs" / "data" / "deployment.csv")
    assert deployment.with_tables(page, runs) == page
    assert page.count("<!-- table: ") == 2 * len(runs)
    for setting in runs:
        assert f"<!-- table: {setting} target -->" in page


def test_a_cell_is_the_best_of_its_measures_with_students_interval(deployment: ModuleType) -> None:
    runs = [{"a": "1", "b": "5", "c": ""}, {"a": "2", "b": "3", "c": "9"}, {"a": "3", "b": "1", "c": "9"}]
    assert deployment.best(runs, ["a", "b", "c"]) == pytest.approx((3.0, 4.303 * 2 / 3**0.5))
    assert deployment.best(runs, ["c"]) is None
    assert deployment.text(2.0, float("nan")) == "2.0"
