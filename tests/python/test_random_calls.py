"""Random wrong calls of every operator, class and formula: an ordinary exception or a result, never a crash, and after an
exception every weight has the bits it had. What the messages say is in test_ops_errors.py and test_bad_input.py.

3,000 calls here; `make stress` makes TORCH_SSAM_STRESS times as many, each time others.
"""

from __future__ import annotations

import inspect
import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import front_helpers as front
import numpy as np
import pytest
import torch
from odd_values import ORDINARY, SEED, STRESS, mutated, odd_value
from torch import Tensor, nn

import torch_ssam

CLASSES = ("SSAM", "wrap", "WeightNoise", "DiagonalLinear")


def bits_of(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


# -- operators ---------------------------------------------------------------------------------------------------------


def operator_names() -> list[str]:
    schemas = torch._C._jit_get_all_schemas()
    return sorted(s.name.split("::")[1] for s in schemas if s.name.startswith("torch_ssam::"))


def sound_arguments(name: str) -> list[Any]:
    """Arguments that the operator takes, in the order of its schema."""
    shapes = ((4, 3), (5,))
    lists = ("params", "clean", "grads", "buffers", "weights")
    sound: dict[str, Callable[[], Any]] = {
        "generator": lambda: torch.tensor([3, 4]),
        "places": lambda: [0, 7],
        "place": lambda: 3,
        "noise_std": lambda: 0.5,
        "distribution": lambda: "gaussian",
        "scale": lambda: "isotropic",
        "radius": lambda: 1.5,
        "total": lambda: torch.zeros((), dtype=torch.float64),
        "kind": lambda: "norm",
        "weight_clip": lambda: 1.5,
        "draws": lambda: 2,
        "rule": lambda: "sgd",
        "numbers": lambda: [0.1, 0.9, 0.0, 0.0, 0.0, 0.0],
        "decay": lambda: 0.9,
        "input": lambda: torch.ones(2, 6),
        "weight": lambda: torch.ones(3, 6),
        "grad_output": lambda: torch.ones(2, 6),
        "needs_input": lambda: True,
        "needs_weight": lambda: True,
        "row_scales": lambda: (
            [torch.ones(4), torch.ones(1)]
            if name == "row_scales_"
            else []
            if name == "update_rows_and_perturb_"
            else None
        ),
        "fisher": lambda: [torch.ones(4), torch.ones(1)],
        "name": lambda: "plain",
    }
    schema = getattr(torch.ops.torch_ssam, name).default._schema
    arguments: list[Any] = []
    for argument in schema.arguments:
        kind = str(argument.type)
        if name == "perturbed" and argument.name == "weights":
            arguments.append(torch.ones(4, 3))
        elif argument.name in lists:
            arguments.append([torch.linspace(-1, 1, math.prod(s)).view(s) + 2 for s in shapes])
        elif argument.name in sound:
            arguments.append(sound[argument.name]())
        elif argument.has_default_value():
            arguments.append(argument.default_value)
        else:
            assert kind in ("float", "bool", "int"), f"{name}: no sound value for {argument.name} ({kind})"
            arguments.append({"float": 0.0, "bool": False, "int": 0}[kind])
    return arguments


def tensors_in(values: list[Any]) -> list[Tensor]:
    found = []
    for value in values:
        members = value if isinstance(value, list) else [value]
        found += [t for t in members if isinstance(t, Tensor)]
    return found


@pytest.mark.parametrize("name", operator_names())
def test_wrong_calls_of_operators_write_nothing(name: str) -> None:
    operator = getattr(torch.ops.torch_ssam, name)
    operator(*sound_arguments(name))  # else nothing below would mean anything
    chance, refused = random.Random(f"{name} {SEED}"), 0
    for number in range(120 * STRESS):
        sound = sound_arguments(name)
        if not sound:  # cpu_capability() takes nothing
            sound, arguments = [None], [odd_value(chance)]
        else:
            arguments = list(sound)
            for _ in range(chance.choice((1, 1, 2))):
                k = chance.randrange(len(arguments))
                arguments[k] = mutated(arguments[k], chance)
        mine = tensors_in(sound)
        before = bits_of(mine)
        try:
            operator(*arguments)
        except ORDINARY:
            refused += 1
            assert front.same_bits(mine, before), f"seed {SEED}, call {number}: {arguments}"
    assert refused > 0


# -- classes and formulas ----------------------------------------------------------------------------------------------


def construct(name: str, model: nn.Module, options: dict[str, Any]) -> Any:
    if name == "DiagonalLinear":
        return torch_ssam.DiagonalLinear(**{"features": 4, "depth": 2, **options})
    if name == "SSAM":
        return torch_ssam.SSAM(**{"params": model.parameters(), **options})
    if name == "WeightNoise":
        return torch_ssam.WeightNoise(**{"params": model.parameters(), **options})
    base = options.pop("base_optimizer", None)
    return torch_ssam.wrap(torch.optim.SGD(model.parameters(), lr=0.1) if base is None else base, **options)


@pytest.mark.parametrize("name", CLASSES)
def test_wrong_options_and_use_of_classes_leave_clean_weights(name: str) -> None:
    chance, refused = random.Random(f"{name} {SEED}"), 0
    names = [p for p in inspect.signature(getattr(torch_ssam, name)).parameters if p != "self"]
    x, y = front.data()
    for number in range(150 * STRESS):
        model = front.Net()
        before = bits_of(list(model.parameters()))
        options = {chance.choice(names): odd_value(chance) for _ in range(chance.choice((1, 2)))}
        for huge in ("samples", "features", "depth"):  # taken at its word: time and memory
            if isinstance(options.get(huge), int) and options[huge] > 64:
                options.pop(huge)
        where = f"seed {SEED}, call {number}: {options}"
        try:
            made = construct(name, model, options)
        except ORDINARY:
            refused += 1
            assert front.same_bits(model.parameters(), before), where
            continue
        if not hasattr(made, "perturb"):
            continue
        try:
            with made.perturb():
                front.loss_of(model, x, y).backward()
        except ORDINARY:
            refused += 1
        assert front.same_bits(model.parameters(), before), where
        if not hasattr(made, "load_state_dict") or not hasattr(made, "param_groups"):
            continue
        clean = bits_of(list(model.parameters()))
        try:
            made.param_groups[0][chance.choice(list(made.param_groups[0]))] = odd_value(chance)
            made.step()
        except ORDINARY:
            refused += 1
            assert front.same_bits(model.parameters(), clean), f"{where}, group {made.param_groups[0]}"
        except (KeyError, AttributeError):  # a group without its tensors: torch's own words
            params = made.param_groups[0]["params"]
            assert not isinstance(params, list) or not all(isinstance(p, Tensor) for p in params), where
    assert refused > 0


@pytest.mark.parametrize(
    "name", [n for n in torch_ssam.theory.__all__ if inspect.isfunction(getattr(torch_ssam.theory, n))]
)
def test_wrong_calls_of_formulas_end_in_ordinary_errors(name: str) -> None:
    function = getattr(torch_ssam.theory, name)
    sound = {
        "weights": np.ones((3, 4)), "target": np.ones(4), "noise_std": 0.1, "product": np.ones(4), "depth": 3,
        "lr": 0.01, "radius": 0.1, "prior": np.zeros((3, 4)), "prior_std": 0.2, "q": 0.1, "c": 0.2,
    }  # fmt: skip
    chance = random.Random(f"{name} {SEED}")
    for _ in range(25 * STRESS):
        arguments = {}
        for argument, parameter in inspect.signature(function).parameters.items():
            if chance.random() < 0.3:
                value = odd_value(chance)
                while argument in ("depth", "steps", "restarts") and isinstance(value, int) and value > 50:
                    value = odd_value(chance)
                arguments[argument] = value
            elif argument in sound:
                arguments[argument] = sound[argument]
            elif parameter.default is inspect.Parameter.empty:
                arguments[argument] = 0.1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                function(**arguments)
        except ORDINARY:
            pass
