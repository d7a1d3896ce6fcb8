"""presets: options that every front takes, with the values of the papers' published code, written out here a second time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch

import torch_ssam
from torch_ssam import presets

#: Where each was read: the table of hyperparameters or the script in the authors' repository.
VALUES: dict[str, dict[str, Any]] = {
    # devansh20la/LPF-SGD, codes/README.md: WRN16-8, M 8, gamma_0 0.0005
    "lpf_sgd": {"noise_std": 5e-4, "scale": "filter", "samples": 8},
    # nblt/RWP, recipes/run_rwp_ddp.sh: gamma 0.01, alpha 0.5
    "mrwp": {"noise_std": 1e-2, "scale": "filter", "clean_weight": 0.5},
    # nblt/mARWP, scripts/run_rwp.sh: std 0.001, eta 0.1, beta 0.99
    "arwp": {"noise_std": 1e-3, "scale": "fisher", "fisher_factor": 0.1, "fisher_decay": 0.99},
    # VirtuosoResearch/Noise-stability-optimization, README.md: sigma 0.01, use_neg, one draw, no clean gradient
    "nso": {"noise_std": 1e-2, "antithetic": True},
    # docs/which_noise.md
    "deploy": {"noise_std": 0.3, "scale": "absmax", "weight_clip": 2.0},
}


def test_every_preset_is_here() -> None:
    assert set(presets.__all__) == VALUES.keys() == set(dir(presets))


@pytest.mark.parametrize("name", VALUES)
def test_a_preset_holds_its_values_and_is_a_dict_of_one_s_own(name: str) -> None:
    make: Callable[[], dict[str, Any]] = getattr(presets, name)
    assert make() == VALUES[name]
    make()["noise_std"] = 7.0
    assert make() == VALUES[name]
    assert "arXiv" in (make.__doc__ or "") or name == "deploy"


FRONTS: dict[str, Any] = {
    "SSAM": lambda params, **o: torch_ssam.SSAM(params, lr=0.1, momentum=0.9, seed=0, **o),
    "SSAMAdamW": lambda params, **o: torch_ssam.SSAMAdamW(params, seed=0, **o),
    "wrap": lambda params, **o: torch_ssam.wrap(torch.optim.RAdam(params), seed=0, **o),
}


@pytest.mark.parametrize("make", FRONTS)
@pytest.mark.parametrize("name", VALUES)
def test_every_front_takes_it_and_trains(name: str, make: str) -> None:
    net = front.Net()
    before = front.snapshot(net)
    opt = FRONTS[make](net.parameters(), **getattr(presets, name)())
    for key, value in VALUES[name].items():
        assert opt.param_groups[0][key] == value
    x, y = front.data(16)
    for x_k, y_k in opt.perturbations(x, y):
        front.loss_of(net, x_k, y_k).backward()
    opt.step()
    assert opt.draw == 1
    assert all(not torch.equal(a, b) for a, b in zip(front.snapshot(net), before, strict=True))


def test_the_methods_are_those_of_their_papers() -> None:
    """Each in one step on a quadratic, whose gradient is the weights: of draws n_k that are known."""
    w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    clean = w.detach().clone()
    units: list[torch.Tensor] = []
    noise = torch_ssam.WeightNoise([w], 1.0, seed=5)
    for sample in range(8):
        units.append(noise.noise(w, sample=sample))

    def gradient(name: str) -> torch.Tensor:
        opt = torch_ssam.SSAM([w], lr=0.0, seed=5, **getattr(presets, name)())
        opt.zero_grad()
        for _ in opt.perturbations():
            w.square().sum().mul(0.5).backward()
        assert w.grad is not None
        return w.grad.clone()

    close = {"rtol": 1e-6, "atol": 1e-7}
    mean = torch.stack(units).mean(0)
    torch.testing.assert_close(gradient("lpf_sgd"), clean + 0.0005 * 5.0 * mean, **close)
    torch.testing.assert_close(gradient("mrwp"), clean + 0.5 * 0.01 * 5.0 * units[0], **close)
    torch.testing.assert_close(gradient("nso"), clean, **close)
    torch.testing.assert_close(
        gradient("arwp"), clean + 0.001 * 5.0 * units[0], **close
    )  # no gradient seen yet
    torch.testing.assert_close(gradient("deploy"), clean + 0.3 * 4.0 * units[0], **close)
