"""Writes checkpoints of the torch_ssam that is imported, which every later version must load and go on with, bit for bit:
    PYTHONPATH=. python tests/python/write_checkpoints.py tests/data/checkpoints/<commit> [PATTERN ...]
Patterns of family/name, such as "adamw/*" "*/*clip*", leave out what an earlier version has written.
A zip in a zip for each family of checkpoint_cases.py. In it, for each run: what describes it (run.json), the file that a
user would have (checkpoint.pt, or an object.pt of torch.save or pickle) and the bits that training from there must end in
(expected.pt). A version adds a folder and leaves those of others alone. Read by test_old_checkpoints.py.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
import warnings
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import checkpoint_cases as cases
import checkpoint_runs as runs
import torch
from checkpoint_runs import Description

import torch_ssam

# -- whole objects -------------------------------------------------------------------------------------------


def save_whole(training: runs.Training, run: Description) -> bytes:
    if run.get("saved") == "in eval":
        training.opt.eval()
    elif run.get("saved") == "loaded":
        model = runs.make_model(run, seed=5)
        opt = runs.make_optimizer(run, model)
        model.load_state_dict(training.saved()["model"])
        opt.load_state_dict(training.opt.state_dict())
        return runs.to_file([model, opt, []])
    return runs.to_file([training.model, training.opt, training.schedules])


def other_objects() -> Iterator[tuple[str, Description, bytes, Any]]:
    """Name, description, file and what a later version must find: modules, noise and results."""
    for dtype in ("float32", "bfloat16"):
        run = {
            "what": "module",
            "model": "sequential",
            "dtype": dtype,
            "layer": {"noise_std": 0.25, "depth": 3},
        }
        model = runs.make_model(run, seed=3)
        runs.backward(model.parameters(), runs.layers_in(model), 0, coarse=False)
        model.zero_grad()
        file = runs.to_file(model)
        yield f"module_{dtype}", run, file, runs.module_results(model)
    run = {"what": "module", "by": "pickle", "model": "layer", "layer": {"readout": "sum"}}
    layer = runs.make_model(run, seed=3)[0]  # type: ignore[index]
    yield "module_pickled", run, pickle.dumps(layer), runs.module_results(layer)

    run = {**cases.kept(model="sequential", layer={}), "what": "module"}
    attached = runs.start(run)
    attached.opt.attach(attached.model)
    attached.go_on(cases.STEPS)
    attached.opt.eval()
    file = runs.to_file(attached.model)
    yield "module_attached", run, file, runs.module_results(attached.model)

    for protocol in (2, 4):
        for name, run in cases.noise_runs().items():
            if name in ("isotropic", "groups", "bfloat16"):
                run = {**run, "what": "noise", "by": "pickle"}
                noise = runs.make_noise(run, runs.make_model(run, seed=0), seed=7)
                runs.noisy_weights(noise, cases.STEPS)
                file = pickle.dumps(noise, protocol=protocol)
                yield f"noise_{name}_{protocol}", run, file, runs.noisy_weights(noise, run["more"])

    for name, found, names in results():
        run = {"what": "values", "by": "pickle", "names": names, "lists": ["perturbation"]}
        yield f"result_{name}", run, pickle.dumps(found), runs.values_of(found, run)


def results() -> Iterator[tuple[str, Any, list[str]]]:
    """What the measures, the theory and the simulator return, and the names of what is in it."""
    model = torch_ssam.DiagonalLinear(3, readout="sum", init_scale=[0.5, 1.5], seed=0)
    data = [(runs.pattern(torch.empty(8, 3), 0), runs.pattern(torch.empty(8), 3))]
    loss = torch.nn.functional.mse_loss
    sharpness, bayes = torch_ssam.sharpness, torch_ssam.pac_bayes
    simulation = torch_ssam.simulate([1.0, -0.5], noise_std=0.25, lr=0.0625, steps=4, record_every=2)
    yield "simulation", simulation, ["steps", "weights", "loss", "product"]
    average = sharpness.average(model, loss, data, 0.25, samples=4, seed=0)
    yield "average", average, ["mean", "half_width", "values"]
    worst = sharpness.worst_case(model, loss, data, 0.5, seed=0)
    yield "worst_case", worst, ["increase", "history", "perturbation"]
    plane = sharpness.landscape(model, loss, data, points=3, seed=0)
    yield "landscape", plane, ["positions", "losses"]
    prior = torch_ssam.DiagonalLinear(3, readout="sum", seed=0)
    labels = [(data[0][0], data[0][1] > 0)]
    certificate = bayes.certify(model, prior, labels, noise_std=0.25, draws=50, pilot_draws=10)
    yield "certificate", certificate, ["bound", "risk", "kl", "n", "noise_std"]
    points = torch_ssam.theory.critical_points([2.0, -1.0], 0.25, 3)
    yield "critical_points", points, ["minimum", "minimum_eigenvalues"]


# -- files ---------------------------------------------------------------------------------------------------


PATTERNS = sys.argv[2:] or ["*"]


class Family:
    """One zip, with all runs in a zip in it: packed together they take half the room."""

    @staticmethod
    def chosen(path: Path, family: cases.Runs) -> cases.Runs:
        """The runs that the patterns name."""
        names = {name for pattern in PATTERNS for name in family if fnmatch(f"{path.stem}/{name}", pattern)}
        return {name: run for name, run in family.items() if name in names}

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, io.BytesIO()
        self._runs = zipfile.ZipFile(self._file, "w")

    def add(self, name: str, run: Description, **files: bytes) -> None:
        for file, content in {"run.json": json.dumps(run).encode(), **files}.items():
            self._runs.writestr(zipfile.ZipInfo(f"{name}/{file}"), content)  # without the time of day

    def close(self) -> None:
        empty = not self._runs.namelist()
        self._runs.close()
        if empty:
            return
        with zipfile.ZipFile(self._path, "w") as out:
            packed = zipfile.ZipInfo(f"{self._path.stem}/runs.zip")
            out.writestr(packed, self._file.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def write_runs(path: Path, family: cases.Runs) -> None:
    out = Family(path)
    for name, run in Family.chosen(path, family).items():
        training = runs.start(run)
        training.go_on(run["steps"])
        checkpoint = training.checkpoint()
        resumed = runs.resume(run, checkpoint)
        resumed.go_on(run["more"])
        expected = resumed.result()
        if run.get("saved") != "inside a pass":  # there the draw comes again
            training.go_on(run["more"])
            check(name, training.result(), expected)
        out.add(name, run, **{"checkpoint.pt": checkpoint, "expected.pt": runs.to_file(expected)})
    out.close()


def write_noise(path: Path) -> None:
    out = Family(path)
    for name, run in Family.chosen(path, cases.noise_runs()).items():
        model = runs.make_model(run, seed=0)
        noise = runs.make_noise(run, model, seed=7)
        runs.noisy_weights(noise, cases.STEPS)
        saved = runs.to_file({"model": model.state_dict(), "noise": noise.state_dict()})
        expected = runs.noisy_weights(noise, run["more"])
        out.add(name, run, **{"checkpoint.pt": saved, "expected.pt": runs.to_file(expected)})
    out.close()


def write_objects(path: Path) -> None:
    out = Family(path)
    for name, run in Family.chosen(path, cases.object_runs()).items():
        training = runs.start(run)
        training.go_on(run["steps"])
        whole = save_whole(training, run)
        loaded = runs.resume_whole(run, whole)
        loaded.go_on(run["more"])
        expected = loaded.result()
        if "regenerate" not in json.dumps(run):  # what was pickled holds a copy, and rounds less
            training.go_on(run["more"])
            check(name, training.result(), expected)
        out.add(name, run, **{"object.pt": whole, "expected.pt": runs.to_file(expected)})
    for name, run, file, expected in other_objects():
        if not Family.chosen(path, {name: run}):
            continue
        out.add(name, run, **{"object.pt": file, "expected.pt": runs.to_file(expected)})
    out.close()


def check(name: str, whole: Any, resumed: Any) -> None:
    found = list(runs.differences(resumed, whole))
    if found:
        raise SystemExit(f"{name}: resumed and uninterrupted differ: {found[:5]}")


def main(folder: Path) -> None:
    warnings.simplefilter("ignore", torch_ssam.PerturbedWeightsSaved)
    warnings.filterwarnings("ignore", "weight_clip=.* clipped")  # as it should: much
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    write_runs(folder / "ssam.zip", cases.ssam_runs())
    write_runs(folder / "adamw.zip", cases.adamw_runs())
    write_runs(folder / "wrap.zip", cases.wrap_runs())
    write_runs(folder / "diagonal.zip", cases.module_runs())
    write_noise(folder / "noise.zip")
    write_objects(folder / "objects.zip")
    for file in sorted(folder.iterdir()):
        print(file, file.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
