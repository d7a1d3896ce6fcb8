"""DTensors (FSDP2, tensor parallelism): operators on local tensors, with the noise of the whole tensor's elements.

Each operator gets a rule for DTensor (`torch.library.register_torch_dispatch`), so that fronts treat all parameters
alike and plain ones pay nothing. A rule takes the local tensors, says where each lies in its whole tensor (the
operators' `shards`, csrc/ops/shards.h) and calls the operator on them. A rank makes the noise of its own elements
only, and nothing is communicated; but norms of rows that several ranks hold parts of, the clipping by them, and the norm
of a projection are those of the gathered tensors, one tensor at a time, so that they have the bits of one process. Tests:
test_sharded.py.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_ssam.ops import library as library
from torch_ssam.ops.plain_numbers import wide

NOISY = ("perturb_", "perturb_from_clean_", "perturbed", "update_and_perturb_")
ELEMENTWISE = ("restore_", "follow_", "update_")
ROW_SUMS = ("row_scales_", "row_fisher_")  # sums over rows, which may lie on several ranks
ROW_CLIPS = ("clip_rows_",)  # rows changed by such a sum
PROJECTIONS = ("project_",)  # by a sum over all tensors


def _dtensor() -> Any:
    """The class DTensor, or None where nobody has imported it."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor; if so, the operators take it from now on."""
    kind = _dtensor()
    if kind is None or not isinstance(tensor, kind):
        return False
    _register(kind)
    return True


def any_sharded(tensors: list[Tensor]) -> bool:
    """Whether there is a DTensor among them; nearly always nobody has imported it."""
    return _dtensor() is not None and any([is_sharded(tensor) for tensor in tensors])


