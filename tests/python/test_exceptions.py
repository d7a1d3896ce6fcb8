"""Whatever interrupts a pass, the exact clean bits are back before any handler runs: exceptions, a real
SIGINT, timers that fire at arbitrary moments, and, exhaustively, an interrupt at every point of this
package's code where Python looks for signals. Parameters that others write to meanwhile are named. PEERS.md
line 16.
"""

from __future__ import annotations

import contextlib
import dis
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import nn

import torch_ssam

pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals need the main thread"
)
ROOT = Path(torch_ssam.__file__).parent


class Alarm(Exception):
    """Raised by signal handlers in these tests: an Exception, not a BaseException."""


def wrapped(model: nn.Module, **options: Any) -> Any:
    base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return torch_ssam.wrap(base, **{"noise_std": 0.3, "seed": 7, **options})


# -- exceptions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
def test_an_exception_inside_perturb_leaves_the_clean_bits_and_uses_the_draw(
    error: type[BaseException],
) -> None:
    model = front.Net()
    opt = front.ssam(model)
    clean = front.snapshot(model)
    for draw in range(2):
        with pytest.raises(error), opt.perturb():
            front.loss_of(model, *front.data()).backward()
            raise error
        assert front.same_bits(model.parameters(), clean)
        assert opt.draw == draw + 1


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("form", ["loop", "closure"])
def test_an_exception_in_any_pass_of_a_step_leaves_the_clean_bits(at: int, form: str) -> None:
    model = front.Net()
    opt = front.ssam(model, samples=2, antithetic=True, clean_weight=0.5)
    clean = front.snapshot(model)
    count = 0

    def one_pass() -> float:
        nonlocal count
        count += 1
        if count == at + 1:
            raise Alarm
        front.loss_of(model, *front.data()).backward()
        return 0.0

    try:
        if form == "closure":
            opt.step(one_pass)
        else:
            for _ in opt.perturbations():
                one_pass()
    except Alarm:
        assert front.same_bits(model.parameters(), clean)
    else:
        pytest.fail("no exception")
    assert opt.draw == 1
    opt.zero_grad()
    count = 10
    for _ in opt.perturbations():
        one_pass()
    opt.step()


def test_nested_contexts_of_two_optimizers_and_of_weight_noise_unwind_in_order() -> None:
    first, second, third = front.Net(0), front.Net(1), front.Net(2)
    one, two = front.ssam(first), wrapped(second)
    noise = torch_ssam.WeightNoise(third.parameters(), 0.5)
    clean = [front.snapshot(model) for model in (first, second, third)]
    with pytest.raises(Alarm), one.perturb(), two.perturb(), noise.applied():
        with pytest.raises(RuntimeError), noise.applied():
            pass
        raise Alarm
    for model, weights in zip((first, second, third), clean, strict=True):
        assert front.same_bits(model.parameters(), weights)


# -- written to from outside ---------------------------------------------------------------------------------


def fill(model: front.Net) -> None:
    with torch.no_grad():
        model.bias.fill_(5.0)


def load(model: front.Net) -> None:
    model.load_state_dict({**model.state_dict(), "bias": torch.full((7,), 5.0)})


def replace_data(model: front.Net) -> None:
    model.bias.data = torch.full((7,), 5.0)


def initialise(model: front.Net) -> None:
    nn.init.constant_(model.bias, 5.0)


@pytest.mark.parametrize("write", [fill, replace_data, initialise])
def test_parameters_written_to_inside_are_named_kept_and_taken_as_clean(
    write: Callable[[front.Net], None],
) -> None:
    model = front.Net()
    opt = front.ssam(model)
    expected = front.snapshot(model)
    expected[1] = torch.full((7,), 5.0)
    with (
        pytest.raises(
            torch_ssam.PerturbedWeightsChanged, match=r"Parameter 1 of shape \(7,\) was written to"
        ),
        opt.perturb(),
    ):
        write(model)
    assert front.same_bits(model.parameters(), expected)
    with pytest.raises(RuntimeError, match="without a gradient"):
        opt.step()
    front.by_perturb(opt, model, front.batches(1))


