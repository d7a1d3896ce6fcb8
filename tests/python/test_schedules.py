"""The schedules against their closed forms, on SSAM and on wrapped optimizers, with groups, resumed and refused."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import nn

import torch_ssam
from torch_ssam import schedules


def make(kind: str) -> Any:
    groups = [
        {"params": [nn.Parameter(torch.ones(2))], "noise_std": 0.1, "lr": 0.5},
        {"params": [nn.Parameter(torch.ones(2))], "noise_std": 0.4, "lr": 2.0},
    ]
    if kind == "ssam":
        return torch_ssam.SSAM(groups)
    return torch_ssam.wrap(torch.optim.AdamW(groups))


KINDS = pytest.mark.parametrize("kind", ["ssam", "wrap"])


@KINDS
def test_harmonic_lr_is_lr_over_k_plus_1(kind: str) -> None:
    opt = make(kind)
    schedule = schedules.harmonic_lr(opt)
    for k in range(5):
        assert [g["lr"] for g in opt.param_groups] == pytest.approx([0.5 / (k + 1), 2.0 / (k + 1)])
        opt.param_groups[0]["noise_std"] = opt.param_groups[1]["noise_std"] = 0.0
        opt.step()
        schedule.step()


def test_harmonic_lr_fills_a_tensor_lr_in_place() -> None:
    lr = torch.tensor(1.0)
    opt = torch_ssam.SSAM([nn.Parameter(torch.ones(1))], lr=lr, noise_std=0.0)
    schedule = schedules.harmonic_lr(opt)
    held = opt.param_groups[0]["lr"]
    opt.step()
    schedule.step()
    assert held is opt.param_groups[0]["lr"]
    assert float(held) == 0.5


@KINDS
def test_lambda_noise_std_multiplies_each_group_s_initial_value(kind: str) -> None:
    opt = make(kind)
    schedule = schedules.LambdaNoiseStd(opt, lambda k: 1.0 + k)
    for k in range(4):
        assert [g["noise_std"] for g in opt.param_groups] == pytest.approx([0.1 * (1 + k), 0.4 * (1 + k)])
        assert schedule.get_last_noise_std() == [g["noise_std"] for g in opt.param_groups]
        schedule.step()
    schedule.step(1)
    assert opt.param_groups[0]["noise_std"] == pytest.approx(0.2)


@KINDS
@pytest.mark.parametrize("factor", [0.0, 1.0, 11.0])
def test_cosine_noise_std_follows_lpf_sgd_and_holds_its_end(kind: str, factor: float) -> None:
    opt = make(kind)
    schedule = schedules.CosineNoiseStd(opt, steps=7, factor=factor)
    for k in range(12):
        t = min(k, 7) / 7
        expected = 0.1 * (1 + (factor - 1) * (1 - math.cos(math.pi * t)) / 2)
        assert opt.param_groups[0]["noise_std"] == pytest.approx(expected, abs=1e-15)
        schedule.step()
    assert opt.param_groups[1]["noise_std"] == pytest.approx(0.4 * factor, abs=1e-15)


def test_the_noise_follows_the_schedule_and_zero_switches_it_off() -> None:
    p = nn.Parameter(torch.zeros(1000))
    opt = torch_ssam.SSAM([p], noise_std=1.0)
    schedule = schedules.LambdaNoiseStd(opt, lambda k: [1.0, 0.5, 0.0][k])
    for expected in (1.0, 0.5, 0.0):
        with opt.perturb():
            assert float(p.detach().std()) == pytest.approx(expected, abs=0.1)
        schedule.step() if expected else None


@KINDS
def test_a_schedule_resumes_through_weights_only_loading(kind: str) -> None:
    def both(opt: Any) -> list[Any]:
        return [schedules.CosineNoiseStd(opt, 9, 3.0), schedules.harmonic_lr(opt)]

    opt = make(kind)
    plans = both(opt)
    opt.param_groups[0]["noise_std"] = 0.1
    for _ in range(4):
        for plan in plans:
            plan.step()
    file = io.BytesIO()
    torch.save({"opt": opt.state_dict(), "plans": [plan.state_dict() for plan in plans]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = make(kind)
    resumed = both(other)
    other.load_state_dict(saved["opt"])
    for plan, state in zip(resumed, saved["plans"], strict=True):
        plan.load_state_dict(state)
    for _ in range(3):
        for plan in [*plans, *resumed]:
            plan.step()
        for a, b in zip(opt.param_groups, other.param_groups, strict=True):
            assert (a["noise_std"], a["lr"]) == (b["noise_std"], b["lr"])


def test_a_group_added_later_is_scheduled_from_its_own_value() -> None:
    opt = make("ssam")
    schedule = schedules.LambdaNoiseStd(opt, lambda k: 2.0**k)
    opt.add_param_group({"params": [nn.Parameter(torch.ones(1))], "noise_std": 0.7})
    schedule.step()
    assert [g["noise_std"] for g in opt.param_groups] == pytest.approx([0.2, 0.8, 1.4])


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), "x", None])
def test_a_factor_out_of_range_is_refused_and_changes_nothing(bad: Any) -> None:
    opt = make("ssam")
    schedule = schedules.LambdaNoiseStd(opt, lambda k: 1.0 if k == 0 else bad)
    with pytest.raises((ValueError, TypeError), match="the factor of noise_std"):
        schedule.step()
    assert schedule.last_epoch == 0
    assert opt.param_groups[0]["noise_std"] == 0.1


def test_wrong_arguments_are_refused() -> None:
    sgd = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    with pytest.raises(TypeError, match=r"SGD without noise_std.*torch_ssam\.wrap"):
        schedules.CosineNoiseStd(sgd, 3, 2.0)
    with pytest.raises(TypeError, match="without noise_std"):
        schedules.LambdaNoiseStd(3, lambda k: 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a function"):
        schedules.LambdaNoiseStd(make("ssam"), 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps is 0"):
        schedules.CosineNoiseStd(make("ssam"), 0, 2.0)
    with pytest.raises(ValueError, match="factor is -1"):
        schedules.CosineNoiseStd(make("ssam"), 3, -1.0)
    opt = make("ssam")
    with pytest.raises(TypeError):
        schedules.CosineNoiseStd(opt, 2.5, 1.0)  # type: ignore[arg-type]
    assert "initial_noise_std" not in opt.param_groups[0]


@KINDS
@pytest.mark.parametrize("order", ["cyclic", "random"])
def test_layerwise_noise_is_on_one_group_at_a_time_and_resumes(kind: str, order: str) -> None:
    opt = make(kind)
    schedule = schedules.LayerwiseNoise(opt, order, f=lambda k: 1.0 + k, seed=3)
    seen: list[int] = []
    states = []
    for k in range(40):
        on = [i for i, g in enumerate(opt.param_groups) if g["noise_std"] > 0]
        assert on == [schedule.chosen(k)]
        assert opt.param_groups[on[0]]["noise_std"] == pytest.approx([0.1, 0.4][on[0]] * (1 + k))
        seen += on
        states.append((schedule.state_dict(), opt.state_dict()))
        schedule.step()
    assert seen == [0, 1] * 20 if order == "cyclic" else 8 <= sum(seen) <= 32  # fails once in 10^4 seeds
    other = make(kind)
    resumed = schedules.LayerwiseNoise(other, order, f=lambda k: 1.0 + k)
    resumed.load_state_dict(states[20][0])
    other.load_state_dict(states[20][1])
    for k in range(21, 40):
        resumed.step()
        assert [i for i, g in enumerate(other.param_groups) if g["noise_std"] > 0] == [seen[k]]


@pytest.mark.parametrize("kept", [False, True])
def test_layerwise_noise_moves_the_weights_of_one_layer_only(kept: bool) -> None:
    params = [nn.Parameter(torch.ones(50)) for _ in range(3)]
    opt = torch_ssam.SSAM([{"params": [p]} for p in params], lr=0.1, noise_std=0.5, keep_perturbed=kept)
    schedule = schedules.LayerwiseNoise(opt)
    opt.train()
    for k in range(7):
        clean = [opt._noise.clean_of(p).clone() for p in params]
        inside = torch.enable_grad() if kept else opt.perturb()
        with inside:
            moved = [bool((p != w).any()) for p, w in zip(params, clean, strict=True)]
            sum(p.square().sum() for p in params).backward()  # type: ignore[union-attr]
        # What step() leaves perturbed is the group of the schedule's last step().
        chosen = (k - 1 if kept and k else k) % 3
        assert moved == [i == chosen for i in range(3)]
        opt.step()
        schedule.step()
        opt.zero_grad()


def test_layerwise_noise_refuses_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="order is 'upwards'; expected one of 'cyclic', 'random'"):
        schedules.LayerwiseNoise(make("ssam"), "upwards")
    with pytest.raises(TypeError, match=r"f is 0\.5; expected a function"):
        schedules.LayerwiseNoise(make("ssam"), f=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"seed is 1\.5"):
        schedules.LayerwiseNoise(make("ssam"), seed=1.5)  # type: ignore[arg-type]
