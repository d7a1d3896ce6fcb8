"""aihwkit-lightning beside ours: the noise of `robustness.noisy` is its noise, how the two clip, and compare's ala-noise.

What needs the toolkit is skipped by name where it is not installed; what is said then is tested everywhere.
"""

from __future__ import annotations

import contextlib
import copy
import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch_ssam
from torch_ssam import compare, robustness
from torch_ssam.compare import METHODS, Setting
from torch_ssam.compare._analog import AnalogLayers
from torch_ssam.compare._stepper import Stepper

with contextlib.redirect_stdout(io.StringIO()):
    try:
        from aihwkit_lightning.nn import AnalogConv2d, AnalogLinear
        from aihwkit_lightning.simulator.configs import (
            TorchInferenceRPUConfig,
            WeightClipType,
            WeightNoiseInjectionType,
        )
    except ImportError:
        AnalogLinear = None

installed = pytest.mark.skipif(
    AnalogLinear is None, reason="NOT TESTED here: aihwkit-lightning (pip install aihwkit-lightning==2.1.0)"
)
STD, CLIP = 0.25, 1.5
LAYERS = {"linear": lambda: nn.Linear(24, 7, bias=False), "conv": lambda: nn.Conv2d(3, 5, 3, bias=False)}


def config(clip: Any = None) -> Any:
    made = TorchInferenceRPUConfig()
    made.modifier.noise_type = WeightNoiseInjectionType.ADD_NORMAL_PER_CHANNEL
    made.modifier.std_dev = STD
    if clip is not None:
        made.clip.type, made.clip.sigma = clip, CLIP
    return made


def analog(layer: nn.Module, clip: Any = None) -> Any:
    kind = AnalogLinear if isinstance(layer, nn.Linear) else AnalogConv2d
    return kind.from_digital(layer, config(clip))


def their_weights(layer: Any) -> torch.Tensor:
    """The weights that a forward pass in training mode computes with: its outputs for one-hot inputs; (filter, weight)."""
    layer.train()
    n = layer.weight[0].numel()
    with torch.no_grad():
        outputs = layer(torch.eye(n).view(n, *layer.weight.shape[1:]))
    return outputs.reshape(n, -1).T


def our_weights(layer: nn.Module, draw: int = 0) -> torch.Tensor:
    with robustness.noisy(layer, STD, "filter", seed=3, draw=draw):
        return layer.weight.detach().flatten(1).clone()


def with_ranges(layer: nn.Module, ranges: torch.Tensor) -> nn.Module:
    """Each filter's first weight is plus or minus its range, the others are 0: noise is seen there without rounding."""
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight.flatten(1)[:, 0] = ranges * torch.tensor([1.0, -1.0]).repeat(len(ranges))[: len(ranges)]
    return layer


# -- noise -------------------------------------------------------------------------------------------------------


@installed
@pytest.mark.parametrize("name", LAYERS)
def test_the_noise_of_each_filter_has_their_scale_to_the_bit(name: str) -> None:
    """STD is a power of 2, so that the noise is STD times the rounded product of the range and a normal number."""
    layer = LAYERS[name]()
    ranges = torch.rand(len(layer.weight), generator=torch.Generator().manual_seed(1)) * 3 + 0.01
    unit = with_ranges(copy.deepcopy(layer), torch.ones(len(ranges)))
    scaled = with_ranges(copy.deepcopy(layer), ranges)
    ours, our_units = our_weights(scaled)[:, 1:], our_weights(unit)[:, 1:]
    torch.manual_seed(5)
    theirs = their_weights(analog(scaled))[:, 1:]
    torch.manual_seed(5)
    their_units = their_weights(analog(unit))[:, 1:]
    assert torch.equal(ours, our_units * ranges[:, None])
    assert torch.equal(theirs, their_units * ranges[:, None])
    assert float(ours.abs().min()) > 0


@installed
@pytest.mark.parametrize("name", LAYERS)
def test_the_noise_is_distributed_as_theirs(name: str) -> None:
    """Normal numbers of standard deviation STD max|w|, filter by filter: 4,000 draws of both. False alarms: 1e-5 in all."""
    stats = pytest.importorskip("scipy.stats", reason="NOT TESTED here: scipy")
    torch.manual_seed(0)
    layer = LAYERS[name]()
    clean = layer.weight.detach().flatten(1)
    unit = STD * clean.abs().amax(1, keepdim=True)
    theirs_layer, draws = analog(layer), 4000
    ours = torch.stack([our_weights(layer, draw) - clean for draw in range(draws)]) / unit
    theirs = torch.stack([their_weights(theirs_layer) - clean for _ in range(draws)]) / unit
    rows = len(clean)
    error = (0.5 / (draws * clean.shape[1])) ** 0.5  # of a standard deviation, relative
    bound = float(stats.norm.isf(1e-5 / 8 / rows / 2)) * error
    for found in (ours, theirs):
        assert (found.std((0, 2)) - 1).abs().max() < bound
        assert found.mean((0, 2)).abs().max() < bound * 2**0.5
    assert stats.ks_2samp(ours.flatten().numpy(), theirs.flatten().numpy()).pvalue > 1e-5 / 4


# -- clipping ----------------------------------------------------------------------------------------------------


def clipped_by_us(weights: torch.Tensor) -> torch.Tensor:
    w = nn.Parameter(weights.clone())
    opt = torch_ssam.SSAM([w], lr=0.1, noise_std=0.0, weight_clip=CLIP)
    w.grad = torch.zeros_like(w)
    with pytest.warns(UserWarning, match="weight_clip"):
        opt.step()
    return w.detach()


