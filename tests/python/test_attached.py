"""An attached model: its copies and pickles are clean and its state_dict too (test_clean_weights.py), and in eval mode it
is noticed at perturbed weights. An optimizer that is let go in train puts the clean weights back. test_peers.py, row 32.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

import torch_ssam
from torch_ssam.noise.last import restore_at_last

MAKERS: dict[str, Callable[..., Any]] = {"ssam": front.ssam, "wrap": front.wrapped_adamw}


def by_torch_save(what: Any) -> Any:
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_pickle(what: Any) -> Any:
    return pickle.loads(pickle.dumps(what))


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": by_pickle,
    "save": by_torch_save,
}
MEMORIES: dict[str, dict[str, Any]] = {
    "copy": {},
    "regenerate": front.REGENERATED,
    "masters": {"master_dtype": torch.float32},
}


class Whole(nn.Module):
    """Tied weights, a frozen one, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = front.Net()
        self.norm = nn.Linear(4, 4)
        self.norm.bias.requires_grad_(False)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return front.loss_of(self.net, x, y) + self.second(self.first(self.norm(x[:, :4]))).square().mean()


def in_train(kind: str = "ssam", **options: Any) -> tuple[Whole, Any, list[Tensor]]:
    """A model after two steps in train, its optimizer, and its clean weights."""
    model = Whole()
    if options.get("memory") == "regenerate":
        front.on_a_grid(model)
    if options.get("master_dtype"):
        model = model.bfloat16()
    dtype = next(model.parameters()).dtype
    if "memory" in options:
        options["lr"] = 0.0  # on the grid the noise comes off without rounding
    opt = MAKERS[kind](model, keep_perturbed=True, **options)
    opt.train()
    for x, y in front.batches(2, dtype=dtype):
        opt.zero_grad()
        model(x, y).backward()
        opt.step()
    clean = [opt.clean_state_dict(model)[name].clone() for name, _ in model.named_parameters()]
    assert not front.same_bits(model.parameters(), clean)
    return model, opt, clean


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("memory", MEMORIES)
def test_copies_of_an_attached_model_are_clean_and_plain(memory: str, how: str) -> None:
    model, opt, clean = in_train(**MEMORIES[memory])
    noisy = front.snapshot(model)
    opt.attach(model)
    other = COPIES[how](model)
    assert front.same_bits(other.parameters(), clean)
    assert front.same_bits(model.parameters(), noisy)
    assert other.first.weight is other.second.weight
    assert other.steps == 3
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert type(p) is type(q)
        assert p.requires_grad == q.requires_grad
        assert not vars(q), "hooks went into the copy"
        assert q.data_ptr() != p.data_ptr()
    with torch.no_grad():  # the copy is nobody's clean weights
        for q in other.parameters():
            q.fill_(7.0)
    opt.eval()
    assert front.same_bits(model.parameters(), clean)
    assert front.same_bits(COPIES[how](model).parameters(), clean)
    again = copy.deepcopy(other)
    assert front.same_bits(again.parameters(), other.parameters())


