"""AdaptiveNoiseStd: the change it measures against closed forms, its rule, that a look leaves no trace in any way to drive,
on ranks and shards, resumed and refused."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from ranks import run_ranks
from self_writing_models import MODELS, state
from torch import Tensor, nn

import torch_ssam
from torch_ssam.noise import output_change
from torch_ssam.schedules import AdaptiveNoiseStd


def linear(
    noise_std: float = 0.1, features: int = 6, **options: Any
) -> tuple[nn.Parameter, torch_ssam.SSAM, Tensor]:
    """y = x w, for which everything is known."""
    generator = torch.Generator().manual_seed(1)
    w = nn.Parameter(torch.randn(features, generator=generator, dtype=torch.float64))
    x = torch.randn(200, features, generator=generator, dtype=torch.float64)
    return w, torch_ssam.SSAM([w], lr=0.0, noise_std=noise_std, seed=5, **options), x


def noise_of_next_draw(opt: torch_ssam.SSAM, w: Tensor, noise_std: float) -> Tensor:
    noise = torch_ssam.WeightNoise([w], noise_std)
    noise.load_state_dict({"seed": opt.seed, "draw": opt.draw})
    return noise.noise(w)


def on_target(seen: list[Tensor]) -> Callable[[Tensor, Tensor], float]:
    """A measure under whose target of 0.2 noise_std stays."""

    def measure(clean: Tensor, noisy: Tensor) -> float:
        seen.extend([clean, noisy])
        return 0.2

    return measure


# -- what is measured ----------------------------------------------------------------------------------------


def test_mse_of_a_linear_model_is_that_of_x_times_the_noise_over_the_variance() -> None:
    w, opt, x = linear()
    schedule = AdaptiveNoiseStd(opt, measure="mse")
    n = noise_of_next_draw(opt, w, 0.1)
    schedule.step(lambda: x @ w)
    expected = (x @ n).square().mean() / (x @ w.detach()).var(correction=0)
    assert schedule.last_change == pytest.approx(float(expected), rel=1e-12)


def test_kl_of_two_classes_is_that_of_two_bernoulli_distributions() -> None:
    w, opt, x = linear()
    schedule = AdaptiveNoiseStd(opt)
    n = noise_of_next_draw(opt, w, 0.1)
    schedule.step(lambda: torch.stack([x @ w, torch.zeros(len(x))], -1))
    p, q = torch.sigmoid(x @ w.detach()), torch.sigmoid(x @ (w.detach() + n))
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert schedule.last_change == pytest.approx(float(expected), rel=1e-9)


def test_the_noise_ends_where_the_closed_form_says() -> None:
    """E (x n)^2 = sigma^2 |x|^2, so that sigma^2 = target var(x w) / mean |x|^2. With 1,000 features one draw of the noise
    gives the mean over draws within 5% (chi^2 of rank 200)."""
    w, opt, x = linear(0.01, features=1000)
    schedule = AdaptiveNoiseStd(opt, 0.2, measure="mse", every=1)
    seen = []
    for _ in range(200):
        schedule.step(lambda: x @ w)
        with opt.perturb():  # moves on to the next draw
            (x @ w).sum().backward()
        opt.step()
        seen.append(schedule.get_last_noise_std()[0])
    expected = (0.2 * (x @ w.detach()).var(correction=0) / x.square().sum(1).mean()).sqrt()
    assert sum(seen[-50:]) / 50 == pytest.approx(float(expected), rel=0.02)


def test_classes_that_are_masked_out_count_nothing_and_other_infinities_are_infinite() -> None:
    clean = torch.tensor([[0.0, 1.0, -math.inf]])
    assert float(output_change.kl(clean, clean)) == 0.0
    assert float(output_change.kl(clean[:, :2], clean[:, 1:])) == math.inf
    assert math.isnan(float(output_change.kl(clean, torch.full((1, 3), math.nan))))


# -- the rule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "moves"),
    [
        (0.0, 0.1),
        (0.1, 0.05),
        (0.2, 0.0),
        (0.3, -0.05),
        (0.4, -0.1),
        (9.0, -0.1),
        (math.inf, -0.1),
        (math.nan, -0.1),
    ],
)
def test_log_noise_std_moves_by_the_clamped_share_of_the_target(found: float, moves: float) -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "noise_std": s} for s in (0.1, 0.02, 0.0)]
    opt = torch_ssam.SSAM(groups)
    schedule = AdaptiveNoiseStd(opt, 0.2, measure=lambda clean, noisy: found)
    schedule.step(lambda: None)
    assert schedule.get_last_noise_std() == pytest.approx(
        [0.1 * math.exp(moves), 0.02 * math.exp(moves), 0.0]
    )


def test_outputs_that_are_not_finite_lower_the_noise() -> None:
    w, opt, x = linear()
    schedule = AdaptiveNoiseStd(opt)
    schedule.step(lambda: torch.stack([x @ w, (x @ w) / 0.0], -1))
    assert schedule.get_last_noise_std() == pytest.approx([0.1 * math.exp(-0.1)])


def test_the_largest_noise_std_is_bounded_and_never_reaches_zero() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "noise_std": s} for s in (0.1, 0.4)]
    opt = torch_ssam.SSAM(groups)
    value = 0.0
    schedule = AdaptiveNoiseStd(opt, 0.2, measure=lambda clean, noisy: value, every=1, rate=2.0)
    for _ in range(3):
        schedule.step(lambda: None)
    assert schedule.get_last_noise_std() == pytest.approx([0.125, 0.5])
    value = math.nan
    for _ in range(400):
        schedule.step(lambda: None)
    assert schedule.get_last_noise_std() == pytest.approx([0.25e-12, 1e-12])


def test_every_says_which_steps_look_and_the_first_does() -> None:
    _, opt, _ = linear()
    calls = []

    def outputs() -> Tensor:
        calls.append(schedule.last_epoch)
        return torch.zeros(2, 2)

    schedule = AdaptiveNoiseStd(opt, every=3)
    for _ in range(7):
        schedule.step(outputs)
    assert calls == [-1, -1, 2, 2, 5, 5]
    assert schedule.last_epoch == 6


# -- no trace ------------------------------------------------------------------------------------------------


class Trace(nn.Module):
    """Dropout, BatchNorm, a power iteration that each forward moves, and an attribute that each forward sets."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 7))
        self.norm = nn.BatchNorm1d(7)
        self.last = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.nn.functional.dropout(torch.tanh(self.norm(self.first(x))), 0.3, self.training)
        return self.last(self.seen)  # type: ignore[no-any-return]


