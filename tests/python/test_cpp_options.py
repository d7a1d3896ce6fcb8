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
from torch_ssam.optim.options import ADAMW_OPTIONS, FUSED_OPTIONS, SGD_OPTIONS

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "cpp_options.py"
spec = importlib.util.spec_from_file_location("cpp_options", SCRIPT)
assert spec is not None
assert spec.loader is not None
cpp_options = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cpp_options)

LISTS: dict[str, list[Any]] = cpp_options.lists()
#: By class and name.
OPTIONS = {
    (of, option.name): option
    for of, own in (("SSAM", "sgd"), ("SSAMAdamW", "adamw"))
    for found in ("noise", "pass", "fused", own)
    for option in LISTS[found]
}


def test_the_tables_of_both_languages_have_the_same_names_and_defaults() -> None:
    defaults = {name: {option.name: option.default for option in found} for name, found in LISTS.items()}
    assert {**defaults.pop("noise"), **defaults.pop("pass")} == defaults_of(NOISE_OPTIONS)
    assert defaults.pop("fused") == defaults_of(FUSED_OPTIONS)
    assert defaults.pop("sgd") == defaults_of(SGD_OPTIONS)
    assert defaults.pop("adamw") == defaults_of(ADAMW_OPTIONS)
    assert not defaults


def test_weight_noise_has_the_same_options_with_the_same_defaults() -> None:
    parameters = inspect.signature(torch_ssam.WeightNoise).parameters.values()
    theirs = {p.name: p.default for p in parameters if p.name not in ("params", "seed")}
    assert {option.name: option.default for option in LISTS["noise"]} == theirs


def test_every_name_that_an_option_takes_is_known_in_both() -> None:
    for name, choices in (("distribution", DISTRIBUTIONS), ("scale", SCALES), ("memory", MEMORIES)):
        assert OPTIONS["SSAM", name].range == "one_of"
        assert tuple(OPTIONS["SSAM", name].bounds) == choices
    assert sum(option.range == "one_of" for found in LISTS.values() for option in found) == 3


def test_the_tables_of_the_docs_have_every_option() -> None:
    shown = cpp_options.tables().splitlines()
    for found in LISTS.values():
        for option in found:
            assert sum(line.startswith(f"| `{option.name}` |") for line in shown) == sum(
                option.name == other.name for others in LISTS.values() for other in others
            )


def values() -> Iterator[tuple[str, str, Any, bool]]:
    """Values at the edges of each C++ range, and whether it takes them. Of a pair, each number beside a good one."""
    for (of, name), option in OPTIONS.items():
        for value, taken in values_of(option):
            if option.type == "Betas":
                yield from ((of, name, pair, taken) for pair in ((value, 0.5), (0.5, value)))
            else:
                yield of, name, value, taken


def values_of(option: Any) -> Iterator[tuple[Any, bool]]:
    step = 1 if option.type == "std::int64_t" else 1e-9
    bounds = option.bounds if option.range not in ("any", "one_of") else []
    if option.type == "std::int64_t":
        bounds = [int(bound) for bound in bounds]
    for low in bounds[:1]:
        yield low, option.range != "above"
        yield low - step, False
        yield low + step, True
    for high in bounds[1:]:
        yield high, option.range != "from_up_to"
        yield high - step, True
        yield high + step, False
    if "double" in option.type or option.type == "Betas":
        yield from ((wrong, False) for wrong in (math.inf, -math.inf, math.nan))
    if option.range == "finite":
        yield from ((right, True) for right in (-1e30, 1e30))


@pytest.mark.parametrize(("of", "name", "value", "taken"), list(values()))
def test_python_takes_and_refuses_what_cpp_does(of: str, name: str, value: Any, taken: bool) -> None:
    params = [nn.Parameter(torch.ones(3))]
    make = {"SSAM": torch_ssam.SSAM, "SSAMAdamW": torch_ssam.SSAMAdamW}[of]
    if taken:
        assert make(params, **{name: value}).param_groups[0][name] == value
    else:
        with pytest.raises(ValueError, match=rf"{name}(\[\d\])? is .*; expected"):
            make(params, **{name: value})
