"""The base of SSAM and of its relatives with other updates: clean weights updated and perturbed anew in one pass over memory.

A step is: the noise plans which tensors an operator call is about (`_Part`), one operator call updates them and draws
the next noise, and the noise notes what was written. A subclass names its update rule (csrc/math), the state that the
rule keeps of each parameter, and its numbers; everything else is here and in base.py, once. Tests: test_ssam_*.py,
test_keep_perturbed.py, test_masters.py.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from torch_ssam._checks import defaults_of, number
from torch_ssam.noise import masters, parameters
from torch_ssam.noise import options as noise_options
from torch_ssam.noise.members import Members, are_same
from torch_ssam.noise.options import NOISE_DEFAULTS, ROW_SCALES
from torch_ssam.noise.saved import WrittenTogether
from torch_ssam.ops import direct
from torch_ssam.ops.dtensor import any_sharded
from torch_ssam.ops.entries import ops
from torch_ssam.optim.base import NoiseDriver
from torch_ssam.optim.direct_step import is_plain, step_directly
from torch_ssam.optim.options import FUSED_OPTIONS, check_fused


class _Part(NamedTuple):
    """Tensors of a group that one operator call can update."""

    members: Members
    grads: list[Tensor]
    entries: list[
        dict[str, Any]
    ]  # what `state` has of every tensor, or will have; none where the rule keeps nothing
    state: list[list[Tensor]]  # for each name of the rule's state, that of every tensor
    made: list[int]  # the tensors whose state is new here, and gets into `state` after the call
    steps: list[int]  # which step each tensor is at, where the call says so
    perturbed: bool
    mastered: bool
    clean: list[Tensor] | None = None  # the clean weights of perturbed tensors, where they are at hand


def _check_dense(members: Members) -> None:
    for place, p in zip(members.places, members.params, strict=True):
        if p.grad is not None and p.grad.layout != torch.strided:
            raise ValueError(
                f"The gradient of parameter {place} is sparse; expected a dense one. Use sparse=False in the "
                "embedding, or give the parameter an optimizer of its own."
            )


class FusedOptimizer(NoiseDriver):
    """An optimizer whose update is one of csrc/math/rules."""

    _rule: str  # its name there
    _counts_steps = False  # whether it needs to know how many updates a tensor has had: state[p]["step"]
    _state_tensors = NoiseDriver._state_tensors | {"master"}
    _needed_to_load: tuple[str, ...] = ()  # of a rule that counts steps: what its state has in any case
    _own_options = frozenset({"master_dtype"})

    def __init__(
        self, params: ParamsT, defaults: dict[str, Any], seed: int | None, noise_per_rank: bool
    ) -> None:
        self._init_noise(seed, noise_per_rank, masters=True)
        super().__init__(parameters.parameter_list(params), defaults)

    # -- what a subclass says of its rule --------------------------------------------------------------------

    def _check_update(self, group: dict[str, Any]) -> None:
        """Raises if the options of the group's update are out of range."""
        raise NotImplementedError

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Under which names `state` has what the group's rule keeps of a parameter."""
        raise NotImplementedError

    def _numbers(self, group: dict[str, Any], device: torch.device) -> tuple[list[float], Tensor | None]:
        """The rule's numbers in the order of csrc/math/rules, and lr where it lies on the device."""
        raise NotImplementedError

    # -- options and state -----------------------------------------------------------------------------------

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        self._check_update(group)
        check_fused(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; its options are checked, and, in train with keep_perturbed, its weights perturbed."""
        group = self._check_group(param_group)
        masters.check_parameters(list(map(parameters.tensor_of, group["params"])), {**self.defaults, **group})
        super().add_param_group(group)
        if self._training:
            self._noise.apply_new()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in {**NOISE_DEFAULTS, **defaults_of(FUSED_OPTIONS)}.items():
                group.setdefault(name, value)

    def _plain_state_dict(self) -> dict[str, Any]:
        hooks, self._optimizer_state_dict_post_hooks = self._optimizer_state_dict_post_hooks, OrderedDict()
        try:
            state_dict = Optimizer.state_dict(self)
        finally:
            self._optimizer_state_dict_post_hooks = hooks
        if self._counts_steps:  # as torch.optim has them; the entries are the live state
            state_dict["state"] = {
                key: {**entry, "step": _tensor_of(entry["step"])} if "step" in entry else entry
                for key, entry in state_dict["state"].items()
            }
        for group in state_dict["param_groups"]:  # by name: not every reader of checkpoints knows dtypes
            if group["master_dtype"] is not None:
                group["master_dtype"] = str(group["master_dtype"]).removeprefix("torch.")
        return state_dict

    def _plain_load_state_dict(self, state_dict: dict[str, Any]) -> None:
        hooks = self._optimizer_load_state_dict_pre_hooks, self._optimizer_load_state_dict_post_hooks
        self._optimizer_load_state_dict_pre_hooks = OrderedDict()
        self._optimizer_load_state_dict_post_hooks = OrderedDict()
        try:
            Optimizer.load_state_dict(self, state_dict)
        finally:
            self._optimizer_load_state_dict_pre_hooks, self._optimizer_load_state_dict_post_hooks = hooks
        keys = (key for group in state_dict["param_groups"] for key in group["params"])
        for group in self.param_groups:  # torch has cast it to the parameters' dtype
            for p in group["params"]:
                saved = state_dict["state"].get(next(keys), {})
                if self._counts_steps and saved:
                    self.state[p]["step"] = int(saved["step"])
                for name in self._state_names(group) if self._noise.has_master(group, p) else ():
                    if saved.get(name) is not None:
                        kept = saved[name].to(dtype=group["master_dtype"], device=p.device)
                        self.state[p][name] = kept

    def _check_entry(self, key: Any, param: Tensor, entry: Any) -> None:
        super()._check_entry(key, param, entry)
        of_update = entry.keys() - set(self._names_in_state)
        if not self._counts_steps or not of_update:
            return
        missing = sorted(name for name in self._needed_to_load if entry.get(name) is None)
        if missing:
            raise ValueError(
                f"load_state_dict() got {sorted(map(str, of_update))} as the state of parameter {key}, without "
                f"{', '.join(missing)}; expected the state of {type(self).__name__} or of the torch optimizer that it "
                "follows."
            )
        step = number(f"the step of parameter {key}", entry["step"])
        if not step.is_integer():
            raise ValueError(f"the step of parameter {key} is {step}; expected a whole number >= 0.")

    # -- the plan of a step ----------------------------------------------------------------------------------

    def _parts(
        self, group: dict[str, Any], members: Members, known: WrittenTogether | None = None
    ) -> list[_Part]:
        """Members with a gradient, split by device, first step or later, perturbed or not, master or not: a call each.

        `known` is of all perturbed tensors, and says that they are as the last step left them.
        """
        if group["master_dtype"] is None:
            if known is not None and known.keys is members.keys and known.on_cpu:
                whole = self._whole(group, members, known)
                if whole is not None:
                    return [whole]
            self._noise.forget_masters(members)
            parts = self._split(group, members)
        else:
            with_master = members.where(lambda p: self._noise.has_master(group, p))
            without = members.where(lambda p: not self._noise.has_master(group, p))
            parts = self._split(group, without) + self._split(group, with_master, group["master_dtype"])
        if len(parts) > 1:  # several operator calls
            _check_dense(members)
        return parts

    def _split(
        self, group: dict[str, Any], members: Members, master_dtype: torch.dtype | None = None
    ) -> list[_Part]:
        whole = self._whole(group, members) if master_dtype is None else None
        if whole is not None:
            return [whole]
        names, counts = self._state_names(group), self._counts_steps
        parts: dict[Any, _Part] = {}
        is_applied = self._noise.is_applied
        for p, place, key in zip(*members, strict=True):
            grad = p.grad
            if grad is None:
                continue
            entry = self.state.get(p, {}) if names else {}
            kept = [entry.get(name) for name in names]
            first = not counts and any(value is None for value in kept)
            kind = p.is_cpu or p.device, first, is_applied(p)
            part = parts.get(kind)
            if part is None:
                nothing: list[list[Tensor]] = [[] for _ in names]
                none = Members([], [], [])
                part = parts[kind] = _Part(none, [], [], nothing, [], [], kind[2], master_dtype is not None)
            new = False
            for values, value in zip(part.state, kept, strict=True):
                if value is None:
                    value, new = torch.zeros_like(p, requires_grad=False, dtype=master_dtype), True
                elif master_dtype is not None and value.dtype != master_dtype:  # of steps without masters
                    value, new = value.to(master_dtype), True
                values.append(value)
            if new:
                part.made.append(len(part.grads))
            if counts or first:
                part.steps.append(entry.get("step", 0) + 1)
            part.members.params.append(p)
            part.members.places.append(place)
            part.members.keys.append(key)
            part.grads.append(grad)
            part.entries.append(entry)
        return list(parts.values())

    def _whole(
        self, group: dict[str, Any], members: Members, known: WrittenTogether | None = None
    ) -> _Part | None:
        """All members as one part where nothing sets them apart: nearly always, and cheaper than one by one."""
        params = members.params
        grads: list[Any] = [p.grad for p in params]
        if not all([grad is not None for grad in grads]):
            return None
        perturbed = known is not None or self._noise.all_or_none_applied(members)
        if perturbed is None or (known is None and not all([grad.is_cpu for grad in grads])):
            return None
        clean = None if known is None else known.copies
        kept: list[Any] = []
        entries: list[Any] = []
        names = self._state_names(group)
        if names:
            # In the order of params it serves without the tensors' hashes, which run Python.
            state = self.state
            in_order = are_same(state, params)
            entries = list(state.values()) if in_order else [state.get(p) for p in params]
            if not all(entries):
                return None
            for name in names:
                try:
                    values = [entry[name] for entry in entries]
                except KeyError:
                    return None
                if not all([value is not None for value in values]):
                    return None
                kept.append(values)
        steps = [entry["step"] + 1 for entry in entries] if self._counts_steps else []
        return _Part(members, grads, entries, kept, [], steps, perturbed, False, clean)

    # -- the call --------------------------------------------------------------------------------------------

    def _update_part(self, group: dict[str, Any], part: _Part, noise_std: float | None = None) -> None:
        """Clean weights (saved copies of perturbed tensors, else the tensors themselves) <- their update.

        With a noise_std the tensors get the next draw of noise in the same pass over memory.
        """
        noise = self._noise
        members = part.members
        clean = part.clean or (noise.all_clean_of(members) if part.perturbed else members.params)
        if part.mastered and not part.perturbed:
            clean, noise_std = noise.masters_of(group, members), 0.0  # then the tensors get the rounding
        device = members.params[0].device
        numbers, lr_tensor = self._numbers(group, device)
        state = (
            part.state[0] if len(part.state) == 1 else [value for values in part.state for value in values]
        )
        update = (clean, part.grads, state, self._rule, numbers)
        # An argument costs half a microsecond, the schema's defaults nothing.
        others: dict[str, Any] = {}
        if lr_tensor is not None:
            others["lr_tensor"] = lr_tensor
        if part.steps:
            others["steps"] = part.steps
        try:
            if noise_std is None:
                ops.update_(*update, **others)
            else:
                generator, draw = noise.generator.on(device)
                others["draw_offset"] = draw + 1
                if group["distribution"] != "gaussian":
                    others["distribution"] = group["distribution"]
                where = members.params, *update, generator, members.places
                if is_plain(group) or noise_std == 0.0:
                    if group["scale"] != "isotropic" and noise_std != 0.0:
                        others["scale"] = group["scale"]
                    ops.update_and_perturb_(*where, noise_std, **others)
                else:
                    rows = self._row_arguments(group, members, others)
                    ops.update_rows_and_perturb_(*where, *rows, noise_std, **others)
        except ValueError:  # refused before anything was written
            if not self._follow_dtype(part):
                raise
            self._update_part(group, part, noise_std)
            return
        self._keep_state(group, part)  # only now: an operator that refuses must leave no state behind
        if noise_std is not None or not part.perturbed:
            noise.written(members)

    def _joins_rows(self, group: dict[str, Any], members: Members) -> bool:
        """Whether one operator call makes a step with clipping or numbers of rows.

        Not with what it does not know (a projection, Fisher sums, other dimensions, DTensors), nor while the clipped are
        counted; and on the CPU only: elsewhere it would be the same calls.
        """
        return (
            group["radius"] is None
            and group["scale"] != "fisher"
            and group["channel_dim"] == 0
            and (group["weight_clip"] is None or self._clipping.share is not None)
            and not is_plain(group)
            and all([p.is_cpu for p in members.params])
            and not any_sharded(members.params)
        )

    def _row_arguments(
        self, group: dict[str, Any], members: Members, others: dict[str, Any]
    ) -> tuple[float, list[Tensor]]:
        """What update_rows_and_perturb_ is told beside."""
        weight_clip = float(group["weight_clip"]) if self._clipping.clips(group) else 0.0
        scale = group["scale"]
        if scale not in ROW_SCALES:
            others["scale"] = scale
            return weight_clip, []
        others["scale"], others["kind"] = "rows", ROW_SCALES[scale][0]
        noise = self._noise
        return weight_clip, noise.scales.memory_of(group, noise.all_saved_of(members))

    def _keep_state(self, group: dict[str, Any], part: _Part) -> None:
        if self._counts_steps:
            for entry, step in zip(part.entries, part.steps, strict=True):
                entry["step"] = step
        for i in part.made:
            entry = self.state[part.members.params[i]] = part.entries[i]
            for name, values in zip(self._state_names(group), part.state, strict=True):
                entry[name] = values[i]

    def _follow_dtype(self, part: _Part) -> bool:
        """Gives the part's state the dtype that its parameters have had since `model.double()`; whether that changed any.

        Looked for only when an operator has refused: at every step it would cost as much as the step of a small tensor.
        """
        changed = False
        for values in part.state:
            for i, (p, value) in enumerate(zip(part.members.params, values, strict=True)):
                if not part.mastered and value.dtype != p.dtype:
                    values[i] = value.to(p.dtype)
                    part.made.append(i)
                    changed = True
        return changed

    def _update_group(self, group: dict[str, Any], members: Members) -> None:
        for part in self._parts(group, members):
            self._update_part(group, part)
        self._clipping.clip(self._noise, group, self._clipping.chosen(group, members))
        stacked = members.trainable() if group["radius"] is not None else None
        if stacked is not None and stacked.params:
            self._project(group, stacked)
        self._noise.scales.observe(group)

    def _project(self, group: dict[str, Any], stacked: Members) -> None:
        radius = float(group["radius"])
        self._noise.change_clean(group, stacked, lambda clean: ops.project_(clean, radius))

    # -- the step --------------------------------------------------------------------------------------------

    def _check_before(self, placed: list[tuple[dict[str, Any], Members]]) -> None:
        """One operator call checks all before it writes; of several, none may fail after another wrote."""
        if len(placed) == 1 and is_plain(placed[0][0]):
            return
        for group, members in placed:
            noise_options.check_noise(group)
            lr = group["lr"]  # one that lies on a GPU is not looked at: that would wait for it
            on_gpu = isinstance(lr, Tensor) and lr.device.type != "cpu"
            self._check_update({**group, "lr": 0.0} if on_gpu else group)
            check_fused(group)
            parameters.check_channel_dim(members.params, group["channel_dim"])
            _check_dense(members)

    def _check_capture(self) -> None:
        """A graph would replay the step that it was captured at."""
        if self._counts_steps and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"step() of {type(self).__name__} while a CUDA graph is captured: its bias correction depends on the "
                "number of the step, which a graph would repeat. Capture forward and backward, and call step() outside; "
                "or use SSAM, whose step can be captured."
            )

    def _update(self) -> None:
        # As torch.optim does, a gradient that is there is used, also that of a tensor frozen since.
        self._check_capture()
        placed = self._noise.placed(frozen=True)
        self._check_before(placed)
        for group, members in placed:
            self._update_group(group, members)

    def _update_and_perturb(self) -> None:
        if direct.available and step_directly(self):
            return
        self._check_capture()
        noise = self._noise
        known = noise.ready_to_update()
        placed = noise.placed(frozen=True)
        self._check_before(placed)
        noise.size.look(placed, noise.clean_of)
        for group, everything in placed:
            noise_std = float(group["noise_std"])
            one_pass = noise_std != 0.0 and is_plain(group)
            by_rows = noise_std != 0.0 and self._joins_rows(group, everything)
            parts = self._parts(group, everything, known) if one_pass or by_rows else []
            if len(parts) == 1 and parts[0].perturbed and len(parts[0].grads) == len(everything.params):
                self._update_part(group, parts[0], noise_std)  # nearly always
                continue
            members = everything.trainable()
            kept = members.where(noise.is_applied)
            if not one_pass or len(kept.params) < len(members.params):  # or noise is switched on or off here
                parts = []  # with state of a first step, which is made again
                self._update_group(group, everything)
                if noise_std == 0.0:
                    noise.restore(kept.params)
                else:
                    noise.apply_group(group, members, draw_offset=1)
                continue
            for part in parts:  # frozen tensors are not perturbed
                self._update_part(group, part, noise_std if part.perturbed else None)
            noise.apply_from_clean(group, members.where(lambda p: p.grad is None), draw_offset=1)


def _tensor_of(step: int) -> Tensor:
    return torch.tensor(float(step), dtype=torch.float32 if step <= 2**24 else torch.float64)


def lr_on(group: dict[str, Any], device: torch.device) -> tuple[float, Tensor | None]:
    """The learning rate as a number, or 0 and the tensor where it lies on the device."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.device == device and lr.dtype in (torch.float32, torch.float64):
        return 0.0, lr
    return float(lr), None
