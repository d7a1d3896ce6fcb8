"""tools/gpu_check.sh as far as it goes without a GPU: its page is made from whatever parts have ended, each part has its
line in it, what a machine lacks is left out and said, and the ranks that share a device end in one process's bits. The whole:
`tools/gpu_check.sh --rehearse`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def page(out: Path) -> str:
    command = [sys.executable, str(TOOLS / "gpu_page.py"), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_run_that_was_cut_short_still_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / "results.tsv").write_text(
        "bits\tpassed\t41\t447 passed\nspeed\tran out of its 240 seconds\t240\t| a | b |\n"
    )
    (tmp_path / "describe.log").write_text("python 3.12 torch 2.11\nsome GPU\n")
    (tmp_path / "speed.log").write_text("head\n| side | ms |\n|---|---|\n| SGD | 1 |\n")
    text = page(tmp_path)
    assert "    python 3.12 torch 2.11\n    some GPU\n" in text
    assert "sizes beyond 2^31 | passed | 41 | 447 passed |" in text
    assert "ran out of its 240 seconds | 240 | / a / b / |" in text
    assert "## Speed\n\n| side | ms |\n|---|---|\n| SGD | 1 |" in text
    assert "memcheck" not in text


def test_every_part_has_its_words_on_the_page() -> None:
    script = (TOOLS / "gpu_check.sh").read_text()
    parts = set(re.findall(r"^(?:if ! | *)part (\w+)", script, re.M)) | {"memcheck", "racecheck", "initcheck"}
    words = set(re.findall(r'^    "(\w+)":', (TOOLS / "gpu_page.py").read_text(), re.M))
    assert parts - {"tool"} == words


# Stands for the interpreter of a machine: what begins with one of the words is as the variable of its name says, the page is
# made in earnest, and everything else passes.
MACHINE = """#!/usr/bin/env bash
case "$*" in
  tools/gpu_page.py*) exec {python} "$@" ;;
  *"import pytest, numpy"*) exit ${{NO_PYTEST:-0}} ;;
  *"import pytest"*) echo "pytest of $PYTHONPATH"; exit ${{NO_PYTEST:-0}} ;;
  *EXT_SUFFIX*) echo .cpython-312-none.so ;;
  *"import torch_ssam"*) echo "no _C for this Python"; exit ${{NO_IMPORT:-0}} ;;
  *test_cuda.py*) sleep ${{SLOW:-0}}; echo "447 passed" ;;
  *) echo "ran" ;;
esac
"""


def on_a_machine(folder: Path, **variables: str) -> tuple[subprocess.Popen[str], Path]:
    """tools/gpu_check.sh on a machine with a python, a g++ and a compute-sanitizer as asked; the folder of its results."""
    programs = folder / "bin"
    programs.mkdir()
    sanitizer = variables.pop("sanitizer", "")
    for name, text in {
        "python": MACHINE.format(python=sys.executable),
        "g++": "#!/bin/sh\necho a compiler that fails >&2\nexit 1\n",
        "compute-sanitizer": f"#!/bin/sh\n{sanitizer}\n",
    }.items():
        if name != "compute-sanitizer" or sanitizer:
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        **variables,
        "PATH": f"{programs}:/usr/bin:/bin",
        "PYTHON": str(programs / "python"),
    }
    out = folder / "out"
    command = ["bash", str(TOOLS / "gpu_check.sh"), str(out)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ), out


def results(out: Path) -> dict[str, tuple[str, str]]:
    """Outcome and last line by part."""
    rows = [line.split("\t") for line in (out / "results.tsv").read_text().splitlines()]
    return {name: (outcome, last) for name, outcome, _, last in rows}


def test_a_machine_that_has_everything_passes_every_part(tmp_path: Path) -> None:
    process, out = on_a_machine(tmp_path, sanitizer='[ "$1" = --version ] || shift 4; "$@" || true')
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    found = results(out)
    assert {outcome for outcome, _ in found.values()} == {"passed"}
    assert {
        "describe",
        "import",
        "bits",
        "registration",
        "speed",
        "ddp_fsdp2",
        "memcheck",
        "initcheck",
    } <= set(found)
    assert found["bits"] == ("passed", "447 passed")


def test_what_a_machine_lacks_is_left_out_and_said(tmp_path: Path) -> None:
    process, out = on_a_machine(tmp_path, NO_PYTEST="1", sanitizer="echo no such driver; exit 1")
    said, _ = process.communicate(timeout=120)
    found = results(out)
    assert process.returncode == 0, said  # nothing failed
    assert found["bits"] == ("left out", "no pytest or no numpy here; build/gpu_carry (--pack) brings pytest")
    assert found["memcheck"] == ("left out", "compute-sanitizer does not run here: no such driver")
    assert "build/gpu_carry" in (out / "describe.log").read_text()  # where it looked for pytest
    assert "left out" in (out / "page.md").read_text()


def test_a_python_without_our_extension_builds_it_and_says_when_it_cannot(tmp_path: Path) -> None:
    process, out = on_a_machine(tmp_path, NO_IMPORT="1")
    said, _ = process.communicate(timeout=120)
    found = results(out)
    assert process.returncode == 1, said
    assert found["import"] == ("failed with 1", "no _C for this Python")
    assert found["build_C"] == ("failed with 1", "a compiler that fails")
    assert found["speed"][0] == "passed"  # the others still run
    assert not list((TOOLS.parent / "torch_ssam").glob("*cpython-312-none*"))


def test_a_run_that_is_killed_leaves_what_had_ended(tmp_path: Path) -> None:
    process, out = on_a_machine(tmp_path, SLOW="60")
    deadline = time.monotonic() + 60
    while not (out / "bits.log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    for child in children:
        os.kill(int(child), signal.SIGTERM)
    assert set(results(out)) == {"describe", "import"}
    assert "the package and its CUDA library load | passed" in (out / "page.md").read_text()


@pytest.mark.slow
def test_ranks_on_one_device_end_in_the_bits_of_one_process() -> None:
    command = [sys.executable, str(TOOLS / "gpu_ranks.py"), "--cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name in ("ddp", "fsdp2"):
        for rank in (0, 1):
            assert f"rank {rank} {name}: the bits of one process" in done.stdout
