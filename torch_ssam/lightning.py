"""KeepPerturbed: keep_perturbed in Lightning, which calls neither `train()` nor `eval()` of optimizers.

Needed with GradScaler ("16-mixed") and with accumulate_grad_batches > 1, where Lightning runs closures outside
of `optimizer.step(closure)`; otherwise SSAM and wrap need nothing in Lightning. Not imported by `torch_ssam`.
Tests: tests/python/test_frameworks.py.
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
from torch.utils.hooks import RemovableHandle

from torch_ssam.optim.base import NoiseDriver


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

    @staticmethod
    def _optimizers(trainer: Any) -> list[NoiseDriver]:
        # Lightning's strategies may hold wrappers with the optimizer inside.
        found = [getattr(optimizer, "optimizer", optimizer) for optimizer in trainer.optimizers]
        return [one for one in found if isinstance(one, NoiseDriver)]

    def _train(self, trainer: Any) -> None:
        for optimizer in self._optimizers(trainer):
            optimizer.train()

    def _eval(self, trainer: Any) -> None:
        for optimizer in self._optimizers(trainer):
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
        for optimizer in self._optimizers(trainer):
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
