"""Callbacks for the Trainer of Hugging Face transformers: KeepPerturbed, AdaptiveNoise, LogMetrics.

Trainer passes no closure, so that optimizers need keep_perturbed=True; it calls their `train()` before each batch and their
`eval()` before it evaluates, and neither when it ends. Not imported by `torch_ssam`. Tests: tests/python/test_callbacks.py,
test_frameworks.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from torch_ssam import _checks
from torch_ssam.optim.base import NoiseDriver
from torch_ssam.optim.frameworks import expected_some, named, noise_optimizers
from torch_ssam.schedules import AdaptiveNoiseStd


def _member(outputs: Any, name: str) -> Any:
    """What a model of transformers gives by name: of an object or of a dict."""
    return outputs[name] if isinstance(outputs, dict) else getattr(outputs, name)


class KeepPerturbed(TrainerCallback):
    """Noise off after each step and when training ends; checkpoints are clean.

    Needed once for `Trainer(optimizer_cls_and_kwargs=(torch_ssam.SSAMAdamW, {"keep_perturbed": True, ...}))`, and saves the
    calls of `opt.attach(model)` and, when `train()` has returned, of `opt.eval()` elsewhere. Give it first, so that other
    callbacks read clean weights too: `Trainer(callbacks=[KeepPerturbed(), ...])`. Noise of the same draw goes back on at the
    next batch: a pass over the weights a step. Optimizers without keep_perturbed are left alone.

    A training that fails ends with noise on its weights, since Trainer tells callbacks nothing of it: call `opt.eval()`.

    Example:
        >>> import torch_ssam.transformers
        >>> callback = torch_ssam.transformers.KeepPerturbed()  # Trainer(callbacks=[callback])
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """From here on checkpoints are clean."""
        for optimizer in noise_optimizers([given["optimizer"]]):
            optimizer.eval()
            self._handles += optimizer.attach(given["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Noise off, until Trainer's next batch."""
        for optimizer in noise_optimizers([given["optimizer"]]):
            optimizer.eval()

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Noise off for good."""
        for optimizer in noise_optimizers([given["optimizer"]]):
            optimizer.eval()
        while self._handles:
            self._handles.pop().remove()


class _WithBatch(TrainerCallback):
    """Keeps what the model was last called with, which Trainer does not tell."""

    def __init__(self) -> None:
        self._call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._handle: RemovableHandle | None = None
        self._optimizers: list[NoiseDriver] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Looks for the optimizer, and begins to listen."""
        self._optimizers = expected_some(noise_optimizers([given["optimizer"]]), self)

        def keep(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            if module.training:
                self._call = arguments, options

        self._handle = given["model"].register_forward_pre_hook(keep, with_kwargs=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Lets the batch go."""
        self._call = (), {}
        if self._handle is not None:
            self._handle.remove()

    def _again(self, model: Any) -> Any:
        arguments, options = self._call
        return model(*arguments, **options)


class AdaptiveNoise(_WithBatch):
    """Noise that sets itself: `schedules.AdaptiveNoiseStd` on each step's last batch.

    A resumed training goes on: noise_std is in the optimizer's checkpoint, and looks count Trainer's steps.

    Args:
        outputs: function of what the model returns that gives what to compare; None for its logits.
        options: those of `AdaptiveNoiseStd`: target, measure, every, rate, max_noise_std.

    Raises:
        TypeError: outputs is no function; when training begins, an optimizer that is none of torch_ssam.

    Example:
        >>> import torch_ssam.transformers
        >>> callback = torch_ssam.transformers.AdaptiveNoise(target=0.05)  # Trainer(callbacks=[callback])
    """

    def __init__(self, outputs: Callable[[Any], Any] | None = None, **options: Any) -> None:
        super().__init__()
        if outputs is not None and not callable(outputs):
            raise TypeError(
                f"outputs is a {type(outputs).__name__}; expected a function of what the model returns."
            )
        self._outputs, self._options = outputs, options
        self.schedule: AdaptiveNoiseStd | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Makes the schedule, when checkpoints are loaded."""
        super().on_train_begin(args, state, control, **given)
        self.schedule = AdaptiveNoiseStd(self._optimizers[0], **self._options)
        self.schedule.last_epoch = state.global_step - 1

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Looks, every so many steps."""
        assert self.schedule is not None
        outputs = self._outputs

        def call() -> Any:
            found = self._again(given["model"])
            return _member(found, "logits") if outputs is None else outputs(found)

        self.schedule.step(call)


class LogMetrics(_WithBatch):
    """Logs `opt.metrics()` every so many steps through `trainer.log`, as noise_std, noise_to_weight and so on.

    Added when there is a trainer: `trainer.add_callback(LogMetrics(trainer, every=50))`. Where the trainer clips gradients
    (`max_grad_norm`), grad_clipped is the share of steps since the last look in which it did, and grad_norm their mean norm.

    Args:
        trainer: the Trainer, whose log it goes to.
        every: steps between looks, >= 1.
        loss: whether to log loss_rise too, of each such step's last batch, at the cost of two forwards.

    Raises:
        TypeError: when training begins, an optimizer that is none of torch_ssam.

    Example:
        >>> import torch_ssam.transformers
        >>> torch_ssam.transformers.LogMetrics  # doctest: +ELLIPSIS
        <class '...LogMetrics'>
    """

    def __init__(self, trainer: Any, every: int = 50, loss: bool = False) -> None:
        super().__init__()
        self._trainer = trainer
        self.every = _checks.count("every", every)
        self.loss = _checks.flag("loss", loss)
        self._undo: Callable[[], object] | None = None  # of what listens to the clipping of gradients

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begins to listen, also to how often gradients are clipped."""
        super().on_train_begin(args, state, control, **given)
        self._listen_no_more()  # to a training that failed
        accelerator, optimizer = self._trainer.accelerator, self._optimizers[0]
        clip = accelerator.clip_grad_norm_

        def noting(parameters: Any, max_norm: float, *arguments: Any, **options: Any) -> Any:
            norm = clip(parameters, max_norm, *arguments, **options)
            if norm is not None:
                optimizer.note_grad_norm(norm, max_norm)
            return norm

        self._undo = partial(vars(accelerator).pop, "clip_grad_norm_", None)
        if "clip_grad_norm_" in vars(accelerator):  # somebody else's
            self._undo = partial(setattr, accelerator, "clip_grad_norm_", clip)
        accelerator.clip_grad_norm_ = noting

    def _listen_no_more(self) -> None:
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Lets all go."""
        super().on_train_end(args, state, control, **given)
        self._listen_no_more()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Logs, every so many steps."""
        if state.global_step % self.every == 0:
            call = (lambda: _member(self._again(given["model"]), "loss")) if self.loss else None
            own = control.should_log  # which log() takes as done: the trainer's own row would be left out
            self._trainer.log(named([self._optimizers[0].metrics(call)], ""))
            control.should_log = own
