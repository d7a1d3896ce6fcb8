"""The methods that are compared: what each is, and what its grid varies. `_stepper` takes their steps.

A method is data, so that records know what they were made by. Every grid has the same size: the setting's
learning rates times the first values of the method's own knob. Tests: tests/python/test_compare.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch_ssam import _checks

OPTIMIZERS = ("sgd", "sam", "ssam", "adamw", "adamw-noise", "ssam-adamw")
KNOBS = ("weight_decay", "rho", "noise_std", "weight_clip", "target")


@dataclass(frozen=True)
class Method:
    """An optimizer with its fixed options, and the knob that is tuned beside its learning rate.

    Args:
        name: what the command line and the records call it.
        title: what the report calls it.
        optimizer: "sgd", "sam" (`SAM`), "ssam" (`torch_ssam.SSAM`), "adamw", "adamw-noise"
            (`torch_ssam.wrap` of AdamW) or "ssam-adamw" (`torch_ssam.SSAMAdamW`).
        knob: the option that the grid varies: "weight_decay", "rho", "noise_std", "weight_clip" or "target", of
            `schedules.AdaptiveNoiseStd`, which then sets the noise.
        values: its three values, the first the best guess: a grid of fewer takes the first ones.
        options: fixed options of the optimizer.
        also: for each of the three values, further options that the grid varies with it; empty for none.
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
    values: tuple[float, float, float]
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
    def is_ssam(self) -> bool:
        """Whether noise is put on the weights of SGD."""
        return self.optimizer == "ssam" and self.knob in ("noise_std", "target")

    def __post_init__(self) -> None:
        _checks.one_of("optimizer", self.optimizer, OPTIMIZERS)
        _checks.one_of("knob", self.knob, KNOBS)
        if len(self.values) != 3 or len(self.also) not in (0, 3):
            raise ValueError(
                f"values are {self.values} and also {self.also}; expected three each (also: or none), so that every method "
                "has as many."
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
        """What the grid varies beside the learning rate: three points, the first the best guess.

        >>> METHODS["sgd-clip"].points[0]
        {'weight_clip': 2.0, 'weight_decay': 0.0005}
        """
        more = self.also or ({},) * len(self.values)
        return [{self.knob: value, **extra} for value, extra in zip(self.values, more, strict=True)]

    def __hash__(self) -> int:
        return hash(self.name)  # options, a dict, have no hash

    def epochs(self, sgd_epochs: int) -> int:
        """Epochs at the budget of gradients that SGD has in `sgd_epochs`, at least 1.

        >>> METHODS["sam"].epochs(30), METHODS["sam-double"].epochs(30), METHODS["ssam-split"].epochs(30)
        (15, 30, 30)
        """
        return max(1, int(sgd_epochs * self.budget / self.gradients))

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


_WEIGHT_DECAYS = (5e-4, 3e-3, 1e-2)
_RHOS = (0.1, 0.3, 0.05)
_STDS = (0.03, 0.015, 0.06)
_FILTER_STDS = (0.003, 0.006, 0.0015)
_LPF = {"scale": "filter"}
_CLIPS = (2.0, 2.0, 1.5)
#: Weight decay beside each of _CLIPS.
_CLIPPED_DECAYS = ({"weight_decay": 5e-4}, {"weight_decay": 3e-3}, {"weight_decay": 3e-3})
_ADAMW_DECAYS = ({"weight_decay": 1e-2}, {"weight_decay": 1e-1}, {"weight_decay": 1e-1})
_RANGE = {"scale": "absmax"}
#: Nats.
_TARGETS = (0.05, 0.1, 0.02)

#: The methods by name. Values of the knobs were written down before a run of this comparison, by the figures that the
#: papers and earlier trials on Fashion-MNIST gave.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("sgd", "SGD", "sgd", "weight_decay", _WEIGHT_DECAYS),
        Method(
            "sgd-split",
            "SGD, batch in 4 parts (control)",
            "ssam",
            "weight_decay",
            _WEIGHT_DECAYS,
            {"noise_std": 0.0, "samples": 4},
            split=True,
            source="control: BatchNorm sees a quarter of the batch, as in S-SAM with 4 draws, without noise",
        ),
        Method("sam", "SAM, half the epochs", "sam", "rho", _RHOS, gradients=2, source="arXiv 2010.01412"),
        Method(
            "sam-double",
            "SAM, all epochs (2x gradients)",
            "sam",
            "rho",
            _RHOS,
            gradients=2,
            budget=2.0,
            source="arXiv 2010.01412",
        ),
        Method("ssam", "S-SAM isotropic", "ssam", "noise_std", _STDS, source="arXiv 2503.11891"),
        Method(
            "ssam-split",
            "S-SAM isotropic, 4 draws",
            "ssam",
            "noise_std",
            _STDS,
            {"samples": 4},
            split=True,
            source="arXiv 2503.11891; batch split of LPF-SGD",
        ),
        Method(
            "ssam-filter",
            "S-SAM filter, ramp 11",
            "ssam",
            "noise_std",
            _FILTER_STDS,
            _LPF,
            ramp=11.0,
            source="LPF-SGD's noise and schedule (arXiv 2201.08025), one draw",
        ),
        Method(
            "ssam-filter-split",
            "S-SAM filter, ramp 11, 4 draws",
            "ssam",
            "noise_std",
            _FILTER_STDS,
            {**_LPF, "samples": 4},
            ramp=11.0,
            split=True,
            source="LPF-SGD (arXiv 2201.08025)",
        ),
        Method("adamw", "AdamW", "adamw", "weight_decay", (1e-2, 1e-1, 1e-3), source="arXiv 1711.05101"),
        Method(
            "adamw-noise",
            "AdamW with noise (wrap)",
            "adamw-noise",
            "noise_std",
            (0.01, 0.03, 0.003),
            {"weight_decay": 1e-2},
            source="torch_ssam.wrap",
        ),
        Method(
            "ssam-tensor",
            "S-SAM tensor, ramp 11",
            "ssam",
            "noise_std",
            (0.001, 0.002, 0.0005),
            {"scale": "tensor"},
            ramp=11.0,
            source="noise in proportion to each tensor's norm",
        ),
        Method(
            "ssam-element",
            "S-SAM element",
            "ssam",
            "noise_std",
            (0.3, 0.6, 0.15),
            {"scale": "element"},
            source="ASAM's operator (arXiv 2102.11600)",
        ),
        Method(
            "ssam-fisher",
            "S-SAM Fisher, ramp 11",
            "ssam",
            "noise_std",
            (0.006, 0.012, 0.003),
            {"scale": "fisher"},
            ramp=11.0,
            source="ARWP (arXiv 2404.00357)",
        ),
        Method(
            "ssam-antithetic",
            "S-SAM, +noise and -noise",
            "ssam",
            "noise_std",
            _STDS,
            {"antithetic": True},
            gradients=2,
            source="NSO (arXiv 2306.08553)",
        ),
        Method(
            "ssam-clean",
            "S-SAM, half the gradient clean",
            "ssam",
            "noise_std",
            _STDS,
            {"clean_weight": 0.5},
            gradients=2,
            source="m-RWP (arXiv 2211.11489)",
        ),
        Method(
            "sgd-clip",
            "SGD, clipped",
            "ssam",
            "weight_clip",
            _CLIPS,
            {"noise_std": 0.0},
            also=_CLIPPED_DECAYS,
            source="control: S-SAM's weight_clip without noise",
        ),
        Method(
            "sam-clip",
            "SAM, half the epochs, clipped",
            "sam",
            "rho",
            _RHOS,
            gradients=2,
            also=tuple({"weight_clip": clip} for clip in _CLIPS),
            source="arXiv 2010.01412, with weight_clip",
        ),
        Method(
            "ssam-clip",
            "S-SAM isotropic, clipped",
            "ssam",
            "noise_std",
            (0.05, 0.03, 0.05),
            also=tuple({"weight_clip": clip} for clip in _CLIPS),
            rise=0.5,
            weights_only=True,
            source="noise of one size on every weight, with weight_clip",
        ),
        Method(
            "ssam-deploy",
            "S-SAM, range noise, clipped",
            "ssam",
            "noise_std",
            (0.3, 0.2, 0.3),
            _RANGE,
            also=tuple({"weight_clip": clip} for clip in _CLIPS),
            rise=0.5,
            weights_only=True,
            source="noise in proportion to each filter's largest weight, as analog training toolkits have it",
        ),
        Method(
            "ssam-adaptive",
            "S-SAM, range noise that sets itself, clipped",
            "ssam",
            "target",
            _TARGETS,
            {**_RANGE, "noise_std": 0.02, "weight_clip": 2.0},
            weights_only=True,
            source="torch_ssam.schedules.AdaptiveNoiseStd, KL of clean and noisy predictions, every 10 steps",
        ),
        Method(
            "adamw-adaptive",
            "AdamW, range noise that sets itself, clipped",
            "ssam-adamw",
            "target",
            _TARGETS,
            {**_RANGE, "noise_std": 0.02, "weight_clip": 2.0, "weight_decay": 1e-1},
            weights_only=True,
            source="torch_ssam.schedules.AdaptiveNoiseStd, KL of clean and noisy predictions, every 10 steps",
        ),
        Method(
            "adamw-clip",
            "AdamW, clipped",
            "ssam-adamw",
            "weight_clip",
            _CLIPS,
            {"noise_std": 0.0},
            also=_ADAMW_DECAYS,
            source="control: weight_clip without noise",
        ),
        Method(
            "adamw-deploy",
            "AdamW, range noise, clipped",
            "ssam-adamw",
            "noise_std",
            (0.2, 0.1, 0.3),
            {**_RANGE, "weight_decay": 1e-1, "weight_clip": 2.0},
            rise=0.5,
            weights_only=True,
            source="torch_ssam.SSAMAdamW, noise in proportion to each filter's largest weight",
        ),
        Method(
            "qat",
            "SGD, trained for 2 bits (LSQ)",
            "sgd",
            "weight_decay",
            _WEIGHT_DECAYS,
            quantized_bits=2,
            source="LSQ (arXiv 1902.08153), a step for each filter",
        ),
        Method(
            "qat-tuned",
            "SGD, then trained for 2 bits (LSQ)",
            "sgd",
            "weight_decay",
            _WEIGHT_DECAYS,
            quantized_bits=2,
            quantized_from=0.5,
            source="LSQ (arXiv 1902.08153) in the second half of the steps",
        ),
        Method(
            "adamw-qat",
            "AdamW, trained for 2 bits (LSQ)",
            "adamw",
            "weight_decay",
            (1e-2, 1e-1, 1e-3),
            quantized_bits=2,
            source="LSQ (arXiv 1902.08153)",
        ),
    )
}

#: What a comparison runs unless methods are named.
DEFAULT_METHODS = (
    "sgd",
    "sgd-split",
    "sam",
    "sam-double",
    "ssam",
    "ssam-split",
    "ssam-filter",
    "ssam-filter-split",
    "adamw",
    "adamw-noise",
)
