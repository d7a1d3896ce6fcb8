"""opt.metrics(): against norms that are known, in all ways of holding weights, without a trace; what it refuses."""

from __future__ import annotations

import math
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn

import torch_ssam

MAKE: dict[str, Any] = {
    "SSAM": lambda p, **o: torch_ssam.SSAM(p, seed=3, **o),
    "SSAMAdamW": lambda p, **o: torch_ssam.SSAMAdamW(p, seed=3, **o),
    "wrap": lambda p, **o: torch_ssam.wrap(torch.optim.Adam(p), seed=3, **o),
}


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("make", MAKE)
def test_the_noise_is_that_of_the_next_pass(make: str, kept: bool) -> None:
    """Rademacher noise of 0.5 on weights of root mean square 5: norms of 0.5 sqrt(n) and 5 sqrt(n). A group without noise
    and a frozen tensor count nothing."""
    w = nn.Parameter(torch.tensor([3.0, 4.0, -5.0, math.sqrt(50.0)]))
    quiet, frozen = (
        nn.Parameter(torch.full((3,), 9.0)),
        nn.Parameter(torch.full((3,), 9.0), requires_grad=False),
    )
    groups = [{"params": [w, frozen]}, {"params": [quiet], "noise_std": 0.0}]
    opt = MAKE[make](groups, noise_std=0.5, distribution="rademacher", keep_perturbed=kept)
    opt.train()
    found = opt.metrics()
    assert found == {
        "noise_std": 0.5,
        "noise_to_weight": pytest.approx(0.1, rel=1e-6),
        "noise_rounded_away": 0.0,
    }


def test_gaussian_noise_is_that_of_the_draw_and_has_the_scale_s_size() -> None:
    w = nn.Parameter(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)))
    for scale in ("isotropic", "filter", "absmax", "element"):
        opt = torch_ssam.SSAM([w], noise_std=0.2, scale=scale, seed=3)  # type: ignore[arg-type]
        clean = w.detach().clone()
        found = opt.metrics()["noise_to_weight"]
        with opt.perturb():
            assert found == pytest.approx(float((w.detach() - clean).norm() / clean.norm()), rel=1e-5)
            assert opt.metrics()["noise_to_weight"] == pytest.approx(found, rel=1e-9)  # inside too
            w.sum().backward()


@pytest.mark.parametrize(("masters", "kept"), [(False, False), (False, True), (True, False), (True, True)])
def test_what_bfloat16_rounds_away_is_counted(masters: bool, kept: bool) -> None:
    """bfloat16 has steps of 2^-7 from 1 to 2: noise of 2^-9 on 1.5 goes, on 2^-4 (steps of 2^-11) it stays."""
    w = nn.Parameter(torch.tensor([1.5] * 30 + [2.0**-4] * 10, dtype=torch.bfloat16))
    opt = torch_ssam.SSAM(
        [w],
        noise_std=2.0**-9,
        distribution="rademacher",
        master_dtype=torch.float32 if masters else None,
        keep_perturbed=kept,
    )
    opt.train()
    assert opt.metrics()["noise_rounded_away"] == 0.75


def test_the_loss_rises_by_what_the_noise_adds() -> None:
    """E of (w + n)^2 - w^2 is noise_std^2; of +-noise_std it is exactly that beside 2 w n, and w is 0 here."""
    w = nn.Parameter(torch.zeros(100, dtype=torch.float64))
    opt = torch_ssam.SSAM([w], noise_std=0.5, distribution="rademacher")
    found = opt.metrics(lambda: w.square().mean() + 2.0)
    assert (found["clean_loss"], found["noisy_loss"], found["loss_rise"]) == (2.0, 2.25, 0.25)
    assert found["noise_to_weight"] == math.inf
    assert opt.metrics(lambda: 3)["loss_rise"] == 0.0


