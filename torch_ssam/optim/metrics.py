"""What the noise does now, as numbers to log: how large it is beside the weights, what is rounded away, what the loss rises by.

Summed a tensor at a time in float64 (float32 on MPS) and read once at the end. Tests: test_metrics.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_ssam.noise.members import Group
from torch_ssam.ops import plain_numbers
from torch_ssam.optim.clean_weights import Owner
from torch_ssam.optim.outputs import check_not_captured, clean_and_noisy


def all_metrics(optimizer: Owner, loss: Callable[[], Any] | None) -> dict[str, float]:
    """Of the noise, and with a function also of the loss."""
    if loss is not None and not callable(loss):
        raise TypeError(
            f"loss is a {type(loss).__name__}; expected a function without arguments that gives it, such as "
            "lambda: criterion(model(x), y), or None."
        )
    check_not_captured(optimizer)
    optimizer._settle()
    found = _of_the_noise(optimizer)
    if loss is not None:
        clean, noisy = map(_number, clean_and_noisy(optimizer, loss))
        found |= {"clean_loss": clean, "noisy_loss": noisy, "loss_rise": noisy - clean}
    return found | optimizer._gradient_norms.read()


@torch.no_grad()
def _of_the_noise(optimizer: Owner) -> dict[str, float]:
    sums: dict[
        torch.device, Tensor
    ] = {}  # of squares of the noise, of squares of the weights, of weights that stay
    count = 0
    for group, members in optimizer._noise.placed():
        if float(group["noise_std"]) != 0.0:
            for p, place in zip(members.params, members.places, strict=True):
                one = _sums(optimizer, group, p, place)
                sums[one.device] = sums.get(one.device, torch.zeros_like(one)) + one
                count += p.numel()
    largest = max((float(group["noise_std"]) for group in optimizer.param_groups), default=0.0)
    noise, weights, stay = sum(
        (one.cpu() for one in sums.values()), torch.zeros(3, dtype=torch.float64)
    ).tolist()
    return {
        "noise_std": largest,
        "noise_to_weight": (noise / weights) ** 0.5 if weights else float("inf") if noise else 0.0,
        "noise_rounded_away": stay / max(count, 1),
    }


def _sums(optimizer: Owner, group: Group, param: Tensor, place: int) -> Tensor:
    state = optimizer._noise
    clean = state.clean_of(param).detach()
    noisy = (
        param.detach()
        if state.is_applied(param)
        else state.noise_of(group, param, place, 0, noise_only=False)
    )
    noisy = noisy.to(param.dtype)
    wide = torch.float64 if clean.dtype == torch.float64 else torch.float32
    noise = noisy.to(wide) - clean.to(wide)
    most = plain_numbers.wide(clean.device)
    parts = [
        noise.square().sum(dtype=most),
        clean.to(wide).square().sum(dtype=most),
        (noisy == clean.to(param.dtype)).sum(dtype=most),
    ]
    return torch.stack([_whole(part) for part in parts])


def _whole(value: Any) -> Tensor:
    """The sum over all ranks' shards, where there are any."""
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole


def _number(loss: Any) -> float:
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return float(loss)
    if isinstance(loss, bool) or not isinstance(loss, int | float):
        came = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise TypeError(f"loss gave {came}; expected one number.")
    return float(loss)
