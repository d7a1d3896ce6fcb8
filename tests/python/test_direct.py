"""The step that goes past the dispatcher (torch_ssam/ops/direct.py) is the operator's: the same bits, and the same words.

Every test runs a training twice, once with direct steps and once without, and compares all that is left: weights, state,
clean weights, warnings and exceptions. Whatever can change between two steps is changed between two steps, and must be
seen by the next one: taken out of csrc/python/direct.cpp, each of its looks fails a test here.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import cases
import pytest
import torch
from front_helpers import same_bits
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import torch_ssam
from torch_ssam.noise.options import NOISE_OPTIONS
from torch_ssam.ops import direct
from torch_ssam.optim.direct_step import SERVED_OPTIONS

pytestmark = pytest.mark.skipif(not direct.available, reason="this PyTorch has no C exchange of DLPack")

Optimizer = Any
Change = Callable[[Optimizer, list[nn.Parameter]], None]

RULES = {
    "sgd": lambda params, **o: torch_ssam.SSAM(params, **{"lr": 0.1, "momentum": 0.9, **o}),
    "plain sgd": lambda params, **o: torch_ssam.SSAM(params, **{"lr": 0.1, **o}),
    "adamw": lambda params, **o: torch_ssam.SSAMAdamW(params, **{"lr": 0.01, **o}),
    "amsgrad": lambda params, **o: torch_ssam.SSAMAdamW(params, **{"lr": 0.01, "amsgrad": True, **o}),
}


def test_every_option_of_the_noise_is_handed_on_or_declined() -> None:
    assert set(NOISE_OPTIONS) == SERVED_OPTIONS, (
        "an option that step_directly does not look at would be passed over in silence; see direct_step.py"
    )


class Direct:
    """Notes of every step whether it was made directly."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
        self.made: list[bool] = []
        step = direct.step

        def noted(*args: Any) -> bool:
            self.made.append(step(*args))
            return self.made[-1]

        monkeypatch.setattr(direct, "step", noted)
        monkeypatch.setattr(direct, "available", on)


def tensors(
    dtype: torch.dtype = torch.float32, sizes: tuple[Any, ...] = ((7, 5), (3,), (), (0,), (1,))
) -> Any:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in sizes]


