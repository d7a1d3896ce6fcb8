"""KeepPerturbed: keep_perturbed in Lightning, which calls neither `train()` nor `eval()` of optimizers.

Needed with GradScaler ("16-mixed") and with accumulate_grad_batches > 1, where Lightning runs closures outside
of `optimizer.step(closure)`; otherwise SSAM and wrap need nothing in Lightning. Not imported by `torch_ssam`.
Tests: tests/python/test_frameworks.py.
"""

from __future__ import annotations

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
    """Switches optimizers with keep_perturbed=True to train for training batches, to eval for all else.

    Checkpoints of the module hold clean weights meanwhile. Optimizers without keep_perturbed are left alone.

    Example:
        >>> import torch_ssam.lightning
        >>> callback = torch_ssam.lightning.KeepPerturbed()  # Trainer(callbacks=[callback])
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    @staticmethod
    def _optimizers(trainer: Any) -> list[NoiseDriver]:
        # Lightning's strategies may hold wrappers with the optimizer inside.
        found = [getattr(optimizer, "optimizer", optimizer) for optimizer in trainer.optimizers]
        return [one for one in found if isinstance(one, NoiseDriver)]

    def _eval(self, trainer: Any) -> None:
        for optimizer in self._optimizers(trainer):
            optimizer.eval()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """From here on checkpoints are clean."""
        for optimizer in self._optimizers(trainer):
            self._handles += optimizer.attach(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Noise on."""
        for optimizer in self._optimizers(trainer):
            optimizer.train()

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
        self._handles = []

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Noise off for good."""
        self._end(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Noise off, whatever went wrong."""
        self._end(trainer)
