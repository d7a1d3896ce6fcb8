"""weight_clip: after a step each filter's clean weights are clamped to c times their root mean square.

The arithmetic is csrc/math/reduce.h's; here is which tensors, and what share of their weights the first step clipped: a
pretrained network has outliers, whose loss must not go unnoticed. Tests: test_weight_clip.py.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from torch_ssam.noise.members import Group, Members
from torch_ssam.noise.options import NOISE_OPTIONS, trains
from torch_ssam.noise.parameters import check_channel_dim
from torch_ssam.noise.scales import filters_first
from torch_ssam.noise.size import capturing
from torch_ssam.noise.weights import SavedWeights
from torch_ssam.ops.dtensor import local_of
from torch_ssam.ops.entries import ops

MUCH = 0.01  # share of clipped weights from which the first step warns


class _Clipped(NamedTuple):
    param: Tensor
    place: int
    changed: int
    weight_clip: float


class Clipping:
    """Clips weights for an optimizer, and remembers what share of them its first clipping step changed."""

    def __init__(self) -> None:
        self.share: float | None = None  # none before that step
        self._first: list[_Clipped] = []

    def clips(self, group: Group) -> bool:
        """Whether a step of the group clips."""
        return group["weight_clip"] is not None and trains(group)

    def chosen(self, group: Group, members: Members) -> Members:
        """Those that a step of the group clips: it updates them, and they have filters."""
        if not self.clips(group):
            return Members([], [], [])
        NOISE_OPTIONS["weight_clip"].check("weight_clip", group["weight_clip"])
        check_channel_dim(members.params, group["channel_dim"])
        return members.where(lambda p: p.grad is not None and p.dim() >= 2)

    def clip(self, noise: SavedWeights, group: Group, members: Members) -> None:
        """Clips the clean weights of `chosen` tensors, which a step has updated."""
        if not members.params:
            return
        counts = self.share is None and not capturing(members)
        for _, part in members.by_device():
            noise.change_clean(group, part, partial(self._clip, group, part, counts))

    def _clip(self, group: Group, members: Members, counts: bool, clean: list[Tensor]) -> None:
        weight_clip, channel_dim = float(group["weight_clip"]), int(group["channel_dim"])
        rows = [filters_first(weights, channel_dim) for weights in clean]
        if not counts:
            ops.clip_rows_(rows, weight_clip)
            return
        for p, place, weights, row in zip(members.params, members.places, clean, rows, strict=True):
            local = local_of(
                weights.detach()
            )  # of a DTensor this rank's part: nobody waits for others to count
            before = local.clone()
            ops.clip_rows_([row], weight_clip)
            changed = int(torch.count_nonzero((before != local) & ~before.isnan()))
            self._first.append(_Clipped(p, place, changed, weight_clip))

    def report(self) -> None:
        """At the end of a step: says so if it was the first to clip, and clipped much."""
        first, self._first = self._first, []
        if not first:
            return
        count = sum(one.changed for one in first)
        total = sum(local_of(one.param).numel() for one in first)
        self.share = count / total if total else 0.0
        if self.share <= MUCH:
            return
        most = max(first, key=lambda one: one.changed / max(1, local_of(one.param).numel()))
        warnings.warn(
            f"weight_clip={most.weight_clip:g} clipped {self.share:.2%} of the weights in its first step, most of "
            f"parameter {most.place} of shape {tuple(most.param.shape)} ({most.changed} of {local_of(most.param).numel()}). "
            "Where training starts from random weights that is as it should be (4.6% of Gaussian ones at 2); a pretrained "
            "network loses outliers that it may need: begin with a larger weight_clip there, and lower it during training.",
            UserWarning,
            stacklevel=3,
        )
