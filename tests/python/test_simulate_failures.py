"""What torch_ssam.simulate recognises as failure, and how it is stopped: signatures, progress, Ctrl-C, bad
input.

Failures are provoked with the bound or threshold of the theory on the wrong side, and not with it on the
right one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from torch_ssam import theory
from torch_ssam.simulate import Simulation, simulate

# --- Failure signatures
# -------------------------------------------------------------------------------------------------


def flags(run: Simulation) -> dict[str, float]:
    return {
        name: float(getattr(run, name).mean())
        for name in ("diverged", "collapsed", "oscillating", "unbalanced")
    }


NONE = {"diverged": 0.0, "collapsed": 0.0, "oscillating": 0.0, "unbalanced": 0.0}


def test_a_healthy_run_shows_no_failure() -> None:
    run = simulate(
        [1.0, -2.0], 2, noise_std=0.5, lr=0.005, steps=5000, replicates=30, init=[[1.0, -1.0], [1.0, 1.0]]
    )
    assert flags(run) == NONE
    assert run.explanations == [""] * 30
    assert run.explain() == "no failure recognised"


def test_divergence_is_named_with_the_step_size_bound() -> None:
    run = simulate(1.0, 2, noise_std=0.5, lr=2.0, steps=300, init=2.0, replicates=4, record_every=1)
    assert run.diverged.all()
    assert np.isnan(run.weights[-1]).all()
    for replicate, step in enumerate(run.diverged_at):
        assert np.isfinite(run.weights[step - 1, replicate]).all()
        assert np.isnan(run.weights[step:, replicate]).all()
    assert run.step_size_bound[0] == theory.step_size_bound([[2.0], [2.0]], [1.0], 0.5)
    assert f"lr < {run.step_size_bound[0]:.4g}" in run.explanations[0]
    assert f"radius={theory.projection_radius([1.0], 0.5, 2):.4g}" in run.explanations[0]
    projected = simulate(1.0, 2, noise_std=0.5, lr=2.0, steps=300, init=2.0, radius=1.5)
    assert not projected.diverged.any()
    assert np.sqrt((projected.weights[1:] ** 2).sum(axis=(1, 2, 3))).max() <= 1.5 * (1 + 1e-12)


def test_collapse_is_named_with_the_threshold_on_its_side() -> None:
    below = simulate([1.0, 0.2], 2, noise_std=0.5, lr=0.01, steps=8000, replicates=5)
    assert flags(below) == {**NONE, "collapsed": 1.0}
    assert "coordinate 1, where" in below.explanations[0]
    assert f"existence threshold {theory.existence_threshold(0.5, 2):.4g}" in below.explanations[0]
    trapped = simulate(0.3, 3, noise_std=0.4, lr=0.005, steps=4000, init=0.01, replicates=5)
    assert trapped.collapsed.all()
    assert "zero is a minimum too" in trapped.explanations[0]
    zero = simulate([0.0, 1.0], 2, noise_std=0.3, lr=0.005, steps=4000)
    assert not zero.collapsed.any()  # a target of zero is reached, not lost


def test_missing_balance_is_named_with_its_rate() -> None:
    short = simulate(1.0, 2, noise_std=0.3, lr=0.002, steps=500, init=[2.0, 0.5])
    assert flags(short) == {**NONE, "unbalanced": 1.0}
    assert f"never below {theory.balancing_rate_bound(0.3, 2):.4g}" in short.explanations[0]
    silent = simulate(1.0, 2, noise_std=0.0, lr=0.01, steps=3000, init=[2.0, 0.2])
    assert silent.unbalanced.all()
    assert "Without noise" in silent.explanations[0]
    by_design = simulate(1.0, 2, noise_std=[0.25, 1.0], lr=0.002, steps=20_000, init=[0.5, 2.0])
    assert not by_design.unbalanced.any()  # equal |w_l| / noise_std_l is balance


def test_oscillation_is_named_with_the_limit_of_the_curvature() -> None:
    limit = 2 / theory.critical_points(1.0, 0.5, 2).minimum_eigenvalues.max()
    above = simulate(1.0, 2, noise_std=0.5, lr=1.1 * limit, steps=2000, expected=True, init=0.87)
    assert flags(above) == {**NONE, "oscillating": 1.0}
    assert "Oscillating" in above.explanations[0]
    below = simulate(1.0, 2, noise_std=0.5, lr=0.9 * limit, steps=2000, expected=True, init=0.87)
    assert flags(below) == NONE


@pytest.mark.parametrize("lr", [0.35, 0.4, 0.45])
def test_irregular_oscillation_far_above_the_limit_is_named_too(lr: float) -> None:
    limit = 2 / theory.critical_points(2.0, 0.3, 2).minimum_eigenvalues.max()
    assert lr > 1.3 * limit
    run = simulate(2.0, 2, noise_std=0.3, lr=lr, steps=2000, expected=True)
    assert run.oscillating.all()


def test_layers_that_large_steps_keep_apart_are_not_told_to_run_longer() -> None:
    run = simulate([1.0, 2.0], 2, noise_std=0.3, lr=3.0, steps=200, radius=2.0)
    assert run.unbalanced.all()
    assert "Run longer" not in run.explanations[0]
    assert "Use a smaller lr" in run.explanations[0].split("Not balanced")[1]


def test_an_unknown_cpu_capability_is_reported_and_the_best_is_used() -> None:
    code = "from torch_ssam.simulate import _C; print(_C.simulate_capability())"
    done = {
        name: subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "TORCH_SSAM_CPU_CAPABILITY": name},
            capture_output=True,
            text=True,
            check=True,
        )
        for name in ("sse9", "")
    }
    assert done["sse9"].stdout == done[""].stdout
    assert (
        "simulator: TORCH_SSAM_CPU_CAPABILITY=sse9 is not one of plain, avx2, avx512" in done["sse9"].stderr
    )
    assert "simulator" not in done[""].stderr


# --- Progress, Ctrl-C, bad input
# ----------------------------------------------------------------------------------------


def test_progress_calls_come_in_order_and_reach_the_end() -> None:
    seen: list[tuple[int, int]] = []
    simulate(
        np.ones(500),
        3,
        noise_std=0.1,
        lr=0.01,
        steps=4000,
        replicates=20,
        progress=lambda a, b: seen.append((a, b)),
    )
    assert seen[-1] == (4000, 4000)
    assert seen == sorted(seen)


def test_progress_true_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    simulate(1.0, noise_std=0.1, lr=0.01, steps=100, progress=True)
    assert "100%" in capsys.readouterr().err


def test_an_exception_in_progress_stops_the_run() -> None:
    def stop(done: int, steps: int) -> None:
        raise RuntimeError("that will do")

    with pytest.raises(RuntimeError, match="that will do"):
        simulate(np.ones(64), 3, noise_std=0.1, lr=0.01, steps=10**9, record_every=10**9, progress=stop)


def test_ctrl_c_stops_it_and_raises_keyboard_interrupt() -> None:
    code = (
        "import signal\n"
        "from torch_ssam.simulate import simulate\n"
        # A shell that runs the tests in the background ignores it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('ready', flush=True)\n"
        "try:\n"
        "    simulate([1.0] * 100, 3, noise_std=0.1, lr=0.01, steps=2 * 10**9, record_every=10**9, "
        "replicates=8,\n"
        "             covariance=[1.0] * 100, radius=50.0)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert output == "interrupted\n"
    assert process.returncode == 0


def test_other_python_threads_run_meanwhile() -> None:
    import threading

    ticks = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(1)
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    seen: list[int] = []

    def progress(done: int, steps: int) -> None:
        seen.append(len(ticks))
        if len(seen) == 4:
            raise StopIteration

    with pytest.raises(StopIteration):
        simulate(np.ones(64), 3, noise_std=0.1, lr=0.01, steps=10**9, record_every=10**9, progress=progress)
    stop.set()
    thread.join()
    assert seen[-1] > seen[0]


GOOD: dict[str, Any] = {"target": [1.0, 2.0], "noise_std": 0.1, "lr": 0.1, "steps": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": None}, "target must be given unless"),
        ({"target": []}, "target must be a number or have shape"),
        ({"target": [[1.0]]}, r"shape \(1, 1\)"),
        ({"target": [1.0, np.nan]}, "target must be finite, got nan at flat index 1"),
        ({"depth": 1}, "depth must be at least 2, got 1"),
        ({"noise_std": -0.1}, "noise_std must be a finite number >= 0, got -0.1"),
        (
            {"noise_std": [0.1, 0.2, 0.3]},
            r"noise_std must be a number or have one of the shapes \(2,\), \(2, 2\)",
        ),
        ({"lr": -1.0}, "lr must be a finite number >= 0"),
        ({"lr": np.inf}, "lr must be a finite number"),
        ({"steps": -1}, "steps must be an integer >= 0, got -1"),
        ({"init": [1.0, 2.0, 3.0]}, "init must be a number or have one of the shapes"),
        ({"init": np.nan}, "init must be finite"),
        ({"replicates": 0}, "replicates must be an integer >= 1, got 0"),
        ({"seed": 2**63}, "seed must be a 64-bit integer"),
        ({"covariance": np.eye(3)}, r"covariance must have shape \(2, 2\) or \(2,\) for 2 targets"),
        ({"covariance": [[1.0, 2.0], [2.0, 1.0]]}, "positive semidefinite"),
        ({"covariance": [1.0, -1.0]}, "variances >= 0"),
        ({"distribution": "cauchy"}, "'gaussian' or 'rademacher', got 'cauchy'"),
        ({"lr_decay": "cosine"}, "lr_decay must be None or 'harmonic', got 'cosine'"),
        ({"radius": 0.0}, "radius must be a finite number > 0"),
        ({"record_every": 0}, "record_every must be None or an integer >= 1, got 0"),
        ({"threads": 0}, "threads must be None or an integer >= 1"),
        ({"batch_size": 2}, "batch_size 2 needs data"),
        ({"data": (np.ones((3, 3)), np.ones(3))}, "one value per column of X, got 2"),
        ({"data": (np.ones((3, 2)), np.ones(4))}, "data must be X of shape"),
        ({"data": 3}, "data must be a pair"),
        ({"data": (np.full((3, 2), np.inf), np.ones(3))}, "data inputs must be finite"),
        ({"data": (np.ones((3, 2)), np.ones(3)), "covariance": np.eye(2)}, "exclude each other"),
        ({"steps": 10**8, "record_every": 1, "replicates": 10**6}, "raise record_every"),
        ({"steps": 2**31 - 1, "record_every": 1, "replicates": 10**4}, "raise record_every"),  # at once
        (
            {"data": (np.ones((3, 2)), np.ones(3)), "batch_size": 2**62},
            r"below 2\^31, got .* and 4611686018427387904",
        ),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(**{**GOOD, **change})


@pytest.mark.parametrize(
    "change", [{"steps": 1.5}, {"target": "abc"}, {"depth": "2"}, {"progress": 3}, {"distribution": 1}]
)
def test_arguments_of_a_wrong_type_raise_type_error(change: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        simulate(**{**GOOD, **change})
