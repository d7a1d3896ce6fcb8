"""SSAMAdamW: AdamW whose gradients are taken at perturbed weights, fused into one operator a step.

Another update rule in the same rooms as SSAM: how it is driven is in base.py, the step in fused.py, what a checkpoint
holds in checkpoints.py, the noise in noise/, the arithmetic in csrc/math/rules/adamw.h. Tests: test_adamw.py, and the
tests of SSAM, which run over both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from torch_ssam._checks import defaults_of
from torch_ssam.noise.options import NOISE_OPTIONS, Distribution, Memory, Scale, chosen
from torch_ssam.optim.fused import FusedOptimizer, lr_on
from torch_ssam.optim.options import ADAMW_OPTIONS, FUSED_OPTIONS, by_name, check_adamw


class SSAMAdamW(FusedOptimizer):
    r"""AdamW with S-SAM's gradients: taken at noisy weights, applied to the clean ones.

    .. math::
        g_t &= \nabla L(w_{t-1} + \xi_t), \qquad \xi_t \sim N(0, \eta^2 I) \\
        m_t &= m_{t-1} + (1 - \beta_1) (g_t - m_{t-1}), \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        w_t &= (1 - \alpha \lambda) w_{t-1}
               - \frac{\alpha}{1 - \beta_1^t} \frac{m_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    (AdamW: Loshchilov and Hutter, arXiv 1711.05101; the noise: Clara, Langer and Schmidt-Hieber, arXiv 2503.11891.)
    With noise_std=0 it follows `torch.optim.AdamW` (foreach=False) within 2 ulp of max(abs(w), lr) a step, and the
    state_dict of either loads into the other, also in the middle of training. One gradient a step, and with
    `keep_perturbed=True` one pass over memory; one copy of the parameters beside AdamW's memory.

    Args:
        params: parameters, or dicts of parameter groups, as for `SSAM`.
        lr: learning rate alpha, >= 0, or a tensor of one element. Everything after it is given by name.
        betas: (beta_1, beta_2), each >= 0 and < 1: what the averages of gradients and of their squares keep.
        eps: epsilon >= 0.
        weight_decay: lambda >= 0, decoupled: a step takes lr * weight_decay of the clean weights off.
        amsgrad: divide by the largest v so far, which is kept as a third buffer.
        maximize: ascend instead of descend.
        noise_std: standard deviation of the noise, as for `SSAM`. So are distribution, scale, fisher_decay, fisher_factor,
            samples, antithetic, clean_weight, radius, weight_clip, channel_dim, keep_perturbed, memory, seed and
            noise_per_rank.
        master_dtype: as for `SSAM`; both averages are kept in it too, and the largest.

    Steps are counted for each parameter, from 1, in `state[p]["step"]`: an int there, a float32 tensor in a state_dict,
    as torch.optim has it. A step without a gradient does not count. The number of the step goes into the update, so
    that `step()` cannot be captured in a CUDA graph.

    Raises:
        ValueError, TypeError: as for `SSAM`.
        RuntimeError: `step()` while a CUDA graph is captured.

    Example:
        >>> import torch, torch_ssam
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = torch_ssam.SSAMAdamW(model.parameters(), lr=1e-3, noise_std=0.01, keep_perturbed=True)
        >>> opt.train()
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> for _ in range(2):  # a stock loop
        ...     opt.zero_grad()
        ...     torch.nn.functional.mse_loss(model(x), y).backward()
        ...     opt.step()
        >>> opt.eval()
        >>> opt.state[model.weight]["step"]
        2
    """

    _rule = "adamw"
    _counts_steps = True
    _needed_to_load = ("step", "exp_avg", "exp_avg_sq")
    _state_tensors = FusedOptimizer._state_tensors | {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}

    @by_name("betas", "eps", "weight_decay", "amsgrad")
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        maximize: bool = False,
        noise_std: float = 0.01,
        distribution: Distribution = "gaussian",
        scale: Scale = "isotropic",
        fisher_decay: float = 0.99,
        fisher_factor: float = 0.1,
        samples: int = 1,
        antithetic: bool = False,
        clean_weight: float = 0.0,
        radius: float | None = None,
        channel_dim: int = 0,
        weight_clip: float | None = None,
        keep_perturbed: bool = False,
        memory: Memory = "copy",
        master_dtype: torch.dtype | None = None,
        seed: int | None = None,
        noise_per_rank: bool = False,
    ) -> None:
        defaults = chosen(locals(), ADAMW_OPTIONS, FUSED_OPTIONS, NOISE_OPTIONS)
        super().__init__(params, defaults, seed, noise_per_rank)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in defaults_of(ADAMW_OPTIONS).items():
                group.setdefault(name, value)

    def _check_update(self, group: dict[str, Any]) -> None:
        check_adamw(group)

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")

    def _numbers(self, group: dict[str, Any], device: torch.device) -> tuple[list[float], Tensor | None]:
        lr, lr_tensor = lr_on(group, device)
        beta1, beta2 = group["betas"]
        return [
            lr,
            float(beta1),
            float(beta2),
            float(group["eps"]),
            float(group["weight_decay"]),
            float(group["amsgrad"]),
            float(group["maximize"]),
        ], lr_tensor