def test_a_model_loaded_inside_is_named_whole_and_kept() -> None:
    model = front.Net()
    opt = front.ssam(model)
    with (
        pytest.raises(torch_ssam.PerturbedWeightsChanged, match=r"Parameters 0 .*, 1 .*, 2 .*, 3 .* were"),
        opt.perturb(),
    ):
        load(model)
    assert front.same_bits([model.bias], [torch.full((7,), 5.0)])


def test_many_written_parameters_are_counted() -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(9)]
    opt = torch_ssam.SSAM(params, noise_std=0.1)
    with (
        pytest.raises(torch_ssam.PerturbedWeightsChanged, match="and 4 more were"),
        opt.perturb(),
        torch.no_grad(),
    ):
        torch._foreach_mul_(params, 2.0)


def test_with_an_exception_on_its_way_written_parameters_are_named_in_a_warning() -> None:
    model = front.Net()
    opt = front.ssam(model)
    with pytest.warns(RuntimeWarning, match="Parameter 1 of shape"), pytest.raises(Alarm), opt.perturb():
        fill(model)
        raise Alarm


def test_weight_noise_names_what_was_written_too() -> None:
    model = front.Net()
    noise = torch_ssam.WeightNoise(model.parameters(), 0.5)
    with pytest.raises(torch_ssam.PerturbedWeightsChanged, match="Parameter 1 "), noise.applied():
        fill(model)
    with noise.applied():
        pass


# -- every point where a signal can strike -------------------------------------------------------------------

# Python 3.11 looks for signals on entry to a function, after calls into C, and on jumps backwards. The tracer
# raises at the instruction after those, and on entry.
CHECKS = ("RESUME", "CALL", "JUMP_BACKWARD", "YIELD_VALUE", "SEND")
_NAMES: dict[Any, dict[int, str]] = {}


def _operations(code: Any) -> dict[int, str]:
    if code not in _NAMES:
        _NAMES[code] = {i.offset: i.opname for i in dis.get_instructions(code)}
    return _NAMES[code]


