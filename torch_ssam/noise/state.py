"""The state behind every perturbation: which tensors are perturbed now, their clean copies, seed and draw.

SSAM, wrap and WeightNoise are fronts over one `NoiseState`. It reads the options of the parameter groups
afresh at each call, so a scheduler, a new group or a frozen layer takes effect at once, and it calls the
operators, which do the arithmetic. A tensor's place is its position over all groups, frozen ones counted.
Tests: test_weight_noise.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_ssam.noise import masters, parameters
from torch_ssam.noise.regenerate import Recipe, add, recipe
from torch_ssam.noise.saved import Copy, Together
from torch_ssam.ops import library
from torch_ssam.ops.dtensor import local_of
from torch_ssam.ops.entries import ops

Group = dict[str, Any]


class PerturbedWeightsChanged(RuntimeError):
    """Parameters were written to while they held perturbed weights."""


class Members(NamedTuple):
    """Tensors of a group and their places, as two lists: a pair for each would wake the garbage collector."""

    places: list[int]
    params: list[Tensor]

    def where(self, chosen: Callable[[Tensor], bool]) -> Members:
        """Those whose tensor is chosen."""
        kept = [(i, p) for i, p in zip(self.places, self.params, strict=True) if chosen(p)]
        return Members([i for i, _ in kept], [p for _, p in kept])


Scaled = tuple[Any, ...]  # the operators' last arguments: none, ("element",), or ("rows", row_scales)
ROWS = ("tensor", "filter", "fisher")  # the scales with one number for each row


def rows_of(param: Tensor) -> int:
    """The filters of a tensor: dimension 0, or the whole tensor where it has less than two."""
    return 1 if param.dim() < 2 else param.size(0)


def _holds_noise(
    params: list[Tensor],
    clean: list[Tensor],
    generator: Tensor,
    places: list[int],
    how: tuple[Any, ...],
    scaled: Scaled,
) -> bool:
    """Whether params are clean + noise, bit for bit."""
    try:
        for i, (p, saved, place) in enumerate(zip(params, clean, places, strict=True)):
            own = (scaled[0], [scaled[1][i]]) if len(scaled) == 2 else scaled
            expected = torch.ops.torch_ssam.perturbed(saved, generator, place, *how, *own)
            now = local_of(p.detach())  # nothing here may wait for other ranks
            expected = local_of(expected).to(now.dtype)
            if not bool(((expected == now) | (expected.isnan() & now.isnan())).all()):
                return False
    except (ValueError, RuntimeError):  # what the operator refused
        return False
    return True


def _require_kernels(device: torch.device) -> None:
    if device.type == "cpu":
        return
    if device.type == "cuda":
        if library.cuda_load_error is not None:
            raise RuntimeError(library.cuda_load_error)
        if torch._C._dispatch_has_kernel_for_dispatch_key("torch_ssam::perturb_", "CUDA"):
            return
        raise RuntimeError(
            "This build of torch_ssam has no CUDA kernels. Build it where nvcc is found, or with "
            "FORCE_CUDA=1."
        )
    raise RuntimeError(f"torch_ssam has no kernels for device type '{device.type}'; expected cpu or cuda.")


class NoiseState:
    """Applies and removes the noise of parameter groups.

    `groups` is a callable, since optimizers may replace their list of groups. `stream` is added to the seed for
    the generator: ranks with noise of their own share the seed, and so the checkpoint.
    """

    def __init__(self, groups: Callable[[], list[Group]], seed: int, stream: int = 0) -> None:
        self._groups = groups
        self.seed = seed
        self.stream = stream
        self._draw = 0
        self._generators: dict[torch.device | str, Tensor] = {}
        # By id(tensor), whose hash costs less than a tensor's; a copy keeps its tensor alive.
        self._copies: dict[int, Copy] = {}
        self._applied: dict[int, Copy] = {}  # of the tensors that are perturbed now
        self.keeps_masters = False  # whether groups have the option master_dtype
        self._masters: dict[int, Copy] = {}  # clean copies that last, of tensors with a master
        self._fisher: dict[int, tuple[Tensor, Tensor]] = {}  # tensors and their F, one number for each filter

    # -- seed and draw ---------------------------------------------------------------------------------------

    @property
    def draw(self) -> int:
        """The draw in use while perturbed, else the next one. Read where it may move alone (in a CUDA graph)."""
        for generator in self._generators.values():
            if not generator.is_cpu:
                return int(generator[1].item())
        return self._draw

    def set_generator(self, seed: int, draw: int) -> None:
        """Continues with this seed and draw."""
        self.seed, self._draw = seed, draw
        for generator in self._generators.values():
            generator.copy_(self._new_generator(generator.device, draw))

    def _new_generator(self, device: torch.device, draw: int) -> Tensor:
        seed = (self.seed + self.stream + 2**63) % 2**64 - 2**63
        return torch.tensor([seed, 0 if device.type == "cpu" else draw], dtype=torch.int64, device=device)

    def generator(self, device: torch.device) -> tuple[Tensor, int]:
        """(seed, draw) on a device, and what to add to this draw.

        A CPU's stays at draw 0 and is never written: an operator call for each step would cost more than the
        addition. A GPU's moves on the GPU, where a replayed CUDA graph moves it too.
        """
        on_cpu = device.type == "cpu"
        key = "cpu" if on_cpu else device  # a string's hash costs less
        generator = self._generators.get(key)
        if generator is None:
            _require_kernels(device)
            with torch.inference_mode(False):
                generator = self._new_generator(device, self.draw)
            self._generators[key] = generator
        return generator, self._draw if on_cpu else 0

    def drop_buffers(self) -> None:
        """Frees the memory of clean copies that are not in use."""
        if not self._applied:
            self._copies = {}

    def advance(self) -> None:
        """Moves on to the next draw."""
        for generator in self._generators.values():
            if not generator.is_cpu:
                ops.advance_(generator, 1)
        self._draw += 1

    # -- which tensors ---------------------------------------------------------------------------------------

    def placed(self, frozen: bool = False) -> list[tuple[Group, Members]]:
        """Each group with its trainable tensors (with `frozen`, all tensors) and their places."""
        placed, first = [], 0
        for group in self._groups():
            params = group["params"]
            after = first + len(params)
            members = Members(list(range(first, after)), params)
            if not frozen and not all([p.requires_grad for p in params]):
                members = members.where(lambda p: p.requires_grad)
            placed.append((group, members))
            first = after
        return placed

    def place_of(self) -> dict[Tensor, int]:
        """The place of every tensor, frozen ones included."""
        flat = [p for group in self._groups() for p in group["params"]]
        return {p: i for i, p in enumerate(flat)}

    @property
    def active(self) -> bool:
        """Whether any tensor holds perturbed weights now."""
        return bool(self._applied)

    def is_applied(self, param: Tensor) -> bool:
        """Whether this tensor holds perturbed weights now."""
        return id(param) in self._applied

    def all_or_none_applied(self, params: list[Tensor]) -> bool | None:
        """Whether these tensors hold perturbed weights now; None where some do and some do not, or there are none."""
        applied, keys = self._applied, list(map(id, params))
        if keys and len(keys) == len(applied) and keys == list(applied):
            return True
        found = {key in applied for key in keys}
        return found.pop() if len(found) == 1 else None

    def clean_of(self, param: Tensor) -> Tensor:
        """The clean weights: the saved copy while perturbed, else the tensor itself."""
        copy = self._applied.get(id(param))
        return param if copy is None else copy.clean

    def all_clean_of(self, params: list[Tensor]) -> list[Tensor]:
        """The clean weights of tensors that are perturbed now."""
        together = self._together(list(map(id, params)))
        if together is not None and together.saved is not None:
            return together.saved
        applied = self._applied
        return [applied[id(p)].clean for p in params]

    def _together(self, keys: list[int]) -> Together | None:
        """What is known of these tensors, by id, if they were last written together."""
        copy = (self._applied.get(keys[0]) or self._masters.get(keys[0])) if keys else None
        together = None if copy is None else copy.together
        return together if together is not None and together.keys == keys else None

    def applied_clean(self) -> dict[Tensor, Tensor]:
        """Clean copies of all tensors that are perturbed now."""
        return {copy.param: copy.clean for copy in self._applied.values()}

    def _copy_of(self, param: Tensor) -> Copy:
        """Memory for the clean weights of a tensor."""
        copy = self._copies.get(id(param))
        if copy is None or not copy.fits(param):
            if copy is not None:
                copy.leave()
            with torch.inference_mode(False):  # it outlives an inference_mode block around us
                copy = Copy(param, torch.empty_like(param, requires_grad=False))
            self._copies[id(param)] = copy
        return copy

    def written(self, params: list[Tensor]) -> None:
        """Tells autograd that these tensors changed, and remembers them as we left them.

        That is, perturbed ones and those with a master.
        """
        together = self._together(list(map(id, params)))
        if together is None:
            applied = self._applied if not self._masters else {**self._masters, **self._applied}
            ours = [copy for copy in map(applied.get, map(id, params)) if copy is not None]
            together = Together(ours) if ours else None
        if together is None:
            _tell_torch(params)
            return
        together.expect_writes()  # before any version moves
        _tell_torch(params)
        together.note()

    # -- masters ---------------------------------------------------------------------------------------------

    def has_master(self, group: Group, param: Tensor) -> bool:
        """Whether the clean weights of a tensor are a master. A changed master_dtype waits until noise is off."""
        copy = self._applied.get(id(param))
        if copy is not None:
            return copy is self._masters.get(id(param))
        return group["master_dtype"] is not None and param.dtype != group["master_dtype"]

    def _master_of(self, group: Group, param: Tensor) -> Copy:
        """The master of a tensor that is clean, taken from it where there is none or where others wrote."""
        copy, dtype = self._masters.get(id(param)), group["master_dtype"]
        if copy is None or not copy.noted or copy.changed() or copy.clean.dtype != dtype:
            with torch.inference_mode(False), torch.no_grad():
                master = masters.take(param, dtype, None if copy is None else copy.clean)
            if copy is not None:
                copy.leave()
            copy = self._masters[id(param)] = Copy(param, master)
            Together([copy]).note()
        return copy

    def masters_of(self, group: Group, params: list[Tensor]) -> list[Tensor]:
        """The masters of tensors that have one."""
        applied = self._applied
        return [(applied.get(id(p)) or self._master_of(group, p)).clean for p in params]

    def forget_masters(self, params: list[Tensor]) -> None:
        """Of a group whose master_dtype is None now: what is no longer followed must not come back."""
        if self._masters:
            for p in params:
                if id(p) not in self._applied and id(p) in self._masters:
                    self._masters.pop(id(p)).leave()

    def masters(self) -> dict[Tensor, Tensor]:
        """All masters there are, as they were when they were last in use."""
        return {copy.param: copy.clean for copy in self._masters.values()}

    def set_masters(self, masters: dict[Tensor, Tensor]) -> None:
        """Continues with these, where the parameters then hold their roundings."""
        self._masters = {id(p): Copy(p, master) for p, master in masters.items()}

    # -- scales ----------------------------------------------------------------------------------------------

    def _fisher_of(self, param: Tensor) -> Tensor:
        known = self._fisher.get(id(param))
        if known is None or known[1].numel() != rows_of(param) or known[1].device != param.device:
            with torch.inference_mode(False):
                known = param, torch.zeros(rows_of(param), dtype=torch.float32, device=param.device)
            self._fisher[id(param)] = known
        return known[1]

    def fisher_sums(self) -> dict[Tensor, Tensor]:
        """F of every tensor that has one: per filter, the decayed sum of squared gradients."""
        return dict(self._fisher.values())

    def set_fisher_sums(self, sums: dict[Tensor, Tensor]) -> None:
        """Continues with these."""
        self._fisher = {id(p): (p, f) for p, f in sums.items()}

    def observe(self, group: Group) -> None:
        """With scale="fisher": F <- beta F + sum of g^2, from the gradients of a step."""
        if group["scale"] != "fisher":
            return
        # Checkpoint tools step with lr = 0 and gradients of zeros, to create the state that they then load into.
        lr = group.get("lr", 1.0)
        counts = (isinstance(lr, Tensor) and lr.device.type != "cpu") or float(lr) != 0.0
        for _, part in _by_device(_unplaced([p for p in group["params"] if p.grad is not None])):
            fisher = [self._fisher_of(p) for p in part.params]
            if counts:
                ops.row_fisher_(fisher, [p.grad for p in part.params], float(group["fisher_decay"]))

    def noise_of(self, group: Group, param: Tensor, place: int, sample: int) -> Tensor:
        """The noise of this draw that the clean weights of a tensor would get, as a tensor of its dtype."""
        with torch.no_grad():
            clean = self.clean_of(param).detach()
            scaled = self._scaled(group, [Copy(param, clean)], [clean])
            generator, draw_offset = self.generator(param.device)
            how = place, *_noise_of(group), sample, False, draw_offset, *scaled
            noise: Tensor = torch.ops.torch_ssam.perturbed(clean, generator, *how, noise_only=True)
            return noise

    def _scaled(self, group: Group, copies: list[Copy], clean: list[Tensor]) -> Scaled:
        """What the operators are told of the group's scale; row scales are computed from the clean weights."""
        scale = group["scale"]
        if scale == "isotropic":
            return ()
        if scale == "element":
            return ("element",)
        row_scales = []
        for copy in copies:
            rows = 1 if scale == "tensor" else rows_of(copy.param)
            known = copy.row_scales
            if known is None or known.numel() != rows:
                with torch.inference_mode(False):
                    known = torch.empty(rows, dtype=torch.float32, device=copy.param.device)
                copy.row_scales = known
            row_scales.append(known)
        if scale == "fisher":
            fisher = [self._fisher_of(copy.param) for copy in copies]
            ops.row_scales_(row_scales, clean, fisher, float(group["fisher_factor"]))
        else:
            ops.row_scales_(row_scales, clean, [])
        return ("rows", row_scales)

    # -- noise on and off ------------------------------------------------------------------------------------

    def apply(self, sample: int = 0, negate: bool = False, draw_offset: int = 0) -> None:
        """Puts noise on every trainable tensor of groups with noise_std > 0."""
        for group, members in self.placed():
            if float(group["noise_std"]) != 0.0:
                self.apply_group(group, members, sample, negate, draw_offset)

    def apply_group(
        self,
        group: Group,
        members: Members,
        sample: int = 0,
        negate: bool = False,
        draw_offset: int = 0,
    ) -> None:
        """Puts noise on these tensors: clean ones are saved first, perturbed ones written from their copy."""
        again, fresh = None, members
        if self._applied:
            self.restore([p for p in members.params if self._is_regenerated(p)])
            again = members.where(self.is_applied)
            fresh = members.where(lambda p: not self.is_applied(p))
        for device, part in _by_device(fresh):
            self._perturb(device, group, part, sample, negate, draw_offset)
        if again is not None:
            self.apply_from_clean(group, again, sample, negate, draw_offset)

    def apply_new(self) -> None:
        """Puts noise on tensors that have none yet (of a group added while weights are kept perturbed)."""
        for group, members in self.placed():
            if float(group["noise_std"]) != 0.0:
                self.apply_group(group, members.where(lambda p: not self.is_applied(p)))

    def _perturb(
        self,
        device: torch.device,
        group: Group,
        part: Members,
        sample: int,
        negate: bool,
        draw_offset: int,
    ) -> None:
        generator, draw = self.generator(device)
        how = *_noise_of(group), sample, negate, draw + draw_offset
        if self.keeps_masters and group["master_dtype"] is None:
            self.forget_masters(part.params)
        elif self.keeps_masters:
            mastered = part.where(lambda p: self.has_master(group, p))
            if mastered.params:
                masters = [self._master_of(group, p) for p in mastered.params]
                self._add_noise(group, mastered, masters, False, generator, how)
            part = part.where(lambda p: not self.is_applied(p))
            if not part.params:
                return
        if group["memory"] == "regenerate":
            self._perturb_in_place(part, recipe(generator, *how))
            return
        self._add_noise(group, part, [self._copy_of(p) for p in part.params], True, generator, how)

    def _add_noise(
        self,
        group: Group,
        part: Members,
        copies: list[Copy],
        save: bool,
        generator: Tensor,
        how: tuple[float, str, int, bool, int],
    ) -> None:
        """Writes clean + noise, and first, with `save`, the clean weights into the copies, which else hold them."""
        places, params = part
        clean = [copy.clean for copy in copies]
        scaled = self._scaled(group, copies, params if save else clean)
        noted = {id(copy.param): copy for copy in copies}
        _expect_writes(copies)
        try:
            if save:
                ops.perturb_(params, clean, generator, places, *how, *scaled)
            else:
                last = (None, *scaled) if scaled else ()  # found_inf comes before
                ops.perturb_from_clean_(params, clean, generator, places, *how, *last)
            self._applied.update(noted)
        except BaseException:
            # The operator refused, before it wrote, or a signal struck just before or just after it wrote.
            if _holds_noise(params, clean, generator, places, how, scaled):
                self._applied.update(noted)
            raise
        self.written(params)

    def apply_from_clean(
        self,
        group: Group,
        members: Members,
        sample: int = 0,
        negate: bool = False,
        draw_offset: int = 0,
    ) -> None:
        """Writes saved clean weights plus noise into tensors that are perturbed already."""
        for device, part in _by_device(members):
            places, params = part
            copies = [self._applied[id(p)] for p in params]
            clean = [copy.clean for copy in copies]
            scaled = self._scaled(group, copies, clean)
            generator, draw = self.generator(device)
            ops.perturb_from_clean_(
                params,
                clean,
                generator,
                places,
                *_noise_of(group),
                sample,
                negate,
                draw + draw_offset,
                *((None, *scaled) if scaled else ()),  # found_inf comes before
            )
            self.written(params)

    def _perturb_in_place(self, part: Members, how: Recipe) -> None:
        places, params = part
        parameters.check_regenerated(params)
        noted = {id(p): Copy(p, None, i, how) for i, p in zip(places, params, strict=True)}
        add(params, places, how, lambda: self._applied.update(noted))
        self.written(params)

    def _restore_in_place(self, copies: list[Copy]) -> None:
        """Takes the noise of one recipe off and forgets it."""
        how = copies[0].recipe
        assert how is not None
        gone = {id(copy.param) for copy in copies}
        left = {key: copy for key, copy in self._applied.items() if key not in gone}

        def forget() -> None:
            self._applied = left

        params, places = [copy.param for copy in copies], [copy.place for copy in copies]
        add(params, places, how.mirrored(), forget)
        for copy in copies:
            copy.leave()
        _tell_torch(params)

    def _is_regenerated(self, param: Tensor) -> bool:
        copy = self._applied.get(id(param))
        return copy is not None and copy.recipe is not None

    def ready_to_update(self) -> None:
        """Restores what an update in the same pass cannot serve: tensors frozen since, and those without a copy.

        Raises PerturbedWeightsChanged, after putting all clean weights back, if someone else wrote to
        perturbed tensors.
        """
        copies = self._applied.values()
        written = {copy.together for copy in copies}
        changed = any([together is not None and together.changed() for together in written])
        if changed and any([copy.changed() for copy in copies]):  # not only tensors restored since
            self.restore()
        special = [copy.param for copy in copies if copy.recipe is not None or not copy.param.requires_grad]
        if special:
            self.restore(special)

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
        copies = (
            list(applied.values()) if only is None else [applied[id(p)] for p in only if id(p) in applied]
        )
        if not copies:
            return
        changed = [copy for copy in copies if copy.changed()]
        if changed:
            kept = {id(copy.param) for copy in changed}
            copies = [copy for copy in copies if id(copy.param) not in kept]
        by_recipe: dict[int, list[Copy]] = {}
        for copy in copies:
            if copy.recipe is not None:
                by_recipe.setdefault(id(copy.recipe), []).append(copy)
        for regenerated in by_recipe.values():
            self._restore_in_place(regenerated)
        applied = self._applied
        ours = [copy.param for copy in copies if copy.recipe is None]
        for _, part in _by_device(_unplaced(ours)):
            ops.restore_(part.params, [applied[id(p)].clean for p in part.params])
        # Forgotten before the version moves: interrupted anywhere here, a second restore() is right.
        for copy in changed:
            del applied[id(copy.param)]
        for p in ours:
            del applied[id(p)]
        if self._masters:
            self.written(ours)
        else:
            _tell_torch(ours)
        if changed:
            raise PerturbedWeightsChanged(
                f"{self._describe([copy.param for copy in changed])} written to while holding perturbed weights: "
                "the new values were kept and are now taken as clean; all other parameters were restored. "
                "Load or edit weights outside perturb(), or after opt.eval() with keep_perturbed=True."
            )

    def _describe(self, params: list[Tensor]) -> str:
        place = {id(p): i for i, p in enumerate(p for g in self._groups() for p in g["params"])}
        text = [f"{place.get(id(p), '?')} of shape {tuple(p.shape)}" for p in params[:5]]
        more = f" and {len(params) - 5} more" if len(params) > 5 else ""
        s, were = ("s", "were") if len(params) > 1 else ("", "was")
        return f"Parameter{s} {', '.join(text)}{more} {were}"

    def __getstate__(self) -> dict[str, Any]:
        # The groups callable belongs to the owner, which gives it back.
        return {
            "seed": self.seed,
            "stream": self.stream,
            "draw": self.draw,
            "applied": list(self.applied_clean().items()),
            "fisher": list(self.fisher_sums().items()),
            "keeps_masters": self.keeps_masters,
            "masters": list(self.masters().items()),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.seed, self._draw, self.stream = state["seed"], state["draw"], state.get("stream", 0)
        self._generators = {}
        self.keeps_masters = state.get("keeps_masters", False)
        self.set_masters(dict(state.get("masters", ())))
        applied = {id(p): Copy(p, clean) for p, clean in state["applied"]}
        self._applied = {key: self._masters.get(key, copy) for key, copy in applied.items()}
        self._copies = {key: copy for key, copy in self._applied.items() if key not in self._masters}
        self.set_fisher_sums(dict(state.get("fisher", ())))
        if self._applied:
            Together(list(self._applied.values())).note()

    def bind(self, groups: Callable[[], list[Group]]) -> None:
        """Reads groups from here on from this callable (after unpickling)."""
        self._groups = groups


def _unplaced(params: list[Tensor]) -> Members:
    """Tensors whose places nobody reads."""
    return Members([0] * len(params), params)


def _expect_writes(copies: list[Copy]) -> None:
    """From here until the tensors are noted as written, whatever is found in them is ours."""
    together = copies[0].together if copies else None
    if together is not None and together.keys == [id(copy.param) for copy in copies]:
        together.expect_writes()
    else:
        for copy in copies:
            copy.leave()


def _by_device(members: Members) -> list[tuple[torch.device, Members]]:
    """The members split by device; nearly always one part."""
    places, params = members
    if not params:
        return []
    device = params[0].device
    if (device.type == "cpu" and all([p.is_cpu for p in params])) or all(p.device == device for p in params):
        return [(device, members)]
    parts: dict[torch.device, Members] = {}
    for place, p in zip(places, params, strict=True):
        part = parts.setdefault(p.device, Members([], []))
        part.places.append(place)
        part.params.append(p)
    return list(parts.items())


def _tell_torch(params: list[Tensor]) -> None:
    """Autograd, and autocast, which keeps its casts of weights for a whole block, that the weights changed."""
    if torch._C._is_any_autocast_enabled():
        torch.clear_autocast_cache()
    torch.autograd.graph.increment_version(params)


def _noise_of(group: Group) -> tuple[float, str]:
    return float(group["noise_std"]), group["distribution"]
