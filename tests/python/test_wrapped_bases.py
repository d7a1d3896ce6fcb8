"""What wrap() asks of a base: bases without a learning rate, without torch's attributes, that need a closure, that save
in a layout of their own, with options or tensors that cannot be told from ours. Rows 42 and 44 of test_peers.py.
"""

from __future__ import annotations

import copy
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import torch_ssam


class OwnRate(Optimizer):
    """Works its learning rate out by itself, as Adafactor does with lr=None."""

    def __init__(self, params: Any, lr: float | None = None) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state["step"] = state.get("step", 0) + 1
                    p.sub_(p.grad, alpha=group.get("lr") or 0.1 / state["step"])


class NoRate(OwnRate):
    """Has no option `lr` at all."""

    def __init__(self, params: Any) -> None:
        Optimizer.__init__(self, params, {"rate": 0.1})


def adafactor(params: Any) -> Any:
    package = pytest.importorskip(
        "transformers", reason="NOT TESTED here: wrap over Adafactor needs transformers"
    )
    return package.optimization.Adafactor(params, scale_parameter=True, relative_step=True, warmup_init=True)


@pytest.mark.parametrize("make", [OwnRate, NoRate, adafactor])
def test_a_base_without_a_learning_rate_trains_and_names_the_ways_to_drive_it(make: Any) -> None:
    model = front.Net()
    opt = torch_ssam.wrap(make(model.parameters()), 0.3, seed=7, scale="fisher")
    front.loss_of(model, *front.data()).backward()
    with pytest.raises(
        RuntimeError, match=r"without a gradient at perturbed weights .* Drive it in one of these ways"
    ):
        opt.step()
    before = front.snapshot(model)
    front.by_perturb(opt, model, front.batches(2))
    assert not any(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))
    sums = opt.state_dict()["state"]
    assert all(bool((sums[k]["fisher"] > 0).all()) for k in range(4))


@pytest.mark.parametrize("make", [OwnRate, NoRate, adafactor])
def test_a_base_without_a_learning_rate_is_kept_perturbed(make: Any) -> None:
    model = front.Net()
    opt = torch_ssam.wrap(make(model.parameters()), 0.3, seed=7, keep_perturbed=True)
    with pytest.raises(RuntimeError, match=r"keep_perturbed=True that is in eval: call opt.train\(\)"):
        opt.step()
    opt.train()
    before = [w.clone() for w in opt.clean_state_dict(model).values()]
    front.by_stock_loop(opt, model, front.batches(2))
    opt.eval()
    assert not any(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)])
def test_a_step_at_a_learning_rate_of_zero_needs_no_pass(lr: float | Tensor) -> None:
    """Checkpoint tools make one, to create state."""
    model = front.Net()
    base = torch.optim.AdamW(model.parameters(), lr=lr)
    before = front.snapshot(model)
    front.loss_of(model, *front.data()).backward()
    torch_ssam.wrap(base, 0.3).step()
    assert front.same_bits(model.parameters(), before)


# -- torch's attributes --------------------------------------------------------------------------------------


class Lookahead(Optimizer):
    """Keeps another optimizer and does not call Optimizer.__init__; the attributes are those of `kept`."""

    def __init__(self, base: Optimizer, kept: tuple[str, ...]) -> None:
        self.base_of_mine = base
        for name in kept:
            setattr(self, name, getattr(base, name))

    def step(self, closure: Any = None) -> Any:
        return self.base_of_mine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base_of_mine.zero_grad(set_to_none)


@pytest.mark.parametrize(
    ("kept", "missing"),
    [
        (("param_groups", "state"), "has no defaults: its __init__ does not call"),
        (("param_groups", "defaults"), "has no state: its __init__ does not call"),
        (("defaults",), "has no param_groups and no state: its __init__ does not call"),
    ],
)
def test_a_base_without_torch_s_attributes_is_refused_in_words(kept: tuple[str, ...], missing: str) -> None:
    base = Lookahead(SGD(front.Net().parameters(), lr=0.1), kept)
    with pytest.raises(
        TypeError, match=rf"wrap\(\) got Lookahead, which {missing} .*wrap the optimizer that it holds"
    ):
        torch_ssam.wrap(base)


