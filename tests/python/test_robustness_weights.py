"""Which tensors are disturbed, under which names they are found, and which axis counts filters."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from robustness_models import convolutional, layer, left_alone
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from torch_ssam import robustness
from torch_ssam.robustness._weights import chosen_weights

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")


def names(model: nn.Module, **options: Any) -> list[str]:
    return [weight.names[0] for weight in chosen_weights(model, **options)]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(self.embedding(x)))
        return out


class Shaped(nn.Module):
    """Transposed convolutions, and transformers' Conv1D, which stores (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 3, 2)
        self.columns = Conv1D(3, 2)
        self.usual = nn.Conv2d(3, 4, 1)


class Conv1D(nn.Module):
    def __init__(self, out: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, out))
        self.bias = nn.Parameter(torch.zeros(out))


def test_weights_are_tensors_of_two_dimensions_or_more() -> None:
    assert names(convolutional()) == ["0.weight", "4.weight", "6.weight"]
    rest = nn.Module()
    rest.integers = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    rest.empty = nn.Parameter(torch.ones(0, 2))
    rest.register_buffer("table", torch.ones(2, 2))
    rest.token = nn.Parameter(torch.ones(1, 1, 3))
    assert names(rest) == ["token"]


def test_frozen_weights_are_disturbed_too() -> None:
    model = convolutional().requires_grad_(False)
    assert len(names(model)) == 3
    for context in (
        robustness.quantized(model, 2),
        robustness.noisy(model, 0.1),
        robustness.bit_flips(model, 0.5),
    ):
        before = model[0].weight.clone()
        with left_alone(model), context:
            assert not torch.equal(model[0].weight, before)
            assert not model[0].weight.requires_grad


def test_tied_weights_are_disturbed_once_and_skipped_by_any_of_their_names() -> None:
    model = Tied()
    assert [weight.names for weight in chosen_weights(model)] == [
        ("embedding.weight", "head.weight"),
        ("body.weight",),
    ]
    clean = model.embedding.weight.detach().clone()
    once = nn.Embedding(5, 4, _weight=clean.clone())
    with left_alone(model), robustness.bit_flips(model, 0.3, seed=5), robustness.bit_flips(once, 0.3, seed=5):
        assert model.head.weight is model.embedding.weight
        assert torch.equal(model.head.weight, once.weight)
        assert not torch.equal(model.head.weight, clean)
    for skip in ("head", "embedding", "embedding.weight", model.head, nn.Embedding, model.head.weight):
        assert names(model, skip=skip) == ["body.weight"]


def test_skip_takes_patterns_modules_types_and_parameters() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Conv1d(1, 1, 1)), nn.Linear(2, 2))
    assert names(model) == ["0.0.weight", "0.1.weight", "1.weight"]
    assert names(model, skip="0") == ["1.weight"]
    assert names(model, skip="0.1") == ["0.0.weight", "1.weight"]
    assert names(model, skip=["*.0.weight", model[1]]) == ["0.1.weight"]
    assert names(model, skip=(nn.Linear,)) == ["0.1.weight"]
    assert names(model, skip=nn.Conv1d) == ["0.0.weight", "1.weight"]
    assert names(model, skip=(model[0][0].weight,)) == ["0.1.weight", "1.weight"]
    assert names(model, skip="*.bias") == names(model)


def test_what_fits_nothing_is_refused_by_name() -> None:
    model = convolutional()
    for skip, came in (
        ("heads", "'heads'"),
        (nn.Linear(1, 1), "module Linear"),
        (nn.Embedding, "type Embedding"),
    ):
        with left_alone(model), pytest.raises(ValueError, match=re.escape(came)):
            robustness.quantized(model, 4, skip=skip)
    with pytest.raises(ValueError, match=r"'conv\*'"):
        robustness.quantized(model, 4, channel_dim={"conv*": 1})
    for bad in (3, [4], [None], int):
        with pytest.raises(TypeError, match="skip"):
            robustness.quantized(model, 4, skip=bad)
    with pytest.raises(ValueError, match="no weights to disturb beside those of skip"):
        robustness.quantized(model, 4, skip="*")
    with pytest.raises(ValueError, match="no weights to disturb; expected"):
        robustness.quantized(nn.LayerNorm(3), 4)
    with pytest.raises(TypeError, match=r"model is a list; expected a torch\.nn\.Module"):
        robustness.quantized([model], 4)


