"""param_groups: which parameters of a model get noise, weight decay and which filters; describe: who gets what.

Kinds are told by the module that holds a parameter, so that one line serves every network. Tests: test_groups.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from torch_ssam.noise.named import Member, listed, name_fits, named_members, usual_channel_dim
from torch_ssam.noise.options import ROW_SCALES

KINDS = ("bias", "norm", "embedding")

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
_UNITS = {
    "tensor": "norm of its tensor",
    "filter": "norm of its filter",
    "fisher": "norm of its filter, by Fisher",
    "element": "(|w| + 0.01)",
    "absmax": "largest of its filter",
    "tensor_absmax": "largest of its tensor",
}


def param_groups(
    model: nn.Module, *, clean: str | Iterable[str] = (), no_decay: str | Iterable[str] = ("bias", "norm")
) -> list[dict[str, Any]]:
    """The parameters of a model in groups, by who gets noise and weight decay, with the dimension that counts filters.

    A choice is a kind, "bias", "norm" (parameters of normalisation layers) or "embedding", or a pattern of names of
    parameters or modules, such as "head" or "layers.*.proj.weight". A tied parameter is chosen where any of its names is.
    Weights of ConvTranspose layers and of transformers' Conv1D get channel_dim=1. Frozen parameters are in it too, since
    they count for the noise's place. Groups come in the order of the model's parameters, which are given with their names.

    Args:
        model: the module.
        clean: what gets no noise ("noise_std": 0). Nothing by default: so it was in every result of ours.
        no_decay: what gets no weight decay ("weight_decay": 0). Biases and norms by default, as AdamW is mostly used.

    Returns:
        Groups for `SSAM`, `SSAMAdamW`, `WeightNoise` or, before `wrap`, any torch optimizer. What they do not name is as the
        optimizer has it. `print(describe(opt))` shows them.

    Raises:
        TypeError: no module; a choice that is no string.
        ValueError: a pattern that fits nothing; a model without parameters.

    Example:
        >>> import torch, torch_ssam
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
        >>> groups = torch_ssam.param_groups(model, clean=["norm", "2"])
        >>> opt = torch_ssam.SSAMAdamW(groups, lr=1e-3, noise_std=0.01)
        >>> print(torch_ssam.describe(opt))
        parameter  shape   noise     lr  weight decay
        0.weight   (8, 4)   0.01  0.001          0.01
        0.bias     (8,)     0.01  0.001             0
        1.weight   (8,)    clean  0.001             0
        1.bias     (8,)    clean  0.001             0
        2.bias     (2,)    clean  0.001             0
        2.weight   (2, 8)  clean  0.001          0.01
        40 of 74 weights get noise.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"param_groups() got a {type(model).__name__}; expected the torch.nn.Module to train."
        )
    members = named_members(model)
    if not members:
        raise ValueError("param_groups() got a model without parameters; expected at least one.")
    chosen = {
        name: _chosen(name, given, members) for name, given in (("clean", clean), ("no_decay", no_decay))
    }
    columns = {
        id(member.param): member for member in members if usual_channel_dim(member) and member.param.dim() > 1
    }
    groups: dict[tuple[bool, bool, bool], dict[str, Any]] = {}
    for name, param in model.named_parameters():
        which = id(param) in chosen["clean"], id(param) in chosen["no_decay"], id(param) in columns
        if which not in groups:
            options = ("noise_std", 0.0), ("weight_decay", 0.0), ("channel_dim", 1)
            own = {name: value for holds, (name, value) in zip(which, options, strict=True) if holds}
            groups[which] = {"params": [], **own}
        groups[which]["params"].append((name, param))
    return list(groups.values())