def test_a_base_that_has_them_without_torch_s_init_trains() -> None:
    model, plain = front.Net(), front.Net()
    kept = ("param_groups", "state", "defaults")
    opt = torch_ssam.wrap(Lookahead(SGD(model.parameters(), lr=0.1), kept), 0.3, seed=7)
    expected = torch_ssam.wrap(SGD(plain.parameters(), lr=0.1), 0.3, seed=7)
    front.by_perturb(opt, model, front.batches(2))
    front.by_perturb(expected, plain, front.batches(2))
    assert front.same_bits(model.parameters(), plain.parameters())


# -- closures ------------------------------------------------------------------------------------------------


class NeedsClosure(SGD):
    def step(self, closure: Any) -> Any:
        loss = closure()
        super().step()
        return loss


class NeedsLoss(SGD):
    def step(self, closure: Any = None, *, loss: Any, **others: Any) -> Any:
        return super().step(closure)


class OwnSAM(SGD):
    """Its step() takes closure=None, and asserts that it is not None."""

    def first_step(self, zero_grad: bool = False) -> None: ...

    def second_step(self, zero_grad: bool = False) -> None: ...

    def step(self, closure: Any = None) -> Any:
        assert closure is not None, "SAM requires closure"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (NeedsClosure, "cannot step without closure"),
        (NeedsLoss, "cannot step without loss"),
        (OwnSAM, r"perturbs by itself, with first_step\(\) and second_step\(\)"),
        (torch.optim.LBFGS, "runs closures of its own"),
    ],
)
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_base_whose_step_needs_more_than_gradients_is_refused(kind: Any, why: str, scheduled: bool) -> None:
    base = kind(front.Net().parameters(), lr=0.1)
    if scheduled:  # which puts a function into the instance
        torch.optim.lr_scheduler.StepLR(base, 1)
    with pytest.raises(
        TypeError, match=rf"wrap\(\) got {kind.__name__}, which {why}; expected an optimizer whose step"
    ):
        torch_ssam.wrap(base)
    assert "noise_std" not in base.param_groups[0]


class TakesAnything(SGD):
    def step(self, *args: Any, **kwargs: Any) -> Any:
        return super().step(*args, **kwargs)


