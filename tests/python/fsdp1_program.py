"""One rank of test_pieces.py: the first FSDP, for real, made before and after optimizers and WeightNoise.

    python fsdp1_program.py FOLDER

Writes "refused N" to FOLDER/rankK when all N cases were refused as they should be.
"""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import torch_ssam

MAKERS: dict[str, Callable[[Any], Any]] = {
    "ssam": lambda params: torch_ssam.SSAM(params, lr=0.1, noise_std=0.3),
    "adamw": lambda params: torch_ssam.SSAMAdamW(params, noise_std=0.3),
    "wrap": lambda params: torch_ssam.wrap(torch.optim.SGD(params, lr=0.1), noise_std=0.3),
    "noise": lambda params: torch_ssam.WeightNoise(params, 0.3),
    "kept": lambda params: torch_ssam.SSAM(params, lr=0.1, noise_std=0.3, keep_perturbed=True),
    "closure": lambda params: torch_ssam.SSAMAdamW(params, noise_std=0.3),
}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def sharded(model: nn.Module, use_orig_params: bool) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=use_orig_params)


def use(name: str, made: Any, model: nn.Module) -> None:
    """One step, in the way that the name says."""

    def closure() -> Any:
        loss = model(torch.ones(3, 4)).square().sum()
        loss.backward()
        return loss

    if name == "noise":
        with made.applied():
            model(torch.ones(3, 4))
    elif name == "closure":
        made.step(closure)
    elif name == "kept":
        made.train()
        closure()
        made.step()
    else:
        with made.perturb():
            closure()
        made.step()


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    warnings.filterwarnings("ignore", module="torch")
    count = 0
    for name, make in MAKERS.items():
        for use_orig_params in (False, True):
            model = sharded(net(), use_orig_params)
            with pytest.raises(ValueError, match=r"FullyShardedDataParallel.*fully_shard"):
                make(model.parameters())
            count += 1
        model = net()
        made = make(model.parameters())
        whole = sharded(model, use_orig_params=True)
        with pytest.raises(ValueError, match=r"FullyShardedDataParallel.*fully_shard"):
            use(name, made, whole)
        count += 1
        if name == "noise":
            continue
        # Without use_orig_params the model has other parameters now, and nothing tells those that it had.
        model = net()
        made = make(model.parameters())
        whole = sharded(model, use_orig_params=False)
        with pytest.warns(
            UserWarning, match=r"no parameter of the optimizer has a gradient.*FullyShardedDataParallel"
        ):
            use(name, made, whole)
    (folder / f"rank{dist.get_rank()}").write_text(f"refused {count}")
    dist.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive the interpreter
