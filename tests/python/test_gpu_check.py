"""tools/gpu_check.sh as far as it goes without a GPU: its page is made from whatever parts have ended, each part has its
line in it, and the ranks that share a device end in one process's bits. The whole: `tools/gpu_check.sh --rehearse`.
"""

from __future__ import annotations

import re
import subprocess
import sys
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


@pytest.mark.slow
def test_ranks_on_one_device_end_in_the_bits_of_one_process() -> None:
    command = [sys.executable, str(TOOLS / "gpu_ranks.py"), "--cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name in ("ddp", "fsdp2"):
        for rank in (0, 1):
            assert f"rank {rank} {name}: the bits of one process" in done.stdout
