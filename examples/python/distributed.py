"""S-SAM on several processes: DistributedDataParallel, FSDP2 (sharded parameters) and ZeroRedundancyOptimizer.

    torchrun --standalone --nproc-per-node 2 examples/python/distributed.py --how ddp
    torchrun --standalone --nproc-per-node 2 examples/python/distributed.py --how fsdp2 --checkpoint runs/fsdp2
    torchrun --standalone --nproc-per-node 4 examples/python/distributed.py --how fsdp2 --resume runs/fsdp2

A classifier of scikit-learn's handwritten digits. Every rank takes its share of each batch and prints nothing but on
rank 0. The noise is that of one process, however the weights are split: with one seed the three end within rounding of
each other, on any number of processes. A checkpoint of two ranks resumes on four. Tests: test_examples.py.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import torch_ssam

TEST = 360  # of 1797 images
BATCH = 128  # over all ranks


def make_model() -> nn.Module:
    torch.manual_seed(0)  # the same weights on every rank, before they are split
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def distribute(how: str, model: nn.Module) -> tuple[nn.Module, Any]:
    """The module to call, and the optimizer that drives it."""
    if how == "fsdp2":
        for layer in model:  # type: ignore[attr-defined]
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(model)
        # After sharding, so that the optimizer holds the shards.
        return model, torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.02, momentum=0.9, seed=0)
    net = DistributedDataParallel(model)
    if how == "ddp":
        return net, torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.02, momentum=0.9, seed=0)
    base = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    return net, torch_ssam.wrap(base, noise_std=0.02, seed=0)


def batches(x: Tensor, y: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share of every batch. Batches are full, so shares are equal and their mean is the batch's."""
    rank, world = dist.get_rank(), dist.get_world_size()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
    for batch in order.split(BATCH):
        if len(batch) == BATCH:
            yield x[batch[rank::world]], y[batch[rank::world]]


def train(args: argparse.Namespace) -> None:
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    model = make_model()
    net, opt = distribute(args.how, model)
    if args.resume:
        # The layout of this run: dcp.load fills it from files that any number of ranks wrote.
        model_state, optimizer_state = get_state_dict(model, opt)
        state = {"model": model_state, "optimizer": optimizer_state}
        dcp.load(state, checkpoint_id=args.resume)
        set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["optimizer"])

    for epoch in range(args.epochs):
        net.train()
        for inputs, labels in batches(x[TEST:], y[TEST:], epoch):
            opt.zero_grad()
            with opt.perturb():
                loss = cross_entropy(net(inputs), labels)
                loss.backward()
            opt.step()
        net.eval()
        with torch.no_grad():
            wrong = int((net(x[:TEST]).argmax(1) != y[:TEST]).sum())
        if dist.get_rank() == 0:
            print(
                f"{args.how} on {dist.get_world_size()}: epoch {epoch + 1}, draw {opt.draw}, {wrong} of {TEST} wrong"
            )

    if args.checkpoint:
        model_state, optimizer_state = get_state_dict(model, opt)
        dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=args.checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--how",
        choices=("ddp", "fsdp2", "zero"),
        default="fsdp2",
        help="what spreads the work (default fsdp2)",
    )
    parser.add_argument("--epochs", type=int, default=10, help="of training (default 10)")
    parser.add_argument("--checkpoint", help="folder to save to when training is over (fsdp2)")
    parser.add_argument("--resume", help="folder to go on from (fsdp2)")
    args = parser.parse_args()
    if args.how != "fsdp2" and (args.checkpoint or args.resume):
        parser.error(
            "--checkpoint and --resume are shown for --how fsdp2; ddp and zero save state_dict() by torch.save"
        )

    dist.init_process_group("gloo")
    train(args)
    # The DistributedDataParallel has to go before the process group does. Were it the last to let go of the group, it
    # would wait for gloo's threads while it holds the interpreter's lock, and they for that lock: a hang at exit, now
    # and then. train() has returned, and the collection frees what its first __init__ leaves in a reference cycle.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
