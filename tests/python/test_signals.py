"""Signals during a pass: exhaustively, an interrupt at every point of this package's code where Python looks for signals;
timers that fire at arbitrary moments; a real Ctrl-C. The exact clean bits are back before any handler runs, while the
traceback with all its frames still lives. test_peers.py, row 16.
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
        if not frame.f_code.co_filename.startswith(f"{ROOT}{os.sep}") or self.left < 0:
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


def make_regenerated(model: nn.Module, **options: Any) -> Any:
    return front.ssam(model, **front.REGENERATED, **options)


def make_by_filter(model: nn.Module, **options: Any) -> Any:
    return front.ssam(model, scale="filter", **options)


def make_kept_adamw(model: nn.Module, **options: Any) -> Any:
    return front.adamw(model, amsgrad=True, **options)


def make_many(model: nn.Module) -> Any:
    return front.ssam(model, samples=2, clean_weight=0.5)


BLOCKS: dict[str, tuple[Callable[..., Any], Callable[..., None]]] = {
    "perturb": (front.ssam, perturb_block),
    "regenerate": (make_regenerated, perturb_block),
    "filter": (make_by_filter, perturb_block),
    "wrap": (front.wrapped_sgd, perturb_block),
    "perturbations": (make_many, perturbations_block),
    "closure": (front.ssam, closure_block),
    "weight noise": (make_noise, noise_block),
    "train and eval": (make_kept, eval_block),
}


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="NOT TESTED here: the opcode names are Python 3.11's"
)
@pytest.mark.parametrize(
    ("block", "error"), [("perturb", front.Alarm), *((block, KeyboardInterrupt) for block in sorted(BLOCKS))]
)
def test_an_interrupt_at_any_point_leaves_the_clean_bits_before_the_handler_runs(
    block: str, error: type[BaseException]
) -> None:
    make, body = BLOCKS[block]
    model = front.Net()
    front.on_a_grid(model)
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
        except error:
            # Here a user saves the model; the traceback, and all frames in it, still lives.
            if block == "train and eval":
                opt.eval()
            assert front.same_bits(model.parameters(), clean), f"at point {n}, {tracer.where}"
            assert sys.exc_info()[2] is not None
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
@pytest.mark.parametrize(
    "make",
    [front.ssam, make_kept_adamw, front.wrapped_sgd, make_regenerated, make_by_filter],
    ids=["ssam", "adamw", "wrap", "regenerate", "filter"],
)
def test_an_interrupt_at_any_point_of_a_kept_step_leaves_clean_weights_within_reach(
    make: Callable[..., Any],
) -> None:
    """lr is 0, so that the clean weights are known wherever the update was when it was cut off."""
    model = front.Net()
    front.on_a_grid(model)
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
    raise front.Alarm


@pytest.mark.parametrize("kind", ["default", "custom"])
def test_a_signal_raised_inside_leaves_the_clean_bits(kind: str) -> None:
    model = front.Net()
    opt = front.ssam(model)
    clean = front.snapshot(model)
    function, error = (
        (signal.default_int_handler, KeyboardInterrupt) if kind == "default" else (raise_alarm, front.Alarm)
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
            except front.Alarm:
                hits += 1
                assert front.same_bits(model.parameters(), clean)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
    assert hits == 20


@pytest.mark.parametrize("form", ["perturb", "perturbations", "kept", "wrap"])
def test_timers_at_random_moments_of_training_leave_the_clean_bits(form: str) -> None:
    model = front.Net()
    make = front.wrapped_sgd if form == "wrap" else front.ssam
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
            except front.Alarm:
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
import os, signal, sys, torch, torch_ssam
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background ignores it
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
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(random.Random().uniform(0.0, 0.2))
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (out, process.returncode) == ("clean\n", 0), error
