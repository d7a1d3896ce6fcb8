"""The picture of docs/results.md shows the page's own table, and the page's first lines count what the table says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def _figure(name: str) -> ModuleType:
    pytest.importorskip("matplotlib")
    folder = ROOT / "docs" / "figures"
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As for a script: one imports another, and not a module of the same name that a test before this one imported.
    others = {path.stem: sys.modules.pop(path.stem, None) for path in folder.glob("*.py")}
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
        for stem, other in others.items():
            sys.modules.pop(stem, None)
            if other is not None:
                sys.modules[stem] = other
    return module


@pytest.fixture(scope="module")
def forest() -> ModuleType:
    return _figure("forest")


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
    return _figure("deployment")


@pytest.fixture(scope="module")
def noise_tables() -> ModuleType:
    return _figure("noise_tables")


def test_the_tables_of_deployment_are_those_of_its_runs(deployment: ModuleType) -> None:
    page = (ROOT / "docs" / "results_deployment.md").read_text(encoding="utf-8")
    runs = deployment.read(ROOT / "docs" / "data" / "deployment.csv")
    assert deployment.with_tables(page, runs) == page
    assert page.count("<!-- table: ") == 2 * len(runs)
    assert page.count("<!-- goals -->") == 1
    for setting in runs:
        assert f"<!-- table: {setting} target -->" in page


def test_the_goals_are_counted_as_the_page_says(deployment: ModuleType) -> None:
    gaps = dict(deployment.goals(deployment.read(ROOT / "docs" / "data" / "deployment.csv")))
    page = " ".join((ROOT / "docs" / "results_deployment.md").read_text(encoding="utf-8").split())
    reached = [
        sum(values[i][0] >= goal[3] for values in gaps.values()) for i, goal in enumerate(deployment.GOALS)
    ]
    clean, three, two, noise_2, noise_3, trained = reached
    assert trained < 3
    assert three >= 3
    assert max(clean, two, noise_2, noise_3) < 3
    assert "Reached on three networks or more: 3 bits. Not reached: the five others." in page


def test_a_goals_difference_is_paired_by_seed_with_the_best_of_the_others(deployment: ModuleType) -> None:
    runs = {
        "sgd": [{"seed": "0", "a": "1", "b": "9"}, {"seed": "1", "a": "2", "b": "10"}],
        "sam": [{"seed": "0", "a": "8", "b": ""}, {"seed": "1", "a": "9", "b": ""}],
    }
    best = deployment.best_of(runs, ("sgd", "sam", "adamw"), ["a", "b"])
    assert best == {"0": 9.0, "1": 10.0}
    mean, half = deployment.minus({"0": 10.0, "1": 12.0}, best)
    assert (mean, half) == pytest.approx((1.5, 12.706 * 0.5))


def test_the_tables_of_noise_that_sets_itself_are_those_of_its_runs(noise_tables: ModuleType) -> None:
    page = (ROOT / "docs" / "results_adaptive_noise.md").read_text(encoding="utf-8")
    rows = noise_tables.read(ROOT / "docs" / "data" / "adaptive_noise.csv")
    study = noise_tables.deployment.read(ROOT / "docs" / "data" / "deployment.csv")
    tables = {
        "forms": noise_tables.forms(rows),
        "seeds": noise_tables.seeds(rows),
        "beside": noise_tables.beside(rows, study),
    }
    assert noise_tables.with_tables(page, **tables) == page
    assert len(tables["forms"]) == 2 + 12
    assert all(f"<!-- table: {name} -->" in page for name in tables)


def test_a_cell_is_the_best_of_its_measures_with_students_interval(deployment: ModuleType) -> None:
    runs = [{"a": "1", "b": "5", "c": ""}, {"a": "2", "b": "3", "c": "9"}, {"a": "3", "b": "1", "c": "9"}]
    assert deployment.best(runs, ["a", "b", "c"]) == pytest.approx((3.0, 4.303 * 2 / 3**0.5))
    assert deployment.best(runs, ["c"]) is None
    assert deployment.text(2.0, float("nan")) == "2.0"


def test_the_table_of_adamws_gains_is_that_of_the_studys_runs(noise_tables: ModuleType) -> None:
    page = (ROOT / "docs" / "adamw.md").read_text(encoding="utf-8")
    runs = noise_tables.deployment.read(ROOT / "docs" / "data" / "deployment.csv")
    assert noise_tables.with_tables(page, gains=noise_tables.gains(runs)) == page
    assert "<!-- table: gains -->" in page
