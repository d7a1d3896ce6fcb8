"""SSAMAdamW: against torch.optim.AdamW step by step and over 10,000 steps, checkpoints of either loaded into the other
in the middle of training, steps counted for each parameter, masters, and what it refuses. What it shares with SSAM
runs over both in the tests of SSAM. The operator: test_ops_adamw.py.
"""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from cases import random
from front_helpers import Net, batches, by_perturb, by_stock_loop, data, loss_of, same_bits, snapshot

import torch_ssam

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "decay": {"weight_decay": 0.3},
    "no_decay_large_eps": {"weight_decay": 0.0, "eps": 0.01},
    "short_memory": {"betas": (0.3, 0.7), "eps": 1e-3},
    "half": {"betas": (0.5, 0.95)},
    "no_memory": {"betas": (0.0, 0.0)},
    "long_memory": {"betas": (0.99, 0.9999)},
    "amsgrad": {"amsgrad": True},
    "ascent": {"maximize": True, "weight_decay": 0.1},
    "amsgrad_ascent": {"maximize": True, "amsgrad": True, "betas": (0.8, 0.9)},
    "tensor_lr": {"lr": torch.tensor(1e-3, dtype=torch.float64), "weight_decay": 0.3},
}


def plain(params: Any, **options: Any) -> torch_ssam.SSAMAdamW:
    return torch_ssam.SSAMAdamW(params, **{"noise_std": 0.0, **options})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", OPTIONS)
def test_each_step_is_within_2_ulp_of_torch_adamw(name: str, dtype: torch.dtype) -> None:
    options = {"lr": 1e-3, **OPTIONS[name]}
    lr = float(options["lr"])
    theirs = [torch.nn.Parameter(random(n, dtype, seed=n)) for n in (1, 17, 997)]
    ours = [torch.nn.Parameter(p.detach().clone()) for p in theirs]
    reference = torch.optim.AdamW(theirs, foreach=False, **options)
    opt = plain(ours, **options)
    for step in range(25):
        for a, b in zip(ours, theirs, strict=True):
            # Sizes over five decades, now and then nothing at all.
            scale = 10.0 ** -(step % 5) * (step % 7 != 3)
            b.grad = random(b.numel(), dtype, seed=100 + step) * scale
            a.grad = b.grad.clone()
        reference.step()
        opt.step()
        for a, b in zip(ours, theirs, strict=True):
            size = b.detach().abs().clamp(min=lr)
            assert bool(((a - b).abs() <= 2 * torch.finfo(dtype).eps * size).all()), step
        # Compare one step at a time.
        opt.load_state_dict(copy.deepcopy(reference.state_dict()))
        with torch.no_grad():
            for a, b in zip(ours, theirs, strict=True):
                a.copy_(b)


