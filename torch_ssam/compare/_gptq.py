"""GPTQ, the calibrated rounding that trained networks are given beside plain rounding (Frantar et al., arXiv 2210.17323).

Layer by layer, in the order of calls, the weights W of a linear layer or a convolution are rounded column by column,
each column's error made good in those that are left, so that |X (W - W_q)^T|^2 stays small on the inputs X that the
layer has when all layers before it are rounded:

    H = X^T X + damping,   U = upper Cholesky factor of H^-1
    W[:, i+1:] -= (W[:, i] - q) / U[i, i] * U[i, i+1:]

The step is a filter's own, that of the least squared error before. Other weights (embeddings, grouped convolutions)
are rounded to the nearest. A plain reference for comparisons. Tests: tests/python/test_compare_deployment.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from torch_ssam import robustness
from torch_ssam._common.measured_model import MeasuredModel
from torch_ssam.ops.plain_numbers import float64_of
from torch_ssam.robustness._evaluate import noted_calls
from torch_ssam.robustness._quantizers import Quantizer

#: Added to the diagonal of H, as a share of its mean.
DAMPING = 0.01

Layer = nn.Linear | nn.Conv2d


def _serves(module: nn.Module) -> TypeGuard[Layer]:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str)
    )


def _columns(layer: Layer, x: Tensor) -> Tensor:
    """The inputs that each output of the layer is a product of, (outputs, columns of the weight)."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)  # _serves leaves those out
        patches = unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return patches.transpose(1, 2).flatten(0, 1)
    return x.flatten(0, -2)


@torch.no_grad()
def layers_in_order(model: nn.Module, x: Tensor) -> list[Layer]:
    """The layers that GPTQ rounds, in the order of their first calls."""
    with noted_calls(module for module in model.modules() if _serves(module)) as called:
        model(x)
    return [layer for layer in dict.fromkeys(called) if _serves(layer)]


@torch.no_grad()
def _hessian(model: nn.Module, layer: Layer, batches: Sequence[Tensor]) -> Tensor:
    columns = layer.weight[0].numel()
    h = torch.zeros(columns, columns, dtype=torch.float64)

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = _columns(layer, inputs[0])
        h.add_(float64_of(x.T @ x) / len(x))

    hook = layer.register_forward_pre_hook(add)
    try:
        for batch in batches:
            model(batch)
    finally:
        hook.remove()
    return h


def gptq_rows(weight: Tensor, h: Tensor, bits: int) -> Tensor:
    """The rows of a weight rounded in turn, for inputs of second moments h (columns, columns).

    >>> import torch
    >>> w = torch.tensor([[0.3, 0.3, 0.3, 1.0]])
    >>> alike = torch.ones(4, 4, dtype=torch.float64)  # four inputs that are always the same: the sum matters
    >>> gptq_rows(w, torch.eye(4, dtype=torch.float64), 2), gptq_rows(w, alike, 2)
    (tensor([[0., 0., 0., 1.]]), tensor([[0., 0., 1., 1.]]))
    """
    rows = float64_of(weight).clone()
    quantizer = Quantizer(bits, "narrow", "mse")
    step = quantizer.encode(rows).step
    diagonal = h.diagonal()
    dead = diagonal == 0  # an input that is always 0 says nothing of its weights
    h = h.clone()
    h.diagonal().add_(DAMPING * diagonal.mean() + dead.double())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    rounded = torch.empty_like(rows)
    for i in range(rows.size(1)):
        column = rows[:, i : i + 1]
        rounded[:, i : i + 1] = torch.round(column / step).clamp(quantizer.low, quantizer.high) * step
        error = (column - rounded[:, i : i + 1]) / inverse[i, i]
        rows[:, i + 1 :] -= error * inverse[i, i + 1 :]
    return rounded.to(weight.dtype).to(weight.device)


@contextlib.contextmanager
def gptq(model: nn.Module, bits: int, batches: Sequence[Tensor]) -> Iterator[None]:
    """Context in which all weights of a model are rounded to so many bits; afterwards their exact bits are back.

    Args:
        model: any module, in whatever mode: inputs of layers are those of eval mode.
        bits: 2 to 16.
        batches: inputs to calibrate with, in batches.
    """
    served = [m.weight for m in model.modules() if _serves(m)]
    clean = [w.detach().clone() for w in served]
    rest = any(p.dim() >= 2 and all(p is not w for w in served) for p in model.parameters())
    nearest = robustness.quantized(model, bits, step="mse", skip=served) if rest else contextlib.nullcontext()
    try:
        with nearest:
            with MeasuredModel(model, training=False):
                for layer in layers_in_order(model, batches[0]):
                    h = _hessian(model, layer, batches)
                    rounded = gptq_rows(layer.weight.detach().flatten(1), h, bits)
                    layer.weight.data.copy_(rounded.view_as(layer.weight))
                kept = [w.detach().clone() for w in served]
            for w, value in zip(served, kept, strict=True):
                w.data.copy_(value)
            yield
    finally:
        for w, value in zip(served, clean, strict=True):
            w.data.copy_(value)
