"""DiagonalLinear: the module of y = x * w_1 * ... * w_L, whose product and derivatives are diagonal_product.py's.

Here are its options, its weights, and which draw of its own noise a forward gets. Tests:
tests/python/test_diagonal_linear.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_ssam import _checks
from torch_ssam.nn.diagonal_product import (
    DISTRIBUTION,
    apply_plain,
    autocast,
    in_transform,
    is_plain,
    mixed,
    transforms_active,
    written_out,
)
from torch_ssam.noise import parameters, seeds
from torch_ssam.ops.entries import ops


class DiagonalLinear(nn.Module):
    r"""A diagonal linear network: y = x * w_1 * ... * w_L elementwise, or its sum over features.

    The model of arXiv 2503.11891 (section 2), whose regularised loss, thresholds and limits are
    `torch_ssam.theory`.

    Args:
        features: size d of the last dimension of the input, >= 0.
        depth: number L of layers, >= 1.
        readout: None, or "sum" to sum the last dimension (scalar regression).
        init_scale: initial value of every weight, a number or one per layer.
        noise_std: with a value > 0 and in training mode, each forward draws Gaussian noise of this standard
            deviation on the weights inside the kernels, and the backward draws the same again; it is never
            stored. It is the noise of `SSAM(module.parameters(), noise_std=..., seed=...)` on a module
            without noise, bit for bit.
        seed: seed of that noise; None takes one from torch's default generator.
        device, dtype: as for nn.Linear.

    Shape:
        input (..., features); output (..., features), or (...) with readout="sum". `weight` is (depth,
            features).

    Raises:
        ValueError, TypeError: options out of range; inputs whose last dimension or dtype does not fit.

    Under activation checkpointing the noise of the recomputed forward is found again through torch's random
    state, as dropout's is: leave preserve_rng_state on.

    Example:
        >>> import torch, torch_ssam
        >>> layer = torch_ssam.DiagonalLinear(3, depth=2, init_scale=2.0)
        >>> layer(torch.tensor([1.0, 2.0, 3.0])).tolist()
        [4.0, 8.0, 12.0]
    """

    generator: Tensor

    def __init__(
        self,
        features: int,
        depth: int = 2,
        *,
        readout: str | None = None,
        init_scale: float | Sequence[float] = 1.0,
        noise_std: float = 0.0,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.features = _checks.count("features", features, low=0, high=2**62)
        self.depth = _checks.count("depth", depth)
        if readout is not None:
            _checks.one_of("readout", readout, ("sum",))
        self.readout = readout
        self.noise_std = _checks.number("noise_std", noise_std)
        self.init_scale = self._check_init_scale(init_scale)
        self.weight = nn.Parameter(torch.empty(depth, features, device=device, dtype=dtype))
        parameters.check_parameters([self.weight], [])
        state = torch.tensor([seeds.resolve_seed(seed), 0], dtype=torch.int64, device=device)
        self.register_buffer("generator", state)
        self._checkpointed: OrderedDict[int, Tensor] = OrderedDict()
        self.reset_parameters()

    def _check_init_scale(self, value: Any) -> list[float]:
        values = list(value) if isinstance(value, Sequence | Tensor) and not _is_scalar(value) else [value]
        if len(values) not in (1, self.depth):
            raise ValueError(
                f"init_scale has {len(values)} values; expected one number or one per layer ({self.depth})."
            )
        return [_checks.number("init_scale", v, low=-float("inf")) for v in values]

    def reset_parameters(self) -> None:
        """Sets every layer to its init_scale."""
        with torch.no_grad():
            scale = torch.tensor(self.init_scale, dtype=torch.float64).expand(self.depth)
            self.weight.copy_(scale.to(self.weight).unsqueeze(1).expand_as(self.weight))

    def forward(self, input: Tensor) -> Tensor:
        weight: Any = self._parameters.get("weight")  # nn.Module's attributes are looked up in Python
        if weight is None:  # parametrized
            weight = self.weight
        if torch._C._is_any_autocast_enabled():
            input, weight = autocast(input, weight)
        elif input.dtype != weight.dtype:
            raise mixed(input, weight)
        noise_std, readout = self.noise_std, self.readout is not None
        generator = self._next_draw() if noise_std > 0 and self.training else None
        if not torch.compiler.is_compiling():
            if in_transform():
                return written_out(input, weight, generator, noise_std, readout)
            if is_plain(input, weight):
                return apply_plain(input, weight, generator, noise_std, readout)
        result: Tensor = torch.ops.torch_ssam.diagonal(
            input, weight, generator, noise_std, DISTRIBUTION, readout
        )
        return result

    def _next_draw(self) -> Tensor:
        """(seed, draw) of this forward, and moves on; one recomputed in backward gets its old one again."""
        if torch.compiler.is_compiling():
            state = self.generator.clone()
            self.generator[1] += 1
            return state
        recomputing = torch._C._current_graph_task_id() != -1
        may_recompute = not transforms_active() and (
            not torch.is_grad_enabled()
            or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        )
        token = -1
        if recomputing or may_recompute:
            # Checkpointing restores torch's random state before it recomputes: the same number comes again.
            token = int(torch.randint(0, 2**62, (), device="cpu"))
            if recomputing:
                known = self._checkpointed.get(token)
                if known is None:
                    raise RuntimeError(
                        "DiagonalLinear with its own noise was recomputed in backward without the random "
                        "state of its forward; call torch.utils.checkpoint.checkpoint with preserve_rng_state="
                        "True."
                    )
                return known
        state = self.generator.clone()
        ops.advance_(self.generator, 1)
        if token >= 0:
            self._checkpointed[token] = state
            if len(self._checkpointed) > 4096:
                self._checkpointed.popitem(last=False)
        return state

    def product(self) -> Tensor:
        """w_1 * ... * w_L, of shape (features,), differentiable."""
        product = self.weight[0]
        for layer in self.weight[1:]:
            product = product * layer
        return product

    def balance_gaps(self) -> Tensor:
        """w_i^2 - w_j^2 for each pair of layers, (depth, depth, features); S-SAM drives them to 0."""
        squares = self.weight.square()
        return squares.unsqueeze(1) - squares.unsqueeze(0)

    def extra_repr(self) -> str:
        text = f"features={self.features}, depth={self.depth}"
        if self.readout is not None:
            text += f", readout={self.readout!r}"
        if self.noise_std > 0:
            text += f", noise_std={self.noise_std:g}"
        return text


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0
