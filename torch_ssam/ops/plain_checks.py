"""What the plain operators ask of their arguments: the checks of csrc/ops/tensors.cpp, noise.cpp and rows.cpp, in their words.

The compiled checks look at the memory of CPU and CUDA tensors only, so that those of another device are checked here.
Tests: tests/python/test_plain_operators.py, which has both refuse the same calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torch_ssam.ops.plain_noise import DISTRIBUTIONS, Stream, stream_of
from torch_ssam.ops.plain_numbers import wide
from torch_ssam.ops.plain_rules import LARGEST

Tensors = Sequence[Tensor]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def require(holds: bool, message: str) -> None:
    """The messages are made in any case: plain operators are slow by other things."""
    if not holds:
        raise ValueError(f"torch_ssam: {message}")


def name_of(dtype: torch.dtype) -> str:
    """As messages have it."""
    return str(dtype).removeprefix("torch.")


def check_strided(tensor: Tensor | None, name: str) -> None:
    """Given, and dense."""
    if tensor is None:
        raise ValueError(f"torch_ssam: {name} is None; expected a tensor.")
    require(
        tensor.layout == torch.strided,
        f"{name} is sparse; expected a dense (strided) tensor. Use tensor.to_dense(), or sparse=False in the embedding.",
    )


def _overlaps(tensor: Tensor) -> bool:
    if tensor.is_contiguous() or tensor.numel() < 2:
        return False
    reach = 0
    for stride, size in sorted(
        pair for pair in zip(tensor.stride(), tensor.shape, strict=True) if pair[1] > 1
    ):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def check_parameter(tensor: Tensor, name: str, written: bool = False) -> None:
    """Dense, real floating point, and without overlapping elements if it is written."""
    check_strided(tensor, name)
    require(
        tensor.dtype in DTYPES,
        f"{name} has dtype {name_of(tensor.dtype)}; expected float64, float32, bfloat16 or float16.",
    )
    require(
        not written or not _overlaps(tensor),
        f"{name} has overlapping elements: shape {tuple(tensor.shape)} strides {tensor.stride()}. Writing to it is not "
        "defined; use tensor.clone() or .contiguous().",
    )


def check_parameters(tensors: Tensors, name: str, written: bool = False) -> None:
    """Of a list."""
    for i, tensor in enumerate(tensors):
        check_parameter(tensor, f"{name}[{i}]", written)


def check_matches(
    tensors: Tensors, name: str, like: Tensors, like_name: str, any_dtype: bool = False
) -> None:
    """One tensor for each of `like`, of the same shape and, unless `any_dtype`, of the same dtype."""
    require(
        len(tensors) == len(like),
        f"{name} has {len(tensors)} tensors and {like_name} has {len(like)}; expected one for each.",
    )
    for i, (one, other) in enumerate(zip(tensors, like, strict=True)):
        require(
            one.shape == other.shape,
            f"{name}[{i}] has shape {tuple(one.shape)} and {like_name}[{i}] has {tuple(other.shape)}; expected the same.",
        )
        require(
            any_dtype or one.dtype == other.dtype,
            f"{name}[{i}] has dtype {name_of(one.dtype)} and {like_name}[{i}] has {name_of(other.dtype)}; expected the "
            "same.",
        )


def check_pairs(masters: Tensors, others: Tensors, models: str) -> None:
    """float32 clean weights go with 16-bit parameters; else the dtypes are the same."""
    for master, other in zip(masters, others, strict=True):
        mixed = master.dtype == torch.float32 and other.dtype in (torch.bfloat16, torch.float16)
        require(
            master.dtype == other.dtype or mixed,
            f"no kernel for clean weights of dtype {name_of(master.dtype)} with {models} of dtype {name_of(other.dtype)}; "
            "expected the same dtype, or float32 with bfloat16 or float16.",
        )


def check_one_device(tensors: Tensors, name: str, other: Tensor | None, other_name: str) -> None:
    """All on the device of `other`, which is there where there are any."""
    if other is None:
        return
    for i, tensor in enumerate(tensors):
        item = (
            name
            if len(tensors) == 1 and name in ("lr", "input", "generator", "grad_output")
            else f"{name}[{i}]"
        )
        require(
            tensor.device == other.device,
            f"{item} and {other_name} are on different devices; expected one device a call. Move them to one, or call once "
            "for each device.",
        )


def check_generator(generator: Tensor) -> None:
    """(seed, draw)."""
    check_strided(generator, "generator")
    require(
        generator.dtype == torch.int64 and generator.numel() == 2 and generator.is_contiguous(),
        f"generator has dtype {name_of(generator.dtype)} and {generator.numel()} elements; expected a contiguous int64 "
        "tensor of two, (seed, draw).",
    )


def check_finite_nonnegative(value: float, name: str) -> None:
    """Kernels compute in float32 for every dtype but float64."""
    require(
        0.0 <= value <= LARGEST,
        f"{name} is {value:g}; expected a finite number >= 0 (and within float32's range).",
    )


def check_named(value: str, name: str, known: Sequence[str]) -> None:
    """One of a few names."""
    names = [f"'{one}'" for one in known]
    require(value in known, f"{name} is '{value}'; expected {', '.join(names[:-1])} or {names[-1]}.")


def check_lr(lr: Tensor | None, weights: Tensors) -> None:
    """A learning rate in the memory of the device, if it is given."""
    if lr is None:
        return
    check_strided(lr, "lr")
    require(
        lr.numel() == 1 and lr.dtype in (torch.float32, torch.float64),
        f"lr has {lr.numel()} elements and dtype {name_of(lr.dtype)}; expected one float32 or float64 number.",
    )
    if weights:
        check_one_device([lr], "lr", weights[0], "weights[0]")


def check_rows(rows: Tensors, name: str, like: Tensors, like_name: str, channel_dim: int = 0) -> None:
    """A number for each index of a dimension of each tensor, or one for the whole tensor."""
    require(
        len(rows) == len(like),
        f"{name} has {len(rows)} tensors and {like_name} has {len(like)}; expected one for each.",
    )
    require(channel_dim >= 0, f"channel_dim is {channel_dim}; expected 0 or more.")
    for i, (one, other) in enumerate(zip(rows, like, strict=True)):
        check_parameter(one, f"{name}[{i}]")
        loose = "" if one.is_contiguous() else " and is not contiguous"
        require(
            one.dtype == torch.float32 and not loose,
            f"{name}[{i}] has dtype {name_of(one.dtype)}{loose}; expected a contiguous float32 tensor.",
        )
        filters = other.shape[channel_dim] if channel_dim < other.dim() else 1
        require(
            one.numel() in (1, filters),
            f"{name}[{i}] has {one.numel()} elements and {like_name}[{i}] has shape {tuple(other.shape)}; expected 1 or "
            f"{filters}, one for each row.",
        )


class Noise(NamedTuple):
    """The checked noise of a list of tensors."""

    std: float
    distribution: str
    scale: str
    streams: list[Stream]
    row_scales: Tensors
    channel_dim: int


def check_noise(
    params: Tensors,
    generator: Tensor,
    places: Sequence[int],
    noise_std: float,
    distribution: str = "gaussian",
    sample: int = 0,
    negate: bool = False,
    draw_offset: int = 0,
    scale: str = "isotropic",
    row_scales: Tensors | None = None,
    shards: Sequence[int] | None = None,
    channel_dim: int = 0,
) -> Noise:
    """Reads the generator, which waits for the device."""
    check_finite_nonnegative(noise_std, "noise_std")
    require(0 <= sample < 2**32, f"sample is {sample}; expected 0 to 2^32 - 1.")
    check_named(distribution, "distribution", DISTRIBUTIONS)
    check_named(scale, "scale", ("isotropic", "rows", "element"))
    require(
        len(places) == len(params),
        f"places has {len(places)} entries for {len(params)} tensors; expected one each.",
    )
    for place in places:
        require(0 <= place < 2**32, f"place {place} is out of range; expected 0 to 2^32 - 1.")
    check_generator(generator)
    require(
        shards is None,
        f"noise of a shard of a tensor has no form for device type '{generator.device.type}'; expected whole tensors there "
        "(DistributedDataParallel), or shards on the CPU.",
    )
    by_rows = scale == "rows"
    require(
        by_rows == (row_scales is not None),
        f"scale is {'' if by_rows else 'not '}'rows' and row_scales are {'missing' if by_rows else 'given'}; expected them "
        "with 'rows' and with nothing else.",
    )
    if row_scales is not None:
        check_rows(row_scales, "row_scales", params, "params", channel_dim)
        check_one_device(row_scales, "row_scales", generator, "generator")
    check_one_device(params, "params", generator, "generator")
    seed, draw = generator.tolist() if params else (0, 0)
    streams = [stream_of(seed, draw + draw_offset, place, sample) for place in places]
    return Noise(
        -noise_std if negate else noise_std, distribution, scale, streams, row_scales or (), channel_dim
    )


def check_total(total: Tensor | None, name: str, weights: Tensors) -> None:
    """A sum in the memory of the device, in its widest dtype."""
    check_strided(total, name)
    assert total is not None
    require(
        total.numel() == 1 and total.dtype == wide(total.device),
        f"{name} has {total.numel()} elements and dtype {name_of(total.dtype)}; expected one "
        f"{name_of(wide(total.device))} number.",
    )
    check_one_device([total], name, weights[0] if weights else None, "weights[0]")


def check_radius(radius: float) -> None:
    """Of a ball."""
    require(math.isfinite(radius) and radius > 0, f"radius is {radius:g}; expected a finite number > 0.")


def check_weight_clip(weight_clip: float) -> None:
    """In root mean squares of a row."""
    require(
        math.isfinite(weight_clip) and weight_clip > 1.0,
        f"weight_clip is {weight_clip:g}; expected a finite number > 1: clipped to its root mean square or less, a row would "
        "shrink at every step.",
    )
