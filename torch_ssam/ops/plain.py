"""Every operator in plain PyTorch, for devices that have no kernels of ours: MPS, XPU, HPU, ROCm, PrivateUse1.

The schemas are those of csrc/ops; so are results, but for what float32 without fused multiply-adds rounds otherwise. Slow
(docs/devices.md has figures). Tensors are whole: shards are refused. Sums are in float64, where the device has it, else in
float32 (MPS). `run` is what library.py registers. Tests: tests/python/test_plain_operators.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ssam.ops import plain_checks as checks
from torch_ssam.ops.plain_checks import Noise, Tensors
from torch_ssam.ops.plain_diagonal import diagonal, diagonal_backward
from torch_ssam.ops.plain_noise import CHUNK, standard_noise
from torch_ssam.ops.plain_numbers import add_noise, opmath, wide
from torch_ssam.ops.plain_rows import KINDS, clip_rows_, row_fisher_, row_scales_
from torch_ssam.ops.plain_rules import Rule, check_rule
from torch_ssam.ops.uninterrupted import Uninterrupted

# -- tensors a chunk of elements at a time ------------------------------------------------------------------


def _flat(tensor: Tensor) -> Tensor:
    """The elements in order: a view of contiguous tensors, else a copy that `_put_back` writes back."""
    return tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1)


def _put_back(tensor: Tensor, flat: Tensor) -> None:
    if not tensor.is_contiguous():
        tensor.copy_(flat.view(tensor.shape))


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, count, CHUNK):
        yield begin, min(begin + CHUNK, count)


def _per_element(row_scales: Tensor, like: Tensor, channel_dim: int, begin: int, end: int) -> Tensor:
    if row_scales.numel() == 1:
        return row_scales.view(-1)
    length = math.prod(like.shape[channel_dim + 1 :])
    rows = torch.arange(begin, end, device=row_scales.device) // length % row_scales.numel()
    return row_scales.view(-1)[rows]


def _write_noisy(param: Tensor, clean: Tensor, noise: Noise, index: int, alone: bool = False) -> None:
    """param <- clean + noise; with `alone` the noise by element without the weights."""
    target, source = _flat(param), _flat(clean)
    for begin, end in _chunks(param.numel()):
        z = standard_noise(noise.streams[index], noise.distribution, begin, end, param.device)
        weights = source[begin:end].to(opmath(clean.dtype))
        if noise.scale == "rows":
            z = z * _per_element(noise.row_scales[index], param, noise.channel_dim, begin, end)
        elif noise.scale == "element":
            z = z.to(weights.dtype) * (weights.abs() + 0.01)
        target[begin:end].copy_(add_noise(torch.zeros_like(weights) if alone else weights, noise.std, z))
    _put_back(param, target)


# -- noise --------------------------------------------------------------------------------------------------


def _check_perturb(params: Tensors, clean: Tensors, save: bool, noise: dict[str, Any]) -> Noise:
    checks.check_parameters(params, "params", written=True)
    checks.check_parameters(clean, "clean", written=save)
    checks.check_matches(clean, "clean", params, "params", any_dtype=not save)
    checked = checks.check_noise(params, **noise)
    checks.check_one_device(clean, "clean", noise["generator"], "generator")
    checks.check_pairs(clean, params, "parameters")
    return checked


def perturb_(params: Tensors, clean: Tensors, **noise: Any) -> None:
    """clean <- params; params <- clean + noise. All are saved first; where a later one fails, all are as they were."""
    checked = _check_perturb(params, clean, True, noise)
    for saved, param in zip(clean, params, strict=True):
        saved.copy_(param)
    try:
        for i, (param, saved) in enumerate(zip(params, clean, strict=True)):
            _write_noisy(param, saved, checked, i)
    except BaseException:
        for param, saved in zip(params, clean, strict=True):
            param.copy_(saved)
        raise


def perturb_from_clean_(params: Tensors, clean: Tensors, **noise: Any) -> None:
    """params <- clean + noise."""
    checked = _check_perturb(params, clean, False, noise)
    for i, (param, saved) in enumerate(zip(params, clean, strict=True)):
        _write_noisy(param, saved, checked, i)


def perturbed(weights: Tensor, place: int, noise_only: bool = False, **noise: Any) -> Tensor:
    """clean + noise, or the noise alone, as a new tensor."""
    checks.check_strided(weights, "weights")
    output = torch.empty_like(weights)
    checked = _check_perturb([output], [weights], False, {"places": [place], **noise})
    alone = noise_only and checked.scale == "element"
    _write_noisy(
        output, torch.zeros_like(weights) if noise_only and not alone else weights, checked, 0, alone
    )
    return output


def restore_(params: Tensors, clean: Tensors) -> None:
    """params <- clean, rounded where the parameters have 16 bits."""
    checks.check_parameters(params, "params", written=True)
    checks.check_parameters(clean, "clean")
    checks.check_matches(clean, "clean", params, "params", any_dtype=True)
    for tensors, name in ((params, "params"), (clean, "clean")):
        checks.check_one_device(tensors, name, params[0] if params else None, "params[0]")
    checks.check_pairs(clean, params, "parameters")
    for param, saved in zip(params, clean, strict=True):
        param.copy_(saved)


def follow_(clean: Tensors, params: Tensors) -> None:
    """clean <- params, where a parameter is no longer the rounding of its clean weight."""
    checks.check_parameters(clean, "clean", written=True)
    checks.check_parameters(params, "params")
    checks.check_matches(params, "params", clean, "clean", any_dtype=True)
    for tensors, name in ((clean, "clean"), (params, "params")):
        checks.check_one_device(tensors, name, clean[0] if clean else None, "clean[0]")
    checks.check_pairs(clean, params, "parameters")
    for saved, param in zip(clean, params, strict=True):
        saved.copy_(torch.where(param == saved.to(param.dtype), saved, param.to(saved.dtype)))


def advance_(generator: Tensor, draws: int) -> None:
    """The draw moves on, and wraps at 2^64."""
    checks.check_generator(generator)
    generator.view(-1)[1:].add_(draws)


# -- updates ------------------------------------------------------------------------------------------------


def _check_update(
    weights: Tensors,
    grads: Tensors,
    buffers: Tensors,
    params: Tensors | None,
    rule: Rule,
    lr: Tensor | None,
    steps: Sequence[int] | None,
) -> None:
    checks.check_parameters(weights, "weights", written=True)
    checks.check_parameters(grads, "grads")
    checks.check_matches(grads, "grads", weights, "weights", any_dtype=True)
    if params is not None:
        checks.check_parameters(params, "params", written=True)
        checks.check_matches(params, "params", weights, "weights", any_dtype=True)
        checks.check_matches(grads, "grads", params, "params")
    count, names = len(weights), rule.buffers()
    checks.require(
        len(buffers) == len(names) * count,
        f"buffers has {len(buffers)} tensors for {count} weights; the rule '{rule.name}' with these numbers keeps "
        f"{len(names)} for each.",
    )
    for b, name in enumerate(names):
        some = buffers[b * count : (b + 1) * count]
        checks.check_parameters(some, name, written=True)
        checks.check_matches(some, name, weights, "weights")
    checks.require(
        steps is None or len(steps) == count,
        f"steps has {len(steps or ())} entries for {count} tensors; expected one each.",
    )
    checks.require(
        not rule.counts_steps or steps is not None or not weights,
        "steps is None; the rule expects which update each tensor is at, from 1.",
    )
    for step in steps or ():
        checks.require(step >= 1, f"a tensor's step is {step}; expected 1 at its first update, and so on.")
    for tensors, name in (
        (weights, "weights"),
        (grads, "grads"),
        (buffers, "buffers"),
        (params or (), "params"),
    ):
        checks.check_one_device(tensors, name, weights[0] if weights else None, "weights[0]")
    checks.check_lr(lr, weights)
    checks.check_pairs(
        weights, grads if params is None else params, "gradients" if params is None else "parameters"
    )


def _update(
    weights: Tensors,
    grads: Tensors,
    buffers: Tensors,
    rule: Rule,
    lr: Tensor | None,
    steps: Sequence[int] | None,
) -> None:
    count = len(weights)
    for i, weight in enumerate(weights):
        math_dtype = opmath(weight.dtype)
        rate = rule.of["lr"] if lr is None else lr.reshape(()).to(wide(weight.device))
        kept = [buffers[b] for b in range(i, len(buffers), count)]
        targets, grad = [_flat(t) for t in (weight, *kept)], _flat(grads[i])
        for begin, end in _chunks(weight.numel()):
            clean, *state = (t[begin:end].to(math_dtype, copy=True) for t in targets)
            g = grad[begin:end].to(math_dtype)
            updated = rule.update(clean, g, state, rate, steps[i] if steps else 0)
            for target, value in zip(targets, (updated, *state), strict=True):
                target[begin:end].copy_(value)
        for tensor, flat in zip((weight, *kept), targets, strict=True):
            _put_back(tensor, flat)


def update_(
    weights: Tensors,
    grads: Tensors,
    buffers: Tensors,
    rule: str,
    numbers: Sequence[float],
    lr_tensor: Tensor | None = None,
    steps: Sequence[int] | None = None,
) -> None:
    """weights <- update(weights, grads, buffers)."""
    checked = check_rule(rule, numbers)
    _check_update(weights, grads, buffers, None, checked, lr_tensor, steps)
    _update(weights, grads, buffers, checked, lr_tensor, steps)


def _write_updated(params: Tensors, clean: Tensors, noise: Noise) -> None:
    for i, (param, saved) in enumerate(zip(params, clean, strict=True)):
        if noise.std == 0.0:
            param.copy_(saved)
        else:
            _write_noisy(param, saved, noise, i)


def update_and_perturb_(
    params: Tensors,
    clean: Tensors,
    grads: Tensors,
    buffers: Tensors,
    rule: str,
    numbers: Sequence[float],
    lr_tensor: Tensor | None = None,
    steps: Sequence[int] | None = None,
    **noise: Any,
) -> None:
    """clean <- update(clean, grads, buffers); params <- clean + noise."""
    checks.require(
        noise.get("scale") != "rows",
        "scale is 'rows'; update_and_perturb_ takes 'isotropic' or 'element'. Call update_, row_scales_ and "
        "perturb_from_clean_: the norms are those of the updated weights.",
    )
    checked = check_rule(rule, numbers)
    _check_update(clean, grads, buffers, params, checked, lr_tensor, steps)
    checked_noise = checks.check_noise(params, **noise)
    _update(clean, grads, buffers, checked, lr_tensor, steps)
    _write_updated(params, clean, checked_noise)


def update_rows_and_perturb_(
    params: Tensors,
    clean: Tensors,
    grads: Tensors,
    buffers: Tensors,
    rule: str,
    numbers: Sequence[float],
    weight_clip: float,
    row_scales: Tensors,
    kind: str = "norm",
    lr_tensor: Tensor | None = None,
    steps: Sequence[int] | None = None,
    **noise: Any,
) -> None:
    """The update, clip_rows_ (not with weight_clip 0), row_scales_ and the noise, one after the other."""
    if weight_clip != 0.0:
        checks.check_weight_clip(weight_clip)
    checks.check_named(kind, "kind", KINDS)
    checked = check_rule(rule, numbers)
    _check_update(clean, grads, buffers, params, checked, lr_tensor, steps)
    rows = row_scales if noise.get("scale") == "rows" or row_scales else None
    checked_noise = checks.check_noise(params, row_scales=rows, **noise)
    _update(clean, grads, buffers, checked, lr_tensor, steps)
    if weight_clip != 0.0:
        clip_rows_([c for c in clean if c.dim() >= 2], weight_clip)
    if rows is not None:
        row_scales_(rows, clean, (), 0.0, kind)
    _write_updated(params, clean, checked_noise)


def _squares(weights: Tensors) -> Tensor:
    norms = [torch.linalg.vector_norm(w, dtype=wide(w.device)) for w in weights]
    return torch.stack(norms).square().sum()


def add_squares_(total: Tensor, weights: Tensors) -> None:
    """total <- total + the squares of the weights; in the widest dtype of the device."""
    checks.check_parameters(weights, "weights")
    checks.check_total(total, "total", weights)
    if not weights:
        return
    checks.check_one_device(weights, "weights", weights[0], "weights[0]")
    total.add_(_squares(weights).view_as(total))


def project_(weights: Tensors, radius: float, squared_norm: Tensor | None = None) -> None:
    """Scales the stacked weights onto the ball, where they, or all that `squared_norm` counts, are outside of it and finite."""
    checks.check_radius(radius)
    checks.check_parameters(weights, "weights", written=True)
    if squared_norm is not None:
        checks.check_total(squared_norm, "squared_norm", weights)
    if not weights:
        return
    checks.check_one_device(weights, "weights", weights[0], "weights[0]")
    norm = (_squares(weights) if squared_norm is None else squared_norm.view(())).sqrt()
    outside = (norm > radius) & norm.isfinite()
    factor = torch.where(outside, radius / norm, torch.ones_like(norm))
    for w in weights:
        w.copy_(w.to(opmath(w.dtype)) * factor.to(opmath(w.dtype)))


#: By name; as many as csrc/ops/operators.h lists.
OPERATORS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        perturb_,
        perturb_from_clean_,
        perturbed,
        restore_,
        follow_,
        advance_,
        update_,
        update_and_perturb_,
        update_rows_and_perturb_,
        add_squares_,
        project_,
        row_scales_,
        row_fisher_,
        clip_rows_,
        diagonal,
        diagonal_backward,
    )
}


@functools.cache
def _names(operator: str) -> tuple[str, ...]:
    """Of its arguments, in the order of its schema."""
    schema = getattr(torch.ops.torch_ssam, operator).default._schema
    return tuple(argument.name for argument in schema.arguments)


def run(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operator as a kernel is run: no signal ends it midway, autograd and version counters do not see it.

    Arguments go by name, so that those of the noise (csrc/ops/arguments.h) are listed once, in plain_checks.py.
    """
    with Uninterrupted(), torch._C._AutoDispatchBelowADInplaceOrView():
        return OPERATORS[name](**dict(zip(_names(name), args, strict=False)), **kwargs)
