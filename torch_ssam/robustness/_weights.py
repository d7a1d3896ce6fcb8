"""Which tensors of a model are weights, which axis of them counts filters, and their rows that share a step.

Weights are floating-point parameters of two dimensions or more, each once under all its names, frozen ones too: they
are deployed as well. Biases, norms, buffers and integer parameters stay as they are. A weight's place is its
position among all parameters of the model, so that skipping one changes the noise of no other.
Tests: tests/python/test_robustness_weights.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from torch_ssam import _checks
from torch_ssam._common.measured_model import wide
from torch_ssam.noise import parameters
from torch_ssam.noise.named import Member, listed, name_fits, named_members, usual_channel_dim

Skip = str | nn.Module | type[nn.Module] | Tensor | Iterable[Any]
ChannelDim = int | Mapping[str, int] | Callable[[str, nn.Module], int] | None

#: What torch.nn.utils.weight_norm and spectral_norm of old hang on a module: the weight is computed anew at each call.
RECOMPUTING = ("WeightNorm", "SpectralNorm")


@dataclass(frozen=True)
class Weight:
    """A tensor to disturb."""

    #: All its names, the first as in model.named_parameters(); several where it is tied.
    names: tuple[str, ...]
    param: Tensor
    place: int
    #: The axis that counts filters.
    channel_dim: int

    def computing(self, weights: Tensor) -> Tensor:
        """A copy of these values of the weight to compute with: float32, or float64 for float64.

        Raises:
            ValueError: numbers that are not finite, which have no range.
        """
        copied = weights.to(wide(weights), copy=True)
        wrong = int((~torch.isfinite(copied)).sum())
        if wrong:
            raise ValueError(
                f"{self.names[0]} holds {wrong} of {copied.numel()} numbers that are not finite; expected finite weights."
            )
        return copied


def check_model(model: Any) -> None:
    """Raises if the argument is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module.")


def chosen_weights(model: nn.Module, skip: Skip = (), channel_dim: ChannelDim = None) -> list[Weight]:
    """The weights of a model to disturb, in the order of its parameters.

    Args:
        skip: what stays as it is: patterns of names (as in fnmatch) of parameters or of modules, then with all they
            hold; modules; types of modules; parameters. A tied tensor is skipped if one of its names is.
        channel_dim: the axis that counts filters: None for 1 in ConvTranspose layers and transformers' Conv1D and 0 elsewhere;
            an int for all; a mapping from patterns of names to it, None's for the others; or a function of (name, owner).

    Raises:
        TypeError, ValueError: no module; a member of skip or channel_dim that fits nothing; no weight is left; sparse, complex,
            sharded or uninitialised ones, memory that two tensors share.
    """
    check_model(model)
    members = named_members(model)
    places = {id(p): i for i, (_, p) in enumerate(model.named_parameters())}
    skipped = _skipped(members, skip)
    tied: dict[int, list[Member]] = {}
    for member in members:
        _check_initialised(member)
        shaped = member.param.dim() >= 2 and member.param.numel() > 0
        if shaped and (member.param.is_floating_point() or member.param.is_complex()):
            tied.setdefault(id(member.param), []).append(member)
    axis_of = _channel_rule(channel_dim, members)
    weights = []
    for key, same in tied.items():
        if key in skipped:
            continue
        names, param = tuple(member.name for member in same), same[0].param
        _check(same[0])
        axis = _checks.integer(f"channel_dim of {names[0]}", axis_of(same[0]))
        if not -param.dim() <= axis < param.dim():
            raise ValueError(
                f"channel_dim of {names[0]} is {axis}; expected an axis of its shape {tuple(param.shape)}."
            )
        weights.append(Weight(names, param, places[key], axis % param.dim()))
    if not weights:
        raise ValueError(
            f"the model has no weights to disturb{' beside those of skip' if skipped else ''}; expected floating-point "
            "parameters of two dimensions or more."
        )
    parameters.check_parameters([weight.param for weight in weights], [])
    return weights


def _check_initialised(member: Member) -> None:
    if isinstance(member.param, nn.parameter.UninitializedParameter):
        raise ValueError(f"{member.name} is not initialised; expected a model that was called once.")


