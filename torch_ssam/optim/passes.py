"""The passes of one step: which there are, what each weighs in the mean gradient, and which examples it gets.

LPF-SGD's rule of splitting a batch over the draws (arXiv 2201.08025), antithetic pairs (NSO, arXiv
2306.08553) and the clean share of m-RWP (arXiv 2211.11489). Tests: test_ssam_driving.py,
test_ssam_reference.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


class Pass(NamedTuple):
    """One forward and backward pass of a step."""

    sample: int
    negate: bool
    clean: bool


def passes_of(group: dict[str, Any]) -> list[Pass]:
    """Every pass of one step: samples, each also mirrored with antithetic, and last the clean one."""
    signs = (False, True) if group["antithetic"] else (False,)
    passes = [Pass(k, negate, False) for k in range(int(group["samples"])) for negate in signs]
    if group["clean_weight"] > 0:
        passes.append(Pass(0, False, True))
    return passes


def weights_of(passes: list[Pass], clean_weight: float, shares: list[float]) -> list[float]:
    """Weight of each pass in the mean: clean_weight for the clean one, shares of the rest for the others."""
    noisy = sum(share for one, share in zip(passes, shares, strict=True) if not one.clean)
    rest = 1.0 - clean_weight if any(one.clean for one in passes) else 1.0
    return [
        clean_weight if one.clean else rest * share / noisy for one, share in zip(passes, shares, strict=True)
    ]


class HeldGradients:
    """Weighted sums of gradients that are taken off their parameters meanwhile.

    In float32 for 16-bit ones, in which a sum over many passes would stall, or overflow before it is a mean.
    """

    def __init__(self) -> None:
        self._sums: dict[Tensor, tuple[Tensor, torch.dtype]] = {}

    def take(self, param: Tensor, weight: float) -> None:
        """Adds weight times the parameter's gradient, and clears it for the next pass."""
        grad = param.grad
        if grad is None:
            return
        part = grad.detach()
        part = part.float() if part.dtype in HALF else part
        known = self._sums.get(param)
        if known is None:
            self._sums[param] = part.mul_(weight), grad.dtype
        elif known[0].layout != part.layout:  # sparse in one pass and dense in another
            self._sums[param] = known[0].to_dense() + part.to_dense().mul(weight), known[1]
        else:
            known[0].add_(part, alpha=weight)
        param.grad = None

    def put_back(self) -> None:
        """Makes the sums the parameters' gradients."""
        for param, (total, dtype) in self._sums.items():
            param.grad = total.to(dtype)
        self._sums = {}

    def __bool__(self) -> bool:
        return bool(self._sums)


def bounds_of(total: int, parts: int) -> list[int]:
    """Where the parts of `total` examples begin and end, as even as can be."""
    return [total * k // parts for k in range(parts + 1)]


def examples_in(inputs: tuple[Any, ...]) -> int:
    """The number of examples, the same along dimension 0 of every tensor.

    Raises:
        TypeError, ValueError: something else than tensors in dicts, lists and tuples; different numbers, or
        none.
    """
    shapes = [tuple(t.shape) for value in inputs for t in _tensors(value)]
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"perturbations() got inputs of shapes {shapes}; expected the same number of examples (> 0) "
            f"along "
            "dimension 0 of each."
        )
    return int(sizes.pop())


def part_of(inputs: tuple[Any, ...], begin: int, end: int) -> Any:
    """The examples from begin to end of every tensor, in the same nesting; no tuple around a single input."""
    parts = tuple(_slice(value, begin, end) for value in inputs)
    return parts[0] if len(parts) == 1 else parts


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    else:
        raise TypeError(
            f"perturbations() got an input of type {type(value).__name__}; expected tensors, or dicts, "
            f"lists or "
            "tuples of tensors."
        )


def _slice(value: Any, begin: int, end: int) -> Any:
    if isinstance(value, Tensor):
        return value[begin:end]
    if isinstance(value, Mapping):
        return {k: _slice(v, begin, end) for k, v in value.items()}
    items = [_slice(v, begin, end) for v in value]
    if isinstance(value, tuple):
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return items
