"""Measuring leaves no trace: whatever a model writes to itself as it runs, and wherever a measure is stopped, every bit is
put back, and each evaluation begins at the same model. What autograd does not see is refused, and nothing is copied
that cannot be. test_peers.py, rows 35, 37, 41 and 43.
"""

from __future__ import annotations

import copy
import math
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from test_sharpness import MEASURES
from test_signals import InterruptAt, _traced
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.checkpoint import checkpoint

import torch_ssam
from torch_ssam import compare, pac_bayes, sharpness
from torch_ssam._common.measured_model import MeasuredModel, add_noise, shift
from torch_ssam.compare import _measures
from torch_ssam.noise import seeds
from torch_ssam.sharpness._evaluate import Evaluator

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # conftest puts it back


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numbers() -> Batches:
    x, y = seeded(10, 4), torch.arange(10) % 3
    return list(zip(x.split(4), y.split(4), strict=True))  # type: ignore[no-untyped-call]


def words() -> Batches:
    x, y = torch.arange(30).reshape(10, 3) % 6, torch.arange(10) % 3
    return list(zip(x.split(4), y.split(4), strict=True))  # type: ignore[no-untyped-call]


# -- models that write to themselves ---------------------------------------------------------------------------------


class MaxNorm(nn.Module):
    """An embedding that shortens the rows it reads, tied to the output layer; clean rows are partly too long."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(6, 4, max_norm=1.5)
        self.out = nn.Linear(4, 3)
        self.tied = nn.Linear(4, 6, bias=False)
        self.tied.weight = self.words.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.words(x).mean(1)
        out: Tensor = self.out(hidden) * self.frozen + self.tied(hidden)[:, :3].tanh()
        return out


class Clamped(nn.Module):
    """Clamps its weights before use, through .data as WGANs did, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.full((3,), 2.0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight.data.clamp_(-0.2, 0.2)
        self.scale.data.clamp_(-1, 1)
        out: Tensor = self.layer(x) * self.scale
        return out


class Averaged(nn.Module):
    """Moving averages in every place where people keep them: a buffer, a parameter without gradient, an attribute."""

    buffer: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("buffer", torch.zeros(4))
        self.average = nn.Parameter(torch.zeros(4), requires_grad=False)
        self.attribute = torch.zeros(4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.buffer.mul_(0.9).add_(x.mean(0))
            self.average.data.mul_(0.9).add_(x.mean(0))
            self.attribute.data += x.mean(0)
        out: Tensor = self.layer(x - self.buffer - self.average - self.attribute)
        return out


class Replacing(nn.Module):
    """Resizes, replaces and adds buffers; replaces the memory and the shape of parameters; leaves graphs behind."""

    resized: Tensor
    shrunk: Tensor
    replaced: Tensor
    removed: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.spare = nn.Parameter(torch.ones(2))
        for name, size in (("resized", 3), ("shrunk", 5), ("replaced", 4), ("removed", 1)):
            self.register_buffer(name, torch.ones(size))
        self.register_buffer("absent", None)
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.resized.resize_(self.resized.numel() + 2).fill_(7)
        self.shrunk.resize_(1).zero_()
        self.shrunk.untyped_storage().resize_(4)
        self.replaced = self.replaced * 2
        self.absent = torch.ones(2)
        self.register_buffer(f"new{len(self._buffers)}", torch.ones(1), persistent=False)
        self.register_parameter("also_new", nn.Parameter(torch.ones(1)))
        self._buffers.pop("removed", None)
        self.spare.data = torch.zeros(3)
        self.layer.weight.data = self.layer.weight.data * 1.5
        self.spare.requires_grad_(not self.spare.requires_grad)
        self.hidden = self.layer(x)
        self.unheard_of = self.hidden * 2
        return self.hidden


class Busy(nn.Module):
    """Changes modes, seeds torch, and makes gradients of its own, in place of what is there too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.frozen = nn.Linear(4, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(5)
        self.layer.eval()
        self.frozen.train(not self.frozen.training)
        with torch.enable_grad():
            (self.layer.weight**2).sum().backward()  # type: ignore[no-untyped-call]
            self.frozen.requires_grad_()
        out: Tensor = self.layer(x) + self.frozen(x).detach()
        return out


class Graph(nn.Module):
    """A buffer that an in-place operation pulls into the graph."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        self.count.add_(out.square().mean())
        return out


def spectral() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    torch.nn.utils.spectral_norm(layers[0])
    torch.nn.utils.parametrizations.spectral_norm(layers[2])
    return layers


def weight_normed() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(layers[0])  # type: ignore[deprecated]
    return layers


def pruned() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    torch.nn.utils.prune.l1_unstructured(layers[0], "weight", 0.3)  # type: ignore[no-untyped-call]
    layers(seeded(2, 4))  # leaves the product with the mask in an attribute
    return layers


class Locked(nn.Module):
    """Holds a lock, which cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            out: Tensor = self.layer(x)
            return out


def observed() -> nn.Module:
    """Quantisation-aware training's layers, whose observers resize their buffers."""
    ao = pytest.importorskip("torch.ao.quantization")
    observer = ao.HistogramObserver.with_args(bins=16, reduce_range=False)
    per_channel = ao.default_per_channel_weight_fake_quant
    model = nn.Sequential(
        ao.QuantStub(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), ao.DeQuantStub()
    ).train()
    model.qconfig = ao.QConfig(activation=observer, weight=per_channel)
    found: nn.Module = ao.prepare_qat(model)
    return found


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batches]]] = {
    "max_norm": (MaxNorm, words),
    "clamped": (Clamped, numbers),
    "averaged": (Averaged, numbers),
    "replacing": (Replacing, numbers),
    "graph": (Graph, numbers),
    "busy": (Busy, numbers),
    "spectral_norm": (spectral, numbers),
    "weight_norm": (weight_normed, numbers),
    "pruned": (pruned, numbers),
    "locked": (Locked, numbers),
    "observed": (observed, numbers),
}

