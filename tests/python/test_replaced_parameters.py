"""Parameters that leave their group in the middle of training, as densification in Gaussian splatting and layer surgery
replace and remove them: nothing of ours keeps them alive or stumbles over them. PEERS row 38.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import nn

import torch_ssam

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "kept": {"keep_perturbed": True},
    "fisher": {"scale": "fisher"},
    "filter, kept": {"scale": "filter", "keep_perturbed": True},
    "masters": {"master_dtype": torch.float32},
    "masters, kept": {"master_dtype": torch.float32, "keep_perturbed": True},
    "regenerate, kept": {"memory": "regenerate", "keep_perturbed": True},
}
OF_SSAM_ALONE = {"masters", "masters, kept"}


def make(name: str, wrapped: bool) -> tuple[list[nn.Parameter], Any]:
    dtype = torch.bfloat16 if "masters" in name else torch.float32
    params = [nn.Parameter(torch.full((3, 2), float(i + 1), dtype=dtype)) for i in range(3)]
    if wrapped:
        base = torch.optim.SGD(params, lr=0.1)
        return params, torch_ssam.wrap(base, noise_std=0.3, seed=1, **OPTIONS[name])
    return params, torch_ssam.SSAM(params, lr=0.1, noise_std=0.3, seed=1, **OPTIONS[name])


def step(opt: Any) -> None:
    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = torch.stack([p.square().sum() for g in opt.param_groups for p in g["params"]]).sum()
        loss.backward()
        return loss

    opt.step(closure)


CASES = [
    pytest.param(name, wrapped, id=f"{name}-{'wrap' if wrapped else 'ssam'}")
    for name in OPTIONS
    for wrapped in (False, True)
    if not (wrapped and name in OF_SSAM_ALONE)
]


@pytest.mark.parametrize("change", ["replaced", "removed"])
@pytest.mark.parametrize(("name", "wrapped"), CASES)
def test_a_parameter_that_left_its_group_is_forgotten(name: str, wrapped: bool, change: str) -> None:
    params, opt = make(name, wrapped)
    opt.train()
    step(opt)
    step(opt)
    group = opt.param_groups[0]["params"]
    old = weakref.ref(group[1])
    before = group[1].detach().clone()
    if change == "replaced":
        group[1] = nn.Parameter(torch.cat([before, before]))  # densified: other rows than before
    else:
        del group[1]
    opt.state.pop(old(), None)
    params.clear()
    state = opt.state_dict()  # right away: used to raise KeyError
    assert set(state["state"]) <= set(range(3 if change == "replaced" else 2))
    step(opt)
    opt.eval()
    step_after = opt.state_dict()
    assert len(step_after["param_groups"][0]["params"]) == (3 if change == "replaced" else 2)
    opt.train()
    step(opt)
    opt.eval()
    del state, step_after
    gc.collect()
    assert old() is None, "the replaced parameter is still alive"


@pytest.mark.parametrize("name", ["kept", "filter, kept", "masters, kept"])
def test_a_perturbed_parameter_that_leaves_its_group_gets_its_clean_bits_back(name: str) -> None:
    _, opt = make(name, wrapped=False)
    opt.train()
    step(opt)
    group = opt.param_groups[0]["params"]
    old = group.pop(1)
    with opt.clean_weights():
        clean = old.detach().clone()
    opt.eval()
    assert torch.equal(old, clean)
    opt.train()
    assert torch.equal(old, clean), "a parameter outside of all groups was perturbed"


# Not where sums or masters remember the steps before.
@pytest.mark.parametrize("wrapped", [False, True], ids=["ssam", "wrap"])
@pytest.mark.parametrize("name", ["plain", "kept", "filter, kept", "regenerate, kept"])
def test_those_that_stay_go_on_as_if_placed_so_from_the_start(name: str, wrapped: bool) -> None:
    """A removed tensor moves the places of those after it; from the next draw on they have that place's noise."""
    _, opt = make(name, wrapped)
    opt.train()
    step(opt)
    opt.eval()
    left = [p.detach().clone() for i, p in enumerate(opt.param_groups[0]["params"]) if i != 1]
    del opt.param_groups[0]["params"][1]
    opt.train()
    step(opt)
    opt.eval()
    fresh_params = [nn.Parameter(value.clone()) for value in left]
    if wrapped:
        fresh: Any = torch_ssam.wrap(
            torch.optim.SGD(fresh_params, lr=0.1), noise_std=0.3, seed=1, **OPTIONS[name]
        )
    else:
        fresh = torch_ssam.SSAM(fresh_params, lr=0.1, noise_std=0.3, seed=1, **OPTIONS[name])
    fresh._noise.generator.set(1, 1)
    fresh.train()
    step(fresh)
    fresh.eval()
    assert front.same_bits(opt.param_groups[0]["params"], fresh_params)
