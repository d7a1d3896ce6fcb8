"""The demo's data: whitened diabetes for the regression; the images are the package's.

Fashion-MNIST comes from Debian's package dataset-fashion-mnist or from any folder given; without either the
demo runs on scikit-learn's digits and says so. Tests: tests/python/test_demo.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_diabetes

from torch_ssam.compare import DataError, Images, load_idx_folder, load_images, read_idx

__all__ = [
    "DataError",
    "Images",
    "Regression",
    "load_idx_folder",
    "load_images",
    "load_whitened_diabetes",
    "read_idx",
]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Regression:
    """inputs (n, d) with mean 0 and E x x^T = I, outputs with mean 0 and variance 1, target w* = E y x."""

    names: list[str]
    inputs: Array
    outputs: Array
    target: Array


def load_whitened_diabetes() -> Regression:
    """scikit-learn's diabetes data, ZCA-whitened: a coordinate stays close to its feature."""
    bunch = load_diabetes()
    centred = bunch.data - bunch.data.mean(0)
    outputs = (bunch.target - bunch.target.mean()) / bunch.target.std()
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    inputs = centred @ (vectors / np.sqrt(values)) @ vectors.T
    return Regression(list(bunch.feature_names), inputs, outputs, inputs.T @ outputs / len(inputs))
