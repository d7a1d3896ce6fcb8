"""Mean loss of a model over data, and its gradient: what every measure of sharpness evaluates.

What came from the caller is checked here, once. Flags and buffers that an evaluation may touch are put back,
and so are weights that were moved. Tests: tests/python/test_sharpness.py, test_sharpness_models.py.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from torch_ssam import _checks
from torch_ssam.noise import parameters, seeds
from torch_ssam.noise.scope import Scope
from torch_ssam.noise.weight_noise import WeightNoise
from torch_ssam.optim.clean_weights import frozen_batchnorm

Data = Iterable[Any]
LossFunction = Callable[[Any, Any], Tensor]

MODES = ("eval", "train")


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors on the device, also within tuples (named ones too), lists and mappings."""
    if isinstance(value, Tensor | PackedSequence):
        return value.to(device)  # type: ignore[arg-type]  # torch's annotation of PackedSequence.to
    if isinstance(value, dict):
        return {key: to_device(member, device) for key, member in value.items()}
    if isinstance(value, tuple | list):
        members = [to_device(member, device) for member in value]
        return type(value)(*members) if hasattr(value, "_fields") else type(value)(members)
    return value


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

    def kept(self) -> AbstractContextManager[None]:
        """Context after which they are in the state that they were in."""
        return torch.random.fork_rng(self._cuda)


class Batches:
    """The data, on the model's device, as (inputs, targets, number of examples), as often as asked for."""

    def __init__(self, data: Any, device: torch.device) -> None:
        if not isinstance(data, Iterable) or isinstance(data, str | bytes | dict | Tensor):
            raise TypeError(
                f"data is a {type(data).__name__}; expected an iterable of (inputs, targets) batches, such as "
                "a DataLoader or [(x, y)]."
            )
        if isinstance(data, Iterator):
            raise TypeError(
                f"data is an iterator ({type(data).__name__}), which can be read once only; expected "
                "something that gives the same batches every time, such as a DataLoader or list(data)."
            )
        if isinstance(data, tuple) and len(data) == 2 and all(isinstance(d, Tensor) for d in data):
            data = [data]
        self._data = data
        self._device = device

    def __iter__(self) -> Iterator[tuple[Any, Any, int]]:
        seen = 0
        for batch in self._data:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                came = f"{len(batch)} members" if isinstance(batch, tuple | list) else type(batch).__name__
                raise TypeError(f"a batch of data is {came}; expected a pair (inputs, targets).")
            inputs, targets = to_device(tuple(batch), self._device)
            if not isinstance(targets, Tensor) or targets.dim() == 0 or len(targets) == 0:
                shape = (
                    f"a tensor of shape {tuple(targets.shape)}"
                    if isinstance(targets, Tensor)
                    else type(targets).__name__
                )
                raise ValueError(
                    f"the targets of a batch are {shape}; expected a tensor whose first dimension counts "
                    "the examples, at least one."
                )
            seen += len(targets)
            yield inputs, targets, len(targets)
        if seen == 0:
            raise ValueError("data has no batches; expected at least one (inputs, targets).")


