"""SSAM once more, slowly: one tensor at a time, straight from the formulas of docs/theory.md and torch.optim.SGD, sharing no code
with the package save the noise itself (torch_ssam::perturbed, which has its own tests).

    g = sum over passes of weight * grad L(w + noise);   g <- -g to maximise;   g <- g + weight_decay w
    v <- momentum v + (1 - dampening) g, v <- g at first;   g <- g + momentum v if nesterov else v
    w <- w - lr g;   w_f <- clamp(w_f, +-weight_clip rms(w_f)) for each filter;   each group's w <- w min(1, radius / |w|)
    noise of scale (each from its paper, see `scales`): noise_std * z * scale(w), z standard
Used by test_ssam_reference.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SGD_DEFAULTS: dict[str, Any] = {
    "lr": 0.1,
    "noise_std": 0.01,
    "momentum": 0.0,
    "dampening": 0.0,
    "weight_decay": 0.0,
    "nesterov": False,
    "maximize": False,
    "distribution": "gaussian",
    "radius": None,
    "weight_clip": None,
    "channel_dim": 0,
    "scale": "isotropic",
    "fisher_decay": 0.99,
    "fisher_factor": 0.1,
}


def per_filter(value: Tensor) -> Tensor:
    """Sum of squares over each filter (dimension 0; the whole tensor if it has one dimension or none), broadcastable."""
    if value.dim() < 2:
        return value.double().square().sum()
    return value.double().square().sum(dim=tuple(range(1, value.dim())), keepdim=True)


def clipped(w: Tensor, weight_clip: float, channel_dim: int = 0) -> Tensor:
    """Each filter of a tensor of two dimensions and more within weight_clip times its root mean square."""
    if w.dim() < 2:
        return w
    others = tuple(d for d in range(w.dim()) if d != channel_dim)
    limit = (weight_clip * w.double().square().mean(dim=others, keepdim=True).sqrt()).to(w.dtype)
    return torch.maximum(torch.minimum(w, limit), -limit)


def scales(name: str, w: Tensor, fisher: Tensor | None, factor: float) -> Tensor:
    """What multiplies noise_std at clean weights w, in float64."""
    if name == "isotropic":
        return torch.ones_like(w, dtype=torch.float64)
    if name == "element":  # ASAM's T_w = |w| + eta with its eta = 0.01 (arXiv 2102.11600)
        return w.double().abs() + 0.01
    if name == "tensor":
        return w.double().square().sum().sqrt()
    if name == "tensor_absmax":
        return w.double().abs().max()
    if name == "absmax":
        return (
            w.double().abs().amax(dim=tuple(range(1, w.dim())), keepdim=True)
            if w.dim() > 1
            else w.double().abs().max()
        )
    norm = per_filter(w).sqrt()  # LPF-SGD (arXiv 2201.08025): gamma |w_filter|
    if name == "filter" or fisher is None:
        return norm
    return norm / (1.0 + factor * fisher).sqrt()  # ARWP (arXiv 2404.00357)


class ReferenceSSAM:
    """`groups` are dicts with "places" (indices into `weights`) and options; frozen places are in `frozen`."""

    def __init__(
        self,
        weights: list[Tensor],
        groups: list[dict[str, Any]],
        seed: int,
        *,
        frozen: frozenset[int] = frozenset(),
        samples: int = 1,
        antithetic: bool = False,
        clean_weight: float = 0.0,
    ) -> None:
        self.weights = [w.detach().clone() for w in weights]
        self.groups = [{**SGD_DEFAULTS, **group} for group in groups]
        self.seed, self.draw, self.frozen = seed, 0, frozen
        self.buffers: dict[int, Tensor] = {}
        self.fisher: dict[int, Tensor] = {}
        self.passes: list[tuple[float, int, float]] = []  # (sign of the noise or 0, sample, weight)
        noisy = [(sign, k) for k in range(samples) for sign in ((1.0, -1.0) if antithetic else (1.0,))]
        for sign, k in noisy:
            self.passes.append((sign, k, (1.0 - clean_weight) / len(noisy)))
        if clean_weight > 0:
            self.passes.append((0.0, 0, clean_weight))

    def noisy_weights(self, sign: float, sample: int) -> list[Tensor]:
        result = [w.clone() for w in self.weights]
        for group in self.groups:
            for i in group["places"]:
                if sign != 0.0 and i not in self.frozen and group["noise_std"] > 0:
                    w = self.weights[i]
                    z = torch.ops.torch_ssam.perturbed(
                        torch.zeros(w.shape, dtype=torch.float64),
                        torch.tensor([self.seed, self.draw]),
                        i,
                        1.0,
                        group["distribution"],
                        sample,
                    )
                    dim = group["channel_dim"] if w.dim() > 1 else 0
                    first = w.movedim(dim, 0) if w.dim() > 1 else w
                    scale = scales(group["scale"], first, self.fisher.get(i), group["fisher_factor"])
                    scale = scale.movedim(0, dim) if scale.dim() > 1 else scale
                    result[i] = (w + sign * group["noise_std"] * scale * z).to(w.dtype)
        return result

    def gradient(
        self, losses: list[Callable[[list[Tensor]], Tensor]], shares: list[float] | None = None
    ) -> Any:
        """Weighted mean gradient and loss; one loss function for all passes, or one for each with its share."""
        weights = [weight for _, _, weight in self.passes]
        if shares is not None:
            clean = sum(w for (sign, _, w) in self.passes if sign == 0.0)
            total = sum(share for (sign, _, _), share in zip(self.passes, shares, strict=True) if sign != 0.0)
            weights = [
                w if sign == 0.0 else (1.0 - clean) * share / total
                for (sign, _, w), share in zip(self.passes, shares, strict=True)
            ]
        gradients: list[Tensor | None] = [None] * len(self.weights)
        mean_loss = 0.0
        for k, ((sign, sample, _), weight) in enumerate(zip(self.passes, weights, strict=True)):
            at = self.noisy_weights(sign, sample)
            leaves = [w.requires_grad_(i not in self.frozen) for i, w in enumerate(at)]
            loss = losses[k % len(losses)](leaves)
            loss.backward()
            mean_loss += weight * loss.item()
            for i, leaf in enumerate(leaves):
                if leaf.grad is not None:
                    before = gradients[i]
                    gradients[i] = weight * leaf.grad if before is None else before + weight * leaf.grad
        return gradients, mean_loss

    def update(self, gradients: list[Tensor | None]) -> None:
        for group in self.groups:
            for i in group["places"]:
                g = gradients[i]
                if g is None:
                    continue
                w = self.weights[i]
                if group["scale"] == "fisher":
                    self.fisher[i] = group["fisher_decay"] * self.fisher.get(i, 0.0) + per_filter(
                        g.movedim(group["channel_dim"], 0) if g.dim() > 1 else g
                    )
                g = -g if group["maximize"] else g
                g = g + group["weight_decay"] * w
                if group["momentum"] != 0.0:
                    v = self.buffers.get(i)
                    v = g if v is None else group["momentum"] * v + (1.0 - group["dampening"]) * g
                    self.buffers[i] = v
                    g = g + group["momentum"] * v if group["nesterov"] else v
                self.weights[i] = w - group["lr"] * g
                if group["weight_clip"] is not None:
                    self.weights[i] = clipped(self.weights[i], group["weight_clip"], group["channel_dim"])
            if group["radius"] is not None:
                trained = [i for i in group["places"] if i not in self.frozen]
                norm = math.sqrt(sum(float(self.weights[i].double().square().sum()) for i in trained))
                if norm > group["radius"]:
                    for i in trained:
                        self.weights[i] = self.weights[i] * (group["radius"] / norm)
        self.draw += 1

    def step(self, loss: Callable[[list[Tensor]], Tensor]) -> float:
        gradients, mean_loss = self.gradient([loss])
        self.update(gradients)
        return float(mean_loss)
