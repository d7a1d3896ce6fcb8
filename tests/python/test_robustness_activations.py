"""robustness.quantized_activations, and activation_bits of measure."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torch_ssam import robustness


def make() -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    return model, torch.randn(20, 1, 6, 6)


def test_inputs_of_each_layer_are_rounded_by_their_own_range() -> None:
    model, x = make()
    with robustness.quantized_activations(model, 4):
        found = model(x)

    def rounded(t: torch.Tensor) -> torch.Tensor:
        step = t.abs().max() / 7
        return torch.round(t / step).clamp(-7, 7) * step

    by_hand = model[3](rounded(torch.relu(model[0](rounded(x))).flatten(1)))
    torch.testing.assert_close(found, by_hand)


def test_an_affine_grid_uses_all_levels_for_inputs_of_one_sign() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    x = torch.linspace(0, 1, 256)[:, None]
    with robustness.quantized_activations(layer, 4, grid="affine"):
        assert len(layer(x).detach().unique()) == 16
    with robustness.quantized_activations(layer, 4):
        assert len(layer(x).detach().unique()) == 8


def test_nothing_is_left_afterwards_not_even_after_an_exception() -> None:
    model, x = make()
    before = model(x)

    def interrupted() -> None:
        with robustness.quantized_activations(model, 2):
            assert not torch.equal(model(x), before)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert torch.equal(model(x), before)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_is_skipped_gets_its_inputs_as_they_are() -> None:
    model, x = make()
    before = model(x)
    with robustness.quantized_activations(model, 2, skip=["0", "3"][:1]):
        inner = model[0](x)
        assert torch.equal(inner, make()[0][0](x))
        assert not torch.equal(model(x), before)


def test_gradients_pass_as_if_nothing_were_rounded() -> None:
    layer = nn.Linear(3, 1, bias=False)
    x = torch.tensor([[1.0, 0.4, 0.0]], requires_grad=True)
    with robustness.quantized_activations(layer, 2):
        layer(x).sum().backward()
    assert torch.equal(x.grad, layer.weight.detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_keep_theirs(dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 2).to(dtype)
    with robustness.quantized_activations(layer, 8):
        out = layer(torch.randn(3, 4, dtype=dtype))
        assert out.dtype == dtype
        assert bool(out.isfinite().all())
        assert layer(torch.empty(0, 4, dtype=dtype)).shape == (0, 2)


def test_tokens_of_an_embedding_stay_integers() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    tokens = torch.tensor([[1, 2, 3]])
    with robustness.quantized_activations(model, 8):
        assert model(tokens).shape == (1, 3, 2)


def test_measure_rounds_activations_with_the_weights_and_says_so() -> None:
    model, x = make()
    y = model(x).argmax(1)
    found = robustness.measure(model, [(x, y)], bits=(8, 2), noise=0.1, flips=(), draws=2, activation_bits=3)
    plain = robustness.measure(model, [(x, y)], bits=(8, 2), noise=0.1, flips=(), draws=2)
    with robustness.quantized(model, 2), robustness.quantized_activations(model, 3):
        by_hand = robustness.accuracy(model(x), y)
    assert found.find("bits", 2).mean == by_hand
    assert found.find("noise", 0.1).values == plain.find("noise", 0.1).values
    assert found.clean == plain.clean == 100.0
    assert "8 bits, 255 levels, activations 3 bits" in str(found)
    assert "activations" not in str(plain)
    again = robustness.Robustness.from_json(found.to_json())
    assert again == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "bits is 1; expected 2 to 16"),
        ({"bits": 8, "grid": "wide"}, "grid is 'wide'"),
        ({"bits": 8, "skip": "nothing"}, "fits no parameter"),
    ],
    ids=["bits", "grid", "skip"],
)
def test_what_makes_no_sense_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        robustness.quantized_activations(make()[0], **options)


def test_bits_of_activations_out_of_range_are_refused_before_anything_is_measured() -> None:
    model, x = make()
    with pytest.raises(ValueError, match="activation_bits is 17; expected 2 to 16"):
        robustness.measure(model, [(x, x)], activation_bits=17)


def test_entering_it_inside_itself_is_refused_and_script_modules_are() -> None:
    model, _ = make()
    context = robustness.quantized_activations(model, 8)
    with context, pytest.raises(RuntimeError, match="entered inside itself"), context:
        pass
    scripted = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(TypeError, match="ScriptModule"):
        robustness.quantized_activations(scripted, 8)
