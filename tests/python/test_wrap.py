"""wrap: any torch optimizer with its gradients taken at perturbed weights, as if one optimizer. The reference
takes the gradient at a separate, perturbed copy of the model and hands it to the plain base. Rows of test_peers.py:
5, 13 and 14.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn

import torch_ssam


class Lion(torch.optim.Optimizer):
    """Sign of an interpolated momentum (arXiv 2302.06675), without weight decay."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.sub_(momentum.lerp(p.grad, 1 - first).sign(), alpha=group["lr"])
                momentum.lerp_(p.grad, 1 - second)


BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.02),
    "AdamW foreach amsgrad": lambda params: torch.optim.AdamW(params, lr=0.02, amsgrad=True, foreach=True),
    "Adam fused": lambda params: torch.optim.Adam(params, lr=0.02, fused=True),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.05),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=0.01, momentum=0.5),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True),
    "Lion": lambda params: Lion(params, lr=0.01),
    "Rprop": lambda params: torch.optim.Rprop(params, lr=0.01),
}


def reference(base_name: str, steps: int) -> list[Tensor]:
    model, noisy = front.Net(), front.Net()
    base = BASES[base_name](model.parameters())
    for draw, (x, y) in enumerate(front.batches(steps)):
        with torch.no_grad():
            for place, (p, q) in enumerate(zip(model.parameters(), noisy.parameters(), strict=True)):
                q.copy_(front.expected_noise(p, 7, draw, place, 0.3))
        noisy.zero_grad()
        front.loss_of(noisy, x, y).backward()
        for p, q in zip(model.parameters(), noisy.parameters(), strict=True):
            p.grad = q.grad
        base.step()
    return [*front.snapshot(model), *front.optimizer_bits(base)]


@pytest.mark.parametrize("base_name", sorted(BASES))
@pytest.mark.parametrize("way", [*sorted(front.ONE_PASS), "kept"])
def test_every_base_and_way_of_driving_follows_the_plain_base_on_noisy_gradients(
    base_name: str, way: str
) -> None:
    model = front.Net()
    opt = torch_ssam.wrap(BASES[base_name](model.parameters()), 0.3, seed=7, keep_perturbed=way == "kept")
    opt.train()
    (front.by_stock_loop if way == "kept" else front.ONE_PASS[way])(opt, model, front.batches(4))
    opt.eval()
    assert front.same_bits([*front.snapshot(model), *front.optimizer_bits(opt)], reference(base_name, 4))


def test_groups_and_state_are_the_base_s_own() -> None:
    model = front.Net()
    base = torch.optim.AdamW(model.parameters(), lr=0.1)
    opt = torch_ssam.wrap(base, 0.3)
    assert isinstance(opt, torch.optim.Optimizer)
    assert opt.param_groups is base.param_groups
    assert opt.state is base.state
    assert opt.defaults is base.defaults
    assert base.param_groups[0]["noise_std"] == 0.3
    assert opt.base is base
    assert repr(opt).startswith("wrap(AdamW")


@pytest.mark.parametrize("on", ["wrapper", "base"])
def test_a_scheduler_may_hold_either_of_the_two(on: str, recwarn: pytest.WarningsRecorder) -> None:
    model = front.Net()
    base = torch.optim.AdamW(model.parameters(), lr=0.1)
    opt = torch_ssam.wrap(base, 0.3, seed=7)
    scheduler = torch.optim.lr_scheduler.StepLR(opt if on == "wrapper" else base, 1, gamma=0.5)
    for _ in range(3):
        front.by_perturb(opt, model, front.batches(1))
        scheduler.step()
    assert opt.param_groups[0]["lr"] == base.param_groups[0]["lr"] == 0.0125
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


def test_one_cycle_moves_momentum_and_noise_schedules_see_the_groups() -> None:
    model = front.Net()
    opt = torch_ssam.wrap(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 0.2)
    cycle = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=10)
    noise = torch_ssam.schedules.LambdaNoiseStd(opt, lambda k: 1.0 / (k + 1))
    front.by_perturb(opt, model, front.batches(1))
    cycle.step()
    noise.step()
    assert opt.base.param_groups[0]["noise_std"] == 0.1


