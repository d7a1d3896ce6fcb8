"""The files that README, CONTRIBUTING and docs/ name exist: a page that sends its reader to a file that moved is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
ROOMS = "csrc|torch_ssam|tests|examples|benchmarks|docs|tools|cmake"
BUILT = ("docs/_build", "torch_ssam/lib")


def paths(text: str) -> set[str]:
    """Paths in backticks, which may stand for several (`*`) or for any (NAME)."""
    named = set(re.findall(rf"`((?:{ROOMS})/[\w./*-]*\w[*/]?)`", text))
    return {path for path in named if "NAME" not in path and not path.startswith(BUILT)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    missing = [path for path in sorted(paths(page.read_text())) if not any(ROOT.glob(path.rstrip("/")))]
    assert not missing, f"{page.name} names {missing}"


def test_paths_are_found_and_a_wrong_one_would_be() -> None:
    found = paths("see `csrc/math/noise.h`, `tests/cpp/` and `csrc/ops/NAME.cpp`; `docs/nowhere.md`")
    assert found == {"csrc/math/noise.h", "tests/cpp/", "docs/nowhere.md"}
    assert not any(ROOT.glob("docs/nowhere.md"))
    assert sum(len(paths(page.read_text())) for page in PAGES) > 30
