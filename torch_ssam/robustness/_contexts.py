"""Contexts in which the weights of a model are disturbed, and after which their exact bits are back.

Each is a `Scope`, which ends once whatever interrupts it, over copies of the weights. They nest: one inside another
disturbs what the outer one left. Tests: tests/python/test_robustness_contexts.py.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from torch_ssam import _checks
from torch_ssam.noise import seeds
from torch_ssam.noise.saved import tell_torch
from torch_ssam.noise.saved_model import SavedTensor, in_turn
from torch_ssam.noise.scope import Scope
from torch_ssam.noise.weight_noise import WeightNoise

from ._quantizers import Grid, Quantizer, Step
from ._weights import ChannelDim, Skip, Weight, check_per, chosen_weights, rows_of

Kind = Literal["programming", "read"]
RelativeTo = Literal["filter", "tensor"] | None
KINDS: tuple[str, ...] = get_args(Kind)
RELATIVE_TO = ("filter", "tensor", None)

Change = Callable[[Weight, Tensor], Tensor]  # a weight and its clean values to disturbed ones


class Disturbed(Scope):
    """Context in which weights hold what `change` makes of them. Only weights are put back: gradients taken inside stay."""

    def __init__(self, weights: Sequence[Weight], change: Change) -> None:
        self._weights = weights
        self._change = change
        self._saved: list[SavedTensor] | None = None

    def _check(self) -> None:
        if self._saved is not None:
            raise RuntimeError(
                "this context is entered inside itself: the weights are disturbed already. Leave it first."
            )

    def _begin(self) -> None:
        self._saved = [SavedTensor(weight.param) for weight in self._weights]
        self._write()

    def _write(self) -> None:
        assert self._saved is not None
        for weight, saved in zip(self._weights, self._saved, strict=True):
            saved.moved = True
            value = self._change(weight, weight.computing(saved.bits))
            weight.param.detach().copy_(value)  # in place, so that autograd sees a new version; rounds once
        tell_torch([])  # autocast keeps casts of weights for a whole block

    def _end(self) -> None:
        if self._saved is not None:
            in_turn([saved.put_back for saved in self._saved])
            self._saved = None


class _Before:
    """What runs before a forward pass; the model must not keep the context open where nobody else holds it."""

    def __init__(self, context: _Read, model: nn.Module) -> None:
        self._context = weakref.ref(context)
        self._passes = itertools.count()
        # Held here, which the model holds: a collected handle could no longer find the model.
        self.handle = model.register_forward_pre_hook(self, prepend=True)

    def __call__(self, *_: Any) -> None:
        context = self._context()
        if context is not None and next(self._passes) > 0:  # the first pass finds the first draw there
            context._write()


class _Read(Disturbed):
    """Writes anew before every forward pass of the model."""

    def __init__(self, model: nn.Module, weights: Sequence[Weight], change: Change) -> None:
        super().__init__(weights, change)
        self._model = model
        self._before: _Before | None = None

    def _begin(self) -> None:
        super()._begin()
        self._before = _Before(self, self._model)

    def _end(self) -> None:
        if self._before is not None:
            self._before.handle.remove()
            self._before = None
        super()._end()


def quantized(
    model: nn.Module,
    bits: int,
    *,
    per: str | int = "filter",
    grid: Grid = "narrow",
    step: Step = "absmax",
    skip: Skip = (),
    channel_dim: ChannelDim = None,
) -> Scope:
    """Context in which the weights are rounded to `bits` bits each.

    w <- (clamp(round(w / s) + z, low, high) - z) s, halves to even, with a step s and a zero point z for each filter,
    tensor or group. Computed in float32 (float64 for float64), and rounded once to the weights' dtype. What is
    disturbed: floating-point parameters of two dimensions or more, frozen ones too, tied ones once; biases, norms,
    buffers and integer parameters stay as they are.

    Args:
        model: any module; its weights are written in place and put back.
        bits: 2 to 16.
        per: what shares a step: "filter", "tensor", or a number of consecutive weights of a filter (the last group of a
            filter may be shorter).
        grid: "narrow", 2^bits - 1 levels from -q to q, q = 2^(bits-1) - 1; "full", 2^bits levels from -q - 1 to q, as torchao's
            symmetric; "affine", 2^bits levels from the smallest weight (or 0) to the largest (or 0), with a zero point.
        step: "absmax", the range over the levels: max |w| / q for "narrow", max |w| / (q + 1/2) for "full", (max w - min w) /
            (2^bits - 1) for "affine". "mse": r times that, of the least squared error of each row over 78 values of r in (0, 1]:
            multiples of 1/64, then of 1/512 around the best.
        skip: what stays as it is: patterns of names of parameters or modules (``"head"``, ``"*.downsample.*"``), modules,
            types of modules, parameters; one or a list of them. A tied weight is skipped if one of its names is.
        channel_dim: the axis that counts filters: None for 1 in ConvTranspose layers and transformers' Conv1D, 0 elsewhere;
            an int for all; a mapping from patterns of names; or a function of (name, module that holds the weight).

    Raises: TypeError, ValueError: options out of range, names that fit nothing, a model without weights; on entering,
    weights that are not finite. RuntimeError: entered inside itself. The model is then as it was.

    >>> import torch
    >>> from torch_ssam import robustness
    >>> layer = torch.nn.Linear(3, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0.4, -0.6]]))
    >>> with robustness.quantized(layer, 2):
    ...     layer.weight.tolist()
    [[1.0, 0.0, -1.0]]
    >>> layer.weight.tolist() == torch.tensor([[1.0, 0.4, -0.6]]).tolist()
    True
    """
    change = rounding(bits, per, grid, step)
    return Disturbed(chosen_weights(model, skip, channel_dim), change)


def rounding(bits: Any, per: Any, grid: str, step: str) -> Change:
    """What `quantized` does to a weight."""
    quantizer, sharing = Quantizer(bits, grid, step), check_per(per)

    def change(weight: Weight, clean: Tensor) -> Tensor:
        rows, undo = rows_of(clean, weight.channel_dim, sharing)
        return undo(quantizer.encode(rows).values())

    return change


def noisy(
    model: nn.Module,
    std: float,
    relative_to: RelativeTo = "filter",
    *,
    kind: Kind = "programming",
    seed: int | None = 0,
    draw: int = 0,
    skip: Skip = (),
    channel_dim: ChannelDim = None,
) -> Scope:
    """Context in which the weights hold w + std R xi, xi standard normal: what an analog memory makes of them.

    R is the largest |w| of the weight's filter or tensor, or 1. xi is `WeightNoise`'s: it depends on (seed, draw, place of the
    tensor among all parameters, index of the element) and on nothing else, so every device, dtype and number of threads has the
    same chip. Weights are chosen as in `quantized`.

    Args:
        std: standard deviation, >= 0, in units of R.
        relative_to: "filter", "tensor" or None, for R = 1 and an absolute std.
        kind: "programming", one draw for the whole context: a chip that is written once; "read", a new one before every forward
            pass of `model` (the first pass has number `draw`, the next draw + 1, ...).
        seed: of the noise; None takes one from torch's generator.
        draw: number of the chip, 0 to 2^62.
        skip, channel_dim: as in `quantized`.

    Raises: as `quantized`.

    >>> import torch
    >>> from torch_ssam import robustness
    >>> layer = torch.nn.Linear(2, 2)
    >>> before = layer.weight.clone()
    >>> with robustness.noisy(layer, 0.1, seed=1):
    ...     bool((layer.weight != before).all())
    True
    >>> bool((layer.weight == before).all())
    True
    """
    return noise_on(model, chosen_weights(model, skip, channel_dim), std, relative_to, kind, seed, draw)


def noise_on(
    model: nn.Module,
    weights: Sequence[Weight],
    std: Any,
    relative_to: str | None,
    kind: str,
    seed: int | None,
    draw: Any,
) -> Scope:
    """`noisy` of these weights."""
    std = _checks.number("std", std)
    if relative_to not in RELATIVE_TO:
        raise ValueError(f"relative_to is {relative_to!r}; expected 'filter', 'tensor' or None.")
    kind = _checks.one_of("kind", kind, KINDS)
    if kind == "read" and isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "kind is 'read' and the model is a ScriptModule, which takes no hook before its forward pass; expected 'programming'."
        )
    draw = _checks.count("draw", draw, low=0, high=2**62)
    noise, of = _normal(weights, seed)
    passes = itertools.count(draw)

    def change(weight: Weight, clean: Tensor) -> Tensor:
        if weight is weights[0]:  # the first of a pass over the weights
            noise.load_state_dict(
                {"seed": noise.seed, "draw": draw if kind == "programming" else next(passes)}
            )
        xi = noise.noise(of[weight.place]).to(clean.dtype)
        if relative_to is None:
            return clean.add_(xi, alpha=std)
        rows, undo = rows_of(clean, weight.channel_dim, relative_to)
        span = rows.abs().amax(1, keepdim=True)
        return clean.add_(xi.mul_(undo(span.expand_as(rows))), alpha=std)

    return Disturbed(weights, change) if kind == "programming" else _Read(model, weights, change)


def _normal(weights: Sequence[Weight], seed: int | None) -> tuple[WeightNoise, dict[int, Tensor]]:
    """Noise of standard deviation 1, and by a weight's place the float32 tensor whose noise is the weight's."""
    last = max(weight.place for weight in weights)
    of: list[Tensor] = [torch.empty(0)] * (last + 1)
    for weight in weights:
        p = weight.param.detach()
        of[weight.place] = p if p.dtype == torch.float32 else torch.empty_like(p, dtype=torch.float32)
    for place, tensor in enumerate(of):
        if tensor.numel() == 0:
            of[place] = torch.empty(0)  # each its own: a tensor named twice counts once
    return WeightNoise(of, 1.0, seed=seed), dict(enumerate(of))


def bit_flips(
    model: nn.Module,
    rate: float,
    bits: int = 8,
    *,
    seed: int | None = 0,
    draw: int = 0,
    per: str | int = "filter",
    grid: Grid = "narrow",
    step: Step = "absmax",
    skip: Skip = (),
    channel_dim: ChannelDim = None,
) -> Scope:
    """Context in which the weights are integers of `bits` bits in a memory whose every bit flips with probability `rate`.

    Weights are rounded as in `quantized`, their codes stored in two's complement, every bit of every code flipped or not on
    its own, and decoded. A narrow grid's codes can become -2^(bits-1) so, one step beyond its range. Which bits: bit j of
    element i (of the rows of the tensor, filter by filter) flips if 32-bit word i bits + j is below rate 2^32, of NumPy's
    Philox(key=(seed, place), counter=(0, 0, 0, draw)).random_raw(), low half of each 64 bits first: the same on every device.

    Args:
        rate: in [0, 1].
        bits: of a stored weight, 2 to 16.
        seed: of the flips; None takes one from torch's generator.
        draw: number of the chip, 0 to 2^62.
        per, grid, step, skip, channel_dim: as in `quantized`.

    Raises: as `quantized`.

    >>> import torch
    >>> from torch_ssam import robustness
    >>> layer = torch.nn.Linear(2, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0.0]]))
    >>> with robustness.bit_flips(layer, 1.0, 2):  # 01 and 00 become 10 and 11: -2 and -1
    ...     layer.weight.tolist()
    [[-2.0, -1.0]]
    """
    change = flipping(rate, bits, seed, draw, per, grid, step)
    return Disturbed(chosen_weights(model, skip, channel_dim), change)


def flipping(rate: Any, bits: Any, seed: int | None, draw: Any, per: Any, grid: str, step: str) -> Change:
    """What `bit_flips` does to a weight."""
    rate = _checks.number("rate", rate)
    if rate > 1:
        raise ValueError(f"rate is {rate:g}; expected a probability, 0 <= rate <= 1.")
    quantizer, sharing = Quantizer(bits, grid, step), check_per(per)
    draw = _checks.count("draw", draw, low=0, high=2**62)
    key = seeds.resolve_seed(seed) % 2**64

    def change(weight: Weight, clean: Tensor) -> Tensor:
        rows, undo = rows_of(clean, weight.channel_dim, sharing)
        encoded = quantizer.encode(rows)
        flipped = _flipped(encoded.codes, quantizer.bits, rate, (key, weight.place), draw)
        return undo(encoded._replace(codes=flipped).values())

    return change


_CHUNK = 2**18  # codes at a time, of which each needs a word for each bit


def _flipped(codes: Tensor, bits: int, rate: float, key: tuple[int, int], draw: int) -> Tensor:
    """Codes whose bits flipped, for an integer of two's complement."""
    source = np.random.Philox(
        key=np.array(key, dtype=np.uint64), counter=np.array((0, 0, 0, draw), dtype=np.uint64)
    )
    threshold = int(rate * 2**32)
    half, whole = 2 ** (bits - 1), 2**bits
    flat = codes.reshape(-1).to(torch.int32)
    for part in flat.split(_CHUNK):  # type: ignore[no-untyped-call]
        words = source.random_raw((part.numel() * bits + 1) // 2)
        halves = np.stack((words & np.uint64(2**32 - 1), words >> np.uint64(32)), 1).reshape(-1)
        hit = halves[: part.numel() * bits].reshape(-1, bits) < np.uint64(threshold)
        mask = torch.from_numpy((hit << np.arange(bits)).sum(1).astype(np.int32)).to(part.device)
        part.copy_((((part & (whole - 1)) ^ mask) + half) % whole - half)
    return flat.reshape(codes.shape).to(codes.dtype)
