"""Isotropic noise that is large beside the weights it is put on: said once, with the tensor's name, before it drowns them.

noise_std has the unit of the weights, and layers differ in size by orders of magnitude. The weights are looked at in a
group's first pass and again where its noise_std has doubled; else a comparison of two numbers is all. Tests:
test_noise_size.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from torch_ssam.noise.members import Group, Members
from torch_ssam.ops.dtensor import local_of
from torch_ssam.ops.plain_numbers import wide

LARGE = 0.5  # noise_std over the root mean square of a tensor's weights


class NoiseSize:
    """Remembers for each group up to which noise_std its weights were looked at."""

    def __init__(self) -> None:
        self._limits: list[float] = []

    def knows(self, group: Group) -> bool:
        """Whether the only group's weights need no look."""
        limits = self._limits
        return len(limits) == 1 and (float(group["noise_std"]) <= limits[0] or group["scale"] != "isotropic")

    def look(self, placed: list[tuple[Group, Members]], clean_of: Callable[[Tensor], Tensor]) -> None:
        """Warns of tensors of two or more dimensions, not all zero, whose noise is above half of their RMS weight."""
        limits = self._limits
        if len(limits) != len(placed):
            limits += [0.0] * (len(placed) - len(limits))
            del limits[len(placed) :]
        for i, (group, members) in enumerate(placed):
            std = float(group["noise_std"])
            if std > limits[i] and group["scale"] == "isotropic" and not capturing(members):
                limits[i] = 2.0 * std  # first: a warning may be an error
                _warn(group, members, std, clean_of)


def capturing(members: Members) -> bool:
    """Whether the tensors' kernels are being recorded into a CUDA graph, which nobody can look into."""
    return any([p.is_cuda for p in members.params]) and torch.cuda.is_current_stream_capturing()


def _wide(w: Tensor) -> torch.dtype:
    return torch.float64 if w.dtype == torch.float64 else torch.float32


def _root_mean_squares(
    members: Members, clean_of: Callable[[Tensor], Tensor]
) -> list[tuple[Tensor, int, float]]:
    """Tensors with their places; of a DTensor this rank's part, since nothing here may wait for other ranks."""
    found: list[tuple[Tensor, int, float]] = []
    for _, part in members.by_device():
        chosen = [
            (p, place, local_of(clean_of(p).detach()))
            for p, place in zip(part.params, part.places, strict=True)
            if p.dim() >= 2 and p.requires_grad
        ]
        chosen = [
            one
            for one in chosen
            if one[2].numel() and not one[2].is_meta and not hasattr(one[2], "fake_mode")
        ]
        if not chosen:
            continue
        norms = torch.stack(
            [torch.linalg.vector_norm(w, dtype=_wide(w)).to(wide(w.device)) for _, _, w in chosen]
        ).tolist()
        found += [
            (p, place, norm / w.numel() ** 0.5) for (p, place, w), norm in zip(chosen, norms, strict=True)
        ]
    return found


@torch.no_grad()
def _warn(group: Group, members: Members, std: float, clean_of: Callable[[Tensor], Tensor]) -> None:
    large = [one for one in _root_mean_squares(members, clean_of) if 0.0 < one[2] < std / LARGE]
    if not large:
        return
    large.sort(key=lambda one: one[2])
    p, place, rms = large[0]
    names = dict(zip(map(id, group["params"]), group.get("param_names", ()), strict=False))
    name = f" ({names[id(p)]})" if id(p) in names else ""
    others = len(large) - 1
    more = f", and more than half of it for {others} other{'s' if others > 1 else ''}" if others else ""
    warnings.warn(
        f"noise_std={std:g} is {std / rms:.3g} times the RMS weight {rms:.3g} of parameter {place} of shape "
        f"{tuple(p.shape)}{name}{more}: noise of that size drowns weights. Take a noise_std below {LARGE * rms:.2g}, a "
        'smaller one in a group of its own for such tensors, or scale="filter", under which noise_std is a part of each '
        "filter's norm.",
        UserWarning,
        stacklevel=2,
    )