def test_filters_of_transposed_layers_are_columns() -> None:
    model = Shaped()
    assert [weight.channel_dim for weight in chosen_weights(model)] == [1, 1, 0]
    clean = model.up.weight.detach().clone()
    with left_alone(model), robustness.quantized(model, 2):
        for j in range(3):
            top = float(clean[:, j].abs().max())
            levels = {round(v / top) for v in model.up.weight[:, j].flatten().tolist()}
            assert levels <= {-1, 0, 1}
            assert max(map(abs, model.up.weight[:, j].flatten().tolist())) == top
        assert float(model.columns.weight.detach()[:, 0].abs().max()) > 0


def test_channel_dim_is_a_number_a_mapping_or_a_function() -> None:
    model = Shaped()

    def axes(channel_dim: Any) -> list[int]:
        return [weight.channel_dim for weight in chosen_weights(model, channel_dim=channel_dim)]

    assert axes(0) == [0, 0, 0]
    assert axes(-1) == [3, 1, 3]
    assert axes({"usual": 1, "up": 0}) == [0, 1, 1]
    assert axes(lambda name, module: int(isinstance(module, nn.Conv2d))) == [0, 0, 1]
    with pytest.raises(
        ValueError, match=r"channel_dim of columns\.weight is 2; expected an axis of its shape"
    ):
        axes(2)
    with pytest.raises(TypeError, match="channel_dim"):
        axes("filter")


def test_weights_that_are_computed_at_each_call_are_refused() -> None:
    made = (
        parametrizations.weight_norm(nn.Linear(3, 2)),
        parametrizations.spectral_norm(nn.Linear(3, 2)),
        weight_norm(nn.Linear(3, 2)),
    )
    for model in made:
        with left_alone(model), pytest.raises(ValueError, match="computed at each call"):
            robustness.quantized(model, 4)
        both = nn.Sequential(model, nn.Linear(2, 2))
        assert names(both, skip="0") == ["1.weight"]


def test_tensors_that_cannot_be_disturbed_are_refused() -> None:
    def owner(tensor: torch.Tensor) -> nn.Module:
        module = nn.Module()
        module.weight = nn.Parameter(tensor, requires_grad=False)
        return module

    with pytest.raises(ValueError, match="complex64"):
        robustness.quantized(owner(torch.ones(2, 2, dtype=torch.complex64)), 4)
    with pytest.raises(ValueError, match="expanded"):
        robustness.quantized(owner(torch.ones(1).expand(2, 2)), 4)
    with pytest.raises(ValueError, match="sparse"):
        robustness.quantized(owner(torch.eye(2).to_sparse()), 4)
    with pytest.raises(ValueError, match="not initialised"):
        robustness.quantized(nn.LazyLinear(2), 4)
    shared = nn.Module()
    shared.a = nn.Parameter(torch.ones(2, 2))
    shared.b = nn.Parameter(shared.a.detach().view(4, 1))
    with pytest.raises(ValueError, match="same memory"):
        robustness.quantized(shared, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    model = nn.Sequential(layer([1.0, 2.0]), layer([3.0], [bad]))
    for context in (
        robustness.quantized(model, 2),
        robustness.noisy(model, 0.1),
        robustness.bit_flips(model, 0.5),
    ):
        says = r"1\.weight holds 1 of 2 numbers that are not finite"
        with left_alone(model), pytest.raises(ValueError, match=says), context:
            pass


def test_weights_of_any_strides_are_disturbed_alike() -> None:
    plain = nn.Conv2d(3, 4, 3)
    last = nn.Conv2d(3, 4, 3)
    last.load_state_dict(plain.state_dict())
    last.to(memory_format=torch.channels_last)
    for make in (
        lambda m: robustness.quantized(m, 3, per=5),
        lambda m: robustness.noisy(m, 0.1),
        lambda m: robustness.bit_flips(m, 0.1),
    ):
        with left_alone(last), make(plain), make(last):
            assert torch.equal(plain.weight, last.weight)