@pytest.mark.parametrize("how", COPIES)
def test_parts_containers_and_copies_inside_a_pass_are_clean(how: str) -> None:
    model, opt, clean = in_train()
    opt.attach(model)
    assert front.same_bits(COPIES[how](model.net).parameters(), clean[:4])
    assert front.same_bits(COPIES[how]({"models": [model]})["models"][0].parameters(), clean)
    assert front.same_bits([COPIES[how](model.net.first)], clean[:1])
    other = front.Net()
    before = front.snapshot(other)
    plain = front.ssam(other)
    plain.attach(other)
    with plain.perturb():
        x, y = front.data()
        loss = front.loss_of(other, x, y)
        assert front.same_bits(COPIES[how](other).parameters(), before)
        loss.backward()  # copying has touched nothing that autograd saved
    plain.step()


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("order", ["model first", "optimizer first"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_a_model_and_its_optimizer_that_are_copied_together_go_on_in_the_same_bits(
    memory: str, order: str, how: str
) -> None:
    model, opt, _ = in_train(**MEMORIES[memory])
    opt.attach(model)
    noisy = front.snapshot(model)
    if order == "model first":
        twin_model, twin = COPIES[how]((model, opt))
    else:
        twin, twin_model = COPIES[how]((opt, model))
    params = [p for group in twin.param_groups for p in group["params"]]
    assert all(p is q for p, q in zip(params, twin_model.parameters(), strict=True))
    assert front.same_bits(twin_model.parameters(), noisy)
    dtype = next(model.parameters()).dtype
    for x, y in front.batches(2, dtype=dtype):
        for one, net in ((opt, model), (twin, twin_model)):
            one.zero_grad()
            net(x, y).backward()
            one.step()
    assert front.same_bits(twin_model.parameters(), model.parameters())
    opt.eval()
    twin.eval()
    assert front.same_bits(twin_model.parameters(), model.parameters())


def test_the_methods_go_with_their_handles_and_serve_several_optimizers() -> None:
    model = nn.ModuleList([front.Net(0), front.Net(1)])
    clean = front.snapshot(model)
    opts = [front.ssam(net, keep_perturbed=True) for net in model]
    handles = [handle for opt in opts for handle in opt.attach(model)]
    again = opts[0].attach(model)
    for opt in opts:
        opt.train()
    assert front.same_bits(copy.deepcopy(model).parameters(), clean)
    for handle in handles:
        handle.remove()
    assert front.same_bits(list(copy.deepcopy(model).parameters())[:4], clean[:4]), "attached again"
    assert not front.same_bits(list(copy.deepcopy(model).parameters())[4:], clean[4:])
    for handle in again:
        handle.remove()
    assert not any(vars(p) for p in model.parameters())
    assert front.same_bits(copy.deepcopy(model).parameters(), model.parameters())


def test_parametrized_weights_are_copied_clean() -> None:
    model = parametrizations.weight_norm(nn.Linear(4, 4))
    clean = front.snapshot(model)
    opt = front.ssam(model, keep_perturbed=True)
    opt.attach(model)
    opt.train()
    assert front.same_bits(copy.deepcopy(model).parameters(), clean)


def test_attributes_and_a_deepcopy_of_a_module_s_own_are_kept() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.weight.tag = "tagged"  # type: ignore[attr-defined]

        def __deepcopy__(self, memo: dict[int, Any]) -> Own:
            made = Own()
            made.weight = copy.deepcopy(self.weight, memo)
            return made

    model = Own()
    opt = torch_ssam.SSAM(model.parameters(), noise_std=0.5, keep_perturbed=True, seed=0)
    opt.attach(model)
    opt.train()
    assert front.same_bits([copy.deepcopy(model).weight], [torch.ones(3)])
    saved = pickle.loads(pickle.dumps(model.weight))
    assert saved.tag == "tagged"  # as for any parameter
    assert front.same_bits([saved], [torch.ones(3)])
    assert vars(saved) == {"tag": "tagged"}


# -- eval ----------------------------------------------------------------------------------------------------

NOTICED = "attached model in eval mode runs at perturbed weights"


def test_a_forward_in_eval_mode_at_perturbed_weights_warns_once_and_says_what_to_do() -> None:
    model = front.Net()
    opt = front.ssam(model, keep_perturbed=True)
    opt.attach(model)
    x, _ = front.data()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.eval()
        model(x)  # clean
        model.train()
        opt.train()
        model(x)  # training
        model.eval()
        with opt.clean_weights():
            model(x)
        opt.eval()
        model(x)
        opt.train()
    with (
        pytest.warns(UserWarning, match=rf"{NOTICED}.*opt\.eval\(\).*opt\.clean_weights\(\)"),
        torch.no_grad(),
    ):
        model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
        copy.deepcopy(model)(x)
        by_pickle(model).eval()(x)


def test_inside_an_explicit_pass_eval_mode_is_as_it_should_be(recwarn: pytest.WarningsRecorder) -> None:
    model = front.Net().eval()
    opt = front.ssam(model)
    opt.attach(model)
    front.by_perturb(opt, model, front.batches(2))
    assert not [w for w in recwarn if NOTICED in str(w.message)]


def test_attaching_breaks_no_compiled_graph() -> None:
    model = front.Net()
    opt = front.ssam(model, keep_perturbed=True)
    opt.attach(model)
    opt.train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x, _ = front.data()
    for mode in (True, False):
        model.train(mode)
        torch.testing.assert_close(compiled(x), front.Net.forward(model, x))


def test_what_torchscript_cannot_compile_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    opt = front.ssam(model)
    handles = opt.attach(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(AttributeError, match=r"call remove\(\) of the handles"):
            torch.jit.script(model)
        for handle in handles:
            handle.remove()
        assert torch.equal(torch.jit.script(model)(torch.ones(2, 3)), model(torch.ones(2, 3)))


# -- let go in train -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORIES)
def test_an_optimizer_that_is_let_go_in_train_puts_the_clean_weights_back(memory: str) -> None:
    model, opt, clean = in_train(**MEMORIES[memory])
    gc.disable()
    try:
        del opt
        assert front.same_bits(model.parameters(), clean), "only the garbage collector would do it"
    finally:
        gc.enable()


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_optimizers_do_so_too_and_are_free_at_once(how: str) -> None:
    model, opt, clean = in_train("wrap")
    twin_model, twin = COPIES[how]((model, opt))
    gc.collect()
    gc.disable()
    try:
        del twin
        assert front.same_bits(twin_model.parameters(), clean)
    finally:
        gc.enable()
    assert not front.same_bits(model.parameters(), clean)


@pytest.mark.parametrize("place", ["thread", "mode", "inference", "compiling"])
def test_it_is_let_go_by_the_garbage_collector_in_any_mode_and_thread(
    place: str, request: pytest.FixtureRequest
) -> None:
    model, opt, clean = in_train()
    request.addfinalizer(gc.enable)
    gc.disable()
    opt.itself = opt  # a cycle
    del opt
    assert not front.same_bits(model.parameters(), clean)
    if place == "thread":
        thread = threading.Thread(target=gc.collect)
        thread.start()
        thread.join()
    elif place == "mode":
        with FlopCounterMode(display=False), torch._subclasses.FakeTensorMode():
            gc.collect()
    elif place == "inference":
        with torch.inference_mode():
            gc.collect()
    else:

        def step(x: Tensor) -> Tensor:
            gc.collect()
            return x + 1

        torch.compile(step, backend="eager")(torch.ones(2))
    assert front.same_bits(model.parameters(), clean)


def test_weights_that_others_wrote_to_are_kept_and_named_when_it_is_let_go() -> None:
    model, opt, clean = in_train()
    with torch.no_grad():
        model.net.bias.fill_(2.0)
    with pytest.warns(RuntimeWarning, match=r"let go in train: Parameter .* of shape \(7,\) was written to"):
        del opt
    assert torch.equal(model.net.bias, torch.full((7,), 2.0))
    assert front.same_bits([model.net.first], clean[:1])


def test_a_signal_in_the_middle_leaves_the_clean_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model, opt, clean = in_train()
    calls = []

    def restore(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(*arguments)

    from torch_ssam.ops.entries import ops

    real = ops.restore_
    monkeypatch.setattr(ops, "restore_", restore)
    monkeypatch.setattr(sys, "unraisablehook", lambda what: calls.append(what.exc_type))
    del opt
    assert front.same_bits(model.parameters(), clean)
    assert calls == [1, 1, KeyboardInterrupt], "it is printed, since a finalizer cannot raise it"


def test_nothing_is_done_while_the_interpreter_ends() -> None:
    model, opt, _ = in_train()
    noisy = front.snapshot(model)
    restore_at_last(opt._noise, ending=lambda: True)
    assert front.same_bits(model.parameters(), noisy)
    program = (
        "import torch, torch_ssam\n"
        "w = torch.nn.Parameter(torch.ones(3))\n"
        "opt = torch_ssam.SSAM([w], noise_std=0.5, keep_perturbed=True)\n"
        "opt.train()\n"
        "me = opt.me = opt\n"  # a cycle, of which the end of the interpreter finds the pieces
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
