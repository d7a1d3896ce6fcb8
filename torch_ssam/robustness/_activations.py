"""A context in which layers get inputs of few bits, as integer kernels compute. Tests: test_robustness_activations.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch_ssam.noise.scope import Scope

from ._quantizers import Grid, Quantizer, check_bits
from ._weights import Skip, check_model, chosen_weights


class _Rounded:
    """What runs before a layer: its floating-point inputs are rounded, each tensor by its own range."""

    def __init__(self, quantizer: Quantizer) -> None:
        self._quantizer = quantizer

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self._of(x) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)

    def _of(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        rounded = self._quantizer.encode(wide.reshape(1, -1)).values().reshape(x.shape).to(x.dtype)
        return x + (rounded - x).detach()  # the straight-through gradient


class _Activations(Scope):
    def __init__(self, layers: list[nn.Module], quantizer: Quantizer) -> None:
        self._layers, self._quantizer = layers, quantizer
        self._hooks: list[Any] | None = None

    def _check(self) -> None:
        if self._hooks is not None:
            raise RuntimeError(
                "this context is entered inside itself: the activations are rounded already. Leave it first."
            )

    def _begin(self) -> None:
        self._hooks = []
        for layer in self._layers:
            self._hooks.append(layer.register_forward_pre_hook(_Rounded(self._quantizer)))

    def _end(self) -> None:
        for hook in self._hooks or ():
            hook.remove()
        self._hooks = None


def quantized_activations(
    model: nn.Module, bits: int = 8, *, grid: Grid = "narrow", skip: Skip = ()
) -> Scope:
    """Context in which the layers that hold weights get inputs rounded to `bits` bits each.

    x <- (clamp(round(x / s) + z, low, high) - z) s with one step s and zero point z for each tensor, from the range of that
    tensor: dynamic quantisation, as runtimes do that compute in integers without calibration. The layers are those whose
    weights `quantized` rounds, and it may be entered inside of that. What layers compute is not rounded; nor are inputs of other
    operations, such as the softmax of an attention. Gradients pass as if nothing were rounded.

    Args:
        model: any module but a ScriptModule; its layers get a hook until the context is left.
        bits: 2 to 16.
        grid: as in `quantized`; "affine" for inputs that are not symmetric, such as those after a ReLU.
        skip: as in `quantized`: what is named there gets its inputs as they are.

    Raises: TypeError, ValueError: as `quantized`, and a ScriptModule. RuntimeError: entered inside itself.

    >>> import torch
    >>> from torch_ssam import robustness
    >>> layer = torch.nn.Linear(3, 1, bias=False)
    >>> _ = layer.weight.data.fill_(1.0)
    >>> with robustness.quantized_activations(layer, 2):  # 1, 0.4 and 0 become 1, 0 and 0
    ...     layer(torch.tensor([[1.0, 0.4, 0.0]])).item()
    1.0
    """
    check_model(model)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TypeError(
            "the model is, or holds, a ScriptModule, which takes no hooks; expected plain modules."
        )
    quantizer = Quantizer(check_bits("bits", bits), grid, "absmax")
    chosen = {id(weight.param) for weight in chosen_weights(model, skip)}
    layers = [
        module
        for module in model.modules()
        if any(id(p) in chosen for p in module._parameters.values() if p is not None)
    ]
    return _Activations(layers, quantizer)
