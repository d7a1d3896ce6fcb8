"""The things people do in their loops, against a reference that takes the gradient at a separate noisy copy of the
model: automatic mixed precision with infs, bf16 autocast, accumulation with clipping, gradient checkpointing,
per-parameter hooks, functional_call, parametrizations, tied weights, groups added late. test_peers.py, rows 1, 2, 3, 12.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import torch_ssam

MAKERS: dict[str, Callable[..., Any]] = {"ssam": front.ssam, "wrap": front.wrapped_adamw}


def noisy_copy(opt: Any, model: nn.Module) -> nn.Module:
    """A copy of the model that holds the weights of the next pass."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for q, noisy in zip(other.parameters(), front.perturbed_copies(opt), strict=True):
            q.copy_(noisy)
    return other


# -- mixed precision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.parametrize("kept", [False, True])
def test_a_scaler_skips_infs_leaves_clean_weights_and_goes_on(kind: str, kept: bool) -> None:
    """The bits are those of the same loop without the skipped batches, with their draws counted or kept."""
    bad = {1, 2, 4}
    model = front.Net()
    opt = MAKERS[kind](model, keep_perturbed=kept)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    opt.train()
    for k, (x, y) in enumerate(front.batches(6)):
        opt.zero_grad()
        factor = float("inf") if k in bad else 1.0
        clean = list(opt.clean_state_dict(model).values())
        clean = front.snapshot(clean)
        if kept:
            scaler.scale(front.loss_of(model, x, y) * factor).backward()
        else:
            with opt.perturb():
                scaler.scale(front.loss_of(model, x, y) * factor).backward()
        scaler.step(opt)
        scaler.update()
        assert front.same_bits(opt.clean_state_dict(model).values(), clean) == (k in bad)
    opt.eval()
    assert scaler.get_scale() == 2.0**7
    assert opt.draw == (3 if kept else 6)

    other = front.Net()
    reference = MAKERS[kind](other)
    for k, batch in enumerate(front.batches(6)):
        if k in bad:
            if not kept:
                reference._noise.generator.advance()
            continue
        front.by_perturb(reference, other, [batch])
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_scaler_that_skips_every_step_leaves_the_bits_of_the_start() -> None:
    model = front.Net()
    opt = front.ssam(model)
    scaler = torch.amp.GradScaler("cpu")
    for x, y in front.batches(3):
        with opt.perturb():
            scaler.scale(front.loss_of(model, x, y) * float("nan")).backward()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
    assert front.same_bits(model.parameters(), front.Net().parameters())
    assert opt.draw == 3
    assert not opt.state


@pytest.mark.parametrize("kept", [False, True])
def test_bf16_autocast_sees_the_noisy_float32_weights(kept: bool) -> None:
    model = front.Net()
    opt = front.ssam(model, keep_perturbed=kept)
    reference = front.Net()
    twin = front.ssam(reference)
    opt.train()
    for x, y in front.batches(3):
        noisy = noisy_copy(twin, reference)
        with torch.autocast("cpu", torch.bfloat16):
            loss = front.loss_of(noisy, x, y)
        loss.backward()
        for p, q in zip(reference.parameters(), noisy.parameters(), strict=True):
            p.grad = q.grad
        twin._fresh = True
        twin._noise.generator.advance()
        twin.step()

        opt.zero_grad()
        if kept:
            with torch.autocast("cpu", torch.bfloat16):
                loss = front.loss_of(model, x, y)
            loss.backward()
        else:
            with opt.perturb():  # the autocast cache must not outlive the noise
                with torch.autocast("cpu", torch.bfloat16):
                    loss = front.loss_of(model, x, y)
                loss.backward()
        opt.step()
    opt.eval()
    assert front.same_bits(model.parameters(), reference.parameters())


@pytest.mark.parametrize("way", ["perturb", "perturbations", "closure", "kept"])
def test_one_autocast_around_several_passes_does_not_reuse_the_weights_of_the_first(way: str) -> None:
    """Autocast caches its casts of the weights until the outermost autocast block ends."""
    ends = []
    for cached in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        options: dict[str, Any] = {"kept": {"keep_perturbed": True}, "perturb": {}}.get(way, {"samples": 2})
        opt = torch_ssam.SSAM(model.parameters(), noise_std=0.5, seed=0, **options)
        opt.train()
        drive = front.by_stock_loop if way == "kept" else getattr(front, f"by_{way}")

        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            drive(opt, model, front.batches(3))
            clean = model(front.data()[0]).detach().float() if way != "kept" else torch.zeros(1)
        opt.eval()
        ends.append([*front.snapshot(model), clean])
    assert front.same_bits(*ends)


