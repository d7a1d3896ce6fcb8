"""torch_ssam.sharpness: on diagonal networks every measure is the closed form of theory, on others NumPy's,
SciPy's or a plain loop's; whatever happens, the model is afterwards what it was.

False-alarm rates are those of a normal value at the confidence that the test asks for, seeds fixed.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import torch_ssam
from torch_ssam import sharpness, theory
from torch_ssam.noise import seeds
from torch_ssam.sharpness import _curvature, _evaluate
from torch_ssam.sharpness.__main__ import main as command_line
from torch_ssam.sharpness._estimate import Plan, student_quantile

RARE = 1 - 1e-6  # confidence at which a right estimate misses once in a million

TARGET = [1.5, -0.7, 2.0]
WEIGHTS = [[1.2, 0.4, -0.9], [0.8, -1.1, 1.3], [0.5, 0.9, -1.4]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # conftest puts it back


def squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).square().sum(-1).mean()


def diagonal(dtype: torch.dtype = torch.float64) -> torch_ssam.DiagonalLinear:
    layer = torch_ssam.DiagonalLinear(3, depth=3, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(WEIGHTS, dtype=torch.float64))
    return layer


WHITE = [(torch.ones(1, 3, dtype=torch.float64), torch.tensor([TARGET], dtype=torch.float64))]


def correlated() -> tuple[torch_ssam.DiagonalLinear, list[tuple[torch.Tensor, torch.Tensor]], np.ndarray]:
    """A readout on 40 examples in batches of unequal size, and the covariance of their inputs."""
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 1] += 0.5 * x[:, 0]
    y = x @ torch.tensor(TARGET, dtype=torch.float64)
    layer = torch_ssam.DiagonalLinear(3, depth=3, readout="sum", dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(WEIGHTS, dtype=torch.float64))
    return layer, list(zip(x.split(16), y.split(16), strict=True)), (x.T @ x / 40).numpy()


class Network(nn.Module):
    """Convolution, BatchNorm, dropout, a tied weight and a frozen one: all that an evaluation may disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(4 * 16, 5)
        self.again = nn.Linear(4 * 16, 5, bias=False)
        self.again.weight = self.out.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.drop(self.norm(self.conv(x)).relu()).flatten(1)
        return self.out(hidden) + self.again(hidden)


def network_and_data() -> tuple[Network, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(1)
    x, y = torch.randn(20, 1, 6, 6), torch.randint(0, 5, (20,))
    return Network(), list(zip(x.split(8), y.split(8), strict=True))


def snapshot(model: nn.Module) -> tuple[dict[str, torch.Tensor], list[bool]]:
    return {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]


def same(
    a: tuple[dict[str, torch.Tensor], list[bool]], b: tuple[dict[str, torch.Tensor], list[bool]]
) -> bool:
    return a[1] == b[1] and all(torch.equal(a[0][k], b[0][k]) for k in a[0])


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("antithetic", [True, False])
def test_average_sharpness_is_the_closed_form_on_diagonal_networks(
    distribution: str, antithetic: bool
) -> None:
    for model, data, covariance in ((diagonal(), WHITE, None), correlated()):
        loss_fn = squared if covariance is None else mse_loss
        found = sharpness.average(
            model,
            loss_fn,
            data,
            0.2,
            confidence=RARE,
            samples=400,
            antithetic=antithetic,
            distribution=distribution,
        )
        exact = theory.average_sharpness(WEIGHTS, 0.2, covariance)
        assert abs(found.mean - exact) <= found.half_width
        assert found.half_width < 1.1 * exact  # an interval that excludes something
        assert found.draws == 400
        assert found.converged


def test_average_sharpness_reaches_the_precision_asked_for() -> None:
    model = diagonal()
    exact = theory.average_sharpness(WEIGHTS, 0.1)
    found = sharpness.average(
        model, squared, WHITE, 0.1, precision=0.1 * exact, confidence=0.999, max_samples=20_000
    )
    assert found.converged
    assert found.half_width <= 0.1 * exact
    assert 16 < found.draws < 20_000
    assert abs(found.mean - exact) <= found.half_width  # false alarm 0.001
    stopped = sharpness.average(model, squared, WHITE, 0.1, precision=1e-9, max_samples=20)
    assert not stopped.converged
    assert stopped.draws == 20
    assert "not reached" in str(stopped)


def test_the_interval_covers_with_its_confidence_at_a_requested_precision() -> None:
    # 500 runs of two stages on normal values of unknown variance; 90% +- 5 standard errors: 6e-7.
    rng = np.random.default_rng(0)
    covered, runs = 0, 500
    for _ in range(runs):
        plan = Plan.of(5, 10_000, 0.5, 0.9)
        values, half, converged = plan.run(lambda _: np.asarray(rng.normal(3.0, 2.0)), None, "draw")
        assert converged
        assert half <= 0.5
        covered += abs(values.mean() - 3.0) <= half
    assert abs(covered / runs - 0.9) < 5 * math.sqrt(0.09 / runs)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 255, 999, 1000, 5000])
