"""What autograd does not see would count 0, or half: measures that take gradients are right, or refuse and say what to do.
Each kind of hiding stands beside the plain network that it computes. test_peers.py, row 35.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from self_writing_models import numbers, seeded, state
from test_sharpness import MEASURES
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.checkpoint import checkpoint

from torch_ssam import sharpness
from torch_ssam.sharpness._evaluate import Evaluator


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # conftest puts it back


class Recomputed(torch.autograd.Function):
    """Checkpointing of one's own, as in guided-diffusion: gradients come out, but have no graph."""

    @staticmethod
    def forward(ctx: Any, block: nn.Module, x: Tensor, *params: Tensor) -> Tensor:
        ctx.block, ctx.x, ctx.params = block, x, params
        with torch.no_grad():
            out: Tensor = block(x)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x = ctx.x.detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.block(x)
        return None, *torch.autograd.grad(out, (x, *ctx.params), grads[0].detach())


class Nested(torch.autograd.Function):
    """Checkpointing of one's own, as in DeepSpeed: a backward() inside the backward fills .grad."""

    @staticmethod
    def forward(ctx: Any, block: nn.Module, x: Tensor, *params: Tensor) -> Tensor:
        ctx.block, ctx.x = block, x
        with torch.no_grad():
            out: Tensor = block(x)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x = ctx.x.detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.block(x)
        torch.autograd.backward(out, grads[0].detach())
        return None, x.grad, None, None


class Forgetful(torch.autograd.Function):
    """Gives a gradient for its input alone."""

    @staticmethod
    def forward(ctx: Any, block: nn.Module, x: Tensor, *params: Tensor) -> Tensor:
        ctx.block, ctx.x = block, x
        with torch.no_grad():
            out: Tensor = block(x)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, grads[0] @ ctx.block.weight, None, None


