"""Other optimizers beside one of this package: steps over weights that are perturbed, a second noise over them, torch's
hooks before every step, several optimizers in one program. Row 45 of test_peers.py.

PyTorch's fused steps on CPUs do not move a tensor's version; a first test holds that, for it is why the steps are asked.
"""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

import torch_ssam
from torch_ssam.noise import holders

FUSED: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, fused=True),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.1, fused=True),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.1, fused=True),
}
OTHERS = {**FUSED, "SGD foreach": lambda params: torch.optim.SGD(params, lr=0.1, foreach=True)}


def backward(model: nn.Module) -> None:
    model.zero_grad()
    front.loss_of(model, *front.data()).backward()


def ssam(model: nn.Module, **options: Any) -> torch_ssam.SSAM:
    return torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.3, seed=7, **options)


@pytest.fixture(autouse=True)
def _nobody_holds_weights() -> None:
    holders.holding.clear()


# -- steps over perturbed weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FUSED))
def test_a_fused_step_of_torch_moves_no_version(name: str) -> None:
    model = front.Net()
    backward(model)
    before = [p._version for p in model.parameters()], front.snapshot(model)
    FUSED[name](model.parameters()).step()
    assert [p._version for p in model.parameters()] == before[0]
    assert not front.same_bits(model.parameters(), before[1])