@pytest.mark.parametrize("confidence", [0.1, 0.95, 0.999, RARE])
def test_students_quantile_is_scipys(degrees: int, confidence: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert student_quantile(confidence, degrees) == pytest.approx(
        stats.t.isf((1 - confidence) / 2, degrees), rel=1e-6
    )


def test_average_sharpness_is_a_plain_loop_over_weight_noise() -> None:
    model, data = network_and_data()
    model.eval()
    found = sharpness.average(model, cross_entropy, data, 0.05, samples=3, seed=7)
    params = [p for p in model.parameters() if p.requires_grad]
    noise = torch_ssam.WeightNoise(params, 0.05, seed=seeds.measuring_seed(7))

    def loss() -> float:
        with torch.no_grad():
            return sum(float(cross_entropy(model(x), y)) * len(y) for x, y in data) / 20

    clean, values = loss(), []
    for _ in range(3):
        with noise.applied(advance=False):
            plus = loss()
        with noise.applied(negate=True):
            values.append((plus + loss()) / 2 - clean)
    assert found.values == pytest.approx(values, rel=1e-6, abs=1e-9)
    assert found.loss == pytest.approx(clean)


MEASURES = {
    "average": lambda m, f, d, **o: sharpness.average(m, f, d, 0.1, samples=2, **o),
    "worst_case": lambda m, f, d, **o: sharpness.worst_case(m, f, d, 0.1, steps=3, restarts=1, **o),
    "landscape": lambda m, f, d, **o: sharpness.landscape(m, f, d, points=3, **o),
    "hessian_trace": lambda m, f, d, **o: sharpness.hessian_trace(m, f, d, samples=2, **o),
    "top_eigenvalues": lambda m, f, d, **o: sharpness.top_eigenvalues(m, f, d, tolerance=0.1, **o),
    "layer_balance": lambda m, f, d, **o: sharpness.layer_balance(m, f, d, samples=2, **o),
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_every_measure_leaves_the_model_as_it_was(name: str, mode: str) -> None:
    if name in ("hessian_trace", "top_eigenvalues", "layer_balance"):
        pytest.importorskip("curvlinops")
    model, data = network_and_data()
    model.norm.eval()  # a flag of its own
    cross_entropy(model(data[0][0]), data[0][1]).backward()
    before, grads = snapshot(model), [p.grad.clone() for p in model.parameters() if p.grad is not None]
    MEASURES[name](model, cross_entropy, data, mode=mode)
    assert same(before, snapshot(model))
    assert all(
        torch.equal(a, p.grad)
        for a, p in zip(grads, (p for p in model.parameters() if p.grad is not None), strict=True)
    )

    calls = 0

    def failing(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise KeyboardInterrupt
        return cross_entropy(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        MEASURES[name](model, failing, data, mode=mode)
    assert same(before, snapshot(model))


def test_train_mode_uses_the_statistics_of_the_batch() -> None:
    model, data = network_and_data()
    model.drop.p = 0.0
    model.train()
    with torch.no_grad():
        losses = [float(cross_entropy(model(x), y)) * len(y) for x, y in data]
    for found in (
        sharpness.average(model, cross_entropy, data, 0.1, samples=2, mode="train").loss,
        sharpness.worst_case(model, cross_entropy, data, 0.1, steps=1, mode="train").loss,
    ):
        assert found == pytest.approx(sum(losses) / 20, rel=1e-5)
    assert sharpness.average(model, cross_entropy, data, 0.1, samples=2).loss != pytest.approx(
        sum(losses) / 20
    )


def test_worst_case_is_theorys_on_diagonal_networks() -> None:
    for radius in (0.05, 0.5, 2.0):
        found = sharpness.worst_case(diagonal(), squared, WHITE, radius, steps=60, restarts=8)
        assert found.increase == pytest.approx(theory.worst_case_sharpness(WEIGHTS, TARGET, radius), rel=1e-3)
        assert found.radius_used <= radius * (1 + 1e-12)


def test_worst_case_is_monotone_and_attained() -> None:
    model, data = network_and_data()
    found = sharpness.worst_case(model, cross_entropy, data, 0.3, steps=8, restarts=2)
    assert all(b >= a for a, b in zip(found.history, found.history[1:], strict=False))
    assert found.history[-1] == found.increase == max(found.by_start) > 0
    params = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for p, xi in zip(params, found.perturbation, strict=True):
            p.add_(xi)
        model.eval()
        loss = sum(float(cross_entropy(model(x), y)) * len(y) for x, y in data) / 20
    assert loss - found.loss == pytest.approx(found.increase, rel=1e-4)
    assert math.sqrt(sum(float(xi.square().sum()) for xi in found.perturbation)) <= 0.3 * (1 + 1e-6)


def test_worst_case_at_a_flat_point_is_zero() -> None:
    layer = torch_ssam.DiagonalLinear(2, depth=3, init_scale=0.0)
    found = sharpness.worst_case(
        layer, lambda p, y: (0 * p).sum(), [(torch.ones(1, 2), torch.ones(1, 2))], 1.0
    )
    assert found.increase == 0
    assert found.radius_used == 0


@pytest.mark.parametrize("dense", [True, False])
def test_hessian_trace_and_eigenvalues_are_theorys_on_diagonal_networks(
    dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("curvlinops")
    if not dense:
        monkeypatch.setattr(_curvature, "DENSE", 0)
    for model, data, covariance in ((diagonal(), WHITE, None), correlated()):
        loss_fn = squared if covariance is None else mse_loss
        samples = 2 if dense else 400
        found = sharpness.hessian_trace(model, loss_fn, data, samples=samples, confidence=RARE)
        exact = theory.hessian_trace(WEIGHTS, covariance)
        # Off-diagonal blocks vanish for v^T H v on whitened data only up to signs: an interval, else exact.
        assert abs(found.mean - exact) <= (1e-9 * exact if found.exact else found.half_width)
        assert sum(found.by_parameter) == pytest.approx(found.mean)
        hessian = theory.regularized_hessian(WEIGHTS, TARGET, 0.0, covariance)
        whole = np.linalg.eigvalsh(hessian if covariance is None else hessian.reshape(9, 9))
        top = sharpness.top_eigenvalues(model, loss_fn, data, 2, tolerance=1e-8)
        assert top == pytest.approx(np.sort(whole.reshape(-1))[::-1][:2], rel=1e-6)


def test_curvature_of_a_network_is_that_of_its_whole_hessian() -> None:
    pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)).double()  # 73 parameters
    x, y = torch.randn(30, 6, dtype=torch.float64), torch.randint(0, 3, (30,))
    data = list(zip(x.split(13), y.split(13), strict=True))
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([s.numel() for s in shapes])
        values = {n: part.view(s) for n, part, s in zip(names, parts, shapes, strict=True)}
        return cross_entropy(torch.func.functional_call(model, values, (x,)), y)

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    hessian = torch.autograd.functional.hessian(loss, flat).numpy()
    found = sharpness.hessian_trace(model, cross_entropy, data, samples=60, confidence=RARE)
    assert not found.exact
    assert abs(found.mean - np.trace(hessian)) <= found.half_width
    assert sharpness.hessian_trace(model, cross_entropy, data, samples=100).mean == pytest.approx(
        np.trace(hessian)
    )
    top = sharpness.top_eigenvalues(model, cross_entropy, data, 3, tolerance=1e-8)
    assert top == pytest.approx(np.linalg.eigvalsh(hessian)[::-1][:3], rel=1e-6)
    assert sharpness.top_eigenvalue(model, cross_entropy, data) == pytest.approx(top[0], rel=1e-3)
    # A layer alone: the block of its weights.
    part = sharpness.hessian_trace(model, cross_entropy, data, params=[model[0].weight])
    assert part.exact
    assert part.mean == pytest.approx(np.trace(hessian[:42, :42]))
    balance = sharpness.layer_balance(model, cross_entropy, data, samples=100)
    assert balance.names == ("0.weight", "2.weight")
    assert balance.traces is not None
    assert balance.traces == pytest.approx([np.trace(hessian[:42, :42]), np.trace(hessian[49:70, 49:70])])


def test_layer_balance_is_theorys_on_diagonal_networks() -> None:
    found = sharpness.layer_balance(diagonal())
    assert found.gaps == pytest.approx(theory.balance_gaps(WEIGHTS).sum(-1))
    norms = (np.array(WEIGHTS) ** 2).sum(1)
    assert found.imbalance == pytest.approx(math.log(norms.max() / norms.min()))
    pytest.importorskip("curvlinops")
    traced = sharpness.layer_balance(diagonal(), squared, WHITE)
    w = np.array(WEIGHTS)
    assert traced.traces == pytest.approx([2 * (np.delete(w, i, 0).prod(0) ** 2).sum() for i in range(3)])


def test_landscape_is_theorys_loss_on_a_diagonal_network() -> None:
    model = diagonal()
    direction = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = torch.ones(3, 3, dtype=torch.float64)
    line = sharpness.landscape(
        model, squared, WHITE, directions=[[direction]], normalize=False, extent=0.7, points=5
    )
    w = np.array(WEIGHTS)
    assert line.losses == pytest.approx(
        [theory.loss(w + a * direction.numpy(), TARGET) for a in line.positions]
    )
    square = sharpness.landscape(
        model, squared, WHITE, dimensions=2, directions=[[direction], [other]], normalize=False, points=3
    )
    assert square.losses[2, 0] == pytest.approx(theory.loss(w + direction.numpy() - 1, TARGET))


def test_filter_normalized_directions_have_the_filters_norms() -> None:
    model, _ = network_and_data()
    params = [model.conv.weight, model.conv.bias, model.out.weight]
    ways = sharpness.filter_normalized(params, [torch.randn_like(p) for p in params])
    for p, d in zip(params, ways, strict=True):
        if p.dim() < 2:
            assert not d.any()
        else:
            torch.testing.assert_close(d.flatten(1).norm(dim=1), p.detach().flatten(1).norm(dim=1))


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_landscape_is_drawn_and_has_the_clean_loss_in_the_middle(dimensions: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, data = network_and_data()
    found = sharpness.landscape(model, cross_entropy, data, dimensions=dimensions, points=3)
    assert (
        found.losses[(1,) * dimensions] == sharpness.average(model, cross_entropy, data, 0.1, samples=2).loss
    )
    found.save(tmp_path / "landscape.png")
    assert (tmp_path / "landscape.png").read_bytes().startswith(b"\x89PNG")


def test_a_comparison_sets_checkpoints_side_by_side(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, sharp = diagonal(), diagonal()
    with torch.no_grad():
        sharp.weight[0] *= 4
        sharp.weight[1] /= 4
    torch.save({"state_dict": sharp.state_dict()}, tmp_path / "sharp.pt")
    before = snapshot(model)
    seen: list[tuple[int, int]] = []
    report = sharpness.compare(
        model,
        {"flat": model.state_dict(), "sharp": tmp_path / "sharp.pt"},
        squared,
        WHITE,
        noise_std=0.1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert same(before, snapshot(model))
    assert seen
    assert report.values["flat"]["loss"] == pytest.approx(report.values["sharp"]["loss"])
    mean, half = report.differences["sharp"]
    flat_w, sharp_w = WEIGHTS, sharp.weight.detach()
    exact = theory.average_sharpness(sharp_w, 0.1) - theory.average_sharpness(flat_w, 0.1)
    assert mean > half > 0
    assert abs(mean - exact) < 4 * half
    assert report.values["sharp"]["worst case"] > report.values["flat"]["worst case"]
    report.save(tmp_path / "out")
    assert "minus flat, paired" in (tmp_path / "out" / "sharpness.txt").read_text()
    assert (tmp_path / "out" / "sharpness.png").read_bytes().startswith(b"\x89PNG")
    assert "sharp,worst case," in (tmp_path / "out" / "sharpness.csv").read_text()


def test_the_command_line_compares_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "factory.py").write_text(
        "import torch, torch_ssam\n"
        "def make():\n"
        "    data = [(torch.ones(1, 2), torch.zeros(1, 2))]\n"
        "    return torch_ssam.DiagonalLinear(2), torch.nn.functional.mse_loss, data\n"
    )
    for name in ("a", "b"):
        torch.save(
            torch_ssam.DiagonalLinear(2, init_scale=ord(name) - 96.0).state_dict(), tmp_path / f"{name}.pt"
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert command_line(["factory:make", "a.pt", "b.pt", "--quiet", "--out", "out"]) == 0
    assert "minus a.pt, paired" in capsys.readouterr().out
    assert (tmp_path / "out" / "sharpness.png").exists()
    with pytest.raises(SystemExit):
        command_line(["factory:make", "a.pt"])
    assert "two or more" in capsys.readouterr().err


def test_without_curvlinops_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with pytest.raises(ImportError, match=r"pip install 'torch_ssam\[sharpness\]'"):
        sharpness.hessian_trace(diagonal(), squared, WHITE)


def test_progress_counts_to_its_end() -> None:
    seen: list[tuple[int, int]] = []
    sharpness.average(diagonal(), squared, WHITE, 0.1, samples=4, progress=lambda *now: seen.append(now))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


BAD = {
    "a one-shot iterator": (lambda m: (m, squared, iter(WHITE)), TypeError, "read once only"),
    "no batches": (lambda m: (m, squared, []), ValueError, "no batches"),
    "a tensor as data": (lambda m: (m, squared, torch.ones(3)), TypeError, "data is a Tensor"),
    "a batch without targets": (lambda m: (m, squared, [torch.ones(1, 3)]), TypeError, "pair"),
    "targets without examples": (
        lambda m: (m, squared, [(torch.ones(1, 3), torch.tensor(1.0))]),
        ValueError,
        "targets",
    ),
    "a function as model": (lambda m: (squared, squared, WHITE), TypeError, "torch.nn.Module"),
    "a loss per example": (lambda m: (m, lambda p, y: p - y, WHITE), ValueError, "one number"),
    "no loss function": (lambda m: (m, None, WHITE), TypeError, "loss_fn"),
    "a loss that is not finite": (
        lambda m: (m, lambda p, y: squared(p, y) * math.nan, WHITE),
        ValueError,
        "finite",
    ),
    "a frozen model": (lambda m: (m.requires_grad_(False), squared, WHITE), ValueError, "requires gradients"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", ["average", "worst_case"])
def test_bad_input_is_named(case: str, name: str) -> None:
    arguments, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        MEASURES[name](*arguments(diagonal()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: sharpness.average(m, squared, WHITE, -1.0), "noise_std"),
        (lambda m: sharpness.average(m, squared, WHITE, 0.1, samples=1), "samples is 1"),
        (lambda m: sharpness.average(m, squared, WHITE, 0.1, precision=0.0), "precision"),
        (lambda m: sharpness.average(m, squared, WHITE, 0.1, precision=0.1, max_samples=3), "max_samples"),
        (lambda m: sharpness.average(m, squared, WHITE, 0.1, confidence=1.0), "confidence"),
        (lambda m: sharpness.average(m, squared, WHITE, 0.1, mode="test"), "mode"),
        (lambda m: sharpness.worst_case(m, squared, WHITE, 0.0), "radius"),
        (lambda m: sharpness.landscape(m, squared, WHITE, dimensions=3), "dimensions"),
        (lambda m: sharpness.landscape(m, squared, WHITE, directions=[]), "directions"),
        (lambda m: sharpness.landscape(m, squared, WHITE, directions=[[torch.ones(2)]]), "shapes"),
        (lambda m: sharpness.layer_balance(m, squared), "both"),
        (lambda m: sharpness.compare(m, {"a": m}, squared, WHITE), "two or more"),
        (lambda m: sharpness.compare(m, {"a": m, "b": "nowhere.pt"}, squared, WHITE), "no file"),
        (lambda m: sharpness.compare(m, {"a": m, "b": {"x": torch.ones(1)}}, squared, WHITE), "does not fit"),
    ],
)
def test_options_out_of_range_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(diagonal())  # type: ignore[operator]


def test_a_model_on_tensors_in_mappings_is_moved_as_a_whole() -> None:
    moved = _evaluate.to_device({"a": [torch.ones(1)], "b": (1, torch.ones(1))}, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["b"][1].is_meta
    assert moved["b"][0] == 1
