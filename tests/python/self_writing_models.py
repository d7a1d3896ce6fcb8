"""Models that write to themselves as they run, in every way that people's models do, and all that is to be seen of one.

Used by test_measured_models.py, test_hidden_parameters.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numbers() -> Batches:
    x, y = seeded(10, 4), torch.arange(10) % 3
    return list(zip(x.split(4), y.split(4), strict=True))  # type: ignore[no-untyped-call]


def words() -> Batches:
    x, y = torch.arange(30).reshape(10, 3) % 6, torch.arange(10) % 3
    return list(zip(x.split(4), y.split(4), strict=True))  # type: ignore[no-untyped-call]


# -- models that write to themselves ---------------------------------------------------------------------------------


class MaxNorm(nn.Module):
    """An embedding that shortens the rows it reads, tied to the output layer; clean rows are partly too long."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(6, 4, max_norm=1.5)
        self.out = nn.Linear(4, 3)
        self.tied = nn.Linear(4, 6, bias=False)
        self.tied.weight = self.words.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.words(x).mean(1)
        out: Tensor = self.out(hidden) * self.frozen + self.tied(hidden)[:, :3].tanh()
        return out


class Clamped(nn.Module):
    """Clamps its weights before use, through .data as WGANs did, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.full((3,), 2.0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight.data.clamp_(-0.2, 0.2)
        self.scale.data.clamp_(-1, 1)
        out: Tensor = self.layer(x) * self.scale
        return out


class Averaged(nn.Module):
    """Moving averages in every place where people keep them: a buffer, a parameter without gradient, an attribute."""

    buffer: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("buffer", torch.zeros(4))
        self.average = nn.Parameter(torch.zeros(4), requires_grad=False)
        self.attribute = torch.zeros(4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.buffer.mul_(0.9).add_(x.mean(0))
            self.average.data.mul_(0.9).add_(x.mean(0))
            self.attribute.data += x.mean(0)
        out: Tensor = self.layer(x - self.buffer - self.average - self.attribute)
        return out


class Replacing(nn.Module):
    """Resizes, replaces and adds buffers; replaces the memory and the shape of parameters; leaves graphs behind."""

    resized: Tensor
    shrunk: Tensor
    replaced: Tensor
    removed: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.spare = nn.Parameter(torch.ones(2))
        for name, size in (("resized", 3), ("shrunk", 5), ("replaced", 4), ("removed", 1)):
            self.register_buffer(name, torch.ones(size))
        self.register_buffer("absent", None)
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.resized.resize_(self.resized.numel() + 2).fill_(7)
        self.shrunk.resize_(1).zero_()
        self.shrunk.untyped_storage().resize_(4)
        self.replaced = self.replaced * 2
        self.absent = torch.ones(2)
        self.register_buffer(f"new{len(self._buffers)}", torch.ones(1), persistent=False)
        self.register_parameter("also_new", nn.Parameter(torch.ones(1)))
        self._buffers.pop("removed", None)
        self.spare.data = torch.zeros(3)
        self.layer.weight.data = self.layer.weight.data * 1.5
        self.spare.requires_grad_(not self.spare.requires_grad)
        self.hidden = self.layer(x)
        self.unheard_of = self.hidden * 2
        return self.hidden


class Busy(nn.Module):
    """Changes modes, seeds torch, and makes gradients of its own, in place of what is there too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.frozen = nn.Linear(4, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(5)
        self.layer.eval()
        self.frozen.train(not self.frozen.training)
        with torch.enable_grad():
            (self.layer.weight**2).sum().backward()  # type: ignore[no-untyped-call]
            self.frozen.requires_grad_()
        out: Tensor = self.layer(x) + self.frozen(x).detach()
        return out


class Graph(nn.Module):
    """A buffer that an in-place operation pulls into the graph."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        self.count.add_(out.square().mean())
        return out


def spectral() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    torch.nn.utils.spectral_norm(layers[0])
    torch.nn.utils.parametrizations.spectral_norm(layers[2])
    return layers


def weight_normed() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(layers[0])  # type: ignore[deprecated]
    return layers


def pruned() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    torch.nn.utils.prune.l1_unstructured(layers[0], "weight", 0.3)  # type: ignore[no-untyped-call]
    layers(seeded(2, 4))  # leaves the product with the mask in an attribute
    return layers


class Locked(nn.Module):
    """Holds a lock, which cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            out: Tensor = self.layer(x)
            return out


def observed() -> nn.Module:
    """Quantisation-aware training's layers, whose observers resize their buffers."""
    ao = pytest.importorskip("torch.ao.quantization")
    observer = ao.HistogramObserver.with_args(bins=16, reduce_range=False)
    per_channel = ao.default_per_channel_weight_fake_quant
    model = nn.Sequential(
        ao.QuantStub(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), ao.DeQuantStub()
    ).train()
    model.qconfig = ao.QConfig(activation=observer, weight=per_channel)
    found: nn.Module = ao.prepare_qat(model)
    return found


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batches]]] = {
    "max_norm": (MaxNorm, words),
    "clamped": (Clamped, numbers),
    "averaged": (Averaged, numbers),
    "replacing": (Replacing, numbers),
    "graph": (Graph, numbers),
    "busy": (Busy, numbers),
    "spectral_norm": (spectral, numbers),
    "weight_norm": (weight_normed, numbers),
    "pruned": (pruned, numbers),
    "locked": (Locked, numbers),
    "observed": (observed, numbers),
}


def describe(t: Tensor) -> tuple[Any, ...]:
    bits = bytes(t.detach().contiguous().reshape(-1).view(torch.uint8).tolist())
    memory = t.untyped_storage()
    place = memory._cdata, memory.nbytes(), t.storage_offset(), tuple(t.shape), t.stride(), t.dtype
    return id(t), place, t.requires_grad, t.is_leaf, bits


def state(model: nn.Module) -> dict[str, Any]:
    """All that a measure must leave alone: objects, memory, bits, order, flags, gradients, random numbers."""
    found: dict[str, Any] = {"random": bytes(torch.get_rng_state().tolist())}
    for prefix, module in model.named_modules():
        members = {**module._parameters, **module._buffers}
        found[f"{prefix}: names"] = list(module._parameters), list(module._buffers), list(module._modules)
        found[f"{prefix}: not saved"] = set(module._non_persistent_buffers_set)
        found[f"{prefix}: training"] = module.training
        found[f"{prefix}: other"] = {
            name: describe(value) for name, value in vars(module).items() if isinstance(value, Tensor)
        }
        for name, t in members.items():
            grad = None if t is None or t.grad is None else (id(t.grad), t.grad._version, t.grad.tolist())
            found[f"{prefix}.{name}"] = None if t is None else (*describe(t), grad)
    return found
