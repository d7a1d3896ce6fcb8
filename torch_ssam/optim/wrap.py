"""wrap: any torch optimizer, with its gradients taken at perturbed weights.

The wrapper is an Optimizer whose `param_groups` and `state` are the base's own objects, so schedulers,
scalers and checkpoints see one optimizer whichever of the two they hold. What it asks of a base is in bases.py.
Tests: tests/python/test_wrap.py.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from torch_ssam._checks import defaults_of
from torch_ssam.noise import options as noise_options
from torch_ssam.noise import parameters, seeds
from torch_ssam.noise.options import (
    NEWER_OPTIONS,
    NOISE_DEFAULTS,
    NOISE_OPTIONS,
    Distribution,
    Memory,
    Scale,
    chosen,
)
from torch_ssam.ops import dtensor
from torch_ssam.optim import options as update_options
from torch_ssam.optim.base import NoiseDriver
from torch_ssam.optim.bases import check_base, check_layout
from torch_ssam.optim.low_rank import warn_of_clipped_factors
from torch_ssam.optim.shown import defaults_of_class, describe_groups


class WrappedOptimizer(NoiseDriver):
    """What `wrap` returns: the base optimizer, driven as SSAM is. `base` is the wrapped optimizer."""

    _steps_by_base = True
    _base_in_train = False  # where the base has train() and eval(), as schedule-free ones have

    def __init__(
        self, base: Optimizer, options: dict[str, Any], seed: int | None, noise_per_rank: bool = False
    ) -> None:
        self.base = base
        filled: list[set[str]] = self._filled_before(base)
        own = [
            {k: v for k, v in group.items() if k not in names}
            for group, names in zip(
                base.param_groups, [*filled, *[set()] * len(base.param_groups)], strict=False
            )
        ]
        for i, group in enumerate(own):
            self._check_names(i, group, options)
            update_options.check_common({**options, **group}, {**options, **own[0]})
            parameters.check_parameters(
                group["params"], [p for before in base.param_groups[:i] for p in before["params"]]
            )
            parameters.check_channel_dim(group["params"], {**options, **group}["channel_dim"])
            # radius is SSAM's: a base may have an option of that name
            noise = {name: value for name, value in {**options, **group}.items() if name != "radius"}
            dtensor.check_options(group["params"], noise, noise_per_rank)
            warn_of_clipped_factors(group["params"], noise)
        self._init_noise(seed, noise_per_rank)
        self._note_kinds([p for group in own for p in group["params"]])
        saved = [(group["seed"], group["draw"]) for group in base.param_groups if "seed" in group]
        if saved:
            state, fisher = self._taken_from(base)
        else:
            state, fisher = {}, {}
            self._check_names_of_state(dict(enumerate(base.state.values())))
        # All is checked: from here on the base is changed.
        base.defaults.update(options)
        base.state.update(state)
        for group, given in zip(base.param_groups, own, strict=True):
            for name in ("seed", "draw"):
                group.pop(name, None)
            group.update(noise_options.plain({**options, **{k: v for k, v in given.items() if k in options}}))
        self._filled = [options.keys() - given.keys() for given in own]
        self._mark()
        # Not Optimizer.__init__, which would make groups and state of its own.
        Optimizer.__setstate__(self, {"defaults": base.defaults})
        if saved and seed is None:
            self._noise.generator.set(*seeds.saved_generator(*saved[0]))
        self._noise.scales.set_fisher_sums(fisher)

    def _taken_from(self, base: Optimizer) -> tuple[dict[Tensor, dict[str, Any]], dict[Tensor, Tensor]]:
        """The base's state without the noise's, and the Fisher sums, of a base that has loaded a checkpoint.

        Not the checkpoint's clean weights: the base may have trained since.
        """
        params = [p for group in base.param_groups for p in group["params"]]
        held = {i: base.state[p] for i, p in enumerate(params) if p in base.state}
        state, _, fisher, _ = self._split_state(
            {"state": held, "param_groups": [{"params": list(range(len(params)))}]}
        )
        return {params[i]: state.get(i, {}) for i in held}, fisher

    def _mark(self) -> None:
        """Notes at the base who wraps it, and which options of its groups are ours."""
        self.base._torch_ssam_wrap = weakref.ref(self), self._filled  # type: ignore[attr-defined]

    @staticmethod
    def _filled_before(base: Optimizer) -> list[set[str]]:
        """For each group, the noise options that an earlier wrap() filled in: those of this one take their place."""
        if not hasattr(base, "_torch_ssam_wrap"):
            return []
        wrapper, filled = base._torch_ssam_wrap
        before = wrapper()
        if before is not None and (before._noise.active or before._training):
            raise RuntimeError(
                "wrap() got an optimizer whose weights are perturbed by an earlier wrap() of it; call eval() of that one "
                "first."
            )
        return list(filled)

    @staticmethod
    def _check_names(place: int, group: dict[str, Any], options: dict[str, Any]) -> None:
        """Options of the base's groups that have a name of ours are options of the noise, or else refused."""
        from_a_checkpoint = (
            NOISE_DEFAULTS.keys() - NEWER_OPTIONS | {"seed", "draw"} <= group.keys()
        )  # of ours, loaded into the base
        for name in ("seed", "draw"):
            if name in group and not from_a_checkpoint:
                raise ValueError(
                    f"parameter group {place} of the base optimizer has an option '{name}', under which checkpoints keep "
                    "the noise's; expected none of that name. Rename it in the base."
                )
        try:
            noise_options.check_noise({**options, **group})
        except (TypeError, ValueError) as error:
            if not set(options) & group.keys():
                raise
            raise type(error)(
                f"{error} It may be that parameter group {place} of the base optimizer has an option of that name: wrap() "
                "takes those as the group's noise options."
            ) from error

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's groups, with the noise options in each."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        """The base's state."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base.state = state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the base, with the noise options where it does not name them."""
        group = self._check_group(param_group)
        filled = set(NOISE_DEFAULTS) - group.keys()
        self.base.add_param_group(group)
        self._filled.append(filled)
        if self._training:
            self._noise.apply_new()

    def _plain_state_dict(self) -> dict[str, Any]:
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state_dict = self.base.state_dict()
        check_layout(self.base, state_dict)
        return state_dict

    def _plain_load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)

    def train(self, mode: bool = True) -> None:
        """Calls the base's train() where it has one, then perturbs if keep_perturbed."""
        if mode and not self._training and hasattr(self.base, "train"):
            self._settle()
            self.base.train()
            self._base_in_train = True
        super().train(mode)

    def eval(self) -> None:
        """Puts the clean weights back if keep_perturbed, then calls the base's eval() where it has one."""
        super().eval()
        if hasattr(self.base, "eval"):
            self.base.eval()
            self._base_in_train = False

    def _modes(self) -> tuple[bool, bool]:
        return self._training, self._base_in_train

    def _resume(self, training: bool, base_in_train: bool) -> None:
        if training:
            self.train()
        elif base_in_train:
            self.base.train()  # type: ignore[attr-defined]
            self._base_in_train = True

    def _update(self) -> None:
        placed = self._noise.placed(frozen=True)
        for group, _ in placed:
            self._noise.scales.observe(group)
        # As they are now: a base may clear gradients.
        clipped = [(group, self._clipping.chosen(group, members)) for group, members in placed]
        self.base.step()
        for group, members in clipped:
            self._clipping.clip(self._noise, group, members)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state = {name: value for name, value in state.items() if name not in ("state", "param_groups")}
        state["base"] = self.base
        state["_base_in_train"], state["_filled"] = self._base_in_train, self._filled
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "base" in state:
            self.base = state["base"]
        super().__setstate__(state)
        if "base" in state:
            self._filled = state.get("_filled", [])
            self._mark()

    def __repr__(self) -> str:
        defaults = {**defaults_of_class(type(self.base)), **defaults_of(NOISE_OPTIONS)}
        return (
            f"wrap({type(self.base).__name__} (\n{describe_groups(self, defaults, self.seed, self.draw)}\n))"
        )


