"""The methods that are compared: what each is, what its grid varies, and one step of it.

A method is data, so that records know what they were made by. Every grid has the same size: the setting's
learning rates times the first values of the method's own knob. Tests: tests/python/test_compare.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import torch_ssam
from torch_ssam import _checks

from ._sam import SAM

LossOf = Callable[[Tensor, Tensor], Tensor]

OPTIMIZERS = ("sgd", "sam", "ssam", "adamw", "adamw-noise")


@dataclass(frozen=True)
class Method:
    """An optimizer with its fixed options, and the knob that is tuned beside its learning rate.

    Args:
        name: what the command line and the records call it.
        title: what the report calls it.
        optimizer: "sgd", "sam" (`SAM`), "ssam" (`torch_ssam.SSAM`), "adamw" or "adamw-noise"
            (`torch_ssam.wrap` of AdamW).
        knob: the option that the grid varies: "weight_decay", "rho" or "noise_std".
        values: its three values, the first the best guess: a grid of fewer takes the first ones.
        options: fixed options of the optimizer.
        gradients: gradients taken of each example in an epoch; epochs are divided by it, so that all methods
            have the same budget of gradients.
        budget: gradients allowed as a multiple of the others'; 2 for SAM with as many epochs as SGD.
        ramp: noise_std grows by this factor over training (LPF-SGD's cosine); 1 for no change.
        split: each batch is split over the draws (`perturbations(x, y)`).
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
    source: str = ""

    @property
    def is_ssam(self) -> bool:
        """Whether noise is put on the weights of SGD."""
        return self.optimizer == "ssam" and self.knob == "noise_std"

    def __post_init__(self) -> None:
        _checks.one_of("optimizer", self.optimizer, OPTIMIZERS)
        _checks.one_of("knob", self.knob, ("weight_decay", "rho", "noise_std"))
        if len(self.values) != 3:
            raise ValueError(f"values are {self.values}; expected three, so that every method has as many.")
        _checks.count("gradients", self.gradients)
        _checks.number("budget", self.budget, open_low=True)
        _checks.number("ramp", self.ramp)

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
        return {
            "optimizer": self.optimizer,
            "fixed": dict(sorted(self.options.items())),
            "ramp": self.ramp,
            "split": self.split,
        }


_WEIGHT_DECAYS = (5e-4, 3e-3, 1e-2)
_RHOS = (0.1, 0.3, 0.05)
_STDS = (0.03, 0.015, 0.06)
_FILTER_STDS = (0.003, 0.006, 0.0015)
_LPF = {"scale": "filter"}

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


class Stepper:
    """A method at work on a model: `step(loss_of, x, y)` until `finish()`.

    The learning rate falls by a cosine to 0 over `steps`. `loss_of(x, y)` gives the mean loss of these examples and is
    called as often as the method takes gradients.
    """

    def __init__(
        self, method: Method, model: nn.Module, options: dict[str, Any], steps: int, seed: int
    ) -> None:
        self.method = method
        params = list(model.parameters())
        # torch's fused CPU kernels skip 16-bit weights (pytorch issue 191763).
        fused = all(p.dtype in (torch.float32, torch.float64) for p in params)
        given = {**method.options, **options}
        kept = "noise_std" in given and not any(
            given.get(name) for name in ("samples", "antithetic", "clean_weight")
        )
        self._passes = "noise_std" in given and not kept
        self.optimizer: torch.optim.Optimizer
        if method.optimizer == "ssam":
            self.optimizer = torch_ssam.SSAM(params, momentum=0.9, keep_perturbed=kept, seed=seed, **given)
        elif method.optimizer == "adamw-noise":
            noise = {name: given.pop(name) for name in ("noise_std", "scale", "samples") if name in given}
            base = torch.optim.AdamW(params, fused=fused, **given)
            self.optimizer = torch_ssam.wrap(base, keep_perturbed=kept, seed=seed, **noise)
        elif method.optimizer == "sam":
            self.optimizer = SAM(params, momentum=0.9, fused=fused, **given)
        elif method.optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(params, fused=fused, **given)
        else:
            self.optimizer = torch.optim.SGD(params, momentum=0.9, fused=fused, **given)
        self._schedules: list[Any] = [CosineAnnealingLR(self.optimizer, steps)]
        if method.ramp != 1.0:
            self._schedules.append(
                torch_ssam.schedules.CosineNoiseStd(self.optimizer, max(1, steps - 1), method.ramp)
            )
        if kept:
            self._noisy().train()

    def _noisy(self) -> Any:
        return self.optimizer

    def step(self, loss_of: LossOf, x: Tensor, y: Tensor) -> Tensor:
        """One step on the batch (x, y); the mean loss over its gradients, detached."""
        if self.method.split:
            self.optimizer.zero_grad()
            total = torch.zeros(())
            for x_k, y_k in self._noisy().perturbations(x, y):
                loss = loss_of(x_k, y_k)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach() * (len(y_k) / len(y))
            self.optimizer.step()
        elif self._passes or isinstance(self.optimizer, SAM):

            def closure() -> Tensor:
                self.optimizer.zero_grad()
                loss = loss_of(x, y)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            total = self._noisy().step(closure).detach()
        else:
            self.optimizer.zero_grad()
            loss = loss_of(x, y)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total = loss.detach()
        for schedule in self._schedules:
            schedule.step()
        return total

    def clean(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which the model holds the clean weights."""
        if hasattr(self.optimizer, "clean_weights"):
            return self._noisy().clean_weights()  # type: ignore[no-any-return]
        return contextlib.nullcontext()

    def finish(self) -> None:
        """Puts the clean weights into the model."""
        if hasattr(self.optimizer, "eval"):
            self._noisy().eval()
