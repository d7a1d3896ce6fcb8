"""Settings: which data, model, budget, grids and seeds a comparison has; those that have names.

Tests: tests/python/test_compare.py.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch_ssam import _checks

from ._data import DATA, DataFactory
from ._method import Method
from ._methods import DEFAULT_METHODS, METHODS
from ._models import MODELS, ModelFactory


def _by_name(kind: str, given: Any, known: dict[str, Any]) -> Any:
    """The function that is given, that the name stands for, or that MODULE:FUNCTION names."""
    if callable(given):
        return given
    if isinstance(given, str) and given in known:
        return known[given]
    module, _, function = given.partition(":") if isinstance(given, str) else ("", "", "")
    expected = f"one of {', '.join(known)}, MODULE:FUNCTION, or a function"
    if not function:
        raise ValueError(f"{kind} is {given!r}; expected {expected}.")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` finds modules of the current folder
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{kind} {given!r} cannot be imported ({error}); expected {expected}.") from error
    if not callable(found):
        raise TypeError(f"{kind} {given!r} is a {type(found).__name__}; expected a function.")
    return found


def _name_of(given: str | Callable[..., Any]) -> str:
    if isinstance(given, str):
        return given
    module = getattr(given, "__module__", "?")
    module = "__main__" if module == "__mp_main__" else module  # the same script, in a worker process
    return f"{module}:{getattr(given, '__qualname__', type(given).__name__)}"


@dataclass(frozen=True)
class Setting:
    """One comparison: data and model, the budget, the grids and the seeds.

    Args:
        name: what the report and the folder of records call it.
        data: "fashion-mnist", "fashion-mnist-pretrained", "digits", "text", "breast-cancer", "diabetes",
            "MODULE:FUNCTION", or a function of (setting, seed) that returns `Data`.
        model: "linear", "mlp", "cnn", "cnn-bn", "resnet", "vit", "vit-pretrained", "transformer", "MODULE:FUNCTION", or a
            function of (data) that returns a module. Worker processes import functions by name: no lambdas, unless workers=1.
        folder: of idx files for "fashion-mnist"; None for the installed package.
        train, validation, test: examples to train on, to choose options by, to test on; fewer where the data have
            fewer.
        wrong_labels: share of the training labels that are replaced by wrong ones, 0 to 1.
        epochs, batch: SGD's; other methods have the epochs of the same number of gradients.
        rates, adam_rates: learning rates of the grid; a cosine to 0 from there. As many of both.
        knob_values: how many values of each method's own knob the grid has, 1 to 4; some methods have three.
        weight_decay: of the methods whose grid does not vary it (AdamW with noise has its own).
        methods: names from METHODS, or `Method` objects; "sgd" must be among them, as the reference.
        seeds: runs on the test split: 0, 1, ...; tuning has another.
        robustness_seeds: how many of them have the runs with other learning rates and epochs.
        lr_factors, epoch_factors: those, as multiples of what was chosen.
        sharpness_std: noise of the average sharpness, in units of the weights.
        sharpness_filter_std: the same in proportion to each filter's norm.
        sharpness_draws: antithetic pairs, at least 2.
        bits: numbers of bits that the trained weights are rounded to, each tensor by its own step.
        deployment: measure too what is left of each network under rounding and noise in its weights, and choose options a
            second time, by that (the arm "target", in place of the one of equal time).
        deployment_draws: draws of the noise for that, at least 2.
        curve_points: points of each learning curve.

    Raises:
        ValueError, TypeError: options out of range, names that are not known.

    Example:
        >>> Setting("mine", data="digits", model="mlp", epochs=5).grid(METHODS["sgd"])[0]
        {'lr': 0.03, 'weight_decay': 0.0005}
    """

    name: str
    data: str | DataFactory = "fashion-mnist"
    model: str | ModelFactory = "mlp"
    folder: Path | None = None
    train: int = 5000
    validation: int = 2000
    test: int = 10_000
    wrong_labels: float = 0.0
    epochs: int = 30
    batch: int = 100
    rates: tuple[float, ...] = (0.03, 0.1)
    adam_rates: tuple[float, ...] = (1e-3, 3e-3)
    knob_values: int = 3
    weight_decay: float = 5e-4
    methods: tuple[str | Method, ...] = DEFAULT_METHODS
    seeds: int = 5
    robustness_seeds: int = 1
    lr_factors: tuple[float, ...] = (0.25, 0.5, 2.0, 4.0)
    epoch_factors: tuple[float, ...] = (0.25, 0.5, 2.0, 4.0)
    sharpness_std: float = 0.02
    sharpness_filter_std: float = 0.02
    sharpness_draws: int = 8
    bits: tuple[int, ...] = (8, 4, 3)
    deployment: bool = False
    deployment_draws: int = 4
    curve_points: int = 10

    def __post_init__(self) -> None:
        for name in ("rates", "adam_rates", "methods", "lr_factors", "epoch_factors", "bits"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists would not hash
        for name in ("train", "validation", "test", "epochs", "batch", "seeds", "curve_points"):
            _checks.count(name, getattr(self, name))
        _checks.count("robustness_seeds", self.robustness_seeds, low=0, high=self.seeds)
        _checks.count("knob_values", self.knob_values, high=4)
        _checks.number("weight_decay", self.weight_decay)
        _checks.count("sharpness_draws", self.sharpness_draws, low=2)
        _checks.flag("deployment", self.deployment)
        _checks.count("deployment_draws", self.deployment_draws, low=2)
        if not 0 <= _checks.number("wrong_labels", self.wrong_labels) <= 1:
            raise ValueError(f"wrong_labels is {self.wrong_labels:g}; expected 0 to 1.")
        for name in ("rates", "adam_rates", "lr_factors", "epoch_factors"):
            for value in getattr(self, name):
                _checks.number(name, value, open_low=True)
        if len(self.rates) != len(self.adam_rates) or not self.rates:
            raise ValueError(
                f"rates has {len(self.rates)} learning rates and adam_rates {len(self.adam_rates)}; expected as many, "
                "so that every method has a grid of the same size."
            )
        for value in self.bits:
            _checks.count("bits", value, low=2, high=16)
        for method in self.methods:
            if not isinstance(method, Method):
                _checks.one_of("method", method, tuple(METHODS))
        names = [method.name for method in self.chosen_methods()]
        if "sgd" not in names or len(set(names)) < len(names):
            raise ValueError(
                f"methods are {', '.join(names)}; expected 'sgd' among them, the reference, and each once."
            )
        if not self.name or not all(c.isalnum() or c in "-_." for c in self.name):
            raise ValueError(
                f"name is {self.name!r}; expected letters, digits, '-', '_' and '.': it names a folder."
            )
        _by_name("data", self.data, DATA)
        _by_name("model", self.model, MODELS)

    @property
    def data_factory(self) -> DataFactory:
        """The function that makes the data."""
        return _by_name("data", self.data, DATA)  # type: ignore[no-any-return]

    @property
    def model_factory(self) -> ModelFactory:
        """The function that makes the model."""
        return _by_name("model", self.model, MODELS)  # type: ignore[no-any-return]

    @property
    def data_name(self) -> str:
        """What records call the data's function."""
        return _name_of(self.data)

    @property
    def model_name(self) -> str:
        """What records call the model's function."""
        return _name_of(self.model)

    @property
    def arms(self) -> tuple[str, str]:
        """The two ways in which every method is run on the test split; see `Comparison`."""
        return ("gradients", "target") if self.deployment else ("gradients", "time")

    @property
    def variations(self) -> list[tuple[str, float]]:
        """What the runs for robustness change, and by which factor."""
        return [("lr", f) for f in self.lr_factors] + [("epochs", f) for f in self.epoch_factors]

    def chosen_methods(self) -> list[Method]:
        """The methods of this setting."""
        return [m if isinstance(m, Method) else METHODS[m] for m in self.methods]

    def grid(self, method: Method) -> list[dict[str, float]]:
        """The options that are tried, as many for every method: rates times values of the knob."""
        rates = self.adam_rates if "adamw" in method.optimizer else self.rates
        points = method.points[: self.knob_values]
        decays = "weight_decay" in method.options or any("weight_decay" in point for point in points)
        fixed = {} if decays else {"weight_decay": self.weight_decay}
        return [{"lr": lr, **point, **fixed} for lr in rates for point in points]

    def short(self) -> Setting:
        """A form of a minute or two: less data, a fifth of the epochs, a grid of 2, 3 seeds, fewer methods.

        It shows that everything works; its figures are weak evidence.
        """
        return replace(
            self,
            train=min(self.train, 1200),
            validation=min(self.validation, 500),
            test=min(self.test, 2000),
            epochs=max(4, self.epochs // 5),
            knob_values=1,
            seeds=3,
            robustness_seeds=1,
            lr_factors=(0.25, 4.0),
            epoch_factors=(0.5,),
            methods=tuple(m for m in self.methods if m in SHORT_METHODS),
            sharpness_draws=2,
            curve_points=min(self.curve_points, 5),
        )


SHORT_METHODS = ("sgd", "sam", "ssam", "ssam-filter-split", "adamw", "adamw-noise")
DEPLOYMENT_METHODS = (
    "sgd",
    "sgd-clip",
    "sam",
    "sam-clip",
    "ssam-clip",
    "ssam-deploy",
    "ssam-adaptive",
    "qat",
    "qat-tuned",
)
DEPLOYMENT_METHODS_ADAMW = (
    "sgd",
    "sam",
    "sam-clip",
    "adamw",
    "adamw-clip",
    "adamw-deploy",
    "adamw-adaptive",
    "adamw-qat",
)
WITHOUT_BATCHNORM = tuple(name for name in DEFAULT_METHODS if name != "sgd-split")


def _images(model: str, **options: Any) -> list[Setting]:
    clean = Setting(f"fashion-{model}", model=model, **options)
    return [clean, replace(clean, name=f"{clean.name}-noisy", wrong_labels=0.3)]


def _deployment(model: str, data: str = "fashion-mnist", name: str | None = None, **options: Any) -> Setting:
    return Setting(
        f"deploy-{name or model}",
        data=data,
        model=model,
        **{
            "test": 5000,
            "epochs": 20,
            "methods": DEPLOYMENT_METHODS,
            "robustness_seeds": 0,
            "sharpness_draws": 2,
            "curve_points": 2,
            "deployment": True,
            **options,
        },
    )


def _table(data: str, **options: Any) -> Setting:
    return Setting(
        f"{data}-mlp",
        data=data,
        model="mlp",
        train=1000,
        validation=500,
        epochs=40,
        batch=32,
        rates=(0.01, 0.03),
        methods=WITHOUT_BATCHNORM,
        **options,
    )


#: The settings by name.
SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        *_images("resnet"),
        *_images("cnn", train=6000, epochs=20, methods=WITHOUT_BATCHNORM),
        *_images("mlp", methods=WITHOUT_BATCHNORM),
        *_images("vit", methods=WITHOUT_BATCHNORM),
        Setting(
            "text-transformer",
            data="text",
            model="transformer",
            train=4000,
            validation=500,
            epochs=12,
            batch=32,
            rates=(0.1, 0.3),
            methods=WITHOUT_BATCHNORM,
        ),
        _deployment("mlp"),
        _deployment("cnn-bn"),
        _deployment("resnet"),
        _deployment("vit", methods=DEPLOYMENT_METHODS_ADAMW),
        _deployment(
            "transformer",
            data="text",
            train=4000,
            validation=500,
            test=1000,
            epochs=12,
            batch=32,
            rates=(0.1, 0.3),
            methods=DEPLOYMENT_METHODS_ADAMW,
        ),
        _deployment(
            "vit-pretrained",
            name="finetuned",
            data="fashion-mnist-pretrained",
            train=2000,
            epochs=10,
            batch=50,
            rates=(0.01, 0.03),
            adam_rates=(3e-4, 1e-3),
            methods=DEPLOYMENT_METHODS_ADAMW,
        ),
        _table("breast-cancer"),
        _table("digits"),
        _table("diabetes"),
    )
}
