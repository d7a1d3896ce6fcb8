"""DDP and FSDP2 over two ranks that share one device: both end in one process's bits, or say what failed.

    gpu_ranks.py [--cpu]

The collectives are gloo's, since NCCL takes no two ranks on one GPU. Gradients are set, equal on both ranks, so that no
reduction's order counts. `--cpu` runs the same on the CPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch_ssam

RANKS, STEPS = 2, 3


def model_on(device: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(33, 64), nn.Tanh(), nn.Linear(64, 8)).to(device)


def set_gradients(model: nn.Module, step: int) -> None:
    for i, p in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(100 * step + i)
        whole = torch.randn(p.shape, generator=generator).to(p.device)
        if hasattr(p, "device_mesh"):
            from torch.distributed.tensor import distribute_tensor

            p.grad = distribute_tensor(whole, p.device_mesh, p.placements)  # type: ignore[attr-defined]
        else:
            p.grad = whole


def train(model: nn.Module) -> list[torch.Tensor]:
    opt: Any = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.01, momentum=0.9, seed=3)
    for step in range(STEPS):
        with opt.perturb():
            set_gradients(model, step)
        opt.step()
    return [getattr(p, "full_tensor", lambda p=p: p)().detach().cpu() for p in model.parameters()]


def run(rank: int, store: str, device: str, expected: list[torch.Tensor]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    failed = False
    for name in ("ddp", "fsdp2"):
        model: nn.Module = model_on(device)
        try:
            if name == "ddp":
                model = nn.parallel.DistributedDataParallel(model)
            else:
                from torch.distributed.device_mesh import init_device_mesh
                from torch.distributed.fsdp import fully_shard

                fully_shard(model, mesh=init_device_mesh(device, (RANKS,)))
            got = train(model)
        except Exception as error:  # the other one is part of the answer too
            print(f"rank {rank} {name}: failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
            failed = True
            continue
        same = all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        print(f"rank {rank} {name}: {'the bits of one process' if same else 'OTHER BITS'}", flush=True)
        failed |= not same
    dist.destroy_process_group()
    if failed:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU, over gloo")
    device = "cpu" if parser.parse_args().cpu else "cuda"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    expected = train(model_on(device))
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, args=(f"{folder}/store", device, expected), nprocs=RANKS)


if __name__ == "__main__":
    main()
