"""The demo (examples/python): readers refuse bad files by name, both parts run.

Runs are tiny; what the full demo finds is in its own output, not asserted here. What theory promises is
asserted for the diabetes part, with room for the noise of a short run.
"""

from __future__ import annotations

import gzip
import json
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import torch_ssam

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "python"))

import data
import demo
import diabetes
import images
from rich.console import Console
from runner import Runner

from torch_ssam._common import images as shared_images
from torch_ssam._common.html_page import Table


def idx_bytes(array: np.ndarray) -> bytes:
    codes = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
    code = codes[array.dtype.str[1:]]
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An idx folder of 12 x 12 images that show their class as a bright row; half the files gzipped."""
    rng = np.random.default_rng(0)
    place = tmp_path / "stripes"
    place.mkdir()
    for part, n in (("train", 400), ("t10k", 100)):
        labels = rng.integers(0, 3, n).astype(np.uint8)
        pixels = rng.integers(0, 60, (n, 12, 12)).astype(np.uint8)
        pixels[np.arange(n), 4 * labels.astype(int) + 1] = 250
        (place / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(pixels)))
        (place / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return place


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_of_every_type_are_read_back(tmp_path: Path, dtype: str, suffix: str) -> None:
    array = np.arange(-12, 12).reshape(2, 3, 4).astype(dtype)
    path = tmp_path / f"file{suffix}"
    path.write_bytes(gzip.compress(idx_bytes(array)) if suffix else idx_bytes(array))
    read = data.read_idx(path)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def good() -> bytes:
    return idx_bytes(np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty", b"", "no idx file"),
        ("text", b"hello, world", "no idx file"),
        ("type", b"\0\0\x0a\x01" + bytes(8), "type code 0a"),
        ("header", good()[:9], "ends inside its header of 12 bytes; it has 9"),
        ("short", good()[:-1], "17 bytes; its header, of shape .2, 3., says 18"),
        ("long", good() + b"\0", "19 bytes"),
        ("huge", struct.pack(">HBBII", 0, 8, 2, 2**32 - 1, 2**32 - 1), "says 18446744065119617037"),
        ("text.gz", b"hello, world", "not a whole gzip file"),
        ("cut.gz", gzip.compress(good(), mtime=0)[:-9], "not a whole gzip file"),
        ("garbled.gz", gzip.compress(good(), mtime=0)[:12] + b"\xff" * 20, "not a whole gzip file"),
    ],
)
def test_a_bad_idx_file_is_named_with_what_is_wrong(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=message) as caught:
        data.read_idx(path)
    assert str(path) in str(caught.value)


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match=r"absent cannot be read: No such file"):
        data.read_idx(tmp_path / "absent")


def test_an_idx_folder_is_read(folder: Path) -> None:
    read = data.load_images(folder)
    assert (read.name, read.classes) == ("stripes", 3)
    assert read.train_images.shape == (400, 12, 12)
    assert read.train_images.dtype == np.float32
    assert read.train_images.max() == np.float32(250 / 255)
    assert (read.test_images[np.arange(100), 4 * read.test_labels + 1] == np.float32(250 / 255)).all()


def test_an_idx_folder_that_does_not_fit_together_is_refused(folder: Path) -> None:
    labels = folder / "t10k-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(99, np.uint8)))
    with pytest.raises(data.DataError, match=r"\(99,\) of uint8; expected one integer for each of the 100"):
        data.load_images(folder)
    labels.unlink()
    with pytest.raises(data.DataError, match="has no t10k-labels-idx1-ubyte"):
        data.load_images(folder)
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(400, np.uint8)))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(100, np.uint8)))
    with pytest.raises(data.DataError, match="400 training images of 1 classes; expected at least 10 of 2"):
        data.load_images(folder)
    with pytest.raises(data.DataError, match="is no folder"):
        data.load_images(folder / "nowhere")


def test_without_fashion_mnist_the_digits_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shared_images, "FASHION_MNIST", tmp_path / "absent")
    read = data.load_images(None)
    assert read.name == "scikit-learn's digits"
    assert (read.train_images.shape, read.test_images.shape) == ((1297, 8, 8), (500, 8, 8))
    assert read.train_images.max() == 1.0


def test_diabetes_data_are_white_and_centred() -> None:
    problem = data.load_whitened_diabetes()
    n = len(problem.outputs)
    np.testing.assert_allclose(problem.inputs.T @ problem.inputs / n, np.eye(10), atol=1e-12)
    np.testing.assert_allclose(problem.inputs.mean(0), 0, atol=1e-12)
    least_squares = np.linalg.lstsq(problem.inputs, problem.outputs, rcond=None)[0]
    np.testing.assert_allclose(problem.target, least_squares, atol=1e-12)


def test_the_images_are_compared_as_readme_says() -> None:
    for setting in (images.setting(), images.quick(images.setting())):
        methods = setting.chosen_methods()
        assert len({len(setting.grid(method)) for method in methods}) == 1
        assert [method.epochs(setting.epochs) for method in methods] == [setting.epochs] * 3
        assert setting.wrong_labels == 0.3
    assert images.interval([1.0]) == (1.0, float("inf"))


def test_diabetes_shrinks_as_theory_says_and_balances_where_sgd_does_not() -> None:
    settings = diabetes.Settings(depths=(2,), starts=(1.0,), epochs=60, decay_every=10)
    with Runner(1, Console(quiet=True)) as runner:
        result = diabetes.run(settings, runner.run)
    part = result["depths"]["2"]
    target, found = np.array(result["target"]), np.array(part["S-SAM"])
    np.testing.assert_allclose(part["SGD"], target, atol=0.01)
    # Noise-free theory; 0.08 is three times what this run shows, and a quarter of the largest coefficient.
    np.testing.assert_allclose(found, part["theory"], atol=0.08)
    assert found[target.argmin()] < -0.02  # the negative coefficient is reached
    curves = {curve["method"]: curve["gap"] for curve in part["curves"]}
    assert abs(curves["S-SAM"][-1]) < 0.1
    assert curves["SGD"][-1] > 0.8
    measured, predicted = next(c["rates"] for c in part["curves"] if c["method"] == "S-SAM")
    assert predicted == pytest.approx(4 * settings.noise_std**2, rel=1e-6)
    assert measured == pytest.approx(predicted, rel=0.35)


def test_expected_gap_of_depth_3_follows_gradient_descent_on_the_regularised_loss() -> None:
    problem, settings = data.load_whitened_diabetes(), diabetes.Settings()
    weights = np.repeat(np.array([[1.0], [1.0], [0.0]]), 10, 1)
    for _ in range(5000):
        weights -= 0.001 * torch_ssam.theory.regularized_gradient(weights, problem.target, settings.noise_std)
    gap = (weights[0] ** 2 - weights[2] ** 2).mean()
    predicted = diabetes.expected_gap(problem, 3, 1.0, settings, np.array([0.0, 5.0]))
    assert predicted == pytest.approx([1.0, gap], rel=0.02)


def test_each_method_learns_the_stripes(folder: Path, tmp_path: Path) -> None:
    full = replace(
        images.setting(folder), train=300, validation=50, epochs=4, batch=20, seeds=1, knob_values=1
    )
    numbers = images.run(replace(full, wrong_labels=0.1), tmp_path, 1, Console(quiet=True))
    for method in images.METHODS:
        (run,) = numbers["methods"][method]["runs"]
        assert run["test accuracy"] > 90
        assert run["sharpness"] > 0


def test_processes_give_results_in_the_order_of_the_tasks_and_pass_errors_on() -> None:
    with Runner(2, Console(quiet=True)) as runner:
        assert runner.run(abs, [-3, 2, -1], "order") == [3, 2, 1]
        with pytest.raises(ValueError, match="invalid literal"):
            runner.run(int, ["1", "one"], "error")


def test_the_whole_demo_writes_numbers_tables_and_plots(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = diabetes.Settings(starts=(1.0,), epochs=6, decay_every=3)
    monkeypatch.setattr(diabetes.Settings, "quick", lambda self: short)
    out = tmp_path / "out"
    arguments = ["--quick", "--seeds", "2", "--epochs", "1", "--threads", "1"]
    assert demo.main([*arguments, "--data", str(folder), "--out", str(out)]) == 0
    numbers = json.loads((out / "demo.json").read_text())
    assert numbers["images"]["data"] == "stripes"
    for method in images.METHODS:
        part = numbers["images"]["methods"][method]
        assert len(part["runs"]) == 2
        assert max(part["grid"], key=lambda entry: entry[1])[0] == part["chosen"]
    markdown, printed = (out / "demo.md").read_text(), capsys.readouterr().out
    assert {len(runs) for runs in numbers["deployment"].values()} == {2}
    for line in (
        "Diabetes",
        "bmi",
        "largest deviation",
        "S-SAM",
        "validation accuracy",
        "Rounded and noisy weights",
    ):
        assert line in markdown
        assert line in printed
    for name in ("demo_diabetes.png", "demo_images.png", "demo_deployment.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_markdown_rows_have_as_many_cells_as_the_header() -> None:
    table = Table("title", ["a", "b"], [["1", "2"], ["3", "4"]], "note")
    rows = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert rows == ["| a | b |", "|---|---:|", "| 1 | 2 |", "| 3 | 4 |"]


def test_the_demo_ends_with_one_line_where_the_data_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--quick", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f"demo: {tmp_path} has no train-images-idx3-ubyte (nor train-images-idx3-ubyte.gz, "
        "train-images-idx3.ubyte, train-images-idx3.ubyte.gz).\n"
    )


@pytest.mark.parametrize("option", ["--seeds", "--epochs", "--threads"])
def test_counts_below_one_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.main([option, "0"])
    assert "expected 1 or more" in capsys.readouterr().err
