"""Clean copies of tensors that are perturbed, and whether others wrote to the tensors since.

Writes in place move a tensor's version, `param.data = other` moves its address. Both are read for all tensors of an
operator call at once: a call for each tensor would cost more than the reading. Tests: test_weight_noise.py,
test_written_together.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torch_ssam.noise.regenerate import Recipe, without
from torch_ssam.ops.dtensor import is_sharded, local_of, shard_of


class Copy:
    """The clean copy of a tensor, which lasts while nobody else changes the tensor's shape, dtype or device.

    With memory="regenerate" there is none; a recipe says what noise to take off again.
    """

    __slots__ = ("index", "param", "place", "recipe", "row_scales", "saved", "sharded", "together")

    def __init__(
        self, param: Tensor, saved: Tensor | None, place: int = -1, recipe: Recipe | None = None
    ) -> None:
        self.param, self.saved = param, saved
        self.place, self.recipe = place, recipe
        self.row_scales: Tensor | None = None
        self.sharded = is_sharded(param)
        self.together: Together | None = None  # what the tensor was last written with, and its position there
        self.index = -1

    @property
    def clean(self) -> Tensor:
        """The clean weights; without a copy a new tensor."""
        if self.saved is None:
            assert self.recipe is not None
            return without(self.param, self.place, self.recipe)
        return self.saved

    @property
    def noted(self) -> bool:
        """Whether it is known how we left the tensor."""
        return self.together is not None and self.together.noted

    def changed(self) -> bool:
        """Whether somebody else wrote to the tensor since we did."""
        return self.together is not None and self.together.changed_at(self.index)

    def leave(self) -> None:
        """Forgets how we left the tensor: whatever is found from here on is ours."""
        if self.together is not None:
            self.together.keys, self.together.saved = [], None
            self.together = None

    def fits(self, param: Tensor) -> bool:
        """Whether the copy has the tensor's shape, dtype and device."""
        saved = self.saved
        return (
            saved is not None
            and param.shape == saved.shape
            and param.dtype == saved.dtype
            and param.device == saved.device
            and (not self.sharded or shard_of(param) == shard_of(saved))
        )


class Together:
    """Tensors that are written by one operator call, and the version and address of each as the call left it.

    `keys` are the ids of the tensors, in the call's order, as long as all copies are in use and point here; after
    that it is empty, and only `changed_at` may be asked. `saved` are the clean copies, where all have one.
    """

    __slots__ = ("_addresses", "_params", "_sharded", "_versions", "keys", "saved")

    def __init__(self, copies: Sequence[Copy]) -> None:
        self._params = [copy.param for copy in copies]
        self._sharded = any([copy.sharded for copy in copies])
        self._versions: list[int] | None = None  # none while whatever is found is ours
        self._addresses: list[int] | None = None
        saved = [copy.saved for copy in copies if copy.saved is not None]
        self.saved = saved if len(saved) == len(copies) else None
        self.keys: list[int] = []
        for index, copy in enumerate(copies):
            copy.leave()
            copy.index, copy.together = index, self
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
        self._versions = self._read_versions()

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
        return [p._version for p in self._params]

    def _read_addresses(self) -> list[int]:
        if self._sharded:
            return [local_of(p).data_ptr() for p in self._params]
        return [p.data_ptr() for p in self._params]
