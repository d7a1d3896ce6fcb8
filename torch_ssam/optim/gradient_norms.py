"""How often gradients are clipped: norms that a training notes at each step, summed on their device and read by metrics().

Noise raises the norm of gradients, so that a bound chosen without it clips more often. Tests: test_metrics.py, test_callbacks.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_ssam import _checks
from torch_ssam.ops.dtensor import is_sharded


class GradientNorms:
    """Norms of gradients before clipping, as they are noted: their sum, and how many were above the bound."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: Tensor | None = None  # of the norms, and of those above

    def note(self, norm: Any, max_norm: float) -> None:
        """Adds one, on its device and without waiting for it."""
        max_norm = _checks.number("max_norm", max_norm, open_low=True)
        given: Any = norm if isinstance(norm, Tensor) else torch.tensor(_checks.number("norm", norm))
        if given.numel() != 1:
            raise ValueError(
                f"norm is a tensor of shape {tuple(given.shape)}; expected what clip_grad_norm_ returns."
            )
        whole = given.detach().full_tensor() if is_sharded(given) else given.detach()
        value = whole.reshape(()).float()
        both = torch.stack([value, (value > max_norm).float()])
        self.sums = both if self.sums is None else self.sums.to(both.device) + both
        self.count += 1

    def read(self) -> dict[str, float]:
        """The mean and the share above the bound since the last call; nothing where none was noted."""
        if self.sums is None:
            return {}
        mean, share = (self.sums / self.count).tolist()
        self.count, self.sums = 0, None
        return {"grad_norm": mean, "grad_clipped": share}