Loss = Callable[[Tensor, Tensor], Tensor]


def data_of(pairs: Batches) -> compare.Data:
    whole = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    return compare.Data("numbers", whole, whole, whole, 3)


def quantise_and_evaluate(model: nn.Module, loss_fn: Loss, pairs: Batches) -> None:
    with _measures.Quantised(model, 4):
        for x, y in pairs:
            loss_fn(model(x), y)


ALL: dict[str, Callable[..., Any]] = {
    **MEASURES,
    "compare": lambda m, f, d: sharpness.compare(
        m,
        {"a": m, "b": {k: v * 1.1 if v.is_floating_point() else v for k, v in m.state_dict().items()}},
        f,
        d,
        samples=2,
        points=3,
    ),
    "gibbs_risk": lambda m, f, d: pac_bayes.gibbs_risk(m, d, 0.1, draws=4, batch_size=2),
    "certify": lambda m, f, d: pac_bayes.certify(
        m, m, d, noise_std=[0.1, 0.2], draws=4, pilot_draws=2, batch_size=2
    ),
    "compare's evaluate": lambda m, f, d: _measures.evaluate(m, data_of(d), data_of(d).test),
    "compare's rounding": quantise_and_evaluate,
}
CURVATURE = ("hessian_trace", "top_eigenvalues", "layer_balance", "compare")


def describe(t: Tensor) -> tuple[Any, ...]:
    bits = bytes(t.detach().contiguous().reshape(-1).view(torch.uint8).tolist())
    memory = t.untyped_storage()
    place = memory._cdata, memory.nbytes(), t.storage_offset(), tuple(t.shape), t.stride(), t.dtype
    return id(t), place, t.requires_grad, t.is_leaf, bits


def state(model: nn.Module) -> dict[str, Any]:
    """All that a measure must leave alone: objects, memory, bits, order, flags, gradients, random numbers."""
    found: dict[str, Any] = {"random": bytes(torch.get_rng_state().tolist())}
    for prefix, module in model.named_modules():
        members = {**module._parameters, **module._buffers}
        found[f"{prefix}: names"] = list(module._parameters), list(module._buffers), list(module._modules)
        found[f"{prefix}: not saved"] = set(module._non_persistent_buffers_set)
        found[f"{prefix}: training"] = module.training
        found[f"{prefix}: other"] = {
            name: describe(value) for name, value in vars(module).items() if isinstance(value, Tensor)
        }
        for name, t in members.items():
            grad = None if t is None or t.grad is None else (id(t.grad), t.grad._version, t.grad.tolist())
            found[f"{prefix}.{name}"] = None if t is None else (*describe(t), grad)
    return found


def with_gradients(name: str) -> tuple[nn.Module, Batches]:
    """The model in an unusual state: part of it in eval, with gradients on some parameters."""
    torch.manual_seed(3)
    make, data = MODELS[name]
    model = make()
    next(iter(model.children())).eval()
    for p in [p for p in model.parameters() if p.requires_grad][::2]:
        p.grad = torch.ones_like(p)
    return model, data()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("measure", ALL)
@pytest.mark.parametrize("name", MODELS)
def test_every_measure_leaves_every_bit_whatever_the_model_does(name: str, measure: str) -> None:
    if measure in CURVATURE:
        pytest.importorskip("curvlinops")
    model, data = with_gradients(name)
    before = state(model)
    ALL[measure](model, cross_entropy, data)
    assert state(model) == before
    if measure in MEASURES:
        ALL[measure](model, cross_entropy, data, mode="train")
        assert state(model) == before


