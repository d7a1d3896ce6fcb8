"""Runs the examples in the docstrings of every module of torch_ssam, and the blocks of docs/driving.md and docs/adamw.md."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import torch_ssam

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(torch_ssam.__path__, "torch_ssam.")
    if not module.name.endswith(("__main__", "._C"))
)

#: What the examples of a module need beyond its import.
NEEDS = {
    "torch_ssam.compare._analog": "aihwkit_lightning",
    "torch_ssam.sharpness._curvature": "curvlinops",
}


@pytest.mark.parametrize("name", ["torch_ssam", *MODULES])
def test_the_examples_of_a_module_run(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("torch_ssam"):
            raise
        pytest.skip(f"NOT TESTED here: {name} needs {error.name}")
    torch.manual_seed(0)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("name", ["SSAM", "SSAMAdamW", "WeightNoise", "DiagonalLinear", "wrap"])
def test_every_public_front_has_an_example(name: str) -> None:
    finder = doctest.DocTestFinder(recurse=False)
    assert any(test.examples for test in finder.find(getattr(torch_ssam, name), name))


@pytest.mark.parametrize(("name", "least"), [("driving", 9), ("adamw", 3)])
def test_the_pages_on_ways_to_drive_run_as_written(name: str, least: int) -> None:
    """Every python block of a page, in order, in one namespace; each trains the model."""
    page = Path(__file__).resolve().parents[2] / "docs" / f"{name}.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    assert len(blocks) >= least
    names: dict[str, object] = {}
    for block in blocks:
        before = [p.detach().clone() for p in names["model"].parameters()] if "model" in names else []  # type: ignore[attr-defined]
        exec(compile(block, str(page), "exec"), names)
        after = list(names["model"].parameters())  # type: ignore[attr-defined]
        if "opt.step" in block or "scaler.step" in block:
            assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), block
        assert all(bool(torch.isfinite(p).all()) for p in after)


def test_the_page_on_robustness_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    page = Path(__file__).resolve().parents[2] / "docs" / "robustness.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "robustness.png", "robustness.json"}