@pytest.mark.parametrize("name", sorted(OTHERS))
@pytest.mark.parametrize("kept", [False, True])
def test_a_step_of_another_optimizer_over_perturbed_weights_is_refused(name: str, kept: bool) -> None:
    model = front.Net()
    clean = front.snapshot(model)
    other = OTHERS[name](model.parameters())
    opt = ssam(model, keep_perturbed=kept)
    state = front.optimizer_bits(other)
    message = r"step\(\) over perturbed weights: Parameters 0 of shape \(7, 5\), 1 .* are perturbed now by an optimizer"
    if kept:
        opt.train()
        backward(model)
        with pytest.raises(RuntimeError, match=message):
            other.step()
        opt.eval()
    else:
        with opt.perturb():
            backward(model)
            with pytest.raises(RuntimeError, match=message):
                other.step()
    assert front.same_bits(model.parameters(), clean)
    assert front.same_bits(front.optimizer_bits(other), state)
    other.step()
    assert not front.same_bits(model.parameters(), clean)


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_a_scaler_that_steps_the_base_of_a_kept_wrapper_is_refused_and_one_that_steps_the_wrapper_trains(
    name: str,
) -> None:
    model = front.Net()
    opt = torch_ssam.wrap(OTHERS[name](model.parameters()), 0.3, seed=7, keep_perturbed=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    opt.train()
    clean = [w.clone() for w in opt.clean_state_dict(model).values()]

    def scaled_step(one: torch.optim.Optimizer) -> None:
        opt.zero_grad()
        loss: Any = scaler.scale(front.loss_of(model, *front.data()))
        loss.backward()
        scaler.step(one)
        scaler.update()

    with pytest.raises(
        RuntimeError, match=r"of wrap\(\) the wrapper and not its base: scaler.step\(opt\), not"
    ):
        scaled_step(opt.base)
    scaler.update()
    scaled_step(opt)
    opt.eval()
    assert not any(torch.equal(p, w) for p, w in zip(model.parameters(), clean, strict=True))


def test_a_refused_step_in_a_loop_over_perturbations_leaves_the_clean_bits() -> None:
    model = front.Net()
    opt, other, clean = ssam(model, samples=2), FUSED["SGD"](model.parameters()), front.snapshot(model)

    def train() -> None:
        for _ in opt.perturbations():
            backward(model)
            other.step()

    with pytest.raises(RuntimeError, match="over perturbed weights"):
        train()
    assert front.same_bits(model.parameters(), clean)


def test_other_weights_train_meanwhile() -> None:
    """As the two networks of a GAN do, one of which is kept perturbed."""
    model, second = front.Net(), front.Net(1)
    opt, other = ssam(model, keep_perturbed=True), FUSED["Adam"](second.parameters())
    opt.train()
    before = front.snapshot(second)
    for _ in range(2):
        backward(second)
        other.step()
        backward(model)
        opt.step()
    assert not front.same_bits(second.parameters(), before)
    opt.eval()


def test_a_step_that_writes_to_none_of_the_perturbed_weights_is_let_through() -> None:
    """They have no gradient, or are frozen or in a group without noise, and so hold none."""
    model = front.Net()
    first, *rest = model.parameters()
    opt = torch_ssam.SSAM([{"params": [first], "noise_std": 0.0}, {"params": rest}], lr=0.1, noise_std=0.3)
    other = FUSED["SGD"](model.parameters())
    with opt.perturb():
        backward(model)
        held = [p.grad for p in rest]
        for p in rest:
            p.grad = None
        before = front.snapshot(model)
        other.step()
        assert not torch.equal(first, before[0])
        assert front.same_bits(rest, before[1:])
        for p, grad in zip(rest, held, strict=True):
            p.grad = grad
    opt.step()


@pytest.mark.parametrize("memory", ["copy", "regenerate"])
def test_noise_without_copies_is_guarded_as_well(memory: str) -> None:
    model = front.Net()
    opt, other = ssam(model, memory=memory), FUSED["SGD"](model.parameters())
    with opt.perturb():
        backward(model)
        with pytest.raises(RuntimeError, match="over perturbed weights"):
            other.step()


def test_weight_noise_guards_its_weights_too() -> None:
    model = front.Net()
    noise, other = torch_ssam.WeightNoise(model.parameters(), 0.3), FUSED["SGD"](model.parameters())
    backward(model)
    with noise.applied(), pytest.raises(RuntimeError, match="over perturbed weights"):
        other.step()
    other.step()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_guard_the_weights_of_their_own(copied: Callable[[Any], Any]) -> None:
    model = front.Net()
    opt = torch_ssam.wrap(FUSED["SGD"](model.parameters()), 0.3, keep_perturbed=True)
    opt.train()
    twin_model, twin = copied((model, opt))
    opt.eval()
    backward(model)
    opt.base.step()
    backward(twin_model)
    with pytest.raises(RuntimeError, match="over perturbed weights"):
        twin.base.step()
    twin.step()
    twin.eval()


def test_an_optimizer_that_is_let_go_guards_nothing_any_more() -> None:
    model = front.Net()
    opt, other = ssam(model, keep_perturbed=True), FUSED["SGD"](model.parameters())
    opt.train()
    backward(model)
    del opt
    gc.collect()
    other.step()
    assert not holders.holding


def test_what_is_no_optimizer_may_use_torch_s_hooks() -> None:
    class Stepper:
        steps = 0
        _optimizer_step_pre_hooks: ClassVar[dict[int, Any]] = {}
        _optimizer_step_post_hooks: ClassVar[dict[int, Any]] = {}

        @torch.optim.Optimizer.profile_hook_step  # type: ignore[arg-type]
        def step(self) -> None:
            self.steps += 1

        def _optimizer_step_code(self) -> None:
            pass

    model, stepper = front.Net(), Stepper()
    with ssam(model).perturb():
        stepper.step()
    assert stepper.steps == 1


# -- a second noise ------------------------------------------------------------------------------------------


def perturb(one: Any) -> None:
    with one.applied() if isinstance(one, torch_ssam.WeightNoise) else one.perturb():
        pass


SECOND: dict[str, Callable[[nn.Module], object]] = {
    "perturb": lambda model: perturb(ssam(model)),
    "train": lambda model: ssam(model, keep_perturbed=True).train(),
    "closure": lambda model: ssam(model).step(lambda: backward(model)),
    "wrap": lambda model: perturb(torch_ssam.wrap(FUSED["SGD"](model.parameters()), 0.3)),
    "WeightNoise": lambda model: perturb(torch_ssam.WeightNoise(model.parameters(), 0.3)),
}


@pytest.mark.parametrize("second", sorted(SECOND))
def test_noise_on_weights_that_another_optimizer_holds_perturbed_is_refused(second: str) -> None:
    """A cell of a notebook that is run twice makes a second optimizer."""
    model = front.Net()
    clean = front.snapshot(model)
    opt = ssam(model, keep_perturbed=True)
    opt.train()
    noisy = front.snapshot(model)
    message = r"perturbed already, by another optimizer or WeightNoise.*run twice makes two"
    with pytest.raises(RuntimeError, match=message):
        SECOND[second](model)
    assert front.same_bits(model.parameters(), noisy)
    backward(model)
    opt.step()  # goes on undisturbed
    opt.eval()
    assert not front.same_bits(model.parameters(), clean)


@pytest.mark.parametrize("kind", ["SSAM", "wrap"])
def test_a_second_optimizer_of_ours_does_not_step_over_them_either(kind: str) -> None:
    model = front.Net()
    opt = ssam(model)
    second: Any = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=0.0)
    if kind == "wrap":
        second = torch_ssam.wrap(FUSED["SGD"](model.parameters()), 0.0)
    clean = front.snapshot(model)
    with opt.perturb():
        backward(model)
        with pytest.raises(RuntimeError, match=r"step\(\) over perturbed weights"):
            second.step()
    assert front.same_bits(model.parameters(), clean)
    second.step()


