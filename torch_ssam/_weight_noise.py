"""WeightNoise: the part SSAM and wrap are made of, for any other use of weights plus noise.

Tests: tests/python/test_weight_noise.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import _options
from ._driver import NOISE_DEFAULTS
from ._noise import NoiseState


class WeightNoise:
    """Puts noise on tensors and takes it off again, bit for bit.

    Args:
        params: tensors, or dicts with "params" and options of their own, as optimizers take them. A tensor named
            twice is perturbed once. Tensors that do not require gradients count for the place and stay clean.
        noise_std: standard deviation of the noise, >= 0.
        distribution: "gaussian" or "rademacher".
        scale: "isotropic".
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
        distribution: str = "gaussian",
        scale: str = "isotropic",
        seed: int | None = None,
    ) -> None:
        defaults = {**NOISE_DEFAULTS, "noise_std": noise_std, "distribution": distribution, "scale": scale}
        if isinstance(params, Tensor):
            raise TypeError("params is a tensor; expected an iterable of tensors or dicts, for example [tensor].")
        given = list(params)
        if not given:
            raise ValueError("params is empty; expected at least one tensor.")
        groups = given if isinstance(given[0], dict) else [{"params": given}]
        self.param_groups: list[dict[str, Any]] = []
        seen: set[int] = set()
        for group in groups:
            if not isinstance(group, dict):
                raise TypeError(f"params mixes dicts and {type(group).__name__}; expected one kind.")
            members = group["params"]
            members = [members] if isinstance(members, Tensor) else list(members)
            unique = []
            for i, p in enumerate(members):
                if not isinstance(p, Tensor):
                    raise TypeError(f"params holds a {type(p).__name__}; expected tensors.")
                _options.check_parameter(p, i)
                if id(p) not in seen:
                    seen.add(id(p))
                    unique.append(p)
            whole = {**defaults, **group, "params": unique}
            _options.check_noise(whole)
            self.param_groups.append(whole)
        self._state = NoiseState(lambda: self.param_groups, _options.resolve_seed(seed))

    @property
    def seed(self) -> int:
        """The seed of the noise."""
        return self._state.seed

    @property
    def draw(self) -> int:
        """Number of the next draw."""
        return self._state.draw

    @contextmanager
    def applied(self, *, sample: int = 0, negate: bool = False, advance: bool = True) -> Iterator[None]:
        """Context in which the tensors hold clean + noise (clean - noise with `negate`).

        Args:
            sample: number of the sample within the draw, 0 to 2**32 - 1.
            negate: use the mirrored noise.
            advance: move on to the next draw afterwards.

        Raises:
            RuntimeError: inside itself, or, on leaving, if the tensors were written to inside.
        """
        _options.count("sample", sample, low=0)
        if self._state.active:
            raise RuntimeError("applied() inside applied(): the tensors are perturbed already. Leave the first one.")
        try:
            self._state.apply(sample, negate)
            yield
        finally:
            try:
                self._state.restore()
            finally:
                if advance:
                    self._state.advance()

    def state_dict(self) -> dict[str, int]:
        """Seed and draw."""
        return {"seed": self._state.seed, "draw": self._state.draw}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continues with the seed and draw of `state_dict()`."""
        self._state.set_generator(
            _options.resolve_seed(state_dict["seed"]), _options.count("draw", state_dict["draw"], low=0, high=2**63 - 1)
        )

    def noise(self, param: Tensor, *, sample: int = 0) -> Tensor:
        """The noise that the next `applied()` would add to one of the tensors, as a tensor of its dtype.

        Raises:
            ValueError: the tensor is not one of `params`.
        """
        place = self._state.place_of().get(param)
        if place is None:
            raise ValueError("noise() got a tensor that is not one of params.")
        group = next(g for g in self.param_groups if any(p is param for p in g["params"]))
        with torch.no_grad():
            return torch.ops.torch_ssam.perturbed(
                torch.zeros_like(param),
                self._state.generator(param.device),
                place,
                float(group["noise_std"]),
                group["distribution"],
                sample,
            )
