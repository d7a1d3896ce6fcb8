"""torch.optim's own test helpers (torch.testing._internal.common_optimizers) run against SSAM and wrap as one more
optimizer: its inputs, its error inputs and its schedulers, each against torch.optim's class, step by step, through
its TensorTracker. The claims are those of PyTorch's test/test_optim.py.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
    OptimizerInfo,
    TensorTracker,
    optim_db,
    optim_error_inputs_func_sgd,
    optim_inputs_func_sgd,
)
from torch.testing._internal.common_utils import TestCase

import torch_ssam

SGD = next(info for info in optim_db if info.optim_cls is torch.optim.SGD)
ADAMW = next(info for info in optim_db if info.optim_cls is torch.optim.AdamW)


def wrapped(info: OptimizerInfo) -> Callable[..., Any]:
    def make(params: Any, noise_std: float = 0.01, seed: int | None = None, **options: Any) -> Any:
        return torch_ssam.wrap(info.optim_cls(params, **options), noise_std, seed=seed)

    return make


SSAM = OptimizerInfo(
    torch_ssam.SSAM,
    optim_inputs_func=optim_inputs_func_sgd,
    optim_error_inputs_func=optim_error_inputs_func_sgd,
    scheduler_inputs=SGD.scheduler_inputs,
    supported_impls=(),
    supports_sparse=False,
    supports_complex=False,
)
# What is made, torch's class that it follows without noise, and that class's entry in torch's table.
SUBJECTS: dict[str, tuple[Callable[..., Any], OptimizerInfo, OptimizerInfo]] = {
    "ssam": (torch_ssam.SSAM, SSAM, SGD),
    "wrap AdamW": (wrapped(ADAMW), ADAMW, ADAMW),
}
INPUTS = [
    pytest.param(name, k, id=f"{name}-{one.desc}")
    for name, (_, info, _) in SUBJECTS.items()
    for k, one in enumerate(info.optim_inputs_func(device="cpu"))
]


def options_of(name: str, k: int) -> dict[str, Any]:
    """A fresh copy: a tensor lr is filled in place."""
    return copy.deepcopy(SUBJECTS[name][1].optim_inputs_func(device="cpu")[k].kwargs)


class Check(TestCase):
    """TensorTracker wants a test case to assert with."""

    __test__ = False

    def runTest(self) -> None:
        raise NotImplementedError


def track(source: nn.Module, opt: Any, tracker: TensorTracker) -> None:
    for p in source.parameters():
        tracker.add(p)
        for _, value in sorted(opt.state.get(p, {}).items()):
            if isinstance(value, Tensor):
                tracker.add(value)


def compare(source: nn.Module, opt: Any, tracker: TensorTracker) -> None:
    for p in source.parameters():
        tracker.pop_check_set(p, Check())
        for _, value in sorted(opt.state.get(p, {}).items()):
            if isinstance(value, Tensor):
                tracker.pop_check_set(value, Check())


@pytest.mark.parametrize(("name", "k"), INPUTS)
def test_without_noise_every_input_follows_torch_s_class_step_by_step(name: str, k: int) -> None:
    make, _, info = SUBJECTS[name]
    model, plain = front.Net(), front.Net()
    opt = make(model.parameters(), **options_of(name, k), noise_std=0.0)
    options = options_of(name, k)
    reference = info.optim_cls(plain.parameters(), **{**options, "lr": options.get("lr", opt.defaults["lr"])})
    tracker = TensorTracker(assert_eq_kwargs={"rtol": 1e-6, "atol": 1e-7})
    for batch in front.batches(4):
        front.by_stock_loop(reference, plain, [batch])
        track(plain, reference, tracker)
        front.by_stock_loop(opt, model, [batch])
        compare(model, opt, tracker)
    assert tracker.all_popped()


def descends(make: Callable[..., Any], options: dict[str, Any], schedulers: list[Any], steps: int) -> None:
    """A quadratic whose minimum noise does not move, with curvature that an lr of 0.1 survives."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(10, 5))
    bias = nn.Parameter(torch.randn(10))
    x = 0.3 * torch.randn(5)
    opt = make([weight, bias], **options, noise_std=0.01, seed=1)
    plans = [build(opt) for build in schedulers]
    losses: list[float] = []
    for _ in range(steps):

        def closure() -> Tensor:
            opt.zero_grad()
            loss = (weight.mv(x) + bias).square().sum()
            loss.backward()
            return loss

        losses.append(float(opt.step(closure).detach()))
        for plan in plans:
            if isinstance(plan, ReduceLROnPlateau):
                plan.step(losses[-1])
            else:
                plan.step()
    if options.get("maximize"):
        assert losses[-1] > losses[0]
    else:
        assert losses[-1] < losses[0]


@pytest.mark.parametrize(("name", "k"), INPUTS)
def test_with_noise_every_input_goes_in_the_right_direction(name: str, k: int) -> None:
    descends(SUBJECTS[name][0], options_of(name, k), [], 5)


SCHEDULES = [
    pytest.param(name, k, id=f"{name}-{k}")
    for name, (_, info, _) in SUBJECTS.items()
    for k in range(len(info.scheduler_inputs))
]


@pytest.mark.parametrize(("name", "k"), SCHEDULES)
def test_every_scheduler_input_works_with_noise(name: str, k: int) -> None:
    info = SUBJECTS[name][1]
    descends(SUBJECTS[name][0], {"lr": 1e-3}, list(info.scheduler_inputs[k]), 5)


