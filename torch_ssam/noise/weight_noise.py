"""WeightNoise: the part SSAM and wrap are made of, for any other use of weights plus noise.

Tests: tests/python/test_weight_noise.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from torch_ssam import _checks
from torch_ssam.noise import options as noise_options
from torch_ssam.noise import parameters, seeds
from torch_ssam.noise.options import NEWER_OPTIONS, NOISE_DEFAULTS, Distribution, Memory, Scale
from torch_ssam.noise.scope import Scope
from torch_ssam.noise.state import NoiseState
from torch_ssam.ops import dtensor
from torch_ssam.ops.untraced import untraced


class _Applied(Scope):
    def __init__(self, state: NoiseState, sample: int, negate: bool, advance: bool) -> None:
        self._state = state
        self._sample = (sample, negate)
        self._advance = advance
        self._pending_advance = False

    def _check(self) -> None:
        if self._state.active:
            raise RuntimeError(
                "applied() inside applied(): the tensors are perturbed already. Leave the first one."
            )
        if not any(members.params for _, members in self._state.placed()):
            raise RuntimeError(
                "applied() with nothing to perturb: no tensor requires gradients, and those that do not "
                "stay clean. "
                "Call requires_grad_() on the ones to perturb."
            )

    def _begin(self) -> None:
        self._pending_advance = self._advance
        self._state.apply(*self._sample)

    def _end(self) -> None:
        try:
            self._state.restore()
        finally:
            if self._pending_advance:
                self._state.generator.advance()
                self._pending_advance = False


class WeightNoise:
    """Puts noise on tensors and takes it off again, bit for bit.

    Args:
        params: tensors, or dicts with "params" and options of their own, as optimizers take them. A tensor
            named twice is perturbed once. Tensors that do not require gradients count for the place and stay
            clean.
        noise_std: standard deviation of the noise, >= 0.
        distribution: "gaussian" or "rademacher".
        scale: "isotropic", "tensor", "filter", "absmax", "tensor_absmax" or "element" (see `SSAM`;
            "fisher" needs the gradients of an optimizer's steps).
        channel_dim: the dimension that counts filters in tensors of two dimensions and more.
        memory: "copy", or "regenerate" to hold no copy of the clean weights (see `SSAM`).
        seed: a 64-bit int, or None to take one from torch's default generator.

    Example:
        >>> import torch, torch_ssam
        >>> w = torch.nn.Parameter(torch.zeros(4))
        >>> noise = torch_ssam.WeightNoise([w], 0.1, seed=0)
        >>> with noise.applied():
        ...     bool((w != 0).all())
        True
        >>> bool((w == 0).all())
        True
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        noise_std: float = 0.01,
        *,
        distribution: Distribution = "gaussian",
        scale: Scale = "isotropic",
        channel_dim: int = 0,
        memory: Memory = "copy",
        seed: int | None = None,
    ) -> None:
        defaults = {
            **NOISE_DEFAULTS,
            "noise_std": noise_std,
            "distribution": distribution,
            "scale": scale,
            "channel_dim": channel_dim,
            "memory": memory,
        }
        given = parameters.parameter_list(params)
        if not given:
            raise ValueError("params is empty; expected at least one tensor.")
        groups = given if isinstance(given[0], dict) else [{"params": given}]
        self.param_groups: list[dict[str, Any]] = []
        known: list[Tensor] = []
        for group in groups:
            members = [parameters.tensor_of(member) for member in parameters.group_params(group)]
            unique = [p for p in members if not any(p is other for other in known)]
            parameters.check_parameters(unique, known)
            known += unique
            whole = {**defaults, **group, "params": unique}
            noise_options.check_noise(whole)
            if whole["scale"] == "fisher":
                raise ValueError(
                    "scale is 'fisher', which WeightNoise has no gradients for; expected 'isotropic', 'tensor', "
                    "'filter', 'element', 'absmax' or 'tensor_absmax'. Use SSAM or wrap, whose steps see them."
                )
            if whole["memory"] == "regenerate":
                parameters.check_regenerated(unique)
            parameters.check_channel_dim(unique, whole["channel_dim"])
            dtensor.check_options(unique, whole, noise_per_rank=False)
            self.param_groups.append(whole)
        self._state = NoiseState(lambda: self.param_groups, seeds.resolve_seed(seed))

    @property
    def seed(self) -> int:
        """The seed of the noise."""
        return self._state.generator.seed

    @property
    def draw(self) -> int:
        """Number of the next draw."""
        return self._state.generator.draw

    @untraced
    def applied(self, *, sample: int = 0, negate: bool = False, advance: bool = True) -> Scope:
        """Context in which the tensors hold clean + noise (clean - noise with `negate`).

        Args:
            sample: number of the sample within the draw, 0 to 2**32 - 1.
            negate: use the mirrored noise.
            advance: move on to the next draw afterwards.

        Raises:
            RuntimeError: inside itself, where no tensor requires gradients, or, on leaving, if tensors were
                written to inside.
        """
        sample = _checks.count("sample", sample, low=0)
        return _Applied(self._state, sample, _checks.flag("negate", negate), _checks.flag("advance", advance))

    def _write(self, clean_of: Callable[[Tensor], Tensor], *, negate: bool, advance: bool) -> None:
        """Writes clean + noise once, for measures that keep the clean weights and put them back themselves."""
        self._state.write(clean_of, negate)
        if advance:
            self._state.generator.advance()

    def state_dict(self) -> dict[str, int]:
        """Seed and draw."""
        return {"seed": self._state.generator.seed, "draw": self._state.generator.draw}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continues with the seed and draw of `state_dict()`."""
        if not isinstance(state_dict, dict) or not {"seed", "draw"} <= state_dict.keys():
            came = sorted(map(str, state_dict)) if isinstance(state_dict, dict) else type(state_dict).__name__
            raise ValueError(
                f'load_state_dict() got {came}; expected what state_dict() returned, a dict with "seed" and "draw".'
            )
        self._state.generator.set(*seeds.saved_generator(state_dict["seed"], state_dict["draw"]))

    def noise(self, param: Tensor, *, sample: int = 0) -> Tensor:
        """The noise that the next `applied()` would add to one of the tensors, rounded once to its dtype.

        Raises:
            ValueError: the tensor is not one of `params`.
        """
        place = self._state.place_of().get(param)
        if place is None:
            raise ValueError("noise() got a tensor that is not one of params.")
        group = next(g for g in self.param_groups if any(p is param for p in g["params"]))
        return self._state.noise_of(group, param, place, _checks.count("sample", sample, low=0))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for group in self.param_groups:  # pickles of older versions have not all options
            for name in NEWER_OPTIONS:
                group.setdefault(name, NOISE_DEFAULTS[name])
        self._state.bind(lambda: self.param_groups)
