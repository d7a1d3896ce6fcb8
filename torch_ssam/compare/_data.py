"""The data that settings name: images, text of Python's own sources, scikit-learn's tables.

A data set is made by a function of (setting, seed). The split into training, validation and test examples is
the same for every seed; the seed decides the wrong labels alone. Tests: tests/python/test_compare.py.
"""

from __future__ import annotations

import hashlib
import math
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from torch_ssam._common.extras import need
from torch_ssam._common.images import DataError, Images, load_digits_images, load_images


class Wanted(Protocol):
    """What a `Setting` says of its data."""

    @property
    def folder(self) -> Path | None: ...
    @property
    def train(self) -> int: ...
    @property
    def validation(self) -> int: ...
    @property
    def test(self) -> int: ...
    @property
    def wrong_labels(self) -> float: ...


Pair = tuple[Tensor, Tensor]
#: Images to pretrain on, as a multiple of those to train on, where there are so many.
PRETRAINING = 5
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Data:
    """Examples (inputs, targets) to train on, to choose options by, and to test on.

    Args:
        name: what the report calls it.
        train, validation, test: pairs (inputs, targets) with the examples along dimension 0. Targets are int64
            classes, (n,) or (n, length) with one a token, or floats (n,) for regression.
        outputs: the model's outputs for an example: the number of classes, or 1.
        correct: the training targets before labels were made wrong; None where none were.
        note: what a reader must know, such as that another data set was asked for.
        pretraining: examples of another task, classes from 0 on, that a model is trained on before it is fine-tuned on
            these; None where there are none.
    """

    name: str
    train: Pair
    validation: Pair
    test: Pair
    outputs: int
    correct: Tensor | None = None
    note: str = ""
    pretraining: Pair | None = None

    def __post_init__(self) -> None:
        for part in ("train", "validation", "test"):
            inputs, targets = getattr(self, part)
            if len(inputs) != len(targets) or len(targets) == 0:
                raise ValueError(
                    f"{self.name}: {part} has {len(inputs)} inputs and {len(targets)} targets; expected as many, "
                    "and at least one."
                )

    @property
    def classifies(self) -> bool:
        """Whether targets are classes; otherwise they are numbers."""
        return not self.train[1].is_floating_point()

    @property
    def features(self) -> int:
        """Numbers in one example."""
        return math.prod(self.train[0].shape[1:])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy over all tokens, or mean squared error."""
        if not self.classifies:
            return mse_loss(outputs.squeeze(-1), targets)
        return cross_entropy(outputs.flatten(0, -2), targets.flatten())

    def fingerprint(self) -> str:
        """A digest of all examples: records of one data set are not taken for another's."""
        digest = hashlib.sha256()
        for pair in (self.train, self.validation, self.test):
            for tensor in pair:
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


DataFactory = Callable[[Any, int], Data]


def wrong_labels(correct: Labels, classes: int, share: float, seed: int) -> Labels:
    """Labels of which the share given, by independent choice, is replaced by another class, each as likely.

    >>> import numpy as np
    >>> wrong_labels(np.array([0, 1, 1]), classes=2, share=1.0, seed=0).tolist()
    [1, 0, 0]
    """
    rng = np.random.default_rng([1, seed])
    wrong = rng.random(correct.shape) < share
    shift = rng.integers(1, classes, correct.shape)
    return np.where(wrong, (correct + shift) % classes, correct)


def _with_wrong_labels(
    labels: Labels, classes: int, setting: Wanted, seed: int
) -> tuple[Tensor, Tensor | None]:
    if setting.wrong_labels == 0:
        return torch.from_numpy(labels), None
    made = wrong_labels(labels, classes, setting.wrong_labels, seed)
    return torch.from_numpy(made), torch.from_numpy(labels)


@lru_cache(maxsize=2)
def _images(name: str, folder: Path | None) -> Images:
    return load_digits_images() if name == "digits" else load_images(folder)


def _order(images: Images) -> Any:
    """Of the training images: first those to train on, then those to choose options by, then others."""
    return np.random.default_rng(0).permutation(len(images.train_images))


def _scaling(used: Any) -> Callable[[Any], Tensor]:
    """What gives images a channel, and puts them in units of the pixels of those trained on."""
    mean, std = used.mean(), used.std()

    def scaled(pixels: Any) -> Tensor:
        return (
            torch.from_numpy((pixels - mean) / std).unsqueeze(1).contiguous(memory_format=torch.channels_last)
        )

    return scaled