class Saving(torch.autograd.Function):
    """tanh of a linear layer, whose backward goes by a result saved in the forward: right, but half differentiable."""

    @staticmethod
    def forward(ctx: Any, block: nn.Linear, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.out = torch.tanh(x @ weight.T + bias)
        return ctx.out.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        inner = grads[0] * (1 - ctx.out**2)
        return None, inner @ weight, inner.T @ x, inner.sum(0)


class Differentiable(Saving):
    """The same by its inputs, as one should."""

    @staticmethod
    def forward(ctx: Any, block: nn.Linear, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return torch.tanh(x @ weight.T + bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        inner = grads[0] * (1 - torch.tanh(x @ weight.T + bias) ** 2)
        return None, inner @ weight, inner.T @ x, inner.sum(0)


class Cut(Recomputed):
    """Checkpointing whose gradients have a graph, which stops at the detached input."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x = ctx.x.detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.block(x)
        return None, *torch.autograd.grad(out, (x, *ctx.params), grads[0], create_graph=True)


def through(function: Any) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda block, x: function.apply(block, x, *block.parameters())


def unseen(block: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = block(x)
    return out


WAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "plain": lambda block, x: block(x),
    "plain tanh": lambda block, x: block(x).tanh(),
    "checkpoint": lambda block, x: checkpoint(block, x, use_reentrant=False),
    "reentrant": lambda block, x: checkpoint(block, x, use_reentrant=True),
    "recomputed": through(Recomputed),
    "nested": through(Nested),
    "forgetful": through(Forgetful),
    "cut": through(Cut),
    "saving": through(Saving),
    "differentiable": through(Differentiable),
    "no_grad": unseen,
    "detach": lambda block, x: block(x).detach(),
}
HIDING = [way for way in WAYS if way not in ("plain", "plain tanh", "checkpoint", "differentiable")]
GRADIENT_IS_RIGHT = ("recomputed", "cut", "saving")  # and its derivative is not


class Through(nn.Module):
    """Three layers, of which one goes one of these ways."""

    def __init__(self, way: str, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4 if i < 2 else 3) for i in range(3))
        self.unused = nn.Linear(2, 2)
        self.way, self.hidden = way, hidden

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = WAYS[self.way](layer, x) if i == self.hidden else layer(x)
            x = x.tanh() if i < 2 else x
        return x


VALUES: dict[str, Callable[[Any], Any]] = {
    "worst_case": lambda found: found.increase,
    "hessian_trace": lambda found: found.mean,
    "top_eigenvalues": lambda found: found,
    "layer_balance": lambda found: found.traces[:3],  # the fourth is of an unused layer
}


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("measure", VALUES)
@pytest.mark.parametrize("hidden", [0, 1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_and_curvature_are_right_or_refused(way: str, hidden: int, measure: str) -> None:
    if measure != "worst_case":
        pytest.importorskip("curvlinops")
    torch.manual_seed(2)
    same = "plain tanh" if way in ("saving", "differentiable", "plain tanh") else "plain"
    model, plain, data = Through(way, hidden), Through(same, hidden), numbers()
    plain.load_state_dict(model.state_dict())
    before = state(model)
    right = way not in HIDING or (way in GRADIENT_IS_RIGHT and measure == "worst_case")
    right |= way == "cut" and hidden == 0  # it cuts before the inputs, which nothing stands behind
    if not right:
        with pytest.raises(sharpness.HiddenParameters, match="use `average`, which needs no gradient"):
            MEASURES[measure](model, cross_entropy, data)
        assert state(model) == before
        return
    found = MEASURES[measure](model, cross_entropy, data)
    expected = MEASURES[measure](plain, cross_entropy, data)
    assert state(model) == before
    value = VALUES[measure]
    assert value(found) == pytest.approx(value(expected), rel=1e-4)
    assert np.all(value(found) != 0)


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_what_is_hidden_is_named_with_what_to_do() -> None:
    model, data = Through("no_grad", 0), numbers()
    with pytest.raises(ValueError, match=r"layers\.0\.weight.*requires_grad_\(False\)") as caught:
        sharpness.worst_case(model, cross_entropy, data, 0.1)
    assert "unused" not in str(caught.value)
    model.layers[0].requires_grad_(False)
    assert sharpness.worst_case(model, cross_entropy, data, 0.1).increase > 0
    whole = nn.Sequential(nn.Linear(4, 3))
    whole.register_forward_hook(lambda module, inputs, out: out.detach())
    with pytest.raises(
        ValueError, match=r"does not depend on the parameters through autograd.*use_reentrant"
    ):
        sharpness.worst_case(whole, cross_entropy, data, 0.1)


def test_a_comparison_of_models_that_hide_parameters_says_what_is_missing() -> None:
    pytest.importorskip("curvlinops")
    models = {"a": Through("plain", 0), "b": Through("no_grad", 0)}
    report = sharpness.compare(models["a"], models, cross_entropy, numbers(), samples=2, points=3)
    assert "worst case" in report.values["a"]
    assert "worst case" not in report.values["b"]
    assert any("b lacks" in note and "layers.0.weight" in note for note in report.notes)


def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of a linear model without curvature, by a mask that autograd does not see."""
    margin = 1 - outputs[:, 0] * (2.0 * (targets > 0) - 1)
    return (margin * (margin > 0)).mean()


def test_models_that_are_linear_by_pieces_are_not_taken_for_hiding() -> None:
    # The mask of 10 examples changes under a step of 1e-5 in about 1e-4 of the models: a false alarm among these
    # 100 about once in a hundred choices of the seed.
    for seed in range(100):
        torch.manual_seed(seed)
        model = nn.Linear(4, 1)
        evaluator = Evaluator(model, hinge, numbers())
        with evaluator.ready():
            assert evaluator.curved() == [False, False]


class Doubled(torch.autograd.Function):
    """A custom function that hides nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return 2 * grads[0]


class Rounded(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(8 * x) / 8

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0]


class After(nn.Module):
    """A network with a custom function."""

    def __init__(self, function: Any, activation: nn.Module, width: int) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.Sequential(nn.Linear(4, width), activation, nn.Linear(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(self.function.apply(x) if self.function is Doubled else x)
        return out if self.function is Doubled else self.function.apply(out)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Hardtanh(), nn.GELU()])
def test_networks_with_kinks_and_custom_functions_are_not_taken_for_hiding(activation: nn.Module) -> None:
    # Differences of gradients are far from the Hessian where ReLUs switch, and do not agree with each other there.
    pytest.importorskip("curvlinops")
    for seed in range(20):
        torch.manual_seed(seed)
        x, y = torch.randn(100, 4), torch.arange(100) % 3
        found = sharpness.hessian_trace(After(Doubled, activation, 40), cross_entropy, [(x, y)], samples=2)
        assert found.mean != 0


def test_a_straight_through_estimator_has_no_hessian() -> None:
    pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = After(Rounded, nn.Tanh(), 5)
    with pytest.raises(sharpness.HiddenParameters, match=r"autograd\.Function Rounded, .*straight-through"):
        sharpness.hessian_trace(model, cross_entropy, numbers())
    assert sharpness.worst_case(model, cross_entropy, numbers(), 0.5).increase > 0


def test_random_and_irreproducible_models_are_not_taken_for_hiding() -> None:
    rng = np.random.default_rng(0)

    class Noisy(nn.Module):
        """Adds random numbers of NumPy's, which no seed of torch's makes come again, and of torch's."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x)
            return out + 1e-3 * torch.randn(()) + 1e-3 * torch.tensor(rng.standard_normal())

    for _ in range(50):  # a false alarm among them about once in 200 choices of the seeds
        sharpness.worst_case(Noisy(), mse_loss, [(seeded(5, 4), seeded(5, 3))], 0.1, steps=1, restarts=0)
