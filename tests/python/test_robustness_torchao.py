"""grid="full" and "affine" round as torchao does, bit for bit: whole Linear layers, groups, and its blocks for convolutions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from torch_ssam import robustness

torchao = pytest.importorskip(
    "torchao.quantization", reason="NOT TESTED here: torchao (pip install torchao==0.18.0)"
)

BITS = (8, 4, 3, 2)
MAPPINGS = {"full": "SYMMETRIC", "affine": "ASYMMETRIC"}


def theirs(model: nn.Module, bits: int, grid: str, granularity: Any) -> nn.Module:
    """A copy of the model with weights that torchao rounded."""
    from torchao.quantization.quant_primitives import MappingType

    rounded = copy.deepcopy(model)
    config = torchao.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"),
        granularity=granularity,
        mapping_type=MappingType[MAPPINGS[grid]],
    )
    torchao.quantize_(
        rounded, config, filter_fn=lambda module, _name: isinstance(module, nn.Linear | nn.Conv2d)
    )
    return rounded


def models() -> nn.Sequential:
    """Layers of odd sizes: weights of both signs, of one sign, zeros, powers of two (ties), and tiny ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(33, 65), nn.Linear(65, 7), nn.Linear(7, 16))
    with torch.no_grad():
        model[1].weight[0] = 0.0
        model[1].weight[1].abs_()
        model[1].weight[2].abs_().neg_()
        model[1].weight[3] = torch.arange(-32, 33) / 16.0
        model[1].weight[4] *= 1e-30
        model[1].weight[5] *= 1e-38
    return model


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    found = []
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight: Any = module.weight
            found.append((weight.dequantize() if hasattr(weight, "dequantize") else weight).detach().clone())
    return found


def assert_same_bits(ours: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    assert len(ours) == len(others) > 0
    for a, b in zip(ours, others, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.mark.parametrize("grid", MAPPINGS)
@pytest.mark.parametrize("bits", BITS)
def test_linear_layers_are_torchaos_bit_for_bit(bits: int, grid: str) -> None:
    model = models()
    clean = weights_of(model)
    other = theirs(model, bits, grid, torchao.PerAxis(0))
    with robustness.quantized(model, bits, grid=grid):
        ours = weights_of(model)
        x = torch.randn(5, 33)
        assert torch.equal(model(x), other(x))
    assert_same_bits(ours, weights_of(other))
    assert not torch.equal(ours[0], clean[0])


@pytest.mark.parametrize("grid", MAPPINGS)
@pytest.mark.parametrize("bits", BITS)
def test_groups_of_a_row_are_torchaos_bit_for_bit(bits: int, grid: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 9), nn.Linear(9, 3))
    only = nn.Sequential(model[0])
    with robustness.quantized(only, bits, grid=grid, per=16):
        ours = weights_of(only)
    assert_same_bits(ours, weights_of(theirs(only, bits, grid, torchao.PerGroup(16))))


@pytest.mark.parametrize("grid", MAPPINGS)
@pytest.mark.parametrize("bits", BITS)
def test_torchaos_blocks_of_a_convolution_are_rows_of_input_channels(bits: int, grid: str) -> None:
    """For a Conv2d it has a step for each output channel and kernel position: rows of a Linear (out * height * width, in)."""
    torch.manual_seed(2)
    conv = nn.Sequential(nn.Conv2d(5, 6, 3))
    weight = conv[0].weight.detach()
    other = weights_of(theirs(conv, bits, grid, torchao.PerAxis(0)))[0]
    rows = nn.Linear(5, 6 * 9)
    with torch.no_grad():
        rows.weight.copy_(weight.permute(0, 2, 3, 1).reshape(-1, 5))
    with robustness.quantized(rows, bits, grid=grid):
        ours = rows.weight.detach().reshape(6, 3, 3, 5).permute(0, 3, 1, 2).clone()
    assert_same_bits([ours], [other])
