"""suggest_noise_std against closed forms, its inputs, and what it refuses.

That it leaves every bit is a case of test_measured_models.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torch_ssam
from torch_ssam import SuggestedNoise, suggest_noise_std
from torch_ssam.noise import seeds


class Linear(nn.Module):
    """y = x w, with targets that nobody looks at."""

    def __init__(self, features: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(features, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def rows(count: int = 50, features: int = 6, seed: int = 2) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit_noise(model: Linear, draws: int, scale: str = "isotropic") -> list[Tensor]:
    noise = torch_ssam.WeightNoise([model.weight], 1.0, scale=scale, seed=seeds.measuring_seed(0))
    made = []
    for draw in range(draws):
        noise.load_state_dict({"seed": noise.seed, "draw": draw})
        made.append(noise.noise(model.weight))
    return made


@pytest.mark.parametrize("scale", ["isotropic", "filter", "absmax"])
def test_of_a_linear_model_the_noise_is_where_the_closed_form_says(scale: str) -> None:
    """The change is sigma^2 times the mean over draws of mean (x n)^2 / var(x w): a parabola."""
    model, batches = Linear(), [rows(50), rows(30, seed=3)]
    found = suggest_noise_std(model, batches, target=0.07, measure="mse", scale=scale, draws=5)
    w = model.weight.detach()
    per_draw = [
        sum(len(x) * float((x @ n).square().mean() / (x @ w).var(correction=0)) for x in batches) / 80
        for n in unit_noise(model, 5, scale)
    ]
    assert found.noise_std == pytest.approx(
        math.sqrt(0.07 / np.mean(per_draw)), rel=0.006
    )  # 1% of the target
    changes = np.outer(found.levels**2, per_draw)
    assert found.changes == pytest.approx(changes, rel=1e-5)
    # Of a parabola the slope is 2: log sigma moves by half of what log of the change does. t of 4 degrees of freedom.
    half = 2.776445 * np.std(per_draw, ddof=1) / math.sqrt(5) / np.mean(per_draw) / 2
    low, high = found.interval
    assert math.log(found.noise_std / low) == pytest.approx(half, rel=1e-3)
    assert math.log(high / found.noise_std) == pytest.approx(half, rel=1e-3)


def test_the_mean_kl_at_what_is_suggested_is_the_target() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 4)).double()
    found = suggest_noise_std(model, [rows()], target=0.03, draws=6)
    noise = torch_ssam.WeightNoise(model.parameters(), found.noise_std, seed=seeds.measuring_seed(0))
    p, total = model(rows()).log_softmax(-1).detach(), 0.0
    for _ in range(6):
        with noise.applied(), torch.no_grad():
            total += float((p.exp() * (p - model(rows()).log_softmax(-1))).sum(-1).mean()) / 6
    assert total == pytest.approx(0.03, rel=0.01)
    assert found.interval[0] < found.noise_std < found.interval[1]


def test_draws_are_the_same_each_time_and_others_by_the_seed() -> None:
    model = Linear()
    first, again, other = (
        suggest_noise_std(model, [rows()], measure="mse", seed=seed).noise_std for seed in (0, 0, 1)
    )
    assert first == again != other


def test_more_is_suggested_for_a_larger_target_and_none_of_it_for_frozen_tensors() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 4)).double()
    levels = [suggest_noise_std(model, [rows()], target=t).noise_std for t in (0.001, 0.02, 0.5)]
    assert levels[0] < levels[1] < levels[2]
    last = suggest_noise_std(model, [rows()], target=0.02, params=model[2].parameters()).noise_std
    model[0].requires_grad_(False)
    assert suggest_noise_std(model, [rows()], target=0.02).noise_std == last > levels[1]


def test_dropout_is_the_same_at_clean_and_noisy_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Linear(40, 3)).double()
    assert suggest_noise_std(model, [rows()], target=1e-6).changes.min() < 1e-5


# -- inputs --------------------------------------------------------------------------------------------------


class Logits(nn.Module):
    """Takes named inputs and returns an object, as the models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Linear()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        class Output:
            logits = self.inner(x)

        return Output()