WRITE_TO_WEIGHTS = {"max_norm", "clamped", "averaged", "replacing", "busy"}

Step = Callable[[Any, nn.Module, Tensor, Tensor], None]


def by_perturb(opt: Any, net: nn.Module, x: Tensor, y: Tensor) -> None:
    with opt.perturb():
        front.loss_of(net, x, y).backward()
    opt.step()


def by_closure(opt: Any, net: nn.Module, x: Tensor, y: Tensor) -> None:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = front.loss_of(net, x, y)
        loss.backward()
        return loss

    opt.step(closure)


def by_perturbations(opt: Any, net: nn.Module, x: Tensor, y: Tensor) -> None:
    for x_k, y_k in opt.perturbations(x, y):
        front.loss_of(net, x_k, y_k).backward()
    opt.step()


def plain(opt: Any, net: nn.Module, x: Tensor, y: Tensor) -> None:
    front.loss_of(net, x, y).backward()
    opt.step()


WAYS: dict[str, tuple[Step, dict[str, Any]]] = {
    "perturb": (by_perturb, {}),
    "closure": (by_closure, {}),
    "perturbations": (by_perturbations, {"samples": 2}),
    "keep_perturbed": (plain, {"keep_perturbed": True}),
}
MAKE: dict[str, Callable[..., Any]] = {
    "SSAM": lambda p, **o: torch_ssam.SSAM(p, lr=0.1, momentum=0.9, noise_std=0.05, seed=3, **o),
    "SSAMAdamW": lambda p, **o: torch_ssam.SSAMAdamW(p, lr=0.01, noise_std=0.05, seed=3, **o),
    "wrap": lambda p, **o: torch_ssam.wrap(torch.optim.Adam(p, 0.01), 0.05, seed=3, **o),
}


