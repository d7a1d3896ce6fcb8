"""What the tests of the Python fronts share: small models that are never at a zero gradient, bit comparisons, and one
training loop for each way of driving an optimizer.

`drive` is the claim "all ways of driving are one": every way must end in the same bits. Used by
test_ssam_*.py, test_keep_perturbed.py,
test_checkpoints.py, test_exceptions.py, test_signals.py, test_wrap.py, test_diagonal_*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_ssam


class Net(nn.Module):
    """Two layers with biases, a 0-dim scale and sizes that no SIMD width divides."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))

        self.first = parameter(7, 5)
        self.bias = parameter(7)
        self.second = parameter(7, 3)
        self.scale = parameter()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (torch.tanh(x @ self.first.T + self.bias) @ self.second)


def data(rows: int = 12, seed: int = 100, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()


def snapshot(source: nn.Module | Iterable[Tensor]) -> list[Tensor]:
    tensors = source.parameters() if isinstance(source, nn.Module) else source
    return [t.detach().clone() for t in tensors]


def same_bits(first: Iterable[Tensor], second: Iterable[Tensor]) -> bool:
    """Equal as bits: -0 differs from 0, and NaN equals itself."""
    pairs = list(zip(first, second, strict=True))
    return all(a.shape == b.shape and a.dtype == b.dtype and _bytes(a) == _bytes(b) for a, b in pairs)


def _bytes(tensor: Tensor) -> bytes:
    return (
        tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    )


def optimizer_bits(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All tensors of its state, in a fixed order."""
    state = optimizer.state_dict()["state"]
    return [
        value.detach().clone()
        for key in sorted(state)
        for _, value in sorted(state[key].items())
        if isinstance(value, Tensor)
    ]


Batches = list[tuple[Tensor, Tensor]]


def batches(count: int, rows: int = 12, dtype: torch.dtype = torch.float32) -> Batches:
    return [data(rows, seed=1000 + k, dtype=dtype) for k in range(count)]


def by_perturb(opt: Any, model: nn.Module, todo: Batches) -> None:
    for x, y in todo:
        opt.zero_grad()
        with opt.perturb():
            loss_of(model, x, y).backward()
        opt.step()


def by_closure(opt: Any, model: nn.Module, todo: Batches) -> None:
    for x, y in todo:

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            opt.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            return loss

        opt.step(closure)


def by_perturbations(opt: Any, model: nn.Module, todo: Batches) -> None:
    for x, y in todo:
        opt.zero_grad()
        for _ in opt.perturbations():
            loss_of(model, x, y).backward()
        opt.step()


def by_stock_loop(opt: Any, model: nn.Module, todo: Batches) -> None:
    """The loop of torch.optim: for keep_perturbed in train, and for plain optimizers."""
    for x, y in todo:
        opt.zero_grad()
        loss_of(model, x, y).backward()
        opt.step()


Drive = Callable[[Any, nn.Module, Batches], None]
ONE_PASS: dict[str, Drive] = {
    "perturb": by_perturb,
    "closure": by_closure,
    "perturbations": by_perturbations,
}


def ssam(model: nn.Module, **options: Any) -> torch_ssam.SSAM:
    """Defaults under which everything matters: momentum, decay, noise as large as the weights."""
    return torch_ssam.SSAM(
        model.parameters(),
        **{"lr": 0.05, "noise_std": 0.3, "momentum": 0.9, "weight_decay": 0.01, "seed": 7, **options},
    )


def adamw(model: nn.Module, **options: Any) -> torch_ssam.SSAMAdamW:
    """The same of the other rule."""
    return torch_ssam.SSAMAdamW(
        model.parameters(), **{"lr": 0.05, "noise_std": 0.3, "weight_decay": 0.1, "seed": 7, **options}
    )


# What the two share is tested over both from the same cases.
both_rules = pytest.mark.parametrize("make", [ssam, adamw], ids=["ssam", "adamw"])


# Noise that float32 adds to weights of `on_a_grid` and takes off again without rounding.
REGENERATED: dict[str, Any] = {"memory": "regenerate", "distribution": "rademacher", "noise_std": 0.25}


def on_a_grid(model: nn.Module) -> None:
    """Rounds the weights to multiples of 1/1024."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1024).round_().div_(1024)


def expected_noise(
    weights: Tensor,
    seed: int,
    draw: int,
    place: int,
    noise_std: float,
    distribution: str = "gaussian",
    **how: Any,
) -> Tensor:
    """clean + noise by the operator that the generator's own tests check."""
    generator = torch.tensor([seed, draw], dtype=torch.int64)
    perturbed: Tensor = torch.ops.torch_ssam.perturbed(
        weights.detach(),
        generator,
        place,
        noise_std,
        distribution,
        how.get("sample", 0),
        how.get("negate", False),
    )
    return perturbed


def perturbed_copies(opt: Any) -> Iterator[Tensor]:
    """What every parameter of an SSAM must hold inside its next perturb()."""
    place = 0
    for group in opt.param_groups:
        for p in group["params"]:
            if p.requires_grad and group["noise_std"] > 0:
                yield expected_noise(p, opt.seed, opt.draw, place, group["noise_std"], group["distribution"])
            else:
                yield p.detach().clone()
            place += 1


def wrapped_adamw(model: nn.Module, **options: Any) -> torch_ssam.WrappedOptimizer:
    base = torch.optim.AdamW(model.parameters(), lr=0.05)
    return torch_ssam.wrap(base, **{"noise_std": 0.3, "seed": 7, **options})


def wrapped_sgd(model: nn.Module, **options: Any) -> torch_ssam.WrappedOptimizer:
    base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return torch_ssam.wrap(base, **{"noise_std": 0.3, "seed": 7, **options})


class Alarm(Exception):
    """What tests raise inside a pass: an Exception of nobody else."""


# -- diagonal networks ---------------------------------------------------------------------------------------


def product_of(weight: Tensor) -> Tensor:
    product = torch.ones_like(weight[0])
    for layer in weight:
        product = product * layer
    return product


def written_out(x: Tensor, weight: Tensor, readout: str | None = None) -> Tensor:
    y = x * product_of(weight)
    return y if readout is None else y.sum(-1)


def diagonal(features: int, depth: int, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A DiagonalLinear with random weights, the same for every call of the same shape."""
    layer = torch_ssam.DiagonalLinear(features, depth, dtype=dtype, **{"seed": 0, **options})
    with torch.no_grad():
        layer.weight.copy_(values(depth, features, seed=0))
    return layer


def values(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def case_name(value: Any) -> str:
    """The name of a test's case: a function by its name, since an address differs from one test process to another."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={case_name(one)}" for key, one in value.items()) or "defaults"
    return str(getattr(value, "__name__", value))