class InterruptAt:
    """Raises `error` at the n-th point of torch_ssam's Python code where a signal handler could run."""

    def __init__(self, n: int, error: BaseException) -> None:
        self.left, self.error = n, error
        self.last: dict[int, str] = {}
        self.where = ""

    def _strike(self, frame: FrameType, event: str) -> None:
        if self.left == 0:
            self.left = -1
            self.where = f"{frame.f_code.co_name}:{frame.f_lineno} {event}"
            sys.settrace(None)
            raise self.error
        self.left -= 1

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if Path(frame.f_code.co_filename).parent != ROOT or self.left < 0:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self.last.pop(id(frame), None)
        self._strike(frame, "call")
        return self.inside

    def inside(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode" and self.left >= 0:
            before = self.last.get(id(frame), "")
            if before.startswith(CHECKS):
                self._strike(frame, f"after {before}")
            self.last[id(frame)] = _operations(frame.f_code).get(frame.f_lasti, "")
        return self.inside


@contextlib.contextmanager
def _traced(tracer: InterruptAt) -> Iterator[None]:
    old = sys.gettrace()
    sys.settrace(tracer)
    try:
        yield
    finally:
        sys.settrace(old)


def perturb_block(opt: Any, model: nn.Module) -> None:
    with opt.perturb():
        pass


def perturbations_block(opt: Any, model: nn.Module) -> None:
    for _ in opt.perturbations():
        pass


def closure_block(opt: Any, model: nn.Module) -> None:
    opt.step(lambda: None)


def noise_block(noise: Any, model: nn.Module) -> None:
    with noise.applied():
        pass


def eval_block(opt: Any, model: nn.Module) -> None:
    opt.train()
    opt.eval()


def make_noise(model: nn.Module) -> Any:
    return torch_ssam.WeightNoise(model.parameters(), 0.3, seed=1)


def make_kept(model: nn.Module) -> Any:
    return front.ssam(model, keep_perturbed=True)


def make_many(model: nn.Module) -> Any:
    return front.ssam(model, samples=2, clean_weight=0.5)


BLOCKS: dict[str, tuple[Callable[..., Any], Callable[..., None]]] = {
    "perturb": (front.ssam, perturb_block),
    "wrap": (wrapped, perturb_block),
    "perturbations": (make_many, perturbations_block),
    "closure": (front.ssam, closure_block),
    "weight noise": (make_noise, noise_block),
    "train and eval": (make_kept, eval_block),
}


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="NOT TESTED here: the opcode names are Python 3.11's"
)
@pytest.mark.parametrize(
    ("block", "error"), [("perturb", Alarm), *((block, KeyboardInterrupt) for block in sorted(BLOCKS))]
)
def test_an_interrupt_at_any_point_leaves_the_clean_bits_before_the_handler_runs(
    block: str, error: type[BaseException]
) -> None:
    make, body = BLOCKS[block]
    model = front.Net()
    clean = front.snapshot(model)
    opt = make(model)
    body(opt, model)
    points = 0
    for n in range(2000):
        opt = make(model)
        tracer = InterruptAt(n, error())
        with torch.no_grad():
            for p, w in zip(model.parameters(), clean, strict=True):
                p.copy_(w)
        try:
            with _traced(tracer):
                body(opt, model)
        except error as caught:
            # Here a user saves the model; the traceback, and all frames in it, still lives.
            if block == "train and eval":
                opt.eval()
            assert front.same_bits(model.parameters(), clean), f"at point {n}, {tracer.where}"
            assert caught.__traceback__ is not None
        if tracer.left >= 0:
            break
        points += 1
        # The optimizer is usable again.
        if block == "train and eval":
            opt.eval()
        if not isinstance(opt, torch_ssam.WeightNoise):
            opt.zero_grad()
        body(opt, model)
        if block != "closure":
            assert front.same_bits(model.parameters(), clean), f"later, after point {n}, {tracer.where}"
    assert 20 < points < 1999


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="NOT TESTED here: the opcode names are Python 3.11's"
)
@pytest.mark.parametrize("make", [front.ssam, wrapped], ids=["ssam", "wrap"])
def test_an_interrupt_at_any_point_of_a_kept_step_leaves_clean_weights_within_reach(
    make: Callable[..., Any],
) -> None:
    """lr is 0, so that the clean weights are known wherever the update was when it was cut off."""
    model = front.Net()
    clean = front.snapshot(model)
    for n in range(2000):
        opt = make(model, keep_perturbed=True)
        opt.train()
        opt.param_groups[0]["lr"] = opt.param_groups[0]["weight_decay"] = 0.0
        front.loss_of(model, *front.data()).backward()
        tracer = InterruptAt(n, KeyboardInterrupt())
        with contextlib.suppress(KeyboardInterrupt), _traced(tracer):
            opt.step()
        carried = [
            entry["clean"] for _, entry in sorted(opt.state_dict()["state"].items()) if "clean" in entry
        ]
        assert front.same_bits(carried or model.parameters(), clean), f"at point {n}, {tracer.where}"
        opt.eval()
        assert front.same_bits(model.parameters(), clean), f"at point {n}, {tracer.where}"
        if tracer.left >= 0:
            break
    assert n > 20


# -- real signals --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def handler(number: int, function: Any) -> Iterator[None]:
    old = signal.signal(number, function)
    try:
        yield
    finally:
        signal.signal(number, old)


def raise_alarm(*_: Any) -> None:
    raise Alarm