def test_two_optimizers_take_turns_and_share_a_model_in_parts() -> None:
    model = front.Net()
    first, *rest = model.parameters()
    one, two = (
        torch_ssam.SSAM([first], noise_std=0.3),
        torch_ssam.SSAM(rest, noise_std=0.3, keep_perturbed=True),
    )
    two.train()
    for _ in range(2):
        with one.perturb():
            backward(model)
            two.step()
        one.step()
    two.eval()
    for _ in range(2):
        opt = ssam(model)
        with opt.perturb():
            backward(model)
        opt.step()


def test_threads_that_train_models_of_their_own_do_not_meet() -> None:
    failures: list[BaseException] = []

    def train(seed: int) -> None:
        try:
            model, plain = front.Net(seed), front.Net(seed)
            opt, other = ssam(model), FUSED["Adam"](plain.parameters())
            for _ in range(200):
                with opt.perturb():
                    backward(model)
                    backward(plain)
                    other.step()
                opt.step()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=train, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not holders.holding


# -- torch's hooks for every optimizer -----------------------------------------------------------------------


@pytest.fixture
def everyone() -> Iterator[list[str]]:
    """What hooks for every optimizer see, without ours."""
    seen: list[str] = []
    handles = [
        torch_optimizer.register_optimizer_step_pre_hook(
            lambda one, *_: seen.append(f"before {type(one).__name__}")
        ),
        torch_optimizer.register_optimizer_step_post_hook(
            lambda one, *_: seen.append(f"after {type(one).__name__}")
        ),
    ]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("way", [*sorted(front.ONE_PASS), "kept"])
def test_hooks_for_every_optimizer_run_once_a_step_of_a_wrapped_one(way: str, everyone: list[str]) -> None:
    model = front.Net()
    opt = torch_ssam.wrap(torch.optim.AdamW(model.parameters(), lr=0.1), 0.3, keep_perturbed=way == "kept")
    opt.train()
    (front.by_stock_loop if way == "kept" else front.ONE_PASS[way])(opt, model, front.batches(2))
    opt.eval()
    assert everyone == ["before AdamW", "after AdamW"] * 2


