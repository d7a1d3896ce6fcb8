"""What the noise of each weight is multiplied by: one number for each row, computed from the weights, or each its own.

`Scales` keeps the sums of squared gradients that scale="fisher" divides by. The formulas are csrc/math/scale.h's.
Tests: test_ops_scale.py, test_ssam_reference.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torch_ssam.noise.members import Group, members_of
from torch_ssam.noise.options import ROW_SCALES, trains
from torch_ssam.noise.parameters import check_channel_dim
from torch_ssam.noise.saved import Saved
from torch_ssam.ops.entries import ops


def rows_of(param: Tensor, channel_dim: int) -> int:
    """The filters of a tensor, counted by this dimension, or the whole tensor where it has less than two."""
    return 1 if param.dim() < 2 else param.size(channel_dim)


def filters_first(tensor: Tensor, channel_dim: int) -> Tensor:
    """The tensor as operators take rows: with the dimension that counts its filters first, in the same memory."""
    tensor = tensor.detach()
    return tensor if channel_dim == 0 or tensor.dim() < 2 else tensor.movedim(channel_dim, 0)


class ScaleArguments(NamedTuple):
    """What operators are told of a scale: how they apply it, and, by rows, each tensor's numbers."""

    scale: str = "isotropic"
    row_scales: list[Tensor] | None = None
    channel_dim: int = 0

    def arguments(self) -> tuple[object, ...]:
        """The operators' last arguments; the defaults cost nothing where they are left out."""
        if self.row_scales is not None:
            rows = self.scale, self.row_scales
            return rows if self.channel_dim == 0 else (*rows, None, self.channel_dim)
        return () if self.scale == "isotropic" else (self.scale,)

    def of_one(self, i: int) -> tuple[object, ...]:
        """The same of one tensor alone."""
        if self.row_scales is None:
            return self.arguments()
        return self._replace(row_scales=[self.row_scales[i]]).arguments()


class Scales:
    """Numbers by rows, and the sums that some of them need."""

    def __init__(self) -> None:
        self._fisher: dict[int, tuple[Tensor, Tensor]] = {}  # tensors and their F, one number for each filter

    def memory_of(self, group: Group, saved: list[Saved]) -> list[Tensor]:
        """Memory for the numbers of the group's rows, one number a row."""
        whole = ROW_SCALES[group["scale"]][1]
        channel_dim = int(group["channel_dim"])
        row_scales = []
        for one in saved:
            rows = 1 if whole else rows_of(one.param, channel_dim)
            known = one.row_scales
            if known is None or known.numel() != rows:
                with torch.inference_mode(False):
                    known = torch.empty(rows, dtype=torch.float32, device=one.param.device)
                one.row_scales = known
            row_scales.append(known)
        return row_scales

    def of(self, group: Group, saved: list[Saved], clean: list[Tensor]) -> ScaleArguments:
        """What the operators are told of the group's scale; row scales are computed from the clean weights."""
        scale = group["scale"]
        if scale not in ROW_SCALES:
            return ScaleArguments(scale)
        kind, whole = ROW_SCALES[scale]
        channel_dim = 0 if whole else int(group["channel_dim"])
        if channel_dim != 0:
            check_channel_dim([one.param for one in saved], channel_dim)
            clean = [filters_first(weights, channel_dim) for weights in clean]
        row_scales = self.memory_of(group, saved)
        if scale == "fisher":
            fisher = [self._fisher_of(one.param, channel_dim) for one in saved]
            ops.row_scales_(row_scales, clean, fisher, float(group["fisher_factor"]))
        elif kind == "norm":
            ops.row_scales_(row_scales, clean, [])
        else:
            ops.row_scales_(row_scales, clean, [], kind=kind)
        return ScaleArguments("rows", row_scales, channel_dim)

    def observe(self, group: Group) -> None:
        """With scale="fisher": F <- beta F + sum of g^2, from the gradients of a step."""
        if group["scale"] != "fisher":
            return
        # Checkpoint tools step with lr = 0 and gradients of zeros, to create the state that they then load into.
        counts = trains(group)
        for _, part in members_of([p for p in group["params"] if p.grad is not None]).by_device():
            channel_dim = int(group["channel_dim"])
            fisher = [self._fisher_of(p, channel_dim) for p in part.params]
            grads = [filters_first(p.grad, channel_dim) for p in part.params if p.grad is not None]
            if counts:
                ops.row_fisher_(fisher, grads, float(group["fisher_decay"]))

    def fisher_sums(self) -> dict[Tensor, Tensor]:
        """F of every tensor that has one: per filter, the decayed sum of squared gradients."""
        return dict(self._fisher.values())

    def set_fisher_sums(self, sums: dict[Tensor, Tensor]) -> None:
        """Continues with these."""
        self._fisher = {id(p): (p, f) for p, f in sums.items()}

    def keep_only(self, keys: set[int]) -> None:
        """Forgets the sums of tensors that are in no group any more."""
        self._fisher = {key: known for key, known in self._fisher.items() if key in keys}

    def _fisher_of(self, param: Tensor, channel_dim: int) -> Tensor:
        known, rows = self._fisher.get(id(param)), rows_of(param, channel_dim)
        if known is None or known[1].numel() != rows or known[1].device != param.device:
            with torch.inference_mode(False):
                known = param, torch.zeros(rows, dtype=torch.float32, device=param.device)
            self._fisher[id(param)] = known
        return known[1]