@installed
@pytest.mark.parametrize("mean", [0.0, 0.5, 2.0])
def test_they_clip_at_the_centred_deviation_and_we_at_the_root_mean_square(mean: float) -> None:
    """rms^2 = std^2 (n - 1) / n + mean^2: nearly the same for a filter of mean 0, and theirs is far tighter with one."""
    torch.manual_seed(0)
    n = 400
    layer = nn.Linear(n, 6, bias=False)
    with torch.no_grad():
        noise = torch.randn(6, n)
        layer.weight.copy_(noise - noise.mean(1, keepdim=True) + mean)
    clean = layer.weight.detach().clone()
    theirs_layer = analog(layer, WeightClipType.LAYER_GAUSSIAN_PER_CHANNEL)
    theirs_layer.clip_weights()
    theirs = theirs_layer.weight.detach()
    std, rms = clean.double().std(1), clean.double().square().mean(1).sqrt()
    torch.testing.assert_close(theirs.double().abs().amax(1), CLIP * std, rtol=1e-5, atol=0)
    torch.testing.assert_close(clipped_by_us(clean).double().abs().amax(1), CLIP * rms, rtol=1e-5, atol=0)
    torch.testing.assert_close(rms.square(), std.square() * (n - 1) / n + mean**2, rtol=1e-4, atol=0)
    inside = clean.abs() < CLIP * std[:, None] * 0.999
    assert torch.equal(theirs[inside], clean[inside])


@installed
def test_layer_gaussian_has_one_limit_for_the_whole_layer() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(50, 6, bias=False)
    with torch.no_grad():
        layer.weight[0] *= 10
    limit = CLIP * layer.weight.detach().double().std()
    theirs = analog(layer, WeightClipType.LAYER_GAUSSIAN)
    theirs.clip_weights()
    assert float(theirs.weight.detach().double().abs().max()) == pytest.approx(float(limit), rel=1e-6)
    # Rows of small weights are not clipped.
    assert torch.equal(theirs.weight[1:].detach(), layer.weight[1:].detach())


# -- compare's method --------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )
    return model.to(memory_format=torch.channels_last)


BATCH = (torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3)


@installed
def test_without_noise_and_clipping_ala_noise_is_sgd() -> None:
    models = [network(), network()]
    layers = AnalogLayers(models[0], 0.0, 1e6)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
    for model, opt in (
        (models[0], layers.optimizer(models[0].parameters(), **options)),
        (models[1], torch.optim.SGD(models[1].parameters(), **options)),
    ):
        for _ in range(4):
            opt.zero_grad()
            nn.functional.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
            opt.step()
    layers.finish()
    for (key, ours), theirs in zip(
        models[0].state_dict().items(), models[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=key)


@installed
def test_the_models_own_layers_and_parameters_come_back() -> None:
    model = network()
    before, kept = dict(model.named_modules()), dict(model.named_parameters())
    layers = AnalogLayers(model, STD, CLIP)
    assert {type(m).__name__ for m in model.modules()} >= {"AnalogConv2d", "AnalogLinear"}
    assert all(p is kept[name] for name, p in model.named_parameters())
    noisy = [model(BATCH[0]) for _ in range(2)]
    assert not torch.equal(*noisy)  # training mode: fresh noise in each forward pass
    model.eval()
    assert torch.equal(model(BATCH[0]), model(BATCH[0]))
    model.train()
    with layers.clean():
        assert type(model[3]) is nn.Linear
        assert torch.equal(model(BATCH[0]), model(BATCH[0]))
        model.eval()
    assert not model[3].training
    assert type(model[3]).__name__ == "AnalogLinear"
    layers.finish()
    assert dict(model.named_modules()) == before
    assert not any(m.training for m in model.modules())


@installed
def test_ala_noise_clips_each_filter_after_each_step() -> None:
    model = network()
    options = {"lr": 0.05, "noise_std": 0.2, "weight_clip": 2.0, "weight_decay": 0.0}
    stepper = Stepper(METHODS["ala-noise"], model, options, 8, 0)
    for _ in range(3):
        stepper.step(lambda x, y: nn.functional.cross_entropy(model(x), y), *BATCH)
        for weights in (model[0][0].weight, model[3].weight):
            rows = weights.detach().flatten(1)
            # The deviation after clipping is at most the one before.
            assert float((rows.abs().amax(1) / rows.std(1)).max()) < 2.3
    stepper.finish()
    assert type(model[3]) is nn.Linear


@installed
def test_a_model_without_a_layer_to_exchange_is_refused() -> None:
    with pytest.raises(ValueError, match="a Linear, has no Linear, Conv1d, Conv2d, Conv3d layer inside"):
        AnalogLayers(nn.Linear(3, 2), STD, CLIP)


def test_without_the_toolkit_ala_noise_says_what_to_install_before_any_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    for name in ("aihwkit_lightning", "aihwkit_lightning.nn"):
        monkeypatch.setitem(sys.modules, name, None)
    setting = Setting(
        "tiny", data="digits", model="mlp", methods=("sgd", "ala-noise"), epochs=1, robustness_seeds=0
    )
    message = r"ala-noise needs aihwkit_lightning .*pip install 'torch_ssam\[analog\]'"
    with pytest.raises(ImportError, match=message):
        compare.compare(setting, out=tmp_path, workers=1)
    assert not list(tmp_path.rglob("*.json"))
    with pytest.raises(ImportError, match=message):
        AnalogLayers(nn.Sequential(nn.Linear(3, 2)), STD, CLIP)
    plain = replace(setting, methods=("sgd",), train=60, validation=40, test=40, knob_values=1, seeds=1)
    compare.compare(plain, out=tmp_path, workers=1, stages=("tuning",))  # the others run as ever
