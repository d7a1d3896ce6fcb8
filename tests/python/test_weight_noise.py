"""WeightNoise: clean + noise inside, exact clean bits outside, one draw a use, and what it shares with SSAM."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import nn

import torch_ssam


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("how", [{}, {"sample": 3}, {"negate": True}, {"sample": 2, "negate": True}], ids=str)
def test_inside_the_tensors_hold_clean_plus_the_noise_of_the_draw(
    distribution: str, how: dict[str, Any]
) -> None:
    model = front.Net()
    noise = torch_ssam.WeightNoise(model.parameters(), 0.4, distribution=distribution, seed=5)
    clean = front.snapshot(model)
    for draw in range(3):
        expected = [
            front.expected_noise(w, 5, draw, place, 0.4, distribution, **how) for place, w in enumerate(clean)
        ]
        assert noise.draw == draw
        with noise.applied(**how):
            assert front.same_bits(model.parameters(), expected)
        assert front.same_bits(model.parameters(), clean)


def test_it_draws_the_noise_of_ssam_with_the_same_seed() -> None:
    model, other = front.Net(), front.Net()
    noise = torch_ssam.WeightNoise(model.parameters(), 0.4, seed=5)
    opt = torch_ssam.SSAM(other.parameters(), noise_std=0.4, seed=5)
    for _ in range(2):
        with noise.applied(), opt.perturb():
            assert front.same_bits(model.parameters(), other.parameters())


def test_without_advance_the_same_draw_comes_again() -> None:
    model = front.Net()
    noise = torch_ssam.WeightNoise(model.parameters(), 0.4)
    seen = []
    for _ in range(2):
        with noise.applied(advance=False):
            seen.append(front.snapshot(model))
    assert front.same_bits(*seen)
    assert noise.draw == 0


def test_mirrored_noise_is_the_exact_opposite() -> None:
    p = nn.Parameter(torch.zeros(1000))
    noise = torch_ssam.WeightNoise([p], 0.4)
    with noise.applied(advance=False):
        plus = p.detach().clone()
    with noise.applied(negate=True):
        assert torch.equal(p, -plus)
    assert bool((plus != 0).all())


def test_noise_tells_what_the_next_use_adds() -> None:
    p, q = nn.Parameter(torch.zeros(7)), nn.Parameter(torch.zeros(3, 2))
    noise = torch_ssam.WeightNoise([{"params": [p]}, {"params": [q], "noise_std": 2.0}], 0.4)
    for sample in (0, 4):
        expected = [noise.noise(t, sample=sample) for t in (p, q)]
        with noise.applied(sample=sample):
            assert front.same_bits([p, q], expected)
    with pytest.raises(ValueError, match="not one of params"):
        noise.noise(torch.zeros(7))


def test_groups_names_duplicates_and_frozen_tensors_keep_their_place() -> None:
    a, b, c = (nn.Parameter(torch.zeros(4)) for _ in range(3))
    b.requires_grad_(False)
    noise = torch_ssam.WeightNoise([("a", a), ("again", a), ("b", b), ("c", c)], 0.4, seed=1)
    with noise.applied():
        assert front.same_bits([a, c], [front.expected_noise(torch.zeros(4), 1, 0, i, 0.4) for i in (0, 2)])
        assert not bool(b.any())
    shared = torch_ssam.WeightNoise([{"params": [a]}, {"params": [a, c]}], 0.4, seed=1)
    with shared.applied():
        assert front.same_bits([a, c], [front.expected_noise(torch.zeros(4), 1, 0, i, 0.4) for i in (0, 1)])


def test_state_copies_and_pickles_continue_with_the_next_draw() -> None:
    model = front.Net()
    noise = torch_ssam.WeightNoise(model.parameters(), 0.4, seed=5)
    with noise.applied():
        pass
    restored = torch_ssam.WeightNoise(front.Net().parameters(), 0.4, seed=6)
    restored.load_state_dict(noise.state_dict())
    twins = [copy.deepcopy(noise), pickle.loads(pickle.dumps(noise)), restored]
    with noise.applied():
        expected = front.snapshot(model)
    for twin in twins:
        assert (twin.seed, twin.draw) == (5, 1)
        with twin.applied():
            assert front.same_bits(twin.param_groups[0]["params"], expected)


def test_inside_itself_and_with_nothing_to_perturb_it_is_refused() -> None:
    p = nn.Parameter(torch.zeros(3))
    noise = torch_ssam.WeightNoise([p], 0.4)
    with noise.applied():
        inside = p.detach().clone()
        with pytest.raises(RuntimeError, match="inside applied"), noise.applied():
            pass
        assert front.same_bits([p], [inside])
    assert not bool(p.any())
    assert noise.draw == 1
    with (
        pytest.raises(RuntimeError, match="requires_grad_"),
        torch_ssam.WeightNoise([torch.zeros(3)], 0.4).applied(),
    ):
        pass


def test_a_sharpness_estimate_works_in_inference_mode() -> None:
    model = front.Net()
    clean = front.snapshot(model)
    noise = torch_ssam.WeightNoise(model.parameters(), 0.4)
    with torch.inference_mode():
        for _ in range(2):
            with noise.applied():
                assert bool(torch.isfinite(front.loss_of(model, *front.data())))
    assert front.same_bits(model.parameters(), clean)
    with noise.applied():
        front.loss_of(model, *front.data()).backward()
    noise.load_state_dict({"seed": 1, "draw": 2})
    assert (noise.seed, noise.draw) == (1, 2)


@pytest.mark.parametrize("scale", ["tensor", "filter", "element", "absmax", "tensor_absmax"])
def test_noise_of_every_scale_is_what_applied_adds(scale: str) -> None:
    weights = torch.randn(5, 7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = torch.nn.Parameter(weights.clone())
    noise = torch_ssam.WeightNoise([p], 0.3, scale=scale, seed=4)
    for sample in (0, 2):
        before = noise.noise(p, sample=sample)
        with noise.applied(sample=sample, advance=False):
            inside = noise.noise(p, sample=sample)
            torch.testing.assert_close(p.detach(), weights + before, rtol=1e-14, atol=1e-14)
        assert torch.equal(before, inside)
        assert torch.equal(p.detach(), weights)


@pytest.mark.parametrize("scale", ["absmax", "tensor_absmax"])
def test_noise_in_units_of_the_range_is_that_of_its_rows_and_nothing_where_a_row_is_zero(scale: str) -> None:
    weights = torch.randn(4, 9, generator=torch.Generator().manual_seed(2))
    weights[2] = 0.0
    weights[1, 3] = -8.0
    p = torch.nn.Parameter(weights.clone())
    z = torch_ssam.WeightNoise([torch.nn.Parameter(torch.zeros(4, 9))], 1.0, seed=4)
    standard = z.noise(z.param_groups[0]["params"][0])
    got = torch_ssam.WeightNoise([p], 0.25, scale=scale, seed=4).noise(p)
    largest = weights.abs().amax(1, keepdim=True) if scale == "absmax" else weights.abs().max()
    torch.testing.assert_close(got, 0.25 * largest * standard, rtol=1e-6, atol=0.0)
    assert scale == "tensor_absmax" or not got[2].any()
    assert got[1].abs().max() > 0.25
