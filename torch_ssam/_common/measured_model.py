"""MeasuredModel: a model that is evaluated elsewhere than at its weights, and is afterwards what it was, bit for bit.

A model may write to itself as it runs: `Embedding(max_norm=)` to its weights, observers and moving averages to buffers,
which they also resize or replace, old weight_norm to attributes. A training keeps that; a measure must leave no trace,
nor may one evaluation see what another left. So all is saved on entering and put back after every evaluation, by
value, since writes through `.data` move no version counter. It costs one copy of parameters, buffers and tensor
attributes; noise and other moves are written from that copy and need no second. Tests: test_measured_models.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from torch_ssam.noise.saved import tell_torch
from torch_ssam.noise.scope import Scope
from torch_ssam.noise.weight_noise import WeightNoise

# What bits are compared as: whole words are four times faster than bytes.
WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}

# Flags of modules that the mode changes, or that the model may.
FLAGS = ("training", "track_running_stats")


def wide(p: Tensor) -> torch.dtype:
    """The dtype to sum and to step in: 16-bit numbers overflow, or stop growing."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


class Generators:
    """torch's random generators, of the CPU and of the CUDA devices that the tensors are on."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._cuda = sorted({t.device.index for t in tensors if t.device.type == "cuda"})

    def state(self) -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._cuda)]

    def set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._cuda, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)


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


class _SavedModule:
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


class MeasuredModel(Scope):
    """Context in which a model may be run and moved at will; `restore`, and leaving, put back what there was.

    Put back are parameters and buffers (the same objects in the same memory, with the same bits; new ones go), tensors
    that modules hold as attributes, every module's flags, `requires_grad`, `.grad`, which is None inside, and torch's
    random generators. Not put back: other Python objects, such as counters and lists, which are the model's own affair.

    Args:
        model: the module.
        extra: further tensors that may be moved.
        training: the mode inside, True or False, with BatchNorm's averages left alone; None for each module's own.
    """

    def __init__(self, model: nn.Module, extra: Iterable[Tensor] = (), training: bool | None = None) -> None:
        self.model = model
        self._extra = list(extra)
        self._training = training
        self._modules: list[_SavedModule] = []
        self._tensors: dict[int, SavedTensor] = {}
        self._random: list[Tensor] | None = None
        self.generators = Generators([*model.parameters(), *model.buffers(), *self._extra])

    def _check(self) -> None:
        if self._random is not None:
            raise RuntimeError("a measured model is entered inside itself: leave the first context.")

    def _begin(self) -> None:
        self._random = self.generators.state()
        self._modules = [_SavedModule(module) for module in self.model.modules()]
        attributes = [tensor for module in self._modules for tensor in module.tensors()]
        for tensor in [*self.model.parameters(), *self.model.buffers(), *attributes, *self._extra]:
            if id(tensor) not in self._tensors:
                self._tensors[id(tensor)] = SavedTensor(tensor)
                if tensor.is_leaf:
                    tensor.grad = None  # not copied: what adds to .grad finds none
        if self._training is not None:
            self.model.train(self._training)
            for layer in self.model.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.track_running_stats = (
                        False  # in training this passes no buffers; in eval it changes nothing
                    )

    def restore(self) -> None:
        """Weights, buffers and attributes as they were on entering; the mode stays."""
        in_turn([module.put_back for module in self._modules], self._tensor_steps())

    def _tensor_steps(self) -> list[Callable[[], None]]:
        return [tensor.put_back for tensor in self._tensors.values()]

    def _end(self) -> None:
        tensors = self._tensors.values()
        try:
            in_turn(
                [module.put_back for module in self._modules],
                self._tensor_steps(),
                [tensor.put_gradient_back for tensor in tensors],
                [module.put_flags_back for module in self._modules],
                [lambda: None if self._random is None else self.generators.set(self._random)],
            )
        except Exception:
            self._forget()
            raise
        self._forget()  # not when a signal struck, since all is then put back again

    def _forget(self) -> None:
        self._modules, self._tensors, self._random = [], {}, None

    def clean(self, p: Tensor) -> Tensor:
        """The bits on entering of a tensor that is about to be written to."""
        saved = self._tensors.get(id(p))
        if saved is None:
            raise RuntimeError(
                "a tensor is to be moved whose clean weights are not held: enter the context first."
            )
        saved.moved = True
        return saved.bits


#: Writes to the parameters of a model inside its context, before an evaluation.
Move = Callable[[MeasuredModel], None]


def shift(params: Sequence[Tensor], *terms: tuple[float, Sequence[Tensor]]) -> Move:
    """To clean + sum of factor * direction, a list of tensors shaped as params; rounds once."""

    @torch.no_grad()
    def write(measured: MeasuredModel) -> None:
        for i, p in enumerate(params):
            clean = measured.clean(p)
            value = clean.to(wide(clean))
            for factor, direction in terms:
                value = value + factor * direction[i].to(value.dtype)
            p.copy_(value)
        tell_torch([])

    return write


def add_noise(noise: WeightNoise, *, negate: bool = False, advance: bool = True) -> Move:
    """To clean + the noise of the present draw (- with `negate`), with the bits of `noise.applied()`."""

    def write(measured: MeasuredModel) -> None:
        noise._write(measured.clean, negate=negate, advance=advance)

    return write
