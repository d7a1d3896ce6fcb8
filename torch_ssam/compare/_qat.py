"""Quantisation-aware training, the method that weights trained under noise are compared with at few bits: LSQ.

Learned step size quantisation (Esser et al., arXiv 1902.08153), of weights, a step s > 0 for each filter:

    w_q = s round(clamp(w / s, -q, q)),   q = 2^(bits - 1) - 1

with the straight-through gradient in w and the step's own gradient, scaled by 1 / sqrt(n q) for n weights of a
filter, from s = 2 mean|w| / sqrt(q). A plain reference for comparisons. Tests: tests/python/test_compare_deployment.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


def _round(x: Tensor) -> Tensor:
    """round(x), whose gradient is 1."""
    return x + (x.round() - x).detach()


class _LearnedStep(nn.Module):
    """The weights of one tensor rounded with learnt steps; as they are until `start`."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.largest = 2 ** (bits - 1) - 1
        self.rounds = False
        self.step = nn.Parameter(weight.new_ones(len(weight), *(1,) * (weight.dim() - 1)))
        self.gradient_scale = (max(1, weight[0].numel()) * self.largest) ** -0.5

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Rounds from now on, with the first steps that these weights give."""
        mean = weight.abs().flatten(1).mean(1).view_as(self.step)
        self.step.copy_((2 * mean / self.largest**0.5).clamp(min=torch.finfo(weight.dtype).tiny))
        self.rounds = True

    def forward(self, weight: Tensor) -> Tensor:
        if not self.rounds:
            return weight
        # The value of the step, with its gradient times gradient_scale.
        step = self.step.detach() + (self.step - self.step.detach()) * self.gradient_scale
        step = step.clamp(min=torch.finfo(weight.dtype).tiny)
        rounded: Tensor = _round((weight / step).clamp(-self.largest, self.largest)) * step
        return rounded


class LearnedSteps:
    """Rounds a model's weights of two dimensions and more in its forward passes, each filter by a step that is learnt.

    Args:
        model: any module; its weights become parametrized until `finish`.
        bits: 2 to 16, the bits of a weight: 2^bits - 1 levels.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 2, bias=False)
        >>> learned = LearnedSteps(model, bits=2)
        >>> learned.start()
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> learned.finish()
        >>> [row.abs().unique().numel() <= 2 for row in model.weight.detach()]  # 0 and the step
        [True, True]
    """

    def __init__(self, model: nn.Module, bits: int) -> None:
        self._places = [
            (module, name)
            for module in model.modules()
            for name, p in module.named_parameters(recurse=False)
            if p.dim() >= 2
        ]
        self._steps = [_LearnedStep(getattr(module, name), bits) for module, name in self._places]
        for (module, name), step in zip(self._places, self._steps, strict=True):
            parametrize.register_parametrization(module, name, step)

    def parameters(self) -> list[nn.Parameter]:
        """The steps, for the optimizer."""
        return [step.step for step in self._steps]

    def start(self) -> None:
        """Rounds from now on."""
        for (module, name), step in zip(self._places, self._steps, strict=True):
            step.start(module.parametrizations[name].original)  # type: ignore[index, union-attr]

    def finish(self) -> None:
        """Leaves the rounded weights in the model, as plain parameters."""
        for module, name in self._places:
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
