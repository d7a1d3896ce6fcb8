"""The clean weights of tensors that are perturbed: saved, found again, and put back bit for bit.

`SavedWeights` knows which tensors are perturbed now, notes how we left them, and so finds what others wrote to them
since; that is kept, and named. masters.py has clean weights that last, regenerate.py those that are made again.
Tests: test_weight_noise.py, test_written_together.py, test_signals.py, test_exceptions.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, KeysView

import torch
from torch import Tensor

from torch_ssam.noise import holders, pieces
from torch_ssam.noise.masters import Masters
from torch_ssam.noise.members import Group, Members, Placement, members_of
from torch_ssam.noise.regenerate import add
from torch_ssam.noise.saved import Saved, WrittenTogether, tell_torch
from torch_ssam.ops.entries import ops


class PerturbedWeightsChanged(RuntimeError):
    """Parameters were written to while they held perturbed weights."""


class SavedWeights:
    """The clean weights of the tensors of parameter groups.

    `groups` is a callable, since optimizers may replace their list of groups.
    """

    looked_for_sharing = False  # whether it is known that other processes share the tensors
    only_parameters = False  # whether it is known that the groups were made of Parameters and nothing else

    def __init__(self, groups: Callable[[], list[Group]], masters: bool) -> None:
        self._placement = Placement(groups)
        self.masters = Masters(masters)
        self._copies: dict[int, Saved] = {}  # memory for clean weights, by id of the tensor, in use or not
        self._applied: dict[int, Saved] = {}  # of the tensors that are perturbed now

    # -- which tensors ---------------------------------------------------------------------------------------

    def placed(self, frozen: bool = False) -> list[tuple[Group, Members]]:
        """Each group with its trainable tensors (with `frozen`, all tensors) and their places."""
        placed, changed = self._placement.members()
        if changed:
            self._check_replaced(placed)
            self.keep_only({key for _, members in placed for key in members.keys})
        if frozen:
            return placed
        return [(group, members.trainable()) for group, members in placed]

    def _check_replaced(self, placed: list[tuple[Group, Members]]) -> None:
        """Raises where DeepSpeed has replaced the tensors, at every use."""
        try:
            for _, members in placed if self.only_parameters else ():
                pieces.check_not_replaced(members.params)
        except ValueError:
            self._placement.look_again()
            raise

    def place_of(self) -> dict[Tensor, int]:
        """The place of every tensor, frozen ones included."""
        everything = (members for _, members in self.placed(frozen=True))
        return {p: i for members in everything for p, i in zip(members.params, members.places, strict=True)}

    def describe(self, params: list[Tensor], was: str, were: str) -> str:
        """Names parameters by place and shape, as the subject of a message, with its verb."""
        return self._placement.describe(params, was, were)

    def keep_only(self, keys: set[int]) -> None:
        """Forgets tensors that are in no group any more, save what takes their noise off."""
        if not self._applied.keys() <= keys:
            keys = keys | self._applied.keys()
            self._placement.look_again()  # when they are clean
        self._copies = {key: saved for key, saved in self._copies.items() if key in keys}
        self.masters.keep_only(keys)

    @property
    def active(self) -> bool:
        """Whether any tensor holds perturbed weights now."""
        return bool(self._applied)

    @property
    def applied_keys(self) -> KeysView[int]:
        """The ids of the tensors that hold perturbed weights now."""
        return self._applied.keys()

    def is_applied(self, param: Tensor) -> bool:
        """Whether this tensor holds perturbed weights now."""
        return id(param) in self._applied

    def only_ones_together(self) -> tuple[Members, WrittenTogether] | None:
        """The tensors of the only group, as they were last time, where one call wrote them all and they have copies."""
        members = self._placement.only()
        saved = self._applied.get(members.keys[0]) if members is not None and members.keys else None
        together = None if saved is None else saved.together
        if (
            members is None
            or together is None
            or together.keys is not members.keys
            or together.copies is None
        ):
            return None
        return members, together

    def all_or_none_applied(self, members: Members) -> bool | None:
        """Whether these tensors hold perturbed weights now; None where some do and some do not, or there are none."""
        applied, keys = self._applied, members.keys
        if keys and len(keys) == len(applied) and keys == list(applied):
            return True
        found = {key in applied for key in keys}
        return found.pop() if len(found) == 1 else None

    def clean_of(self, param: Tensor) -> Tensor:
        """The clean weights: what was saved while perturbed, else the tensor itself."""
        saved = self._applied.get(id(param))
        return param if saved is None else saved.clean

    def all_clean_of(self, members: Members) -> list[Tensor]:
        """The clean weights of tensors that are perturbed now."""
        together = self._together(members.keys)
        if together is not None and together.copies is not None:
            return together.copies
        applied = self._applied
        return [applied[key].clean for key in members.keys]

    def all_saved_of(self, members: Members) -> list[Saved]:
        """What is kept of tensors that are perturbed now."""
        return [self._applied[key] for key in members.keys]

    def applied_clean(self) -> dict[Tensor, Tensor]:
        """The clean weights of all tensors that are perturbed now."""
        return {saved.param: saved.clean for saved in self._applied.values()}

    def has_master(self, group: Group, param: Tensor) -> bool:
        """Whether the clean weights of a tensor are a master. A changed master_dtype waits until noise is off."""
        saved = self._applied.get(id(param))
        return self.masters.wanted(group, param) if saved is None else saved.is_master

    def masters_of(self, group: Group, members: Members) -> list[Tensor]:
        """The masters of tensors that have one."""
        return [saved.clean for saved in self.saved_masters(group, members)]

    def saved_masters(self, group: Group, members: Members) -> list[Saved]:
        """The same; of clean tensors they have first taken what others wrote, also through `p.data`, which no version counts."""
        applied = self._applied
        clean = members.where(lambda p: not self.is_applied(p)) if applied else members
        if clean.params:
            ops.follow_([self.masters.of(group, p).clean for p in clean.params], clean.params)
        return [applied.get(key) or self.masters.saved[key] for key in members.keys]

    def change_clean(self, group: Group, members: Members, change: Callable[[list[Tensor]], None]) -> None:
        """Has `change` write the clean weights of tensors: their masters, whose roundings clean ones then hold, or they."""
        rounded = members.where(lambda p: self.masters.enabled and self.has_master(group, p))
        kept = dict(zip(rounded.keys, self.masters_of(group, rounded), strict=True))
        change([kept.get(key, self.clean_of(p)) for p, key in zip(members.params, members.keys, strict=True)])
        rounded = rounded.where(lambda p: not self.is_applied(p))
        if rounded.params:
            ops.restore_(rounded.params, [kept[key] for key in rounded.keys])
        self.written(members.where(lambda p: not self.is_applied(p)))

    def forget_masters(self, members: Members) -> None:
        """Of a group whose master_dtype is None now, save those that are in use."""
        if self.masters.saved:
            self.masters.forget(members.where(lambda p: not self.is_applied(p)))

    def drop_copies(self) -> None:
        """Frees the memory of clean copies that are not in use."""
        if not self._applied:
            self._copies = {}

    def _copy_of(self, param: Tensor) -> Saved:
        """Memory for the clean weights of a tensor."""
        saved = self._copies.get(id(param))
        if saved is None or not saved.fits(param):
            if saved is not None:
                saved.forget_writes()
            with torch.inference_mode(False):  # it outlives an inference_mode block around us
                saved = Saved(param, torch.empty_like(param, requires_grad=False))
            self._copies[id(param)] = saved
        return saved

    def _together(self, keys: list[int]) -> WrittenTogether | None:
        """What is known of these tensors, by id, if they were last written together."""
        saved = (self._applied.get(keys[0]) or self.masters.saved.get(keys[0])) if keys else None
        together = None if saved is None else saved.together
        return together if together is not None and (together.keys is keys or together.keys == keys) else None

    def written(self, members: Members) -> None:
        """Tells autograd that these tensors changed, and remembers them as we left them.

        That is, perturbed ones and those with a master.
        """
        keys = members.keys
        together = self._together(keys)
        if together is None:
            applied = self._applied if not self.masters.saved else {**self.masters.saved, **self._applied}
            ours = [saved for saved in map(applied.get, keys) if saved is not None]
            together = WrittenTogether(ours) if ours else None
            if together is not None and len(ours) == len(keys):
                together.keys = keys  # the same numbers, and known as such without a look at each
        if together is None:
            tell_torch(members.params)
            return
        together.expect_writes()  # before any version moves
        tell_torch(members.params)
        together.note()

    def _is_regenerated(self, param: Tensor) -> bool:
        saved = self._applied.get(id(param))
        return saved is not None and saved.recipe is not None

    # -- noise off -------------------------------------------------------------------------------------------

    def ready_to_update(self) -> WrittenTogether | None:
        """Restores what an update in the same pass cannot serve: tensors frozen since, and those without a copy.

        Returns what is known of all perturbed tensors, where one call wrote them and they are as it left them.

        Raises PerturbedWeightsChanged, after putting all clean weights back, if someone else wrote to
        perturbed tensors.
        """
        together = self._together(list(self._applied))  # nearly always one call has written all of them
        if (
            together is not None
            and together.copies is not None
            and not together.changed()
            and together.trainable()
        ):
            return together
        saved = self._applied.values()
        written = {one.together for one in saved}
        changed = any([together is not None and together.changed() for together in written])
        if changed and any([one.changed() for one in saved]):  # not only tensors restored since
            self.restore()
        special = [one.param for one in saved if one.recipe is not None or not one.param.requires_grad]
        if special:
            self.restore(special)
        return None

    def restore_surely(self) -> None:
        """Restores all, also if a signal strikes meanwhile (then raises what the signal's handler raised)."""
        try:
            self.restore()
        except PerturbedWeightsChanged:
            raise
        except BaseException:
            self.restore()
            raise

    def restore(self, only: Iterable[Tensor] | None = None) -> None:
        """Puts the clean weights back, bit for bit where there are copies.

        Tensors that others wrote to keep what was written, and are named. May be called again after an
        interruption anywhere in it.
        """
        applied = self._applied
        saved = list(applied.values()) if only is None else [applied[id(p)] for p in only if id(p) in applied]
        if not saved:
            return
        changed = [one for one in saved if one.changed()]
        if changed:
            kept = {id(one.param) for one in changed}
            saved = [one for one in saved if id(one.param) not in kept]
        by_recipe: dict[int, list[Saved]] = {}
        for one in saved:
            if one.recipe is not None:
                by_recipe.setdefault(id(one.recipe), []).append(one)
        for regenerated in by_recipe.values():
            self._restore_in_place(regenerated)
        applied = self._applied
        ours = members_of([one.param for one in saved if one.recipe is None])
        for _, part in ours.by_device():
            ops.restore_(part.params, [applied[key].clean for key in part.keys])
        # Forgotten before the version moves: interrupted anywhere here, a second restore() is right.
        for one in changed:
            del applied[id(one.param)]
        for key in ours.keys:
            del applied[key]
        if self.masters.saved:
            self.written(ours)
        else:
            tell_torch(ours.params)
        if not applied:
            holders.let_go(self)
        if changed:
            raise PerturbedWeightsChanged(
                f"{self.describe([one.param for one in changed], 'was', 'were')} written to while holding perturbed weights: "
                "the new values were kept and are now taken as clean; all other parameters were restored. "
                "Load or edit weights outside perturb(), or after opt.eval() with keep_perturbed=True."
            )

    def _restore_in_place(self, saved: list[Saved]) -> None:
        """Takes the noise of one recipe off and forgets it."""
        how = saved[0].recipe
        assert how is not None
        gone = {id(one.param) for one in saved}
        left = {key: one for key, one in self._applied.items() if key not in gone}

        def forget() -> None:
            self._applied = left

        params, places = [one.param for one in saved], [one.place for one in saved]
        add(params, places, how.mirrored(), forget)
        for one in saved:
            one.forget_writes()
        tell_torch(params)