def wrap(
    base_optimizer: Optimizer,
    noise_std: float = 0.01,
    *,
    distribution: Distribution = "gaussian",
    scale: Scale = "isotropic",
    fisher_decay: float = 0.99,
    fisher_factor: float = 0.1,
    samples: int = 1,
    antithetic: bool = False,
    clean_weight: float = 0.0,
    channel_dim: int = 0,
    weight_clip: float | None = None,
    keep_perturbed: bool = False,
    memory: Memory = "copy",
    seed: int | None = None,
    noise_per_rank: bool = False,
) -> WrappedOptimizer:
    """Gives any torch optimizer S-SAM's gradients: taken at perturbed weights, applied to the clean ones.

    Args:
        base_optimizer: the optimizer that makes the update, from p.grad. Its groups take the noise options as keys,
            so each may have its own. A scheduler may hold either of the two objects. `step()` is the wrapper's, also
            for a scaler (`scaler.step(opt)`): the base's own step() over perturbed weights is refused.
        noise_std: standard deviation of the noise, >= 0; a group that already has "noise_std" keeps it, unless an
            earlier `wrap` of the same base put it there.
        distribution, scale, fisher_decay, fisher_factor, samples, antithetic, clean_weight: as for `SSAM`.
        channel_dim, weight_clip: as for `SSAM`; the base's momentum is as it leaves it.
        keep_perturbed, memory, seed, noise_per_rank: as for `SSAM`. With seed=None a base that has loaded the
            state_dict of a wrapped optimizer goes on with its seed and draw (and with its Fisher sums in any case).

    There is no master_dtype: the base updates the parameters themselves.

    Returns:
        A torch.optim.Optimizer with `perturb()`, `perturbations()`, `step(closure)`, `train()` and `eval()`.

    Raises:
        TypeError: base_optimizer is not a torch.optim.Optimizer, or lacks its param_groups, state or defaults; its
            step() needs a closure or other arguments (as LBFGS and SAM do; one that says so only when called raises
            its own error at the first step); its state_dict() has a layout of its own.
        ValueError: options out of range; a base with options of its own that have the name of a noise option, or
            "seed" or "draw", or with tensors named "clean" or "fisher" in its state; a tensor twice in a group.
        RuntimeError: the base is wrapped already, and its weights are perturbed.

    Example:
        >>> import torch, torch_ssam
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = torch_ssam.wrap(torch.optim.AdamW(model.parameters(), lr=1e-3), noise_std=0.01)
        >>> with opt.perturb():
        ...     model(torch.ones(2, 3)).sum().backward()
        >>> opt.step()
    """
    check_base(base_optimizer)
    options = chosen(locals(), NOISE_OPTIONS)
    return WrappedOptimizer(base_optimizer, options, seed, noise_per_rank)
