"""keep_perturbed: a stock loop that ends in the bits of the perturb() form whatever happens along the way.
Every test drives the two forms through the same events and compares weights, state and draw. Rows of test_peers.py:
1, 2, 5, 9 and 10.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn

import torch_ssam

Event = Callable[[Any, nn.Module], None]


def run(
    kept: bool,
    events: dict[int, Event],
    steps: int = 6,
    make: Callable[..., Any] = front.ssam,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> list[Tensor]:
    """Trains; before step k, events[k](optimizer, model). Ends in weights, state and (seed, draw), all clean."""
    model = front.Net(dtype=dtype)
    opt = make(model, keep_perturbed=kept, **options)
    opt.train()
    for k, batch in enumerate(front.batches(steps, dtype=dtype)):
        if k in events:
            events[k](opt, model)
        (front.by_stock_loop if kept else front.by_perturb)(opt, model, [batch])
    opt.eval()
    return [
        *front.snapshot(model),
        *front.optimizer_bits(opt),
        torch.tensor([opt.seed, opt.draw], dtype=torch.int64),
    ]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.0},
    {"nesterov": True},
    {"dampening": 0.5, "maximize": True, "lr": 0.01},
    {"distribution": "rademacher"},
    {"radius": 3.0},
    {"lr": torch.tensor(0.05)},
    {"noise_std": 0.0},
]
ADAMW_OPTIONS: list[dict[str, Any]] = [
    {},
    {"amsgrad": True, "betas": (0.3, 0.7), "eps": 0.01},
    {"distribution": "rademacher", "maximize": True},
    {"radius": 3.0},
    {"lr": torch.tensor(0.05)},
]


@pytest.mark.parametrize(
    ("make", "options"),
    [*((front.ssam, options) for options in OPTIONS), *((front.adamw, options) for options in ADAMW_OPTIONS)],
    ids=front.case_name,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_stock_loop_ends_in_the_bits_of_the_perturb_form(
    make: Callable[..., Any], options: dict[str, Any], dtype: torch.dtype
) -> None:
    if dtype == torch.float16:
        options = {"lr": 0.001, **options}
    assert front.same_bits(*(run(kept, {}, make=make, dtype=dtype, **options) for kept in (True, False)))


def test_wrapped_optimizers_end_in_the_bits_of_the_perturb_form() -> None:
    assert front.same_bits(*(run(kept, {}, make=front.wrapped_adamw) for kept in (True, False)))


def set_option(name: str, value: Any) -> Event:
    def event(opt: Any, model: nn.Module) -> None:
        opt.param_groups[0][name] = value

    return event


def change_noise(value: float) -> Event:
    """A changed noise_std takes effect at the next step() or train()."""

    def event(opt: Any, model: nn.Module) -> None:
        if opt.param_groups[0]["keep_perturbed"]:
            opt.eval()
            opt.param_groups[0]["noise_std"] = value
            opt.train()
        else:
            opt.param_groups[0]["noise_std"] = value

    return event


def toggle(opt: Any, model: nn.Module) -> None:
    opt.eval()
    opt.train()
    opt.train()
    opt.train(False)
    opt.train(True)


def add_group(opt: Any, model: nn.Module) -> None:
    extra = nn.Parameter(torch.ones(3, dtype=model.scale.dtype))  # type: ignore[union-attr]
    model.extra = extra
    model.forward = lambda x, old=model.forward: old(x) + model.extra  # type: ignore[method-assign, operator]
    opt.add_param_group({"params": [extra], "noise_std": 0.2})


def freeze(opt: Any, model: nn.Module) -> None:
    model.first.requires_grad_(False)  # type: ignore[union-attr, operator]


def thaw(opt: Any, model: nn.Module) -> None:
    """A tensor thawed in train gets its noise at the next step() or train()."""
    model.first.requires_grad_(True)  # type: ignore[union-attr, operator]
    toggle(opt, model)


def refreeze(opt: Any, model: nn.Module) -> None:
    """A tensor frozen in train loses its noise at the next step(), eval() or train()."""
    opt.eval()
    freeze(opt, model)
    opt.train()


EVENTS: dict[str, dict[int, Event]] = {
    "eval and train": {1: toggle, 2: toggle, 4: toggle},
    "lr changes": {2: set_option("lr", 0.2), 4: set_option("lr", 0.0), 5: set_option("lr", 0.01)},
    "momentum off and on": {2: set_option("momentum", 0.0), 4: set_option("momentum", 0.7)},
    "noise changes": {2: change_noise(0.1), 4: change_noise(0.5)},
    "noise off and on": {2: change_noise(0.0), 4: change_noise(0.4)},
    "other distribution": {
        3: lambda opt, model: (
            opt.eval(),
            set_option("distribution", "rademacher")(opt, model),
            opt.train(),
            None,
        )[-1]
    },
    "group added": {3: add_group},
    "frozen and thawed": {2: refreeze, 4: thaw},
    "radius on": {3: set_option("radius", 2.0)},
}


SGD_ONLY = ("momentum off and on",)
OURS_ONLY = ("radius on",)


@pytest.mark.parametrize(
    ("name", "make"),
    [(name, front.ssam) for name in sorted(EVENTS)]
    + [(name, front.adamw) for name in sorted(EVENTS) if name not in SGD_ONLY]
    + [(name, front.wrapped_adamw) for name in sorted(EVENTS) if name not in SGD_ONLY + OURS_ONLY],
)
def test_the_two_forms_agree_through_changes_along_the_way(name: str, make: Callable[..., Any]) -> None:
    assert front.same_bits(*(run(kept, EVENTS[name], make=make) for kept in (True, False)))


def test_a_changed_noise_std_takes_effect_at_the_next_step() -> None:
    model = front.Net()
    opt = front.ssam(model, keep_perturbed=True)
    opt.train()
    for noise_std in (0.1, 0.0, 0.5):
        noisy = front.snapshot(model)
        opt.param_groups[0]["noise_std"] = noise_std
        assert front.same_bits(model.parameters(), noisy)
        front.by_stock_loop(opt, model, front.batches(1))
        noisy = front.snapshot(model)
        opt.eval()
        assert front.same_bits(noisy, front.perturbed_copies(opt))
        assert front.same_bits(noisy, front.snapshot(model)) == (noise_std == 0.0)
        opt.train()


def test_a_parameter_frozen_in_train_is_clean_after_the_next_step_and_one_thawed_is_noisy() -> None:
    model = front.Net()
    opt = front.ssam(model, keep_perturbed=True)
    clean = front.snapshot(model)
    opt.train()
    freeze(opt, model)
    front.by_stock_loop(opt, model, front.batches(1))
    assert front.same_bits([model.first], clean[:1])
    model.first.requires_grad_(True)
    front.by_stock_loop(opt, model, front.batches(1))
    noisy = front.snapshot(model)
    opt.eval()
    assert front.same_bits(noisy, front.perturbed_copies(opt))


def test_train_perturbs_with_the_draw_to_come_and_eval_puts_the_clean_bits_back() -> None:
    model = front.Net()
    opt = front.ssam(model, keep_perturbed=True)
    clean, expected = front.snapshot(model), list(front.perturbed_copies(opt))
    for _ in range(2):
        opt.train()
        assert front.same_bits(model.parameters(), expected)
        opt.eval()
        assert front.same_bits(model.parameters(), clean)
    assert opt.draw == 0


def test_a_group_added_in_train_is_perturbed_at_once() -> None:
    model = front.Net()
    opt = front.ssam(model, keep_perturbed=True)
    opt.train()
    extra = nn.Parameter(torch.ones(5))
    opt.add_param_group({"params": [extra]})
    assert front.same_bits([extra], [front.expected_noise(torch.ones(5), 7, 0, 4, 0.3)])
    opt.eval()
    assert front.same_bits([extra], [torch.ones(5)])


def test_a_parameter_without_a_gradient_still_gets_new_noise() -> None:
    used, spare = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    opt = torch_ssam.SSAM([used, spare], lr=0.1, noise_std=0.3, seed=7, keep_perturbed=True)
    opt.train()
    used.sum().backward()
    opt.step()
    assert front.same_bits([spare], [front.expected_noise(torch.ones(3), 7, 1, 1, 0.3)])
    opt.eval()
    assert front.same_bits([spare], [torch.ones(3)])


@pytest.mark.parametrize("make", [front.ssam, front.wrapped_adamw], ids=["ssam", "wrap"])
def test_step_before_train_is_refused_and_says_so(make: Callable[..., Any]) -> None:
    model = front.Net()
    opt = make(model, keep_perturbed=True)
    clean = front.snapshot(model)
    for event in (
        lambda: None,
        lambda: (opt.train(), opt.eval()),
        lambda: opt.load_state_dict(opt.state_dict()),
    ):
        event()
        front.loss_of(model, *front.data()).backward()
        with pytest.raises(RuntimeError, match=r"opt\.train\(\)"):
            opt.step()
        assert front.same_bits(model.parameters(), clean)
    with pytest.raises(RuntimeError, match="keep_perturbed=True"), opt.perturb():
        pass
    with pytest.raises(RuntimeError, match="keep_perturbed=True"):
        next(iter(opt.perturbations()))


def test_a_closure_in_train_runs_at_the_kept_perturbed_weights() -> None:
    assert front.same_bits(
        run(True, {}),
        _closures(),
    )


def _closures() -> list[Tensor]:
    model = front.Net()
    opt = front.ssam(model, keep_perturbed=True)
    opt.train()
    front.by_closure(opt, model, front.batches(6))
    opt.eval()
    return [*front.snapshot(model), *front.optimizer_bits(opt), torch.tensor([opt.seed, opt.draw])]


# -- checkpoints taken in train ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [front.ssam, front.wrapped_adamw], ids=["ssam", "wrap"])
@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("fresh", [True, False], ids=["new optimizer", "optimizer in train"])
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_state_dict_taken_in_train_loads_in_any_order(
    model_first: bool, fresh: bool, steps_before: int, make: Callable[..., Any], tmp_path: Any
) -> None:
    todo = front.batches(6)
    model = front.Net()
    opt = make(model, keep_perturbed=True)
    opt.train()
    front.by_stock_loop(opt, model, todo[:steps_before])
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, path)
    front.by_stock_loop(opt, model, todo[steps_before:])
    opt.eval()

    loaded = torch.load(path, weights_only=True)
    other = front.Net(seed=9)
    resumed = make(other, keep_perturbed=True)
    if not fresh:
        resumed.train()
        front.by_stock_loop(resumed, other, front.batches(2))
    for target in (other, resumed) if model_first else (resumed, other):
        target.load_state_dict(loaded["model" if target is other else "opt"])
    assert resumed.draw == steps_before
    resumed.train()
    front.by_stock_loop(resumed, other, todo[steps_before:])
    resumed.eval()
    assert front.same_bits(other.parameters(), model.parameters())
    assert front.same_bits(front.optimizer_bits(resumed), front.optimizer_bits(opt))


@pytest.mark.parametrize("first_call", ["eval", "train", "state_dict", "perturb", "step"])
def test_clean_weights_of_a_checkpoint_are_written_by_whatever_comes_first(first_call: str) -> None:
    model = front.Net()
    opt = front.ssam(model, keep_perturbed=True)
    clean = front.snapshot(model)
    opt.train()
    checkpoint = opt.state_dict()
    other = front.Net(seed=9)
    target = front.ssam(other, keep_perturbed=True)
    target.load_state_dict(checkpoint)
    other.load_state_dict(model.state_dict())  # perturbed ones, as a framework saves them
    if first_call == "state_dict":
        again = front.ssam(other, keep_perturbed=True)
        again.load_state_dict(target.state_dict())
        target = again
    if first_call in ("perturb", "step"):
        target.param_groups[0]["keep_perturbed"] = False
        with target.perturb() if first_call == "perturb" else torch.no_grad():
            pass
        if first_call == "step":
            with pytest.raises(RuntimeError):
                target.step()
    if first_call == "train":
        target.train()
    target.eval()
    assert front.same_bits(other.parameters(), clean)


def test_taking_a_state_dict_in_train_leaves_no_trace() -> None:
    model = front.Net()
    opt = front.ssam(model, keep_perturbed=True)
    opt.train()
    front.by_stock_loop(opt, model, front.batches(2))
    in_train = opt.state_dict()
    assert all("clean" in entry for entry in in_train["state"].values())
    opt.eval()
    after = opt.state_dict()
    assert not any("clean" in entry for entry in after["state"].values())
    assert not any("clean" in entry for entry in opt.state.values())


def test_a_checkpoint_of_eval_brings_no_old_clean_weights_back() -> None:
    model = front.Net()
    opt = front.ssam(model, keep_perturbed=True)
    opt.train()
    opt.load_state_dict(opt.state_dict())  # pending clean weights
    best = front.Net(seed=4)
    model.load_state_dict(best.state_dict())
    fresh = front.ssam(front.Net(), keep_perturbed=True)
    opt.load_state_dict(fresh.state_dict())  # without clean weights: those of the model count
    opt.train()
    opt.eval()
    assert front.same_bits(model.parameters(), best.parameters())


# -- automatic mixed precision -------------------------------------------------------------------------------


def train_with_scaler(kept: bool, make: Callable[..., Any], bad_step: int | None) -> tuple[list[Tensor], int]:
    model = front.Net()
    opt = make(model, keep_perturbed=kept)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    opt.train()
    for k, (x, y) in enumerate(front.batches(5)):
        opt.zero_grad()
        factor = float("inf") if k == bad_step else 1.0
        if kept:
            scaler.scale(front.loss_of(model, x, y) * factor).backward()
        else:
            with opt.perturb():
                scaler.scale(front.loss_of(model, x, y) * factor).backward()
        scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before = front.snapshot(model)
        scaler.step(opt)
        scaler.update()
        assert front.same_bits(model.parameters(), before) == (k == bad_step)
    opt.eval()
    return front.snapshot(model), opt.draw


@pytest.mark.parametrize("make", [front.ssam, front.wrapped_adamw], ids=["ssam", "wrap"])
def test_a_scaler_unscales_clips_and_steps_in_both_forms(make: Callable[..., Any]) -> None:
    (kept, draws), (plain, plain_draws) = (train_with_scaler(form, make, None) for form in (True, False))
    assert front.same_bits(kept, plain)
    assert draws == plain_draws == 5


@pytest.mark.parametrize("make", [front.ssam, front.wrapped_adamw], ids=["ssam", "wrap"])
def test_a_step_skipped_by_a_scaler_keeps_weights_and_noise_when_kept_and_uses_a_draw_otherwise(
    make: Callable[..., Any],
) -> None:
    kept, kept_draws = train_with_scaler(True, make, 2)
    plain, plain_draws = train_with_scaler(False, make, 2)
    assert (kept_draws, plain_draws) == (4, 5)
    assert all(bool(torch.isfinite(w).all()) for w in [*kept, *plain])


# -- what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [front.ssam, front.wrapped_adamw], ids=["ssam", "wrap"])
@pytest.mark.parametrize("after", ["step", "eval"])
def test_weights_written_to_in_train_are_named_and_kept(make: Callable[..., Any], after: str) -> None:
    model = front.Net()
    opt = make(model, keep_perturbed=True)
    clean = front.snapshot(model)
    opt.train()
    front.loss_of(model, *front.data()).backward()
    with torch.no_grad():
        model.bias.fill_(5.0)
    with pytest.raises(torch_ssam.PerturbedWeightsChanged, match=r"Parameter 1 of shape \(7,\) was written"):
        getattr(opt, after)()
    clean[1] = torch.full((7,), 5.0)
    assert front.same_bits(model.parameters(), clean)
    with pytest.raises(RuntimeError, match=r"opt\.train\(\)"):
        opt.step()
    opt.train()
    assert not front.same_bits(model.parameters(), clean)
    opt.eval()
    assert front.same_bits(model.parameters(), clean)


def test_a_base_optimizer_that_raises_leaves_clean_weights_and_needs_train_again() -> None:
    class Failing(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise ArithmeticError("no")

    model = front.Net()
    opt = torch_ssam.wrap(Failing(model.parameters()), 0.3, keep_perturbed=True)
    clean = front.snapshot(model)
    opt.train()
    front.loss_of(model, *front.data()).backward()
    with pytest.raises(ArithmeticError):
        opt.step()
    assert front.same_bits(model.parameters(), clean)
    with pytest.raises(RuntimeError, match=r"opt\.train\(\)"):
        opt.step()


def test_warmup_from_lr_0_still_moves_to_the_next_draw() -> None:
    assert front.same_bits(
        *(run(kept, {0: set_option("lr", 0.0), 2: set_option("lr", 0.1)}) for kept in (True, False))
    )
