"""One rank of test_adaptive_noise.py: AdaptiveNoiseStd under DDP, where ranks have other batches, and over FSDP2's shards."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import torch_ssam
from torch_ssam.schedules import AdaptiveNoiseStd


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def alone(x: Tensor) -> float:
    """The change on one batch, in one process."""
    net = make()
    noise = torch_ssam.WeightNoise(net.parameters(), 0.1, seed=7)
    with torch.no_grad():
        clean = net(x).log_softmax(-1)
        with noise.applied():
            return float((clean.exp() * (clean - net(x).log_softmax(-1))).sum(-1).mean())


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    batches = [torch.randn(5, 6, generator=torch.Generator().manual_seed(k)) for k in range(world)]
    x = batches[rank]
    expected = sum(map(alone, batches)) / world
    assert abs(alone(batches[0]) - alone(batches[1])) > 1e-4
    for kept in (False, True):
        for sharded in (False, True):
            net = make()
            if sharded:
                fully_shard(net[0])
                model: nn.Module = fully_shard(net)
            else:
                model = DistributedDataParallel(copy.deepcopy(net))
            opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.1, seed=7, keep_perturbed=kept)
            schedule = AdaptiveNoiseStd(opt, every=1)
            opt.train()
            whole = torch_ssam.SSAM(make().parameters(), noise_std=0.1, seed=7).metrics()
            found = opt.metrics()
            assert all(abs(found[name] - value) < 1e-6 for name, value in whole.items()), (found, whole)
            for k in range(3):
                schedule.step(lambda model=model: model(x))
                if k == 0:
                    assert schedule.last_change is not None
                    assert abs(schedule.last_change - expected) < 1e-6, (
                        schedule.last_change,
                        expected,
                        kept,
                        sharded,
                    )
                opt.zero_grad()
                with torch.enable_grad() if kept else opt.perturb():
                    model(x).square().mean().backward()
                opt.step()
            opt.eval()
            stds: list[object] = [None] * world
            dist.all_gather_object(stds, schedule.get_last_noise_std())
            assert stds == [stds[0]] * world
            schedule.step(lambda model=model, rank=rank: model(x) + (float("nan") if rank == 0 else 0.0))
            dist.all_gather_object(stds, schedule.get_last_noise_std())
            assert stds == [stds[0]] * world, "one rank's NaN lowers the noise of all"
    dist.destroy_process_group()


main()
