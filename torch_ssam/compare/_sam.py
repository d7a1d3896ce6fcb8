"""SAM, the method S-SAM is compared with: Foret et al., arXiv 2010.01412, equations 2-3.

    eps = rho g / |g|, g = grad L(w);   w <- SGD step with grad L(w + eps)

Two gradients a step. A plain reference for comparisons. Tests: tests/python/test_compare.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torch_ssam.ops.entries import ops


class SAM(torch.optim.SGD):
    """torch.optim.SGD whose gradient is taken at the worst point, to first order, within rho of the weights.

    The reference implementation that `compare` measures against (arXiv 2010.01412); weights that a step moves
    come back bit for bit before the update, also after an exception.

    Args:
        params, lr: as for torch.optim.SGD.
        rho: radius >= 0 of the ball, in units of the weights, over all parameters together.
        weight_clip: after each step weights are clipped as by `torch_ssam.SSAM(weight_clip=...)`, > 1; None for not.
        **options: of torch.optim.SGD.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> opt = SAM([w], lr=0.1, rho=0.5)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = w.square().sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> opt.step(closure).item()
        12.5
        >>> w.detach()  # the gradient was taken at w (1 + 0.5 / 5)
        tensor([2.6700, 3.5600])
    """

    def __init__(
        self, params: Any, lr: float, rho: float, weight_clip: float | None = None, **options: Any
    ) -> None:
        super().__init__(params, lr=lr, **options)
        self.rho = rho
        self.weight_clip = weight_clip

    def step(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        """One step; the closure clears gradients, calls backward, returns the loss, and is run twice."""
        with torch.enable_grad():
            loss = closure()
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in params]
        with torch.no_grad():
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            clean = [p.clone() for p in params]
            torch._foreach_add_(params, torch._foreach_mul(gradients, self.rho / (norm + 1e-12)))
        try:
            with torch.enable_grad():
                closure()
        finally:
            with torch.no_grad():
                torch._foreach_copy_(params, clean)
        super().step()
        if self.weight_clip is not None:
            ops.clip_rows_([p.detach() for p in params if p.dim() >= 2], self.weight_clip)
        return loss
