"""Records: one file a finished run, written whole or not at all, found again by what decided its result.

The name of a record is a digest of the run's description, and the description is in it too: where anything that
decides the result is changed (data, model, method, options, seed, epochs), the old record is simply not found. Grids
and numbers of seeds are not part of it, so that a larger grid makes the new runs only. Tests:
tests/python/test_compare.py.
"""

from __future__ import annotations

import hashlib
import json
import platform
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from torch_ssam._common.files import replace_file
from torch_ssam._version import __version__

from ._measures import finite
from ._models import make_model
from ._settings import Setting
from ._training import Run, load, step_seconds, train

FORMAT = 1
#: How often the time of a step is measured, at different times of a comparison.
ROUNDS = 3


@lru_cache(maxsize=64)
def identity(setting: Setting) -> dict[str, Any]:
    """What data and model are: their names, a digest of all examples, the model's layers and first weights.

    The code of a model's forward is not looked at: after changing it, take another folder.
    """
    data = load(setting, 0)
    model = make_model(setting.model_factory, data, 0)
    weights = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return {
        "data": setting.data_name,
        "examples": data.fingerprint(),
        "model": setting.model_name,
        "layers": hashlib.sha256(repr(model).encode()).hexdigest()[:16],
        "first weights": weights.hexdigest()[:16],
        "batch": setting.batch,
    }


def describe(run: Run) -> dict[str, Any]:
    """Everything that decides the result of a run."""
    setting = run.setting
    found = {
        "format": FORMAT,
        "purpose": run.purpose,
        **identity(setting),
        "wrong_labels": setting.wrong_labels,
        "method": run.method.identity(),
        "options": dict(sorted(run.options.items())),
        "seed": run.seed,
        "epochs": run.epochs,
    }
    if run.purpose == "test":
        for name in ("sharpness_std", "sharpness_filter_std", "sharpness_draws", "bits", "curve_points"):
            found[name] = getattr(setting, name)
    if setting.deployment and run.purpose != "robust":
        found["deployment_draws"] = setting.deployment_draws
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]  # tuples as a record has them


@dataclass(frozen=True)
class Store:
    """The records of one setting, in a folder. One that was read is kept for as long as its file is the same."""

    folder: Path
    _known: dict[tuple[Path, int, int], dict[str, Any]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def path(self, label: str, description: dict[str, Any]) -> Path:
        """The file of a record."""
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"{label}-{digest}.json"

    def read(self, label: str, description: dict[str, Any]) -> dict[str, Any] | None:
        """The result that was recorded for this description, or None."""
        path = self.path(label, description)
        try:
            status = path.stat()
            key = path, status.st_mtime_ns, status.st_size
            if key in self._known:
                return self._known[key]
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            warnings.warn(f"{path} is damaged ({error}) and will be made again.", stacklevel=2)
            return None
        if not isinstance(record, dict) or record.get("description") != description:
            warnings.warn(f"{path} is the record of another run and will be made again.", stacklevel=2)
            return None
        result: dict[str, Any] = record["result"]
        self._known[key] = result
        return result

    def write(self, label: str, description: dict[str, Any], result: dict[str, Any]) -> None:
        """Writes a record, whole or not at all."""
        path = self.path(label, description)
        self.folder.mkdir(parents=True, exist_ok=True)
        software = {
            "torch_ssam": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
        record = {"description": description, "software": software, "result": finite(result)}
        replace_file(path, json.dumps(record, indent=1, allow_nan=False))

    def result(self, run: Run) -> dict[str, Any] | None:
        """The result of a run, if it was made."""
        return self.read(label_of(run), describe(run))

    def timings(self, setting: Setting) -> list[dict[str, float]]:
        """Seconds of a step of each method, for every round in which they were measured."""
        rounds = (self.read(_timing_label(i), describe_timing(setting, i)) for i in range(ROUNDS))
        return [found["seconds"] for found in rounds if found is not None]


def label_of(run: Run) -> str:
    """The readable part of a record's name."""
    return f"{run.purpose}-{run.method.name}-seed{run.seed}-epochs{run.epochs}"


def _timing_label(number: int) -> str:
    return "timing" if number == 0 else f"timing-{number}"


def describe_timing(setting: Setting, number: int = 0) -> dict[str, Any]:
    """What decides the measured cost of a step, but for the machine and what else it does: so there are several rounds."""
    methods = {method.name: method.identity() for method in setting.chosen_methods()}
    found = {"format": FORMAT, "purpose": "timing", **identity(setting), "methods": methods}
    if number > 0:
        found["round"] = number
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Job:
    """What a worker does: a run, or a round of timing a setting (run None); its record goes to the folder."""

    setting: Setting
    folder: Path
    run: Run | None
    round: int = 0

    def done(self) -> bool:
        """Whether its record is there."""
        store = Store(self.folder)
        if self.run is None:
            return (
                store.read(_timing_label(self.round), describe_timing(self.setting, self.round)) is not None
            )
        return store.result(self.run) is not None


def execute(job: Job) -> None:
    """Does a job and records it."""
    store = Store(job.folder)
    if job.run is None:
        found = {"seconds": step_seconds(job.setting)}
        store.write(_timing_label(job.round), describe_timing(job.setting, job.round), found)
    else:
        store.write(label_of(job.run), describe(job.run), train(job.run))