def test_hooks_for_every_optimizer_run_once_a_step_of_ssam(everyone: list[str]) -> None:
    model = front.Net()
    opt = ssam(model)
    front.by_perturb(opt, model, front.batches(2))
    assert everyone == ["before SSAM", "after SSAM"] * 2


def test_a_profile_has_one_range_for_a_step_of_a_wrapped_optimizer() -> None:
    model = front.Net()
    opt = torch_ssam.wrap(torch.optim.AdamW(model.parameters(), lr=0.1), 0.3)
    front.by_perturb(opt, model, front.batches(1))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        front.by_perturb(opt, model, front.batches(2))
    steps = {
        event.key: event.count for event in profile.key_averages() if event.key.startswith("Optimizer.step#")
    }
    assert steps == {"Optimizer.step#AdamW.step": 2}


def test_a_hook_of_the_wrapper_may_change_the_closure_and_its_errors_are_said() -> None:
    model = front.Net()
    opt = torch_ssam.wrap(torch.optim.SGD(model.parameters(), lr=0.1), 0.3)
    seen: list[str] = []

    def closure() -> Tensor:
        seen.append("called")
        loss = front.loss_of(model, *front.data())
        loss.backward()
        return loss

    handle = opt.register_step_pre_hook(lambda one, args, kwargs: ((one, closure), {}))
    assert isinstance(opt.step(), Tensor)
    assert seen == ["called"]
    handle.remove()
    opt.register_step_pre_hook(lambda *_: 3)  # type: ignore[arg-type,return-value]
    with pytest.raises(RuntimeError, match=r"returned 3; expected None or \(new_args, new_kwargs\)"):
        opt.step(closure)


