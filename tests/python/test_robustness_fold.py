"""BatchNorm folded into the layer before: the same function in eval mode, and a clear refusal where it would not be."""

from __future__ import annotations

import copy

import pytest
import torch
from robustness_models import convolutional, images, left_alone
from torch import nn

from torch_ssam import robustness


def used(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """The model with running statistics, weights and biases that are not those it was made with."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                for t in (module.weight, module.bias, module.running_mean):
                    t.normal_()
                module.running_var.uniform_(0.1, 3.0)
    return model.eval()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.again, self.bn_again = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn_again(self.again(torch.relu(self.bn(self.conv(x)))))
        out: torch.Tensor = torch.relu(x + y)
        return out


FOLDABLE = {
    "residual": (nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), Block(), Block()), (3, 2, 5, 5)),
    "linear": (nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), nn.ReLU()), (4, 5)),
    "1d": (nn.Sequential(nn.Conv1d(3, 6, 3, groups=3), nn.BatchNorm1d(6)), (4, 3, 9)),
    "3d": (nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2)), (2, 1, 4, 4, 4)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.BatchNorm2d(5)), (2, 3, 4, 4)),
    "not affine": (nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)), (4, 3, 9)),
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_the_copy_is_the_same_function_without_batchnorm(name: str) -> None:
    model, shape = copy.deepcopy(FOLDABLE[name])
    used(model, torch.randn(shape)).double()
    x = torch.randn(shape, dtype=torch.float64)
    with left_alone(model):
        folded = robustness.fold_batchnorm(model, x)
        assert type(folded) is type(model)
        assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())
        assert torch.allclose(folded(x), model(x), rtol=1e-9, atol=1e-12)


def test_a_hand_computed_layer() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0.0))
    with torch.no_grad():
        for t, v in zip((model[0].weight, model[0].bias), (2.0, 1.0), strict=True):
            t.fill_(v)
        for name, v in {"weight": 3.0, "bias": 5.0, "running_mean": 7.0, "running_var": 4.0}.items():
            getattr(model[1], name).fill_(v)
    folded = robustness.fold_batchnorm(model)
    assert folded[0].weight.item() == 3.0  # 2 * 3 / 2
    assert folded[0].bias.item() == -4.0  # (1 - 7) * 3 / 2 + 5


def test_flags_and_requires_grad_are_kept_and_nothing_is_shared() -> None:
    model = convolutional()
    model[0].weight.requires_grad_(False)
    model.train()
    model[1].eval()
    with left_alone(model):
        folded = robustness.fold_batchnorm(model)
        assert [m.training for m in folded] == [m.training for m in model]
        assert not folded[0].weight.requires_grad
        assert folded[4].weight.requires_grad
        ours = {p.data_ptr() for p in model.parameters()}
        assert not ours & {p.data_ptr() for p in folded.parameters()}


def test_a_model_without_batchnorm_is_copied() -> None:
    class Untraceable(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    assert isinstance(robustness.fold_batchnorm(Untraceable()), Untraceable)


class Shared(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.conv, self.bn, self.other = nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2), nn.BatchNorm1d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        out: torch.Tensor
        if self.form == "also elsewhere":
            out = self.bn(y) + y
        elif self.form == "called twice":
            out = self.bn(y) + self.bn(x)
        elif self.form == "layer called twice":
            out = self.bn(y) + self.other(self.conv(x))
        elif self.form == "depends on data":
            out = self.bn(y) if y.sum() > 0 else y
        else:
            out = self.bn(torch.relu(y))
        return out


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)), "0 does not follow a layer but placeholder"),
        (nn.Sequential(nn.Conv1d(2, 2, 1), nn.ReLU(), nn.BatchNorm1d(2)), "2 follows 1, a ReLU"),
        (
            nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2, track_running_stats=False)),
            "no running statistics",
        ),
        (
            nn.Sequential(nn.ConvTranspose1d(2, 2, 1, groups=2), nn.BatchNorm1d(2)),
            "transposed convolution of 2 groups",
        ),
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(5)), "1 has 5 features and follows 0, which has 2"),
        (Shared("also elsewhere"), "bn follows conv, whose output also goes elsewhere"),
        (Shared("called twice"), "bn is called 2 times"),
        (Shared("layer called twice"), "follows conv, which is called 2 times"),
        (Shared("depends on data"), r"torch\.fx cannot trace the model"),
        (Shared("function"), "bn does not follow a layer but call_function relu"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.BatchNorm1d(2)),
            "hooks or parametrizations",
        ),
    ],
)
def test_what_cannot_be_folded_is_refused_by_name(model: nn.Module, says: str) -> None:
    with left_alone(model), pytest.raises(ValueError, match=says):
        robustness.fold_batchnorm(model)


def test_shared_weights_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    with left_alone(model), pytest.raises(ValueError, match="whose weights another layer shares"):
        robustness.fold_batchnorm(model)


def test_an_example_shows_a_batchnorm_over_another_axis() -> None:
    """Over (N, 3, 3) BatchNorm1d counts the middle axis, Linear the last: no shape tells them apart."""
    model = used(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.randn(4, 3, 3))
    x = torch.randn(4, 3, 3)
    with left_alone(model), pytest.raises(ValueError, match="differs from the model by"):
        robustness.fold_batchnorm(model, x)
    robustness.fold_batchnorm(model, torch.randn(4, 3))


def test_folded_steps_for_a_whole_tensor_lose_less() -> None:
    """Filters of sizes that BatchNorm evens out: a step for the whole tensor rounds small ones to nothing before, not after."""
    model = convolutional()
    with torch.no_grad():
        model[0].weight[0] *= 100
        model[0].bias[0] *= 100
        model[1].running_mean[0] *= 100
        model[1].running_var[0] *= 10_000
    x = images()[0][0]
    folded = robustness.fold_batchnorm(model, x)
    errors = []
    for each in (model, folded):
        with torch.no_grad():
            clean = each[:3](x)
            with robustness.quantized(each, 4, per="tensor"):
                errors.append(float((each[:3](x) - clean).square().mean()))
    assert errors[1] < errors[0] / 10


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="model is a str"):
        robustness.fold_batchnorm("model")
