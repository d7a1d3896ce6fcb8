"""Every python block of docs/getting_started.md runs as written, in order, in one namespace, and its networks learn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "getting_started.md"
SECTIONS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)
BLOCKS = [
    (section.splitlines()[0], block)
    for section in SECTIONS
    for block in re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
]
NEEDS = {"Lightning": ["lightning.pytorch"], "Hugging Face Trainer": ["transformers", "accelerate"]}


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the blocks before have defined."""
    return {}


def run(title: str, block: str, names: dict[str, Any]) -> None:
    for package in NEEDS.get(title, []):
        pytest.importorskip(
            package, reason=f"NOT TESTED here: {title} needs {package} (the frameworks extra)"
        )
    exec(compile(block, f"{PAGE} ({title})", "exec"), names)


def test_the_page_has_a_block_for_every_way_it_promises() -> None:
    titles = [title for title, _ in BLOCKS]
    assert titles == [
        "One complete script",
        "One complete script",
        "With AdamW, or any other optimizer",
        "With AdamW, or any other optimizer",
        "In a loop that stays as it is",
        "Lightning",
        "Hugging Face Trainer",
    ]


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=[title for title, _ in BLOCKS])
def test_a_block_runs_as_written_and_its_network_learns(
    number: int, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason="NOT TESTED here: the page's data are scikit-learn's")
    monkeypatch.chdir(tmp_path)
    if number > 0 and "train" not in names:
        run(*BLOCKS[0], names)
        run(*BLOCKS[1], names)
    title, block = BLOCKS[number]
    run(title, block, names)
    model = {"Lightning": "module", "Hugging Face Trainer": "network"}.get(title)
    trained = names[model].model if model else names["model"]
    assert all(bool(torch.isfinite(p).all()) for p in trained.parameters())
    assert names["accuracy"](trained) > 90
    if title == "One complete script" and number == 0:
        assert (tmp_path / "digits.pt").exists()


def test_training_with_noise_is_flatter_than_without_as_the_page_measures_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="NOT TESTED here: the page's data are scikit-learn's")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    run(*BLOCKS[0], names)
    capsys.readouterr()
    run(*BLOCKS[1], names)
    plain, noisy = (float(line.split()[-1]) for line in capsys.readouterr().out.splitlines())
    assert noisy < plain
