"""The plain operators of rows of tensors: their numbers, sums of squared gradients, and clipping (csrc/ops/rows.cpp).

A row is an index of dimension 0, or the whole tensor. Sums are in the widest dtype of the device, in PyTorch's order, so within
some ulp of the kernels'. Tests: tests/python/test_plain_operators.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_ssam.ops import plain_checks as checks
from torch_ssam.ops.plain_checks import Tensors
from torch_ssam.ops.plain_numbers import opmath, wide

KINDS = ("norm", "absmax")


def _row_norms(tensor: Tensor, count: int, order: float = 2.0) -> Tensor:
    rows = tensor.reshape(count, tensor.numel() // count if count else 1)
    if rows.numel() == 0:
        return torch.zeros(count, dtype=wide(tensor.device), device=tensor.device)
    norms: Tensor = torch.linalg.vector_norm(rows, order, dim=1, dtype=wide(tensor.device))
    return norms


def row_scales_(
    row_scales: Tensors, weights: Tensors, fisher: Tensors, fisher_factor: float = 0.0, kind: str = "norm"
) -> None:
    """row_scales <- |w_r|_2 / sqrt(1 + fisher_factor F_r), or the largest magnitude of each row."""
    checks.check_named(kind, "kind", KINDS)
    checks.check_finite_nonnegative(fisher_factor, "fisher_factor")
    checks.check_parameters(weights, "weights")
    checks.check_rows(row_scales, "row_scales", weights, "weights")
    if fisher:
        checks.check_rows(fisher, "fisher", weights, "weights")
    for t, (sums, scales) in enumerate(zip(fisher, row_scales, strict=False)):
        checks.require(
            sums.numel() == scales.numel(),
            f"fisher[{t}] has {sums.numel()} elements and row_scales[{t}] has {scales.numel()}; expected the same.",
        )
    checks.require(
        kind == "norm" or not fisher, "kind is 'absmax' and fisher is given; expected it with 'norm' only."
    )
    for tensors, name in ((weights, "weights"), (row_scales, "row_scales"), (fisher, "fisher")):
        checks.check_one_device(tensors, name, weights[0] if weights else None, "weights[0]")
    for t, (scales, w) in enumerate(zip(row_scales, weights, strict=True)):
        norms = _row_norms(w, scales.numel(), 2.0 if kind == "norm" else math.inf)
        if fisher:
            norms = norms / (fisher[t].view(-1).to(norms.dtype) * fisher_factor + 1.0).sqrt()
        scales.view(-1).copy_(norms)


def row_fisher_(fisher: Tensors, grads: Tensors, decay: float) -> None:
    """fisher <- decay fisher + sum over the row of grad^2."""
    checks.require(0.0 <= decay <= 1.0, f"decay is {decay:g}; expected 0 to 1.")
    checks.check_parameters(grads, "grads")
    checks.check_rows(fisher, "fisher", grads, "grads")
    for tensors, name in ((grads, "grads"), (fisher, "fisher")):
        checks.check_one_device(tensors, name, grads[0] if grads else None, "grads[0]")
    for sums, g in zip(fisher, grads, strict=True):
        squares = _row_norms(g, sums.numel()).square()
        sums.view(-1).copy_(sums.view(-1).to(squares.dtype) * decay + squares)


def clip_rows_(weights: Tensors, weight_clip: float) -> None:
    """weights <- at most weight_clip times the root mean square of their row in size."""
    checks.check_weight_clip(weight_clip)
    checks.check_parameters(weights, "weights", written=True)
    checks.check_one_device(weights, "weights", weights[0] if weights else None, "weights[0]")
    for w in weights:
        if w.numel() == 0:
            continue
        count = w.shape[0] if w.dim() >= 2 else 1
        limit = _row_norms(w, count) * weight_clip / math.sqrt(w.numel() // count)
        limit = (
            torch.where(limit.isnan(), math.inf, limit).to(opmath(w.dtype)).unsqueeze(1)
        )  # NaN clips nothing
        rows = w.reshape(count, -1).to(opmath(w.dtype))
        w.copy_(torch.clamp(rows, -limit, limit).view(w.shape))