@pytest.mark.parametrize("kind", ["default", "custom"])
def test_a_signal_raised_inside_leaves_the_clean_bits(kind: str) -> None:
    model = front.Net()
    opt = front.ssam(model)
    clean = front.snapshot(model)
    function, error = (
        (signal.default_int_handler, KeyboardInterrupt) if kind == "default" else (raise_alarm, Alarm)
    )
    with handler(signal.SIGINT, function):
        for _ in range(3):
            try:
                with opt.perturb():
                    signal.raise_signal(signal.SIGINT)
            except error:
                assert front.same_bits(model.parameters(), clean)
            else:
                pytest.fail("no signal")
    assert opt.draw == 3


def test_a_signal_during_the_last_operation_of_the_block_strikes_in_the_exit_and_is_survived() -> None:
    """`a @ b` as the last statement: Python looks for the signal only on entry to the exit."""
    model = front.Net()
    opt = front.ssam(model)
    clean = front.snapshot(model)
    big = torch.ones(700, 700)
    hits = 0
    with handler(signal.SIGALRM, raise_alarm):
        for _ in range(20):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.002)
                with opt.perturb():
                    big @ big
                time.sleep(0.05)
            except Alarm:
                hits += 1
                assert front.same_bits(model.parameters(), clean)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
    assert hits == 20


@pytest.mark.parametrize("form", ["perturb", "perturbations", "kept", "wrap"])
def test_timers_at_random_moments_of_training_leave_the_clean_bits(form: str) -> None:
    model = front.Net()
    make = wrapped if form == "wrap" else front.ssam
    options = {"kept": {"keep_perturbed": True}, "perturbations": {"samples": 3}}.get(form, {})
    opt = make(model, **options)
    opt.param_groups[0]["lr"] = opt.param_groups[0]["weight_decay"] = 0.0
    clean = front.snapshot(model)
    todo = front.batches(2)
    choose = random.Random(1)
    drive = {"kept": front.by_stock_loop, "perturbations": front.by_perturbations}.get(form, front.by_perturb)
    opt.train()
    drive(opt, model, todo)
    opt.eval()
    hits = 0
    with handler(signal.SIGALRM, raise_alarm):
        for _ in range(100):
            torch.set_grad_enabled(True)  # torch's own no_grad() may be cut off in its exit
            end = time.monotonic() + 1.0
            try:
                signal.setitimer(signal.ITIMER_REAL, choose.uniform(1e-5, 4e-3))
                while time.monotonic() < end:
                    opt.train()
                    drive(opt, model, todo)
            except Alarm:
                hits += 1
                if form == "kept":
                    opt.eval()
                assert front.same_bits(model.parameters(), clean)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
    torch.set_grad_enabled(True)
    assert hits >= 95  # torch has finalizers of its own, in which a signal gets lost


def test_an_interrupt_of_our_code_leaves_gradients_enabled() -> None:
    model = front.Net()
    for make, body in BLOCKS.values():
        for n in range(0, 400, 7):
            opt = make(model)
            tracer = InterruptAt(n, KeyboardInterrupt())
            with contextlib.suppress(KeyboardInterrupt), _traced(tracer):
                body(opt, model)
            assert torch.is_grad_enabled(), tracer.where


SCRIPT = """
import os, sys, torch, torch_ssam
torch.manual_seed(0)
model = torch.nn.Linear(300, 300)
opt = torch_ssam.SSAM(model.parameters(), lr=0.0, noise_std=1.0)
clean = [p.detach().clone() for p in model.parameters()]
x = torch.ones(64, 300)
with opt.perturb():
    model(x).square().mean().backward()
opt.step()
print("ready", flush=True)
try:
    while True:
        with opt.perturb():
            model(x).square().mean().backward()
        opt.step()
        opt.zero_grad()
except KeyboardInterrupt:
    same = all(torch.equal(p, w) for p, w in zip(model.parameters(), clean))
    print("clean" if same else "perturbed", flush=True)
    sys.exit(0 if same else 1)
"""


def test_ctrl_c_in_a_running_program_leaves_the_clean_bits() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(random.Random().uniform(0.0, 0.2))
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert (out, process.returncode) == ("clean\n", 0), error