# -- accumulation, clipping, checkpointing, hooks ------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.parametrize("kept", [False, True])
def test_accumulating_and_clipping_acts_on_the_gradient_at_the_noisy_weights(kind: str, kept: bool) -> None:
    model, reference = front.Net(), front.Net()
    opt, twin = MAKERS[kind](model, keep_perturbed=kept), MAKERS[kind](reference)
    opt.train()
    todo = front.batches(6)
    for k in range(0, 6, 2):
        noisy = noisy_copy(twin, reference)
        for x, y in todo[k : k + 2]:
            (front.loss_of(noisy, x, y) / 2).backward()
        nn.utils.clip_grad_norm_(noisy.parameters(), 0.1)
        with twin.perturb():
            for p, q in zip(reference.parameters(), noisy.parameters(), strict=True):
                p.grad = q.grad
        twin.step()

        opt.zero_grad()
        if kept:
            for x, y in todo[k : k + 2]:
                (front.loss_of(model, x, y) / 2).backward()
        else:
            with opt.perturb():
                for x, y in todo[k : k + 2]:
                    (front.loss_of(model, x, y) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        opt.step()
    opt.eval()
    assert front.same_bits(model.parameters(), reference.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_gradient_checkpointing_recomputes_at_the_same_noisy_weights(reentrant: bool, kept: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    start = copy.deepcopy(model)
    ends = []
    for checkpointed in (True, False):
        net = copy.deepcopy(start)
        opt = front.ssam(net, keep_perturbed=kept)
        opt.train()
        for x, y in front.batches(3):
            opt.zero_grad()
            scope = opt.perturb() if not kept else torch.enable_grad()
            with scope:
                hidden = x.clone().requires_grad_()
                out = checkpoint(net, hidden, use_reentrant=reentrant) if checkpointed else net(hidden)
                (out - y).square().mean().backward()
            opt.step()
        opt.eval()
        ends.append(front.snapshot(net))
    assert front.same_bits(*ends)


def test_hooks_after_accumulation_see_the_gradient_and_the_noisy_weight() -> None:
    """register_post_accumulate_grad_hook: gradients handed on and freed as they come, a clip for each tensor."""
    model = front.Net()
    opt = front.ssam(model)
    expected = list(front.perturbed_copies(opt))
    seen: list[int] = []

    def hook(p: Tensor) -> None:
        k = next(i for i, q in enumerate(model.parameters()) if q is p)
        assert front.same_bits([p], [expected[k]])
        assert p.grad is not None
        p.grad.clamp_(-0.01, 0.01)
        seen.append(k)

    handles = [p.register_post_accumulate_grad_hook(hook) for p in model.parameters()]
    with opt.perturb():
        front.loss_of(model, *front.data()).backward()
    assert sorted(seen) == [0, 1, 2, 3]
    assert all(float(p.grad.abs().max()) <= 0.01 for p in model.parameters() if p.grad is not None)
    for handle in handles:
        handle.remove()
    opt.step()


def test_an_optimizer_a_parameter_may_step_in_its_hook_while_weights_are_kept_perturbed() -> None:
    """The optimizer-in-backward recipe of PyTorch, which frees each gradient at once."""
    ends = []
    for in_backward in (True, False):
        model = front.Net()
        opts = {
            p: torch_ssam.SSAM([p], lr=0.05, noise_std=0.3, momentum=0.9, seed=k, keep_perturbed=True)
            for k, p in enumerate(model.parameters())
        }

        def hook(p: Tensor, opts: dict[Tensor, Any] = opts) -> None:
            opts[p].step()
            opts[p].zero_grad()

        for p, opt in opts.items():
            opt.train()
            if in_backward:
                p.register_post_accumulate_grad_hook(hook)
        for x, y in front.batches(3):
            front.loss_of(model, x, y).backward()
            if not in_backward:
                for p in opts:
                    hook(p)
        for opt in opts.values():
            opt.eval()
        ends.append(front.snapshot(model))
    assert front.same_bits(*ends)


# -- functional_call, parametrizations, groups added late ----------------------------------------------------


@pytest.mark.parametrize("kept", [False, True])
def test_functional_call_and_torch_func_see_the_noisy_weights(kept: bool) -> None:
    model = front.Net()
    opt = front.ssam(model, keep_perturbed=kept)
    x, y = front.data()
    noisy = noisy_copy(opt, model)
    opt.train()

    def loss(weights: dict[str, Tensor]) -> Tensor:
        out: Tensor = torch.func.functional_call(model, weights, (x,))
        return (out - y).square().mean()

    expected = torch.func.grad(loss)(dict(noisy.named_parameters()))
    with torch.enable_grad() if kept else opt.perturb():
        grads = torch.func.grad(loss)(dict(model.named_parameters()))
        for name, p in model.named_parameters():
            p.grad = grads[name].detach()
    assert front.same_bits(grads.values(), expected.values())
    opt.step()


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrized_layers_are_perturbed_in_what_is_trained(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(getattr(parametrizations, kind)(nn.Linear(5, 5)), nn.Tanh(), nn.Linear(5, 3))
    opt = front.ssam(layer, lr=0.01, noise_std=0.1)
    clean = copy.deepcopy(layer.state_dict())
    effective = layer[0].weight.detach().clone()
    expected = list(front.perturbed_copies(opt))
    with opt.perturb():
        assert front.same_bits(layer.parameters(), expected)
        assert not torch.equal(layer[0].weight, effective)
        front.loss_of(layer, *front.data()).backward()
    for name, p in layer.named_parameters():
        assert front.same_bits([p], [clean[name]])
    opt.step()
    assert all(not torch.equal(p, clean[name]) for name, p in layer.named_parameters())
    if kind == "orthogonal":
        weight = layer[0].weight
        torch.testing.assert_close(weight @ weight.T, torch.eye(5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.parametrize("kept", [False, True])
def test_gradual_unfreezing_adds_groups_and_thaws_layers_on_the_way(kind: str, kept: bool) -> None:
    """A head first, then the body as a group of its own: the numbers of both forms agree, and all train."""
    torch.manual_seed(0)
    body, head = nn.Linear(5, 7), nn.Linear(7, 3)
    start = copy.deepcopy([body.state_dict(), head.state_dict()])
    model = nn.Sequential(body, nn.Tanh(), head)
    ends = []
    for form in (kept, False):
        body.load_state_dict(start[0])
        head.load_state_dict(start[1])
        body.requires_grad_(False)
        opt = MAKERS[kind](head, keep_perturbed=form)
        drive = front.by_stock_loop if form else front.by_perturb
        opt.train()
        drive(opt, model, front.batches(2))
        assert front.same_bits(body.parameters(), start[0].values())
        body.requires_grad_(True)
        opt.add_param_group({"params": list(body.parameters()), "lr": 0.01, "noise_std": 0.05})
        drive(opt, model, front.batches(4)[2:])
        opt.eval()
        assert opt.draw == 4
        ends.append(front.snapshot(model))
        assert not front.same_bits(body.parameters(), start[0].values())
    assert front.same_bits(*ends)


def test_lazy_modules_are_perturbed_once_they_have_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(7), nn.Tanh(), nn.LazyLinear(3))
    model(front.data()[0])
    opt = front.ssam(model)
    expected = list(front.perturbed_copies(opt))
    with opt.perturb():
        assert front.same_bits(model.parameters(), expected)
    with pytest.raises(ValueError, match=r"uninitialized|expected"):
        front.ssam(nn.LazyLinear(3))


# -- distributed checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("scale", ["isotropic", "fisher"])
def test_torch_distributed_checkpoint_resumes_in_the_same_bits(
    kind: str, kept: bool, scale: str, tmp_path: Any
) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    drive = front.by_stock_loop if kept else front.by_perturb
    todo = front.batches(5)
    model = front.Net()
    opt = MAKERS[kind](model, keep_perturbed=kept, scale=scale)
    opt.attach(model)
    opt.train()
    drive(opt, model, todo[:3])
    opt.eval()
    weights, state = get_state_dict(model, opt)
    dcp.save({"model": weights, "opt": state}, checkpoint_id=str(tmp_path))
    opt.train()
    drive(opt, model, todo[3:])
    opt.eval()

    other = front.Net(seed=5)
    resumed = MAKERS[kind](other, keep_perturbed=kept, scale=scale, seed=99)
    weights, state = get_state_dict(other, resumed)
    loaded = {"model": weights, "opt": state}
    dcp.load(loaded, checkpoint_id=str(tmp_path))
    set_state_dict(other, resumed, model_state_dict=loaded["model"], optim_state_dict=loaded["opt"])
    assert (resumed.seed, resumed.draw) == (7, 3)
    resumed.train()
    drive(resumed, other, todo[3:])
    resumed.eval()
    assert front.same_bits(other.parameters(), model.parameters())
    assert front.same_bits(front.optimizer_bits(resumed), front.optimizer_bits(opt))


def test_a_whole_training_state_goes_through_one_file() -> None:
    """Model, optimizer, scaler, both kinds of scheduler and an average, in train with keep_perturbed."""

    def build(seed: int) -> dict[str, Any]:
        model = front.Net(seed)
        opt = front.ssam(model, keep_perturbed=True)
        opt.attach(model)
        return {
            "model": model,
            "opt": opt,
            "scaler": torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2),
            "lr": torch.optim.lr_scheduler.CosineAnnealingLR(opt, 6),
            "noise": torch_ssam.schedules.CosineNoiseStd(opt, 6, 0.1),
            "ema": torch.optim.swa_utils.AveragedModel(model),
        }

    def train(parts: dict[str, Any], todo: front.Batches) -> list[Tensor]:
        opt, model, scaler = parts["opt"], parts["model"], parts["scaler"]
        opt.train()
        for x, y in todo:
            opt.zero_grad()
            scaler.scale(front.loss_of(model, x, y)).backward()
            scaler.step(opt)
            scaler.update()
            parts["lr"].step()
            parts["noise"].step()
            with opt.clean_weights():
                parts["ema"].update_parameters(model)
        return front.snapshot([*opt.clean_state_dict(model).values(), *parts["ema"].parameters()])

    todo = front.batches(6)
    whole = build(0)
    train(whole, todo[:3])
    file = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in whole.items()}, file)
    expected = train(whole, todo[3:])
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    rest = build(9)
    for name in reversed(saved):
        rest[name].load_state_dict(saved[name])
    assert front.same_bits(train(rest, todo[3:]), expected)
