"""Callbacks for Lightning: KeepPerturbed, AdaptiveNoise, LogMetrics. Not imported by `torch_ssam`.

SSAM and wrap need no callback in Lightning, save with GradScaler ("16-mixed") and with accumulate_grad_batches > 1, where
Lightning runs closures outside of `optimizer.step(closure)`: there keep_perturbed=True and KeepPerturbed, since Lightning
calls neither `train()` nor `eval()` of optimizers. Tests: tests/python/test_frameworks.py, test_callbacks.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] != "lightning":
        raise
    from pytorch_lightning import Callback
import torch
from torch.utils.hooks import RemovableHandle

from torch_ssam import _checks
from torch_ssam.optim.frameworks import expected_some, named, noise_optimizers
from torch_ssam.schedules import AdaptiveNoiseStd


class KeepPerturbed(Callback):
    """Switches optimizers with keep_perturbed=True to train inside of training batches, to eval for all else.

    Whatever other callbacks read of the weights when a batch begins or ends (averages, say), in whatever order they were
    given, is clean, and so are checkpoints. `Tuner.lr_find` and `Tuner.scale_batch_size`, which take all callbacks away
    for their trials, train with noise. Optimizers without keep_perturbed are left alone.

    Example:
        >>> import torch_ssam.lightning
        >>> callback = torch_ssam.lightning.KeepPerturbed()  # Trainer(callbacks=[callback])
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._undo: list[Callable[[], object]] = []  # what setup() changed of the strategy

    def _train(self, trainer: Any) -> None:
        for optimizer in noise_optimizers(trainer.optimizers):
            optimizer.train()

    def _eval(self, trainer: Any) -> None:
        for optimizer in noise_optimizers(trainer.optimizers):
            optimizer.eval()

    # -- where the noise goes on: the strategy is told after all callbacks, and also in the trials of a Tuner

    def _tell_before(self, name: str, call: Callable[[Any], None], trainer: Any) -> None:
        """Has `call` called before this hook of the strategy."""
        hook, own = getattr(trainer.strategy, name), vars(trainer.strategy)

        def called(*arguments: Any, **options: Any) -> Any:
            call(trainer)
            return hook(*arguments, **options)

        if name in own:  # somebody else's
            self._undo.append(lambda: own.__setitem__(name, hook))
        else:
            self._undo.append(lambda: own.pop(name, None))
        own[name] = called

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Becomes the first callback, so that the noise is off before any other is told of a batch's end."""
        if stage != "fit":
            return
        # A new list: the old one is being walked through.
        trainer.callbacks = [self, *[callback for callback in trainer.callbacks if callback is not self]]
        self._tell_before("on_train_batch_start", self._train, trainer)
        self._tell_before("on_validation_start", self._eval, trainer)
        self._tell_before("on_train_end", self._eval, trainer)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """From here on checkpoints are clean."""
        for optimizer in noise_optimizers(trainer.optimizers):
            self._handles += optimizer.attach(pl_module)

    # -- where it goes off

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Noise off, until the next training batch."""
        self._eval(trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Noise off, until the next training batch."""
        self._eval(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Noise off, until the next training batch."""
        self._eval(trainer)

    def _end(self, trainer: Any) -> None:
        self._eval(trainer)
        for handle in self._handles:
            handle.remove()
        while self._undo:
            self._undo.pop()()
        self._handles = []

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Noise off for good."""
        self._end(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Noise off, whatever went wrong."""
        self._end(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Noise off, also where a Tuner ends without training."""
        self._end(trainer)


class _AfterSteps(Callback):
    """Calls `_stepped` after every training batch in which an optimizer made a step."""

    _reached = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Notes where the training begins."""
        self._reached = trainer.global_step

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks whether there was a step: with accumulation most batches have none."""
        if trainer.global_step != self._reached:
            self._reached = trainer.global_step
            with trainer.precision_plugin.forward_context():
                self._stepped(trainer, pl_module, batch)

    def _stepped(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        raise NotImplementedError


class AdaptiveNoise(_AfterSteps):
    """Noise that sets itself: `schedules.AdaptiveNoiseStd` for every optimizer of torch_ssam, saved in checkpoints.

    Args:
        outputs: function of (module, batch) that gives the model's outputs, such as `lambda module, batch: module(batch[0])`.
        options: those of `AdaptiveNoiseStd`: target, measure, every, rate, max_noise_std.

    Raises:
        TypeError: outputs is no function; when training starts, no optimizer of torch_ssam.

    Example:
        >>> import torch_ssam.lightning
        >>> callback = torch_ssam.lightning.AdaptiveNoise(lambda module, batch: module(batch[0]), target=0.05)
    """

    def __init__(self, outputs: Callable[[Any, Any], Any], **options: Any) -> None:
        if not callable(outputs):
            raise TypeError(f"outputs is a {type(outputs).__name__}; expected a function of (module, batch).")
        self._outputs, self._options = outputs, options
        self._loaded: list[dict[str, Any]] = []
        self.schedules: list[AdaptiveNoiseStd] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Makes the schedules, when checkpoints are loaded."""
        super().on_train_start(trainer, pl_module)
        optimizers = expected_some(noise_optimizers(trainer.optimizers), self)
        self.schedules = [AdaptiveNoiseStd(optimizer, **self._options) for optimizer in optimizers]
        for schedule, state in zip(self.schedules, self._loaded, strict=False):
            schedule.load_state_dict(state)
        self._loaded = []

    def _stepped(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        for schedule in self.schedules:
            schedule.step(lambda: self._outputs(pl_module, batch))

    def state_dict(self) -> dict[str, Any]:
        """Those of the schedules."""
        return {"schedules": [schedule.state_dict() for schedule in self.schedules]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept for the start of the training."""
        self._loaded = state_dict["schedules"]


class LogMetrics(_AfterSteps):
    """Logs `opt.metrics()` every so many steps, as noise/noise_std, noise/noise_to_weight and so on.

    Where the trainer clips gradients by their norm, noise/grad_clipped is the share of steps since the last look in which it
    did, and noise/grad_norm their mean norm, at the cost of one more read of the gradients a step.

    Args:
        every: steps between looks, >= 1.
        loss: function of (module, batch) that gives the loss, for noise/loss_rise at the cost of two forwards a look; None for
            none. It should log nothing itself.

    Raises:
        TypeError: loss is no function; when training starts, no optimizer of torch_ssam.

    Example:
        >>> import torch_ssam.lightning
        >>> callback = torch_ssam.lightning.LogMetrics(every=50)
    """

    def __init__(self, every: int = 50, loss: Callable[[Any, Any], Any] | None = None) -> None:
        self.every = _checks.count("every", every)
        if loss is not None and not callable(loss):
            raise TypeError(
                f"loss is a {type(loss).__name__}; expected a function of (module, batch), or None."
            )
        self._loss = loss
        self._steps = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Looks whether there is something to log."""
        super().on_train_start(trainer, pl_module)
        expected_some(noise_optimizers(trainer.optimizers), self)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Notes the norm of the gradients where the trainer is about to clip it."""
        bound = trainer.gradient_clip_val
        if not bound or trainer.gradient_clip_algorithm == "value":
            return
        for one in noise_optimizers([optimizer]):
            grads = [p.grad for group in one.param_groups for p in group["params"] if p.grad is not None]
            one.note_grad_norm(torch.nn.utils.get_total_norm(grads), bound)

    def _stepped(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        self._steps += 1
        if self._steps % self.every == 0:
            loss = self._loss
            call = None if loss is None else lambda: loss(pl_module, batch)
            found = [optimizer.metrics(call) for optimizer in noise_optimizers(trainer.optimizers)]
            pl_module.log_dict(named(found, "noise/"), on_step=True, on_epoch=False)
