"""Runs a program as the ranks of a gloo process group, one CPU thread each, as torchrun would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

import torch_ssam


def run_ranks(program: str, world: int, *arguments: str) -> None:
    """Runs tests/python/PROGRAM with these arguments on `world` processes; fails with their output if one fails."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("NOT TESTED here: this PyTorch has no gloo")
    here = Path(__file__).parent
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(torch_ssam.__file__).parent.parent), str(here)]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
    }
    running = [
        subprocess.Popen(
            [sys.executable, str(here / program), *arguments],
            env={**common, "RANK": str(k), "LOCAL_RANK": str(k)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for k in range(world)
    ]
    try:
        output = [process.communicate(timeout=480)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * world, "\n".join(output)
