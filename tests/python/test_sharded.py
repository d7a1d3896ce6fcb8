"""Parameters that are spread over ranks: FSDP2, tensor parallelism and ZeroRedundancyOptimizer on 2 and on 4 gloo
processes. Noise has the bits of one process's; so has training, but where products are summed over ranks. Checkpoints
of 2 ranks resume on 4 and on 1. The checks are in sharded_program.py, all of them in one launch for each number of ranks.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("NOT TESTED here: this PyTorch has no gloo", allow_module_level=True)

import sharded_program as program

from torch_ssam.ops import dtensor

RANKS = {"save": 2, "load": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    for mode, world in RANKS.items():
        run_ranks("sharded_program.py", world, str(folder), mode)
    return folder


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (n, m)
        for n in [*program.CHECKS, "checkpoints"]
        for m in RANKS
        if n not in program.ON_FOUR or m == "load"
    ],
)
def test_on_ranks(folder: Path, name: str, mode: str) -> None:
    for rank in range(RANKS[mode]):
        result = json.loads((folder / f"{mode}-rank{rank}.json").read_text())
        assert name in result, f"rank {rank} stopped before: {result}"
        assert result[name] == "", f"rank {rank}: {result[name]}"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", program.SAVED)
def test_a_checkpoint_of_two_ranks_resumes_in_one_process(folder: Path, name: str) -> None:
    torch.set_num_threads(1)  # as on the ranks: LayerNorm's gradient is summed by threads
    net = program.whole_net()
    program.resume(name, net, folder, no_dist=True)
    program.expect_resumed(name, net)


def test_a_plain_tensor_is_its_own_part() -> None:
    w = torch.ones(2, 3)
    assert dtensor.local_of(w) is w
    assert not dtensor.is_split(w)
    assert dtensor.shard_of(w) == [2, 3, 0, 0]
