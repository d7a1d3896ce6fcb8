"""The options of the C++ front, read from its headers, are Python's: names, order, defaults, choices and ranges.

Each is named once in either language; what is made of the C++ lists (members, checks, checkpoints) is tested in
tests/cpp/test_api_errors.cpp and test_api_state.cpp.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch_ssam
from torch_ssam._checks import defaults_of
from torch_ssam.noise.options import DISTRIBUTIONS, MEMORIES, NOISE_OPTIONS, SCALES
from torch_ssam.optim.options import FUSED_OPTIONS, SGD_OPTIONS

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "cpp_options.py"
spec = importlib.util.spec_from_file_location("cpp_options", SCRIPT)
assert spec is not None
assert spec.loader is not None
cpp_options = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cpp_options)

LISTS: dict[str, list[Any]] = cpp_options.lists()
OPTIONS = {option.name: option for found in LISTS.values() for option in found}


# What the C++ front does not have yet.
ONLY_IN_PYTHON = {"channel_dim", "weight_clip"}


def test_the_tables_of_both_languages_have_the_same_names_and_defaults() -> None:
    defaults = {name: {option.name: option.default for option in found} for name, found in LISTS.items()}
    assert {**defaults.pop("noise"), **defaults.pop("pass")} == {
        name: default for name, default in defaults_of(NOISE_OPTIONS).items() if name not in ONLY_IN_PYTHON
    }
    assert defaults.pop("fused") == defaults_of(FUSED_OPTIONS)
    assert defaults.pop("sgd") == defaults_of(SGD_OPTIONS)
    assert not defaults


def test_weight_noise_has_the_same_options_with_the_same_defaults() -> None:
    parameters = inspect.signature(torch_ssam.WeightNoise).parameters.values()
    theirs = {p.name: p.default for p in parameters if p.name not in ("params", "seed")}
    assert {option.name: option.default for option in LISTS["noise"]} == theirs


def test_every_name_that_an_option_takes_is_known_in_both() -> None:
    for name, choices in (("distribution", DISTRIBUTIONS), ("scale", SCALES), ("memory", MEMORIES)):
        assert OPTIONS[name].range == "one_of"
        assert tuple(OPTIONS[name].bounds) == choices
    assert sum(option.range == "one_of" for option in OPTIONS.values()) == 3


def values() -> Iterator[tuple[str, Any, bool]]:
    """Values at the edges of each C++ range, and whether it takes them."""
    for option in OPTIONS.values():
        step = 1 if option.type == "std::int64_t" else 1e-9
        bounds = option.bounds if option.range not in ("any", "one_of") else []
        if option.type == "std::int64_t":
            bounds = [int(bound) for bound in bounds]
        for low in bounds[:1]:
            yield option.name, low, option.range != "above"
            yield option.name, low - step, False
            yield option.name, low + step, True
        for high in bounds[1:]:
            yield option.name, high, option.range != "from_up_to"
            yield option.name, high - step, True
            yield option.name, high + step, False
        if "double" in option.type:
            yield from ((option.name, wrong, False) for wrong in (math.inf, -math.inf, math.nan))
        if option.range == "finite":
            yield from ((option.name, right, True) for right in (-1e30, 1e30))


@pytest.mark.parametrize(("name", "value", "taken"), list(values()))
def test_python_takes_and_refuses_what_cpp_does(name: str, value: Any, taken: bool) -> None:
    params = [nn.Parameter(torch.ones(3))]
    if taken:
        assert torch_ssam.SSAM(params, **{name: value}).param_groups[0][name] == value
    else:
        with pytest.raises(ValueError, match=f"{name} is .*; expected"):
            torch_ssam.SSAM(params, **{name: value})
