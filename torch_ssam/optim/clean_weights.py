"""Clean weights while the parameters hold perturbed ones: for checkpoints, averages and BatchNorm statistics.

With keep_perturbed the weights are noisy between `train()` and `eval()`, and frameworks save, average and
evaluate at moments of their own. Contexts for that are here; what an attached model hands out is in attached.py.
BatchNorm's running statistics belong to the weights that produced them, so they are gathered anew, or kept out of
noisy passes.
Tests: tests/python/test_clean_weights.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torch_ssam.noise.saved_model import batchnorm_that_tracks
from torch_ssam.noise.scope import Scope
from torch_ssam.noise.state import NoiseState
from torch_ssam.optim.gradient_norms import GradientNorms


class Owner(Protocol):
    """What is asked here of an optimizer that holds noise on its weights."""

    _inside_pass: bool
    _training: bool
    param_groups: list[dict[str, Any]]
    _gradient_norms: GradientNorms

    @property
    def _noise(self) -> NoiseState: ...
    def _modes(self) -> tuple[bool, bool]: ...
    def _resume(self, training: bool, base_in_train: bool) -> None: ...
    def _clean_of(self, param: Tensor) -> Tensor: ...
    def _noise_on(self) -> None: ...
    def _noise_off(self) -> None: ...
    def _settle(self) -> None: ...
    def eval(self) -> None: ...
    def clean_weights(self) -> Scope: ...


class PerturbedWeightsSaved(UserWarning):
    """A checkpoint is being taken while the parameters hold perturbed weights."""


class CleanWeights(Scope):
    """Inside, the parameters hold the clean weights; leaving puts the noise of the same draw back."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._was = False, False

    def _check(self) -> None:
        if self._owner._inside_pass:
            raise RuntimeError("clean_weights() inside perturb(): leave the pass first.")

    def _begin(self) -> None:
        was = self._owner._modes()
        if any(was) or self._owner._noise.active:
            self._owner.eval()
        self._was = was  # not where eval() raised: the weights are as others wrote them

    def _end(self) -> None:
        self._owner._resume(*self._was)


def check_model(name: str, model: Any) -> None:
    """Raises if the argument is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{name}() got a {type(model).__name__}; expected the torch.nn.Module that is trained."
        )


def warn_perturbed(where: str) -> None:
    """Says that a model.state_dict() taken about now holds noise."""
    warnings.warn(
        f"state_dict() {where}: the parameters hold perturbed weights, and so does a model.state_dict() taken "
        "now (this one carries the clean weights beside them). Save after opt.eval() or outside of perturb(), "
        "take opt.clean_state_dict(model), or call opt.attach(model) once, after which model.state_dict() is "
        "clean.",
        PerturbedWeightsSaved,
        stacklevel=3,
    )


@contextmanager
def frozen_batchnorm(model: nn.Module) -> Iterator[None]:
    """Context in which BatchNorm layers normalise by batch as in training, and keep their running statistics.

    Statistics gathered at perturbed weights are not those of the clean weights that are evaluated. Freeze
    them in noisy passes where another pass (at clean weights) gathers them, or gather them by `update_bn`.
    Layers in eval, and other kinds of layers, are untouched.

    Args:
        model: the module whose BatchNorm layers (SyncBatchNorm too) are frozen.

    Example:
        >>> import torch, torch_ssam
        >>> layer = torch.nn.BatchNorm1d(2)
        >>> with torch_ssam.frozen_batchnorm(layer):
        ...     _ = layer(torch.ones(3, 2))
        >>> layer.running_mean.tolist(), int(layer.num_batches_tracked)
        ([0.0, 0.0], 0)
    """
    check_model("frozen_batchnorm", model)
    layers = batchnorm_that_tracks(model)
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def update_bn(
    loader: Iterable[Any],
    model: nn.Module,
    optimizer: Owner | None = None,
    device: torch.device | int | None = None,
) -> None:
    """Gathers BatchNorm statistics anew, at the clean weights: torch.optim.swa_utils.update_bn.

    Args:
        loader: batches, or lists or tuples whose first item is the batch.
        model: the model; its mode (train or eval) comes back.
        optimizer: the SSAM or wrapped optimizer that holds noise on the model's weights, which is taken off
            meanwhile; None where none does (an AveragedModel).
        device: where batches go first; None for as they are.

    Raises:
        RuntimeError: inside `perturb()`.

    Example:
        >>> import torch, torch_ssam
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        >>> opt = torch_ssam.SSAM(model.parameters(), noise_std=0.1, keep_perturbed=True)
        >>> opt.train()
        >>> torch_ssam.update_bn([torch.randn(8, 2)], model, opt)
        >>> int(model[1].num_batches_tracked)
        1
    """
    check_model("update_bn", model)
    if optimizer is None:
        torch.optim.swa_utils.update_bn(loader, model, device)
        return
    with optimizer.clean_weights():
        torch.optim.swa_utils.update_bn(loader, model, device)
