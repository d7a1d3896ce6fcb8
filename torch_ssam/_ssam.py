"""SSAM: SGD whose gradients are taken at Gaussian-perturbed weights, fused into one operator a step.

S-SAM of arXiv 2503.11891 and its relatives (options of the one class). How it is driven, and checkpoints, are in
_driver.py; the noise in _noise.py; the arithmetic in csrc/math. Tests: test_ssam_*.py, test_keep_perturbed.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import _options
from ._driver import NOISE_DEFAULTS, NoiseDriver
from ._ops import ops


class SSAM(NoiseDriver):
    r"""Stochastic Sharpness-Aware Minimization: draw noise, take the gradient at the noisy weights, update the clean ones.

    .. math::
        \xi_k \sim N(0, \eta^2 I), \qquad W_{k+1} = W_k - \alpha_k \nabla L(W_k + \xi_k)

    (Clara, Langer and Schmidt-Hieber, arXiv 2503.11891, the S-SAM recursion), with momentum, dampening, weight decay
    and Nesterov as in `torch.optim.SGD`, which it follows within 2 ulp a step where noise_std is 0. One gradient a
    step; one copy of the parameters beside SGD's memory.

    Args:
        params: parameters, or dicts of parameter groups; every option below may differ by group, save that samples,
            antithetic, clean_weight and keep_perturbed are the same in all. Frozen parameters count for the noise's
            place and are never perturbed.
        lr: learning rate alpha, >= 0, or a tensor of one element.
        noise_std: standard deviation eta of the noise on each weight, >= 0, in the units of the weights.
        momentum: momentum factor, >= 0.
        dampening: dampening of momentum.
        weight_decay: L2 penalty on the clean weights, >= 0.
        nesterov: Nesterov momentum (needs momentum > 0 and dampening 0).
        maximize: ascend instead of descend.
        distribution: "gaussian", or "rademacher" (+-eta with one random bit a weight; the same mean and variance).
        scale: "isotropic": every weight has standard deviation noise_std.
        samples: noise draws whose gradients are averaged in a step.
        antithetic: use each draw twice, as +noise and -noise (NSO, arXiv 2306.08553).
        clean_weight: weight m in [0, 1) of the gradient at the clean weights (m-RWP, arXiv 2211.11489).
        radius: after each step the group's stacked parameters are projected onto the ball of this radius > 0
            (Theorem 4.4 of the paper); None for no projection.
        keep_perturbed: `train()` perturbs the weights and `step()` leaves them perturbed with the next draw, so that
            a stock loop needs no change; `eval()` puts the clean ones back.
        seed: seed of the noise, a 64-bit int; None takes one from torch's default generator.

    Raises:
        ValueError, TypeError: options out of range, empty parameter lists, tensors that are sparse or complex.

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

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        noise_std: float = 0.01,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        distribution: str = "gaussian",
        scale: str = "isotropic",
        samples: int = 1,
        antithetic: bool = False,
        clean_weight: float = 0.0,
        radius: float | None = None,
        keep_perturbed: bool = False,
        seed: int | None = None,
    ) -> None:
        defaults = {
            **NOISE_DEFAULTS,
            "lr": lr,
            "noise_std": noise_std,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "distribution": distribution,
            "scale": scale,
            "samples": samples,
            "antithetic": antithetic,
            "clean_weight": clean_weight,
            "radius": radius,
            "keep_perturbed": keep_perturbed,
        }
        self._init_driver(seed)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; its options are checked, and, in train with keep_perturbed, its weights perturbed."""
        group = {**self.defaults, **param_group}
        self._check_group(group)
        _options.number("lr", group["lr"])
        momentum = _options.number("momentum", group["momentum"])
        _options.number("weight_decay", group["weight_decay"])
        dampening = _options.number("dampening", group["dampening"], low=-float("inf"))
        if group["nesterov"] and (momentum <= 0 or dampening != 0):
            raise ValueError(
                f"nesterov=True with momentum={momentum:g} and dampening={dampening:g}; Nesterov momentum expects "
                "momentum > 0 and dampening 0."
            )
        if group["radius"] is not None:
            _options.number("radius", group["radius"], open_low=True)
        super().add_param_group(param_group)
        self._check_tensors(self.param_groups[-1]["params"])
        if self._training:
            self._noise.apply_new()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in {**NOISE_DEFAULTS, "nesterov": False, "maximize": False, "radius": None}.items():
                group.setdefault(name, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads options, momentum, seed and draw; clean weights it carries are written by the next train(), eval(),
        perturb() or step(). Also takes a state_dict of torch.optim.SGD."""
        self._prepare_load()
        super().load_state_dict(self._with_own_options(state_dict))
        self._take_noise_state()

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim's, with seed and draw in every group, and, while the weights are kept perturbed, the clean
        weights in the state."""
        return self._add_noise_state(super().state_dict())

    # -- the update ------------------------------------------------------------------------------------------------

    def _momentum_buffers(self, params: list[Tensor]) -> tuple[list[Tensor], bool]:
        """Buffers of tensors that all have one, or all have none (then zeros, and the second value is True)."""
        first = "momentum_buffer" not in self.state.get(params[0], {})
        if first:
            for p in params:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p, requires_grad=False)
        return [self.state[p]["momentum_buffer"] for p in params], first

    def _alike(self, members: list[tuple[int, Tensor]], group: dict[str, Any]) -> list[list[tuple[int, Tensor]]]:
        """The members split so that one operator call serves each part: device, first step or later, perturbed or not."""
        parts: dict[Any, list[tuple[int, Tensor]]] = {}
        has_momentum = group["momentum"] != 0
        for place, p in members:
            first = has_momentum and "momentum_buffer" not in self.state.get(p, {})
            parts.setdefault((p.device, first, self._noise.is_applied(p)), []).append((place, p))
        return list(parts.values())

    def _hyperparameters(self, group: dict[str, Any], device: torch.device) -> tuple[tuple[Any, ...], Tensor | None]:
        lr = group["lr"]
        lr_tensor = lr if isinstance(lr, Tensor) and lr.device == device and lr.is_floating_point() else None
        return (
            0.0 if lr_tensor is not None else float(lr),
            float(group["momentum"]),
            float(group["dampening"]),
            float(group["weight_decay"]),
            group["nesterov"],
            group["maximize"],
        ), lr_tensor

    def _update_group(self, group: dict[str, Any], members: list[tuple[int, Tensor]]) -> None:
        """Clean weights (saved copies of perturbed tensors, else the tensors themselves) <- their update."""
        with_grad = [(i, p) for i, p in members if p.grad is not None]
        for part in self._alike(with_grad, group):
            params = [p for _, p in part]
            buffers, first = self._momentum_buffers(params) if group["momentum"] != 0 else ([], False)
            options, lr_tensor = self._hyperparameters(group, params[0].device)
            ops.update_(
                [self._noise.clean_of(p) for p in params],
                [p.grad for p in params],
                buffers,
                *options,
                first,
                lr_tensor,
            )
            if not self._noise.is_applied(params[0]):
                torch.autograd.graph.increment_version(params)
        if group["radius"] is not None and members:
            stacked = [p for _, p in members]
            ops.project_([self._noise.clean_of(p) for p in stacked], float(group["radius"]))
            torch.autograd.graph.increment_version([p for p in stacked if not self._noise.is_applied(p)])

    def _update(self) -> None:
        for group, members in self._noise.placed():
            self._update_group(group, members)

    def _update_and_perturb(self) -> None:
        noise = self._noise
        noise.check_unchanged()
        for group, members in noise.placed():
            noise_std = float(group["noise_std"])
            kept = [(i, p) for i, p in members if noise.is_applied(p)]
            if noise_std == 0.0 or group["radius"] is not None or len(kept) < len(members):
                # Rare: noise switched on or off here, or a projection between update and noise.
                self._update_group(group, members)
                if noise_std == 0.0:
                    noise.restore([p for _, p in kept])
                else:
                    noise.apply_group(group, members, draw_offset=1)
                continue
            fused = [(i, p) for i, p in members if p.grad is not None]
            for part in self._alike(fused, group):
                params = [p for _, p in part]
                buffers, first = self._momentum_buffers(params) if group["momentum"] != 0 else ([], False)
                options, lr_tensor = self._hyperparameters(group, params[0].device)
                ops.update_and_perturb_(
                    params,
                    [noise.clean_of(p) for p in params],
                    [p.grad for p in params],
                    buffers,
                    noise.generator(params[0].device),
                    [i for i, _ in part],
                    *options,
                    first,
                    noise_std,
                    group["distribution"],
                    0,
                    False,
                    1,
                    lr_tensor,
                )
                noise.written(params)
            if len(fused) < len(members):
                noise.apply_from_clean(group, [(i, p) for i, p in members if p.grad is None], draw_offset=1)
        noise.restore_frozen()
