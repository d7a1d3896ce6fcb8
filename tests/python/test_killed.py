"""kill -9 at random moments of training, keep_perturbed too: the resumed run ends in the bits of one never killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import front_helpers as front
import killed_training
import pytest
import torch
from odd_values import SEED, STRESS

import torch_ssam


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The folder of runs that were killed, one for each mode, and how often each was."""
    folder, here = tmp_path_factory.mktemp("killed"), Path(__file__).parent
    path = os.pathsep.join([str(Path(torch_ssam.__file__).parent.parent), str(here)])
    done = subprocess.run(
        [sys.executable, str(here / "killed_training.py"), str(folder), str(SEED + 1)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240 * STRESS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, {mode: int(kills) for mode, kills in re.findall(r"^(.+): (\d+)$", done.stdout, re.M)}


@pytest.mark.parametrize("mode", sorted(killed_training.MODES))
def test_a_run_killed_at_random_moments_ends_in_the_same_bits(
    mode: str, killed: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    folder, kills = killed
    starts = [int(line) for line in (folder / mode / "starts").read_text().split()]
    assert kills[mode] >= 1, "nothing was killed: the test would prove nothing"
    assert any(0 < start < killed_training.STEPS for start in starts), starts
    killed_training.run(tmp_path, mode)
    ends = [torch.load(where / "end.pt", weights_only=True) for where in (folder / mode, tmp_path)]
    assert front.same_bits(*ends)
