"""LoRA: the guide's statements about noise on factors, and the warning of weight_clip on them, by hand and with peft."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn

import torch_ssam

MAKERS: dict[str, Callable[..., Any]] = {
    "ssam": lambda params, **options: torch_ssam.SSAM(params, lr=0.1, seed=3, **options),
    "adamw": lambda params, **options: torch_ssam.SSAMAdamW(params, lr=0.1, seed=3, **options),
    "wrap": lambda params, **options: torch_ssam.wrap(torch.optim.AdamW(params, lr=0.1), seed=3, **options),
}


class LoRA(nn.Module):
    """A frozen layer beside B A of rank 2, B zero at the start, as Hu et al. 2021 have it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Linear(12, 10).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, 12))
        self.up = nn.Parameter(torch.zeros(10, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T  # type: ignore[no-any-return]


def added(layer: LoRA) -> Tensor:
    return layer.up.detach() @ layer.down.detach()


@pytest.mark.parametrize("scale", ["filter", "tensor", "absmax", "tensor_absmax"])
@pytest.mark.parametrize("kind", MAKERS)
def test_relative_noise_leaves_b_at_zero_and_so_the_product(kind: str, scale: str) -> None:
    layer = LoRA()
    opt = MAKERS[kind](layer.parameters(), noise_std=0.1, scale=scale)
    with opt.perturb():
        assert not bool(layer.up.any())
        assert not bool(added(layer).any())
        assert not torch.equal(layer.down, LoRA().down)
        layer(torch.ones(3, 12)).square().sum().backward()
    opt.step()
    before = added(layer)
    with opt.perturb():  # B has grown
        assert not torch.equal(added(layer), before)
        layer(torch.ones(3, 12)).sum().backward()


def test_isotropic_noise_on_the_factors_is_not_isotropic_on_the_product() -> None:
    """With B = 0 the product's noise is n_B (A + n_A): of rank 2, and of variance s^2 (sum of a row's A^2 + 2 s^2)."""
    layer = LoRA()
    noise = torch_ssam.WeightNoise([layer.down, layer.up], 0.1, seed=0)
    found = []
    for _ in range(400):
        with noise.applied():
            found.append(added(layer))
    assert torch.linalg.matrix_rank(found[0]) == 2
    variance = torch.stack(found).var(0).mean(0)  # of each column, over draws and rows
    expected = 0.01 * (layer.down.detach().square().sum(0) + 2 * 0.01)
    torch.testing.assert_close(
        variance, expected, rtol=0.15, atol=0
    )  # of 4000 values a column: 15% is over 5 sigma
    assert float(variance.max() / variance.min()) > 2


@pytest.mark.parametrize("kind", MAKERS)
def test_weight_clip_on_factors_warns(kind: str) -> None:
    for params in (lambda: LoRA().parameters(), lambda: list(LoRA().parameters())[::-1]):
        with pytest.warns(UserWarning, match="factors of a product"):
            MAKERS[kind](params(), weight_clip=2.0)
        with pytest.warns(UserWarning, match=r"weight_clip=2\.5 on parameter"):
            MAKERS[kind]([{"params": list(params()), "weight_clip": 2.5}])
    named = [
        ("q.lora_A.default.weight", nn.Parameter(torch.ones(2, 12))),
        ("w", nn.Parameter(torch.ones(3, 3))),
    ]
    with pytest.warns(UserWarning, match=r"on q\.lora_A\.default\.weight: factors"):
        MAKERS[kind](named, weight_clip=2.0)


@pytest.mark.parametrize("kind", MAKERS)
def test_other_weights_do_not_warn(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MAKERS[kind](LoRA().parameters())  # not clipped
        MAKERS[kind](front.Net().parameters(), weight_clip=2.0)
        zero = nn.Linear(4, 4)
        nn.init.zeros_(zero.weight)  # a layer that starts at zero is no factor: its rank is full
        MAKERS[kind](nn.Sequential(nn.Linear(4, 4), zero).parameters(), weight_clip=2.0)
        frozen = LoRA().requires_grad_(False)
        MAKERS[kind](frozen.parameters(), weight_clip=2.0)
        MAKERS[kind](nn.Sequential(nn.Linear(12, 2), nn.Linear(2, 10)).parameters(), weight_clip=2.0)
        if kind != "wrap":
            MAKERS[kind]([nn.Parameter(torch.zeros(10, 2, device="meta"))], weight_clip=2.0)


@pytest.mark.parametrize("kind", MAKERS)
def test_peft_s_adapters_train_with_noise_and_warn_of_clipping(kind: str) -> None:
    peft = pytest.importorskip("peft", reason="NOT TESTED here: LoRA of peft needs peft")
    net = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10))
    model = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["0", "2"]))
    factors = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert len(factors) == 4
    with pytest.warns(UserWarning, match=r"lora_A.*lora_B.* and 2 more"):
        MAKERS[kind](factors, weight_clip=2.0)
    with pytest.warns(UserWarning, match="factors of a product"):
        MAKERS[kind]([p for _, p in factors], weight_clip=2.0)
    opt = MAKERS[kind](model.parameters(), noise_std=0.01)
    before = front.snapshot(model)
    for _ in range(3):
        opt.zero_grad()
        with opt.perturb():
            model(torch.ones(3, 12)).square().sum().backward()
        opt.step()
    for p, start in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, start) != p.requires_grad
