"""The networks that settings name: small, so that a run takes a minute of one core.

A model is made by a function of the data, which knows its shapes; `make_model` finds it by name, or takes the
user's. Tests: tests/python/test_compare.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.optim.lr_scheduler import CosineAnnealingLR

from ._data import Data

ModelFactory = Callable[[Data], nn.Module]


def linear(data: Data) -> nn.Module:
    """One linear layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(data.features, data.outputs))


def mlp(data: Data) -> nn.Module:
    """Two hidden layers of 128 and 64 ReLUs."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(data.features, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, data.outputs),
    )


def plain_cnn(height: int, width: int, classes: int, channels: int = 16) -> nn.Module:
    """Two convolutions and a linear layer; images of up to 16 pixels are not halved at once.

    >>> import torch
    >>> tuple(plain_cnn(8, 8, 10)(torch.zeros(2, 1, 8, 8)).shape)
    (2, 10)
    """
    stride = 2 if min(height, width) > 16 else 1
    model = nn.Sequential(
        nn.Conv2d(1, channels, 5, stride=stride, padding=2),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(classes),
    )
    model(torch.zeros(1, 1, height, width))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def cnn(data: Data) -> nn.Module:
    """`plain_cnn` of the data's size, without BatchNorm."""
    _, height, width = _image_shape(data, "cnn")
    return plain_cnn(height, width, data.outputs)


class _Residual(nn.Module):
    """relu(body(x) + shortcut(x)), two 3 x 3 convolutions with BatchNorm (He et al., arXiv 1512.03385)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut = (
            nn.Identity()
            if channels == out and stride == 1
            else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def cnn_bn(data: Data) -> nn.Module:
    """Three 3 x 3 convolutions with BatchNorm, and two linear layers; 96k parameters for images of 28 pixels."""
    channels, height, width = _image_shape(data, "cnn-bn")

    def block(given: int, made: int) -> list[nn.Module]:
        return [nn.Conv2d(given, made, 3, 2, 1), nn.BatchNorm2d(made), nn.ReLU()]

    model = nn.Sequential(
        *block(channels, 16),
        *block(16, 32),
        *block(32, 64),
        nn.Flatten(),
        nn.Linear(64 * -(-height // 8) * -(-width // 8), 64),
        nn.ReLU(),
        nn.Linear(64, data.outputs),
    )
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def resnet(data: Data) -> nn.Module:
    """A residual network with BatchNorm: a stem of 16 channels, blocks of 32 and 64; 73k parameters."""
    channels, height, width = _image_shape(data, "resnet")
    model = nn.Sequential(
        nn.Conv2d(channels, 16, 3, 2 if min(height, width) > 16 else 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        _Residual(16, 32, 2),
        _Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, data.outputs),
    )
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class _Attention(nn.Module):
    """A pre-norm transformer block: attention with 4 heads, then two linear layers; optionally causal."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class _Transformer(nn.Module):
    """Tokens plus learnt positions, blocks, a norm, and a linear head on every token or on their mean."""

    def __init__(
        self, embed: nn.Module, length: int, width: int, depth: int, outputs: int, *, causal: bool
    ) -> None:
        super().__init__()
        self.embed = embed
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(_Attention(width, causal) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)
        self.pool = not causal

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.embed(x) + self.position))
        logits: Tensor = self.head(x.mean(1) if self.pool else x)
        return logits


class _Patches(nn.Module):
    """Patches of an image as tokens: a convolution whose stride is its size."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def vit(data: Data) -> nn.Module:
    """A small vision transformer: 16 patches, width 48, 2 blocks (Dosovitskiy et al., arXiv 2010.11929)."""
    channels, height, width = _image_shape(data, "vit")
    patch = max(1, min(height, width) // 4)
    tokens = (height // patch) * (width // patch)
    return _Transformer(_Patches(channels, patch, 48), tokens, 48, 2, data.outputs, causal=False)


def vit_pretrained(data: Data) -> nn.Module:
    """`vit`, trained before on the data's other task by AdamW, 10 epochs, without noise; the head starts anew.

    The seed that torch has been given decides the pretraining too, so that all methods start from the same weights.
    """
    model = vit(data)
    pretrained = _pretrained_vit(data, torch.initial_seed())
    model.load_state_dict({**model.state_dict(), **pretrained})
    return model


#: Weights without the head, by the fingerprint of the data and the seed: pretrained once a process.
_PRETRAINED: dict[tuple[str, int], dict[str, Tensor]] = {}


def _pretrained_vit(data: Data, seed: int) -> dict[str, Tensor]:
    if data.pretraining is None:
        raise ValueError(
            f"model 'vit-pretrained' needs data with another task to pretrain on, got {data.name} without. Use data "
            "'fashion-mnist-pretrained', or fill Data.pretraining."
        )
    key = data.fingerprint(), seed
    if key not in _PRETRAINED:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            x, y = data.pretraining
            model = vit(replace(data, train=(x, y), outputs=int(y.max()) + 1))
            epochs, batch = 10, 100
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
            schedule = CosineAnnealingLR(optimizer, epochs * -(-len(x) // batch))
            for _ in range(epochs):
                for rows in torch.randperm(len(x)).split(batch):  # type: ignore[no-untyped-call]
                    optimizer.zero_grad()
                    data.loss(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    schedule.step()
        _PRETRAINED[key] = {
            name: value for name, value in model.state_dict().items() if not name.startswith("head.")
        }
    return _PRETRAINED[key]


def transformer(data: Data) -> nn.Module:
    """A causal transformer that predicts each next token: width 48, 2 blocks."""
    if data.train[0].dim() != 2 or data.train[0].dtype != torch.int64:
        raise ValueError(
            f"model 'transformer' needs int64 tokens of shape (n, length), got {data.train[0].dtype} of shape "
            f"{tuple(data.train[0].shape)} from {data.name}. Use data 'text' or another model."
        )
    return _Transformer(
        nn.Embedding(data.outputs, 48), data.train[0].shape[1], 48, 2, data.outputs, causal=True
    )


MODELS: dict[str, ModelFactory] = {
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    "cnn-bn": cnn_bn,
    "resnet": resnet,
    "vit": vit,
    "vit-pretrained": vit_pretrained,
    "transformer": transformer,
}


def make_model(factory: ModelFactory, data: Data, seed: int) -> nn.Module:
    """The model with the first weights of this seed, checked to be trainable."""
    torch.manual_seed(seed)
    model: Any = factory(data)
    if not isinstance(model, nn.Module) or not any(p.requires_grad for p in model.parameters()):
        raise TypeError(
            f"the model's function gave {type(model).__name__}; expected a torch.nn.Module with parameters to "
            "train."
        )
    return model


def _image_shape(data: Data, model: str) -> tuple[int, int, int]:
    shape = tuple(data.train[0].shape[1:])
    if len(shape) != 3:
        raise ValueError(
            f"model {model!r} needs images of shape (channels, height, width), got examples of shape {shape} from "
            f"{data.name}. Use data 'fashion-mnist' or 'digits', or another model."
        )
    return shape[0], shape[1], shape[2]
