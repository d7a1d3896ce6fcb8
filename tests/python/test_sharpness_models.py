"""torch_ssam.sharpness on models that take some care: dropout, unused and linear parameters, attention, norms,
16-bit weights, expanded buffers, named tuples, frozen models, and weights that S-SAM trained with the same seed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from test_sharpness import MEASURES
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, mse_loss, scaled_dot_product_attention
from torch.utils.data import DataLoader, TensorDataset

import torch_ssam
from torch_ssam import sharpness
from torch_ssam.noise import seeds
from torch_ssam.sharpness import _curvature, _evaluate

Batches = list[tuple[Any, Tensor]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # conftest puts it back


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def whole_hessian(model: nn.Module, loss_fn: Any, x: Any, y: Tensor) -> np.ndarray[Any, Any]:
    """By plain autograd; with the random numbers that torch's generator gives next, the same throughout."""
    chosen = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    state = torch.get_rng_state()

    def loss(flat: Tensor) -> Tensor:
        torch.set_rng_state(state)
        parts = flat.split([p.numel() for _, p in chosen])  # type: ignore[no-untyped-call]
        values = {name: part.view(p.shape) for (name, p), part in zip(chosen, parts, strict=True)}
        out: Tensor = loss_fn(torch.func.functional_call(model, values, (x,)), y)
        return out

    flat = torch.cat([p.detach().reshape(-1) for _, p in chosen])
    with sdpa_kernel(SDPBackend.MATH):
        hessian = torch.autograd.functional.hessian(loss, flat)  # type: ignore[no-untyped-call]
    matrix: np.ndarray[Any, Any] = hessian.numpy()
    return matrix


# Dropout


class Counting(nn.Module):
    """A small network with dropout, which counts its evaluations."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, 3))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.layers(x)
        return out


def dropout(p: float = 0.5) -> tuple[Counting, Batches]:
    torch.manual_seed(3)
    model = Counting(p)
    x, y = seeded(24, 6), torch.arange(24) % 3
    parts = zip(x.split(10), y.split(10), strict=True)  # type: ignore[no-untyped-call]
    return model, list(parts)


@pytest.mark.parametrize("antithetic", [True, False])
def test_the_average_without_noise_is_zero_under_dropout(antithetic: bool) -> None:
    model, data = dropout()
    found = sharpness.average(model, cross_entropy, data, 0.0, samples=6, antithetic=antithetic, mode="train")
    assert not found.values.any()


def test_the_average_under_dropout_is_a_plain_loop_over_seeded_masks() -> None:
    model, data = dropout()
    torch.manual_seed(5)
    found = sharpness.average(model, cross_entropy, data, 0.05, samples=4, mode="train")
    noise = torch_ssam.WeightNoise(model.parameters(), 0.05, seed=seeds.measuring_seed(0))
    model.train()

    def loss() -> float:
        with torch.no_grad():
            return sum(float(cross_entropy(model(x), y)) * len(y) for x, y in data) / 24

    torch.manual_seed(5)
    cleans, values = [], []
    for _ in range(4):
        state = torch.get_rng_state()
        cleans.append(loss())
        torch.set_rng_state(state)
        with noise.applied(advance=False):
            plus = loss()
        torch.set_rng_state(state)
        with noise.applied(negate=True):
            values.append((plus + loss()) / 2 - cleans[-1])
    assert found.values == pytest.approx(values, abs=1e-7)
    assert found.loss == pytest.approx(np.mean(cleans))
    assert len({round(clean, 6) for clean in cleans}) == 4  # new masks in every draw


@pytest.mark.parametrize("loader", [False, True])
def test_only_a_model_that_draws_random_numbers_is_evaluated_at_the_clean_weights_again(loader: bool) -> None:
    for p, clean in ((0.0, 1), (0.5, 5)):
        model, data = dropout(p)
        if loader:  # which takes a number from torch's generator itself
            whole = TensorDataset(*(torch.cat(parts) for parts in zip(*data, strict=True)))
            batches: Any = DataLoader(whole, batch_size=10, shuffle=True)
        else:
            batches = data
        found = sharpness.average(model, cross_entropy, batches, 0.0, samples=5, mode="train")
        assert model.calls == 3 * (2 * 5 + clean)
        assert not found.values.any()


def test_the_worst_case_under_dropout_goes_to_zero_with_the_radius() -> None:
    model, data = dropout()
    small = sharpness.worst_case(model, cross_entropy, data, 1e-8, steps=5, mode="train")
    assert small.increase < 1e-6
    # As for any smooth loss: to first order radius |gradient|, in every start's ascent.
    found = sharpness.worst_case(model, cross_entropy, data, 1e-2, steps=20, restarts=2, mode="train")
    assert max(found.by_start) < 1.2 * min(found.by_start)


def test_a_landscape_under_dropout_is_one_smooth_line() -> None:
    model, data = dropout()
    still = [[torch.zeros_like(p) for p in model.parameters()]]
    line = sharpness.landscape(
        model, cross_entropy, data, directions=still, normalize=False, points=5, mode="train"
    )
    assert len(set(line.losses.tolist())) == 1


def test_eigenvalues_under_dropout_are_those_of_one_hessian() -> None:
    pytest.importorskip("curvlinops")
    model, data = dropout()
    data = data[:1]
    torch.manual_seed(7)
    found = sharpness.top_eigenvalues(model, cross_entropy, data, 2, tolerance=1e-8, mode="train")
    torch.manual_seed(7)
    model.train()
    model(data[0][0])  # the pass that looks for curvature; the products draw what comes next
    hessian = whole_hessian(model, cross_entropy, *data[0])
    assert found == pytest.approx(np.linalg.eigvalsh(hessian)[::-1][:2], rel=1e-4)


def test_a_trace_under_dropout_is_an_estimate_however_few_the_parameters() -> None:
    pytest.importorskip("curvlinops")
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
    found = sharpness.hessian_trace(model, mse_loss, [(seeded(8, 3), seeded(8, 2))], samples=8, mode="train")
    assert not found.exact
    assert found.half_width > 0
    assert sharpness.hessian_trace(model, mse_loss, [(seeded(8, 3), seeded(8, 2))]).exact


@pytest.mark.parametrize("name", MEASURES)
def test_torchs_generator_is_left_where_it_was(name: str) -> None:
    if name in ("hessian_trace", "top_eigenvalues", "layer_balance"):
        pytest.importorskip("curvlinops")
    model, data = dropout()
    before = torch.get_rng_state()
    MEASURES[name](model, cross_entropy, data, mode="train")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED here: no CUDA GPU")
def test_dropout_on_a_gpu_is_common_too() -> None:
    model, data = dropout()
    model.cuda()
    before = torch.cuda.get_rng_state()
    assert not sharpness.average(model, cross_entropy, data, 0.0, samples=3, mode="train").values.any()
    assert sharpness.worst_case(model, cross_entropy, data, 1e-8, steps=3, mode="train").increase < 1e-6
    assert torch.equal(before, torch.cuda.get_rng_state())


# Parameters that the loss does not use, or is linear in


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(4, 30)
        self.used = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x)
        return out


class Routed(nn.Module):
    """Every batch goes one way of two."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])

    def forward(self, inputs: tuple[int, Tensor]) -> Tensor:
        way, x = inputs
        out: Tensor = self.ways[way](x)
        return out