def test_batches_come_in_every_usual_form() -> None:
    model, x, y = Linear(), rows(), torch.zeros(50)

    def of(batches: Any, model: nn.Module = model, **options: Any) -> float:
        return suggest_noise_std(model, batches, measure="mse", draws=2, **options).noise_std

    expected = of([x])
    assert of(x) == of((x, y)) == of([(x, y)]) == of([[x, y]]) == of(iter([(x, y, y)])) == expected
    assert of([x, x[:3]], max_batches=1) == expected
    assert of([{"x": x, "labels": y}], Logits()) == of({"x": x}, Logits()) == expected
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 50)
    assert of(loader) == expected
    assert of([{"a": x}], forward=lambda m, batch: m(batch["a"])) == expected


def test_a_function_is_a_measure() -> None:
    def largest(clean: Tensor, noisy: Tensor) -> float:
        return float((clean - noisy).abs().max())

    model = Linear()
    found = suggest_noise_std(model, [rows()], target=0.5, measure=largest, draws=3)
    expected = 0.5 / np.mean([float((rows() @ n).abs().max()) for n in unit_noise(model, 3)])
    assert found.noise_std == pytest.approx(expected, rel=0.011)
    assert found.measure == "largest"


# -- what comes back -----------------------------------------------------------------------------------------


def found() -> SuggestedNoise:
    return suggest_noise_std(Linear(), [rows()], measure="mse", draws=3)


def test_it_prints_what_to_use_and_the_curve() -> None:
    one = found()
    text = str(one)
    assert f"noise_std={one.noise_std:.3g} with scale='isotropic' changes the outputs by mse 0.05." in text
    assert "95% over 3 draws: " in text
    assert len(text.splitlines()) == 4 + len(one.levels)


def test_it_saves_text_curve_and_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one = found()
    one.save(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"noise.txt", "noise.csv", "noise.png"}
    table = np.loadtxt(tmp_path / "out" / "noise.csv", delimiter=",", skiprows=1)
    assert np.array_equal(table[:, 0], one.levels)
    assert np.array_equal(table[:, 1:], one.changes)
    axis = one.plot().axes[0]
    assert np.array_equal(axis.lines[-3].get_xdata(), one.levels)
    assert np.array_equal(axis.lines[-3].get_ydata(), one.changes.mean(1))


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0}, "target is 0"),
        ({"measure": "loss"}, "measure is 'loss'; expected one of 'kl', 'mse'"),
        ({"scale": "fisher"}, "scale is 'fisher'; expected one of 'isotropic'"),
        ({"distribution": "uniform"}, "distribution is 'uniform'"),
        ({"draws": 1}, "draws is 1; expected 2 to"),
        ({"max_batches": 0}, "max_batches is 0"),
        ({"forward": 3}, "forward is a int; expected a function"),
        ({"seed": None}, "seed is None"),
        ({"batches": []}, "batches is empty"),
        ({"batches": 3}, "batches is a int; expected an iterable of inputs"),
        ({"batches": [rows(1)]}, "one has no variance"),
        ({"batches": [torch.zeros(4, 6, dtype=torch.float64)]}, "is nan; expected a finite number"),
        ({"batches": [rows() / 0]}, "is nan; expected a finite number"),
        ({"params": []}, "no parameter that requires gradients"),
        ({"model": 3}, "model is a int"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_asked_is_refused(options: dict[str, Any], message: str) -> None:
    given = {"model": Linear(), "batches": [rows()], "measure": "mse", **options}
    with pytest.raises((TypeError, ValueError), match=message):
        suggest_noise_std(given.pop("model"), given.pop("batches"), **given)


def test_a_change_that_no_noise_makes_is_named() -> None:
    model = Linear()
    with pytest.raises(ValueError, match=r"changes the outputs by .* only; expected the target 5"):
        suggest_noise_std(model, [rows()], target=5.0, measure=lambda clean, noisy: 0.1)
    with pytest.raises(ValueError, match=r"still; expected less than the target 0\.05"):
        suggest_noise_std(model, [rows()], measure=lambda clean, noisy: 0.1)


def test_weights_that_hold_noise_are_refused() -> None:
    model = Linear()
    opt = torch_ssam.SSAM(model.parameters(), keep_perturbed=True)
    opt.train()
    with pytest.raises(RuntimeError, match="the weights hold noise now"):
        suggest_noise_std(model, [rows()], measure="mse")
    opt.eval()
    suggest_noise_std(model, [rows()], measure="mse")