def give_gradients(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def train(opt: Optimizer, params: list[nn.Parameter], steps: int) -> None:
    """The first steps of a training."""
    opt.train()
    for seed in range(steps):
        give_gradients(params, seed)
        opt.step()


def left(opt: Optimizer) -> tuple[list[Tensor], list[str]]:
    """All that an optimizer and its weights hold: tensors, and what is none, as AdamW's steps."""
    params = [p for group in opt.param_groups for p in group["params"]]
    state = [value for p in params for _, value in sorted(opt.state.get(p, {}).items())]
    held = [*params, *[opt._noise.clean_of(p) for p in params], *state]
    with_memory = [t.detach().clone() for t in held if isinstance(t, Tensor) and not t.is_meta]
    return with_memory, [repr(value) for value in state if not isinstance(value, Tensor)]


def outcome(make: Callable[[], tuple[Optimizer, list[nn.Parameter]]], change: Change, after: int = 2) -> Any:
    """What a training says and leaves, whose third step comes after a change."""
    opt, params = make()
    train(opt, params, 2)
    said: list[str] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        give_gradients(params, 2)
        try:
            change(opt, params)
            for seed in range(after):
                opt.step()
                give_gradients(params, 3 + seed)
            opt.step()
            opt.eval()
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    said += [str(one.message) for one in warned]
    bits, others = left(opt)
    return said, others, bits


def compared(
    monkeypatch: pytest.MonkeyPatch, make: Any, change: Change, after: int = 2
) -> tuple[list[bool], list[str]]:
    """Which steps were direct, and what was said; all is as without direct steps."""
    with monkeypatch.context() as patch:
        noted = Direct(patch, True)
        said, others, bits = outcome(make, change, after)
    with monkeypatch.context() as patch:
        Direct(patch, False)
        said_before, others_before, bits_before = outcome(make, change, after)
    assert said == said_before
    assert others == others_before
    assert same_bits(bits, bits_before)
    return noted.made, said


def nothing(opt: Optimizer, params: list[nn.Parameter]) -> None:
    pass


# -- what an ordinary step computes -------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("scale", ["isotropic", "element"])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_a_direct_step_has_the_operators_bits(
    rule: str, dtype: torch.dtype, scale: str, distribution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> Any:
        params = tensors(dtype, (*[(size,) for size in cases.SIZES], ()))
        options = {"scale": scale, "distribution": distribution, "weight_decay": 0.1, "maximize": True}
        return RULES[rule](params, noise_std=0.01, keep_perturbed=True, seed=5, **options), params

    made, said = compared(monkeypatch, make, nothing)
    # The first step makes the state of a rule that keeps any.
    assert made == ([True] * 5 if rule == "plain sgd" else [False, *[True] * 4])
    assert said == []


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_any_layout_of_weights_and_gradients(rule: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Any:
        p = nn.Parameter(cases.LAYOUTS[layout](torch.float32))
        p.data.copy_(torch.linspace(1, 2, max(1, p.numel()))[: p.numel()].view(p.shape))
        return RULES[rule]([p], noise_std=0.01, keep_perturbed=True, seed=5), [p]

    def strided(opt: Optimizer, params: list[nn.Parameter]) -> None:
        memory = cases.LAYOUTS[layout](torch.float32)
        params[0].grad = memory.copy_(params[0].grad)  # type: ignore[arg-type]

    made, said = compared(monkeypatch, make, strided, after=1)
    assert made[1:] == [True] * 3
    assert said == []


@pytest.mark.parametrize("threads", [1, 2])
def test_many_tensors_on_any_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Any:
        params = tensors(sizes=((1000,),) * 70)
        return RULES["sgd"](params, noise_std=0.01, keep_perturbed=True, seed=5), params

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        made, _ = compared(monkeypatch, make, nothing)
    finally:
        torch.set_num_threads(before)
    assert made[1:] == [True] * 4


def test_options_are_read_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(opt: Optimizer, params: list[nn.Parameter]) -> None:
        opt.param_groups[0].update(
            lr=0.03,
            noise_std=0.005,
            weight_decay=0.2,
            distribution="rademacher",
            scale="element",
            nesterov=True,
        )

    made, said = compared(monkeypatch, ordinary, change)
    assert made[1:] == [True] * 4
    assert said == []


# -- what may change between two steps ----------------------------------------------------------------------


def ordinary(rule: str = "sgd", **options: Any) -> tuple[Optimizer, list[nn.Parameter]]:
    params = tensors()
    return RULES[rule](params, **{"noise_std": 0.01, "keep_perturbed": True, "seed": 5, **options}), params


def option(**values: Any) -> Change:
    return lambda opt, params: opt.param_groups[0].update(values)


def written_in_place(opt: Optimizer, params: list[nn.Parameter]) -> None:
    with torch.no_grad():
        params[0].add_(1.0)


def data_replaced(opt: Optimizer, params: list[nn.Parameter]) -> None:
    params[0].data = params[0].data.clone()


def data_of_another_dtype(opt: Optimizer, params: list[nn.Parameter]) -> None:
    for p in params:
        p.data, p.grad = p.data.double(), None
    give_gradients(params, 2)


def storage_resized(opt: Optimizer, params: list[nn.Parameter]) -> None:
    params[0].data.resize_(9, 5)
    params[0].grad = torch.ones(9, 5)


def frozen(opt: Optimizer, params: list[nn.Parameter]) -> None:
    params[1].requires_grad_(False)


def without_gradient(opt: Optimizer, params: list[nn.Parameter]) -> None:
    params[1].grad = None


def sparse_gradient(opt: Optimizer, params: list[nn.Parameter]) -> None:
    params[0].grad = params[0].grad.to_sparse()  # type: ignore[union-attr]


def gradient_of(make: Callable[[Tensor], Tensor], index: int = 0) -> Change:
    """A gradient that p.grad would refuse by assignment may come by its data, or by a setting of its own."""

    def change(opt: Optimizer, params: list[nn.Parameter]) -> None:
        grad = params[index].grad
        assert grad is not None
        params[index].grad = make(grad)

    return change


def gradient_data_of(make: Callable[[Tensor], Tensor]) -> Change:
    def change(opt: Optimizer, params: list[nn.Parameter]) -> None:
        grad = params[0].grad
        assert grad is not None
        grad.data = make(grad)

    return change


def negated(grad: Tensor) -> Tensor:
    """The negative of its memory: the imaginary part of a conjugated tensor."""
    view = torch.complex(torch.zeros_like(grad), -grad).conj().imag
    assert view.is_neg()
    return view


class Subclass(Tensor):
    pass


def another_parameter(opt: Optimizer, params: list[nn.Parameter]) -> None:
    params[0] = nn.Parameter(torch.ones(7, 5))
    params[0].grad = torch.ones(7, 5)
    opt.param_groups[0]["params"][0] = params[0]


def parameters_in_another_order(opt: Optimizer, params: list[nn.Parameter]) -> None:
    opt.param_groups[0]["params"].reverse()


def one_parameter_less(opt: Optimizer, params: list[nn.Parameter]) -> None:
    del opt.param_groups[0]["params"][0]


def another_group(opt: Optimizer, params: list[nn.Parameter]) -> None:
    params.append(nn.Parameter(torch.ones(4)))
    opt.add_param_group({"params": [params[-1]]})
    give_gradients(params, 2)


def one_restored(opt: Optimizer, params: list[nn.Parameter]) -> None:
    opt._noise.restore([params[1]])


def state_of(**values: Any) -> Change:
    def change(opt: Optimizer, params: list[nn.Parameter]) -> None:
        for name, make in values.items():
            opt.state[params[0]][name] = make(opt.state[params[0]][name])

    return change


def state_in_another_order(opt: Optimizer, params: list[nn.Parameter]) -> None:
    opt.state[params[0]] = opt.state.pop(params[0])


def state_of_one_lost(opt: Optimizer, params: list[nn.Parameter]) -> None:
    del opt.state[params[0]]


def entry_without_its_buffer(opt: Optimizer, params: list[nn.Parameter]) -> None:
    del opt.state[params[0]]["momentum_buffer"]


def loaded(opt: Optimizer, params: list[nn.Parameter]) -> None:
    opt.eval()
    state_dict = opt.state_dict()
    opt.load_state_dict(state_dict)
    opt.train()


TAKEN = {  # changes that a direct step sees, and serves
    "lr": option(lr=0.3),
    "a whole lr": option(lr=1),
    "p.grad swapped": gradient_of(lambda g: 2 * g),
    "p.grad's data swapped": gradient_data_of(lambda g: 3 * g.clone()),
    "gradient with a graph": gradient_of(lambda g: g.clone().requires_grad_()),
    "gradient's memory expanded": gradient_of(lambda g: torch.tensor(0.5).expand(7, 5)),
    "momentum off": option(momentum=0.0),
    "momentum swapped": state_of(momentum_buffer=lambda m: 2 * m),
    "momentum transposed": state_of(momentum_buffer=lambda m: m.t().contiguous().t()),
    "state loaded": loaded,
}

SENT = {  # changes that are the dispatcher's to serve, or to refuse
    "written in place": written_in_place,
    "p.data swapped": data_replaced,
    "p.data of another dtype": data_of_another_dtype,
    "storage resized": storage_resized,
    "frozen": frozen,
    "no gradient": without_gradient,
    "sparse gradient": sparse_gradient,
    "negated gradient": gradient_of(negated),
    "negated gradient of one number": gradient_of(negated, 2),
    "negated gradient in order": gradient_of(lambda g: torch._neg_view(-g)),
    "gradient of a subclass": gradient_of(lambda g: g.as_subclass(Subclass)),
    "gradient of another dtype": gradient_data_of(lambda g: g.double()),
    "gradient of another shape": gradient_data_of(lambda g: g.t().contiguous()),
    "gradient on another device": gradient_data_of(lambda g: g.to("meta")),
    "another parameter": another_parameter,
    "parameters in another order": parameters_in_another_order,
    "one parameter less": one_parameter_less,
    "another group": another_group,
    "one restored": one_restored,
    "momentum of another shape": state_of(momentum_buffer=lambda m: m[1:]),
    "momentum of another dtype": state_of(momentum_buffer=lambda m: m.double()),
    "momentum that overlaps": state_of(momentum_buffer=lambda m: m[:1].expand(7, 5)),
    "negated momentum": state_of(momentum_buffer=negated),
    "momentum of a subclass": state_of(momentum_buffer=lambda m: m.as_subclass(Subclass)),
    "momentum None": state_of(momentum_buffer=lambda m: None),
    "state in another order": state_in_another_order,
    "state of one lost": state_of_one_lost,
    "momentum lost": entry_without_its_buffer,
    "momentum on another device": state_of(momentum_buffer=lambda m: m.to("meta")),
    "a tensor lr": option(lr=torch.tensor(0.03)),
    "negative lr": option(lr=-1.0),
    "negative noise_std": option(noise_std=-1.0),
    "no noise": option(noise_std=0.0),
    "noise that is large": option(noise_std=10.0),
    "unknown distribution": option(distribution="uniform"),
    "a scale of rows": option(scale="filter"),
    "a radius": option(radius=0.5),
    "weight_clip": option(weight_clip=1.5),
    "nesterov without momentum": option(nesterov=True, dampening=0.5),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_direct_step_sees_what_changed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, said = compared(monkeypatch, ordinary, TAKEN[name])
    if name != "state loaded":
        assert made[1:] == [True] * 4
    assert made[-1]
    assert said == []


@pytest.mark.parametrize("name", SENT)
def test_what_is_out_of_the_ordinary_goes_through_the_dispatcher(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_step_after(opt: Optimizer, params: list[nn.Parameter]) -> None:
        SENT[name](opt, params)
        made = len(noted.made) if noted else 0
        opt.step()
        assert noted is None or not any(noted.made[made:])

    noted: Direct | None = None
    with monkeypatch.context() as patch:
        noted = Direct(patch, True)
        said, others, bits = outcome(ordinary, first_step_after)
        assert noted.made[1], "the step before the change"
    noted = None
    with monkeypatch.context() as patch:
        Direct(patch, False)
        said_before, others_before, bits_before = outcome(ordinary, first_step_after)
    assert said == said_before
    assert others == others_before
    assert same_bits(bits, bits_before)


def test_another_parameter_on_the_same_memory_is_not_taken_for_the_old_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def change(opt: Optimizer, params: list[nn.Parameter]) -> None:
        old = params[0]
        params[0] = nn.Parameter(old.data)
        params[0].grad = old.grad
        while params[0]._version < old._version:
            torch.autograd.graph.increment_version(params[0])
        opt.param_groups[0]["params"][0] = params[0]

    made, _ = compared(monkeypatch, lambda: ordinary("plain sgd"), change, after=0)
    assert made == [True, True, False]


def test_state_in_another_order_stays_with_its_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Any:
        params = tensors(sizes=((5,), (5,), (5,)))
        return RULES["sgd"](params, noise_std=0.01, keep_perturbed=True, seed=5), params

    made, said = compared(monkeypatch, make, state_in_another_order, after=0)
    assert made == [False, True, False]
    assert said == []


@pytest.mark.parametrize("keys", ["none", "one less", "another", "one more"])
def test_tensors_that_are_not_the_perturbed_ones_are_refused(
    keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    step = direct.step
    monkeypatch.setattr(direct, "step", lambda *args: given.append(args) or step(*args))
    opt, params = ordinary("plain sgd")
    train(opt, params, 2)
    at = 4
    args = [*given[-1]]
    args[5] = direct.versions(params)
    assert args[at] is opt._noise._applied
    before = left(opt)[0]
    applied = dict(args[at])
    if keys != "one more":
        del applied[id(params[1])]
    if keys in ("another", "one more"):
        applied[0] = None
    args[at] = {} if keys == "none" else applied
    assert not step(*args)
    assert same_bits(left(opt)[0], before)
    args[at] = opt._noise._applied
    assert step(*args)


class Calls(TorchDispatchMode):
    seen: ClassVar[list[str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    seen: ClassVar[list[str]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Calls, Functions], ids=["dispatch", "function"])
def test_a_mode_sees_the_operator(mode: Any) -> None:
    opt, params = ordinary()
    train(opt, params, 3)
    mode.seen.clear()
    with mode():
        opt.step()
    assert any("update_and_perturb_" in name for name in mode.seen)


def test_a_profiler_sees_the_operator() -> None:
    opt, params = ordinary()
    train(opt, params, 3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        opt.step()
    assert any(event.key == "torch_ssam::update_and_perturb_" for event in profile.key_averages())


def test_a_step_inside_a_transform_goes_through_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(opt: Optimizer, params: list[nn.Parameter]) -> None:
        def inside(x: Tensor) -> Tensor:
            opt.step()
            return x

        torch.func.vmap(inside)(torch.ones(2))

    made, _ = compared(monkeypatch, ordinary, change, after=1)
    assert len(made) == 4  # two before, two after, and none inside


def test_steps_are_counted_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = Direct(monkeypatch, True)
    opt, params = ordinary("adamw")
    train(opt, params, 4)
    assert noted.made == [False, True, True, True]
    assert [opt.state[p]["step"] for p in params] == [4] * len(params)


@pytest.mark.parametrize("step", [None, "3", 3.0, -1, 2**70, torch.tensor(3.0)], ids=str)
def test_a_step_of_another_kind_is_not_counted_directly(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(opt: Optimizer, params: list[nn.Parameter]) -> None:
        opt.state[params[0]]["step"] = step

    made, _ = compared(monkeypatch, lambda: ordinary("adamw"), change, after=0)
    assert made[:3] == [False, True, False]


# -- what a direct step leaves ------------------------------------------------------------------------------


def test_autograd_hears_of_a_direct_step(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = Direct(monkeypatch, True)
    opt, params = ordinary()
    train(opt, params, 2)
    kept = params[0].square().sum()
    opt.step()
    assert noted.made == [False, True, True]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


def test_a_write_after_a_direct_step_is_found() -> None:
    opt, params = ordinary()
    train(opt, params, 3)
    with torch.no_grad():
        params[2].add_(1.0)
    with pytest.raises(RuntimeError, match="Parameter 2 of shape"):
        opt.eval()


@pytest.mark.parametrize("rule", RULES)
def test_no_tensor_outlives_its_place(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = Direct(monkeypatch, True)
    opt, params = ordinary(rule)
    train(opt, params, 3)
    assert noted.made[-1]
    dying: list[Any] = [weakref.ref(params[0].grad)]
    entry = opt.state[params[0]]
    for name in [name for name, value in entry.items() if isinstance(value, Tensor)]:
        dying.append(weakref.ref(entry[name]))
        entry[name] = entry[name].clone()
    params[0].grad = None
    assert [one() for one in dying] == [None] * len(dying)
    opt.eval()
    dying = [weakref.ref(opt), weakref.ref(opt._noise.clean_of(params[0])), *map(weakref.ref, params)]
    del opt, entry
    params.clear()
    gc.collect()
    assert [one() for one in dying] == [None] * len(dying)


def test_a_direct_step_counts_its_arguments() -> None:
    with pytest.raises(TypeError, match=r"step\(\) got 1 arguments; expected 18"):
        direct.step(1)


def test_arguments_of_any_kind_are_refused() -> None:
    for value in (None, 1, "text", [], {}, (), [None], object()):
        assert not direct.step(*[value] * 18)