def total(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.mean()


def linear_layer_hessian(x: Tensor) -> np.ndarray[Any, Any]:
    """Of mse_loss on three outputs, for the weights and bias of one."""
    ones = np.concatenate([x.double().numpy(), np.ones((len(x), 1))], axis=1)
    hessian: np.ndarray[Any, Any] = 2 * ones.T @ ones / (3 * len(x))
    return hessian


@pytest.mark.parametrize("dense", [True, False])
def test_a_linear_loss_has_no_curvature(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("curvlinops")
    if not dense:
        monkeypatch.setattr(_curvature, "DENSE", 0)
    model, data = nn.Linear(100, 1), [(seeded(5, 100), seeded(5, 1))]
    found = sharpness.hessian_trace(model, total, data, samples=3)
    assert (found.mean, found.half_width, found.by_parameter) == (0, 0, (0, 0))
    assert found.converged
    assert sharpness.top_eigenvalues(model, total, data, 3).tolist() == [0, 0, 0]
    assert sharpness.top_eigenvalue(model, total, data) == 0
    balance = sharpness.layer_balance(model, total, data, samples=3)
    assert balance.traces is not None
    assert balance.traces.tolist() == [0]


def test_curvature_that_is_zero_by_its_numbers_only_is_zero_too() -> None:
    pytest.importorskip("curvlinops")
    model, data = nn.Sequential(nn.Linear(100, 1), nn.ReLU()), [(seeded(5, 100), seeded(5, 1))]
    assert sharpness.hessian_trace(model, total, data, samples=3).mean == 0
    assert sharpness.top_eigenvalues(model, total, data, 2).tolist() == [0, 0]


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_unused_parameters_add_zeros(dense: bool, sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("curvlinops")
    if not dense:
        monkeypatch.setattr(_curvature, "DENSE", 0)
    model, x, y = Unused(), seeded(6, 4), seeded(6, 3, seed=1)

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return sign * mse_loss(outputs, targets)

    hessian = sign * linear_layer_hessian(x)
    found = sharpness.hessian_trace(model, loss_fn, [(x, y)], samples=40)
    assert found.exact  # of 15 parameters, for the others are known
    assert found.mean == pytest.approx(3 * np.trace(hessian), rel=1e-5)
    assert found.by_parameter[:2] == (0, 0)
    assert found.by_parameter[2] == pytest.approx(3 * np.trace(hessian[:4, :4]), rel=1e-5)
    few = sharpness.hessian_trace(model, loss_fn, [(x, y)], samples=3)
    assert few.by_parameter[:2] == (0, 0)
    spectrum = np.append(np.repeat(np.linalg.eigvalsh(hessian), 3), np.zeros(150))
    for count in (1, 4, 17):
        top = sharpness.top_eigenvalues(model, loss_fn, [(x, y)], count, tolerance=1e-6)
        assert top == pytest.approx(np.sort(spectrum)[::-1][:count], rel=1e-4, abs=1e-6)
    balance = sharpness.layer_balance(model, loss_fn, [(x, y)], samples=20)
    assert balance.traces is not None
    assert balance.traces[0] == 0
    assert balance.traces[1] == pytest.approx(found.by_parameter[2], rel=1e-5)
    alone = sharpness.hessian_trace(model, loss_fn, [(x, y)], params=[model.unused.weight])
    assert (alone.mean, alone.by_parameter) == (0, (0,))


def test_a_parameter_that_some_batches_do_not_use_counts_in_the_others() -> None:
    pytest.importorskip("curvlinops")
    model = Routed()
    data: Batches = [((way, seeded(6, 4, seed=way)), seeded(6, 3)) for way in (0, 1)]
    found = sharpness.hessian_trace(model, mse_loss, data)
    halves = [1.5 * np.trace(linear_layer_hessian(x)) for (_, x), _ in data]
    assert sum(found.by_parameter[:2]) == pytest.approx(halves[0], rel=1e-5)
    assert sum(found.by_parameter[2:]) == pytest.approx(halves[1], rel=1e-5)


def test_a_comparison_of_models_with_unused_parameters() -> None:
    pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    models = {"a": Unused(), "b": Unused()}
    data = [(seeded(6, 4), seeded(6, 3, seed=1))]
    report = sharpness.compare(models["a"], models, mse_loss, data, samples=2, points=3)
    assert report.values["a"]["hessian trace"] == pytest.approx(
        3 * np.trace(linear_layer_hessian(data[0][0])), rel=0.5
    )


# Attention


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3, 6)
        self.out = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unsqueeze(1).chunk(3, -1)
        out: Tensor = self.out(scaled_dot_product_attention(q, k, v)).mean((1, 2))
        return out


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, dim_feedforward=4, batch_first=True, dropout=0.0),
            1,
            enable_nested_tensor=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.encoder(self.embed(x)).mean(1)
        return out[:, :2]


def check_curvature(model: nn.Module, data: Batches, mode: str) -> None:
    """Trace, eigenvalues and balance against the whole Hessian of one batch."""
    model.train(mode == "train")
    with torch_ssam.frozen_batchnorm(model):
        hessian = whole_hessian(model, mse_loss, *data[0])
    found = sharpness.hessian_trace(model, mse_loss, data, samples=500, mode=mode)
    assert found.exact
    assert found.mean == pytest.approx(np.trace(hessian))
    top = sharpness.top_eigenvalues(model, mse_loss, data, 2, tolerance=1e-8, mode=mode)
    assert top == pytest.approx(np.linalg.eigvalsh(hessian)[::-1][:2], rel=1e-5)
    balance = sharpness.layer_balance(model, mse_loss, data, samples=500, mode=mode)
    assert balance.traces is not None
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    blocks = dict(zip(names, found.by_parameter, strict=True))
    assert balance.traces == pytest.approx([blocks[name] for name in balance.names])


@pytest.mark.parametrize("kind", ["attention", "encoder", "frozen encoder"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_curvature_of_attention_is_that_of_its_whole_hessian(kind: str, mode: str) -> None:
    pytest.importorskip("curvlinops")
    torch.manual_seed(2)
    model = Attention() if kind == "attention" else Encoder()
    model.double()
    if isinstance(model, Encoder):
        model.encoder.requires_grad_(kind == "encoder")
    x, y = seeded(3, 5, 3, dtype=torch.float64), seeded(3, 2, seed=1, dtype=torch.float64)
    flash = torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
    check_curvature(model, [(x, y)], mode)
    assert torch.backends.cuda.flash_sdp_enabled() == flash  # type: ignore[no-untyped-call]


# Layers whose forward derivatives torch lacks, or has wrong


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["LayerNorm", "BatchNorm1d", "GroupNorm", "InstanceNorm1d", "SiLU", "Mish"])
def test_curvature_behind_layers_of_many_kinds_is_that_of_the_whole_hessian(name: str, mode: str) -> None:
    pytest.importorskip("curvlinops")
    torch.manual_seed(4)
    layers: dict[str, Any] = {
        "LayerNorm": lambda: nn.LayerNorm(6),
        "BatchNorm1d": lambda: nn.BatchNorm1d(4),
        "GroupNorm": lambda: nn.GroupNorm(2, 4),
        "InstanceNorm1d": lambda: nn.InstanceNorm1d(4, affine=True),
        "SiLU": nn.SiLU,
        "Mish": nn.Mish,
    }
    model = nn.Sequential(nn.Conv1d(4, 4, 1), layers[name](), nn.Conv1d(4, 2, 3), nn.Tanh()).double()
    x, y = seeded(3, 4, 6, dtype=torch.float64), seeded(3, 2, 4, seed=1, dtype=torch.float64)
    check_curvature(model, [(x, y)], mode)


# 16-bit weights


class Scale(nn.Module):
    """w times the inputs, whose mean is the loss."""

    def __init__(self, dtype: torch.dtype, n: int = 1) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(n, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_16_bit_weights_are_summed_in_float32(dtype: torch.dtype) -> None:
    slope = 512.0 if dtype == torch.float16 else 4.0
    batches = [(torch.full((256, 1), slope, dtype=dtype), torch.zeros(256)) for _ in range(300)]
    evaluator = _evaluate.Evaluator(Scale(dtype), lambda p, y: p.float().mean(), batches)
    loss, gradient = evaluator.loss_and_gradient()
    assert loss == slope
    assert gradient[0].dtype == torch.float32
    assert gradient[0].item() == slope
    found = sharpness.worst_case(Scale(dtype), lambda p, y: p.float().mean(), batches, 0.5, steps=2)
    assert found.increase == 0.5 * slope
    assert math.isclose(found.radius_used, 0.5)


def test_the_point_found_in_16_bit_weights_is_attained() -> None:
    model = Scale(torch.bfloat16, 8)
    x, y = seeded(16, 8).bfloat16(), seeded(16, 8, seed=1)

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return mse_loss(outputs.float(), targets)

    found = sharpness.worst_case(model, loss_fn, [(x, y)], 0.3, steps=5)
    with torch.no_grad():
        model.w.add_(found.perturbation[0])
        assert float(loss_fn(model(x), y)) - found.loss == found.increase > 0


# Buffers


class Buffers(nn.Module):
    """An expanded buffer, then one that an evaluation changes, in eval mode too."""

    expanded: Tensor
    rows: Tensor
    nan: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 2)
        self.register_buffer("expanded", torch.zeros(1).expand(5))
        self.register_buffer("rows", torch.arange(3.0)[:, None].expand(3, 4))
        self.register_buffer("nan", torch.tensor([math.nan]).expand(2))
        self.register_buffer("count", torch.zeros(()))
        self.changes = False

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        if self.changes:
            self.rows[:, :1].add_(1)
            self.expanded = torch.ones(5)
        out: Tensor = self.out(x)
        return out


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("name", ["average", "worst_case", "landscape"])
def test_expanded_buffers_come_back(name: str, changes: bool) -> None:
    model = Buffers()
    model.changes = changes
    expanded, rows = model.expanded, model.rows
    MEASURES[name](model, mse_loss, [(seeded(4, 3), seeded(4, 2))])
    assert model.count == 0
    assert model.expanded is expanded
    assert not model.expanded.any()
    assert model.rows is rows
    assert model.rows.stride() == (1, 0)
    assert model.rows[:, 2].tolist() == [0, 1, 2]
    assert model.nan.isnan().all()


def test_a_buffer_that_did_not_change_is_not_written_to() -> None:
    model = Buffers()
    evaluator = _evaluate.Evaluator(model, mse_loss, [(seeded(4, 3), seeded(4, 2))])
    versions = {name: buffer._version for name, buffer in model.named_buffers()}
    with evaluator.ready():
        model.count.fill_(-0.0)  # other bits, though equal
    written = [name for name, buffer in model.named_buffers() if buffer._version != versions[name]]
    assert written == ["count"]
    assert not torch.signbit(model.count)


class Unwritable(Tensor):
    """A tensor that cannot be written to."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.copy_:
            raise RuntimeError("cannot be written to")
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_buffer_that_cannot_be_put_back_does_not_keep_the_others() -> None:
    model = Buffers()
    model.count = torch.zeros(()).as_subclass(Unwritable)
    evaluator = _evaluate.Evaluator(model, mse_loss, [(seeded(4, 3), seeded(4, 2))])
    model.train()

    def change() -> None:
        with evaluator.ready():
            model.count.fill_(9)
            model.rows[:, :1].add_(1)

    with pytest.raises(RuntimeError, match="cannot be written to"):
        change()
    assert model.rows[:, 0].tolist() == [0, 1, 2]
    assert model.training
    assert model.out.training


# Inputs


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 2)

    def forward(self, pair: Pair) -> Tensor:
        out: Tensor = self.out(pair.a + pair.b)
        return out


@pytest.mark.parametrize("name", MEASURES)
def test_named_tuples_as_inputs(name: str) -> None:
    if name in ("hessian_trace", "top_eigenvalues", "layer_balance"):
        pytest.importorskip("curvlinops")
    x, y = seeded(4, 3), seeded(4, 2)
    MEASURES[name](Sum(), mse_loss, [(Pair(x, x), y)])
    moved = _evaluate.to_device({"inputs": [Pair(x, x)]}, torch.device("meta"))["inputs"][0]
    assert isinstance(moved, Pair)
    assert moved.b.is_meta


def test_packed_sequences_as_inputs() -> None:
    x = nn.utils.rnn.pack_sequence([seeded(3, 2), seeded(2, 2)])
    model = nn.GRU(2, 2)
    y = seeded(2, 2)
    found = sharpness.average(model, lambda out, y: mse_loss(out[1][0], y), [(x, y)], 0.1, samples=2)
    assert math.isfinite(found.mean)


# What is measured


class Outside(nn.Module):
    """A frozen layer, scaled by a tensor that is none of its parameters."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).requires_grad_(False)
        self.hidden = [w]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.hidden[0] * self.layer(x)
        return out


def test_the_average_goes_by_the_params_given() -> None:
    w = torch.ones(2, requires_grad=True)
    data = [(seeded(4, 3), seeded(4, 2))]
    model = Outside(w)
    found = sharpness.average(model, mse_loss, data, 0.1, params=[w], samples=4)
    assert found.values.all()
    groups = iter([{"params": [w], "noise_std": 0.1}])
    again = sharpness.average(model, mse_loss, data, 0.0, params=groups, samples=4)
    assert np.array_equal(again.values, found.values)
    with pytest.raises(ValueError, match="params has no parameter that requires gradients"):
        sharpness.average(model, mse_loss, data, 0.1, params=[w.detach()])


def test_the_noise_is_not_that_of_a_training_with_the_same_seed() -> None:
    """The loss is |w|^2: after one long step of S-SAM the weights are a multiple of the noise of that step."""
    w = nn.Parameter(torch.zeros(2000))
    opt = torch_ssam.SSAM([w], lr=10.0, noise_std=1.0, seed=0)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = w.square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    opt.step(closure)

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = w

        def forward(self, x: Tensor) -> Tensor:
            return w.square().sum() / 2

    data, loss_fn = [(torch.zeros(1, 1), torch.zeros(1))], lambda out, _: out
    found = sharpness.average(Norm(), loss_fn, data, 1.0, antithetic=False, samples=2, seed=0)
    # A draw is |xi|^2 / 2 + <w, xi>, with mean 1000 and standard deviation |w|; the noise of training: -20,000.
    spread = float(w.detach().norm())
    assert all(abs(value - 1000) < 5 * spread for value in found.values)
    noise = torch_ssam.WeightNoise([w], 1.0, seed=0).noise(w)
    worst = sharpness.worst_case(Norm(), loss_fn, data, 1e-3, steps=1, restarts=1, seed=0)
    assert abs(float(torch.cosine_similarity(noise, worst.perturbation[0], dim=0))) > 0.99  # the gradient
    line = sharpness.landscape(Norm(), loss_fn, data, points=2, normalize=False, seed=0)
    with torch.no_grad():
        w.add_(noise)
        assert line.losses[1] != pytest.approx(float(w.square().sum() / 2), rel=1e-4)