def test_our_hook_keeps_our_own_step_on_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way that torch puts round a step costs as much as a step of a small network."""
    model = front.Net()
    opt = ssam(model, keep_perturbed=True)
    opt.train()
    backward(model)
    assert holders.HOOK in torch_optimizer._global_optimizer_pre_hooks

    def taken(*_: Any) -> None:
        raise AssertionError("the long way")

    monkeypatch.setattr(torch.autograd.profiler, "record_function", taken)
    opt.step()
    opt.eval()


def test_our_hook_adds_no_graph_to_a_compiled_step_of_another_optimizer() -> None:
    model, second = front.Net(), front.Net(1)
    opt, other = ssam(model), torch.optim.SGD(second.parameters(), lr=0.1)
    front.by_perturb(opt, model, front.batches(1))
    backward(second)
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(1)
        return graph.forward

    def graphs_of(steps: int) -> int:
        torch._dynamo.reset()
        graphs.clear()
        step = torch.compile(other.step, backend=count)
        for k in range(steps):
            before = front.snapshot(second)
            if k % 2:
                with opt.perturb():
                    step()
            else:
                step()
            assert not front.same_bits(second.parameters(), before)
        return len(graphs)

    with_ours = graphs_of(4)
    del torch_optimizer._global_optimizer_pre_hooks[holders.HOOK]
    assert with_ours == graphs_of(1) > 0
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["AdamW", "SGD foreach"])
def test_a_compiled_step_over_perturbed_weights_is_refused(name: str) -> None:
    model = front.Net()
    clean = front.snapshot(model)
    opt, other = ssam(model), OTHERS[name](model.parameters())
    torch._dynamo.reset()
    step = torch.compile(other.step, backend="aot_eager")
    backward(model)
    with pytest.raises(RuntimeError, match="over perturbed weights"), opt.perturb():
        step()
    assert front.same_bits(model.parameters(), clean)
    step()
    assert not front.same_bits(model.parameters(), clean)
    with pytest.raises(RuntimeError, match="over perturbed weights"), opt.perturb():
        step()
    torch._dynamo.reset()


def test_a_step_that_is_compiled_as_one_graph_stays_one() -> None:
    class Plain(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.1})

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    p.detach().sub_(p.grad, alpha=group["lr"])

    model, second = front.Net(), front.Net(1)
    front.by_perturb(ssam(model), model, front.batches(1))
    backward(second)
    before = front.snapshot(second)
    torch._dynamo.reset()
    torch.compile(Plain(second.parameters()).step, backend="eager", fullgraph=True)()
    assert not front.same_bits(second.parameters(), before)
    torch._dynamo.reset()


# -- an optimizer for each parameter, which steps inside backward --------------------------------------------


def steps_in_backward(model: nn.Module, make: Callable[[Tensor], Any]) -> dict[Tensor, Any]:
    optimizers = {p: make(p) for p in model.parameters()}

    def step(p: Tensor) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p, opt in optimizers.items():
        p.register_post_accumulate_grad_hook(step)  # type: ignore[attr-defined]
        opt.train()
    return optimizers


@pytest.mark.parametrize("kind", ["SSAM", "wrap"])
def test_optimizers_of_single_parameters_step_inside_backward(kind: str) -> None:
    """Each has its own noise where seeds differ: with the same seed, tensors of one shape would get the same."""

    def make(p: Tensor, seed: int) -> Any:
        if kind == "SSAM":
            return torch_ssam.SSAM([p], lr=0.1, noise_std=0.3, seed=seed, keep_perturbed=True)
        return torch_ssam.wrap(FUSED["SGD"]([p]), 0.3, seed=seed, keep_perturbed=True)

    model, expected = front.Net(), front.Net()
    seeds = {p: 100 + k for k, p in enumerate(model.parameters())}
    optimizers = steps_in_backward(model, lambda p: make(p, seeds[p]))
    one_by_one = [make(p, 100 + k) for k, p in enumerate(expected.parameters())]
    for opt in one_by_one:
        opt.train()
    for _ in range(3):
        front.loss_of(model, *front.data()).backward()
        backward(expected)
        for opt in one_by_one:
            opt.step()
    for opt in [*optimizers.values(), *one_by_one]:
        opt.eval()
    assert front.same_bits(model.parameters(), expected.parameters())


def test_optimizers_without_a_seed_draw_noise_that_differs() -> None:
    params = [nn.Parameter(torch.zeros(50)) for _ in range(2)]
    for same in (False, True):
        optimizers = [
            torch_ssam.SSAM([p], noise_std=0.3, seed=7 if same else None, keep_perturbed=True) for p in params
        ]
        for opt in optimizers:
            opt.train()
        assert torch.equal(*params) == same
        for opt in optimizers:
            opt.eval()


# -- memory that processes share -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SSAM", "wrap", "WeightNoise"])
def test_weights_that_processes_share_are_warned_of_once(kind: str) -> None:
    model = front.Net()
    made: Any = ssam(model)
    if kind == "wrap":
        made = torch_ssam.wrap(torch.optim.SGD(model.parameters(), lr=0.1), 0.3)
    elif kind == "WeightNoise":
        made = torch_ssam.WeightNoise(model.parameters(), 0.3)
    list(model.parameters())[1].detach().share_memory_()
    with pytest.warns(
        UserWarning, match=r"Parameter 1 of shape \(7,\) is in memory that processes share .*Hogwild"
    ):
        perturb(made)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        perturb(made)


def test_shared_weights_are_warned_of_in_every_process_that_gets_the_optimizer() -> None:
    model = front.Net()
    model.share_memory()
    first, *rest = model.parameters()
    opt = torch_ssam.SSAM([{"params": [first], "noise_std": 0.0}, {"params": rest}], noise_std=0.3)
    for one in (opt, pickle.loads(pickle.dumps(opt))):
        if one is not opt:
            one.param_groups[1]["params"][0].share_memory_()
        with pytest.warns(UserWarning, match="in memory that processes share"), one.perturb():
            pass


def test_frozen_weights_may_be_shared() -> None:
    model = front.Net()
    first, *_ = model.parameters()
    first.share_memory_()
    first.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ssam(model).perturb():
            pass
