"""A device without float64 (MPS): sums that are otherwise made in float64 on it are made on the CPU, or in float32.

The device is a stand-in. Tensors whose storage is marked are "on" it; what is computed from them is marked, `.cpu()` takes the
mark off, and a marked tensor in float64 is the error that it is there. The types of devices without float64 hold "cpu".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from emulated_cuda import is_marked, mark
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import torch_ssam
from torch_ssam import pac_bayes, robustness, sharpness
from torch_ssam.compare._gptq import gptq_rows
from torch_ssam.ops import plain_numbers

_NO_RESULT = ("__get__", "__set__", "untyped_storage", "copy_")


class NoFloat64(TorchFunctionMode):
    """Inside, marked tensors are on a device that has no float64."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0  # to the CPU

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        marked = is_marked(args) or is_marked(kwargs)
        if marked and name == "cpu":
            self.moved += 1
            return args[0].clone()  # of whatever dtype it has
        out = function(*args, **kwargs)
        if not marked or name in _NO_RESULT:
            return out
        for each in out if isinstance(out, list | tuple) else [out]:
            if isinstance(each, Tensor) and each.dtype == torch.float64:
                raise TypeError(f"{name}: this device has no float64")
        return mark(out)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[NoFloat64]:
    monkeypatch.setattr(plain_numbers, "NARROW", ("cpu",))
    with NoFloat64() as mode:
        yield mode


def model_on_it() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    for p in model.parameters():
        mark(p)
    return model


def batch_on_it() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(12, 3, generator=generator), torch.randint(2, (12,), generator=generator)
    return mark(inputs), mark(targets)


LOSS = nn.functional.cross_entropy
MEASURES: dict[str, Callable[[nn.Module, Any], Any]] = {
    "average": lambda m, d: sharpness.average(m, LOSS, [d], noise_std=0.1, samples=4).mean,
    "hessian_trace": lambda m, d: sharpness.hessian_trace(m, LOSS, [d], samples=4).mean,
    "hessian_trace of few": lambda m, d: sharpness.hessian_trace(m[2], LOSS, [(m[:2](d[0]).detach(), d[1])]).mean,
    "top_eigenvalues": lambda m, d: list(sharpness.top_eigenvalues(m, LOSS, [d], 2)),
    "top_eigenvalue of few": lambda m, d: sharpness.top_eigenvalue(m[2], LOSS, [(m[:2](d[0]).detach(), d[1])]),
    "worst_case": lambda m, d: sharpness.worst_case(m, LOSS, [d], 0.1, restarts=1, steps=5).increase,
    "layer_balance": lambda m, d: list(sharpness.layer_balance(m, LOSS, [d], samples=2).squared_norms),
    "compare": lambda m, d: compared(m, d),
    "gptq": lambda m, d: [float(row.sum()) for row in gptq_rows(m[0].weight.detach(), torch.eye(3).double(), 4)],
    "landscape": lambda m, d: sharpness.landscape(m, LOSS, [d], points=3).losses.tolist(),
    "robustness": lambda m, d: robustness.measure(m, d, bits=(3,), noise=(0.1,), draws=2).clean,
    "quantized": lambda m, d: quantized_weights(m),
    "suggest_noise_std": lambda m, d: torch_ssam.suggest_noise_std(m, [d], target=0.05).noise_std,
}  # fmt: skip


def compared(model: nn.Module, data: Any) -> list[float]:
    halves = {name: value / 2 for name, value in model.state_dict().items()}
    found = sharpness.compare(
        model, {"one": model.state_dict(), "half": halves}, LOSS, [data], samples=2, points=3, progress=False
    )
    return [value for name in ("one", "half") for value in found.values[name].values()]


def quantized_weights(model: nn.Module) -> list[float]:
    with robustness.quantized(model, 4, step="mse"):
        return [float(p.detach().sum()) for p in model.parameters()]


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_asks_for_no_float64_of_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = MEASURES[name](model_on_it(), batch_on_it())
    monkeypatch.setattr(plain_numbers, "NARROW", ("cpu",))
    with NoFloat64():
        found = MEASURES[name](model_on_it(), batch_on_it())
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_a_certificate_asks_for_no_float64_of_the_device(device: NoFloat64) -> None:
    model = model_on_it()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = pac_bayes.certify(model, weights, [batch_on_it()], noise_std=0.1, draws=20, pilot_draws=3)
    assert 0 <= found.bound <= 1
    assert device.moved > 0


def test_the_optimizers_ask_for_no_float64_of_the_device(device: NoFloat64) -> None:
    model, (x, y) = model_on_it(), batch_on_it()
    opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.1, scale="filter", weight_clip=3.0, seed=1)
    adaptive = torch_ssam.schedules.AdaptiveNoiseStd(opt, every=1)
    for _ in range(2):
        opt.zero_grad()
        with opt.perturb():
            LOSS(model(x), y).backward()
        opt.step()
        adaptive.step(lambda: model(x))
    assert opt.metrics()["noise_to_weight"] > 0


def test_the_stand_in_refuses_float64(device: NoFloat64) -> None:
    x = mark(torch.ones(3))
    for asks in (Tensor.double, lambda t: t.sum(dtype=torch.float64), lambda t: (t * 2).to(torch.float64)):
        with pytest.raises(TypeError, match="no float64"):
            asks(x)
    assert plain_numbers.float64_of(x).dtype == torch.float64
    assert device.moved == 1
