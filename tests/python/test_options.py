"""Each option is named once (noise/options.py, optim/options.py); constructors and docstrings agree with that."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torch_ssam
from torch_ssam._checks import Option
from torch_ssam.noise.options import NOISE_OPTIONS
from torch_ssam.optim.options import ADAMW_OPTIONS, FUSED_OPTIONS, SGD_OPTIONS

# What is no option of a group.
OF_THE_WHOLE = {"params", "base_optimizer", "seed", "noise_per_rank"}
FRONTS: dict[str, tuple[Callable[..., Any], dict[str, Option]]] = {
    "SSAM": (torch_ssam.SSAM, {**SGD_OPTIONS, **FUSED_OPTIONS, **NOISE_OPTIONS}),
    "SSAMAdamW": (torch_ssam.SSAMAdamW, {**ADAMW_OPTIONS, **FUSED_OPTIONS, **NOISE_OPTIONS}),
    "wrap": (torch_ssam.wrap, NOISE_OPTIONS),
}


@pytest.mark.parametrize("name", FRONTS)
def test_a_constructor_takes_the_options_of_its_tables_with_their_defaults(name: str) -> None:
    front, options = FRONTS[name]
    taken = {
        key: parameter.default
        for key, parameter in inspect.signature(front).parameters.items()
        if key not in OF_THE_WHOLE
    }
    assert taken == {key: option.default for key, option in options.items()}


@pytest.mark.parametrize("name", FRONTS)
def test_a_docstring_names_every_option(name: str) -> None:
    front, options = FRONTS[name]
    text = inspect.getdoc(front)
    assert text is not None
    assert [key for key in options if key not in text] == []


@pytest.mark.parametrize("name", FRONTS)
def test_every_default_passes_its_own_check(name: str) -> None:
    for key, option in FRONTS[name][1].items():
        option.check(key, option.default)


def test_a_group_holds_every_option() -> None:
    w = torch.nn.Parameter(torch.ones(2))
    ssam = torch_ssam.SSAM([w])
    assert ssam.param_groups[0].keys() - {"params"} == FRONTS["SSAM"][1].keys()
    wrapped = torch_ssam.wrap(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1))
    assert wrapped.param_groups[0].keys() >= NOISE_OPTIONS.keys()
