"""examples/python/analog_hardware.py: its short form with each simulator, what it says without one, its table by hand.

A simulator that is not installed is named among what is skipped. What the full form finds is in docs/deploy.md.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_ssam.compare import Data

pytest.importorskip("sklearn")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "python"))

import analog_hardware


def need(module: str, package: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            importlib.import_module(module)
        except ImportError as error:
            pytest.skip(f"NOT TESTED here: {package} ({error})")


@pytest.mark.parametrize("simulator", analog_hardware.SIMULATORS)
def test_the_short_form_prints_what_is_left_of_each_method(
    simulator: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _, columns = analog_hardware.SIMULATORS[simulator]
    need(module, simulator)
    out = tmp_path / "analog.json"
    assert analog_hardware.main(["--quick", "--simulator", simulator, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{simulator}: trainings 1, chips of each 3; 95% intervals over chips" in printed
    results = json.loads(out.read_text())["results"]
    assert list(results) == list(analog_hardware.METHODS)
    for method, (run,) in results.items():
        assert method in printed
        assert list(run) == ["clean", *columns]
        assert run["clean"][0] > 85
        assert len({tuple(run[column][chip] for column in columns) for chip in range(3)}) == 3, "chips differ"
        assert all(30 < value < 100 for column in columns for value in run[column])
    # Noise and drift cost something, and less where training knew of them.
    worst = min(columns, key=lambda column: sum(results["SGD"][0][column]))
    plain, ours = (results[m][0] for m in ("SGD", "S-SAM, deploy()"))
    assert sum(plain[worst]) / 3 < plain["clean"][0] - 2
    assert sum(ours[worst]) > sum(plain[worst])


def test_small_weights_drown_in_the_noise_of_the_outputs_unless_tiles_are_scaled() -> None:
    """A layer of weights of at most 0.01 that copies the brightest of ten pixels: right with scaled tiles, by chance without."""
    need("aihwkit.nn", "aihwkit")
    torch.manual_seed(0)
    y = torch.arange(200) % 10
    x = 0.1 * torch.rand(200, 10) + nn.functional.one_hot(y, 10)
    data = Data("pixels", (x, y), (x, y), (x, y), outputs=10)
    model = nn.Sequential(nn.Linear(10, 10, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(0.01 * torch.eye(10))
    found = {}
    for option in ("--chips=1", "--unscaled"):
        options = analog_hardware.parser().parse_args(["--chips", "1", option])
        found[option] = analog_hardware.phase_change_memory(model.eval(), data, options)["a second"][0]
    assert found["--chips=1"] > 95
    assert found["--unscaled"] < 50


@pytest.mark.parametrize("simulator", analog_hardware.SIMULATORS)
def test_without_the_simulator_it_says_what_to_install_before_any_training(
    simulator: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = analog_hardware.SIMULATORS[simulator][0]
    for name in (module.partition(".")[0], module):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(analog_hardware, "train", lambda *_: pytest.fail("trained"))
    assert analog_hardware.main(["--quick", "--simulator", simulator]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"analog_hardware: {simulator} cannot be imported")
    assert "pip install 'torch_ssam[analog]'" in said
    assert "libopenblas-dev" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("option", ["train", "test", "epochs", "batch", "seeds", "chips", "threads"])
def test_counts_below_1_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert analog_hardware.main([f"--{option}", "0"]) == 1
    assert f"--{option} is 0; expected 1 or more" in capsys.readouterr().err


def test_intervals_are_over_trainings_and_over_chips_where_there_is_one_training() -> None:
    runs = [{"clean": [90.0], "t": [80.0, 82.0]}, {"clean": [92.0], "t": [84.0, 86.0]}]
    two, one = (
        analog_hardware.table({"SGD": shown}, ["t"]).split("\n")[1].split() for shown in (runs, runs[:1])
    )
    assert two == ["SGD", "91.0", "±", "12.7", "83.0", "±", "25.4"]  # t = 12.706, standard errors 1 and 2
    assert one == ["SGD", "90.0", "81.0", "±", "12.7"]