def test_the_noise_options_may_differ_by_group_of_the_base() -> None:
    model = front.Net()
    first, *rest = model.parameters()
    base = torch.optim.AdamW([{"params": [first], "noise_std": 0.0}, {"params": rest}], lr=0.1)
    opt = torch_ssam.wrap(base, 0.3, seed=7)
    clean, expected = front.snapshot(model), list(front.perturbed_copies(opt))
    with opt.perturb():
        assert front.same_bits(model.parameters(), expected)
        assert front.same_bits([first], clean[:1])


@pytest.mark.parametrize("through", ["wrapper", "base"])
def test_a_group_added_through_either_is_perturbed(through: str) -> None:
    model = front.Net()
    first, *rest = model.parameters()
    base = torch.optim.AdamW([first], lr=0.1)
    opt = torch_ssam.wrap(base, 0.3, seed=7)
    (opt if through == "wrapper" else base).add_param_group({"params": rest})
    expected = list(front.perturbed_copies(opt))
    with opt.perturb():
        assert front.same_bits(model.parameters(), expected)
        front.loss_of(model, *front.data()).backward()
    opt.step()


def test_hooks_of_both_run_around_a_step() -> None:
    model = front.Net()
    base = torch.optim.AdamW(model.parameters(), lr=0.1)
    opt = torch_ssam.wrap(base, 0.3)
    seen: list[str] = []
    opt.register_step_pre_hook(lambda *_: seen.append("wrapper before"))
    opt.register_step_post_hook(lambda *_: seen.append("wrapper after"))
    base.register_step_pre_hook(lambda *_: seen.append("base before"))
    base.register_step_post_hook(lambda *_: seen.append("base after"))
    opt.register_state_dict_pre_hook(lambda *_: seen.append("state"))
    opt.register_state_dict_post_hook(lambda *_: seen.append("state after"))
    front.by_perturb(opt, model, front.batches(1))
    opt.state_dict()
    assert seen == ["wrapper before", "base before", "base after", "wrapper after", "state", "state after"]


def test_copies_and_pickles_have_a_base_of_their_own() -> None:
    model = front.Net()
    opt = torch_ssam.wrap(torch.optim.AdamW(model.parameters(), lr=0.1), 0.3, seed=7)
    front.by_perturb(opt, model, front.batches(1))
    for other, twin in (copy.deepcopy((model, opt)), pickle.loads(pickle.dumps((model, opt)))):
        assert twin.base is not opt.base
        assert twin.param_groups is twin.base.param_groups
        assert twin.state is twin.base.state
        front.by_perturb(twin, other, front.batches(1))
        assert twin.draw == 2
    assert opt.draw == 1


