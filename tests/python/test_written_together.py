"""Tensors are watched in the groups in which they were last written (torch_ssam/noise/saved.py). Here the groups change between
writes: parts frozen, without gradients, added, replaced. Writes by others must be found whatever the groups were, nobody
may be blamed for ours, and no copy may outlive its tensor's shape.
"""

from __future__ import annotations

import gc
import itertools
import weakref

import pytest
import torch
from torch import Tensor, nn

import torch_ssam


def _optimizer(
    count: int, groups: int = 1, memory: str = "copy"
) -> tuple[list[nn.Parameter], torch_ssam.SSAM]:
    params = [nn.Parameter(torch.full((5,), float(i + 1))) for i in range(count)]
    split = [params[i::groups] for i in range(groups)]
    opt = torch_ssam.SSAM(
        [{"params": part} for part in split],
        lr=0.1,
        noise_std=0.3,
        momentum=0.9,
        keep_perturbed=True,
        seed=3,
        memory=memory,
    )
    opt.train()
    return params, opt


def _step(opt: torch_ssam.SSAM, params: list[nn.Parameter], with_grad: tuple[int, ...]) -> None:
    for i, p in enumerate(params):
        p.grad = torch.full_like(p, 0.5) if i in with_grad else None
    opt.step()


SUBSETS = [subset for n in range(1, 4) for subset in itertools.combinations(range(3), n)]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("first", SUBSETS, ids=str)
def test_any_parts_may_follow_any_others(first: tuple[int, ...], groups: int) -> None:
    for second, third in itertools.product(SUBSETS, [(0, 1, 2), (2,)]):
        params, opt = _optimizer(3, groups)
        for part in (first, second, third, (0, 1, 2)):
            _step(opt, params, part)
        opt.eval()  # raises where somebody is blamed


@pytest.mark.parametrize("target", range(3))
@pytest.mark.parametrize("how", ["in place", "data"])
@pytest.mark.parametrize("first", SUBSETS, ids=str)
def test_a_write_is_found_whatever_was_written_together(
    first: tuple[int, ...], how: str, target: int
) -> None:
    for second in SUBSETS:
        params, opt = _optimizer(3)
        _step(opt, params, first)
        _step(opt, params, second)
        if how == "data":
            params[target].data = torch.full((5,), 7.0)
        else:
            with torch.no_grad():
                params[target].fill_(7.0)
        with pytest.raises(
            torch_ssam.PerturbedWeightsChanged, match=rf"Parameter {target} of shape \(5,\) was"
        ):
            _step(opt, params, (0, 1, 2))
        assert params[target].tolist() == [7.0] * 5
        opt.train()  # and goes on from what was written
        _step(opt, params, (0, 1, 2))
        opt.eval()


def test_a_tensor_frozen_and_replaced_meanwhile_has_a_copy_of_its_new_shape() -> None:
    params, opt = _optimizer(3)
    _step(opt, params, (0, 1, 2))
    params[1].requires_grad_(False)
    _step(opt, params, (0, 2))  # takes its noise off
    params[1].data = torch.full((2, 2), 9.0)
    opt.state[params[1]].clear()
    params[1].requires_grad_(True)
    _step(opt, params, (0, 1, 2))
    _step(opt, params, (0, 1, 2))
    before = params[1].detach().clone()
    opt.eval()
    assert params[1].shape == (2, 2)
    assert not torch.equal(before, params[1])
    torch.testing.assert_close(params[1].detach(), torch.full((2, 2), 9.0 - 0.05 - 0.095))


def test_a_copy_that_no_longer_fits_is_freed_at_once() -> None:
    params, opt = _optimizer(3)
    _step(opt, params, (0, 1, 2))
    old: Tensor = opt._noise._copies[id(params[1])].clean
    gone = weakref.ref(old)
    del old
    opt.eval()
    params[1].data = torch.ones(7)
    opt.state[params[1]].clear()
    opt.train()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("memory", ["copy", "regenerate"])
def test_a_restored_tensor_may_be_written_to(memory: str) -> None:
    params, opt = _optimizer(3, memory=memory)
    _step(opt, params, (0, 1, 2))
    params[1].requires_grad_(False)
    _step(opt, params, (0, 2))
    for _ in range(2):
        with torch.no_grad():
            params[1].mul_(2.0)
        _step(opt, params, (0, 2))
    opt.eval()
