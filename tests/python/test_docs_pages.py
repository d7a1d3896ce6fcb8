"""README and guides: the blocks run as written, README stays short, the navigation holds every page once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def test_the_readme_is_short_and_holds_the_commands_that_a_newcomer_runs() -> None:
    lines = README.splitlines()
    assert len(lines) < 120
    assert max(len(line) for line in lines) <= 120
    for command in ("pip install .", "make demo", "make test"):
        assert re.search(rf"^    {re.escape(command)}(\s|$)", README, re.M), command


def test_the_readme_s_block_trains_a_model() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    names: dict[str, Any] = {
        "model": model,
        "criterion": nn.MSELoss(),
        "loader": [(torch.randn(8, 4), torch.randn(8, 1))],
    }
    before = model.weight.detach().clone()
    (block,) = blocks(README)
    exec(compile(block, "README.md", "exec"), names)
    assert not torch.equal(model.weight, before)


def test_a_picture_or_page_that_the_readme_links_to_exists() -> None:
    targets = re.findall(r"\]\(((?!https?:)[^)#]+)", README)
    assert len(targets) > 15
    assert not [target for target in targets if not (ROOT / target).exists()]


@pytest.mark.slow
def test_the_script_of_deployment_runs_and_noise_spares_s_sam(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    _, script = blocks((DOCS / "deploy.md").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    exec(compile(script, "deploy.md", "exec"), names)
    left = {name: result.find("noise", 0.3).mean for name, result in names["found"].results.items()}
    assert left["S-SAM"] > left["SGD"] + 5
    assert "2 bits, 3 levels" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["which_noise.md", "faq.md"])
def test_the_blocks_of_a_guide_run_as_written(page: str) -> None:
    found = blocks((DOCS / page).read_text(encoding="utf-8"))
    assert found
    for block in found:
        exec(compile(block, page, "exec"), {})


def listed(index: Path) -> list[Path]:
    entries: list[Path] = []
    for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", index.read_text(encoding="utf-8"), re.M | re.S):
        for line in tree.splitlines():
            if line and not line.startswith(":"):
                entries.append((index.parent / f"{line}.md").resolve())
    return entries


def test_the_navigation_holds_every_page_once() -> None:
    entries = [page for index in (DOCS / "index.md", *DOCS.glob("*/index.md")) for page in listed(index)]
    pages = {page.resolve() for page in DOCS.rglob("*.md") if "_build" not in page.parts}
    assert len(set(entries)) == len(entries)
    assert {*entries, (DOCS / "index.md").resolve()} == pages


@pytest.mark.parametrize("page", sorted(DOCS.glob("tutorials/*.md")), ids=lambda page: page.stem)
def test_a_tutorial_is_a_notebook_that_can_be_downloaded_and_holds_no_output(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page.stem == "index":
        assert all(f"]({other.name})" in text for other in DOCS.glob("tutorials/*.md") if other != page)
        return
    assert re.match(r"---\njupytext:\n.*?\nkernelspec:\n  name: python3\n.*?\n---\n", text, re.S)
    assert f"<{page.stem}.ipynb>`" in text
    cells = re.findall(r"^```\{code-cell\} python3\n(.*?)^```", text, re.M | re.S)
    assert len(cells) >= 4
    for cell in cells:
        compile(cell, page.name, "exec")
    assert not [file for file in DOCS.rglob("*.ipynb") if "_build" not in file.parts]


def test_the_tutorial_on_theory_finds_what_theory_predicts(capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    text = (DOCS / "tutorials" / "diagonal.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for cell in re.findall(r"^```\{code-cell\} python3\n(.*?)^```", text, re.M | re.S):
        exec(compile(cell, "diagonal.md", "exec"), names)
    matplotlib.pyplot.close("all")
    theory, target, eta = names["theory"], names["target"], names["eta"]
    for depth, run in names["runs"].items():
        late = run.product[len(run.steps) // 2 :].mean((0, 1))
        assert abs(late - theory.limit_product(target, eta, depth)).max() < 0.02
    limit = theory.limit_product(target, eta, 2)
    assert abs(torch.stack(names["products"]).mean(0).numpy() - limit).max() < 0.03
    assert "below the threshold" in text
    assert "the existence threshold 0.16" in capsys.readouterr().out
