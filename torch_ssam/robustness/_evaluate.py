"""A metric of a model over data, BatchNorm's statistics gathered anew, and which layers are first and last.

Tests: tests/python/test_robustness_measure.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torch_ssam.sharpness._evaluate import Batches, to_device

from ._weights import Weight

#: Of (outputs, targets), one number, the mean over a batch; or, without data, of the model.
Metric = Callable[..., Any]


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Percent of the targets that are the class of the largest output.

    Args:
        outputs: scores of two classes or more; the dimension of classes is the last one, or the second, as in cross_entropy.
        targets: classes, integers from 0. An example with a NaN among its outputs counts as wrong.

    Raises: TypeError, ValueError: other shapes, targets that are no classes.

    >>> import torch
    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    50.0
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        raise TypeError(
            f"accuracy got {type(outputs).__name__} and {type(targets).__name__}; expected tensors of scores and classes. "
            "Pass a metric of your own."
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(
            f"accuracy got targets of {targets.dtype}; expected classes, integers. Pass a metric of your own."
        )
    if outputs.shape[:-1] == targets.shape:
        dim = -1
    elif outputs.dim() >= 2 and outputs.shape[:1] + outputs.shape[2:] == targets.shape:
        dim = 1
    else:
        raise ValueError(
            f"accuracy got outputs of shape {tuple(outputs.shape)} for targets of shape {tuple(targets.shape)}; expected "
            "a dimension of classes more, last or second. Pass a metric of your own."
        )
    if outputs.size(dim) < 2:
        raise ValueError(
            "accuracy got outputs with one class; expected two or more. Pass a metric of your own."
        )
    if targets.numel() == 0:
        raise ValueError("accuracy got no targets; expected at least one.")
    if int(targets.min()) < 0 or int(targets.max()) >= outputs.size(dim):
        raise ValueError(
            f"accuracy got targets from {int(targets.min())} to {int(targets.max())} for {outputs.size(dim)} classes; "
            "expected 0 to that minus 1. To leave some out, pass a metric of your own."
        )
    right = (outputs.argmax(dim) == targets) & ~outputs.isnan().any(dim)
    return 100.0 * (int(right.sum()) / right.numel())


def number(value: Any, what: str) -> float:
    """What a metric gave, as a float; NaN and infinities pass."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{what} gave a tensor of shape {tuple(value.shape)}; expected one number.")
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{what} gave {value!r} ({type(value).__name__}); expected one number.") from None


class Evaluation:
    """The metric of a model as it is now: the mean over examples of metric(outputs, targets), or metric(model)."""

    def __init__(self, model: nn.Module, data: Any, metric: Metric, device: torch.device) -> None:
        if not callable(metric):
            raise TypeError(
                f"metric is a {type(metric).__name__}; expected a function of (outputs, targets), or of the model where "
                "data is None."
            )
        self._model, self._metric = model, metric
        self._batches = None if data is None else Batches(data, device)
        self.name = str(getattr(metric, "__name__", type(metric).__name__)).replace("_", " ")

    @torch.no_grad()
    def __call__(self) -> float:
        if self._batches is None:
            return number(self._metric(self._model), f"metric {self.name}")
        total, examples = 0.0, 0
        for inputs, targets, n in self._batches:
            total += n * number(self._metric(self._model(inputs), targets), f"metric {self.name}")
            examples += n
        return total / examples

    def example(self) -> Any:
        """Inputs of the first batch, as the model is called with them; None without data."""
        return None if self._batches is None else (next(iter(self._batches))[0],)


class Statistics:
    """Gathers the running statistics of a model's BatchNorm layers anew, all other layers as in eval mode."""

    def __init__(self, model: nn.Module, calibration: Any, device: torch.device) -> None:
        if isinstance(calibration, Iterator | str | bytes | dict | Tensor) or not (
            isinstance(calibration, Iterable) or callable(calibration)
        ):
            raise TypeError(
                f"calibration is a {type(calibration).__name__}; expected batches that can be read again, each inputs or a "
                "tuple that starts with them, such as the training DataLoader; or a function that runs the model."
            )
        self._model, self._calibration, self._device = model, calibration, device
        self._layers = [
            m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
        ]

    @torch.no_grad()
    def gather(self) -> None:
        """Runs the model over the calibration data; flags and momentum are back afterwards, the new statistics stay."""
        before = [(m, m.training, m.momentum, m.track_running_stats) for m in self._layers]
        try:
            for layer in self._layers:
                layer.track_running_stats = True
                layer.reset_running_stats()
                layer.momentum = None  # the mean over all batches
                layer.training = True
            if callable(self._calibration):
                self._calibration(self._model)
            else:
                self._run()
            if any(int(layer.num_batches_tracked or 0) == 0 for layer in self._layers):
                raise ValueError(
                    "calibration ran no batch through a BatchNorm layer; expected at least one through each."
                )
        finally:
            for layer, training, momentum, tracked in before:
                layer.training, layer.momentum, layer.track_running_stats = training, momentum, tracked

    def _run(self) -> None:
        for batch in self._calibration:
            inputs = batch[0] if isinstance(batch, tuple | list) else batch
            self._model(to_device(inputs, self._device))


def has_statistics(model: nn.Module) -> bool:
    """Whether there are BatchNorm layers with running statistics."""
    return any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in model.modules())


@contextlib.contextmanager
def noted_calls(modules: Iterable[nn.Module]) -> Iterator[list[nn.Module]]:
    """Context in which calls of these modules are noted, in their order, in the list that it gives."""
    called: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(lambda module, _inputs: called.append(module))
        for module in modules
        if not isinstance(module, torch.jit.ScriptModule)  # which takes no hooks
    ]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


class Order:
    """The first and the last of the modules that hold weights, in the order in which a run calls them."""

    def __init__(self, model: nn.Module, weights: Sequence[Weight]) -> None:
        chosen = {id(weight.param) for weight in weights}
        self._owners = [
            (name, module)
            for name, module in model.named_modules()
            if any(id(p) in chosen for p in module._parameters.values() if p is not None)
        ]
        self._called: list[nn.Module] = []

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Context in which calls are noted."""
        with noted_calls(module for _, module in self._owners) as self._called:
            yield

    def ends(self) -> list[tuple[str, nn.Module]]:
        """First and last, by name; those registered first and last where no call was seen."""
        called = self._called or [module for _, module in self._owners]
        ends = (called[0], called[-1])
        return [(name, module) for name, module in self._owners if any(module is end for end in ends)]