def train(make: str, way: str, look: bool) -> tuple[list[Tensor], list[Tensor]]:
    """All bits after five steps, and the outputs of each look."""
    torch.manual_seed(0)
    net = Trace()
    step, options = WAYS[way]
    opt = MAKE[make](net.parameters(), **options)
    looks: list[Tensor] = []
    schedule = AdaptiveNoiseStd(opt, 0.2, measure=on_target(looks), every=1) if look else None
    opt.train()
    x, y = front.data()
    for _ in range(5):
        opt.zero_grad()
        step(opt, net, x, y)
        if schedule is not None:
            schedule.step(lambda: net(x))
    noisy = torch.tensor(opt.draw), *front.snapshot(net)
    opt.eval()
    bits = [*front.snapshot(net), *net.state_dict().values(), net.seen.detach(), torch.get_rng_state()]
    return [*noisy, *bits, *front.optimizer_bits(opt)], looks


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", MAKE)
def test_a_look_leaves_no_trace(make: str, way: str) -> None:
    bits, looks = train(make, way, True)
    without, _ = train(make, way, False)
    assert front.same_bits(bits, without)
    assert all(not torch.equal(a, b) for a, b in zip(looks[::2], looks[1::2], strict=True))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("name", sorted(MODELS.keys() - WRITE_TO_WEIGHTS))
def test_a_look_leaves_every_bit_of_a_model_that_writes_to_itself(name: str, kept: bool) -> None:
    torch.manual_seed(3)
    make, data = MODELS[name]
    model, ((x, _), *_) = make(), data()
    opt = torch_ssam.SSAM(model.parameters(), noise_std=0.01, keep_perturbed=kept)
    opt.train()
    before = state(model)
    AdaptiveNoiseStd(opt).step(lambda: model(x))
    assert state(model) == before


@pytest.mark.parametrize("way", WAYS)
def test_what_is_compared_are_the_clean_weights_and_the_noise_of_the_next_pass(way: str) -> None:
    torch.manual_seed(0)
    net = front.Net()
    step, options = WAYS[way]
    opt = MAKE["SSAM"](net.parameters(), **options)
    x, y = front.data()
    seen: list[Tensor] = []
    schedule = AdaptiveNoiseStd(opt, 0.2, measure=on_target(seen))
    opt.train()
    schedule.step(lambda: net(x))
    assert torch.equal(seen[1], net(x)) if way == "keep_perturbed" else torch.equal(seen[0], net(x))
    inputs: list[Tensor] = []
    net.register_forward_hook(lambda *call: inputs.append(call[2].detach()))
    step(opt, net, x, y)
    first = seen[1][: len(inputs[0])]  # perturbations() splits the batch
    assert torch.allclose(first, inputs[0], atol=1e-6)
    assert not torch.allclose(seen[0][: len(first)], inputs[0], atol=1e-6)


def test_looks_agree_in_all_ways_of_one_pass_a_step() -> None:
    _, first = train("SSAM", "perturb", True)
    for way in ("closure", "keep_perturbed"):
        assert front.same_bits(train("SSAM", way, True)[1], first)


def test_a_wrapped_optimizer_with_modes_of_its_own_stays_in_them() -> None:
    """schedule-free in train holds other weights than in eval: a look compares noise, not those."""
    schedulefree = pytest.importorskip("schedulefree")
    w = nn.Parameter(torch.zeros(3))
    for kept in (False, True):
        opt = torch_ssam.wrap(schedulefree.SGDScheduleFree([w], lr=0.5), 1e-6, keep_perturbed=kept)
        opt.train()
        for _ in range(3):
            with opt.perturb() if not kept else torch.enable_grad():
                (w * torch.ones(3)).sum().backward()
            opt.step()
        seen: list[Tensor] = []
        schedule = AdaptiveNoiseStd(opt, 0.2, measure=on_target(seen))
        schedule.step(lambda: w.clone())
        assert 0 < float((seen[0] - seen[1]).abs().max()) < 1e-5
        opt.eval()


