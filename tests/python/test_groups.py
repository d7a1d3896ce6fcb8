"""param_groups: who gets noise, weight decay and which filters, by kinds and patterns; describe: the table of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import torch_ssam
from torch_ssam import describe, param_groups


class Net(nn.Module):
    """Every kind: an embedding tied to the head, norms of three makes, biases of several names, columns as filters."""

    def __init__(self) -> None:
        super().__init__()

        class OwnRMSNorm(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(4))

        self.tokens = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.own = OwnRMSNorm()
        self.rnn = nn.RNN(4, 3)
        self.up = nn.ConvTranspose1d(3, 2, 1)
        self.batch = nn.BatchNorm1d(2)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 4))
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.tokens.weight
        self.rnn.weight_ih_l0.requires_grad_(False)


BIASES = {"norm.bias", "rnn.bias_ih_l0", "rnn.bias_hh_l0", "up.bias", "batch.bias", "spectral.bias"}
NORMS = {"norm.weight", "norm.bias", "own.weight", "batch.weight", "batch.bias"}


def names(groups: list[dict[str, Any]], option: str, value: float) -> set[str]:
    return {name for group in groups if group.get(option) == value for name, _ in group["params"]}


def test_by_default_biases_and_norms_get_no_decay_and_all_get_noise() -> None:
    groups = param_groups(Net())
    assert names(groups, "weight_decay", 0.0) == BIASES | NORMS
    assert names(groups, "noise_std", 0.0) == set()
    assert names(groups, "channel_dim", 1) == {"up.weight"}


@pytest.mark.parametrize(
    ("clean", "expected"),
    [
        ("bias", BIASES),
        (["norm"], NORMS),
        ("embedding", {"tokens.weight"}),
        (("head",), {"tokens.weight"}),  # tied
        ("rnn", {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0"}),
        ("*.weight_hh*", {"rnn.weight_hh_l0"}),
        ("spectral.*", {"spectral.bias", "spectral.parametrizations.weight.original"}),
        (["bias", "norm", "embedding"], BIASES | NORMS | {"tokens.weight"}),
        ((), set()),
    ],
)
def test_kinds_and_patterns_choose(clean: Any, expected: set[str]) -> None:
    for groups, option in (
        (param_groups(Net(), clean=clean), "noise_std"),
        (param_groups(Net(), no_decay=clean), "weight_decay"),
    ):
        assert names(groups, option, 0.0) == expected


def test_every_parameter_is_in_one_group_in_the_model_s_order() -> None:
    net = Net()
    groups = param_groups(net, clean="norm", no_decay="bias")
    given = [name for group in groups for name, _ in group["params"]]
    own = [name for name, _ in net.named_parameters()]
    assert sorted(given) == sorted(own)
    assert given[0] == own[0]
    for group in groups:
        inside = [name for name, _ in group["params"]]
        assert inside == [name for name in own if name in inside]
    assert len({(g.get("noise_std"), g.get("weight_decay"), g.get("channel_dim")) for g in groups}) == len(
        groups
    )


def test_transformers_conv1d_counts_columns() -> None:
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    groups = param_groups(nn.Sequential(Conv1D(3, 2), nn.Linear(3, 2)))
    assert names(groups, "channel_dim", 1) == {"0.weight"}


MAKE: dict[str, Any] = {
    "SSAM": lambda groups: torch_ssam.SSAM(groups, lr=0.1, weight_decay=0.1, noise_std=0.3, seed=0),
    "SSAMAdamW": lambda groups: torch_ssam.SSAMAdamW(groups, weight_decay=0.1, noise_std=0.3, seed=0),
    "wrap": lambda groups: torch_ssam.wrap(torch.optim.AdamW(groups, weight_decay=0.1), 0.3, seed=0),
}


@pytest.mark.parametrize("make", MAKE)
def test_clean_ones_stay_clean_in_a_pass_and_others_do_not(make: str) -> None:
    net = Net()
    opt = MAKE[make](param_groups(net, clean=["norm", "embedding"]))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with opt.perturb():
        moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
        sum((p.sum() for p in net.parameters() if p.requires_grad), torch.zeros(())).backward()
    opt.step()
    assert moved == before.keys() - NORMS - {"tokens.weight", "rnn.weight_ih_l0"}
    decays = {n: g["weight_decay"] for g in opt.param_groups for n in g["param_names"]}
    assert {name for name, decay in decays.items() if decay == 0.0} == BIASES | NORMS
    other = MAKE[make](param_groups(copy.deepcopy(net), clean=["norm", "embedding"]))
    other.load_state_dict(opt.state_dict())
    assert describe(other) == describe(opt)


def test_weight_noise_takes_the_groups() -> None:
    net = Net()
    noise = torch_ssam.WeightNoise(param_groups(net, clean="norm"), 0.3, seed=0)
    before, up = net.norm.weight.detach().clone(), net.up.weight.detach().clone()
    with noise.applied():
        assert torch.equal(net.norm.weight, before)
        assert torch.equal(net.own.weight, torch.ones(4))
        assert not torch.equal(net.up.weight, up)
    assert describe(noise).splitlines()[0].split() == ["parameter", "shape", "noise", "weight", "decay"]


def test_the_columns_of_conv_transpose_are_clipped_as_filters() -> None:
    layer = nn.ConvTranspose1d(2, 2, 3, bias=False)
    with torch.no_grad():
        layer.weight[:, 0], layer.weight[:, 1] = 1.0, 100.0  # by dimension 0, rows would hold both
        layer.weight[0, 0, 0] = 9.0
    opt = torch_ssam.SSAM(param_groups(layer), lr=1e-9, noise_std=0.0, weight_clip=2.0)
    layer.weight.grad = torch.zeros_like(layer.weight)
    opt.step()
    rms = (86.0 / 6) ** 0.5
    assert layer.weight[0, 0, 0].item() == pytest.approx(2 * rms, rel=1e-5)
    assert layer.weight.min().item() == 1.0


def test_the_table_says_who_gets_what() -> None:
    net = Net()
    groups = param_groups(net, clean="embedding")
    opt = torch_ssam.SSAM(groups, lr=0.5, weight_decay=1e-3, noise_std=0.25)
    lines = describe(opt).splitlines()
    cells = {line.split()[0]: line.split() for line in lines[1:-1]}
    assert cells.keys() == dict(net.named_parameters()).keys()
    assert cells["tokens.weight"] == ["tokens.weight", "(5,", "4)", "clean", "0.5", "0.001"]
    assert cells["rnn.weight_ih_l0"][-3:] == ["frozen", "0.5", "0.001"]
    assert cells["norm.bias"] == ["norm.bias", "(4,)", "0.25", "0.5", "0"]
    total = sum(p.numel() for p in net.parameters())
    assert lines[-1] == f"{total - 20 - 12} of {total} weights get noise."
    assert len({len(line) for line in lines[:-1]}) == 1


def test_parameters_without_names_have_their_place_and_scales_their_unit() -> None:
    w = nn.Parameter(torch.ones(2, 3))
    text = describe(torch_ssam.SSAM([{"params": [w], "channel_dim": 1}], noise_std=0.1, scale="tensor"))
    assert text.splitlines()[1].startswith("parameter 0  (2, 3)  0.1 x norm of its tensor ")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: param_groups([3]), TypeError, "got a list; expected the torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: param_groups(nn.ReLU()), ValueError, "a model without parameters"),
        (
            lambda: param_groups(Net(), clean="heat"),
            ValueError,
            r"clean has 'heat', which fits no parameter.*tokens\.weight",
        ),
        (lambda: param_groups(Net(), no_decay=[3]), TypeError, r"no_decay has 3 \(int\)"),  # type: ignore[list-item]
        (lambda: param_groups(Net(), no_decay=3), TypeError, "no_decay is a int"),  # type: ignore[arg-type]
        (lambda: describe(torch.optim.SGD(Net().parameters())), TypeError, "got a SGD without noise_std"),
        (lambda: describe(3), TypeError, "got a int without noise_std"),
    ],
)
def test_what_cannot_be_right_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_kind_that_the_model_lacks_is_no_error() -> None:
    assert len(param_groups(nn.Linear(2, 2, bias=False), clean=["embedding", "norm"])) == 1
