"""What puts a tensor's clean weights back, and whether others wrote to the tensor since we did.

Writes in place move a tensor's version, `param.data = other` moves its address. Both are read for all tensors of an
operator call at once: a call for each tensor would cost more than the reading. Tests: test_weight_noise.py,
test_written_together.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ssam.noise.cached_weights import forget_cached_weights
from torch_ssam.noise.regenerate import Recipe, without
from torch_ssam.ops import direct
from torch_ssam.ops.dtensor import is_sharded, local_of, shard_of


class Saved:
    """The clean weights of one tensor, as a copy, as a master, or (memory="regenerate") as a recipe to make them again.

    A copy serves while nobody else changes the tensor's shape, dtype or device.
    """

    __slots__ = (
        "copy",
        "index",
        "is_master",
        "param",
        "place",
        "recipe",
        "row_scales",
        "sharded",
        "together",
    )

    def __init__(
        self,
        param: Tensor,
        copy: Tensor | None,
        *,
        is_master: bool = False,
        place: int = -1,
        recipe: Recipe | None = None,
    ) -> None:
        self.param, self.copy, self.is_master = param, copy, is_master
        self.place, self.recipe = place, recipe
        self.row_scales: Tensor | None = None
        self.sharded = is_sharded(param)
        self.together: WrittenTogether | None = (
            None  # what the tensor was last written with, and its position there
        )
        self.index = -1

    @property
    def clean(self) -> Tensor:
        """The clean weights; without a copy a new tensor."""
        if self.copy is None:
            assert self.recipe is not None
            return without(self.param, self.place, self.recipe)
        return self.copy

    @property
    def noted(self) -> bool:
        """Whether it is known how we left the tensor."""
        return self.together is not None and self.together.noted

    def changed(self) -> bool:
        """Whether somebody else wrote to the tensor since we did."""
        return self.together is not None and self.together.changed_at(self.index)

    def forget_writes(self) -> None:
        """Forgets how we left the tensor: whatever is found from here on is ours."""
        if self.together is not None:
            self.together.keys, self.together.copies = [], None
            self.together = None

    def fits(self, param: Tensor) -> bool:
        """Whether the copy has the tensor's shape, dtype and device."""
        copy = self.copy
        return (
            copy is not None
            and param.shape == copy.shape
            and param.dtype == copy.dtype
            and param.device == copy.device
            and (not self.sharded or shard_of(param) == shard_of(copy))
        )


class WrittenTogether:
    """Tensors that one operator call wrote, and the version and address of each as the call left it.

    `keys` are the ids of the tensors, in the call's order, as long as all of them are in use and point here; after that
    it is empty, and only `changed_at` may be asked. `copies` are their clean weights, where all have a copy.
    """

    __slots__ = ("_addresses", "_params", "_sharded", "_versions", "copies", "keys", "on_cpu")

    def __init__(self, saved: Sequence[Saved]) -> None:
        self._params = [one.param for one in saved]
        self._sharded = any([one.sharded for one in saved])
        self._versions: list[int] | None = None  # none while whatever is found is ours
        self._addresses: list[int] | None = None
        self.on_cpu = False  # whether all tensors are, while their addresses are those that `note` has read
        copies = [one.copy for one in saved if one.copy is not None]
        self.copies = copies if len(copies) == len(saved) else None
        self.keys: list[int] = []
        for index, one in enumerate(saved):
            one.forget_writes()
            one.index, one.together = index, self
        self.keys = list(map(id, self._params))

    @property
    def noted(self) -> bool:
        """Whether it is known how we left the tensors."""
        return self._versions is not None

    def expect_writes(self) -> None:
        """From here until `note` whatever is found is ours: a signal must not blame others."""
        if self._versions is None:  # nobody has looked at the tensors since, so they may have moved
            self._addresses = None
        self._versions = None

    def note(self) -> None:
        """Remembers the tensors as they are."""
        if self._addresses is None:
            self._addresses = self._read_addresses()
            self.on_cpu = all([p.is_cpu for p in self._params])
        self._versions = self._read_versions()

    def as_left(self) -> tuple[list[int], list[int]] | None:
        """The versions and addresses that we left the tensors with, where they are known, on the CPU and not sharded."""
        if self._versions is None or self._addresses is None or self._sharded or not self.on_cpu:
            return None
        return self._versions, self._addresses

    def trainable(self) -> bool:
        """Whether all tensors require gradients."""
        return all([p.requires_grad for p in self._params])

    def changed(self) -> bool:
        """Whether somebody else may have written to one of the tensors since; `changed_at` tells which."""
        versions = self._versions
        return versions is not None and (
            versions != self._read_versions() or self._addresses != self._read_addresses()
        )

    def changed_at(self, index: int) -> bool:
        """Whether somebody else wrote to this tensor since."""
        versions, addresses, param = self._versions, self._addresses, self._params[index]
        if versions is None or addresses is None:
            return False
        version = param._version + local_of(param)._version if self._sharded else param._version
        return version != versions[index] or local_of(param).data_ptr() != addresses[index]

    # A DTensor has no memory of its own, and a version beside that of its local tensor.

    def _read_versions(self) -> list[int]:
        if self._sharded:
            return [p._version + local_of(p)._version for p in self._params]
        return direct.versions(self._params)

    def _read_addresses(self) -> list[int]:
        if self._sharded:
            return [local_of(p).data_ptr() for p in self._params]
        return [p.data_ptr() for p in self._params]


def expect_writes(saved: list[Saved], keys: list[int]) -> None:
    """From here until these tensors are noted as written, whatever is found in them is ours."""
    together = saved[0].together if saved else None
    if together is not None and together.keys == keys:
        together.expect_writes()
    else:
        for one in saved:
            one.forget_writes()


def tell_torch(params: list[Tensor]) -> None:
    """Autograd, and what keeps things computed from weights for a whole block, that the weights changed."""
    forget_cached_weights()
    torch.autograd.graph.increment_version(params)