def local_of(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor; any other tensor itself."""
    local: Tensor = getattr(tensor, "_local_tensor", tensor)
    return local


def check_options(params: list[Any], group: dict[str, Any], noise_per_rank: bool) -> None:
    """What parameters that are spread over ranks cannot have yet; said before the first step.

    Raises:
        ValueError: placements or options that the operators would refuse.
    """
    for i, p in enumerate(params):
        if not is_sharded(p):
            continue
        if group.get("radius") is not None:
            _check_in_mesh(i, p)
        shard_of(p)
        if noise_per_rank:
            raise ValueError(
                f"noise_per_rank=True and parameter {i} of the group is a DTensor: its parts would get parts of "
                "different noise. It is for DistributedDataParallel, where each rank holds whole weights; expected "
                "noise_per_rank=False."
            )


def _check_in_mesh(place: int, tensor: Any) -> None:
    """For a norm over all tensors: a rank that has no part in one of them is not told of it."""
    if tensor.device_mesh.get_coordinate() is None:
        raise ValueError(
            f"radius with a DTensor (number {place}) whose mesh {tensor.device_mesh} does not have this rank, "
            f"{torch.distributed.get_rank()}: the norm goes over all parameters of the group; expected radius=None, or a "
            "group whose parameters every one of its ranks has a part of."
        )


def is_split(tensor: Tensor) -> bool:
    """Whether ranks hold different parts of the tensor. All ranks agree on it."""
    return is_sharded(tensor) and any(
        not placement.is_replicate() and size > 1
        for placement, size in zip(tensor.placements, tensor.device_mesh.shape, strict=True)  # type: ignore[attr-defined]
    )


def shard_of(tensor: Tensor) -> list[int]:
    """The sizes of the whole tensor, and where this rank's part starts in each dimension.

    Raises:
        ValueError: the placements leave this rank no range of each dimension, or a partial sum.
    """
    shape = tuple(tensor.shape)
    if not is_sharded(tensor):
        return [*shape, *(0 for _ in shape)]
    mesh, placements = tensor.device_mesh, tuple(tensor.placements)  # type: ignore[attr-defined]
    local = tuple(local_of(tensor).shape)
    here = mesh.get_coordinate()
    here = None if here is None else tuple(here)
    starts, sizes = [], []
    if any(placement.is_partial() for placement in placements):
        raise ValueError(
            f"a tensor of shape {shape} has placements {placements}; expected Shard or Replicate: the weights are "
            "a sum over ranks that no rank holds. Redistribute it first."
        )
    for d, n in enumerate(shape):
        start, size = _range_of(n, d, mesh, placements, here)
        if start < 0:
            raise ValueError(
                f"a tensor of shape {shape} has placements {placements} on a mesh of shape {tuple(mesh.shape)}, "
                f"which leave this rank scattered indices of dimension {d}; expected one range of each dimension."
            )
        starts.append(start)
        sizes.append(size)
    if local != tuple(sizes):
        raise ValueError(
            f"a tensor of shape {shape} with placements {placements} has a local tensor of shape {local}; expected "
            f"{tuple(sizes)}. Make it by distribute_tensor(), fully_shard() or parallelize_module()."
        )
    return [*shape, *starts]


@functools.lru_cache(maxsize=1024)
def _range_of(
    n: int, dim: int, mesh: Any, placements: tuple[Any, ...], here: tuple[int, ...] | None
) -> tuple[int, int]:
    """First index and number of indices of a dimension that the rank at `here` in the mesh holds.

    The first index is -1 where they are no range.
    """
    if here is None:  # not in the mesh
        return 0, 0
    mine: Tensor | None = None
    for along, placement in enumerate(placements):
        if getattr(placement, "dim", None) == dim:
            mine = torch.arange(n, device="cpu") if mine is None else mine
            factor = getattr(placement, "split_factor", None)  # of a _StridedShard
            cut = type(placement)(0, **({} if factor is None else {"split_factor": factor}))
            parts, _ = cut._split_tensor(mine, mesh.size(along), with_padding=False, contiguous=False)
            mine = parts[here[along]]
    if mine is None:
        return 0, n
    if mine.numel() == 0:
        return n, 0
    first, last = int(mine[0]), int(mine[-1])
    return (first if last - first + 1 == mine.numel() else -1), mine.numel()


def _local_list(name: str, tensors: list[Any], like: list[Any], written: bool) -> list[Tensor]:
    """The local tensors of a list, placed as the parameters are."""
    result = []
    for i, (tensor, param) in enumerate(zip(tensors, like, strict=True)):
        if is_sharded(tensor) != is_sharded(param):
            kinds = ["a plain tensor" if not is_sharded(t) else "a DTensor" for t in (tensor, param)]
            raise ValueError(
                f"{name}[{i}] is {kinds[0]} and its parameter {kinds[1]}; expected the same kind. Load state by "
                "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict(), which reshards it."
            )
        if is_sharded(tensor):
            mesh, placements = param.device_mesh, param.placements
            if tensor.device_mesh != mesh or tensor.placements != placements:
                if written:
                    raise ValueError(
                        f"{name}[{i}] has placements {tensor.placements} and its parameter {placements}; expected the "
                        "same. Shard the model before the optimizer is constructed."
                    )
                # As torch.optim does: a gradient that is still to be added up over ranks, for one.
                tensor = tensor.redistribute(mesh, placements)
        result.append(local_of(tensor))
    return result


def _on_locals(cls: Any, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    """The rule of operators that act element by element."""
    arguments, name = func._schema.arguments, func._schema.name.removeprefix("torch_ssam::")
    first = [args[0]] if name == "perturbed" else args[0]
    named = dict(kwargs or {})
    if name in NOISY and any(is_split(tensor) for tensor in first):
        # It may have come as None, with arguments after it.
        names = [argument.name for argument in arguments]
        place = names.index("shards")
        named |= dict(zip(names[place:], args[place:], strict=False))
        args = args[:place]
        named["shards"] = [number for tensor in first for number in shard_of(tensor)]
        if "row_scales" in names:
            scales = names.index("row_scales")
            rows = args[scales] if len(args) > scales else named.pop("row_scales", None)
            dim = named.get("channel_dim", 0)
            parts = rows and [
                _rows_here(values, tensor, dim) for values, tensor in zip(rows, first, strict=True)
            ]
            args, named["row_scales"] = args[:scales], parts
    written: list[Tensor] = []
    locals_: list[Any] = []
    for argument, value in zip(arguments, args, strict=False):
        if (
            isinstance(value, list | tuple)
            and value
            and isinstance(value[0], Tensor)
            and argument.name != "row_scales"
        ):
            writes = argument.alias_info is not None and argument.alias_info.is_write
            each = max(
                1, len(value) // max(1, len(first))
            )  # buffers: the first of every tensor, the second of every, ...
            value = _local_list(argument.name, list(value), list(first) * each, writes)
            written += value if writes else []
        locals_.append(value)
    if name == "perturbed":
        weights = args[0]
        local = func(local_of(weights), *locals_[1:], **named)
        return cls.from_local(
            local, weights.device_mesh, weights.placements, shape=weights.shape, stride=weights.stride()
        )
    func(*locals_, **named)
    # Fronts do so for the DTensor that they see; autograd may have saved its local tensor.
    torch.autograd.graph.increment_version(written)
    _drop_gathered()
    return None


def _drop_gathered() -> None:
    """FSDP2 keeps gathered weights (the root's after a forward without backward), which are old now."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    from torch.distributed._composable_state import _module_state_mapping

    for module in list(_module_state_mapping):
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def _rows_here(rows: Tensor, tensor: Tensor, channel_dim: int = 0) -> Tensor:
    """Of numbers for the rows of a whole tensor, along a dimension, those of the rows that this rank's part is in."""
    if rows.numel() == 1 or not is_split(tensor):
        return rows
    start = shard_of(tensor)[tensor.dim() + channel_dim]
    return rows.narrow(0, start, local_of(tensor).size(channel_dim))


def _on_rows(cls: Any, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    """The rule of sums over rows.

    Fisher sums are whole on every rank. Row scales are of use for this rank's rows only, so where it holds them whole
    (FSDP2 splits dimension 0) nothing is communicated.
    """
    rows, tensors, *rest = args
    fisher = list(rest.pop(0)) if func._schema.name == "torch_ssam::row_scales_" else None

    def call(places: list[int], out: list[Tensor], whole: list[Tensor], here: Callable[..., Tensor]) -> None:
        middle = [] if fisher is None else [[here(fisher[i], tensors[i]) for i in places] if fisher else []]
        func(out, whole, *middle, *rest, **(kwargs or {}))

    def unchanged(values: Tensor, tensor: Tensor) -> Tensor:
        return values

    plain = [i for i, tensor in enumerate(tensors) if not is_split(tensor)]
    if plain:
        call(plain, [rows[i] for i in plain], [local_of(tensors[i]) for i in plain], unchanged)
    for i, tensor in enumerate(tensors):
        if not is_split(tensor) or tensor.device_mesh.get_coordinate() is None:
            continue
        if fisher is not None and rows[i].numel() > 1 and _holds_whole_rows(tensor):
            call([i], [_rows_here(rows[i], tensor)], [local_of(tensor)], _rows_here)
        else:
            call([i], [rows[i]], [tensor.detach().full_tensor()], unchanged)


def _on_clipped_rows(
    cls: Any, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> Any:
    """The rule of rows that are clipped: where ranks hold parts of them, in the gathered tensor, of which each takes its part."""
    tensors, *rest = args
    gathered = [t for t in tensors if is_split(t) and not _holds_whole_rows(t)]
    here = [local_of(t) for t in tensors if not is_split(t) or _holds_whole_rows(t)]
    if here:
        func(here, *rest, **(kwargs or {}))
    for tensor in gathered:
        if tensor.device_mesh.get_coordinate() is None:
            continue
        whole, local, start = (
            tensor.detach().full_tensor(),
            local_of(tensor),
            shard_of(tensor)[tensor.dim() :],
        )
        func([whole], *rest, **(kwargs or {}))
        for d, first in enumerate(start):
            whole = whole.narrow(d, first, local.size(d))
        local.copy_(whole)
    torch.autograd.graph.increment_version([local_of(t) for t in tensors])
    _drop_gathered()


def _holds_whole_rows(tensor: Any) -> bool:
    return all(
        placement.is_replicate() or getattr(placement, "dim", None) == 0 for placement in tensor.placements
    )


def _on_projected(
    cls: Any, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> Any:
    """The rule of the projection: each rank scales its part, by the norm of all tensors, each gathered in its turn.

    A replicated tensor counts once, as each rank has it. All ranks gather the same tensors in the same order.
    """
    tensors, *rest = args
    here = [local_of(tensor) for tensor in tensors]
    for i, tensor in enumerate(tensors):
        if is_sharded(tensor):
            _check_in_mesh(i, tensor)
    if any(is_split(tensor) for tensor in tensors):
        add_squares = torch.ops.torch_ssam.add_squares_.default
        total = torch.zeros((), dtype=wide(here[0].device), device=here[0].device)
        for tensor in tensors:
            add_squares(total, [tensor.detach().full_tensor() if is_split(tensor) else local_of(tensor)])
        func(here, *rest, total, **(kwargs or {}))
    else:
        func(here, *rest, **(kwargs or {}))
    torch.autograd.graph.increment_version(here)
    _drop_gathered()


@functools.cache
def _register(kind: type) -> None:
    rules: dict[Callable[..., Any], tuple[str, ...]] = {
        _on_locals: (*NOISY, *ELEMENTWISE),
        _on_rows: ROW_SUMS,
        _on_clipped_rows: ROW_CLIPS,
        _on_projected: PROJECTIONS,
    }
    for rule, names in rules.items():
        for name in names:
            torch.library.register_torch_dispatch(f"torch_ssam::{name}", kind, rule)
