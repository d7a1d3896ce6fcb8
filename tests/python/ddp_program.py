"""What each rank of test_distributed.py runs: gloo, two processes, one CPU thread each.

    torchrun-like: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set by the test.
    python ddp_program.py FOLDER

Writes what it saw to FOLDER/rankK.pt; the test compares the ranks with each other and with one process.
"""

import os
import sys
from pathlib import Path
from typing import Any

import front_helpers as front
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import torch_ssam

WAYS = ("perturb", "closure", "perturbations", "kept", "no_sync", "per_rank", "wrap kept")


def make(way: str, model: nn.Module) -> Any:
    options: dict[str, Any] = {"seed": None if dist.is_initialized() else 7}
    if way in ("kept", "wrap kept", "no_sync"):
        options["keep_perturbed"] = True
    if way == "perturbations":
        options.update(samples=2, antithetic=True)
    if way == "per_rank":
        options.update(noise_per_rank=True, seed=7)
    return front.wrapped_adamw(model, **options) if way == "wrap kept" else front.ssam(model, **options)


def train(way: str, opt: Any, net: nn.Module, todo: front.Batches) -> None:
    opt.train()
    if way == "no_sync":  # two batches a step; only the second one talks to the other ranks
        for k in range(0, len(todo), 2):
            opt.zero_grad()
            with net.no_sync():  # type: ignore[operator]
                (front.loss_of(net, *todo[k]) / 2).backward()
            (front.loss_of(net, *todo[k + 1]) / 2).backward()
            opt.step()
    else:
        drive = front.by_stock_loop if "kept" in way else getattr(front, "by_perturb", None)
        if way in ("closure", "perturbations"):
            drive = front.ONE_PASS[way]
        drive(opt, net, todo)  # type: ignore[misc]
    opt.eval()


def rank_main(folder: Path) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    result: dict[str, list[Tensor]] = {}
    for way in WAYS:
        torch.manual_seed(rank)  # the ranks must agree on a seed all the same
        model = front.Net()
        net = DistributedDataParallel(model)
        opt = make(way, model)
        if way == "per_rank":
            noisy = []
            with opt.perturb():
                noisy = front.snapshot(model)
            result["noise of per_rank"] = noisy
        # Each rank takes its share of the rows of every global batch.
        todo = [(x[rank::world].contiguous(), y[rank::world].contiguous()) for x, y in front.batches(4)]
        train(way, opt, net, todo)
        result[way] = [*front.snapshot(model), *front.optimizer_bits(opt)]
        result["seed " + way] = [torch.tensor([opt.seed, opt.draw])]
    torch.save(result, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert torch_ssam.SSAM is not None
    dist.init_process_group("gloo")
    rank_main(Path(sys.argv[1]))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # without destructors: gloo's threads may outlive the interpreter
