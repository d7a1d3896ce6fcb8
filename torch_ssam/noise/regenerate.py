"""memory="regenerate": noise that is taken off again by drawing it a second time, with no copy of the weights.

Each of the two additions rounds once, so an element w with noise n comes back within u (|w + n| + |w|), u =
2^-24 in float32 and 2^-53 in float64, and k perturbations of resting weights end within k u (2 |w| + |n|_max)
of where they began. Tests: tests/python/test_regenerate.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torch_ssam.noise.generator import NoiseArguments
from torch_ssam.ops.dtensor import local_of, shard_of
from torch_ssam.ops.entries import ops


class Recipe(NamedTuple):
    """How noise was made: the arguments of the operators, with a generator of its own that nobody moves."""

    generator: Tensor
    noise: NoiseArguments  # what they take after generator and place

    def mirrored(self) -> Recipe:
        """The same noise with the other sign."""
        return self._replace(noise=self.noise.mirrored())


def recipe(generator: Tensor, noise: NoiseArguments) -> Recipe:
    """The recipe of the noise of a draw, `draw_offset` draws from the generator's."""
    own = generator.clone()
    if noise.draw_offset:
        ops.advance_(own, noise.draw_offset)
    return Recipe(own, noise._replace(draw_offset=0))


def _head(param: Tensor) -> Tensor:
    """A copy of the first elements; of a DTensor this rank's first."""
    head = local_of(param.detach())
    for d, n in enumerate(head.shape):
        head = head.narrow(d, 0, min(n, 64) if d == head.dim() - 1 else 1)
    return head.clone()


def _perturbed(weights: Tensor, place: int, how: Recipe, shards: list[int] | None = None) -> Tensor:
    result: Tensor = torch.ops.torch_ssam.perturbed(weights, how.generator, place, *how.noise, shards=shards)
    return result


def add(params: list[Tensor], places: list[int], how: Recipe, done: Callable[[], None]) -> None:
    """params <- params + noise in place, then `done()`: both or neither, also where a signal strikes."""
    probe = next(((p, i) for p, i in zip(params, places, strict=True) if local_of(p).numel()), None)
    before = _head(probe[0]) if probe else None
    try:
        ops.perturb_from_clean_(params, params, how.generator, places, *how.noise)
        done()
    except BaseException:
        # The operator writes all or, where it refuses, nothing: the first elements tell which.
        if probe is not None and before is not None:
            now = _head(probe[0])
            expected = _perturbed(before, probe[1], how, shard_of(probe[0]))
            if now.equal(expected) and not now.equal(before):
                done()
        raise


def without(param: Tensor, place: int, how: Recipe) -> Tensor:
    """The clean weights of a perturbed tensor, as a new tensor."""
    return _perturbed(param.detach(), place, how.mirrored())