@pytest.mark.slow
def test_10000_steps_drift_from_torch_adamw_by_less_than_stated() -> None:
    # As a share of max(|w|, lr). Measured: 5.3e-7 in float32 and 1.2e-15 in float64, about 5 ulp.
    stated = {torch.float32: 2e-6, torch.float64: 5e-15}
    dtypes = (torch.float32, torch.float64)
    theirs = [torch.nn.Parameter(random(200, dtype, seed=1)) for dtype in dtypes * 2]
    ours = [torch.nn.Parameter(p.detach().clone()) for p in theirs]
    target, scale = random(200, torch.float64, seed=2), random(200, torch.float64, seed=3).abs()

    def groups(params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
        return [{"params": params[:2]}, {"params": params[2:], "amsgrad": True}]

    reference = torch.optim.AdamW(groups(theirs), lr=1e-3, weight_decay=0.1, foreach=False)
    opt = plain(groups(ours), lr=1e-3, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10_000):
        noise = torch.randn(200, generator=generator, dtype=torch.float64)
        for params, optimizer in ((theirs, reference), (ours, opt)):
            for p in params:
                p.grad = (scale * (p.detach() - target) + noise).to(p.dtype)
            optimizer.step()
    assert opt.state[ours[0]]["step"] == 10_000
    for a, b in zip(ours, theirs, strict=True):
        worst = float(((a - b).abs() / b.abs().clamp(min=1e-3)).detach().max())
        assert 0.0 < worst < stated[a.dtype]


def saved(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Through a file, as a checkpoint goes."""
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_training_changes_over_from_torch_adamw_and_back_in_the_middle(amsgrad: bool) -> None:
    todo = batches(12)
    options: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1, "amsgrad": amsgrad}
    model, whole = Net(), Net()
    by_stock_loop(torch.optim.AdamW(whole.parameters(), foreach=False, **options), whole, todo)
    first = torch.optim.AdamW(model.parameters(), foreach=False, **options)
    by_stock_loop(first, model, todo[:4])
    middle = plain(model.parameters(), lr=99.0)
    middle.load_state_dict(saved(first))
    assert [entry["step"] for entry in middle.state.values()] == [4] * 4
    assert middle.param_groups[0]["betas"] == (0.8, 0.95)
    by_stock_loop(middle, model, todo[4:8])
    state = saved(middle)
    for entry in state["state"].values():
        names = ["step", "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])]
        assert list(entry) == names
        torch.testing.assert_close(entry["step"], torch.tensor(8.0))  # dtype and shape too
    last = torch.optim.AdamW(model.parameters(), lr=99.0)
    last.load_state_dict(state)
    by_stock_loop(last, model, todo[8:])
    for p, expected in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-6)


def test_torch_checkpoints_with_steps_as_numbers_load() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    opt = plain([param])
    state = {"exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}
    for step in (5, 5.0, torch.tensor(5), torch.tensor([5.0], dtype=torch.float64)):
        groups = opt.state_dict()["param_groups"]
        opt.load_state_dict({"state": {0: {**state, "step": step}}, "param_groups": groups})
        assert opt.state[param]["step"] == 5
        assert type(opt.state[param]["step"]) is int


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}, "without step"),
        ({"step": torch.tensor(1.0)}, "without exp_avg, exp_avg_sq"),
        ({"momentum_buffer": torch.ones(3)}, r"got \['momentum_buffer'\] as the state of parameter 0"),
        ({"step": 1.5, "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}, "step of parameter 0 is 1.5"),
        ({"step": -1, "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}, "step of parameter 0 is -1"),
        ({"step": "1", "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}, "step of parameter 0 is '1'"),
        ({"step": 1, "exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(3)}, r"shape \(4,\) as 'exp_avg'"),
        ({"step": 1, "exp_avg": torch.ones(3), "exp_avg_sq": 2.0}, "a float as 'exp_avg_sq'"),
    ],
)
def test_state_that_is_not_adamws_is_refused_and_changes_nothing(entry: dict[str, Any], message: str) -> None:
    param = torch.nn.Parameter(torch.ones(3))
    opt = plain([param])
    param.grad = torch.ones(3)
    opt.step()
    before = copy.deepcopy(opt.state_dict())
    bad = {"state": {0: entry}, "param_groups": before["param_groups"]}
    with pytest.raises((TypeError, ValueError), match=message):
        opt.load_state_dict(bad)
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert same_bits(after["state"][0].values(), before["state"][0].values())


def test_a_checkpoint_of_adam_with_l2_penalty_is_refused() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    opt = plain([param])
    opt.load_state_dict(torch.optim.Adam([param]).state_dict())  # without penalty the two are one
    with pytest.raises(ValueError, match=r"weight_decay=0.1 with decoupled_weight_decay=False"):
        opt.load_state_dict(torch.optim.Adam([param], weight_decay=0.1).state_dict())


@pytest.mark.parametrize("keep_perturbed", [False, True])
def test_steps_are_counted_for_each_parameter_and_only_with_a_gradient(keep_perturbed: bool) -> None:
    a, b, c = (torch.nn.Parameter(random(5, torch.float32, seed=s)) for s in range(3))
    opt = torch_ssam.SSAMAdamW([a, b], noise_std=0.1, seed=0, keep_perturbed=keep_perturbed)
    clean = {p: p.detach().clone() for p in (a, b, c)}

    def step(*with_grad: torch.nn.Parameter) -> None:
        opt.zero_grad()
        if keep_perturbed:
            opt.train()
            for p in with_grad:
                p.grad = torch.ones(5)
        else:
            with opt.perturb():
                for p in with_grad:
                    p.grad = torch.ones(5)
        opt.step()

    step(a)
    step(a, b)
    b.requires_grad_(False)
    step(a)
    b.requires_grad_(True)
    opt.add_param_group({"params": [c], "lr": 0.5})
    step(a, b, c)
    opt.eval()
    assert [opt.state[p]["step"] for p in (a, b, c)] == [4, 2, 1]
    # Constant gradients: the corrected averages are 1 at any step, so that each step moves by lr, less the decay.
    for p, steps, lr in ((a, 4, 1e-3), (b, 2, 1e-3), (c, 1, 0.5)):
        expected = clean[p]
        for _ in range(steps):
            expected = expected * (1 - lr * 1e-2) - lr / (1 + 1e-8)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=1e-6)


def test_a_step_that_is_refused_leaves_no_state_behind() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    opt = plain([param])
    param.grad = torch.ones(3).to_sparse()
    with pytest.raises((ValueError, RuntimeError)):
        opt.step()
    assert param not in opt.state
    param.grad = torch.ones(3)
    opt.step()
    assert opt.state[param]["step"] == 1


def test_amsgrad_switched_on_later_keeps_averages_and_steps() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    opt = plain([param])
    for k in range(4):
        opt.param_groups[0]["amsgrad"] = k >= 2
        param.grad = torch.full((3,), 2.0 - k / 2)
        opt.step()
    state = opt.state[param]
    assert state["step"] == 4
    v = 0.0
    squares = []
    for k in range(4):
        v = 0.999 * v + 0.001 * (2.0 - k / 2) ** 2
        squares.append(v)
    torch.testing.assert_close(state["exp_avg_sq"], torch.full((3,), squares[3]))
    torch.testing.assert_close(state["max_exp_avg_sq"], torch.full((3,), max(squares[2:])))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_masters_are_what_float32_weights_would_be(dtype: torch.dtype, amsgrad: bool) -> None:
    small = torch.nn.Parameter(random(300, dtype, seed=1))
    wide = torch.nn.Parameter(small.detach().float())
    options: dict[str, Any] = {"lr": 1e-4, "amsgrad": amsgrad, "weight_decay": 0.1}
    opt = plain([small], master_dtype=torch.float32, **options)
    other = plain([wide], **options)
    for step in range(20):
        small.grad = random(300, dtype, seed=50 + step)
        wide.grad = small.grad.float()
        opt.step()
        other.step()
    state = opt.state_dict()["state"][0]
    assert same_bits([state["master"]], [wide])
    assert same_bits([small], [wide.detach().to(dtype)])
    assert state["exp_avg_sq"].dtype == torch.float32
    for name in ("exp_avg", "exp_avg_sq"):
        assert same_bits([state[name]], [other.state[wide][name]])


def test_a_checkpoint_of_torch_adamw_on_bfloat16_goes_on_with_masters() -> None:
    param = torch.nn.Parameter(random(50, torch.bfloat16, seed=1))
    theirs = torch.optim.AdamW([param])
    param.grad = random(50, torch.bfloat16, seed=2)
    theirs.step()
    opt = plain([param], master_dtype=torch.float32)
    opt.load_state_dict(theirs.state_dict())
    opt.step()
    assert opt.state[param]["step"] == 2
    assert {opt.state[param][name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.float32}


def test_noise_of_a_seed_is_that_of_ssam() -> None:
    model, twin = Net(), Net()
    opt = torch_ssam.SSAMAdamW(model.parameters(), noise_std=0.1, seed=3)
    ssam = torch_ssam.SSAM(twin.parameters(), noise_std=0.1, seed=3)
    for _ in range(2):
        with opt.perturb(), ssam.perturb():
            assert same_bits(snapshot(model), snapshot(twin))


def test_follows_wrapped_torch_adamw_with_the_same_noise() -> None:
    model, twin = Net(), Net()
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
    by_perturb(torch_ssam.SSAMAdamW(model.parameters(), noise_std=0.1, seed=3, **options), model, batches(5))
    base = torch.optim.AdamW(twin.parameters(), foreach=False, **options)
    by_perturb(torch_ssam.wrap(base, noise_std=0.1, seed=3), twin, batches(5))
    for p, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_of_wrapped_torch_adamw_goes_on_with_its_noise() -> None:
    model = Net()
    wrapped = torch_ssam.wrap(torch.optim.AdamW(model.parameters()), noise_std=0.1, seed=3)
    by_perturb(wrapped, model, batches(3))
    opt = torch_ssam.SSAMAdamW(model.parameters(), noise_std=0.5)
    opt.load_state_dict(saved(wrapped))
    assert (opt.seed, opt.draw, opt.param_groups[0]["noise_std"]) == (3, 3, 0.1)
    assert {entry["step"] for entry in opt.state.values()} == {3}


def test_capturing_a_cuda_graph_is_refused_before_anything_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for options in ({}, {"keep_perturbed": True, "noise_std": 0.1}):
        opt = plain([param], **options)
        opt.train()
        with pytest.raises(RuntimeError, match="SSAMAdamW while a CUDA graph is captured"):
            opt.step()
        assert same_bits([param], [torch.ones(3)])
        assert param not in opt.state


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"betas": 0.9}, TypeError, r"betas is 0.9; expected a pair of numbers"),
        ({"betas": (0.9,)}, TypeError, "expected a pair"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] is 1.0; expected 0 <= betas\[1\] < 1"),
        ({"betas": (-0.1, 0.9)}, ValueError, r"betas\[0\] is -0.1"),
        ({"betas": ("a", 0.9)}, TypeError, r"betas\[0\] is 'a'"),
        ({"eps": -1.0}, ValueError, "eps is -1.0"),
        ({"weight_decay": float("nan")}, ValueError, "weight_decay is nan"),
        ({"amsgrad": 1}, TypeError, "amsgrad is 1"),
        ({"lr": -1.0}, ValueError, "lr is -1.0"),
        ({"momentum": 0.9}, TypeError, "momentum"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        torch_ssam.SSAMAdamW([torch.nn.Parameter(torch.ones(3))], **options)


def test_options_without_names_are_told_apart_as_in_torch() -> None:
    with pytest.raises(TypeError, match=r"Was betas=\(0.9, 0.99\), eps=1e-06 meant"):
        torch_ssam.SSAMAdamW([torch.nn.Parameter(torch.ones(3))], 1e-3, (0.9, 0.99), 1e-6)  # type: ignore[misc]


def test_betas_of_numpy_become_plain_numbers_that_checkpoints_can_carry() -> None:
    numpy = pytest.importorskip("numpy")
    opt = torch_ssam.SSAMAdamW(Net().parameters(), betas=(numpy.float64(0.8), numpy.float32(0.5)))
    assert [type(beta) for beta in opt.param_groups[0]["betas"]] == [float, float]
    assert saved(opt)["param_groups"][0]["betas"] == (0.8, 0.5)


def test_a_list_of_betas_from_a_configuration_file_works() -> None:
    model, twin = Net(), Net()
    for net, betas in ((model, [0.8, 0.9]), (twin, (0.8, 0.9))):
        opt = torch_ssam.SSAMAdamW(net.parameters(), betas=betas, seed=0)  # type: ignore[arg-type]
        x, y = data()
        with opt.perturb():
            loss_of(net, x, y).backward()
        opt.step()
    assert same_bits(snapshot(model), snapshot(twin))
