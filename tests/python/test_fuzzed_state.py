"""Damaged, foreign and random checkpoints: loading one is an ordinary error that changes nothing, or it loads; then
training goes on, or says what is wrong, at clean weights. Files are read with weights_only, which runs no code.
"""

from __future__ import annotations

import copy
import io
import pickle
import random
import warnings
from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from odd_values import ORDINARY, SEED, STRESS, odd_value
from torch import nn

OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "SSAM": lambda model: front.ssam(model, momentum=0.9),
    "SSAM kept": lambda model: front.ssam(model, momentum=0.9, keep_perturbed=True),
    "SSAM fisher": lambda model: front.ssam(model, momentum=0.9, scale="fisher"),
    "wrap AdamW": lambda model: front.wrapped_adamw(model),
}


def trained(name: str) -> tuple[front.Net, Any]:
    model = front.Net()
    opt = OPTIMIZERS[name](model)
    advance(model, opt)
    return model, opt


def advance(model: nn.Module, opt: Any) -> None:
    if opt.param_groups[0]["keep_perturbed"]:
        opt.train()
        front.by_stock_loop(opt, model, front.batches(2))
    else:
        front.by_perturb(opt, model, front.batches(2))


def saved(opt: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are perturbed
        state: dict[str, Any] = copy.deepcopy(opt.state_dict())
    return state


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a nested value."""
    keys = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    return [place for key in keys for place in [(value, key), *places_in(value[key])]]


def damage(state: dict[str, Any], chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 3))):
        container, key = chance.choice(places_in(state) or [(state, "state")])
        kind = chance.randrange(3)
        if kind == 0 and isinstance(container, dict):
            container.pop(key, None)
        elif kind == 1 and isinstance(container, dict):
            container[chance.choice(("clean", "draw", "seed", "momentum_buffer", 0, 99, "fisher"))] = (
                odd_value(chance)
            )
        else:
            container[key] = odd_value(chance)


def load_or_refuse(model: nn.Module, opt: Any, state: Any, where: str) -> bool:
    """Loads; if that is refused, nothing has changed. Then trains, or is told why not, at clean weights."""
    twin_model, twin = copy.deepcopy((model, opt))
    try:
        opt.load_state_dict(state)
    except (*ORDINARY, KeyError, AttributeError, IndexError):
        advance(model, opt)
        advance(twin_model, twin)
        assert front.same_bits(model.parameters(), twin_model.parameters()), where
        assert front.same_bits(front.optimizer_bits(opt), front.optimizer_bits(twin)), where
        return False
    try:
        advance(model, opt)
    except (*ORDINARY, KeyError, AttributeError, IndexError):
        return True
    return True


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_dicts_with_anything_in_them(name: str) -> None:
    chance, refused = random.Random(f"{name} {SEED}"), 0
    count = 60 * STRESS
    for number in range(count):
        model, opt = trained(name)
        state = saved(opt)
        opt.eval()
        damage(state, chance)
        refused += not load_or_refuse(model, opt, state, f"seed {SEED}, state {number}")
    assert 0 < refused < count


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_files_that_were_cut_or_flipped(name: str) -> None:
    chance, refused = random.Random(f"file {name} {SEED}"), 0
    model, opt = trained(name)
    file = io.BytesIO()
    torch.save(saved(opt), file)
    whole = file.getvalue()
    opt.eval()
    start = copy.deepcopy((model, opt))
    count = 40 * STRESS
    for number in range(count):
        damaged = bytearray(whole)
        if chance.random() < 0.3:
            del damaged[chance.randrange(len(damaged)) :]
        else:
            for _ in range(chance.choice((1, 4, 64))):
                damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        try:
            state = torch.load(io.BytesIO(bytes(damaged)), weights_only=True)
        except (
            *ORDINARY,
            KeyError,
            EOFError,
            IndexError,
            AttributeError,
            pickle.UnpicklingError,
            AssertionError,
        ):
            refused += 1  # by torch
            continue
        model, opt = copy.deepcopy(start)
        load_or_refuse(model, opt, state, f"seed {SEED}, file {number}")
    assert refused > 0


def test_a_checkpoint_that_would_run_code_is_not_opened() -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("code of a checkpoint was run",))

    _, opt = trained("SSAM")
    state = saved(opt)
    state["state"][0]["momentum_buffer"] = Payload()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        torch.load(file, weights_only=True)
