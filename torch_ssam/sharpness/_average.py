"""Average sharpness by Monte Carlo over WeightNoise. Tests: tests/python/test_sharpness.py, test_sharpness_models.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from torch_ssam import _checks
from torch_ssam._common.measured_model import add_noise
from torch_ssam.noise import parameters
from torch_ssam.noise.options import Distribution, Scale

from ._estimate import Floats, Plan
from ._evaluate import Data, Evaluator, LossFunction, Mode, finite, measuring_noise


@dataclass(frozen=True)
class AverageSharpness:
    """E L(w + xi) - L(w), estimated; see `average`."""

    #: The estimate, in units of the loss.
    mean: float
    #: Half the width of its confidence interval.
    half_width: float
    confidence: float
    #: Independent draws of noise; each is evaluated twice if antithetic.
    draws: int
    #: Whether the precision asked for was reached (True where none was asked for).
    converged: bool
    #: L(w) at the clean weights; where the model draws random numbers, its mean over the draws.
    loss: float
    noise_std: float
    distribution: str
    antithetic: bool
    #: The value of every draw; with one seed, runs on two models see the same noise and may be paired.
    values: Floats

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the confidence interval."""
        return self.mean - self.half_width, self.mean + self.half_width

    def __str__(self) -> str:
        text = (
            f"average sharpness {self.mean:.4g} +- {self.half_width:.2g} "
            f"({100 * self.confidence:g}%, {self.draws} draws, noise_std {self.noise_std:g})"
        )
        return text if self.converged else text + "; the precision asked for was not reached"


def average(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    noise_std: float,
    *,
    precision: float | None = None,
    confidence: float = 0.95,
    samples: int = 16,
    max_samples: int = 1000,
    antithetic: bool = True,
    distribution: Distribution = "gaussian",
    scale: Scale = "isotropic",
    params: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    seed: int | None = 0,
    mode: Mode = "eval",
    progress: bool | Callable[[int, int], object] | None = None,
) -> AverageSharpness:
    """Average sharpness S_avg(w) = E L(w + xi) - L(w), xi ~ noise of standard deviation noise_std.

    The measure of arXiv 2503.11891; to second order it is noise_std^2 / 2 times `hessian_trace`. Every draw is
    [L(w + xi) + L(w - xi)] / 2 - L(w) if antithetic, which is free of the gradient's part of the noise, else
    L(w + xi) - L(w). The interval is Student's; to a precision, by Stein's two stages (see `_estimate`): the
    variance of the first `samples` draws decides how many follow.

    Where the model draws random numbers (dropout in train mode), the losses of one draw are taken with the same
    ones, and each draw has new ones: what is averaged is the rise of the loss, without the noise of the model.

    Args:
        model, loss_fn, data: the loss is the mean over the data of loss_fn(model(inputs), targets), a mean
            over each batch; batches count by the length of their targets. data gives the same examples every
            time it is read, in any order: no augmentation, no drop_last with shuffling.
        noise_std: >= 0, in units of the weights.
        precision: half-width to reach, > 0, in units of the loss; None for `samples` draws.
        confidence: of the interval, in (0, 1).
        samples: draws; with a precision, those of the first stage. At least 2.
        max_samples: most draws that a precision may take.
        antithetic, distribution, scale: of the noise, as in `SSAM`.
        params: tensors to put noise on, or parameter groups with a noise_std of their own; None for all of
            the model's that require gradients.
        seed: of the noise: the same noise for every model of the same shapes. None takes one from torch. The
            noise is not that of an `SSAM` of the same seed, which would bias the estimate for the weights that
            it trained.
        mode: "eval" (dropout off, BatchNorm with its running statistics) or "train" (dropout drawn, BatchNorm
            with the statistics of each batch, as in training).
        progress: True for a tqdm bar, or a function of (draws done, draws to do).

    Returns: AverageSharpness. The model is afterwards what it was, also after an exception, and whatever it wrote to itself:
    weights and buffers bit for bit, flags, `.grad`, and torch's random generators (CPU, and CUDA devices in use).
    That takes one copy of all parameters and buffers.
    Raises: TypeError, ValueError: arguments that make no sense; a loss that is not one finite number.

    >>> import torch, torch_ssam
    >>> layer = torch_ssam.DiagonalLinear(1, init_scale=1.0)  # S_avg = (1 + eta^2)^2 - 1 = 0.0603
    >>> x, y = torch.ones(1, 1), torch.ones(1, 1)
    >>> result = average(layer, torch.nn.functional.mse_loss, [(x, y)], 0.1724, precision=0.01)
    >>> abs(result.mean - 0.0603) < 0.01 and result.half_width <= 0.01
    True
    """
    given = None if params is None else parameters.parameter_list(params)
    evaluator = Evaluator(model, loss_fn, data, None if given is None else _tensors(given), mode)
    plan = Plan.of(samples, max_samples, precision, confidence)
    antithetic = _checks.flag("antithetic", antithetic)
    noise = measuring_noise(
        evaluator.params if given is None else given,
        noise_std,
        seed,
        distribution=distribution,
        scale=scale,
    )
    generators = evaluator.generators
    clean: list[float] = []

    def clean_loss(watch: bool = False) -> None:
        loss = evaluator.loss(watch=watch)
        clean.append(finite(loss, "at the clean weights", "Check the model and the data."))

    with evaluator.ready():
        start = generators.state()
        clean_loss(watch=True)

        def draw(i: int) -> Floats:
            state = start
            if i > 0 and evaluator.random:
                state = generators.state()  # after the last evaluation: new random numbers
                clean_loss()
            losses = []
            for negate in (False, True) if antithetic else (False,):
                generators.set(state)
                losses.append(
                    evaluator.loss(add_noise(noise, negate=negate, advance=negate or not antithetic))
                )
            return np.asarray(
                finite(float(np.mean(losses)), f"under draw {i} of the noise", "Lower noise_std.") - clean[-1]
            )

        values, half, converged = plan.run(draw, progress, "draw")
    return AverageSharpness(
        mean=float(values.mean()),
        half_width=float(half),
        confidence=plan.confidence,
        draws=len(values),
        converged=converged,
        loss=float(np.mean(clean)),
        noise_std=float(noise_std),
        distribution=distribution,
        antithetic=antithetic,
        values=values,
    )


def _tensors(params: list[Any]) -> list[Any]:
    """The tensors of a list of them, or of parameter groups."""
    return [t for p in params for t in (parameters.group_params(p) if isinstance(p, dict) else [p])]
