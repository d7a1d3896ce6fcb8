"""SSAM against the slow reference of reference_ssam.py, option by option and way by way, and against
torch.optim.SGD where noise_std is 0. Weights, momentum and loss are compared after several steps, in float64
to rounding and in float32 within its precision; the SGD comparison is 2 units in the last place a step, state
included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from reference_ssam import ReferenceSSAM
from torch import Tensor, nn

import torch_ssam
from torch_ssam.noise.options import ROW_SCALES, SCALES

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-5}
# Row scales, and the noise times them, are float32 whatever the weights are.
ROW_TOLERANCE = 3e-7
COMMON = ("samples", "antithetic", "clean_weight")


def functional_loss(x: Tensor, y: Tensor) -> Callable[[list[Tensor]], Tensor]:
    """The loss of front_helpers.Net as a function of its parameters in order, the last of which may be unused."""

    def loss(w: list[Tensor]) -> Tensor:
        return (w[3] * (torch.tanh(x @ w[0].T + w[1]) @ w[2]) - y).square().mean()

    return loss


class NetWithSpare(front.Net):
    """Net and a parameter that never gets a gradient."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(seed, dtype)
        self.spare = nn.Parameter(torch.full((3,), 2.0, dtype=dtype))


def compare(model: nn.Module, opt: Any, reference: ReferenceSSAM, dtype: torch.dtype) -> None:
    by_rows = any(group["scale"] in ROW_SCALES for group in opt.param_groups)
    tolerance = max(TOLERANCE[dtype], ROW_TOLERANCE if by_rows else 0.0)
    sums = opt._noise.scales.fisher_sums()
    for i, (p, w) in enumerate(zip(model.parameters(), reference.weights, strict=True)):
        torch.testing.assert_close(p.detach(), w, rtol=tolerance, atol=tolerance)
        buffer = opt.state.get(p, {}).get("momentum_buffer")
        assert (buffer is None) == (i not in reference.buffers)
        if i in reference.fisher:
            expected = reference.fisher[i].reshape(-1).float()
            torch.testing.assert_close(sums[p], expected, rtol=100 * tolerance, atol=0.0)
        if buffer is not None:
            torch.testing.assert_close(buffer, reference.buffers[i], rtol=tolerance, atol=tolerance)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no noise": {"noise_std": 0.0},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.8, "dampening": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "weight decay": {"weight_decay": 0.1},
    "maximize": {"maximize": True, "lr": 0.01, "weight_decay": 0.1},
    "rademacher": {"distribution": "rademacher", "momentum": 0.5},
    "radius": {"radius": 3.0, "momentum": 0.9},
    "wide radius": {"radius": 1e6},
    "samples": {"samples": 3, "momentum": 0.9},
    "antithetic": {"antithetic": True, "momentum": 0.9},
    "clean weight": {"clean_weight": 0.3},
    "tensor": {"scale": "tensor", "noise_std": 0.05, "momentum": 0.9},
    "filter": {"scale": "filter", "noise_std": 0.1, "momentum": 0.9},
    "filter, rademacher and radius": {"scale": "filter", "distribution": "rademacher", "radius": 3.0},
    "filter, several passes": {"scale": "filter", "samples": 2, "antithetic": True, "clean_weight": 0.25},
    "element": {"scale": "element", "noise_std": 0.3, "nesterov": True, "momentum": 0.9},
    "element, wide radius": {"scale": "element", "radius": 1e6, "weight_decay": 0.1},
    "element, antithetic": {"scale": "element", "antithetic": True},
    "fisher": {"scale": "fisher", "momentum": 0.9},
    "fisher, forgetting": {"scale": "fisher", "fisher_decay": 0.3, "fisher_factor": 50.0},
    "fisher, several passes": {"scale": "fisher", "samples": 2, "clean_weight": 0.5, "fisher_factor": 5.0},
    "filter, columns": {"scale": "filter", "noise_std": 0.1, "momentum": 0.9, "channel_dim": 1},
    "absmax, columns": {"scale": "absmax", "noise_std": 0.1, "channel_dim": 1, "weight_clip": 1.3},
    "fisher, columns": {"scale": "fisher", "channel_dim": 1, "fisher_factor": 5.0},
    "tensor, columns": {"scale": "tensor", "noise_std": 0.05, "channel_dim": 1},
    "clip": {"weight_clip": 1.2, "momentum": 0.9},
    "clip and radius": {"weight_clip": 1.5, "radius": 3.0},
    "clip, columns": {"weight_clip": 1.2, "channel_dim": 1, "momentum": 0.9, "nesterov": True},
    "clip, absmax": {"weight_clip": 1.2, "scale": "absmax", "noise_std": 0.1, "momentum": 0.9},
    "clip, filter": {"weight_clip": 1.2, "scale": "filter", "noise_std": 0.1},
    "clip, tensor_absmax": {"weight_clip": 1.2, "scale": "tensor_absmax", "noise_std": 0.1, "radius": 3.0},
    "clip, element and rademacher": {"weight_clip": 1.2, "scale": "element", "distribution": "rademacher"},
    "all at once": {
        "weight_clip": 1.3,
        "momentum": 0.9,
        "dampening": 0.1,
        "weight_decay": 0.05,
        "distribution": "rademacher",
        "radius": 4.0,
        "samples": 2,
        "antithetic": True,
        "clean_weight": 0.25,
    },
}