def test_without_noise_all_is_zero() -> None:
    opt = torch_ssam.SSAM([nn.Parameter(torch.ones(3))], noise_std=0.0)
    assert set(opt.metrics(lambda: 1.0).items()) == {
        *(("noise_std", 0.0), ("noise_to_weight", 0.0), ("noise_rounded_away", 0.0)),
        *(("clean_loss", 1.0), ("noisy_loss", 1.0), ("loss_rise", 0.0)),
    }


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("make", MAKE)
def test_it_leaves_no_trace(make: str, kept: bool) -> None:
    def run(look: bool) -> list[Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3))
        opt = MAKE[make](net.parameters(), noise_std=0.1, scale="fisher", keep_perturbed=kept)
        opt.train()
        x, y = front.data()
        for _ in range(3):
            opt.zero_grad()
            with torch.enable_grad() if kept else opt.perturb():
                front.loss_of(net, x, y).backward()
            opt.step()
            if look:
                opt.metrics(lambda: front.loss_of(net, x, y))
        noisy = front.snapshot(net)
        opt.eval()
        state = [*net.state_dict().values(), torch.get_rng_state(), torch.tensor(opt.draw)]
        return [*noisy, *state, *front.optimizer_bits(opt)]

    assert front.same_bits(run(True), run(False))


def test_what_cannot_be_measured_is_refused() -> None:
    w = nn.Parameter(torch.ones(3))
    opt = torch_ssam.SSAM([w])
    with pytest.raises(TypeError, match="loss is a Tensor; expected a function"):
        opt.metrics(w.sum())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"loss gave a tensor of shape \(3,\)"):
        opt.metrics(lambda: w)
    with pytest.raises(TypeError, match="loss gave None"):
        opt.metrics(lambda: None)
    with opt.perturb(), pytest.raises(RuntimeError, match=r"inside perturb\(\)"):
        opt.metrics(lambda: w.sum())
    assert torch.equal(w, torch.ones(3))


@pytest.mark.parametrize("make", MAKE)
def test_how_often_gradients_are_clipped(make: str) -> None:
    """Norms of 1, 2, 3 and 6 beside a bound of 2: two above it. The next look begins anew."""
    w = nn.Parameter(torch.ones(4))
    opt = MAKE[make]([w], noise_std=0.1)
    assert "grad_norm" not in opt.metrics()
    for norm in (
        1.0,
        torch.tensor(2.0),
        torch.tensor([3.0], dtype=torch.float64),
        torch.tensor(6.0, requires_grad=True),
    ):
        opt.note_grad_norm(norm, 2.0)
    found = opt.metrics()
    assert (found["grad_norm"], found["grad_clipped"]) == (3.0, 0.5)
    assert "grad_norm" not in opt.metrics()
    opt.note_grad_norm(5.0, 2.0)
    assert opt.metrics()["grad_clipped"] == 1.0
    for wrong, message in ((torch.ones(2), r"shape \(2,\)"), (math.nan, "norm is nan")):
        with pytest.raises(ValueError, match=message):
            opt.note_grad_norm(wrong, 2.0)
    with pytest.raises(ValueError, match="max_norm is 0"):
        opt.note_grad_norm(1.0, 0.0)
    assert "grad_norm" not in opt.metrics()


def test_noise_raises_the_norm_of_gradients() -> None:
    """Of w^2 / 2 at w + n: the root of |w|^2 + |n|^2, here 5 for weights of 3 and Rademacher noise of 4."""
    w = nn.Parameter(torch.full((10_000,), 0.03))
    opt = torch_ssam.SSAM([w], noise_std=0.04, distribution="rademacher", seed=0)
    for _ in range(3):
        opt.zero_grad()
        with opt.perturb():
            (w.square().sum() / 2).backward()
        opt.note_grad_norm(nn.utils.clip_grad_norm_([w], 4.0), 4.0)
    found = opt.metrics()
    assert found["grad_norm"] == pytest.approx(5.0, rel=0.02)
    assert found["grad_clipped"] == 1.0
