"""Clean weights for a model whose optimizer is let go while it keeps them perturbed: nobody else could put them back.

A finalizer runs anywhere: in another thread, in the middle of another operation, after the interpreter began to end; what
it raises is printed and lost. Tests: test_attached.py.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

import torch
from torch.utils._python_dispatch import _disable_current_modes

from torch_ssam.noise.weights import PerturbedWeightsChanged, SavedWeights
from torch_ssam.ops.untraced import untraced

if TYPE_CHECKING:
    from collections.abc import Callable


@untraced
def _restore(weights: SavedWeights) -> None:
    with _disable_current_modes(), torch.no_grad():  # a mode of others must not see it, nor fake it
        weights.restore_surely()


def restore_at_last(weights: SavedWeights, ending: Callable[[], bool] = sys.is_finalizing) -> None:
    """Puts the clean weights back, if any are away. What others wrote meanwhile is kept, and warned of."""
    if ending() or not getattr(weights, "_applied", None):
        return
    try:
        _restore(weights)
    except PerturbedWeightsChanged as changed:
        warnings.warn(f"an optimizer was let go in train: {changed}", RuntimeWarning, stacklevel=2)