def test_a_base_whose_step_takes_anything_trains() -> None:
    model = front.Net()
    base = TakesAnything(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(base, 1)
    before = front.snapshot(model)
    front.by_perturb(torch_ssam.wrap(base, 0.3), model, front.batches(1))
    assert not front.same_bits(model.parameters(), before)


# -- checkpoints ---------------------------------------------------------------------------------------------


class OwnLayout(SGD):
    layout: Any = None

    def state_dict(self) -> Any:
        if self.layout == "raises":
            raise RuntimeError("not yet")
        return super().state_dict() if self.layout == "torch" else self.layout


@pytest.mark.parametrize(
    ("layout", "what"),
    [
        ({"base_optimizer": {}, "lookahead": {}}, r"keys \['base_optimizer', 'lookahead'\]"),
        ({"state": {}}, r"keys \['state'\]"),
        ({"state": [], "param_groups": []}, r"keys \['param_groups', 'state'\]"),
        ({"state": {}, "param_groups": [{"params": [0]}]}, r"parameter groups of \[1\] tensors"),
        ({"state": {}, "param_groups": [{"lr": 0.1}]}, r"parameter groups of \[0\] tensors"),
        ([1, 2], r"\[1, 2\]"),
    ],
)
def test_a_base_whose_checkpoints_have_a_layout_of_their_own_is_refused(layout: Any, what: str) -> None:
    base = OwnLayout(front.Net().parameters(), lr=0.1)
    base.layout = layout
    with pytest.raises(
        TypeError, match=rf"save OwnLayout, whose state_dict\(\) has a layout of its own, with .*{what}"
    ):
        torch_ssam.wrap(base)
    assert "noise_std" not in base.param_groups[0]


def test_a_base_that_cannot_save_yet_is_asked_when_it_is_saved() -> None:
    model = front.Net()
    base = OwnLayout(model.parameters(), lr=0.1)
    base.layout = "raises"
    opt = torch_ssam.wrap(base, 0.3)
    with pytest.raises(RuntimeError, match="not yet"):
        opt.state_dict()
    base.layout = {"mine": 1}
    with pytest.raises(TypeError, match="has a layout of its own"):
        opt.state_dict()
    base.layout = "torch"
    assert "draw" in opt.state_dict()["param_groups"][0]


class Named(SGD):
    """Its state goes by names, as that of optimizers for sharded training does."""

    def state_dict(self) -> Any:
        whole = super().state_dict()
        groups = [{**g, "params": [f"weight{k}" for k in g["params"]]} for g in whole["param_groups"]]
        return {"state": {f"weight{k}": entry for k, entry in whole["state"].items()}, "param_groups": groups}

    def load_state_dict(self, state_dict: Any) -> None:
        number = {f"weight{k}": k for k in range(len(list(front.Net().parameters())))}
        groups = [{**g, "params": [number[k] for k in g["params"]]} for g in state_dict["param_groups"]]
        super().load_state_dict(
            {"state": {number[k]: entry for k, entry in state_dict["state"].items()}, "param_groups": groups}
        )


def test_a_base_whose_state_goes_by_names_resumes_in_the_same_bits() -> None:
    def make() -> tuple[nn.Module, Any]:
        model = front.Net()
        base = Named(model.parameters(), lr=0.1, momentum=0.9)
        return model, torch_ssam.wrap(base, 0.3, seed=7, scale="fisher", keep_perturbed=True)

    model, opt = make()
    opt.train()
    front.by_stock_loop(opt, model, front.batches(2))
    saved = copy.deepcopy(opt.state_dict())
    assert set(saved["state"]) == {f"weight{k}" for k in range(4)}
    assert {"clean", "fisher", "momentum_buffer"} <= saved["state"]["weight0"].keys()
    other, resumed = make()
    resumed.load_state_dict(saved)
    for one, its in ((opt, model), (resumed, other)):
        one.train()
        front.by_stock_loop(one, its, front.batches(2))
        one.eval()
    assert front.same_bits(model.parameters(), other.parameters())


# -- names ---------------------------------------------------------------------------------------------------


class OwnOptions(SGD):
    """An optimizer with options that have names of the noise's."""

    def __init__(self, params: Any, **own: Any) -> None:
        super().__init__(params, lr=0.1)
        self.defaults.update(own)
        for group in self.param_groups:
            for name, value in own.items():
                group.setdefault(name, value)


@pytest.mark.parametrize(
    ("own", "names"),
    [
        ({"samples": 3}, "'samples'"),
        ({"scale": 0.5}, "'scale'"),
        ({"scale": "filter", "memory": 10}, "'memory' and 'scale'"),
        ({"noise_std": 0.1}, "'noise_std'"),
    ],
)
def test_a_base_with_options_of_its_own_that_are_called_as_ours_is_refused(
    own: dict[str, Any], names: str
) -> None:
    base = OwnOptions(front.Net().parameters(), **own)
    before = {**base.param_groups[0]}
    with pytest.raises(
        ValueError, match=rf"options of its own called {names}: so are the noise's.*Rename them in the base"
    ):
        torch_ssam.wrap(base)
    assert base.param_groups[0] == before


def test_a_copy_of_a_wrapped_base_is_wrapped_anew() -> None:
    base = SGD(front.Net().parameters(), lr=0.1)
    torch_ssam.wrap(base, 0.3)
    twin = copy.deepcopy(base)
    assert torch_ssam.wrap(twin, 0.5).param_groups[0]["noise_std"] == 0.3  # the options stay in its groups
    assert torch_ssam.wrap(base, 0.5).param_groups[0]["noise_std"] == 0.5


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_tensor_twice_in_a_group_is_named_as_that() -> None:
    p, q = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    message = "parameter 0 of the group and parameter 2 of the group are the same tensor; expected it once"
    with pytest.raises(ValueError, match=message):
        torch_ssam.wrap(SGD([p, q, p], lr=0.1))
    base = SGD([p], lr=0.1)
    base.param_groups.append({**base.param_groups[0]})
    with pytest.raises(ValueError, match="are the same tensor in two groups; expected it in one"):
        torch_ssam.wrap(base)
