"""master_dtype: the clean weights of 16-bit parameters in float32, kept from step to step ("master weights").

A parameter with a master holds its rounding, or that of master + noise. What is smaller than half an ulp of the
parameter counts in the master, where 16-bit weights would lose it (Micikevicius et al., arXiv 1710.03740, section
3.1). Whatever others write to a clean parameter counts too. The arithmetic is csrc/math/stored.h's.
Tests: test_masters.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_ssam.noise.members import Group, Members
from torch_ssam.noise.saved import Saved, WrittenTogether
from torch_ssam.ops.dtensor import is_sharded, local_of, shard_of


def check_parameters(params: list[Any], group: dict[str, Any]) -> None:
    """Raises ValueError for parameters that masters would be coarser than."""
    if group["master_dtype"] is None:
        return
    for i, p in enumerate(params):
        if p.dtype == torch.float64:
            raise ValueError(
                f"master_dtype is {group['master_dtype']} and parameter {i} of the group is float64, which is finer; "
                "expected bfloat16, float16 or float32 (which needs no master). Give it a group with "
                "master_dtype=None."
            )


def take(param: Tensor, dtype: torch.dtype, known: Tensor | None) -> Tensor:
    """The master of a clean parameter: `known` where the parameter still holds its rounding, else the parameter.

    Element by element, so that an edit of some weights leaves the others as fine as they were, and loading the same
    weights again changes nothing.
    """
    param = param.detach()
    if known is None or known.shape != param.shape or known.dtype != dtype or not _alike(known, param):
        return param.to(dtype)
    if known.device != param.device:
        known = known.to(param.device)
    now, kept = local_of(param), local_of(known)  # nothing here may wait for other ranks
    kept.copy_(torch.where(kept.to(now.dtype) == now, kept, now.to(dtype)))
    return known


def _alike(known: Tensor, param: Tensor) -> bool:
    if not is_sharded(param):
        return not is_sharded(known)
    return is_sharded(known) and shard_of(known) == shard_of(param)


class Masters:
    """The masters of an optimizer's parameters. They last from step to step, perturbed or not."""

    def __init__(self, enabled: bool = False) -> None:
        self.enabled = enabled  # whether groups have the option master_dtype
        self.saved: dict[int, Saved] = {}  # by id of the parameter

    def wanted(self, group: Group, param: Tensor) -> bool:
        """Whether a clean parameter of the group is to have one."""
        return group["master_dtype"] is not None and param.dtype != group["master_dtype"]

    def of(self, group: Group, param: Tensor) -> Saved:
        """The master of a parameter that is clean, taken from it where there is none or where others wrote."""
        saved, dtype = self.saved.get(id(param)), group["master_dtype"]
        if saved is None or not saved.noted or saved.changed() or saved.clean.dtype != dtype:
            with torch.inference_mode(False), torch.no_grad():
                master = take(param, dtype, None if saved is None else saved.clean)
            if saved is not None:
                saved.forget_writes()
            saved = self.saved[id(param)] = Saved(param, master, is_master=True)
            WrittenTogether([saved]).note()
        return saved

    def forget(self, members: Members) -> None:
        """Of clean tensors whose master_dtype is None now: what is no longer followed must not come back."""
        for key in members.keys:
            gone = self.saved.pop(key, None)
            if gone is not None:
                gone.forget_writes()

    def keep_only(self, keys: set[int]) -> None:
        """Forgets those of tensors that are in no group any more."""
        self.saved = {key: saved for key, saved in self.saved.items() if key in keys}

    def all(self) -> dict[Tensor, Tensor]:
        """All masters there are, as they were when they were last in use."""
        return {saved.param: saved.clean for saved in self.saved.values()}

    def set_all(self, masters: dict[Tensor, Tensor]) -> None:
        """Continues with these, where the parameters then hold their roundings."""
        self.saved = {id(p): Saved(p, master, is_master=True) for p, master in masters.items()}
