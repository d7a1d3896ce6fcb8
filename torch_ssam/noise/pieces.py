"""Parameters of which another library holds pieces: the first FSDP, and DeepSpeed with ZeRO or in 16 bits.

Both lay parameters one behind the other in flat tensors and cut those over the ranks, so that nobody can say which element of
which weight a place is: ranks would draw the same noise for different weights, and filters would not be filters. They may do so
before an optimizer is made or after, so it is looked for at construction, at the first pass, and where a group's tensors are
others than before. Tests: tests/python/test_pieces.py.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

FSDP = (
    "is a piece of a flat parameter of FullyShardedDataParallel, which hides where its elements lie: ranks would draw the same "
    "noise for different weights. Shard the model by torch.distributed.fsdp.fully_shard() (FSDP2; in Accelerate and Trainer "
    "fsdp_version=2) before the optimizer is made; expected whole parameters or DTensors."
)
DEEPSPEED = (
    "DeepSpeed trains from flat tensors that hide where the elements of a weight lie: ranks would draw the same noise for "
    "different weights, and no noise would reach the model. Use DistributedDataParallel or "
    "torch.distributed.fsdp.fully_shard() instead; expected whole parameters or DTensors."
)


def check_whole(params: list[Any]) -> None:
    """Raises ValueError for a parameter that is a piece of a flat one now, or stands for one."""
    for i, p in enumerate(params):
        if getattr(p, "_is_flat_param", False) or getattr(p, "_fsdp_flattened", False):
            raise ValueError(f"parameter {i} of the group {FSDP}")
        if hasattr(p, "ds_id"):
            raise ValueError(
                f"parameter {i} of the group is partitioned by DeepSpeed (ZeRO stage 3). {DEEPSPEED}"
            )
        if getattr(p, "_hp_mapping", None) is not None:
            raise ValueError(
                f"parameter {i} of the group is updated by DeepSpeed from a flat copy (ZeRO stage 1 or 2, or 16 bits). "
                f"{DEEPSPEED}"
            )


def check_not_replaced(params: list[Tensor]) -> None:
    """Raises ValueError where DeepSpeed, given an optimizer of parameters, has put flat tensors into its groups."""
    if "deepspeed" not in sys.modules:
        return
    for i, p in enumerate(params):
        if not isinstance(p, nn.Parameter):
            raise ValueError(
                f"tensor {i} of the group, of shape {tuple(p.shape)}, is none of the parameters that the optimizer was made "
                f"with: deepspeed.initialize() has replaced them. {DEEPSPEED}"
            )


def check_no_engine(optimizer: Any) -> None:
    """Raises TypeError for an optimizer of DeepSpeed's own, or Accelerate's shell around one."""
    for one in (optimizer, getattr(optimizer, "optimizer", None)):
        module = type(one).__module__
        if module.startswith("deepspeed.runtime."):
            raise TypeError(f"wrap() got {type(one).__name__} of {module}. {DEEPSPEED}")
