"""Every wrong option of the optimizers: a clear error that says what came and what was expected, and nothing changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from front_helpers import Net, batches, loss_of, same_bits, snapshot
from torch import nn

import torch_ssam

NAN, INF = float("nan"), float("inf")

OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lr": -0.1}, ValueError, "lr is -0.1; expected a finite number >= 0"),
    ({"lr": NAN}, ValueError, "lr is nan"),
    ({"lr": "fast"}, TypeError, "lr is 'fast'"),
    ({"lr": torch.ones(2)}, ValueError, "lr is a tensor of shape"),
    ({"noise_std": -1e-3}, ValueError, "noise_std is -0.001; expected"),
    ({"noise_std": INF}, ValueError, "noise_std is inf"),
    ({"noise_std": None}, TypeError, "noise_std is None"),
    ({"momentum": -0.5}, ValueError, "momentum is -0.5"),
    ({"weight_decay": -1}, ValueError, "weight_decay is -1"),
    ({"dampening": NAN}, ValueError, "dampening is nan"),
    ({"nesterov": True}, ValueError, "momentum > 0 and dampening 0"),
    ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "momentum > 0 and dampening 0"),
    ({"distribution": "uniform"}, ValueError, "distribution is 'uniform'; expected one of 'gaussian'"),
    ({"scale": "filter"}, NotImplementedError, "scale='filter' is not available"),
    ({"scale": "banana"}, ValueError, "scale is 'banana'"),
    ({"samples": 0}, ValueError, "samples is 0"),
    ({"samples": 1.5}, TypeError, "samples is 1.5"),
    ({"antithetic": "yes"}, TypeError, "antithetic is 'yes'"),
    ({"clean_weight": 1.0}, ValueError, "clean_weight is 1.0; expected 0 <= clean_weight < 1"),
    ({"clean_weight": -0.1}, ValueError, "clean_weight is -0.1"),
    ({"radius": 0.0}, ValueError, "radius is 0.0; expected a finite number > 0"),
    ({"keep_perturbed": True, "samples": 2}, ValueError, "keep_perturbed=True keeps one perturbation"),
    ({"keep_perturbed": True, "antithetic": True}, ValueError, "antithetic=True"),
    ({"seed": 1.5}, TypeError, "seed is 1.5"),
    ({"seed": 2**64}, ValueError, "seed is"),
]


@pytest.mark.parametrize(("options", "kind", "message"), OPTIONS, ids=lambda v: str(v)[:40])
def test_wrong_options_are_refused_at_construction(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    model = Net()
    with pytest.raises(kind, match=message):
        torch_ssam.SSAM(model.parameters(), **options)


@pytest.mark.parametrize(("options", "kind", "message"), OPTIONS[:23], ids=lambda v: str(v)[:40])
def test_a_group_with_wrong_options_is_not_added(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    opt = torch_ssam.SSAM(Net().parameters())
    if set(options) <= {"keep_perturbed", "samples", "antithetic", "clean_weight"}:
        kind, message = (ValueError, TypeError), ""  # type: ignore[assignment]
    with pytest.raises(kind, match=message):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))], **options})
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize(
    ("params", "kind", "message"),
    [
        ([], ValueError, "empty"),
        ([nn.Parameter(torch.ones(2, dtype=torch.complex64))], ValueError, "complex64"),
        ([torch.ones(2, 2).to_sparse().requires_grad_()], ValueError, "sparse"),
        ([1.0], TypeError, ""),
        (torch.ones(3), TypeError, ""),
    ],
)
def test_wrong_parameters_are_refused(params: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        torch_ssam.SSAM(params)


def test_a_tensor_in_two_groups_is_refused() -> None:
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="same tensor in two groups"):
        torch_ssam.SSAM([{"params": [w]}, {"params": [w]}])


def test_a_sparse_gradient_is_refused_before_anything_is_written() -> None:
    dense = nn.Parameter(torch.ones(4))
    table = nn.Embedding(5, 3, sparse=True)
    opt = torch_ssam.SSAM([dense, table.weight], lr=0.1, noise_std=0.1)
    with opt.perturb():
        (table(torch.tensor([1])).sum() + dense.sum()).backward()
    before = snapshot([dense, table.weight])
    with pytest.raises(ValueError, match=r"sparse.*expected a dense"):
        opt.step()
    assert same_bits(snapshot([dense, table.weight]), before)


@pytest.mark.parametrize("keep", [False, True])
def test_a_number_that_a_scheduler_broke_is_refused_and_nothing_is_written(keep: bool) -> None:
    model = Net()
    opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.1, keep_perturbed=keep)
    opt.train()
    clean = snapshot(Net())
    if keep:
        loss_of(model, *batches(1)[0]).backward()
    else:
        with opt.perturb():
            loss_of(model, *batches(1)[0]).backward()
    opt.param_groups[0]["lr"] = NAN
    with pytest.raises(ValueError, match="lr is nan"):
        opt.step()
    opt.eval()
    assert same_bits(snapshot(model), clean)


def test_wrong_inputs_of_perturbations_are_named() -> None:
    opt = torch_ssam.SSAM(Net().parameters(), samples=2)
    with pytest.raises(ValueError, match="same number of examples"):
        next(opt.perturbations(torch.ones(3, 2), torch.ones(4)))
    with pytest.raises(TypeError, match="expected tensors"):
        next(opt.perturbations("batch"))