@pytest.mark.parametrize("way", ["perturb", "keep_perturbed"])
def test_a_look_under_regenerate_stays_within_the_stated_bound(way: str) -> None:
    torch.manual_seed(0)
    net = Trace()
    opt = MAKE["SSAM"](net.parameters(), memory="regenerate", **WAYS[way][1])
    opt.train()
    before = front.snapshot(net)
    AdaptiveNoiseStd(opt, measure=lambda clean, noisy: 0.2).step(lambda: net(front.data()[0]))
    for now, then in zip(front.snapshot(net), before, strict=True):
        assert float((now - then).abs().max()) <= 2.0**-24 * 2 * float(then.abs().max() + 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("inside", [False, True])
def test_a_compiled_model_keeps_its_statistics_and_its_graph(inside: bool) -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    torch.manual_seed(0)
    counter = CompileCounter()
    net: Any = Trace()
    if inside:
        net.compile(backend=counter)
        model = net
    else:
        model = torch.compile(net, backend=counter)
    opt = torch_ssam.SSAM(net.parameters(), noise_std=0.02)
    schedule = AdaptiveNoiseStd(opt, every=1)
    x, _ = front.data()
    with torch.no_grad():
        model(x)
    before, frames = net.norm.running_mean.clone(), counter.frame_count
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            schedule.step(lambda: model(x))
    assert torch.equal(net.norm.running_mean, before)
    assert counter.frame_count == frames > 0
    assert schedule.last_change is not None
    assert schedule.last_change > 0


def test_autocast_inside_sees_the_noise() -> None:
    net = front.Net()
    opt = torch_ssam.SSAM(net.parameters(), noise_std=0.5, seed=0)
    schedule = AdaptiveNoiseStd(opt)

    def outputs() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(front.data()[0])  # type: ignore[no-any-return]

    with torch.autocast("cpu", torch.bfloat16):
        front.loss_of(net, *front.data()).backward()  # fills autocast's cache of cast weights
        schedule.step(outputs)
    assert schedule.last_change is not None
    assert schedule.last_change > 0.001


def test_an_error_of_the_model_leaves_no_trace_and_no_step() -> None:
    w, opt, x = linear()
    schedule = AdaptiveNoiseStd(opt)
    before, calls = w.detach().clone(), []

    def outputs() -> Tensor:
        calls.append(torch.rand(1))
        if len(calls) == 2:
            raise ValueError("mine")
        return x @ w

    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="mine"):
        schedule.step(outputs)
    assert torch.equal(w, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert (schedule.last_epoch, opt.draw, opt._inside_pass) == (-1, 0, False)
    assert schedule.get_last_noise_std() == [0.1]


def test_ranks_agree_on_the_mean_and_shards_are_seen(tmp_path: Any) -> None:
    run_ranks("adaptive_program.py", 2, str(tmp_path))


# -- checkpoints and refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKE)
def test_it_resumes_through_weights_only_loading(make: str) -> None:
    def run(steps: int, saved: Any = None) -> Any:
        torch.manual_seed(0)
        net = front.Net()
        opt = MAKE[make](net.parameters())
        schedule = AdaptiveNoiseStd(opt, 0.03, measure="mse", every=2)
        if saved is not None:
            net.load_state_dict(saved["net"])
            opt.load_state_dict(saved["opt"])
            schedule.load_state_dict(saved["schedule"])
        x, y = front.data()
        for _ in range(steps):
            opt.zero_grad()
            by_perturb(opt, net, x, y)
            schedule.step(lambda: net(x))
        return {"net": net.state_dict(), "opt": opt.state_dict(), "schedule": schedule.state_dict()}

    file = io.BytesIO()
    torch.save(run(3), file)
    file.seek(0)
    resumed, whole = run(4, torch.load(file, weights_only=True)), run(7)
    assert front.same_bits(resumed["net"].values(), whole["net"].values())
    assert resumed["schedule"] == whole["schedule"]
    assert resumed["opt"]["param_groups"] == whole["opt"]["param_groups"]
    assert set(whole["schedule"]) == {
        *("last_epoch", "target", "measure", "every", "rate", "max_noise_std", "last_change")
    }


def test_a_function_as_measure_is_not_saved() -> None:
    _, opt, _ = linear()
    assert "measure" not in AdaptiveNoiseStd(opt, measure=lambda clean, noisy: 1.0).state_dict()


def test_no_noise_to_start_from_is_refused_at_construction_and_at_a_look() -> None:
    _, opt, _ = linear()
    schedule = AdaptiveNoiseStd(opt)
    opt.param_groups[0]["noise_std"] = 0.0
    for refused in (lambda: AdaptiveNoiseStd(opt), lambda: schedule.step(lambda: torch.zeros(2, 2))):
        with pytest.raises(ValueError, match=r"noise_std is 0 in every group.*small positive one"):
            refused()
    assert schedule.last_epoch == -1


def test_a_captured_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, opt, _ = linear()
    schedule = AdaptiveNoiseStd(opt)

    class OnGpu:
        is_cuda = True

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    opt.param_groups[0]["params"] = [OnGpu()]
    with pytest.raises(RuntimeError, match="a CUDA graph is captured"):
        schedule.step(lambda: torch.zeros(2, 2))


def test_inside_a_pass_is_refused() -> None:
    w, opt, x = linear()
    schedule = AdaptiveNoiseStd(opt)
    with opt.perturb(), pytest.raises(RuntimeError, match=r"inside perturb\(\): leave the pass first"):
        schedule.step(lambda: x @ w)
    schedule = AdaptiveNoiseStd(opt, measure=lambda clean, noisy: 1.0)
    with pytest.raises(RuntimeError, match="perturb"):
        schedule.step(lambda: opt.perturb().__enter__())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": 0.0}, ValueError, "target is 0"),
        ({"target": "x"}, TypeError, "target is 'x'"),
        ({"measure": "accuracy"}, ValueError, "measure is 'accuracy'; expected one of 'kl', 'mse'"),
        ({"measure": 3}, TypeError, "measure is a int; expected 'kl', 'mse' or a function"),
        ({"every": 0}, ValueError, "every is 0"),
        ({"rate": 0.0}, ValueError, "rate is 0"),
        ({"max_noise_std": 0.05}, ValueError, r"noise_std is 0\.1, above max_noise_std=0\.05"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AdaptiveNoiseStd(linear()[1], **options)


@pytest.mark.parametrize(
    ("options", "outputs", "message"),
    [
        ({}, torch.zeros(3), "got a Tensor; expected a function"),
        ({}, lambda: torch.zeros(4, 1), "two classes or more"),
        ({}, lambda: {"logits": torch.zeros(4, 2)}, r"got dict as outputs.*\.logits"),
        ({}, lambda: torch.zeros(4, 2, dtype=torch.long), "got a tensor of torch.int64"),
        ({"measure": "mse"}, lambda: torch.zeros(1, 2), "one has no variance"),
        ({"measure": lambda a, b: a}, lambda: torch.zeros(2, 2), r"measure gave a tensor of shape \(2, 2\)"),
        ({"measure": lambda a, b: None}, lambda: torch.zeros(2, 2), "measure gave None"),
    ],
    ids=["tensor", "one class", "dict", "integers", "one example", "two numbers", "nothing"],
)
def test_outputs_that_cannot_be_compared_are_refused_and_change_nothing(
    options: dict[str, Any], outputs: Any, message: str
) -> None:
    w, opt, _ = linear()
    schedule = AdaptiveNoiseStd(opt, **options)
    before = w.detach().clone()
    with pytest.raises((TypeError, ValueError), match=message):
        schedule.step(outputs)
    assert schedule.get_last_noise_std() == [0.1]
    assert torch.equal(w, before)


def test_optimizers_without_noise_are_refused() -> None:
    w = nn.Parameter(torch.ones(1))
    with pytest.raises(TypeError, match="SGD without noise_std"):
        AdaptiveNoiseStd(torch.optim.SGD([w]))
    with pytest.raises(TypeError, match=r"got a SGD; expected torch_ssam\.SSAM"):
        AdaptiveNoiseStd(torch.optim.SGD([{"params": [w], "noise_std": 0.1}]))
