"""MeasuredModel: a model that is evaluated elsewhere than at its weights, and is afterwards what it was, bit for bit.

A model may write to itself as it runs: `Embedding(max_norm=)` to its weights, observers and moving averages to buffers,
which they also resize or replace, old weight_norm to attributes. A training keeps that; a measure must leave no trace,
nor may one evaluation see what another left. So all is saved on entering and put back after every evaluation, by
value, since writes through `.data` move no version counter. It costs one copy of parameters, buffers and tensor
attributes; noise and other moves are written from that copy and need no second. Tests: test_measured_models.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from torch_ssam.noise.saved import tell_torch
from torch_ssam.noise.saved_model import Generators, SavedModule, SavedTensor, batchnorm_that_tracks, in_turn
from torch_ssam.noise.scope import Scope
from torch_ssam.noise.weight_noise import WeightNoise


def wide(p: Tensor) -> torch.dtype:
    """The dtype to sum and to step in: 16-bit numbers overflow, or stop growing."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


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
        self._modules: list[SavedModule] = []
        self._tensors: dict[int, SavedTensor] = {}
        self._random: list[Tensor] | None = None
        self.generators = Generators([*model.parameters(), *model.buffers(), *self._extra])

    def _check(self) -> None:
        if self._random is not None:
            raise RuntimeError("a measured model is entered inside itself: leave the first context.")

    def _begin(self) -> None:
        self._random = self.generators.state()
        self._modules = [SavedModule(module) for module in self.model.modules()]
        attributes = [tensor for module in self._modules for tensor in module.tensors()]
        for tensor in [*self.model.parameters(), *self.model.buffers(), *attributes, *self._extra]:
            if id(tensor) not in self._tensors:
                self._tensors[id(tensor)] = SavedTensor(tensor)
                if tensor.is_leaf:
                    tensor.grad = None  # not copied: what adds to .grad finds none
        if self._training is not None:
            self.model.train(self._training)
            for layer in batchnorm_that_tracks(self.model):
                layer.track_running_stats = False

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
