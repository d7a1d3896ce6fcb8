"""What a model holds, saved and put back bit for bit: tensors, where they lie, flags of modules, random generators.

For whoever runs a model without leaving a trace: MeasuredModel of the measures, which moves the weights too, and the
optimizers' looks at what noise does (optim/outputs.py). Values are compared, since writes through `.data` move no version
counter. Tests: test_measured_models.py, test_adaptive_noise.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torch_ssam.noise.saved import tell_torch

# What bits are compared as: whole words are four times faster than bytes.
WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}

# Flags of modules that the mode changes, or that the model may.
FLAGS = ("training", "track_running_stats")


def batchnorm_that_tracks(model: nn.Module) -> list[Any]:
    """The BatchNorm layers (SyncBatchNorm too) that gather running statistics as they run in training.

    With `track_running_stats` False they pass no buffers to update, and normalise as before; in eval it changes nothing.
    """
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _module(device: torch.device) -> Any:
    """torch.cuda, torch.mps and so on; None for a device that has none."""
    return getattr(torch, device.type, None)


class Generators:
    """torch's random generators, of the CPU and of the devices that the tensors are on."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        devices = {t.device for t in tensors if t.device.type not in ("cpu", "meta")}
        self._devices = [d for d in sorted(devices, key=str) if hasattr(_module(d), "get_rng_state")]

    def state(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(_module(d).get_rng_state(d) for d in self._devices)]

    def set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:], strict=True):
            _module(device).set_rng_state(state, device)


class SavedTensor:
    """A tensor as it was: its place in memory, its bits, and what autograd knows of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.bits = tensor.detach().clone()
        self.moved = False  # whether to be copied back without a look
        self._was_leaf, self._requires_grad = tensor.is_leaf, tensor.requires_grad
        self._grad = tensor.grad if tensor.is_leaf else None
        memory = tensor.data
        plain = type(memory) is Tensor and memory.layout == torch.strided and not memory.is_meta
        self._memory = memory if plain else None
        self._bytes = memory.untyped_storage().nbytes() if plain else 0

    def put_back(self) -> None:
        """Memory, flags and bits; nothing is written where nothing changed."""
        tensor = self.tensor
        if self._memory is not None and not self._in_place():
            storage = self._memory.untyped_storage()
            if storage.nbytes() != self._bytes:
                storage.resize_(self._bytes)
            tensor.data = self._memory
        if self._was_leaf and not tensor.is_leaf:
            tensor.detach_()
        if tensor.is_leaf and tensor.requires_grad != self._requires_grad:
            tensor.requires_grad_(self._requires_grad)
        if self.moved or not _same_bits(tensor, self.bits):
            _write(tensor, self.bits)
            self.moved = False

    def put_gradient_back(self) -> None:
        if self._was_leaf:
            self.tensor.grad = self._grad

    def _in_place(self) -> bool:
        now, then = self.tensor.data, self._memory
        assert then is not None
        return (
            now.data_ptr() == then.data_ptr()
            and now.shape == then.shape
            and now.stride() == then.stride()
            and (now.dtype, now.device) == (then.dtype, then.device)
            and then.untyped_storage().nbytes() == self._bytes
        )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether plain tensors have the same bits; False where that cannot be told."""
    a = a.detach()
    if type(a) is not Tensor or a.layout != torch.strided or a.is_meta or a.is_quantized or a.is_conj():
        return False
    rows = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    size = math.gcd(8, *(n for t in rows for n in (t.numel(), t.storage_offset())))
    return torch.equal(*(t.view(WORDS[size]) for t in rows))


def _write(tensor: Tensor, bits: Tensor) -> None:
    if tensor.layout == torch.strided and 0 in tensor.stride():  # expanded: elements in one place of memory
        once = tuple(slice(1) if stride == 0 else slice(None) for stride in tensor.stride())
        tensor, bits = tensor[once], bits[once]
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.copy_(bits)


def in_turn(*steps: Sequence[Callable[[], None]]) -> None:
    """All steps, also where one fails; then tells autocast, and raises what the first failure was."""
    failure: Exception | None = None
    for step in (step for group in steps for step in group):
        try:
            step()
        except Exception as error:
            failure = failure or error
    tell_torch([])
    if failure is not None:
        raise failure


class SavedModule:
    """What a module holds, by reference: parameters, buffers, parts, tensor attributes; and its flags."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._flags = {name: getattr(module, name) for name in FLAGS if hasattr(module, name)}
        # A ScriptModule keeps these elsewhere and cannot gain or lose any.
        own = [module.__dict__.get(name) for name in ("_parameters", "_buffers", "_modules")]
        self._members = [(members, dict(members)) for members in own if isinstance(members, dict)]
        self._attributes = dict(module.__dict__)
        self._non_persistent = set(module.__dict__.get("_non_persistent_buffers_set", ()))

    def tensors(self) -> Iterator[Tensor]:
        """The attributes that are tensors and no parameters or buffers."""
        return (value for value in self._attributes.values() if isinstance(value, Tensor))

    def put_back(self) -> None:
        for members, then in self._members:
            if list(members) != list(then) or any(members[name] is not then[name] for name in then):
                members.clear()
                members.update(then)
        now, before = self._module.__dict__, self._attributes
        if now.get("_non_persistent_buffers_set", self._non_persistent) != self._non_persistent:
            now["_non_persistent_buffers_set"] = set(self._non_persistent)
        for name in [*before, *(set(now) - set(before))]:
            was, value = before.get(name), now.get(name)
            if was is not value and (isinstance(was, Tensor) or isinstance(value, Tensor)):
                if name in before:
                    now[name] = was
                else:
                    del now[name]

    def put_flags_back(self) -> None:
        for name, value in self._flags.items():
            if getattr(self._module, name) != value:
                setattr(self._module, name, value)
