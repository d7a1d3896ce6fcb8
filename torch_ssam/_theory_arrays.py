"""Numbers, sequences, NumPy arrays and tensors in; contiguous float64 arrays with one batch dimension out.

The shape checks of `torch_ssam.theory` live here, each once; values are checked in csrc/theory. Tensors are
recognised by `detach`, so that PyTorch is imported only where one came in. Tests:
tests/python/test_theory_arguments.py.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_ABSENT = object()


def is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "cpu")


def as_array(name: str, value: Any) -> Array:
    """float64 copy or view of what came; TypeError for anything that is not real numbers."""
    if is_tensor(value):
        if value.is_complex():
            raise TypeError(f"{name} must hold real numbers, got a tensor of {value.dtype}; pass its .real")
        value = value.detach().cpu().double().numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:  # a ragged sequence
        raise ValueError(f"{name} must be a rectangular array of numbers: {error}") from None
    if array.dtype.kind not in "fiu":
        raise TypeError(
            f"{name} must hold real numbers, got {type(value).__name__} of dtype {array.dtype}; "
            "pass a number, a sequence of numbers, a NumPy array or a tensor"
        )
    return np.ascontiguousarray(array, dtype=np.float64).reshape(array.shape)


def as_number(name: str, value: Any) -> float:
    array = as_array(name, value)
    if array.size != 1:
        raise ValueError(f"{name} must be one number, got an array of shape {array.shape}")
    return float(array.reshape(()))


def as_integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__} {value!r}") from None


def as_noise(noise_std: Any) -> Array:
    array = as_array("noise_std", noise_std)
    if array.ndim > 1:
        raise ValueError(f"noise_std must be a number or one number per layer, got shape {array.shape}")
    return array.reshape(-1)


def as_covariance(covariance: Any) -> Array | None:
    if covariance is None:
        return None
    array = as_array("covariance", covariance)
    if array.ndim not in (1, 2):
        raise ValueError(
            f"covariance must have shape (features, features) or (features,), got shape {array.shape}; "
            "one covariance serves a whole batch"
        )
    return array


class Batch:
    """Leading dimensions of weights and target, folded into one and unfolded again."""

    def __init__(self, weights: Any = _ABSENT, target: Any = _ABSENT, *, name: str = "target") -> None:
        self.likes = (weights, target)
        shapes: list[tuple[int, ...]] = []
        w, t = np.empty((1, 1)), np.empty(1)
        self.one_target = False
        self.features: int | None = None
        if weights is not _ABSENT:
            w = as_array("weights", weights)
            if w.ndim < 2:
                raise ValueError(
                    f"weights must have shape (..., depth, features), got shape {w.shape}; "
                    "for one coordinate pass weights[:, None]"
                )
            shapes.append(w.shape[:-2])
            self.features = w.shape[-1]
        if target is not _ABSENT:
            t = as_array(name, target)
            self.one_target = t.ndim == 0
            if self.one_target:
                t = np.full(1 if self.features is None else self.features, float(t))
            shapes.append(t.shape[:-1])
        try:
            self.shape = np.broadcast_shapes(*shapes)
        except ValueError:
            raise ValueError(
                f"leading dimensions of weights and {name} must broadcast, got shapes {w.shape} and {t.shape}"
            ) from None
        self.size = math.prod(self.shape)
        self.weights = self._fold(w, 2)
        self.target = self._fold(t, 1)

    def _fold(self, array: Array, tail: int) -> Array:
        last = array.shape[-tail:]
        spread = np.broadcast_to(array, self.shape + last)
        return np.ascontiguousarray(spread).reshape((self.size, *last))

    def unfold(self, result: Array) -> Any:
        """Batch dimension back to the leading ones; a float where no dimension is left."""
        return give(result.reshape(self.shape + result.shape[1:]), *self.likes)

    def unfold_target(self, result: Array, axis: int = -1) -> Any:
        """The same for results with the features along `axis`, which a single target does not have."""
        result = result.reshape(self.shape + result.shape[1:])
        return give(np.asarray(result.take(0, axis)) if self.one_target else result, *self.likes)


def give(result: Array, *likes: Any) -> Any:
    """A float64 CPU tensor where a tensor came in, else a NumPy array, or a float for no dimensions."""
    if any(is_tensor(like) for like in likes):
        import torch

        return torch.from_numpy(np.array(result))
    return result if result.ndim else result.item()