def _check(member: Member) -> None:
    """Weights that can be written, and that the layer computes with."""
    param, owner = member.param, member.path[-1]
    if type(param) not in (Tensor, nn.Parameter):
        raise TypeError(
            f"{member.name} is a {type(param).__name__}; expected a plain tensor. Gather sharded weights, and disturb "
            "the model before it is quantised."
        )
    if param.layout != torch.strided or param.is_complex():
        kind = "sparse" if param.layout != torch.strided else str(param.dtype).removeprefix("torch.")
        raise ValueError(f"{member.name} is {kind}; expected dense real weights. Skip it.")
    if any(stride == 0 and n > 1 for stride, n in zip(param.stride(), param.shape, strict=True)):
        raise ValueError(
            f"{member.name} is expanded: several of its elements are one number in memory; expected each its own."
        )
    hooks = owner._forward_pre_hooks.values()
    if any(isinstance(module, parametrize.ParametrizationList) for module in member.path) or any(
        type(hook).__name__ in RECOMPUTING for hook in hooks
    ):
        raise ValueError(
            f"{member.name} is a part of a weight that is computed at each call (torch.nn.utils.parametrize, weight_norm, "
            "spectral_norm); expected the weight itself. Disturb a copy without: remove_parametrizations, "
            "remove_weight_norm. Or skip it."
        )


def _skipped(members: list[Member], skip: Any) -> set[int]:
    """Ids of the parameters that skip names."""
    entries = [skip] if isinstance(skip, str | type | nn.Module | Tensor) else skip
    if not isinstance(entries, Iterable):
        raise TypeError(f"skip is a {type(skip).__name__}; expected names, modules, or types of modules.")
    found: set[int] = set()
    for entry in entries:
        ids = {id(member.param) for member in members if _fits(entry, member)}
        if not ids:
            what = repr(entry) if isinstance(entry, str) else f"the {_kind(entry)}"
            raise ValueError(
                f"skip has {what}, which fits no parameter of the model; its parameters are {listed(members)}."
            )
        found |= ids
    return found


def _kind(entry: Any) -> str:
    if isinstance(entry, type):
        return f"type {entry.__name__}"
    return f"module {type(entry).__name__}" if isinstance(entry, nn.Module) else "tensor"


def _fits(entry: Any, member: Member) -> bool:
    if isinstance(entry, str):
        return name_fits(entry, member.name)
    if isinstance(entry, type) and issubclass(entry, nn.Module):
        return any(isinstance(module, entry) for module in member.path[1:] or member.path)
    if isinstance(entry, nn.Module):
        return any(module is entry for module in member.path)
    if isinstance(entry, Tensor):
        return member.param is entry
    raise TypeError(
        f"skip has {entry!r} ({type(entry).__name__}); expected patterns of names, modules, types of modules or parameters."
    )


def _channel_rule(given: ChannelDim, members: list[Member]) -> Callable[[Member], int]:
    if given is None:
        return usual_channel_dim
    if isinstance(given, Mapping):
        for pattern in given:
            if not any(name_fits(str(pattern), member.name) for member in members):
                raise ValueError(
                    f"channel_dim has {pattern!r}, which fits no parameter of the model; its parameters are "
                    f"{listed(members)}."
                )
        axes = dict(given)

        def of_names(member: Member) -> int:
            fitting = [axis for pattern, axis in axes.items() if name_fits(str(pattern), member.name)]
            return fitting[0] if fitting else usual_channel_dim(member)

        return of_names
    if callable(given):
        return lambda member: given(member.name, member.path[-1])
    axis = _checks.integer("channel_dim", given, "an int, a mapping, a function or None")
    return lambda member: axis


# -- rows ----------------------------------------------------------------------------------------------------


def check_per(per: Any) -> str | int:
    """ "filter", "tensor" or a group size."""
    if isinstance(per, str):
        if per not in ("filter", "tensor"):
            raise ValueError(f"per is {per!r}; expected 'filter', 'tensor' or a group size such as 32.")
        return per
    return _checks.count("per", per)


def rows_of(weights: Tensor, channel_dim: int, per: str | int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """(rows, columns) that share a step each, and the function that makes the tensor of rows again.

    Groups are consecutive weights of a filter; its last group is filled up with zeros, which change no step.

    >>> import torch
    >>> rows, undo = rows_of(torch.arange(6.0).view(2, 3), 1, "filter")
    >>> rows
    tensor([[0., 3.],
            [1., 4.],
            [2., 5.]])
    >>> bool((undo(rows) == torch.arange(6.0).view(2, 3)).all())
    True
    """
    shape = weights.shape
    if per == "tensor":
        return weights.reshape(1, -1), lambda rows: rows.reshape(shape)
    first = weights.movedim(channel_dim, 0)
    filters = first.flatten(1)

    def back(filters: Tensor) -> Tensor:
        return filters.reshape(first.shape).movedim(0, channel_dim)

    if per == "filter":
        return filters, back
    size, length = int(per), filters.size(1)
    missing = -length % size
    padded = nn.functional.pad(filters, (0, missing))
    return padded.reshape(-1, size), lambda rows: back(rows.reshape(padded.shape)[:, :length])