# -- stopped in the middle -------------------------------------------------------------------------------------------


class Stop(Exception):
    """What a model raises."""


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("measure", ALL)
@pytest.mark.parametrize("name", ["max_norm", "replacing", "busy"])
def test_a_measure_that_is_stopped_leaves_every_bit(
    name: str, measure: str, error: type[BaseException]
) -> None:
    if measure in CURVATURE:
        pytest.importorskip("curvlinops")
    for last in range(0, 20, 3):
        model, data = with_gradients(name)
        before = state(model)
        calls = 0

        def stop(*_: Any, last: int = last) -> None:
            nonlocal calls
            calls += 1
            if calls > last:
                raise error

        model.register_forward_hook(stop)
        try:
            ALL[measure](model, cross_entropy, data)
        except error:
            assert state(model) == before  # before any handler runs
        else:
            break
    assert last > 2


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="NOT TESTED here: the opcode names are Python 3.11's"
)
def test_an_interrupt_at_any_point_leaves_every_bit() -> None:
    model = nn.Embedding(3, 2, max_norm=0.5)
    x = torch.arange(3)
    noise = torch_ssam.WeightNoise(model.parameters(), 0.5, seed=0)
    before = state(model)
    for n in range(5000):
        tracer = InterruptAt(n, KeyboardInterrupt())
        measured = MeasuredModel(model, training=False)
        try:
            with _traced(tracer), measured:
                add_noise(noise)(measured)
                model(x)
                measured.restore()
        except KeyboardInterrupt:
            assert state(model) == before, f"at point {n}, {tracer.where}"
        if tracer.left >= 0:
            break
    assert 200 < n < 4999


# -- what is measured ------------------------------------------------------------------------------------------------


def test_the_average_under_max_norm_is_that_of_fresh_copies() -> None:
    model, data = MaxNorm(), words()
    found = sharpness.average(model, cross_entropy, data, 0.3, samples=3)
    noise = torch_ssam.WeightNoise(
        [p for p in model.parameters() if p.requires_grad], 0.3, seed=seeds.measuring_seed(0)
    )

    def loss(sign: int) -> float:
        own = copy.deepcopy(model)  # which may shorten its rows
        with torch.no_grad():
            for p, q in zip(own.parameters(), model.parameters(), strict=True):
                if q.requires_grad:
                    p.add_(noise.noise(q), alpha=sign)
            return sum(float(cross_entropy(own(x), y)) * len(y) for x, y in data) / 10

    values = []
    for draw in range(3):
        noise.load_state_dict({"seed": noise.seed, "draw": draw})
        values.append((loss(1) + loss(-1)) / 2 - loss(0))
    assert found.values == pytest.approx(values, rel=1e-4, abs=1e-6)
    assert found.loss == pytest.approx(loss(0))


def test_the_noise_of_a_measure_has_the_bits_of_weight_noise() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for scale in ("isotropic", "filter", "tensor", "element"):
            model = nn.Linear(33, 5).to(dtype)
            noise = torch_ssam.WeightNoise(model.parameters(), 0.3, scale=scale, seed=4)
            with noise.applied(negate=True, advance=False):
                expected = [describe(p)[-1] for p in model.parameters()]
            measured = MeasuredModel(model)
            with measured:
                add_noise(noise, negate=True)(measured)
                assert [describe(p)[-1] for p in model.parameters()] == expected
            assert noise.draw == 1


@pytest.mark.parametrize("name", ["averaged", "spectral_norm", "replacing"])
def test_every_evaluation_begins_at_the_same_model(name: str) -> None:
    torch.manual_seed(0)
    make, data = MODELS[name]
    model = make()
    still = [[torch.zeros_like(p) for p in model.parameters() if p.requires_grad]]
    found = sharpness.average(model, cross_entropy, data(), 0.0, samples=4, mode="train")
    assert not found.values.any()
    line = sharpness.landscape(
        model, cross_entropy, data(), directions=still, normalize=False, points=4, mode="train"
    )
    assert set(line.losses.tolist()) == {found.loss}


def test_a_model_is_moved_under_autocast_too() -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(4, 3), numbers()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # keeps its casts of weights to the end of the block
        line = sharpness.landscape(model, cross_entropy, data, points=3)
        risks = sharpness.average(model, cross_entropy, data, 0.1, samples=3).values
    assert len(set(line.losses.tolist())) == 3
    assert len(set(risks.tolist())) == 3


