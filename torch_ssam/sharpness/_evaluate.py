"""Mean loss of a model over data, and its gradient: what every measure of sharpness evaluates.

What came from the caller is checked here, once, and so is whether autograd sees the parameters. Every evaluation begins
at the model as it was given, moved or not, and leaves it so (`MeasuredModel`). Tests: tests/python/test_sharpness.py,
test_sharpness_models.py, test_measured_models.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from torch_ssam import _checks
from torch_ssam._common.measured_model import MeasuredModel, Move, wide
from torch_ssam.noise import parameters, seeds
from torch_ssam.noise.weight_noise import WeightNoise
from torch_ssam.ops.plain_numbers import float64_of

from ._visible import REMEDY, HiddenParameters, check_flat, check_reached, custom_functions, names

Data = Iterable[Any]
LossFunction = Callable[[Any, Any], Tensor]

Mode = Literal["eval", "train"]
MODES: tuple[str, ...] = get_args(Mode)


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


class Evaluator:
    """Loss L(w) = sum_b n_b loss_b / sum_b n_b over the batches b of the data, and its gradient.

    Evaluated inside `ready()`, each time from the model as it was given; what the model writes to itself over the batches
    lasts to the end of that evaluation. `at` moves parameters before it. A model may draw random numbers (dropout).
    Losses at two weights can only be compared where it draws the same ones: set `generators` to one state before both.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Data,
        params: Iterable[Tensor] | None = None,
        mode: Mode = "eval",
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
        self.measured = MeasuredModel(model, self.params, training=self.mode == "train")
        self.generators = self.measured.generators
        #: Whether the model or the loss was seen to draw random numbers, in an evaluation that watched for it.
        self.random = False
        #: Names of the custom autograd.Functions that the loss was seen to pass, by `curved`.
        self.custom_functions: set[str] = set()

    def ready(self) -> MeasuredModel:
        """Context with the model in its mode; afterwards it is what it was, and so are torch's random generators."""
        return self.measured

    def read(self, at: Move | None = None) -> Iterator[tuple[Any, Any, int]]:
        """One evaluation: the batches, read with the model moved, which is put back when they end."""
        if at is not None:
            at(self.measured)
        yield from self.batches
        self.measured.restore()

    def _batch_loss(self, inputs: Any, targets: Tensor, watch: bool = False) -> Tensor:
        before = self.generators.state() if watch and not self.random else []
        loss = self.loss_fn(self.model(inputs), targets)
        if before:
            self.random = not all(map(torch.equal, before, self.generators.state()))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            came = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise ValueError(f"loss_fn gave {came}; expected one number, the mean loss of the batch.")
        return loss.reshape(())

    def loss(self, at: Move | None = None, watch: bool = False) -> float:
        """The mean loss, summed over batches in float64."""
        total, examples = torch.zeros((), dtype=torch.float64), 0
        with torch.no_grad():
            for inputs, targets, n in self.read(at):
                term = float64_of(self._batch_loss(inputs, targets, watch)) * n
                total = total.to(term.device) + term
                examples += n
        return float(total) / examples

    def loss_and_gradient(self, at: Move | None = None, check: bool = False) -> tuple[float, list[Tensor]]:
        """The mean loss and its gradient for `params`, in `wide` dtypes; `.grad` is left alone.

        With `check`, refuses parameters that the loss depends on and autograd does not reach.
        """
        total, examples = 0.0, 0
        gradient = [torch.zeros_like(p, dtype=wide(p)) for p in self.params]
        reached = [False] * len(self.params)
        with torch.enable_grad():
            for inputs, targets, n in self.read(at):
                loss = self._batch_loss(inputs, targets)
                for i, g in enumerate(self._batch_gradient(loss)):
                    if g is not None:
                        gradient[i].add_(g.detach(), alpha=n)
                        reached[i] = True
                total += float(loss.detach()) * n
                examples += n
        if check:
            check_reached(self, reached)
        return total / examples, [g.div_(examples) for g in gradient]

    def curved(self) -> list[bool]:
        """For each of `params`, whether the gradient for it depends on any of them: else its rows of the Hessian are 0.

        By the autograd graph, so True may stand for zeros that come out of the numbers; False is checked against the
        numbers. Watches for random numbers and custom functions.
        """
        reached, found = [False] * len(self.params), [False] * len(self.params)
        with torch.enable_grad():
            for inputs, targets, _ in self.read():
                loss = self._batch_loss(inputs, targets, watch=True)
                self.custom_functions |= custom_functions(loss)
                for i, g in enumerate(self._batch_gradient(loss, create_graph=True)):
                    if g is not None:
                        reached[i] = True
                        found[i] |= g.requires_grad
        check_reached(self, reached)
        check_flat(self, [i for i, known in enumerate(reached) if known and not found[i]])
        return found

    def _batch_gradient(self, loss: Tensor, create_graph: bool = False) -> Sequence[Tensor | None]:
        if not loss.requires_grad:
            raise HiddenParameters(f"the loss does not depend on the parameters through autograd. {REMEDY}")
        for p in self.model.parameters():
            p.grad = None
        visible = [p for p in self.params if p.requires_grad]  # a forward may have frozen some
        try:
            found = torch.autograd.grad(loss, visible, allow_unused=True, create_graph=create_graph)
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            raise HiddenParameters(
                f"the gradient cannot be taken under reentrant checkpointing. {REMEDY}"
            ) from error
        # A backward() within the backward, as functions that recompute modules make it.
        hidden = [p for p in self.model.parameters() if p.grad is not None]
        if hidden:
            raise HiddenParameters(
                f"the gradient for {names(self, hidden)} goes to .grad past autograd.grad(). {REMEDY}"
            )
        gradient = {id(p): g for p, g in zip(visible, found, strict=True)}
        return [gradient.get(id(p)) for p in self.params]


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