@pytest.mark.parametrize("name", sorted(SUBJECTS))
def test_error_inputs_are_refused(name: str) -> None:
    make, info, _ = SUBJECTS[name]
    seen = 0
    for one in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
        given = one.optimizer_error_input
        params = given.params if given.params is not None else [nn.Parameter(torch.ones(2))]
        if one.error_on != OptimizerErrorEnum.CONSTRUCTION_ERROR:
            continue
        seen += 1
        if given.desc == "a param group cannot have duplicate parameters":
            # torch only warns; here a tensor named twice is perturbed and updated once
            if name == "ssam":
                assert len(make(params).param_groups[0]["params"]) == 1
            continue
        with pytest.raises((ValueError, TypeError)):
            make(params, **given.kwargs)
    assert seen >= 5


@pytest.mark.parametrize(("name", "k"), INPUTS)
def test_options_per_group_count_for_that_group_alone(name: str, k: int) -> None:
    make = SUBJECTS[name][0]
    model = front.Net()
    first, *rest = model.parameters()
    still = 0.0 if not isinstance(options_of(name, k).get("lr"), Tensor) else torch.tensor(0.0)
    opt = make([{"params": [first], "lr": still}, {"params": rest}], **options_of(name, k), seed=3)
    before = front.snapshot(model)
    front.by_perturb(opt, model, front.batches(2))
    after = front.snapshot(model)
    assert front.same_bits(before[:1], after[:1])
    assert all(not torch.equal(a, b) for a, b in zip(before[1:], after[1:], strict=True))


@pytest.mark.parametrize(("name", "k"), INPUTS)
def test_a_state_dict_loads_into_a_fresh_optimizer_and_goes_on_alike(name: str, k: int) -> None:
    make = SUBJECTS[name][0]
    model = front.Net()
    opt = make(model.parameters(), **options_of(name, k), seed=3)
    front.by_perturb(opt, model, front.batches(2))
    other = copy.deepcopy(model)
    fresh = make(other.parameters(), **options_of(name, k), seed=4)
    fresh.load_state_dict(copy.deepcopy(opt.state_dict()))
    for one, its in ((opt, model), (fresh, other)):
        front.by_perturb(one, its, front.batches(3)[2:])
    assert front.same_bits(model.parameters(), other.parameters())
    assert opt.state_dict()["param_groups"] == fresh.state_dict()["param_groups"]


@pytest.mark.parametrize(("name", "k"), INPUTS)
def test_zero_gradients_and_no_gradients_leave_the_weights(name: str, k: int) -> None:
    options = {key: v for key, v in options_of(name, k).items() if key != "weight_decay"}
    if name == "wrap AdamW":
        options["weight_decay"] = 0.0
    if options.get("nesterov"):
        options["momentum"] = 0.9
    for grad in (None, 0.0):
        model = front.Net()
        opt = SUBJECTS[name][0](model.parameters(), **options, seed=3)
        before = front.snapshot(model)
        with opt.perturb():
            for p in model.parameters():
                p.grad = None if grad is None else torch.zeros_like(p)
        opt.step()
        assert front.same_bits(model.parameters(), before)


@pytest.mark.parametrize("name", sorted(SUBJECTS))
def test_named_parameters_travel_through_state_dicts(name: str) -> None:
    make = SUBJECTS[name][0]
    model = front.Net()
    opt = make(list(model.named_parameters()), lr=0.1, seed=3)
    front.by_perturb(opt, model, front.batches(1))
    names = [key for key, _ in model.named_parameters()]
    saved = opt.state_dict()
    assert saved["param_groups"][0]["param_names"] == names
    unnamed = make(front.Net().parameters(), lr=0.1)
    unnamed.load_state_dict(saved)
    assert unnamed.draw == 1


@pytest.mark.parametrize("name", sorted(SUBJECTS))
def test_the_schedulers_of_torch_all_construct_and_step(name: str) -> None:
    """Every scheduler class of torch.optim.lr_scheduler that needs no other scheduler."""
    arguments: dict[str, dict[str, Any]] = {
        "LambdaLR": {"lr_lambda": lambda k: 1.0},
        "MultiplicativeLR": {"lr_lambda": lambda k: 0.9},
        "StepLR": {"step_size": 1},
        "MultiStepLR": {"milestones": [1]},
        "ConstantLR": {},
        "LinearLR": {},
        "ExponentialLR": {"gamma": 0.9},
        "PolynomialLR": {},
        "CosineAnnealingLR": {"T_max": 3},
        "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "cycle_momentum": False},
        "CosineAnnealingWarmRestarts": {"T_0": 2},
        "OneCycleLR": {"max_lr": 0.1, "total_steps": 5, "cycle_momentum": False},
    }
    composed = {"LRScheduler", "SequentialLR", "ChainedScheduler", "ReduceLROnPlateau"}
    classes = {
        cls.__name__: cls
        for cls in vars(torch.optim.lr_scheduler).values()
        if isinstance(cls, type) and issubclass(cls, LRScheduler)
    }
    missing = set(classes) - composed - {"SWALR"} - set(arguments)
    assert not {m for m in missing if not m.startswith("_")}, "a scheduler that this test does not know"
    for key, options in arguments.items():
        model = front.Net()
        opt = SUBJECTS[name][0](model.parameters(), lr=0.1, seed=3)
        plan = classes[key](opt, **options)
        for batch in front.batches(2):
            front.by_perturb(opt, model, [batch])
            plan.step()


def test_the_inputs_cover_every_option_that_ssam_shares_with_sgd() -> None:
    used = set(itertools.chain(*(one.kwargs for one in optim_inputs_func_sgd(device="cpu"))))
    assert used == {"lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"}
