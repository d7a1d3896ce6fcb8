"""Low-rank factors (LoRA): weight_clip on A and B bounds the rows of each, not the weights B A that are deployed. Warned of.

A factor is told by the names that peft gives ("lora_A.default.weight"), or, without names, by what LoRA's start looks like: two
tensors in succession of which one is zero and whose product has a lower rank than shape. Tests: test_low_rank.py.
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from torch_ssam.ops.dtensor import local_of


def warn_of_clipped_factors(params: list[Tensor], group: dict[str, Any]) -> None:
    """Warns where a group with weight_clip has factors of a product."""
    if group["weight_clip"] is None:
        return
    names = group.get("param_names") or [None] * len(params)
    named = [
        (name or f"parameter {i} of the group", p)
        for i, (name, p) in enumerate(zip(names, params, strict=True))
        if p.requires_grad and p.dim() >= 2
    ]
    found = [name for name, _ in named if "lora_" in name] or next(
        ([first, second] for (first, a), (second, b) in pairwise(named) if _are_factors(a, b)),
        [],
    )
    if found:
        more = f" and {len(found) - 2} more" if len(found) > 2 else ""
        warnings.warn(
            f"weight_clip={group['weight_clip']:g} on {', '.join(found[:2])}{more}: factors of a product, as LoRA's A and B. "
            "Clipping bounds the rows of each, not the weights B A that are added to the layer's, and noise on each is not noise "
            "on those. To deploy to few bits, train the merged weights; else give the factors a group with weight_clip=None.",
            UserWarning,
            stacklevel=4,
        )


def _are_factors(first: Tensor, second: Tensor) -> bool:
    """Whether one of these is zero and the product that fits, of (out, r) and (r, in), has a rank r below its sides."""
    for up, down in ((second, first), (first, second)):
        rank = down.shape[0]
        if up.shape[1] == rank < min(up.shape[0], down.shape[1]) and _is_zero(up) != _is_zero(down):
            return True
    return False


def _is_zero(tensor: Tensor) -> bool:
    local = local_of(tensor.detach())
    # Fake and meta tensors have no values to ask for.
    known = type(local) in (Tensor, torch.nn.Parameter) and local.device.type != "meta" and local.numel() > 0
    return known and not bool(local.any())
