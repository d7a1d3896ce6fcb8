"""Parameters that another library holds in pieces are refused before anything is drawn or written: the first FSDP for real, on
one gloo rank and on two, made before and after the optimizer; DeepSpeed by a stand-in that does to parameters and groups what
DeepSpeed 0.19.8 was seen to do.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import front_helpers as front
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import Tensor, nn

import torch_ssam
from torch_ssam.optim.frameworks import noise_optimizers

MAKERS: dict[str, Callable[..., Any]] = {
    "ssam": front.ssam,
    "adamw": front.adamw,
    "wrap": front.wrapped_adamw,
}


@pytest.mark.parametrize("world", [1, 2])
def test_the_first_fsdp_is_refused(world: int, tmp_path: Path) -> None:
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("NOT TESTED here: this PyTorch has no gloo")
    run_ranks("fsdp1_program.py", world, str(tmp_path))
    for rank in range(world):
        assert (tmp_path / f"rank{rank}").read_text() == "refused 18"


# -- DeepSpeed -----------------------------------------------------------------------------------------------


class ZeroOptimizer:
    """What DeepSpeedZeroOptimizer (stages 1 and 2) does to the optimizer that it is given: one flat float32 tensor of this
    rank's piece in each group. BF16_Optimizer and FP16_Optimizer do the same."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            flat = torch.cat([p.detach().flatten().float() for p in group["params"]]).requires_grad_()
            for p in group["params"]:
                p._hp_mapping = object()
            group["params"] = [flat]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        self.optimizer.step()


ZeroOptimizer.__module__ = "deepspeed.runtime.zero.stage_1_and_2"


@pytest.fixture
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("use", ["step", "train or perturb", "closure", "attach"])
def test_an_optimizer_whose_groups_deepspeed_has_filled_is_refused_at_each_use(
    use: str, kind: str, kept: bool, deepspeed: None
) -> None:
    model = front.Net()
    opt = MAKERS[kind](model, keep_perturbed=kept)
    engine = ZeroOptimizer(opt)
    before = front.snapshot(engine.param_groups[0]["params"])
    uses: dict[str, Callable[[], Any]] = {
        "step": engine.step,
        "train or perturb": opt.train if kept else lambda: opt.perturb().__enter__(),
        "closure": lambda: opt.step(lambda: 0.0),
        "attach": lambda: opt.attach(model),
    }
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"tensor 0 of the group, of shape \(64,\), is none of the parameters"
        ):
            uses[use]()
    assert front.same_bits(engine.param_groups[0]["params"], before)
    assert not opt._noise.active


def test_weights_that_were_noisy_when_deepspeed_came_can_be_made_clean(deepspeed: None) -> None:
    model = front.Net()
    clean = front.snapshot(model)
    opt = front.ssam(model, keep_perturbed=True)
    opt.train()
    engine = ZeroOptimizer(opt)
    with pytest.raises(ValueError, match=r"deepspeed\.initialize\(\) has replaced them"):
        engine.step()
    opt.eval()
    assert front.same_bits(front.snapshot(model), clean)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("mark", "value", "message"),
    [("ds_id", 0, "ZeRO stage 3"), ("_hp_mapping", object(), "ZeRO stage 1 or 2, or 16 bits")],
)
def test_parameters_that_deepspeed_holds_are_refused(mark: str, value: Any, message: str, kind: str) -> None:
    for marked in ("before", "after"):
        model = front.Net()
        opt = MAKERS[kind](model) if marked == "after" else None
        setattr(model.bias, mark, value)
        with pytest.raises(ValueError, match=f"parameter 1 of the group .*{message}.*fully_shard"):
            MAKERS[kind](model) if opt is None else opt.perturb().__enter__()
    with pytest.raises(ValueError, match=message):
        torch_ssam.WeightNoise(model.parameters(), 0.1)


def test_what_deepspeed_has_let_go_is_trained_again() -> None:
    model = front.Net()
    model.bias._hp_mapping = None  # as its destroy() leaves it
    front.by_perturb(front.ssam(model), model, front.batches(1))


def test_wrap_refuses_deepspeed_s_own_optimizer() -> None:
    engine = ZeroOptimizer(torch.optim.SGD(front.Net().parameters(), lr=0.1))
    shell = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    shell.optimizer = engine  # type: ignore[attr-defined]  # as Accelerate's DeepSpeedOptimizerWrapper
    for given in (engine, shell):
        with pytest.raises(TypeError, match=r"wrap\(\) got ZeroOptimizer of deepspeed\.runtime.*fully_shard"):
            torch_ssam.wrap(given)  # type: ignore[arg-type]


def test_callbacks_find_an_optimizer_inside_of_two_others() -> None:
    opt = front.ssam(front.Net())
    inner = types.SimpleNamespace(optimizer=opt)
    assert noise_optimizers([types.SimpleNamespace(optimizer=inner), opt, object()]) == [opt, opt]


@pytest.mark.parametrize("kind", MAKERS)
def test_plain_tensors_of_one_s_own_are_trained_beside_deepspeed(kind: str, deepspeed: None) -> None:
    """A program may import DeepSpeed, as transformers does, and optimize tensors that are no Parameters, also replaced ones."""
    w = torch.ones(5, requires_grad=True)
    model: Any = types.SimpleNamespace(parameters=lambda: [w])
    opt = MAKERS[kind](model)
    for _ in range(2):
        with opt.perturb():
            opt.param_groups[0]["params"][0].square().sum().backward()
        opt.step()
        opt.param_groups[0]["params"] = [torch.ones(4, requires_grad=True)]
    assert opt.draw == 2
    assert not bool((w == 1).any())


@pytest.mark.parametrize("kind", MAKERS)
def test_parameters_replaced_by_parameters_are_trained_beside_deepspeed(kind: str, deepspeed: None) -> None:
    model = front.Net()
    opt = MAKERS[kind](model)
    front.by_perturb(opt, model, front.batches(1))
    w = nn.Parameter(torch.ones(4))
    opt.param_groups[0]["params"] = [w]
    with opt.perturb():
        w.square().sum().backward()
    opt.step()
    assert not bool((w == 1).any())


# -- nothing to train ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("kind", MAKERS)
def test_steps_that_no_parameter_has_a_gradient_for_are_named_once(
    kind: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first FSDP without use_orig_params leaves an optimizer made before it with parameters that no model has."""
    monkeypatch.setattr(torch_ssam.optim.base, "in_process_group", lambda: True)
    model = front.Net()
    opt = MAKERS[kind](model, keep_perturbed=kept)
    opt.train()

    def step() -> None:
        if not kept:
            with opt.perturb():
                pass
        opt.step()

    with pytest.warns(UserWarning, match="no parameter of the optimizer has a gradient"):
        step()
    step()  # warnings are errors here


def test_steps_with_a_gradient_somewhere_are_not_named() -> None:
    w, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    opt = torch_ssam.SSAM([other, w], lr=0.1)
    for _ in range(2):
        with opt.perturb():
            loss: Tensor = w.sum()
            loss.backward()
        opt.step()
    assert torch.equal(other, torch.ones(2))
