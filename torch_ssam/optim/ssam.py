"""SSAM: SGD whose gradients are taken at Gaussian-perturbed weights, fused into one operator a step.

S-SAM of arXiv 2503.11891 and its relatives (options of the one class). How it is driven is in base.py, the step in
fused.py, what a checkpoint holds in checkpoints.py; the noise in noise/state.py; the arithmetic in csrc/math.
Tests: test_ssam_*.py, test_keep_perturbed.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from torch_ssam.noise.options import NOISE_OPTIONS, Distribution, Memory, Scale, chosen
from torch_ssam.optim.fused import FusedOptimizer, lr_on
from torch_ssam.optim.options import FUSED_OPTIONS, SGD_OPTIONS, by_name, check_sgd


class SSAM(FusedOptimizer):
    r"""Stochastic Sharpness-Aware Minimization: gradients at noisy weights, updates of the clean ones.

    .. math::
        \xi_k \sim N(0, \eta^2 I), \qquad W_{k+1} = W_k - \alpha_k \nabla L(W_k + \xi_k)

    (Clara, Langer and Schmidt-Hieber, arXiv 2503.11891, the S-SAM recursion), with momentum, dampening,
    weight decay and Nesterov as in `torch.optim.SGD`, which it follows within 2 ulp a step where noise_std is
    0. One gradient a step; one copy of the parameters beside SGD's memory.

    Args:
        params: parameters, or dicts of parameter groups; every option below may differ by group, save that
            samples, antithetic, clean_weight and keep_perturbed are the same in all. Frozen parameters count
            for the noise's place and are never perturbed.
        lr: learning rate alpha, >= 0, or a tensor of one element. Everything after it is given by name.
        noise_std: standard deviation eta of the noise on each weight, >= 0, in the units of the weights.
        momentum: momentum factor, >= 0.
        dampening: dampening of momentum.
        weight_decay: L2 penalty on the clean weights, >= 0.
        nesterov: Nesterov momentum (needs momentum > 0 and dampening 0).
        maximize: ascend instead of descend.
        distribution: "gaussian", or "rademacher" (+-eta with one random bit a weight; the same mean and
            variance).
        scale: what noise_std is multiplied by. "isotropic": 1. "filter": the filter's norm |w_f|, f along
            channel_dim, a tensor of less than two dimensions being one filter (LPF-SGD, arXiv 2201.08025, and
            RWP). "tensor": the norm of the whole tensor. "element": |w| + 0.01 of each weight (ASAM's operator,
            arXiv 2102.11600). "fisher": |w_f| / sqrt(1 + s F_f) with F_f <- beta F_f + the sum of g^2 over the
            filter, g the gradient of each step (ARWP, arXiv 2404.00357). "absmax": the filter's largest |w|, so that
            noise_std is in units of its range, as analog training toolkits give it; "tensor_absmax": the tensor's.
            Always of the clean weights; a row of zeros gets no noise.
        fisher_decay: beta in [0, 1] of scale="fisher". This default and the next are those of the authors' scripts.
        fisher_factor: s >= 0 of scale="fisher".
        samples: noise draws whose gradients are averaged in a step.
        antithetic: use each draw twice, as +noise and -noise (NSO, arXiv 2306.08553).
        clean_weight: weight m in [0, 1) of the gradient at the clean weights (m-RWP, arXiv 2211.11489).
        weight_clip: c > 1: after each step each weight of a filter is clamped to c times the root mean square of the
            filter's weights as the step left them. Of the clean weights (masters, where there are some), of tensors of two
            dimensions and more that the step updated; momentum stays as it is. A filter is then laid on a grid of few
            levels, or written to analog cells, with steps of use to most of its weights. Order: update, clip,
            projection, scale, noise. The first step's share of clipped weights is `clipped_share`, and warns above
            1%: a pretrained network has outliers that it needs; begin with a larger c there, and lower it by and by
            (`group["weight_clip"]` is read at every step). aihwkit-lightning clips at c times the centred standard
            deviation; this is c times the root mean square, which for weights of mean 0 is the same. None for no
            clipping.
        channel_dim: the dimension that counts filters in tensors of two dimensions and more, for scale and weight_clip:
            0 for nn.Linear and nn.Conv, 1 for nn.ConvTranspose and the Conv1D of transformers, whose weights are (in,
            out).
        radius: after each step the group's stacked parameters are projected onto the ball of this radius > 0
            (Theorem 4.4 of the paper); None for no projection. Parameters that are split over ranks are gathered for
            the norm, one tensor at a time.
        keep_perturbed: `train()` perturbs the weights and `step()` leaves them perturbed with the next draw,
            so that a stock loop needs no change; `eval()` puts the clean ones back.
        memory: "copy" keeps a copy of the clean weights, and restoring is exact. "regenerate" keeps none and
            takes the noise off by drawing it again: a weight w with noise n comes back within u (|w + n| +
            |w|) a step (u = 2^-24 in float32), and noise is made twice. Only float32 and float64, and
            scale="isotropic".
        master_dtype: torch.float32 keeps the clean weights and the momentum of bfloat16 and float16 parameters in
            float32 from step to step, so that updates and noise below half an ulp of a parameter count; it holds the
            rounding of clean weights, or of clean weights plus noise. 4 bytes a weight more than SGD, in place of the
            2 of the clean copy, and 2 more of momentum. Gradients stay in the parameters' dtype. What others write
            to a parameter outside of a pass counts, element by element. Parameters that are float32 already are
            as without. A checkpoint carries the clean weights, and this option stays as constructed.
        seed: seed of the noise, a 64-bit int; None takes one from torch's default generator.
        noise_per_rank: in a process group, each rank draws noise of its own (seed + rank), so that the mean
            gradient averages over as many draws as there are ranks; else all ranks draw the same. Construct
            the optimizer after init_process_group().

    Raises:
        ValueError, TypeError: options out of range, options after lr without their names, empty parameter lists,
            tensors that are sparse or complex.

    Example:
        >>> import torch, torch_ssam
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.01)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> with opt.perturb():
        ...     loss = torch.nn.functional.mse_loss(model(x), y)
        ...     loss.backward()
        >>> opt.step()
        >>> opt.zero_grad()
    """

    _rule = "sgd"
    _state_tensors = FusedOptimizer._state_tensors | {"momentum_buffer"}

    @by_name("momentum", "dampening", "weight_decay", "nesterov")
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        *,
        noise_std: float = 0.01,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
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
        defaults = chosen(locals(), SGD_OPTIONS, FUSED_OPTIONS, NOISE_OPTIONS)
        super().__init__(params, defaults, seed, noise_per_rank)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("nesterov", False)

    def _check_update(self, group: dict[str, Any]) -> None:
        check_sgd(group)

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def _numbers(self, group: dict[str, Any], device: torch.device) -> tuple[list[float], Tensor | None]:
        lr, lr_tensor = lr_on(group, device)
        return [
            lr,
            float(group["momentum"]),
            float(group["dampening"]),
            float(group["weight_decay"]),
            float(group["nesterov"]),
            float(group["maximize"]),
        ], lr_tensor
