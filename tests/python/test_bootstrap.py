"""What a target of the Makefile asks for: the system packages that it uses, and no others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKE, BASH = shutil.which("make"), shutil.which("bash")

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file() or MAKE is None or BASH is None, reason="no sources, make or bash"
)

COMPILER = {"g++", "python3-dev"}
TESTS = {"libgtest-dev", "libgmock-dev", "zlib1g-dev"}


def needs(target: str) -> list[str]:
    """What the target and all that it builds on hand to tools/bootstrap.sh."""
    done = subprocess.run(
        [str(MAKE), "-n", target],
        cwd=ROOT,
        env={**os.environ, "FORCE_CUDA": "0", "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    calls = [line.split() for line in done.stdout.splitlines() if line.startswith("tools/bootstrap.sh")]
    assert calls, f"{target} does not set itself up"
    return [need for call in calls for need in call[1:]]


def missing(*named: str, folder: Path) -> set[str]:
    """What bootstrap.sh finds missing where there are no programs and no headers."""
    done = subprocess.run(
        [str(BASH), str(ROOT / "tools" / "bootstrap.sh"), "--missing", *named],
        env={"PATH": "/nowhere", "SYSROOT": str(folder), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("demo", COMPILER),
        ("test-python", COMPILER),
        ("test", COMPILER | TESTS),
        ("tsan", COMPILER | TESTS),
        ("valgrind", COMPILER | TESTS | {"valgrind"}),
        ("docs", COMPILER | {"doxygen"}),
        ("lint", set()),
    ],
)
def test_a_target_asks_only_for_what_it_uses(target: str, expected: set[str], tmp_path: Path) -> None:
    assert missing(*needs(target), folder=tmp_path) == expected


def test_where_everything_is_there_nothing_is_missing() -> None:
    names = dict.fromkeys(needs("test"))
    done = subprocess.run(
        [str(BASH), str(ROOT / "tools" / "bootstrap.sh"), "--missing", *names],
        capture_output=True,
        text=True,
        check=True,
    )
    found = set(done.stdout.split())
    assert not found & {"g++", "python3-dev"}  # this package was built here
    headers = {"libgtest-dev": "gtest/gtest.h", "libgmock-dev": "gmock/gmock.h", "zlib1g-dev": "zlib.h"}
    assert found == {name for name, header in headers.items() if not Path("/usr/include", header).is_file()}


def test_an_unknown_need_is_refused() -> None:
    done = subprocess.run(
        [str(BASH), str(ROOT / "tools" / "bootstrap.sh"), "--missing", "benchmark"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "bootstrap: benchmark is not known; expected compiler, tests, valgrind, doxygen or images.\n"
    )
