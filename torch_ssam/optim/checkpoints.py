"""Options and state of a noise optimizer: groups checked as they come, state_dict, loading, pickling.

Seed and draw travel in the groups of a state_dict, the sums of scale="fisher" in its state, and clean weights too
while the parameters hold perturbed ones, so that it is clean whenever a framework takes it. base.py builds the
ways to drive on this class. Tests: test_checkpoints.py, test_keep_perturbed.py, test_bad_input.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_ssam.noise import options as noise_options
from torch_ssam.noise import parameters, seeds
from torch_ssam.noise.cached_weights import forget_cached_weights
from torch_ssam.noise.options import NOISE_DEFAULTS
from torch_ssam.noise.scales import rows_of
from torch_ssam.noise.state import NoiseState
from torch_ssam.noise.weights import PerturbedWeightsChanged
from torch_ssam.ops import dtensor
from torch_ssam.optim import options as update_options
from torch_ssam.optim.clean_weights import warn_perturbed
from torch_ssam.optim.clipping import Clipping
from torch_ssam.optim.gradient_norms import GradientNorms
from torch_ssam.optim.low_rank import warn_of_clipped_factors
from torch_ssam.optim.shown import defaults_of_class, describe_groups


class NoiseOptimizer(Optimizer):
    """An Optimizer with the noise options in its groups and the noise's state in its checkpoints."""

    _noise: NoiseState
    _inside_pass: bool
    _fresh: bool
    _training: bool
    _pending_clean: dict[Tensor, Tensor]
    _noise_per_rank = False
    _state_tensors = frozenset({"clean", "fisher"})  # what we keep of a parameter
    _own_options: frozenset[str] = frozenset()  # stay as constructed, whatever a checkpoint says
    _hands_out_clean = False  # whether the user has asked for clean weights, and needs no warning

    def _init_noise(self, seed: int | None, noise_per_rank: bool = False, masters: bool = False) -> None:
        update_options.check_caller()
        stream = seeds.stream_of(noise_per_rank)
        self._noise_per_rank = noise_per_rank
        self._noise = NoiseState(self._weak_groups(), seeds.resolve_seed(seed), stream, masters)
        self._noise.only_parameters = True
        self._clipping = Clipping()
        self._gradient_norms = GradientNorms()
        self._inside_pass = False
        self._fresh = False
        self._training = False
        self._pending_clean = {}

    def _weak_groups(self) -> Callable[[], list[dict[str, Any]]]:
        """The groups as the noise asks for them: weakly, or only the garbage collector would free the weights' copies."""
        myself = weakref.ref(self)

        def groups() -> list[dict[str, Any]]:
            optimizer = myself()
            return [] if optimizer is None else optimizer.param_groups

        return groups

    # -- options ---------------------------------------------------------------------------------------------

    def _option(self, name: str) -> Any:
        return self.param_groups[0][name] if self.param_groups else self.defaults[name]

    def _check_options(self, group: dict[str, Any]) -> None:
        noise_options.check_noise(group)

    def _check_group(self, param_group: dict[str, Any]) -> dict[str, Any]:
        """The group to add, with every tensor once and options filled in, after checking all of it."""
        params = parameters.group_params(param_group)
        param_group = noise_options.plain(param_group)
        group = {**self.defaults, **param_group}
        self._check_options(group)
        if self.param_groups:
            update_options.check_common(group, self.param_groups[0])
        if group["memory"] == "regenerate":
            parameters.check_regenerated(params)
        parameters.check_parameters(params, [p for other in self.param_groups for p in other["params"]])
        parameters.check_channel_dim(params, group["channel_dim"])
        tensors = list(map(parameters.tensor_of, params))
        dtensor.check_options(tensors, group, self._noise_per_rank)
        self._note_kinds(tensors)
        names = [member[0] for member in params if isinstance(member, tuple)]
        warn_of_clipped_factors(tensors, {**group, "param_names": names} if names else group)
        return {**param_group, "params": params}

    def _note_kinds(self, tensors: list[Tensor]) -> None:
        if not all(isinstance(p, nn.Parameter) for p in tensors):
            self._noise.only_parameters = False

    @property
    def seed(self) -> int:
        """The seed of the noise."""
        return self._noise.generator.seed

    @property
    def draw(self) -> int:
        """Number of the draw in use (perturbed) or next (clean)."""
        return self._noise.generator.draw

    def _noisy(self) -> bool:
        return any(float(group["noise_std"]) > 0 for group in self.param_groups)

    # -- state -----------------------------------------------------------------------------------------------

    def _plain_state_dict(self) -> dict[str, Any]:
        """The state_dict of the optimizer below, without post hooks of this one."""
        raise NotImplementedError

    def _plain_load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads into the optimizer below, without post hooks of this one."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim's, with seed and draw in every group.

        While weights are kept perturbed, the state carries the clean ones; with scale="fisher", its sums.
        """
        if self._noise.active and not self._hands_out_clean:
            self._hands_out_clean = True  # once is enough
            warn_perturbed("inside perturb()" if self._inside_pass else "between train() and eval()")
        state_dict = self._plain_state_dict()
        draw = self._noise.generator.draw
        groups = [
            {**group, "seed": self._noise.generator.seed, "draw": draw}
            for group in state_dict["param_groups"]
        ]
        # The entries are the live state: ours go into copies.
        state = dict(state_dict["state"])
        self._check_names_of_state(state)
        place = self._noise.place_of()
        keys = [key for group in groups for key in group["params"]]
        mine = {
            "clean": {**self._noise.applied_clean(), **self._pending_clean},
            "fisher": self._noise.scales.fisher_sums(),
            "master": self._noise.masters.all(),
        }
        for name, tensors in mine.items():
            for p, value in tensors.items():
                if p in place:  # else it has left its group
                    key = keys[place[p]]
                    state[key] = {**state.get(key, {}), name: value}
        state_dict = {**state_dict, "state": state, "param_groups": groups}
        for hook in self._optimizer_state_dict_post_hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    @property
    def _names_in_state(self) -> tuple[str, ...]:
        """Under which checkpoints keep what the noise has of a parameter, beside the state of the update."""
        return ("clean", "fisher", "master") if self._noise.masters.enabled else ("clean", "fisher")

    def _check_names_of_state(self, state: dict[Any, Any]) -> None:
        """Raises if the update's state has a name of ours: a checkpoint would lose one of the two."""
        for key, entry in state.items():
            for name in self._names_in_state if isinstance(entry, dict) else ():
                if name in entry:
                    raise ValueError(
                        f"the base optimizer keeps '{name}' in the state of parameter {key}, a name under which checkpoints "
                        "keep the noise's. Rename it in the base."
                    )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads options, state, seed and draw; afterwards the optimizer is in eval.

        Clean weights that it carries are written by the next `train()`, `eval()`, `perturb()` or `step()`, so
        that model and optimizer load in any order.
        The state_dict of a plain optimizer loads too: the noise options stay as they are.

        Raises:
            ValueError: groups, options or clean weights do not fit; nothing has changed then.
            RuntimeError: inside `perturb()`.
        """
        if self._inside_pass:
            raise RuntimeError("load_state_dict() inside perturb(): leave the context first.")
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        groups, noise_state = self._checked_groups(state_dict)
        state, clean, fisher, masters = self._split_state(state_dict)
        before = self.state, self.param_groups
        try:
            self._plain_load_state_dict({**state_dict, "state": state, "param_groups": groups})
        except BaseException:
            self.state, self.param_groups = before
            raise
        if self._training:
            self._training = False
            # A model loaded before its optimizer has written to the weights: go on with those.
            with suppress(PerturbedWeightsChanged):
                self._noise.restore_surely()
        self._noise.drop_copies()
        if noise_state is not None:
            self._noise.generator.set(*noise_state)
        self._pending_clean = clean
        self._noise.scales.set_fisher_sums(fisher)
        self._noise.masters.set_all(masters)
        self._fresh = False
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _checked_groups(
        self, state_dict: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], tuple[int, int] | None]:
        """The groups to load, with our options where they have none, as a plain optimizer's have; seed and draw."""
        if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
            raise ValueError(
                f"load_state_dict() got {_keys_or_type(state_dict)}; expected what an optimizer's "
                'state_dict() returns, a dict with "state" and "param_groups".'
            )
        groups = state_dict["param_groups"]
        if not isinstance(groups, list) or not all(
            isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
        ):
            raise ValueError(
                f'load_state_dict() got "param_groups" that are not a list of dicts with a list "params" each: '
                f"{str(groups)[:80]}. Load what state_dict() returned."
            )
        came, expected = ([len(group["params"]) for group in side] for side in (groups, self.param_groups))
        if came != expected:
            raise ValueError(
                f"load_state_dict() got parameter groups of {came} tensors; this optimizer has {expected}. "
                "Build it from the same parameters, in the same groups, as the one that was saved."
            )
        merged, noise_state = [], None
        for own, group in zip(self.param_groups, groups, strict=True):
            kept = {
                name: value
                for name, value in own.items()
                if name in self._own_options or (name in self.defaults and name not in group)
            }
            merged.append({**group, **kept})
            self._check_options(merged[-1])
            update_options.check_common(merged[-1], merged[0])
            seed, draw = merged[-1].pop("seed", None), merged[-1].pop("draw", None)
            if seed is not None and draw is not None:
                noise_state = seeds.saved_generator(seed, draw)
        return merged, noise_state

    def _split_state(
        self, state_dict: dict[str, Any]
    ) -> tuple[dict[Any, Any], dict[Tensor, Tensor], dict[Tensor, Tensor], dict[Tensor, Tensor]]:
        """State for the optimizer below, which must not see the noise's; clean weights, Fisher sums and masters."""
        if not isinstance(state_dict["state"], dict):
            raise ValueError(
                f'load_state_dict() got a {type(state_dict["state"]).__name__} as "state"; expected a dict.'
            )
        state, clean, fisher, masters = dict(state_dict["state"]), {}, {}, {}
        ours = self._names_in_state
        params = ((group, p) for group in self.param_groups for p in group["params"])
        keys = ((saved, key) for saved in state_dict["param_groups"] for key in saved["params"])
        for (saved, key), (group, p) in zip(keys, params, strict=True):
            entry = state.get(key)
            if entry is None:
                continue
            self._check_entry(key, p, entry)
            for name in {"clean", "master"} & entry.keys() & set(ours):
                if entry[name] is not None and dtensor.is_sharded(entry[name]) != dtensor.is_sharded(p):
                    raise ValueError(
                        f"load_state_dict() got clean weights of parameter {key} that are "
                        f"{'not ' if dtensor.is_sharded(p) else ''}a DTensor, unlike the parameter. Load by "
                        "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict(), which reshards."
                    )
            weights = entry.get("clean")
            if weights is not None:
                clean[p] = weights.detach().to(dtype=p.dtype, device=p.device).clone()
            master = entry.get("master") if "master" in ours else None
            if master is not None and self._noise.has_master(group, p):
                masters[p] = master.detach().to(dtype=group["master_dtype"], device=p.device).clone()
            sums = entry.get("fisher")
            if sums is not None:
                rows = rows_of(p, int(saved.get("channel_dim", group.get("channel_dim", 0))))
                if sums.numel() != rows:
                    raise ValueError(
                        f"load_state_dict() got {sums.numel()} Fisher sums for parameter {key} of shape "
                        f"{tuple(p.shape)}; expected {rows}, one for each filter."
                    )
                fisher[p] = sums.detach().to(dtype=torch.float32, device=p.device).reshape(-1).clone()
            state[key] = {name: value for name, value in entry.items() if name not in ours}
            if all(value is None for value in state[key].values()):
                del state[key]  # as plain SGD writes it without momentum
        return state, clean, fisher, masters

    def _check_entry(self, key: Any, param: Tensor, entry: Any) -> None:
        """Raises ValueError unless this can be the state of a parameter."""
        if not isinstance(entry, dict):
            raise ValueError(
                f"load_state_dict() got a {type(entry).__name__} as the state of parameter {key}; expected a dict."
            )
        for name in self._state_tensors & entry.keys():
            value = entry[name]
            if value is None:
                continue
            if not isinstance(value, Tensor):
                came = f"a {type(value).__name__}"
            elif not value.is_floating_point() or value.layout != torch.strided:
                came = f"a tensor of {value.dtype} and {value.layout}"
            elif name != "fisher" and value.shape != param.shape:
                came = f"one of shape {tuple(value.shape)}"
            else:
                continue
            raise ValueError(
                f"load_state_dict() got {came} as '{name}' of parameter {key} of shape {tuple(param.shape)}; "
                "expected a dense floating-point tensor of the same shape."
            )

    def __repr__(self) -> str:
        groups = describe_groups(self, defaults_of_class(type(self)), self.seed, self.draw)
        return f"{type(self).__name__} (\n{groups}\n)"

    def __getstate__(self) -> dict[str, Any]:
        if self._inside_pass:
            raise RuntimeError(
                "The optimizer cannot be pickled or copied inside perturb(): leave the context first."
            )
        state: dict[str, Any] = super().__getstate__()
        state.update(
            _noise=self._noise,
            _noise_per_rank=self._noise_per_rank,
            _clipping=self._clipping,
            _inside_pass=False,
            _fresh=self._fresh,
            _training=self._training,
            _pending_clean=self._pending_clean,
        )
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_noise" in state:
            self._gradient_norms = GradientNorms()
            self._clipping = (
                state.get("_clipping") or Clipping()
            )  # pickles of older versions have none, nor all options
            for group in self.param_groups:
                for name, value in NOISE_DEFAULTS.items():
                    group.setdefault(name, value)
            self._noise.bind(self._weak_groups())
            self._noise.apply_to_clean()

    def _settle(self) -> None:
        """Writes clean weights that a loaded state_dict carried."""
        if not self._pending_clean:
            return
        for p, clean in self._pending_clean.items():
            p.detach().copy_(clean)
        forget_cached_weights()
        self._pending_clean = {}


def _keys_or_type(value: Any) -> str:
    return (
        f"a dict with keys {sorted(map(str, value))[:5]}"
        if isinstance(value, dict)
        else f"a {type(value).__name__}"
    )
