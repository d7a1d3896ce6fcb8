"""examples/python/distributed.py as its own text says, under torchrun: the three ways agree, a checkpoint resumes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

import torch_ssam

pytest.importorskip("sklearn")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("NOT TESTED here: this PyTorch has no gloo", allow_module_level=True)

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "python" / "distributed.py"


def torchrun(ranks: int, *arguments: str) -> list[tuple[int, int, int]]:
    """(epoch, draw, wrong) of each line that it prints."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(ranks), str(PROGRAM), *arguments),
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(torch_ssam.__file__).parent.parent),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(rf"on {ranks}: epoch (\d+), draw (\d+), (\d+) of 360 wrong", done.stdout)
    return [(int(epoch), int(draw), int(wrong)) for epoch, draw, wrong in lines]


def test_the_three_ways_agree_and_a_checkpoint_of_two_ranks_goes_on_on_four(tmp_path: Path) -> None:
    folder = str(tmp_path / "saved")
    sharded = torchrun(2, "--how", "fsdp2", "--epochs", "2", "--checkpoint", folder)
    assert [(epoch, draw) for epoch, draw, _ in sharded] == [(1, 11), (2, 22)]
    assert sharded[-1][2] < 324, "no better than chance"
    for how in ("ddp", "zero"):
        for ours, theirs in zip(torchrun(2, "--how", how, "--epochs", "2"), sharded, strict=True):
            # Their reductions over ranks may round otherwise.
            assert ours[:2] == theirs[:2]
            assert abs(ours[2] - theirs[2]) <= 3
    ((_, draw, wrong),) = torchrun(4, "--how", "fsdp2", "--epochs", "1", "--resume", folder)
    assert draw == 33
    assert wrong < sharded[-1][2]