class WithModes(torch.optim.SGD):
    """Like schedule_free's optimizers: refuses to step in eval, and moves the weights when its mode changes."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.mode, self.moves = "eval", 0

    def _move(self, factor: float) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(factor)

    def train(self) -> None:
        if self.mode == "eval":
            self._move(2.0)
        self.mode = "train"

    def eval(self) -> None:
        if self.mode == "train":
            self._move(0.5)
        self.mode = "eval"

    def step(self, closure: Any = None) -> Any:
        assert self.mode == "train"
        return super().step(closure)


@pytest.mark.parametrize("kept", [False, True])
def test_a_base_with_modes_of_its_own_has_them_switched_around_the_noise(kept: bool) -> None:
    model = front.Net()
    base = WithModes(model.parameters(), lr=0.0)
    opt = torch_ssam.wrap(base, 0.3, seed=7, keep_perturbed=kept)
    clean = front.snapshot(model)
    for _ in range(2):
        opt.train()
        opt.train()
        assert base.mode == "train"
        (front.by_stock_loop if kept else front.by_perturb)(opt, model, front.batches(2))
        opt.eval()
        opt.eval()
        assert base.mode == "eval"
        assert front.same_bits(model.parameters(), clean)


def test_loading_leaves_the_modes_of_the_base_alone() -> None:
    model = front.Net()
    base = WithModes(model.parameters(), lr=0.0)
    opt = torch_ssam.wrap(base, 0.3, keep_perturbed=True)
    opt.train()
    clean = [p * 2 for p in front.snapshot(front.Net())]
    opt.load_state_dict(opt.state_dict())
    assert base.mode == "train"
    opt.train()
    NoiseOff = opt.state_dict()["state"]
    assert front.same_bits([NoiseOff[k]["clean"] for k in sorted(NoiseOff)], clean)


def test_a_custom_optimizer_that_uses_p_grad_can_be_wrapped() -> None:
    class SignSGD(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.01})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(p.grad.sign(), alpha=group["lr"])

    model = front.Net()
    opt = torch_ssam.wrap(SignSGD(model.parameters()), 0.3)
    clean = front.snapshot(model)
    front.by_perturb(opt, model, front.batches(1))
    for p, w in zip(model.parameters(), clean, strict=True):
        torch.testing.assert_close((p - w).abs(), torch.full_like(p, 0.01))


def test_wrapping_anew_after_a_refusal_uses_the_new_options() -> None:
    model = nn.Linear(2, 2)
    base = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="noise_std"):
        torch_ssam.wrap(base, -1.0)
    assert "noise_std" not in base.param_groups[0]
    assert torch_ssam.wrap(base, 0.5).param_groups[0]["noise_std"] == 0.5


# -- schedule-free optimizers --------------------------------------------------------------------------------


def schedule_free(kind: str, params: Any) -> Any:
    package = pytest.importorskip(
        "schedulefree", reason="NOT TESTED here: wrap over schedule-free optimizers needs schedulefree"
    )
    return getattr(package, kind)(params, lr=0.05, foreach=False)


@pytest.mark.parametrize("kind", ["AdamWScheduleFree", "SGDScheduleFree"])
@pytest.mark.parametrize("way", ["perturb", "closure", "kept"])
def test_schedule_free_optimizers_follow_the_plain_base_on_noisy_gradients(kind: str, way: str) -> None:
    model, noisy, plain = front.Net(), front.Net(), front.Net()
    base = schedule_free(kind, plain.parameters())
    opt = torch_ssam.wrap(schedule_free(kind, model.parameters()), 0.3, seed=7, keep_perturbed=way == "kept")
    drive = front.by_stock_loop if way == "kept" else front.ONE_PASS[way]
    for epoch in range(2):
        base.train()
        opt.train()
        todo = front.batches(3)
        for k, (x, y) in enumerate(todo):
            with torch.no_grad():
                for place, (p, q) in enumerate(zip(plain.parameters(), noisy.parameters(), strict=True)):
                    q.copy_(front.expected_noise(p, 7, 3 * epoch + k, place, 0.3))
            noisy.zero_grad()
            front.loss_of(noisy, x, y).backward()
            for p, q in zip(plain.parameters(), noisy.parameters(), strict=True):
                p.grad = q.grad
            base.step()
        drive(opt, model, todo)
        base.eval()
        opt.eval()
        assert front.same_bits(
            [*front.snapshot(model), *front.optimizer_bits(opt)],
            [*front.snapshot(plain), *front.optimizer_bits(base)],
        )


@pytest.mark.parametrize("kept", [False, True])
def test_a_schedule_free_run_resumes_in_the_same_bits(kept: bool) -> None:
    def make(seed: int) -> tuple[nn.Module, Any]:
        model = front.Net(seed)
        base = schedule_free("AdamWScheduleFree", model.parameters())
        return model, torch_ssam.wrap(base, 0.3, seed=7, keep_perturbed=kept)

    drive = front.by_stock_loop if kept else front.by_perturb
    todo = front.batches(4)
    model, opt = make(0)
    opt.train()
    drive(opt, model, todo[:2])
    opt.eval()
    saved = copy.deepcopy([model.state_dict(), opt.state_dict()])
    other, resumed = make(5)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for one, its in ((opt, model), (resumed, other)):
        one.train()
        drive(one, its, todo[2:])
        one.eval()
    assert front.same_bits(model.parameters(), other.parameters())


@pytest.mark.parametrize(
    "ways", [{"samples": 4}, {"samples": 2, "antithetic": True}, {"clean_weight": 0.25}], ids=str
)
@pytest.mark.parametrize("by_closure", [False, True])
def test_sparse_gradients_are_means_over_the_passes(ways: dict[str, Any], by_closure: bool) -> None:
    """In place an uncoalesced gradient is scaled in a copy only."""
    model = nn.Embedding(5, 3, sparse=True)
    nn.init.zeros_(model.weight)
    opt = torch_ssam.wrap(torch.optim.SGD(model.parameters(), lr=1.0), noise_std=0.1, seed=0, **ways)

    def backward() -> Tensor:
        loss: Tensor = model(torch.tensor([0, 1, 1])).sum()
        loss.backward()
        return loss

    if by_closure:
        opt.step(backward)
    else:
        for _ in opt.perturbations():
            backward()
        opt.step()
    expected = torch.zeros(5, 3)
    expected[0], expected[1] = -1.0, -2.0
    torch.testing.assert_close(model.weight.detach(), expected)


class TwoModes(torch.optim.SGD):
    """SGD with the modes of a schedule-free optimizer, which refuses to step in eval."""

    mode = "eval"

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"

    def step(self, closure: Any = None) -> Any:
        if self.mode != "train":
            raise RuntimeError("step() in eval")
        return super().step(closure)


@pytest.mark.parametrize("kept", [False, True])
def test_clean_weights_puts_a_base_with_modes_back_into_its_mode(kept: bool) -> None:
    model = nn.Linear(3, 1)
    base = TwoModes(model.parameters(), lr=0.1)
    opt = torch_ssam.wrap(base, noise_std=0.1, keep_perturbed=kept)
    with opt.clean_weights():
        assert base.mode == "eval"
    assert base.mode == "eval"
    opt.train()
    with opt.clean_weights():
        assert base.mode == "eval"
    assert base.mode == "train"
    torch_ssam.update_bn([torch.ones(2, 3)], model, opt)
    again = pickle.loads(pickle.dumps(opt))
    with again.clean_weights():
        pass
    assert base.mode == again.base.mode == "train"
    if kept:
        model(torch.ones(2, 3)).sum().backward()
    else:
        with opt.perturb():
            model(torch.ones(2, 3)).sum().backward()
    opt.step()
    opt.eval()


def test_a_base_that_is_wrapped_again_takes_the_new_options() -> None:
    p, other = nn.Parameter(torch.zeros(1000)), nn.Parameter(torch.zeros(10))
    base = torch.optim.SGD([{"params": [p]}, {"params": [other], "noise_std": 0.5}], lr=0.1)
    torch_ssam.wrap(base, noise_std=0.01)
    again = torch_ssam.wrap(base, noise_std=1.0, distribution="rademacher", samples=3)
    assert [g["noise_std"] for g in again.param_groups] == [1.0, 0.5]
    assert {g["distribution"] for g in again.param_groups} == {"rademacher"}
    with pytest.raises(RuntimeError, match="the options ask for 3 a step"):
        again.perturb()
    third = torch_ssam.wrap(base, keep_perturbed=True)
    third.train()
    with pytest.raises(RuntimeError, match=r"perturbed by an earlier wrap\(\) of it; call eval"):
        torch_ssam.wrap(base)
    third.eval()
    last = torch_ssam.wrap(base, noise_std=0.125)
    assert not last._option("keep_perturbed")
    last.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    last.param_groups[0]["noise_std"] = 0.0625  # as a schedule does
    for first in (last, copy.deepcopy(last), pickle.loads(pickle.dumps(last))):
        other_base = first.base
        assert [g["noise_std"] for g in torch_ssam.wrap(other_base, noise_std=2.0).param_groups] == [
            2.0,
            0.5,
            2.0,
        ]
    assert not bool(p.any())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 3}, "option 'seed', under which checkpoints keep"),
        ({"draw": 3}, "option 'draw', under which checkpoints keep"),
        ({"scale": 0.25}, r"scale is 0\.25; expected one of .* It may be that parameter group 0 of the base"),
    ],
)
def test_options_of_the_base_with_our_names_are_refused(options: dict[str, Any], message: str) -> None:
    base = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(3))], **options}], lr=0.1)
    before = {**base.param_groups[0]}
    with pytest.raises((ValueError, TypeError), match=message):
        torch_ssam.wrap(base)
    assert base.param_groups[0] == before


def test_a_base_that_was_in_eval_stays_there_after_a_load() -> None:
    model = nn.Linear(3, 1)
    opt = torch_ssam.wrap(TwoModes(model.parameters(), lr=0.1), noise_std=0.1, keep_perturbed=True)
    saved = opt.state_dict()
    opt.train()
    opt.load_state_dict(saved)
    clean = front.snapshot(model)
    with opt.clean_weights():
        pass
    assert front.same_bits(model.parameters(), clean)
    assert not opt._training


def test_a_base_that_has_loaded_a_wrapped_checkpoint_is_wrapped_and_goes_on() -> None:
    model, again = front.Net(), front.Net()
    opt = torch_ssam.wrap(torch.optim.AdamW(model.parameters(), lr=0.1), noise_std=0.1, seed=7)
    front.by_perturb(opt, model, front.batches(2))
    base = torch.optim.AdamW(again.parameters(), lr=0.1)
    again.load_state_dict(model.state_dict())
    base.load_state_dict(copy.deepcopy(opt.state_dict()))
    resumed = torch_ssam.wrap(base)
    assert (resumed.seed, resumed.draw) == (7, 2)
    assert not {"seed", "draw"} & base.param_groups[0].keys()
    for one, its in ((opt, model), (resumed, again)):
        front.by_perturb(one, its, front.batches(2))
    assert front.same_bits(model.parameters(), again.parameters())
    base.load_state_dict(opt.state_dict())
    assert torch_ssam.wrap(base, seed=3).seed == 3


def test_the_fisher_sums_in_a_checkpoint_that_the_base_loaded_go_on() -> None:
    model, again = front.Net(), front.Net()
    options: dict[str, Any] = {"noise_std": 0.1, "scale": "fisher", "keep_perturbed": True, "seed": 7}
    opt = torch_ssam.wrap(torch.optim.AdamW(model.parameters(), lr=0.1), **options)
    opt.attach(model)
    opt.train()
    front.by_stock_loop(opt, model, front.batches(2))
    saved = copy.deepcopy(opt.state_dict())
    clean = opt.clean_state_dict(model)
    assert {"clean", "fisher", "exp_avg"} <= saved["state"][0].keys()
    base = torch.optim.AdamW(again.parameters(), lr=0.1)
    base.load_state_dict(saved)
    again.load_state_dict(clean)  # the checkpoint's clean weights stay out: the base may have trained since
    resumed = torch_ssam.wrap(base)
    assert not {"clean", "fisher"} & base.state[next(again.parameters())].keys()
    resumed.train()
    assert all(torch.equal(v, clean[k]) for k, v in resumed.clean_state_dict(again).items())
    for one, its in ((opt, model), (resumed, again)):
        front.by_stock_loop(one, its, front.batches(2))
        one.eval()
    assert front.same_bits(model.parameters(), again.parameters())


def test_a_base_that_keeps_state_under_a_name_of_ours_is_refused() -> None:
    p = nn.Parameter(torch.ones(3))
    base = torch.optim.SGD([p], lr=0.1)
    opt = torch_ssam.wrap(base, noise_std=0.1)
    base.state[p]["fisher"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"keeps 'fisher' in the state of parameter 0, .* Rename it"):
        opt.state_dict()
    with pytest.raises(ValueError, match="keeps 'fisher' in the state"):
        torch_ssam.wrap(base)


def test_a_gradient_may_be_sparse_in_one_pass_and_dense_in_another() -> None:
    model = nn.Embedding(5, 3, sparse=True)
    opt = torch_ssam.wrap(torch.optim.SGD(model.parameters(), lr=0.0), noise_std=0.1, samples=2)
    passes: list[int] = []

    def closure() -> Tensor:
        loss: Tensor = model(torch.tensor([0])).sum()
        if passes:
            loss = loss + model.weight.sum()
        passes.append(1)
        loss.backward()
        return loss

    opt.step(closure)
    expected = torch.full((5, 3), 0.5)
    expected[0] = 1.5
    assert model.weight.grad is not None
    torch.testing.assert_close(model.weight.grad, expected)