def _image_data(images: Images, setting: Wanted, seed: int, note: str) -> Data:
    order = _order(images)
    n = min(setting.train, len(order) * 4 // 5)
    chosen, held_out = order[:n], order[n : n + setting.validation]
    scaled = _scaling(images.train_images[chosen])
    labels, correct = _with_wrong_labels(images.train_labels[chosen], images.classes, setting, seed)
    return Data(
        images.name,
        (scaled(images.train_images[chosen]), labels),
        (scaled(images.train_images[held_out]), torch.from_numpy(images.train_labels[held_out])),
        (scaled(images.test_images[: setting.test]), torch.from_numpy(images.test_labels[: setting.test])),
        images.classes,
        correct,
        note,
    )


def fashion_mnist(setting: Wanted, seed: int) -> Data:
    """Fashion-MNIST, or the idx folder of the setting; without either scikit-learn's digits, with a note."""
    images = _images("fashion-mnist", setting.folder)
    note = ""
    if setting.folder is None and images.name != "Fashion-MNIST":
        note = (
            "Fashion-MNIST was asked for and is not installed here (Debian: apt-get install "
            f"dataset-fashion-mnist; or give a folder of idx files): these are {images.name}."
        )
    return _image_data(images, setting, seed, note)


def fashion_mnist_pretrained(setting: Wanted, seed: int) -> Data:
    """As "fashion-mnist", with five times as many other images, of the first half of the classes, to pretrain on."""
    data = fashion_mnist(setting, seed)
    images = _images("fashion-mnist", setting.folder)
    order, n = _order(images), len(data.train[0])
    others = order[n + len(data.validation[0]) :]
    others = others[images.train_labels[others] < images.classes // 2][: PRETRAINING * n]
    if len(others) == 0:
        raise DataError(
            f"{data.name} has {len(images.train_images)} training images, all of them taken by train and validation; expected "
            "some to pretrain on. Lower train or validation."
        )
    x = _scaling(images.train_images[order[:n]])(images.train_images[others])
    return replace(data, pretraining=(x, torch.from_numpy(images.train_labels[others])))


def digits(setting: Wanted, seed: int) -> Data:
    """scikit-learn's digits, 8 x 8 pixels; the last 500 to test on."""
    return _image_data(_images("digits", None), setting, seed, "")


def _table(name: str, setting: Wanted, seed: int, title: str) -> Data:
    bunch = getattr(need("sklearn.datasets", "compare", f"the data set {name}"), f"load_{name}")()
    x, y = np.asarray(bunch.data, np.float64), np.asarray(bunch.target)
    order = np.random.default_rng(0).permutation(len(x))
    test, rest = order[: len(x) // 4][: setting.test], order[len(x) // 4 :]
    held_out = rest[: min(len(rest) // 4, setting.validation)]
    chosen = rest[len(rest) // 4 :][: setting.train]
    mean, std = x[chosen].mean(0), x[chosen].std(0) + 1e-12
    classes = y.dtype.kind in "iub" and len(np.unique(y)) <= 100
    correct = None
    if classes:
        y = y.astype(np.int64)
        labels, correct = _with_wrong_labels(y[chosen], int(y.max()) + 1, setting, seed)
    else:
        if setting.wrong_labels:
            raise DataError(
                f"wrong_labels is {setting.wrong_labels:g}, but {title} has numbers to predict, not classes; expected 0."
            )
        y = ((y - y[chosen].mean()) / y[chosen].std()).astype(np.float32)
        labels = torch.from_numpy(y[chosen])

    def part(rows: Any) -> Tensor:
        return torch.from_numpy(((x[rows] - mean) / std).astype(np.float32))

    return Data(
        title,
        (part(chosen), labels),
        (part(held_out), torch.from_numpy(y[held_out])),
        (part(test), torch.from_numpy(y[test])),
        int(y.max()) + 1 if classes else 1,
        correct,
    )


def breast_cancer(setting: Wanted, seed: int) -> Data:
    """scikit-learn's breast cancer: 569 tumours, 30 features, 2 classes; a quarter to test on."""
    return _table("breast_cancer", setting, seed, "breast cancer")


def diabetes(setting: Wanted, seed: int) -> Data:
    """scikit-learn's diabetes: 442 patients, 10 features, progression to predict; a quarter to test on."""
    return _table("diabetes", setting, seed, "diabetes")


LENGTH = 64  # characters in an example of text
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))  # and one token for all others


@lru_cache(maxsize=1)
def _python_sources() -> list[Any]:
    """The standard library's own modules as tokens, one array a file, in a fixed order without pattern."""
    table = {c: i for i, c in enumerate(CHARACTERS)}
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    order = np.random.default_rng(0).permutation(len(files))
    texts = [files[i].read_text(encoding="utf-8", errors="replace") for i in order]
    return [np.array([table.get(c, len(CHARACTERS)) for c in text], np.int64) for text in texts]


def text(setting: Wanted, seed: int) -> Data:
    """Source code of Python's standard library, character by character; other files to test on."""
    wanted = {"test": min(setting.test, 1000), "validation": setting.validation, "train": setting.train}
    files = iter(_python_sources())
    parts: dict[str, Any] = {}
    for name, n in wanted.items():
        windows: list[Any] = []
        while sum(map(len, windows)) < n:
            tokens = next(files, None)
            if tokens is None:
                raise DataError(
                    f"this Python's standard library has too little source code for {sum(wanted.values())} examples of "
                    f"{LENGTH} characters. Lower train or validation."
                )
            count = (len(tokens) - 1) // LENGTH
            starts = LENGTH * np.arange(count)[:, None] + np.arange(LENGTH + 1)
            windows.append(tokens[starts])
        parts[name] = np.concatenate(windows)[:n]
    classes = len(CHARACTERS) + 1
    labels, correct = _with_wrong_labels(parts["train"][:, 1:].copy(), classes, setting, seed)

    def pair(name: str) -> Pair:
        return torch.from_numpy(parts[name][:, :-1].copy()), torch.from_numpy(parts[name][:, 1:].copy())

    return Data(
        "Python's sources",
        (pair("train")[0], labels),
        pair("validation"),
        pair("test"),
        classes,
        correct,
    )


DATA: dict[str, DataFactory] = {
    "fashion-mnist": fashion_mnist,
    "fashion-mnist-pretrained": fashion_mnist_pretrained,
    "digits": digits,
    "text": text,
    "breast-cancer": breast_cancer,
    "diabetes": diabetes,
}