def ways(options: dict[str, Any]) -> list[str]:
    one_pass = not any(name in options for name in COMMON)
    return ["closure", "perturbations", *(["perturb", "kept"] if one_pass else [])]


@pytest.mark.filterwarnings("ignore:weight_clip=")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("case", "way"), [(case, way) for case, options in CASES.items() for way in ways(options)]
)
def test_every_option_follows_the_reference_in_every_way_of_driving(
    case: str, way: str, dtype: torch.dtype
) -> None:
    options = {"lr": 0.1, "noise_std": 0.2, **CASES[case]}
    model = NetWithSpare(dtype=dtype)
    common = {name: value for name, value in options.items() if name in COMMON}
    group = {name: value for name, value in options.items() if name not in COMMON}
    reference = ReferenceSSAM(list(model.parameters()), [{**group, "places": range(5)}], 11, **common)
    opt = torch_ssam.SSAM(model.parameters(), **options, seed=11, keep_perturbed=way == "kept")
    opt.train()
    for x, y in front.batches(5, dtype=dtype):
        reference.step(functional_loss(x, y))
        drive = front.by_stock_loop if way == "kept" else front.ONE_PASS[way]
        drive(opt, model, [(x, y)])
    opt.eval()
    compare(model, opt, reference, dtype)
    if options["lr"] > 0:
        assert not any(
            torch.equal(p, q)
            for p, q in zip(
                list(model.parameters())[:4], NetWithSpare(dtype=dtype).parameters(), strict=False
            )
        )


@pytest.mark.parametrize("noise_scale", list(SCALES))
@pytest.mark.parametrize("way", ["closure", "perturbations", "perturb", "kept"])
def test_groups_with_different_options_and_frozen_parameters_follow_the_reference(
    way: str, noise_scale: str
) -> None:
    model = NetWithSpare(dtype=torch.float64)
    first, bias, second, scale, spare = model.parameters()
    bias.requires_grad_(False)
    groups = [
        {"lr": 0.1, "noise_std": 0.4, "momentum": 0.9, "nesterov": True},
        {"lr": 0.02, "noise_std": 0.0, "weight_decay": 0.3, "radius": 1.5},
        {
            "lr": 0.05,
            "noise_std": 0.1,
            "scale": noise_scale,
            "momentum": 0.5,
            "dampening": 0.5,
            "fisher_factor": 9.0,
        },
    ]
    members = [[first, bias], [second], [scale, spare]]
    places = [[0, 1], [2], [3, 4]]
    reference = ReferenceSSAM(
        list(model.parameters()),
        [{**g, "places": i} for g, i in zip(groups, places, strict=True)],
        5,
        frozen=frozenset([1]),
    )
    opt = torch_ssam.SSAM(
        [{**g, "params": p} for g, p in zip(groups, members, strict=True)],
        seed=5,
        keep_perturbed=way == "kept",
    )
    opt.train()
    drive = front.by_stock_loop if way == "kept" else front.ONE_PASS[way]
    for x, y in front.batches(4, dtype=torch.float64):
        reference.step(functional_loss(x, y))
        drive(opt, model, [(x, y)])
    opt.eval()
    compare(model, opt, reference, torch.float64)
    assert front.same_bits([bias], [NetWithSpare(dtype=torch.float64).bias])


def test_the_closure_form_returns_the_weighted_mean_loss() -> None:
    options: dict[str, Any] = {"samples": 2, "antithetic": True, "clean_weight": 0.4}
    model = NetWithSpare(dtype=torch.float64)
    reference = ReferenceSSAM(
        list(model.parameters()), [{"lr": 0.1, "noise_std": 0.5, "places": range(5)}], 3, **options
    )
    opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.5, seed=3, **options)
    x, y = front.data(dtype=torch.float64)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = front.loss_of(model, x, y)
        loss.backward()
        return loss

    assert float(opt.step(closure)) == pytest.approx(reference.step(functional_loss(x, y)), rel=1e-12)


@pytest.mark.parametrize("rows", [12, 13, 11, 5])
@pytest.mark.parametrize("clean_weight", [0.0, 0.3])
def test_split_batches_weigh_each_pass_by_its_share_of_the_examples(rows: int, clean_weight: float) -> None:
    options: dict[str, Any] = {"samples": 2, "antithetic": True, "clean_weight": clean_weight}
    model = front.Net(dtype=torch.float64)
    reference = ReferenceSSAM(
        list(model.parameters()), [{"lr": 0.1, "noise_std": 0.5, "places": range(4)}], 3, **options
    )
    opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.5, seed=3, **options)
    x, y = front.data(rows, dtype=torch.float64)
    seen = []
    for x_k, y_k in opt.perturbations(x, y):
        seen.append((x_k, y_k))
        front.loss_of(model, x_k, y_k).backward()
    sizes = [len(x_k) for x_k, _ in seen]
    assert len(sizes) == (4 if clean_weight == 0.0 else 5)
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.cat([x_k for x_k, _ in seen]), x)
    assert torch.equal(torch.cat([y_k for _, y_k in seen]), y)
    gradients, _ = reference.gradient(
        [functional_loss(x_k, y_k) for x_k, y_k in seen], [float(size) for size in sizes]
    )
    for p, g in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-12)


