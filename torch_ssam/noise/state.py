"""Noise on the tensors of parameter groups: put on, kept, and taken off so that the exact clean bits are back.

SSAM, wrap and WeightNoise are fronts over one `NoiseState`. It reads the options of the groups afresh at each call, so
that a scheduler, a new group or a frozen layer takes effect at once, plans which tensors an operator call is about,
calls the operators, which do the arithmetic, and notes what they wrote. generator.py has seed and draw, scales.py the
scales, weights.py the clean weights. Tests: test_weight_noise.py, test_state_machine.py, test_signals.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_ssam.noise import holders, parameters
from torch_ssam.noise.generator import Generator, NoiseArguments
from torch_ssam.noise.last import restore_at_last
from torch_ssam.noise.masters import Masters
from torch_ssam.noise.members import Group, Members, Placement, members_of
from torch_ssam.noise.regenerate import Recipe, add, recipe
from torch_ssam.noise.saved import Saved, WrittenTogether, expect_writes, tell_torch
from torch_ssam.noise.scales import ScaleArguments, Scales
from torch_ssam.noise.size import NoiseSize
from torch_ssam.noise.weights import SavedWeights
from torch_ssam.ops.dtensor import local_of
from torch_ssam.ops.entries import ops


class NoiseState(SavedWeights):
    """Applies and removes the noise of parameter groups.

    `stream` is added to the seed for the generator: ranks with noise of their own share the seed, and so the checkpoint.
    """

    def __init__(
        self, groups: Callable[[], list[Group]], seed: int, stream: int = 0, masters: bool = False
    ) -> None:
        super().__init__(groups, masters)
        self.generator = Generator(seed, stream)
        self.scales = Scales()
        self.size = NoiseSize()

    def keep_only(self, keys: set[int]) -> None:
        """Forgets tensors that are in no group any more, save what takes their noise off."""
        super().keep_only(keys)
        self.scales.keep_only(keys)

    # -- noise on --------------------------------------------------------------------------------------------

    def apply(self, sample: int = 0, negate: bool = False, draw_offset: int = 0) -> None:
        """Puts noise on every trainable tensor of groups with noise_std > 0."""
        placed = self.placed()
        self.size.look(placed, self.clean_of)
        for group, members in placed:
            if float(group["noise_std"]) != 0.0:
                self.apply_group(group, members, sample, negate, draw_offset)

    def apply_new(self) -> None:
        """Puts noise on tensors that have none yet (of a group added while weights are kept perturbed)."""
        for group, members in self.placed():
            if float(group["noise_std"]) != 0.0:
                self.apply_group(group, members.where(lambda p: not self.is_applied(p)))

    def apply_group(
        self, group: Group, members: Members, sample: int = 0, negate: bool = False, draw_offset: int = 0
    ) -> None:
        """Puts noise on these tensors: clean ones are saved first, perturbed ones written from their clean weights."""
        again, fresh = None, members
        if self._applied:
            self.restore([p for p in members.params if self._is_regenerated(p)])
            again = members.where(self.is_applied)
            fresh = members.where(lambda p: not self.is_applied(p))
        if fresh.params:
            holders.hold(self, fresh)
        for device, part in fresh.by_device():
            generator, noise = self._noise(device, group, sample, negate, draw_offset)
            self._perturb(group, part, generator, noise)
        if again is not None:
            self.apply_from_clean(group, again, sample, negate, draw_offset)

    def apply_from_clean(
        self, group: Group, members: Members, sample: int = 0, negate: bool = False, draw_offset: int = 0
    ) -> None:
        """Writes saved clean weights plus noise into tensors that are perturbed already."""
        for device, part in members.by_device():
            saved = [self._applied[key] for key in part.keys]
            clean = [one.clean for one in saved]
            scale = self.scales.of(group, saved, clean)
            generator, noise = self._noise(device, group, sample, negate, draw_offset)
            _perturb_from_clean(part, clean, generator, noise, scale)
            self.written(part)

    def write(self, clean_of: Callable[[Tensor], Tensor], negate: bool = False) -> None:
        """Writes clean weights plus noise, for a caller that keeps the clean ones and puts them back itself."""
        for group, members in self.placed():
            if float(group["noise_std"]) != 0.0:
                for device, part in members.by_device():
                    clean = [clean_of(p) for p in part.params]
                    saved = [Saved(p, c) for p, c in zip(part.params, clean, strict=True)]
                    scale = self.scales.of(group, saved, clean)
                    generator, noise = self._noise(device, group, 0, negate, 0)
                    _perturb_from_clean(part, clean, generator, noise, scale)
                    tell_torch(part.params)

    def noise_of(
        self, group: Group, param: Tensor, place: int, sample: int, noise_only: bool = True
    ) -> Tensor:
        """The noise of this draw that the clean weights of a tensor would get, or clean + noise, in the clean weights' dtype."""
        with torch.no_grad():
            clean = self.clean_of(param).detach()
            scale = self.scales.of(group, [Saved(param, clean)], [clean])
            generator, noise = self._noise(param.device, group, sample, False, 0)
            only: Tensor = torch.ops.torch_ssam.perturbed(
                clean, generator, place, *noise, *scale.arguments(), noise_only=noise_only
            )
            return only

    def _noise(
        self, device: torch.device, group: Group, sample: int, negate: bool, draw_offset: int
    ) -> tuple[Tensor, NoiseArguments]:
        generator, draw = self.generator.on(device)
        return generator, NoiseArguments.of(group, sample, negate, draw + draw_offset)

    def _perturb(self, group: Group, part: Members, generator: Tensor, noise: NoiseArguments) -> None:
        """Puts noise on clean tensors of one device."""
        if self.masters.enabled and group["master_dtype"] is None:
            self.forget_masters(part)
        elif self.masters.enabled:
            mastered = part.where(lambda p: self.masters.wanted(group, p))
            if mastered.params:
                masters = self.saved_masters(group, mastered)
                self._add_noise(group, mastered, masters, False, generator, noise)
            part = part.where(lambda p: not self.is_applied(p))
            if not part.params:
                return
        if group["memory"] == "regenerate":
            self._perturb_in_place(part, recipe(generator, noise))
            return
        self._add_noise(group, part, [self._copy_of(p) for p in part.params], True, generator, noise)

    def _add_noise(
        self,
        group: Group,
        part: Members,
        saved: list[Saved],
        save: bool,
        generator: Tensor,
        noise: NoiseArguments,
    ) -> None:
        """Writes clean + noise, and first, with `save`, the clean weights into the copies, which else hold them."""
        clean = [one.clean for one in saved]
        scale = self.scales.of(group, saved, part.params if save else clean)
        noted = dict(zip(part.keys, saved, strict=True))
        expect_writes(saved, part.keys)
        try:
            if save:
                ops.perturb_(part.params, clean, generator, part.places, *noise, *scale.arguments())
            else:
                _perturb_from_clean(part, clean, generator, noise, scale)
            self._applied.update(noted)
        except BaseException:
            # The operator refused, before it wrote, or a signal struck just before or just after it wrote.
            if _holds_noise(part, clean, generator, noise, scale):
                self._applied.update(noted)
            raise
        self.written(part)

    def _perturb_in_place(self, part: Members, how: Recipe) -> None:
        parameters.check_regenerated(part.params)
        noted = {key: Saved(p, None, place=place, recipe=how) for p, place, key in zip(*part, strict=True)}
        add(part.params, part.places, how, lambda: self._applied.update(noted))
        self.written(part)

    # -- pickling --------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # The groups callable belongs to the owner, which gives it back.
        return {
            "seed": self.generator.seed,
            "stream": self.generator.stream,
            "draw": self.generator.draw,
            "applied": list(self.applied_clean().items()),
            "fisher": list(self.scales.fisher_sums().items()),
            "keeps_masters": self.masters.enabled,
            "masters": list(self.masters.all().items()),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.generator = Generator(state["seed"], state.get("stream", 0))
        self.generator.set(state["seed"], state["draw"])
        self.masters = Masters(state.get("keeps_masters", False))
        self.masters.set_all(dict(state.get("masters", ())))
        self.size = NoiseSize()
        self.scales = Scales()
        self.scales.set_fisher_sums(dict(state.get("fisher", ())))
        masters = self.masters.saved
        self._applied = {id(p): masters.get(id(p)) or Saved(p, clean) for p, clean in state["applied"]}
        self._copies = {key: saved for key, saved in self._applied.items() if key not in masters}
        if self._applied:
            WrittenTogether(list(self._applied.values())).note()

    def apply_to_clean(self) -> None:
        """Puts the noise back on tensors that were copied or pickled with their clean weights, as attach() has it."""
        clean = [
            key
            for key, saved in self._applied.items()
            if torch.equal(local_of(saved.param), local_of(saved.clean).to(saved.param.dtype))
        ]
        for key in clean:
            del self._applied[key]
            self._copies.pop(key, None)  # which may be the tensor's own memory
        if clean:
            self.apply_new()

    def __del__(self) -> None:
        restore_at_last(self)

    def bind(self, groups: Callable[[], list[Group]]) -> None:
        """Reads groups from here on from this callable (after unpickling)."""
        self._placement = Placement(groups)
        if self._applied:
            holders.hold(self, members_of([saved.param for saved in self._applied.values()]))


def _perturb_from_clean(
    part: Members, clean: list[Tensor], generator: Tensor, noise: NoiseArguments, scale: ScaleArguments
) -> None:
    ops.perturb_from_clean_(part.params, clean, generator, part.places, *noise, *scale.arguments())


def _holds_noise(
    part: Members, clean: list[Tensor], generator: Tensor, noise: NoiseArguments, scale: ScaleArguments
) -> bool:
    """Whether the tensors are clean + noise, bit for bit."""
    try:
        for i, (p, saved, place) in enumerate(zip(part.params, clean, part.places, strict=True)):
            expected = torch.ops.torch_ssam.perturbed(saved, generator, place, *noise, *scale.of_one(i))
            now = local_of(p.detach())  # nothing here may wait for other ranks
            expected = local_of(expected).to(now.dtype)
            if not bool(((expected == now) | (expected.isnan() & now.isnan())).all()):
                return False
    except (ValueError, RuntimeError):  # what the operator refused
        return False
    return True
