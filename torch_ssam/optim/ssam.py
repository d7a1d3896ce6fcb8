"""SSAM: SGD whose gradients are taken at Gaussian-perturbed weights, fused into one operator a step.

S-SAM of arXiv 2503.11891 and its relatives (options of the one class). How it is driven, and checkpoints, are
in base.py; the noise in noise/state.py; the arithmetic in csrc/math. Tests: test_ssam_*.py,
test_keep_perturbed.py.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from torch_ssam.noise import masters, parameters
from torch_ssam.noise import options as noise_options
from torch_ssam.noise.options import NOISE_DEFAULTS
from torch_ssam.noise.state import ROWS, Members
from torch_ssam.ops.entries import ops
from torch_ssam.optim import options as update_options
from torch_ssam.optim.base import NoiseDriver


class _Part(NamedTuple):
    """Tensors of a group that one operator call can update: a device, all at their first step or none."""

    params: list[Tensor]
    places: list[int]
    grads: list[Tensor]
    momenta: list[Tensor]  # empty without momentum
    first: bool
    perturbed: bool
    mastered: bool


def _check_dense(members: Members) -> None:
    for place, p in zip(members.places, members.params, strict=True):
        if p.grad is not None and p.grad.layout != torch.strided:
            raise ValueError(
                f"The gradient of parameter {place} is sparse; expected a dense one. Use sparse=False in the "
                "embedding, or give the parameter an optimizer of its own."
            )


class SSAM(NoiseDriver):
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
            dimension 0, a tensor of less than two dimensions being one filter (LPF-SGD, arXiv 2201.08025, and
            RWP). "tensor": the norm of the whole tensor. "element": |w| + 0.01 of each weight (ASAM's operator,
            arXiv 2102.11600). "fisher": |w_f| / sqrt(1 + s F_f) with F_f <- beta F_f + the sum of g^2 over the
            filter, g the gradient of each step (ARWP, arXiv 2404.00357). Always of the clean weights.
        fisher_decay: beta in [0, 1] of scale="fisher". This default and the next are ours, not the paper's.
        fisher_factor: s >= 0 of scale="fisher".
        samples: noise draws whose gradients are averaged in a step.
        antithetic: use each draw twice, as +noise and -noise (NSO, arXiv 2306.08553).
        clean_weight: weight m in [0, 1) of the gradient at the clean weights (m-RWP, arXiv 2211.11489).
        radius: after each step the group's stacked parameters are projected onto the ball of this radius > 0
            (Theorem 4.4 of the paper); None for no projection.
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

    _state_tensors = NoiseDriver._state_tensors | {"momentum_buffer", "master"}
    _own_options = frozenset({"master_dtype"})

    @update_options.by_name("momentum", "dampening", "weight_decay", "nesterov")
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
        distribution: str = "gaussian",
        scale: str = "isotropic",
        fisher_decay: float = 0.99,
        fisher_factor: float = 0.1,
        samples: int = 1,
        antithetic: bool = False,
        clean_weight: float = 0.0,
        radius: float | None = None,
        keep_perturbed: bool = False,
        memory: str = "copy",
        master_dtype: torch.dtype | None = None,
        seed: int | None = None,
        noise_per_rank: bool = False,
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
            "fisher_decay": fisher_decay,
            "fisher_factor": fisher_factor,
            "samples": samples,
            "antithetic": antithetic,
            "clean_weight": clean_weight,
            "radius": radius,
            "keep_perturbed": keep_perturbed,
            "memory": memory,
            "master_dtype": master_dtype,
        }
        self._init_driver(seed, noise_per_rank)
        self._noise.keeps_masters = True
        super().__init__(parameters.parameter_list(params), noise_options.plain(defaults))

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        update_options.check_sgd(group)
        masters.check_options(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; its options are checked, and, in train with keep_perturbed, its weights perturbed."""
        group = self._check_group(param_group)
        masters.check_parameters(list(map(parameters.tensor_of, group["params"])), {**self.defaults, **group})
        super().add_param_group(group)
        if self._training:
            self._noise.apply_new()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in {
                **NOISE_DEFAULTS,
                "nesterov": False,
                "maximize": False,
                "radius": None,
                "master_dtype": None,
            }.items():
                group.setdefault(name, value)

    def _plain_state_dict(self) -> dict[str, Any]:
        hooks, self._optimizer_state_dict_post_hooks = self._optimizer_state_dict_post_hooks, OrderedDict()
        try:
            state_dict = Optimizer.state_dict(self)
        finally:
            self._optimizer_state_dict_post_hooks = hooks
        for group in state_dict["param_groups"]:  # by name: not every reader of checkpoints knows dtypes
            if group["master_dtype"] is not None:
                group["master_dtype"] = str(group["master_dtype"]).removeprefix("torch.")
        return state_dict

    def _plain_load_state_dict(self, state_dict: dict[str, Any]) -> None:
        hooks = self._optimizer_load_state_dict_pre_hooks, self._optimizer_load_state_dict_post_hooks
        self._optimizer_load_state_dict_pre_hooks = OrderedDict()
        self._optimizer_load_state_dict_post_hooks = OrderedDict()
        try:
            Optimizer.load_state_dict(self, state_dict)
        finally:
            self._optimizer_load_state_dict_pre_hooks, self._optimizer_load_state_dict_post_hooks = hooks
        keys = (key for group in state_dict["param_groups"] for key in group["params"])
        for group in self.param_groups:  # torch has cast it to the parameters' dtype
            for p in group["params"]:
                momentum = state_dict["state"].get(next(keys), {}).get("momentum_buffer")
                if momentum is not None and self._noise.has_master(group, p):
                    momentum = momentum.to(dtype=group["master_dtype"], device=p.device)
                    self.state[p]["momentum_buffer"] = momentum

    # -- the update ------------------------------------------------------------------------------------------

    def _parts(self, group: dict[str, Any], members: Members) -> list[_Part]:
        """Members with a gradient, split by device, first step or later, perturbed or not, master or not: a call each."""
        if group["master_dtype"] is None:
            self._noise.forget_masters(members.params)
            parts = self._split(group, members)
        else:
            with_master = members.where(lambda p: self._noise.has_master(group, p))
            without = members.where(lambda p: not self._noise.has_master(group, p))
            parts = self._split(group, without) + self._split(group, with_master, group["master_dtype"])
        if len(parts) > 1:  # several operator calls
            _check_dense(members)
        return parts

    def _split(
        self, group: dict[str, Any], members: Members, master_dtype: torch.dtype | None = None
    ) -> list[_Part]:
        whole = self._whole(group, members) if master_dtype is None else None
        if whole is not None:
            return [whole]
        parts: dict[Any, _Part] = {}
        part, device, first, perturbed = None, None, False, False
        has_momentum = group["momentum"] != 0
        state, is_applied = self.state, self._noise.is_applied
        for place, p in zip(members.places, members.params, strict=True):
            grad = p.grad
            if grad is None:
                continue
            momentum = None
            if has_momentum:
                entry = state.get(p)
                momentum = entry.get("momentum_buffer") if entry else None
            own_first = has_momentum and momentum is None
            own_perturbed = is_applied(p)
            own_device = p.is_cpu or p.device
            if part is None or own_perturbed != perturbed or own_first != first or own_device != device:
                device, first, perturbed = own_device, own_first, own_perturbed
                key = device, first, perturbed
                part = parts.get(key)
                if part is None:
                    part = parts[key] = _Part([], [], [], [], first, perturbed, master_dtype is not None)
                params, places, grads, momenta = part[:4]
            params.append(p)
            places.append(place)
            grads.append(grad)
            if has_momentum:
                if momentum is None:
                    momentum = torch.zeros_like(p, requires_grad=False, dtype=master_dtype)
                elif master_dtype is not None:  # of steps without masters
                    momentum = momentum.to(master_dtype)
                momenta.append(momentum)
        return list(parts.values())

    def _whole(self, group: dict[str, Any], members: Members) -> _Part | None:
        """All members as one part where nothing sets them apart: nearly always, and cheaper than one by one."""
        places, params = members
        grads: list[Any] = [p.grad for p in params]
        perturbed = self._noise.all_or_none_applied(params)
        if perturbed is None or not all([grad is not None and grad.is_cpu for grad in grads]):
            return None
        momenta: list[Any] = []
        if group["momentum"] != 0:
            state = (
                self.state
            )  # in the order of params it serves without the tensors' hashes, which run Python
            in_order = list(map(id, state)) == list(map(id, params))
            entries = list(state.values()) if in_order else [state.get(p) for p in params]
            momenta = [entry.get("momentum_buffer") if entry else None for entry in entries]
            if not all([momentum is not None for momentum in momenta]):
                return None
        return _Part(params, places, grads, momenta, False, perturbed, False)

    def _hyperparameters(
        self, group: dict[str, Any], device: torch.device
    ) -> tuple[tuple[Any, ...], Tensor | None]:
        lr = group["lr"]
        on_device = (
            isinstance(lr, Tensor) and lr.device == device and lr.dtype in (torch.float32, torch.float64)
        )
        return (
            0.0 if on_device else float(lr),
            float(group["momentum"]),
            float(group["dampening"]),
            float(group["weight_decay"]),
            group["nesterov"],
            group["maximize"],
        ), lr if on_device else None

    def _update_part(self, group: dict[str, Any], part: _Part, noise_std: float | None = None) -> None:
        """Clean weights (saved copies of perturbed tensors, else the tensors themselves) <- their update.

        With a noise_std the tensors get the next draw of noise in the same pass over memory.
        """
        noise = self._noise
        params, momenta, first = part.params, part.momenta, part.first
        clean = noise.all_clean_of(params) if part.perturbed else params
        if part.mastered and not part.perturbed:
            clean, noise_std = noise.masters_of(group, params), 0.0  # then the tensors get the rounding
        device = params[0].device
        options, lr_tensor = self._hyperparameters(group, device)
        if noise_std is None:
            ops.update_(clean, part.grads, momenta, *options, first, lr_tensor)
        else:
            generator, draw = noise.generator(device)
            # An argument costs half a microsecond, the schema's defaults nothing.
            others: dict[str, Any] = {"draw_offset": draw + 1}
            if group["distribution"] != "gaussian":
                others["distribution"] = group["distribution"]
            if group["scale"] != "isotropic" and noise_std != 0.0:
                others["scale"] = group["scale"]
            if lr_tensor is not None:
                others["lr_tensor"] = lr_tensor
            ops.update_and_perturb_(
                params,
                clean,
                part.grads,
                momenta,
                generator,
                part.places,
                *options,
                first,
                noise_std,
                **others,
            )
        if first or (
            momenta and part.mastered
        ):  # only now: an operator that refuses must leave no state behind
            for p, momentum in zip(params, momenta, strict=True):
                self.state[p]["momentum_buffer"] = momentum
        if noise_std is not None or not part.perturbed:
            noise.written(params)

    def _update_group(self, group: dict[str, Any], members: Members) -> None:
        for part in self._parts(group, members):
            self._update_part(group, part)
        stacked = [p for p in members.params if p.requires_grad] if group["radius"] is not None else []
        if stacked:
            self._project(group, stacked)
        self._noise.observe(group)

    def _project(self, group: dict[str, Any], stacked: list[Tensor]) -> None:
        noise = self._noise
        rounded = [p for p in stacked if noise.has_master(group, p)]
        masters = dict(zip(rounded, noise.masters_of(group, rounded), strict=True))
        ops.project_([masters.get(p, noise.clean_of(p)) for p in stacked], float(group["radius"]))
        rounded = [p for p in rounded if not noise.is_applied(p)]
        if rounded:
            ops.restore_(rounded, [masters[p] for p in rounded])
        noise.written([p for p in stacked if not noise.is_applied(p)])

    def _check_before(self, placed: list[tuple[dict[str, Any], Members]]) -> None:
        """One operator call checks all before it writes; of several, none may fail after another wrote."""
        if len(placed) == 1 and placed[0][0]["radius"] is None and placed[0][0]["scale"] not in ROWS:
            return
        for group, members in placed:
            noise_options.check_noise(group)
            lr = group["lr"]  # one that lies on a GPU is not looked at: that would wait for it
            on_gpu = isinstance(lr, Tensor) and lr.device.type != "cpu"
            update_options.check_sgd({**group, "lr": 0.0} if on_gpu else group)
            _check_dense(members)

    def _update(self) -> None:
        # As torch.optim does, a gradient that is there is used, also that of a tensor frozen since.
        placed = self._noise.placed(frozen=True)
        self._check_before(placed)
        for group, members in placed:
            self._update_group(group, members)

    def _update_and_perturb(self) -> None:
        noise = self._noise
        noise.ready_to_update()
        placed = noise.placed(frozen=True)
        self._check_before(placed)
        for group, everything in placed:
            noise_std = float(group["noise_std"])
            # Norms of the new weights, or a projection to them, come between update and noise.
            one_pass = noise_std != 0.0 and group["radius"] is None and group["scale"] not in ROWS
            parts = self._parts(group, everything) if one_pass else []
            if len(parts) == 1 and parts[0].perturbed and len(parts[0].params) == len(everything.params):
                self._update_part(group, parts[0], noise_std)  # nearly always
                continue
            members = everything.where(lambda p: p.requires_grad)
            kept = [p for p in members.params if noise.is_applied(p)]
            if not one_pass or len(kept) < len(members.params):  # or noise is switched on or off here
                parts = []  # with momentum buffers of a first step, which are made again
                self._update_group(group, everything)
                if noise_std == 0.0:
                    noise.restore(kept)
                else:
                    noise.apply_group(group, members, draw_offset=1)
                continue
            for part in parts:  # frozen tensors are not perturbed
                self._update_part(group, part, noise_std if part.perturbed else None)
            noise.apply_from_clean(group, members.where(lambda p: p.grad is None), draw_offset=1)
