"""How much noise on the weights changes what a model says: the measures by which noise_std sets itself or is suggested.

Outputs are compared, not losses: they need no labels, have no unit of the task, and a higher clean loss does not make the
measure smaller, which would let the noise run away. Used by schedules.AdaptiveNoiseStd and suggest_noise_std. Tests:
test_adaptive_noise.py, test_suggest.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from torch_ssam import _checks
from torch_ssam.noise.seeds import in_process_group
from torch_ssam.ops.plain_numbers import wide

Measure = Callable[[Any, Any], Any]


def kl(clean: Tensor, noisy: Tensor) -> Tensor:
    r"""Mean over examples of KL(softmax(clean) | softmax(noisy)), in nats; classes are the last dimension.

    >>> float(kl(torch.zeros(4, 2), torch.zeros(4, 2)))
    0.0
    """
    clean, noisy = _pair("kl", clean, noisy)
    if clean.dim() == 0 or clean.shape[-1] < 2:
        raise ValueError(
            f"measure 'kl' got outputs of shape {tuple(clean.shape)}; expected logits with two classes or more in the last "
            "dimension. Give those of one logit z as torch.stack([z, torch.zeros_like(z)], -1); for regression use "
            "measure='mse'."
        )
    p, q = clean.log_softmax(-1), noisy.log_softmax(-1)
    weights = p.exp()
    return torch.where(weights == 0, 0.0, weights * (p - q)).sum(-1).mean()


def mse(clean: Tensor, noisy: Tensor) -> Tensor:
    """Mean squared change over the variance of the clean outputs over examples, the first dimension.

    >>> float(mse(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.5], [2.5]])))
    0.25
    """
    clean, noisy = _pair("mse", clean, noisy)
    if clean.dim() == 0 or len(clean) < 2:
        raise ValueError(
            f"measure 'mse' got outputs of shape {tuple(clean.shape)}; expected two examples or more along the first "
            "dimension, since one has no variance. Give a batch of several."
        )
    return (noisy - clean).square().sum() / (clean - clean.mean(0)).square().sum()


MEASURES: dict[str, Measure] = {"kl": kl, "mse": mse}


def resolve(measure: Any) -> Measure:
    """The function that a measure stands for: one of the names, or a function of (clean, noisy) outputs."""
    if callable(measure):
        return measure  # type: ignore[no-any-return]  # callable() narrows Any to nothing
    if not isinstance(measure, str):
        raise TypeError(
            f"measure is a {type(measure).__name__}; expected 'kl', 'mse' or a function of (clean, noisy) outputs."
        )
    return MEASURES[_checks.one_of("measure", measure, tuple(MEASURES))]


def change(measure: Measure, clean: Any, noisy: Any) -> Tensor:
    """What the measure says, as one number on its device, float64 where that has it."""
    found = measure(clean, noisy)
    if isinstance(found, Tensor) and found.numel() == 1:
        return found.detach().to(wide(found.device)).reshape(())
    if isinstance(found, bool) or not isinstance(found, int | float):
        came = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
        raise TypeError(f"measure gave {came}; expected one number, larger where noise changes more.")
    return torch.tensor(float(found), dtype=torch.float64)


def mean_over_ranks(value: Tensor, device: torch.device) -> float:
    """The mean over the ranks of the default process group, where there is one; NaN on one rank is NaN on all."""
    if in_process_group() and dist.get_world_size() > 1:
        value = value.to(wide(device)).to(device)
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return float(value)


def _pair(name: str, clean: Any, noisy: Any) -> tuple[Tensor, Tensor]:
    """Both outputs in float32 or float64."""
    for outputs in (clean, noisy):
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            came = f"a tensor of {outputs.dtype}" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise TypeError(
                f"measure {name!r} got {came} as outputs; expected one floating-point tensor, such as the model's logits "
                "(of models that return an object, its .logits)."
            )
    if clean.shape != noisy.shape:
        raise ValueError(
            f"the outputs have shape {tuple(clean.shape)} at the clean weights and {tuple(noisy.shape)} at the noisy ones; "
            "expected the same batch at both."
        )
    dtype = torch.float64 if clean.dtype == torch.float64 else torch.float32
    return clean.to(dtype), noisy.to(dtype)