# -- torch.optim.SGD ---------------------------------------------------------------------------------------

SGD_CASES: list[dict[str, Any]] = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.05},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.05},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    {"lr": 0.1, "momentum": 0.9, "maximize": True, "weight_decay": 0.05},
    {"lr": 0.0, "momentum": 0.9},
]
SIZES = [0, 1, 7, 8, 15, 16, 17, 31, 33, 65, 4097]


def ulps(ours: Tensor, theirs: Tensor, scale: Tensor) -> float:
    """Largest difference in units in the last place of numbers of size `scale`."""
    if ours.numel() == 0:
        return 0.0
    info = torch.finfo(ours.dtype)
    exponent = torch.frexp(scale.double().clamp(min=info.tiny)).exponent
    unit = info.eps * torch.exp2((exponent - 1).double())
    return float(((ours.double() - theirs.double()).abs() / unit).max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("options", SGD_CASES, ids=str)
@pytest.mark.parametrize("kept", [False, True])
def test_without_noise_a_step_is_within_2_ulp_of_sgd(
    options: dict[str, Any], dtype: torch.dtype, kept: bool
) -> None:
    generator = torch.Generator().manual_seed(1)

    def values() -> list[Tensor]:
        return [torch.randn(n, generator=generator, dtype=torch.float64).to(dtype) + 3 for n in SIZES]

    ours = [nn.Parameter(v) for v in values()]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    opt = torch_ssam.SSAM(ours, noise_std=0.0, keep_perturbed=kept, **options)
    sgd = torch.optim.SGD(theirs, foreach=False, fused=False, **options)
    opt.train()
    for _ in range(4):
        before = front.snapshot(ours)
        old_buffers = [opt.state[p]["momentum_buffer"].clone() if p in opt.state else None for p in ours]
        for p, q, g in zip(ours, theirs, values(), strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        opt.step()
        sgd.step()
        for p, q, w, v in zip(ours, theirs, before, old_buffers, strict=True):
            if options.get("momentum"):
                mine, other = opt.state[p]["momentum_buffer"], sgd.state[q]["momentum_buffer"]
                size = other.abs() + (0 if v is None else v.abs())
                assert ulps(mine, other, size) <= 2
                other.copy_(mine)  # every step is compared from the same start
            assert ulps(p.detach(), q.detach(), w.abs() + q.detach().abs()) <= 2
            assert options["lr"] == 0.0 or p.numel() == 0 or bool((p != w).all())
            q.data.copy_(p.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_weights_follow_float32_arithmetic_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    w = torch.randn(4097, generator=generator).to(dtype)
    g = torch.randn(4097, generator=generator).to(dtype)
    p = nn.Parameter(w.clone())
    p.grad = g.clone()
    torch_ssam.SSAM([p], lr=0.1, noise_std=0.0).step()
    exact = w.double() - torch.tensor(0.1, dtype=torch.float32).double() * g.double()
    assert ulps(p.detach(), exact, exact.abs()) <= 0.5 + 1e-3


def test_a_frozen_parameter_with_a_gradient_is_updated_as_sgd_does() -> None:
    for kept in (False, True):
        p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        other = nn.Parameter(torch.ones(2))
        opt = torch_ssam.SSAM([p, other], lr=0.1, noise_std=0.2, momentum=0.9, keep_perturbed=kept)
        sgd = torch.optim.SGD([q], lr=0.1, momentum=0.9)
        opt.train()
        p.requires_grad_(False)
        q.requires_grad_(False)
        with opt.perturb() if not kept else torch.enable_grad():
            p.grad, q.grad, other.grad = torch.ones(3), torch.ones(3), torch.ones(2)
        opt.step()
        sgd.step()
        opt.eval()
        torch.testing.assert_close(p, q)


def test_tensor_lr_trains_as_a_number_and_may_change_in_place() -> None:
    runs = []
    for lr in (
        0.05,
        torch.tensor(0.05),
        torch.tensor([0.05], dtype=torch.float64),
        torch.tensor(0.05).bfloat16(),
    ):
        model = front.Net(dtype=torch.float64)
        opt = front.ssam(model, lr=lr)
        front.by_perturb(opt, model, front.batches(2, dtype=torch.float64))
        for group in opt.param_groups:
            if isinstance(lr, Tensor):
                group["lr"].mul_(0.5)
            else:
                group["lr"] *= 0.5
        front.by_perturb(opt, model, front.batches(2, dtype=torch.float64))
        runs.append(front.snapshot(model))
    for a, b, c, d in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a, d, rtol=5e-2, atol=5e-2)
