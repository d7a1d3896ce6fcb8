"""Every command: its --help, whole names of options only, and one line where something is not there."""

from __future__ import annotations

import argparse
import ast
import importlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import torch_ssam

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("tqdm")

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(torch_ssam.__file__).parent
COMMANDS = sorted(path.parent.name for path in PACKAGE.glob("*/__main__.py"))
SCRIPTS = sorted(
    path.relative_to(ROOT)
    for folder in ("benchmarks", "examples/python", "tools")
    for path in (ROOT / folder).glob("*.py")
    if "ArgumentParser(" in path.read_text()
)


def command(name: str) -> Callable[[list[str]], int]:
    made: Callable[[list[str]], int] = importlib.import_module(f"torch_ssam.{name}.__main__").main
    return made


def parser(name: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = importlib.import_module(f"torch_ssam.{name}.__main__").parser()
    return made


def test_the_commands_are_found() -> None:
    assert {"compare", "experiments", "noise", "robustness", "sharpness"} <= set(COMMANDS)
    assert len(SCRIPTS) >= 10


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option_and_says_what_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(name)(["--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"usage: python -m torch_ssam.{name} " in shown
    for action in parser(name)._actions:
        assert action.help, f"{action.dest} has no help"
        assert all(option in shown for option in action.option_strings)
        assert action.help.split("%")[0][:40].strip() in shown


def test_the_package_lists_every_command_and_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module("torch_ssam.__main__").main
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith("usage: python -m torch_ssam [")
    for name in COMMANDS:
        (line,) = [line for line in listed.splitlines() if line.startswith(f"  python -m torch_ssam.{name} ")]
        after = listed.splitlines()[listed.splitlines().index(line) + 1]
        assert len(after.strip()) > 20
    for arguments, shown in ((["--help"], listed), (["--version"], f"torch_ssam {torch_ssam.__version__}\n")):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert capsys.readouterr().out == shown
    with pytest.raises(SystemExit) as ended:
        main(["compare"])
    assert ended.value.code == 2
    assert "unrecognized arguments: compare" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_help_of_a_script_names_every_option_and_says_what_it_is(
    script: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[argparse.ArgumentParser] = []
    plain = argparse.ArgumentParser.__init__

    def kept(self: argparse.ArgumentParser, *arguments: object, **options: object) -> None:
        plain(self, *arguments, **options)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(argparse.ArgumentParser, "__init__", kept)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(str(ROOT / script.parent))
    monkeypatch.syspath_prepend(str(ROOT))
    run: Callable[..., object] = runpy.run_path
    target = str(ROOT / script)
    if script.parent.name == "benchmarks":
        run, target = runpy.run_module, f"benchmarks.{script.stem}"
    with pytest.raises(SystemExit) as ended:
        run(target, run_name="__main__")
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for action in made[-1]._actions:
        assert action.help, f"{action.dest} has no help"
        assert all(option in shown for option in action.option_strings)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_is_taken_for_a_longer_one(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for action in parser(name)._actions:
        for option in (o for o in action.option_strings if o.startswith("--")):
            for cut in {option[:-1], option.rpartition("-")[0]} - {"-", "--", ""}:
                if any(cut in other.option_strings for other in parser(name)._actions):
                    continue
                with pytest.raises(SystemExit):
                    command(name)(["a:b", "c", "d", cut, "1"])
                assert "error: " in capsys.readouterr().err, f"{name} takes {cut} for {option}"


def test_lr_is_not_taken_for_lr_factors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command("compare")(["digits-mlp", "--lr", "0.1"])
    assert "unrecognized arguments: --lr 0.1" in capsys.readouterr().err


def test_every_parser_refuses_abbreviations() -> None:
    found = 0
    for path in [*(ROOT / script for script in SCRIPTS), *PACKAGE.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            name = (
                getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
            )
            if name == "ArgumentParser":
                options = {k.arg: k.value for k in node.keywords}  # type: ignore[attr-defined]
                assert ast.literal_eval(options["allow_abbrev"]) is False, path
                found += 1
    assert found > len(SCRIPTS)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module for each command and two checkpoints, and a file where a folder is asked for."""
    (tmp_path / "command_example.py").write_text(
        "import torch\n"
        "data = [(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))]\n"
        "def three():\n"
        "    return torch.nn.Linear(2, 2), torch.nn.functional.cross_entropy, data\n"
        "def two():\n"
        "    return torch.nn.Linear(2, 2), data\n"
        "number = 3\n"
    )
    for name in ("one.pt", "two.pt"):
        torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / name)
    torch.save(torch.nn.Linear(3, 3).state_dict(), tmp_path / "other.pt")
    (tmp_path / "file").write_text("no checkpoint")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.delitem(sys.modules, "command_example", raising=False)
    return tmp_path


SHARPNESS = ["sharpness", "command_example:three"]
ROBUSTNESS = ["robustness", "command_example:two"]
NOISE = ["noise", "command_example:two"]
COMPARE = ["compare", "digits-mlp"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*SHARPNESS, "one.pt", "nowhere.pt"], "nowhere.pt is no file"),
        ([*SHARPNESS, "one.pt", "nowhere/one.pt"], "nowhere/one.pt is no file"),
        ([*SHARPNESS, "one.pt", "file"], "file cannot be read"),
        ([*SHARPNESS, "one.pt", "other.pt"], "does not fit the model"),
        ([*SHARPNESS, "one.pt", "two.pt", "--out", "file"], "--out file cannot be a folder"),
        ([*SHARPNESS, "one.pt", "two.pt", "--samples", "1"], "samples is 1"),
        (
            ["sharpness", "command_example:two", "one.pt", "two.pt"],
            "returned 2 members; expected (model, loss_fn",
        ),
        (["sharpness", "command_example:number", "one.pt", "two.pt"], "is a int; expected a function"),
        (["sharpness", "command_example", "one.pt", "two.pt"], "is no MODULE:FUNCTION"),
        (["sharpness", "nowhere_at_all:make", "one.pt", "two.pt"], "there is no module 'nowhere_at_all'"),
        (["sharpness", "command_example:other", "one.pt", "two.pt"], "has no 'other'"),
        ([*ROBUSTNESS, "nowhere.pt"], "nowhere.pt is no file"),
        ([*ROBUSTNESS, "file"], "file cannot be read"),
        ([*ROBUSTNESS, "other.pt"], "does not fit the model"),
        ([*ROBUSTNESS, "--out", "file/below"], "--out file/below cannot be a folder"),
        ([*NOISE, "nowhere.pt"], "nowhere.pt is no file"),
        ([*NOISE, "file"], "file cannot be read"),
        ([*NOISE, "other.pt"], "does not fit the model"),
        ([*NOISE, "--out", "file"], "--out file cannot be a folder"),
        ([*NOISE, "--draws", "1"], "draws is 1; expected 2 to"),
        ([*NOISE, "--target", "-1"], "target is -1"),
        ([*NOISE, "--target", "50000"], "changes the outputs by"),
        (["noise", "command_example:three"], "returned 3 members; expected (model, batches)"),
        (["experiments", "signatures", "--quick", "--out", "file"], "--out file cannot be a folder"),
        ([*COMPARE, "--out", "file"], "--out file cannot be a folder"),
        ([*COMPARE, "--report", "--out", "nowhere"], "nowhere is no folder; expected the one that runs were"),
        (["compare", "fashion-mlp", "--folder", "nowhere"], "nowhere is no folder"),
        (["compare", "--data", "nowhere_at_all:f", "--model", "mlp"], "cannot be imported"),
    ],
)
def test_what_is_not_there_is_named_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    name, *rest = arguments
    before = sorted(here.iterdir())
    assert command(name)([*rest, "--quiet"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"{name}: ")
    assert printed.err.count("\n") == 1
    assert says in printed.err
    assert [path for path in sorted(here.iterdir()) if path.name not in ("__pycache__", "out")] == before


def test_without_tqdm_a_command_goes_on_without_bars(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    for name, rest in (
        ("robustness", [*ROBUSTNESS[1:], "--bits", "4", "--noise", "none", "--flips", "none"]),
    ):
        assert command(name)(rest) == 0
        printed = capsys.readouterr()
        assert printed.err == f"{name}: no progress bars without tqdm (pip install tqdm).\n"
        assert "4 bits" in printed.out


@pytest.mark.parametrize("name", ["noise", "sharpness", "robustness"])
def test_a_missing_package_is_named_before_anything_is_computed(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = [f"command_example:{'three' if name == 'sharpness' else 'two'}", "one.pt", "two.pt"]
    arguments = arguments[:2] if name == "noise" else arguments
    assert command(name)([*arguments, "--quiet", "--out", "out"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"pip install 'torch_ssam[{name}]'" in printed.err
    assert not (here / "out").exists()


@pytest.mark.parametrize("name", ["sharpness", "robustness", "noise", "experiments"])
def test_results_are_printed_before_plots_are_drawn(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Drawing fails, as it does for want of memory or a font; what was computed is there all the same."""

    def fails(*_: object, **__: object) -> None:
        raise OSError("no font")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    arguments = {
        "sharpness": ["command_example:three", "one.pt", "two.pt", "--quiet"],
        "robustness": ["command_example:two", "--quiet", "--bits", "4", "--noise", "none", "--flips", "none"],
        "noise": ["command_example:two"],
        "experiments": ["signatures", "--quick"],
    }[name]
    result = {
        "sharpness": "Hessian trace",
        "robustness": "4 bits",
        "noise": "changes the outputs by kl 0.05",
        "experiments": "Verdict:",
    }[name]
    assert command(name)([*arguments, "--out", "out"]) == 2
    printed = capsys.readouterr()
    assert result in printed.out
    assert printed.err == f"{name}: no font\n"
    saved = {"sharpness": "sharpness.csv", "robustness": "robustness.json", "noise": "noise.csv"}
    assert name not in saved or (here / "out" / saved[name]).is_file()
