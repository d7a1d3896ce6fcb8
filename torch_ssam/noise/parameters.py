"""Parameters as optimizers are given them: lists, dicts and names; what can be perturbed, and what cannot.

Everything is said at construction rather than at the first step. Tests: tests/python/test_bad_input.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from torch_ssam.noise.pieces import check_whole


def parameter_list(params: Any) -> list[Any]:
    """What an optimizer, a group or WeightNoise is given as params, as a list."""
    if isinstance(params, torch.Tensor | torch.nn.Module | str) or not isinstance(params, Iterable):
        hint = "module.parameters()" if isinstance(params, torch.nn.Module) else "[tensor]"
        raise TypeError(
            f"params is a {type(params).__name__}; expected an iterable of tensors or dicts, for example "
            f"{hint}."
        )
    return list(params)


def group_params(group: Any) -> list[Any]:
    """The tensors, or (name, tensor) pairs, of a parameter group, each once."""
    if not isinstance(group, dict) or "params" not in group:
        came = (
            f"a dict with {sorted(map(str, group))}"
            if isinstance(group, dict)
            else f"a {type(group).__name__}"
        )
        raise TypeError(f'a parameter group is {came}; expected a dict with "params" and options.')
    params = group["params"]
    if isinstance(params, set):
        raise TypeError("params is a set, whose order changes from run to run; expected a list.")
    members = [params] if isinstance(params, torch.Tensor) else parameter_list(params)
    unique: dict[int, Any] = {}
    for member in members:
        unique.setdefault(id(tensor_of(member)), member)
    return list(unique.values())


def tensor_of(member: Any) -> Any:
    """The tensor of a (name, tensor) pair, or the tensor itself."""
    return member[1] if isinstance(member, tuple) and len(member) == 2 else member


def check_parameters(params: list[Any], others: list[torch.Tensor]) -> None:
    """What can be perturbed; said at construction rather than at the first step.

    `others` are the tensors that are perturbed already: memory that two tensors share would be perturbed
    twice.
    """
    check_whole(list(map(tensor_of, params)))
    for i, member in enumerate(params):
        p = tensor_of(member)
        if not isinstance(p, torch.Tensor):
            raise TypeError(f"parameter {i} of the group is a {type(p).__name__}; expected a tensor.")
        # A frozen Parameter (of a quantised layer, say) only counts for the places.
        frozen = isinstance(p, torch.nn.Parameter) and not p.requires_grad and p.layout == torch.strided
        if not frozen and (p.layout != torch.strided or p.is_complex() or not p.is_floating_point()):
            kind = "sparse" if p.layout != torch.strided else str(p.dtype).removeprefix("torch.")
            raise ValueError(
                f"parameter {i} of the group is {kind}; expected a dense float64, float32, bfloat16 or "
                f"float16 "
                "tensor. Leave it out of the parameters, or convert it."
            )
        if p.is_inference():
            raise ValueError(
                f"parameter {i} of the group was made under torch.inference_mode; expected a normal tensor. "
                "Create the model outside of it, or clone() the tensor there."
            )
    _check_memory([*others, *map(tensor_of, params)], len(others))


def _check_memory(tensors: list[torch.Tensor], known: int) -> None:
    """Raises where two tensors certainly share memory; two with gaps may pass each other by and are let through."""
    spans = []
    for i, t in enumerate(tensors):
        # Fake tensors and sharded ones have no memory of their own to ask for.
        if type(t) in (torch.Tensor, torch.nn.Parameter) and t.device.type in ("cpu", "cuda") and t.numel():
            begin = t.data_ptr()
            if begin:
                reach = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1
                whole = reach == t.numel()  # without gaps, in which another tensor might lie
                spans.append((str(t.device), begin, begin + reach * t.element_size(), whole, i))
    spans.sort(key=lambda span: span[:3])
    reaching: list[tuple[str, int, int, bool, int]] = []  # that end beyond the present one's beginning
    for span in spans:
        device2, begin2, end2, whole2, k = span
        reaching = [earlier for earlier in reaching if earlier[0] == device2 and earlier[2] > begin2]
        for _, begin, end, whole, i in reaching:
            # The later one's first element, or the earlier one's last, lies in the other.
            if begin != begin2 and not whole and not (whole2 and end <= end2):
                continue
            a, b = (f"parameter {j - known} of the group" if j >= known else f"parameter {j}" for j in (i, k))
            if tensors[i] is tensors[k]:
                where = " in two groups; expected it in one" if min(i, k) < known else "; expected it once"
                raise ValueError(f"{a} and {b} are the same tensor{where}.")
            raise ValueError(
                f"{a} and {b} are two tensors in the same memory, which would be perturbed twice; expected "
                f"one. "
                "Tie weights by using the same Parameter under both names."
            )
        reaching.append(span)


def check_channel_dim(params: list[Any], channel_dim: Any) -> None:
    """Raises ValueError for a tensor of two or more dimensions that lacks this one. Others are one filter."""
    for i, p in enumerate(map(tensor_of, params)):
        if p.dim() >= 2 and channel_dim >= p.dim():
            raise ValueError(
                f"channel_dim is {channel_dim} and parameter {i} of the group has shape {tuple(p.shape)}; expected one of "
                f"its dimensions, 0 to {p.dim() - 1}. Give it a group of its own."
            )


def check_regenerated(params: list[Any]) -> None:
    """What memory="regenerate" takes: dtypes in which two roundings a step are no more than SGD's own."""
    for p in map(tensor_of, params):
        if p.requires_grad and p.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f'memory="regenerate" with parameters of dtype {p.dtype}: taking noise off again rounds twice '
                "a step, which 16-bit weights do not survive; expected float32 or float64. Use "
                'memory="copy".'
            )
