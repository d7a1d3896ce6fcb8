"""The ways to drive SSAM: the context, the closure, the loop over perturbations, gradient accumulation, and
what is refused. Inside a pass the parameters must hold exactly clean + noise of the draw in use; outside,
exactly the clean bits. test_peers.py, rows 7, 8, 12, 15, 17 and 25.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn

import torch_ssam


@front.both_rules
def test_inside_perturb_the_parameters_hold_clean_plus_noise_and_outside_the_clean_bits(
    make: Callable[..., Any],
) -> None:
    model = front.Net()
    opt = make(model)
    for draw in range(3):
        clean, expected = front.snapshot(model), list(front.perturbed_copies(opt))
        assert opt.draw == draw
        with opt.perturb():
            assert front.same_bits(model.parameters(), expected)
            assert not any(bool((p == w).any()) for p, w in zip(model.parameters(), clean, strict=True))
        assert front.same_bits(model.parameters(), clean)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_restoring_is_exact_for_every_value_and_layout(dtype: torch.dtype) -> None:
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, 6e4, -1.0]).to(dtype)
    params = [
        nn.Parameter(special.clone()),
        nn.Parameter(torch.randn(6, 4).to(dtype).t()),
        nn.Parameter(torch.randn(2, 3, 4, 5).to(dtype).to(memory_format=torch.channels_last)),
        nn.Parameter(torch.randn(0, 3).to(dtype)),
        nn.Parameter(torch.randn(9, 9).to(dtype)[::2, 1::3]),
    ]
    clean = front.snapshot(params)
    opt = torch_ssam.SSAM(params, noise_std=10.0, seed=1)
    for _ in range(3):
        with opt.perturb():
            assert not front.same_bits(params[:1], clean[:1])
        assert front.same_bits(params, clean)


@front.both_rules
@pytest.mark.parametrize("first", sorted(front.ONE_PASS))
def test_all_ways_of_driving_end_in_the_same_bits(first: str, make: Callable[..., Any]) -> None:
    results = []
    for way in (first, "perturb"):
        model = front.Net()
        opt = make(model)
        front.ONE_PASS[way](opt, model, front.batches(4))
        results.append([*front.snapshot(model), *front.optimizer_bits(opt)])
        assert opt.draw == 4
    assert front.same_bits(*results)


def test_several_backward_passes_inside_one_perturb_accumulate() -> None:
    model = front.Net(dtype=torch.float64)
    opt = front.ssam(model, momentum=0.0)
    x, y = front.data(dtype=torch.float64)
    with opt.perturb():
        for part in range(3):
            front.loss_of(model, x[4 * part : 4 * part + 4], y[4 * part : 4 * part + 4]).div(3).backward()
    together = front.Net(dtype=torch.float64)
    other = front.ssam(together, momentum=0.0)
    with other.perturb():
        front.loss_of(together, x, y).backward()
    for p, q in zip(model.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-12)


@front.both_rules
def test_several_perturbs_before_one_step_accumulate_with_a_draw_each(make: Callable[..., Any]) -> None:
    model = front.Net(dtype=torch.float64)
    opt = make(model)
    parts = front.batches(3, dtype=torch.float64)
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for draw, (x, y) in enumerate(parts):
        assert opt.draw == draw
        noisy = front.Net(dtype=torch.float64)
        with torch.no_grad():
            for q, w in zip(noisy.parameters(), front.perturbed_copies(opt), strict=True):
                q.copy_(w)
        front.loss_of(noisy, x, y).backward()
        for total, q in zip(expected, noisy.parameters(), strict=True):
            total += q.grad  # type: ignore[operator]
        with opt.perturb():
            front.loss_of(model, x, y).backward()
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-13, atol=1e-13)
    opt.step()
    assert opt.draw == 3


@pytest.mark.parametrize("options", [{}, {"samples": 3}, {"antithetic": True, "clean_weight": 0.25}], ids=str)
def test_perturbations_add_the_mean_to_what_p_grad_held(options: dict[str, Any]) -> None:
    x, y = front.data(dtype=torch.float64)
    held = [torch.full_like(p, 0.5) for p in front.Net(dtype=torch.float64).parameters()]
    grads = []
    for start in (None, held):
        model = front.Net(dtype=torch.float64)
        opt = front.ssam(model, **options)
        if start is not None:
            for p, g in zip(model.parameters(), start, strict=True):
                p.grad = g.clone()
        for k, number in enumerate(opt.perturbations()):
            assert k == number
            front.loss_of(model, x, y).backward()
        grads.append([p.grad for p in model.parameters()])
    for mean, total, before in zip(*grads, held, strict=True):
        torch.testing.assert_close(total, mean + before, rtol=1e-13, atol=1e-13)


def test_the_passes_of_a_step_are_the_samples_their_mirror_images_and_the_clean_weights() -> None:
    model = front.Net()
    opt = front.ssam(model, samples=2, antithetic=True, clean_weight=0.5)
    clean = front.snapshot(model)
    for step in range(2):
        seen = [front.snapshot(model) for _ in opt.perturbations()]
        expected = [
            [
                front.expected_noise(w, 7, step, place, 0.3, sample=sample, negate=negate)
                for place, w in enumerate(clean)
            ]
            for sample in (0, 1)
            for negate in (False, True)
        ]
        assert len(seen) == 5
        for got, want in zip(seen, [*expected, clean], strict=True):
            assert front.same_bits(got, want)
        assert front.same_bits(model.parameters(), clean)
        assert opt.draw == step + 1


def test_inputs_in_dicts_tuples_and_lists_are_split_alike() -> None:
    model = front.Net()
    opt = front.ssam(model, samples=3)
    x = torch.arange(10.0)
    inputs = {"a": x, "b": [x, (x + 1, x + 2)]}
    parts = list(opt.perturbations(inputs))
    assert torch.equal(torch.cat([part["a"] for part in parts]), x)
    assert torch.equal(torch.cat([part["b"][1][1] for part in parts]), x + 2)
    assert isinstance(parts[0]["b"][1], tuple)
    assert [len(part["a"]) for part in parts] == [3, 3, 4]


def test_fewer_examples_than_passes_use_the_first_passes() -> None:
    model = front.Net()
    opt = front.ssam(model, samples=5)
    assert [len(x) for x in opt.perturbations(torch.ones(2, 5))] == [1, 1]
    assert opt.draw == 1


@pytest.mark.parametrize("broken_at", [0, 1, 3])
def test_breaking_out_of_the_loop_restores_the_weights(broken_at: int) -> None:
    model = front.Net()
    opt = front.ssam(model, samples=4)
    clean = front.snapshot(model)
    for k in opt.perturbations():
        front.loss_of(model, *front.data()).backward()
        if k == broken_at:
            break
    gc.collect()
    assert front.same_bits(model.parameters(), clean)
    assert opt.draw == 1
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


# -- the closure ---------------------------------------------------------------------------------------------


def test_the_closure_runs_at_perturbed_weights_with_gradients_enabled_also_under_no_grad() -> None:
    model = front.Net()
    opt = front.ssam(model)
    expected = list(front.perturbed_copies(opt))

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        assert front.same_bits(model.parameters(), expected)
        opt.zero_grad()
        loss = front.loss_of(model, *front.data())
        loss.backward()
        return loss

    with torch.no_grad():
        loss = opt.step(closure)
    assert isinstance(loss, Tensor)
    assert opt.draw == 1


@front.both_rules
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("options", [{}, {"samples": 2, "clean_weight": 0.5}], ids=str)
def test_the_closure_may_clear_gradients_either_way_or_not_at_all(
    set_to_none: bool, options: dict[str, Any], make: Callable[..., Any]
) -> None:
    x, y = front.data(dtype=torch.float64)
    ends = []
    for clears in ("before", "inside"):
        model = front.Net(dtype=torch.float64)
        opt = make(model, **options)
        for _ in range(3):
            if clears == "before":
                opt.zero_grad(set_to_none)

            def closure(
                model: nn.Module = model, opt: Any = opt, inside: bool = clears == "inside"
            ) -> Tensor:
                if inside:
                    opt.zero_grad(set_to_none)
                loss = front.loss_of(model, x, y)
                loss.backward()
                return loss

            opt.step(closure)
        ends.append(front.snapshot(model))
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_closure_may_return_a_number_or_nothing() -> None:
    model = front.Net()
    opt = front.ssam(model, samples=2)
    opt.zero_grad()

    def backward() -> None:
        front.loss_of(model, *front.data()).backward()

    assert opt.step(backward) is None
    assert opt.step(lambda: [backward(), 2.5][1]) == 2.5


# -- order ---------------------------------------------------------------------------------------------------


def refused(match: str) -> Any:
    return pytest.raises(RuntimeError, match=match)


@front.both_rules
def test_a_step_without_a_perturbed_gradient_is_refused_and_names_the_ways(make: Callable[..., Any]) -> None:
    model = front.Net()
    opt = make(model)
    clean = front.snapshot(model)
    front.loss_of(model, *front.data()).backward()
    with refused(r"opt\.perturb\(\).*opt\.step\(closure\).*opt\.perturbations\(\).*opt\.train\(\)"):
        opt.step()
    assert front.same_bits(model.parameters(), clean)
    opt.zero_grad()
    front.by_perturb(opt, model, front.batches(1))
    front.loss_of(model, *front.data()).backward()
    with refused("without a gradient at perturbed weights"):
        opt.step()


def test_zero_grad_takes_the_perturbed_gradient_away() -> None:
    model = front.Net()
    opt = front.ssam(model)
    with opt.perturb():
        front.loss_of(model, *front.data()).backward()
    opt.zero_grad()
    front.loss_of(model, *front.data()).backward()
    with refused("without a gradient at perturbed weights"):
        opt.step()


def test_a_pass_that_fails_gives_no_leave_to_step() -> None:
    model = front.Net()
    opt = front.ssam(model)
    with pytest.raises(KeyError), opt.perturb():
        raise KeyError("x")
    with refused("without a gradient at perturbed weights"):
        opt.step()


def test_without_noise_a_stock_loop_needs_nothing() -> None:
    model, plain = front.Net(), front.Net()
    opt = front.ssam(model, noise_std=0.0)
    sgd = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    front.by_stock_loop(opt, model, front.batches(3))
    front.by_stock_loop(sgd, plain, front.batches(3))
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@front.both_rules
def test_step_perturb_and_loops_inside_a_pass_are_refused_and_change_nothing(
    make: Callable[..., Any],
) -> None:
    model = front.Net()
    opt = make(model)
    clean, expected = front.snapshot(model), list(front.perturbed_copies(opt))
    with opt.perturb():
        with refused(r"step\(\) inside perturb"):
            opt.step()
        with refused(r"step\(\) inside perturb"):
            opt.step(lambda: 0.0)
        with refused(r"perturb\(\) inside perturb"), opt.perturb():
            pass
        with refused(r"perturb\(\) inside perturb"):
            next(iter(opt.perturbations()))
        with refused(r"load_state_dict\(\) inside perturb"):
            opt.load_state_dict(opt.state_dict())
        opt.train()
        opt.eval()
        assert front.same_bits(model.parameters(), expected)
        assert opt.draw == 0
    assert front.same_bits(model.parameters(), clean)
    assert opt.draw == 1


def test_the_same_context_inside_itself_is_refused_and_stays_usable() -> None:
    model = front.Net()
    opt = front.ssam(model)
    clean = front.snapshot(model)
    context = opt.perturb()
    with context:
        expected = front.snapshot(model)
        with refused("inside perturb"), context:
            pass
        assert front.same_bits(model.parameters(), expected)
    assert front.same_bits(model.parameters(), clean)
    with context:
        assert not front.same_bits(model.parameters(), clean)
    assert front.same_bits(model.parameters(), clean)


def test_the_context_works_from_an_exit_stack_and_by_hand() -> None:
    model = front.Net()
    opt = front.ssam(model)
    clean = front.snapshot(model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(opt.perturb())
        assert not front.same_bits(model.parameters(), clean)
    assert front.same_bits(model.parameters(), clean)
    with pytest.raises(KeyError), contextlib.ExitStack() as stack:  # noqa: PT012
        stack.enter_context(opt.perturb())
        raise KeyError("x")
    assert front.same_bits(model.parameters(), clean)
    context = opt.perturb()
    context.__enter__()
    assert not front.same_bits(model.parameters(), clean)
    context.__exit__(None, None, None)
    assert front.same_bits(model.parameters(), clean)
    assert opt.draw == 3


@pytest.mark.parametrize("options", [{"samples": 2}, {"antithetic": True}, {"clean_weight": 0.1}], ids=str)
def test_perturb_is_refused_where_more_than_one_pass_is_asked_for(options: dict[str, Any]) -> None:
    opt = front.ssam(front.Net(), **options)
    with refused(r"one pass.*opt\.perturbations\(\)"):
        opt.perturb()


def test_train_and_eval_move_nothing_without_keep_perturbed() -> None:
    model = front.Net()
    opt = front.ssam(model)
    clean = front.snapshot(model)
    opt.train()
    assert front.same_bits(model.parameters(), clean)
    opt.eval()
    opt.train(False)
    assert front.same_bits(model.parameters(), clean)


# -- gradients from before the closure -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "clear", ["none", "zeros", "outside", "outside zeros", "perturb", "no noise", "never"]
)
def test_a_closure_that_adds_to_gradients_taken_at_clean_weights_is_named_once(clear: str) -> None:
    model = front.Net()
    opt = front.ssam(model, noise_std=0.0 if clear == "no noise" else 0.3)

    def closure() -> Tensor:
        if clear in ("none", "zeros"):
            opt.zero_grad(set_to_none=clear == "none")
        loss = front.loss_of(model, *front.data())
        loss.backward()
        return loss

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            if clear == "perturb":
                with opt.perturb():
                    front.loss_of(model, *front.data()).backward()
            else:
                front.loss_of(model, *front.data()).backward()  # as an accumulating framework does
            if clear.startswith("outside"):
                opt.zero_grad(set_to_none=clear == "outside")
            opt.step(closure)
            if clear == "perturb":
                opt.zero_grad()
    named = [w for w in seen if "gradients that were there before" in str(w.message)]
    assert len(named) == (1 if clear == "never" else 0)


@pytest.mark.parametrize("by_closure", [False, True])
@pytest.mark.parametrize(
    ("dtype", "gradient", "ways"),
    [
        (torch.float16, 100.0, {"clean_weight": 0.001}),
        (torch.float16, 4096.0, {"samples": 16, "antithetic": True}),
        (torch.bfloat16, 1.0, {"samples": 1024}),
    ],
)
def test_means_of_16_bit_gradients_neither_overflow_nor_stall(
    dtype: torch.dtype, gradient: float, ways: dict[str, Any], by_closure: bool
) -> None:
    w = nn.Parameter(torch.ones(4, dtype=dtype))
    opt = torch_ssam.SSAM([w], lr=0.0, noise_std=1e-3, seed=0, **ways)

    def backward() -> Tensor:
        loss = (w.float() * gradient).sum()
        loss.backward()
        return loss

    if by_closure:
        opt.step(backward)
    else:
        for _ in opt.perturbations():
            backward()
    assert w.grad is not None
    assert w.grad.dtype == dtype
    torch.testing.assert_close(w.grad, torch.full_like(w, gradient))


def test_perturbations_add_to_16_bit_gradients_that_are_there_and_keep_those_of_a_loop_that_is_left() -> None:
    w = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    opt = torch_ssam.SSAM([w], lr=0.0, noise_std=1e-3, samples=4, seed=0)
    w.grad = torch.full_like(w, 2.0)
    for _ in opt.perturbations():
        w.sum().backward()
    assert w.grad.tolist() == [3.0] * 4
    for k in opt.perturbations():
        w.sum().backward()
        if k == 1:
            break
    gc.collect()
    assert w.grad.tolist() == [3.5] * 4


def test_a_closure_of_several_passes_returns_a_number() -> None:
    w = nn.Parameter(torch.ones(4))
    opt = torch_ssam.SSAM([w], samples=2)

    def closure() -> Any:
        w.sum().backward()
        return {"loss": 1.0}

    with pytest.raises(TypeError, match="returned a dict; expected its loss, a tensor or a number, or None"):
        opt.step(closure)
    assert w.tolist() == [1.0] * 4
