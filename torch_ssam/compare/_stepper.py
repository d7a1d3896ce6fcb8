"""A method at work on a model: one step of it, whichever it is. Tests: tests/python/test_compare.py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import torch_ssam

from ._analog import AnalogLayers
from ._method import ADAPTIVE, Method
from ._qat import LearnedSteps
from ._sam import SAM

LossOf = Callable[[Tensor, Tensor], Tensor]


class Stepper:
    """A method at work on a model: `step(loss_of, x, y)` until `finish()`.

    The learning rate falls by a cosine to 0 over `steps`. `loss_of(x, y)` gives the mean loss of these examples and is
    called as often as the method takes gradients.
    """

    def __init__(
        self, method: Method, model: nn.Module, options: dict[str, Any], steps: int, seed: int
    ) -> None:
        self.method = method
        params: list[Any] = list(model.parameters())
        self._learned = LearnedSteps(model, method.quantized_bits) if method.quantized_bits else None
        self._taken, self._rounded_from = 0, int(method.quantized_from * steps)
        # torch's fused CPU kernels skip 16-bit weights (pytorch issue 191763).
        fused = all(p.dtype in (torch.float32, torch.float64) for p in params)
        given = {**method.options, **options}
        target = given.pop("target", None)
        looks = {name: given.pop(name) for name in ADAPTIVE if name in given}
        if self._learned is not None:
            params = [{"params": params}, {"params": self._learned.parameters(), "weight_decay": 0.0}]
        if method.weights_only:
            weights, others = ([p for p in params if (p.dim() >= 2) == wanted] for wanted in (True, False))
            params = [{"params": weights}, {"params": others, "noise_std": 0.0}]
        self._analog: AnalogLayers | None = None
        if method.optimizer == "sgd-analog":
            self._analog = AnalogLayers(model, given.pop("noise_std"), given.pop("weight_clip"))
        kept = "noise_std" in given and not any(
            given.get(name) for name in ("samples", "antithetic", "clean_weight")
        )
        self._passes = "noise_std" in given and not kept
        self.optimizer: torch.optim.Optimizer
        if method.optimizer == "ssam":
            self.optimizer = torch_ssam.SSAM(params, momentum=0.9, keep_perturbed=kept, seed=seed, **given)
        elif method.optimizer == "ssam-adamw":
            self.optimizer = torch_ssam.SSAMAdamW(params, keep_perturbed=kept, seed=seed, **given)
        elif method.optimizer == "sam":
            self.optimizer = SAM(params, momentum=0.9, fused=fused, **given)
        elif self._analog is not None:
            self.optimizer = self._analog.optimizer(params, momentum=0.9, fused=fused, **given)
        elif method.optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(params, fused=fused, **given)
        else:
            self.optimizer = torch.optim.SGD(params, momentum=0.9, fused=fused, **given)
        self._schedules: list[Any] = [CosineAnnealingLR(self.optimizer, steps)]
        if method.ramp != 1.0:
            self._schedules.append(
                torch_ssam.schedules.CosineNoiseStd(self.optimizer, max(1, steps - 1), method.ramp)
            )
        if method.rise:
            last = method.rise * steps
            self._schedules.append(
                torch_ssam.schedules.LambdaNoiseStd(self.optimizer, lambda step: min(1.0, step / last))
            )
        self._model = model
        self._adaptive = (
            None if target is None else torch_ssam.schedules.AdaptiveNoiseStd(self.optimizer, target, **looks)
        )
        if kept:
            self._noisy().train()

    def _noisy(self) -> Any:
        return self.optimizer

    def step(self, loss_of: LossOf, x: Tensor, y: Tensor) -> Tensor:
        """One step on the batch (x, y); the mean loss over its gradients, detached."""
        if self._learned is not None and self._taken == self._rounded_from:
            self._learned.start()
        self._taken += 1
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
        if self._adaptive is not None:
            self._adaptive.step(lambda: self._model(x))
        return total

    def clean(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which the model holds the clean weights."""
        if hasattr(self.optimizer, "clean_weights"):
            return self._noisy().clean_weights()  # type: ignore[no-any-return]
        if self._analog is not None:
            return self._analog.clean()
        return contextlib.nullcontext()

    def finish(self) -> None:
        """Puts the clean weights into the model: the rounded ones where training was quantisation-aware."""
        if hasattr(self.optimizer, "eval"):
            self._noisy().eval()
        if self._learned is not None:
            self._learned.finish()
        if self._analog is not None:
            self._analog.finish()
