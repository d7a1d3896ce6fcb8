"""Grey images and their classes: idx files (MNIST's format), Debian's Fashion-MNIST, scikit-learn's digits.

idx is two zero bytes, a type code, the number of dimensions, big-endian sizes, the values; plain or gzipped.
Fashion-MNIST comes from Debian's package dataset-fashion-mnist, or from the folder that the environment variable
TORCH_SSAM_FASHION_MNIST names. Used by compare, the experiments and the examples. Tests:
tests/python/test_demo.py.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from torch_ssam._common.extras import need

FASHION_MNIST = Path(os.environ.get("TORCH_SSAM_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class DataError(Exception):
    """A file that is missing or not what it should be; the message says which, and what was expected."""


def read_idx(path: Path) -> npt.NDArray[np.generic]:
    """The array in an idx file, gzipped if its name ends in .gz."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) < 4 or raw[:2] != b"\0\0":
        raise DataError(
            f"{path} is no idx file: it starts with {raw[:4].hex(' ')}; expected 00 00, a type, a count."
        )
    if raw[2] not in TYPES:
        known = ", ".join(f"{code:02x}" for code in TYPES)
        raise DataError(f"{path} has the idx type code {raw[2]:02x}; expected one of {known}.")
    dimensions, dtype = raw[3], np.dtype(TYPES[raw[2]])
    header = 4 + 4 * dimensions
    if len(raw) < header:
        raise DataError(f"{path} ends inside its header of {header} bytes; it has {len(raw)}.")
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    expected = header + math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise DataError(f"{path} has {len(raw)} bytes; its header, of shape {shape}, says {expected}.")
    return np.frombuffer(raw, dtype, offset=header).reshape(shape).astype(dtype.newbyteorder("="))


@dataclass(frozen=True)
class Images:
    """Grey images in [0, 1], shape (n, height, width), and their classes 0, 1, ..."""

    name: str
    train_images: npt.NDArray[np.float32]
    train_labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[np.float32]
    test_labels: npt.NDArray[np.int64]

    @property
    def classes(self) -> int:
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1


def _find(folder: Path, part: str, kind: str) -> Path:
    names = [f"{part}-{kind}{dot}ubyte{gz}" for dot in ("-", ".") for gz in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder} has no {names[0]} (nor {', '.join(names[1:])}).")


def _read_part(folder: Path, part: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    images_path, labels_path = _find(folder, part, "images-idx3"), _find(folder, part, "labels-idx1")
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.dtype != np.uint8:
        raise DataError(
            f"{images_path} has shape {images.shape} of {images.dtype}; expected (n, height, width) of uint8."
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "ui":
        raise DataError(
            f"{labels_path} has shape {labels.shape} of {labels.dtype}; expected one integer for each of the "
            f"{len(images)} images of {images_path.name}."
        )
    if len(images) == 0:
        raise DataError(f"{images_path} is empty; expected at least one image.")
    return images.astype(np.float32) / np.float32(255), labels.astype(np.int64)


def load_idx_folder(folder: Path) -> Images:
    """Images of a folder with MNIST's four files, train- and t10k-, -images-idx3-ubyte and so on."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; expected one with MNIST's four idx files.")
    train, test = _read_part(folder, "train"), _read_part(folder, "t10k")
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"{folder}: images of {train[0].shape[1:]} to train on, of {test[0].shape[1:]} to test on."
        )
    classes = len(np.unique(train[1]))
    if len(train[0]) < 10 or classes < 2 or train[0].min() == train[0].max():
        raise DataError(
            f"{folder} has {len(train[0])} training images of {classes} classes; expected at least 10 of 2, "
            "and not all of one grey."
        )
    name = "Fashion-MNIST" if folder == FASHION_MNIST else folder.name
    return Images(name, *train, *test)


def load_digits_images() -> Images:
    """scikit-learn's digits, 8 x 8: the last 500 of 1,797 to test on (other writers than the first)."""
    digits = need("sklearn.datasets", "compare", "the digits data set").load_digits()
    images, labels = (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)
    return Images("scikit-learn's digits", images[:-500], labels[:-500], images[-500:], labels[-500:])


def load_images(folder: Path | None) -> Images:
    """The folder given, else Fashion-MNIST where it is installed, else scikit-learn's digits."""
    if folder is not None:
        return load_idx_folder(folder)
    return load_idx_folder(FASHION_MNIST) if FASHION_MNIST.is_dir() else load_digits_images()