def wide(p: Tensor) -> torch.dtype:
    """The dtype to sum and to step in: 16-bit numbers overflow, or stop growing."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


class Evaluator:
    """Loss L(w) = sum_b n_b loss_b / sum_b n_b over the batches b of the data, and its gradient.

    A model may draw random numbers (dropout). Losses at two weights can only be compared where it draws the same
    ones: set `generators` to one state before both.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Data,
        params: Iterable[Tensor] | None = None,
        mode: str = "eval",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module.")
        if not callable(loss_fn):
            raise TypeError(
                f"loss_fn is a {type(loss_fn).__name__}; expected a function of (outputs, targets) that "
                "gives the mean loss of the batch."
            )
        self.model, self.loss_fn = model, loss_fn
        self.mode = _checks.one_of("mode", mode, MODES)
        self.params = trainable(model, params)
        self.batches = Batches(data, self.params[0].device)
        self.generators = Generators(itertools.chain(model.parameters(), model.buffers(), self.params))
        #: Whether the model or the loss was seen to draw random numbers, in an evaluation that watched for it.
        self.random = False

    def _batch_loss(self, inputs: Any, targets: Tensor, watch: bool = False) -> Tensor:
        before = self.generators.state() if watch and not self.random else []
        loss = self.loss_fn(self.model(inputs), targets)
        if before:
            self.random = not all(map(torch.equal, before, self.generators.state()))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            came = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise ValueError(f"loss_fn gave {came}; expected one number, the mean loss of the batch.")
        return loss.reshape(())

    def loss(self, watch: bool = False) -> float:
        """The mean loss, summed over batches in float64."""
        total, examples = torch.zeros((), dtype=torch.float64), 0
        with torch.no_grad():
            for inputs, targets, n in self.batches:
                term = self._batch_loss(inputs, targets, watch).double() * n
                total = total.to(term.device) + term
                examples += n
        return float(total) / examples

    def loss_and_gradient(self) -> tuple[float, list[Tensor]]:
        """The mean loss and its gradient for `params`, in `wide` dtypes; `.grad` is left alone."""
        total, examples = 0.0, 0
        gradient = [torch.zeros_like(p, dtype=wide(p)) for p in self.params]
        with torch.enable_grad():
            for inputs, targets, n in self.batches:
                loss = self._batch_loss(inputs, targets)
                for sum_, g in zip(gradient, self._batch_gradient(loss), strict=True):
                    if g is not None:
                        sum_.add_(g, alpha=n)
                total += float(loss.detach()) * n
                examples += n
        return total / examples, [g.div_(examples) for g in gradient]

    def curved(self) -> list[bool]:
        """For each of `params`, whether the gradient for it depends on any of them: else its rows of the Hessian are 0.

        By the autograd graph, so True may stand for zeros that come out of the numbers. Watches for random numbers.
        """
        found = [False] * len(self.params)
        with torch.enable_grad():
            for inputs, targets, _ in self.batches:
                gradient = self._batch_gradient(
                    self._batch_loss(inputs, targets, watch=True), create_graph=True
                )
                found = [
                    known or (g is not None and g.requires_grad)
                    for known, g in zip(found, gradient, strict=True)
                ]
        return found

    def _batch_gradient(self, loss: Tensor, create_graph: bool = False) -> Sequence[Tensor | None]:
        if not loss.requires_grad:
            raise ValueError("the loss does not depend on the parameters through autograd.")
        return torch.autograd.grad(loss, self.params, allow_unused=True, create_graph=create_graph)

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """The model in its mode; afterwards every module's flags and every buffer are what they were.

        In train mode BatchNorm uses the batch's statistics and does not average them.
        """
        with contextlib.ExitStack() as undo:  # goes on to the others where one of them fails
            for module in self.model.modules():
                undo.callback(setattr, module, "training", module.training)
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        undo.callback(_put_back, module, name, buffer, buffer.detach().clone())
            undo.enter_context(frozen_batchnorm(self.model))
            self.model.train(self.mode == "train")
            yield


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether plain tensors have the same bits; False where that cannot be told."""
    if type(a) is not Tensor or a.layout != torch.strided or a.is_meta or a.is_quantized or a.is_conj():
        return False
    return torch.equal(*(t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


@torch.no_grad()
def _put_back(module: nn.Module, name: str, buffer: Tensor, before: Tensor) -> None:
    """The buffer under its name, with its values; nothing is written where nothing changed."""
    module._buffers[name] = buffer
    if _same_bits(buffer, before):
        return
    if buffer.layout == torch.strided:  # expanded: elements in one place of memory, of which one is written
        once = tuple(slice(1) if stride == 0 else slice(None) for stride in buffer.stride())
        buffer, before = buffer[once], before[once]
    buffer.copy_(before)


def trainable(model: nn.Module, params: Any = None) -> list[Tensor]:
    """The tensors to move: those given, else all parameters of the model that require gradients; each once."""
    members = list(model.parameters()) if params is None else parameters.parameter_list(params)
    tensors: dict[int, Tensor] = {}
    for member in members:
        p = parameters.tensor_of(member)
        if isinstance(p, dict):
            raise TypeError("params holds dicts; expected tensors (parameter groups are for `average`).")
        parameters.check_parameters([p], [])
        if p.requires_grad:
            tensors.setdefault(id(p), p)
    if not tensors:
        raise ValueError(
            f"{'the model has' if params is None else 'params has'} no parameter that requires gradients; "
            "expected at least one. Call requires_grad_() on the ones to measure."
        )
    return list(tensors.values())


def measuring_noise(
    params: Iterable[Tensor] | Iterable[dict[str, Any]], noise_std: float, seed: int | None, **options: Any
) -> WeightNoise:
    """Noise of the seed, other than that of a training with this seed, on which the weights depend."""
    own = seeds.measuring_seed(seed)
    return WeightNoise(params, noise_std, seed=own, **options)


def finite(loss: float, where: str, advice: str) -> float:
    if loss - loss != 0:
        raise ValueError(f"the loss is {loss} {where}; expected a finite number. {advice}")
    return loss


class Moved(Scope):
    """Context in which parameters may be written to; afterwards their exact bits are back."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._params = params
        self._clean: list[Tensor] | None = None

    def _begin(self) -> None:
        self._clean = [p.detach().clone() for p in self._params]

    def _end(self) -> None:
        if self._clean is not None:
            self.put()
            self._clean = None

    @torch.no_grad()
    def put(self, *terms: tuple[float, Sequence[Tensor]]) -> None:
        """Writes clean + sum of factor * direction; without terms, the clean bits."""
        if self._clean is None:
            raise RuntimeError("put() outside of the context, where no clean weights are held.")
        for i, (p, clean) in enumerate(zip(self._params, self._clean, strict=True)):
            value = clean.to(wide(clean)) if terms else clean
            for factor, direction in terms:
                value = value + factor * direction[i].to(value.dtype)
            p.copy_(value)  # rounds once