def _chosen(argument: str, given: Any, members: list[Member]) -> set[int]:
    """Ids of the parameters that a choice names."""
    entries = [given] if isinstance(given, str) else given
    if not isinstance(entries, Iterable):
        raise TypeError(f"{argument} is a {type(given).__name__}; expected kinds or patterns of names.")
    found: set[int] = set()
    for entry in entries:
        if not isinstance(entry, str):
            raise TypeError(
                f"{argument} has {entry!r} ({type(entry).__name__}); expected 'bias', 'norm', 'embedding' or a pattern of "
                "names."
            )
        fits = {id(member.param) for member in members if _fits(entry, member)}
        if not fits and entry not in KINDS:
            raise ValueError(
                f"{argument} has {entry!r}, which fits no parameter of the model; expected 'bias', 'norm', 'embedding' or a "
                f"pattern of its names, which are {listed(members)}."
            )
        found |= fits
    return found


def _fits(entry: str, member: Member) -> bool:
    holder = member.holder
    if entry == "bias":
        return "bias" in member.own_name
    if entry == "norm":
        return isinstance(holder, _NORMS) or re.search(r"Norm(\dd)?$", type(holder).__name__) is not None
    if entry == "embedding":
        known = nn.Embedding | nn.EmbeddingBag
        return isinstance(holder, known) or type(holder).__name__.endswith("Embedding")
    return name_fits(entry, member.name)


def describe(optimizer: Any) -> str:
    """A table of who gets what: of each tensor its noise, learning rate and weight decay, to be printed.

    Names are those of the groups ("param_names", as `param_groups` and `model.named_parameters()` give them); without them
    a parameter has its place. noise is noise_std, with its unit where scale is not "isotropic", "clean" where it is 0, and
    "frozen" for parameters that do not require gradients.

    Args:
        optimizer: SSAM, SSAMAdamW, a wrapped optimizer or WeightNoise.

    Raises:
        TypeError: something without noise_std in its groups.

    Example:
        >>> import torch, torch_ssam
        >>> model = torch.nn.Linear(2, 1)
        >>> print(torch_ssam.describe(torch_ssam.SSAM(model.named_parameters(), noise_std=0.1, scale="absmax")))
        parameter  shape   noise                         lr  weight decay
        weight     (1, 2)  0.1 x largest of its filter  0.1             0
        bias       (1,)    0.1 x largest of its filter  0.1             0
        3 of 3 weights get noise.
    """
    groups = getattr(optimizer, "param_groups", None) or [{}]
    if "noise_std" not in groups[0]:
        raise TypeError(
            f"describe() got a {type(optimizer).__name__} without noise_std in its groups; expected torch_ssam.SSAM, "
            "SSAMAdamW, wrap(optimizer) or WeightNoise."
        )
    numbers = [name for name in ("lr", "weight_decay") if any(name in group for group in groups)]
    rows: list[list[str]] = []
    place = noisy = total = 0
    for group in groups:
        names = group.get("param_names") or [None] * len(group["params"])
        shown = [f"{float(group[name]):g}" if group.get(name) is not None else "-" for name in numbers]
        for name, p in zip(names, group["params"], strict=True):
            noise = _noise(group, p)
            rows.append([name or f"parameter {place}", str(tuple(p.shape)), noise, *shown])
            total += p.numel()
            noisy += p.numel() if noise not in ("clean", "frozen") else 0
            place += 1
    head = ["parameter", "shape", "noise", *(name.replace("_", " ") for name in numbers)]
    # Words to the left, numbers to the right.
    left = [True, True, any(" x " in row[2] for row in rows), *(False for _ in numbers)]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if to_left else cell.rjust(w)
            for cell, w, to_left in zip(row, widths, left, strict=True)
        )
        for row in (head, *rows)
    ]
    return "\n".join([*(line.rstrip() for line in lines), f"{noisy:,} of {total:,} weights get noise."])


def _noise(group: dict[str, Any], param: Tensor) -> str:
    if not param.requires_grad:
        return "frozen"
    std = float(group["noise_std"])
    if std == 0.0:
        return "clean"
    unit = _UNITS.get(group["scale"])
    by_filter = group["scale"] in ROW_SCALES and not ROW_SCALES[group["scale"]][1]
    dim = group.get("channel_dim", 0)
    filters = f", dim {dim}" if by_filter and dim and param.dim() > 1 else ""
    return f"{std:g}" if unit is None else f"{std:g} x {unit}{filters}"
