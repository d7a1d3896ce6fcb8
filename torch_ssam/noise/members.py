"""Tensors of parameter groups and their places: which ones a call is about, in which order, on which device.

A tensor's place is its position over all groups, frozen ones counted; the noise of an element depends on it. Lists
side by side rather than a tuple for each tensor, which would wake the garbage collector; `keys` are the tensors' ids,
since a tensor's own hash runs Python. Tests: test_weight_noise.py, test_written_together.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

Group = dict[str, Any]


class Members(NamedTuple):
    """Tensors of one group, their places and their ids."""

    params: list[Tensor]
    places: list[int]
    keys: list[int]

    def where(self, chosen: Callable[[Tensor], bool]) -> Members:
        """Those whose tensor is chosen."""
        kept = [
            (p, place, key)
            for p, place, key in zip(self.params, self.places, self.keys, strict=True)
            if chosen(p)
        ]
        return Members([p for p, _, _ in kept], [i for _, i, _ in kept], [key for _, _, key in kept])

    def trainable(self) -> Members:
        """Those that require gradients."""
        if all([p.requires_grad for p in self.params]):
            return self
        return self.where(lambda p: p.requires_grad)

    def by_device(self) -> list[tuple[torch.device, Members]]:
        """The members of each device; nearly always one part."""
        params = self.params
        if not params:
            return []
        device = params[0].device
        if (device.type == "cpu" and all([p.is_cpu for p in params])) or all(
            p.device == device for p in params
        ):
            return [(device, self)]
        parts: dict[torch.device, Members] = {}
        for p, place, key in zip(*self, strict=True):
            part = parts.setdefault(p.device, Members([], [], []))
            part.params.append(p)
            part.places.append(place)
            part.keys.append(key)
        return list(parts.items())


def members_of(params: list[Tensor], first: int = 0) -> Members:
    """The tensors with places counted from `first`; where nobody reads the places, from 0."""
    return Members(list(params), list(range(first, first + len(params))), list(map(id, params)))


def are_same(tensors: Collection[Tensor], others: Collection[Tensor]) -> bool:
    """Whether these are the same tensors in the same order: `==` would compare their elements."""
    return len(tensors) == len(others) and all(map(is_, tensors, others))


class Placement:
    """The members of each group. Made anew only where a group's tensors are others than last time."""

    def __init__(self, groups: Callable[[], list[Group]]) -> None:
        self._groups = groups
        self._known: list[Members] = []

    def members(self) -> tuple[list[tuple[Group, Members]], bool]:
        """Each group with all of its tensors, frozen ones too, and whether they are others than last time."""
        groups, known = self._groups(), self._known
        placed, first, changed = [], 0, len(known) != len(groups)
        for i, group in enumerate(groups):
            params = group["params"]
            members = None if changed else known[i]
            if members is None or not are_same(members.params, params):
                changed = True  # and with it the places of the groups after this one
                members = members_of(params, first)
            first += len(params)
            placed.append((group, members))
        if changed:
            self._known = [members for _, members in placed]
        return placed, changed

    def only(self) -> Members | None:
        """The members of the only group, as they were last time."""
        return self._known[0] if len(self._known) == 1 else None

    def look_again(self) -> None:
        """Has `members` say next time that they are others."""
        self._known = []

    def describe(self, params: list[Tensor], was: str, were: str) -> str:
        """Names parameters by place and shape, as the subject of a message, with its verb."""
        place = {id(p): i for i, p in enumerate(p for group in self._groups() for p in group["params"])}
        text = [f"{place.get(id(p), '?')} of shape {tuple(p.shape)}" for p in params[:5]]
        more = f" and {len(params) - 5} more" if len(params) > 5 else ""
        s, verb = ("s", were) if len(params) > 1 else ("", was)
        return f"Parameter{s} {', '.join(text)}{more} {verb}"