def test_weights_are_clean_while_progress_is_told() -> None:
    model, data = MaxNorm(), words()
    before = state(model)
    seen = []

    def tell(*_: int) -> None:
        seen.append({k: v for k, v in state(model).items() if "training" not in k and k != "random"})

    sharpness.average(model, cross_entropy, data, 0.3, samples=2, progress=tell)
    sharpness.landscape(model, cross_entropy, data, points=3, progress=tell)
    sharpness.worst_case(model, cross_entropy, data, 0.3, steps=2, progress=tell)
    pac_bayes.gibbs_risk(model, data, 0.3, draws=2, progress=tell)
    assert len(seen) >= 9
    assert all(now == {k: before[k] for k in now} for now in seen)


def test_a_measured_model_is_not_entered_twice_and_its_moves_need_it() -> None:
    model = nn.Linear(2, 2)
    measured = MeasuredModel(model)
    before = state(model)
    with measured, pytest.raises(RuntimeError, match="inside itself"), measured:
        pass
    assert state(model) == before
    with pytest.raises(RuntimeError, match="enter the context first"):
        shift([model.weight], (1.0, [torch.ones(2, 2)]))(measured)
    assert state(model) == before


# -- what autograd does not see --------------------------------------------------------------------------------------


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


def through(function: Any) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda block, x: function.apply(block, x, *block.parameters())


def unseen(block: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = block(x)
    return out


WAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "plain": lambda block, x: block(x),
    "checkpoint": lambda block, x: checkpoint(block, x, use_reentrant=False),
    "reentrant": lambda block, x: checkpoint(block, x, use_reentrant=True),
    "recomputed": through(Recomputed),
    "nested": through(Nested),
    "forgetful": through(Forgetful),
    "no_grad": unseen,
    "detach": lambda block, x: block(x).detach(),
}
HIDING = [way for way in WAYS if way not in ("plain", "checkpoint")]


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
    if measure in CURVATURE:
        pytest.importorskip("curvlinops")
    torch.manual_seed(2)
    model, plain, data = Through(way, hidden), Through("plain", hidden), numbers()
    plain.load_state_dict(model.state_dict())
    before = state(model)
    if way in HIDING and not (way == "recomputed" and measure == "worst_case"):
        with pytest.raises(ValueError, match="use_reentrant=False"):
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


# -- models that cannot be copied ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["weight_norm", "pruned", "locked"])
def test_checkpoints_of_models_that_cannot_be_copied_are_compared(name: str) -> None:
    model, data = MODELS[name][0](), numbers()
    model(data[0][0])
    with pytest.raises((RuntimeError, TypeError)):
        copy.deepcopy(model)
    other = {k: 1.5 * v for k, v in model.state_dict().items()}
    before = state(model)
    report = sharpness.compare(model, {"a": model, "b": other}, cross_entropy, data, samples=2, points=3)
    assert state(model) == before
    alone = sharpness.average(model, cross_entropy, data, 0.01, samples=2)
    assert report.values["a"]["average sharpness"] == alone.mean
    model.load_state_dict(other)
    alone = sharpness.average(model, cross_entropy, data, 0.01, samples=2)
    assert report.values["b"]["average sharpness"] == pytest.approx(alone.mean, rel=1e-6)
    assert report.values["b"]["loss"] != report.values["a"]["loss"]


class Extra(nn.Module):
    """State beside tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.gain = 2.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gain * self.layer(x)
        return out

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.gain)

    def set_extra_state(self, state: Tensor) -> None:
        self.gain = float(state)


def test_extra_state_of_a_checkpoint_is_measured_and_taken_out_again() -> None:
    torch.manual_seed(0)
    model, data = Extra(), numbers()
    first = model.state_dict()
    second = {**first, "_extra_state": torch.tensor(0.0)}
    report = sharpness.compare(model, {"a": first, "b": second}, cross_entropy, data, samples=2, points=3)
    assert model.gain == 2.0
    assert report.values["b"]["loss"] == pytest.approx(math.log(3))
    assert report.values["a"]["loss"] != pytest.approx(math.log(3))


def test_a_checkpoint_that_does_not_fit_is_named_before_anything_is_measured() -> None:
    model, data = nn.Linear(4, 3), numbers()
    before = state(model)
    bad = {"weight": torch.ones(3, 4)}
    with pytest.raises(ValueError, match="'b' does not fit"):
        sharpness.compare(model, {"a": model, "b": bad}, lambda p, y: pytest.fail("measured"), data)
    assert state(model) == before


def test_frozen_matrices_alone_have_no_balance_in_a_comparison() -> None:
    pytest.importorskip("curvlinops")
    model = nn.Linear(4, 3)
    model.weight.requires_grad_(False)
    report = sharpness.compare(
        model, {"a": model, "b": model.state_dict()}, cross_entropy, numbers(), samples=2, points=3
    )
    assert "imbalance" not in report.values["a"]
