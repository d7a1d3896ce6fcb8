"""Whatever interrupts a pass by an exception, the exact clean bits are back before any handler runs, and parameters that
others write to meanwhile are named and kept. Signals are in test_signals.py. test_peers.py, row 16.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import nn

import torch_ssam

# -- exceptions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
def test_an_exception_inside_perturb_leaves_the_clean_bits_and_uses_the_draw(
    error: type[BaseException],
) -> None:
    model = front.Net()
    opt = front.ssam(model)
    clean = front.snapshot(model)
    for draw in range(2):
        with pytest.raises(error), opt.perturb():  # noqa: PT012
            front.loss_of(model, *front.data()).backward()
            raise error
        assert front.same_bits(model.parameters(), clean)
        assert opt.draw == draw + 1


@front.both_rules
@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("form", ["loop", "closure"])
def test_an_exception_in_any_pass_of_a_step_leaves_the_clean_bits(
    at: int, form: str, make: Callable[..., Any]
) -> None:
    model = front.Net()
    opt = make(model, samples=2, antithetic=True, clean_weight=0.5)
    clean = front.snapshot(model)
    count = 0

    def one_pass() -> float:
        nonlocal count
        count += 1
        if count == at + 1:
            raise front.Alarm
        front.loss_of(model, *front.data()).backward()
        return 0.0

    try:
        if form == "closure":
            opt.step(one_pass)
        else:
            for _ in opt.perturbations():
                one_pass()
    except front.Alarm:
        assert front.same_bits(model.parameters(), clean)
    else:
        pytest.fail("no exception")
    assert opt.draw == 1
    opt.zero_grad()
    count = 10
    for _ in opt.perturbations():
        one_pass()
    opt.step()


def test_nested_contexts_of_two_optimizers_and_of_weight_noise_unwind_in_order() -> None:
    first, second, third = front.Net(0), front.Net(1), front.Net(2)
    one, two = front.ssam(first), front.wrapped_sgd(second)
    noise = torch_ssam.WeightNoise(third.parameters(), 0.5)
    clean = [front.snapshot(model) for model in (first, second, third)]
    with pytest.raises(front.Alarm), one.perturb(), two.perturb(), noise.applied():  # noqa: PT012
        with pytest.raises(RuntimeError), noise.applied():
            pass
        raise front.Alarm
    for model, weights in zip((first, second, third), clean, strict=True):
        assert front.same_bits(model.parameters(), weights)


# -- written to from outside ---------------------------------------------------------------------------------


def fill(model: front.Net) -> None:
    with torch.no_grad():
        model.bias.fill_(5.0)


def load(model: front.Net) -> None:
    model.load_state_dict({**model.state_dict(), "bias": torch.full((7,), 5.0)})


def replace_data(model: front.Net) -> None:
    model.bias.data = torch.full((7,), 5.0)


def initialise(model: front.Net) -> None:
    nn.init.constant_(model.bias, 5.0)


@front.both_rules
@pytest.mark.parametrize("write", [fill, replace_data, initialise])
def test_parameters_written_to_inside_are_named_kept_and_taken_as_clean(
    write: Callable[[front.Net], None], make: Callable[..., Any]
) -> None:
    model = front.Net()
    opt = make(model)
    expected = front.snapshot(model)
    expected[1] = torch.full((7,), 5.0)
    with (
        pytest.raises(
            torch_ssam.PerturbedWeightsChanged, match=r"Parameter 1 of shape \(7,\) was written to"
        ),
        opt.perturb(),
    ):
        write(model)
    assert front.same_bits(model.parameters(), expected)
    with pytest.raises(RuntimeError, match="without a gradient"):
        opt.step()
    front.by_perturb(opt, model, front.batches(1))


def test_a_model_loaded_inside_is_named_whole_and_kept() -> None:
    model = front.Net()
    opt = front.ssam(model)
    with (
        pytest.raises(torch_ssam.PerturbedWeightsChanged, match=r"Parameters 0 .*, 1 .*, 2 .*, 3 .* were"),
        opt.perturb(),
    ):
        load(model)
    assert front.same_bits([model.bias], [torch.full((7,), 5.0)])


def test_many_written_parameters_are_counted() -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(9)]
    opt = torch_ssam.SSAM(params, noise_std=0.1)
    with (
        pytest.raises(torch_ssam.PerturbedWeightsChanged, match="and 4 more were"),
        opt.perturb(),
        torch.no_grad(),
    ):
        torch._foreach_mul_(params, 2.0)


def test_with_an_exception_on_its_way_written_parameters_are_named_in_a_warning() -> None:
    model = front.Net()
    opt = front.ssam(model)

    def fail_after_writing() -> None:
        with opt.perturb():
            fill(model)
            raise front.Alarm

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(front.Alarm):
            fail_after_writing()
    assert [w.category for w in caught] == [RuntimeWarning]
    assert "Parameter 1 of shape" in str(caught[0].message)


def test_weight_noise_names_what_was_written_too() -> None:
    model = front.Net()
    noise = torch_ssam.WeightNoise(model.parameters(), 0.5)
    with pytest.raises(torch_ssam.PerturbedWeightsChanged, match="Parameter 1 "), noise.applied():
        fill(model)
    with noise.applied():
        pass
