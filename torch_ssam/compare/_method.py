"""What a method of a comparison is: an optimizer with fixed options, and what its grid varies.

A method is data, so that records know what they were made by. Every grid has the same size: the setting's
learning rates times the first values of the method's own knob. `_methods` lists them, `_stepper` takes their steps.
Tests: tests/python/test_compare.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch_ssam import _checks

OPTIMIZERS = ("sgd", "sam", "ssam", "adamw", "ssam-adamw", "sgd-analog")
#: Options of `schedules.AdaptiveNoiseStd` that a method may have beside its knob, the target.
ADAPTIVE = ("measure", "every", "rate")
KNOBS = ("weight_decay", "rho", "noise_std", "weight_clip", "target")


@dataclass(frozen=True)
class Method:
    """An optimizer with its fixed options, and the knob that is tuned beside its learning rate.

    Args:
        name: what the command line and the records call it.
        title: what the report calls it.
        optimizer: "sgd", "sam" (`SAM`), "ssam" (`torch_ssam.SSAM`), "adamw", "ssam-adamw"
            (`torch_ssam.SSAMAdamW`) or "sgd-analog" (SGD over the layers of aihwkit-lightning, which has to be
            installed).
        knob: the option that the grid varies: "weight_decay", "rho", "noise_std", "weight_clip" or "target", of
            `schedules.AdaptiveNoiseStd`, which then sets the noise.
        values: its values, three or more, the first the best guess: a grid of fewer takes the first ones.
        options: fixed options of the optimizer; with the knob "target" also of `AdaptiveNoiseStd` ("measure", "every",
            "rate").
        also: for each of the values, further options that the grid varies with it; empty for none.
        gradients: gradients taken of each example in an epoch; epochs are divided by it, so that all methods
            have the same budget of gradients.
        budget: gradients allowed as a multiple of the others'; 2 for SAM with as many epochs as SGD.
        ramp: noise_std grows by this factor over training (LPF-SGD's cosine); 1 for no change.
        split: each batch is split over the draws (`perturbations(x, y)`).
        rise: noise_std rises linearly from 0 over this share of the steps; 0 for from the start.
        weights_only: noise on weights of two dimensions and more alone, as deployment disturbs them; biases and norms have none.
        quantized_bits: training is quantisation-aware at so many bits (`LearnedSteps`); 0 for not.
        quantized_from: share of the steps before the weights are rounded in it.
        source: where the method is from.
    """

    name: str
    title: str
    optimizer: str
    knob: str
    values: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)
    gradients: int = 1
    budget: float = 1.0
    ramp: float = 1.0
    split: bool = False
    rise: float = 0.0
    weights_only: bool = False
    quantized_bits: int = 0
    quantized_from: float = 0.0
    also: tuple[dict[str, float], ...] = ()
    source: str = ""

    @property
    def is_noisy(self) -> bool:
        """Whether it trains with noise, as its controls do not."""
        return self.knob in ("noise_std", "target")

    @property
    def is_ssam(self) -> bool:
        """Whether noise is put on the weights of SGD."""
        return self.optimizer == "ssam" and self.is_noisy

    def __post_init__(self) -> None:
        _checks.one_of("optimizer", self.optimizer, OPTIMIZERS)
        _checks.one_of("knob", self.knob, KNOBS)
        if len(self.values) < 3 or len(self.also) not in (0, len(self.values)):
            raise ValueError(
                f"values are {self.values} and also {self.also}; expected three each or more (also: or none), so that every "
                "method has as many."
            )
        for name in (name for more in self.also for name in more):
            _checks.one_of("an option in also", name, KNOBS)
        _checks.count("gradients", self.gradients)
        _checks.number("budget", self.budget, open_low=True)
        _checks.number("ramp", self.ramp)
        for name in ("rise", "quantized_from"):
            if not 0 <= _checks.number(name, getattr(self, name)) < 1:
                raise ValueError(f"{name} is {getattr(self, name):g}; expected a share from 0 to below 1.")
        if _checks.count("quantized_bits", self.quantized_bits, low=0, high=16) == 1:
            raise ValueError("quantized_bits is 1; expected 2 to 16, or 0 for none.")

    @property
    def points(self) -> list[dict[str, float]]:
        """What the grid varies beside the learning rate: a point a value, the first the best guess.

        >>> from torch_ssam.compare import METHODS
        >>> METHODS["sgd-clip"].points[0]
        {'weight_clip': 2.0, 'weight_decay': 0.0005}
        """
        more = self.also or ({},) * len(self.values)
        return [{self.knob: value, **extra} for value, extra in zip(self.values, more, strict=True)]

    def __hash__(self) -> int:
        return hash(self.name)  # options, a dict, have no hash

    def epochs(self, sgd_epochs: int) -> int:
        """Epochs at the budget of gradients that SGD has in `sgd_epochs`, at least 1.

        >>> from torch_ssam.compare import METHODS
        >>> METHODS["sam"].epochs(30), METHODS["sam-double"].epochs(30), METHODS["ssam-split"].epochs(30)
        (15, 30, 30)
        """
        return max(1, int(sgd_epochs * self.budget / self.gradients))

    def call(self, chosen: dict[str, Any]) -> str:
        """The optimizer with its fixed and these options, as a line of Python, and what goes with it.

        >>> from torch_ssam.compare import METHODS
        >>> METHODS["ssam"].call({"lr": 0.1, "noise_std": 0.03, "weight_decay": 0.0005})
        'SSAM(params, lr=0.1, momentum=0.9, noise_std=0.03, weight_decay=0.0005)'
        >>> METHODS["ssam-filter"].call({"lr": 0.1, "noise_std": 0.003})
        "SSAM(params, lr=0.1, momentum=0.9, noise_std=0.003, scale='filter'), CosineNoiseStd of factor 11"
        """
        given = {**chosen, **self.options}
        target = given.pop("target", None)
        looks = {name: given.pop(name) for name in ADAPTIVE if name in given}
        if "adamw" not in self.optimizer:
            given = {"lr": given.pop("lr", None), "momentum": 0.9, **given}
        noise: dict[str, Any] = {
            name: given.pop(name) for name in ("noise_std", "scale", "samples") if name in given
        }

        def listed(options: dict[str, Any]) -> str:
            return "".join(
                f", {name}={value:g}" if isinstance(value, float) else f", {name}={value!r}"
                for name, value in options.items()
            )

        words = {
            "sgd": f"SGD(params{listed(given)})",
            "sam": f"SAM(params{listed(given)})",
            "ssam": f"SSAM(params{listed(_after_lr(given, noise))})",
            "adamw": f"AdamW(params{listed(given)})",
            "ssam-adamw": f"SSAMAdamW(params{listed(_after_lr(given, noise))})",
            "sgd-analog": f"aihwkit-lightning's SGD(params{listed(_after_lr(given, noise))})",
        }[self.optimizer]
        return ", ".join(
            [
                words,
                *(["perturbations(x, y)"] if self.split else []),
                *([f"CosineNoiseStd of factor {self.ramp:g}"] if self.ramp != 1 else []),
                *([f"noise that rises over {self.rise:.0%} of the steps"] if self.rise else []),
                *([f"AdaptiveNoiseStd of target {target:g}{listed(looks)}"] if target is not None else []),
                *(["noise on weights of two dimensions and more"] if self.weights_only else []),
                *([f"LSQ at {self.quantized_bits} bits"] if self.quantized_bits else []),
            ]
        )

    def identity(self) -> dict[str, Any]:
        """What decides its results: all but names and the grid."""
        found = {
            "optimizer": self.optimizer,
            "fixed": dict(sorted(self.options.items())),
            "ramp": self.ramp,
            "split": self.split,
        }
        for name in ("rise", "weights_only", "quantized_bits", "quantized_from"):
            if getattr(self, name):  # records made before there were these are found again
                found[name] = getattr(self, name)
        return found


def _after_lr(given: dict[str, Any], noise: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = {name: given[name] for name in ("lr", "momentum") if name in given}
    return {**first, **noise, **given}
