"""Isotropic noise above half of a tensor's root mean square weight is warned of: in a group's first pass and again where
its noise_std has doubled, with the tensor's place, shape, name and ratio, and what to do.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn

import torch_ssam

WARNED = "times the RMS weight"


def tensor(rms: float, *shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    """Signs of this size: their root mean square is known."""
    signs = torch.ones(shape, dtype=torch.float64)
    signs.view(-1)[::2] = -1.0
    return nn.Parameter((rms * signs).to(dtype))


@contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def by_perturb(params: Any, std: float, **options: Any) -> tuple[Any, Callable[[], None]]:
    opt = torch_ssam.SSAM(params, lr=0.0, noise_std=std, seed=0, **options)

    def go() -> None:
        with opt.perturb():
            pass

    return opt, go


def by_step(params: Any, std: float, **options: Any) -> tuple[Any, Callable[[], None]]:
    opt = torch_ssam.SSAM(params, lr=0.0, noise_std=std, seed=0, keep_perturbed=True, **options)

    def go() -> None:
        opt.train()
        for group in opt.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        opt.step()

    return opt, go


def by_wrap(params: Any, std: float, **options: Any) -> tuple[Any, Callable[[], None]]:
    opt = torch_ssam.wrap(torch.optim.SGD(params, lr=0.0), std, seed=0, keep_perturbed=True, **options)

    def go() -> None:
        opt.train()
        opt.step()

    return opt, go


def by_weight_noise(params: Any, std: float, **options: Any) -> tuple[Any, Callable[[], None]]:
    noise = torch_ssam.WeightNoise(params, std, seed=0, **options)

    def go() -> None:
        with noise.applied():
            pass

    return noise, go


FRONTS = [by_perturb, by_step, by_wrap, by_weight_noise]


@pytest.mark.parametrize("front_of", FRONTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_noise_above_half_of_the_rms_weight_is_named_with_its_ratio_and_a_way_out(
    front_of: Callable[..., Any], dtype: torch.dtype
) -> None:
    _, go = front_of([tensor(1.0, 3), tensor(0.25, 3, 4, dtype=dtype)], 0.5)
    message = (
        r"noise_std=0\.5 is 2 times the RMS weight 0\.25 of parameter 1 of shape \(3, 4\): .*"
        r'below 0\.12.*scale="filter"'
    )
    with pytest.warns(UserWarning, match=message):
        go()
    with no_warning():
        go()


@pytest.mark.parametrize("front_of", FRONTS)
def test_it_comes_again_where_noise_std_has_doubled_and_not_before(front_of: Callable[..., Any]) -> None:
    one, go = front_of([tensor(1.0, 3, 4)], 0.3)
    with no_warning():
        go()
    for std, warned in ((0.55, False), (0.61, True), (1.2, False), (0.1, False), (1.3, True), (2.5, False)):
        one.param_groups[0]["noise_std"] = std
        if warned:
            with pytest.warns(UserWarning, match=rf"noise_std={std} is .* {WARNED} 1 "):
                go()
        else:
            with no_warning():
                go()


@pytest.mark.parametrize("front_of", FRONTS)
def test_what_small_noise_other_scales_vectors_and_zeros_have_is_nothing(
    front_of: Callable[..., Any],
) -> None:
    with no_warning():
        front_of([tensor(1.0, 3, 4)], 0.49)[1]()
        front_of([tensor(0.01, 3), tensor(0.01)], 0.5)[1]()
        front_of([nn.Parameter(torch.zeros(3, 4))], 0.5)[1]()
        front_of([tensor(1.0, 3, 4), nn.Parameter(torch.ones(0, 4))], 0.4)[1]()
        front_of([tensor(0.01, 3, 4)], 0.5, scale="filter")[1]()
        front_of([tensor(0.01, 3, 4)], 0.5, scale="element")[1]()
        front_of([tensor(1.0, 3, 4), tensor(0.01, 3, 4).requires_grad_(False)], 0.4)[1]()


def test_groups_are_looked_at_alone_and_names_are_used() -> None:
    small, large = tensor(0.01, 3, 4), tensor(1.0, 3, 4)
    groups = [
        {"params": [("net.large", large)], "noise_std": 0.2},
        {"params": [("net.small", small)], "noise_std": 0.1},
    ]
    opt, go = by_perturb(groups, 0.3)
    with pytest.warns(
        UserWarning, match=r"noise_std=0\.1 is 10 times .* parameter 1 of shape \(3, 4\) \(net\.small\)"
    ):
        go()
    opt.add_param_group({"params": [("late.weight", tensor(0.1, 2, 2))], "noise_std": 0.5})
    with pytest.warns(UserWarning, match=r"noise_std=0\.5 is 5 times .* parameter 2 .*late\.weight") as found:
        go()
    assert len(found) == 1
    opt.param_groups[0]["scale"] = opt.param_groups[1]["scale"] = "filter"
    with no_warning():
        go()


def test_the_worst_is_named_and_the_others_counted() -> None:
    _, go = by_perturb([tensor(0.5, 3, 4), tensor(0.1, 2, 3), tensor(0.2, 2, 2), tensor(5.0, 2, 2)], 1.0)
    with pytest.warns(
        UserWarning, match=r"10 times .* parameter 1 of shape \(2, 3\), and more than half of it for 2 others"
    ):
        go()


def test_it_is_the_clean_weights_that_are_measured() -> None:
    p = tensor(1.0, 300, 4)
    opt = torch_ssam.SSAM([p], lr=0.0, noise_std=0.4, seed=0, keep_perturbed=True)
    opt.train()
    assert p.square().mean().sqrt() > 1.05
    opt.param_groups[0]["noise_std"] = 0.85
    p.grad = torch.zeros_like(p)
    with pytest.warns(UserWarning, match=rf"is 0\.85 {WARNED} 1 "):
        opt.step()


def test_where_the_warning_is_an_error_nothing_has_moved_and_it_comes_once() -> None:
    for front_of in FRONTS:
        p = tensor(0.1, 3, 4)
        before = front.snapshot([p])
        one, go = front_of([p], 0.2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UserWarning, match=WARNED):
                go()
            assert front.same_bits([p], before)
            go()
        if hasattr(one, "eval"):
            one.eval()
        assert front.same_bits([p], before)


def test_weights_that_are_no_numbers_are_passed_over_and_a_copy_warns_for_itself() -> None:
    with no_warning():
        by_perturb([nn.Parameter(torch.full((2, 2), float("nan")))], 0.5)[1]()
    opt = torch_ssam.SSAM([tensor(0.1, 3, 4)], noise_std=0.2, seed=0)
    other = pickle.loads(pickle.dumps(opt))
    with pytest.warns(UserWarning, match=WARNED), other.perturb():
        pass


def test_a_compiled_training_step_warns_outside_of_its_graphs() -> None:
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.fill_(0.1)
    opt = torch_ssam.SSAM(model.parameters(), lr=0.0, noise_std=0.2, seed=0)

    def step(x: Tensor) -> None:
        opt.zero_grad()
        with opt.perturb():
            model(x).sum().backward()
        opt.step()

    compiled = torch.compile(step, backend="eager")
    with pytest.warns(UserWarning, match=WARNED):
        compiled(torch.ones(2, 4))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="noise_std=")
        compiled(torch.ones(2, 4))
