"""Models and checks that the tests of torch_ssam.robustness share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


def layer(*rows: list[float], dtype: torch.dtype = torch.float32) -> nn.Linear:
    """A Linear layer with these rows as its weight."""
    made = nn.Linear(len(rows[0]), len(rows), dtype=dtype)
    with torch.no_grad():
        made.weight.copy_(torch.tensor(rows, dtype=torch.float64))
    return made


def convolutional() -> nn.Sequential:
    """Convolution, BatchNorm with statistics of its own, and two Linear layers, on images of one channel."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )
    for _ in range(3):
        model(torch.randn(16, 1, 8, 8) * 2 + 1)
    return model.eval()


def images(n: int = 40) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of unequal size for `convolutional`."""
    g = torch.Generator().manual_seed(4)
    x = torch.randn(n, 1, 8, 8, generator=g)
    return list(zip(x.split(16), torch.randint(3, (n,), generator=g).split(16), strict=True))


def bits_of(tensor: torch.Tensor) -> list[int]:
    """The bytes of a tensor."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


@contextlib.contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """Fails unless tensors' bits, flags, hooks, requires_grad and torch's generator are afterwards what they were."""

    def state() -> list[object]:
        found: list[object] = [bits_of(torch.get_rng_state())]
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            found += [name, id(tensor), tensor.requires_grad, tensor.grad is None, bits_of(tensor)]
        for module in model.modules():
            hooks = len(module._forward_pre_hooks), len(module._forward_hooks)
            found += [id(module), module.training, getattr(module, "momentum", None), hooks]
        return found

    before = state()
    try:
        yield
    finally:
        assert state() == before
