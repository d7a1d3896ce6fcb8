"""Checkpoints that earlier versions wrote, tests/data/checkpoints/<commit>/*.zip: they load, and training goes on in the
bits in which it went on then. A zip holds a family of runs; for each its description, the user's file and the result, all
written by write_checkpoints.py. The same for C++: tests/cpp/test_api_old_checkpoints.cpp.
"""

from __future__ import annotations

import importlib
import io
import json
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import checkpoint_runs as runs
import pytest
import torch
from conftest import CAPABILITIES
from torch import Tensor

import torch_ssam

pytestmark = pytest.mark.filterwarnings("ignore:weight_clip=.* clipped")  # as it should: much
FOLDER = Path(__file__).parents[1] / "data" / "checkpoints"


@lru_cache(maxsize=64)
def opened(path: Path) -> zipfile.ZipFile:
    """The runs of a family: they are packed together, in a zip in the zip."""
    with zipfile.ZipFile(path) as packed:
        name = next(name for name in packed.namelist() if name.endswith("/runs.zip"))
        return zipfile.ZipFile(io.BytesIO(packed.read(name)))


class Fixture(NamedTuple):
    zip: Path
    folder: str  # in the zip

    def read(self, file: str) -> bytes:
        return opened(self.zip).read(f"{self.folder}/{file}")

    @property
    def name(self) -> str:
        return self.folder.split("/")[-1]

    @property
    def description(self) -> runs.Description:
        if self.zip.stem == "cpp":
            in_cpp: runs.Description = runs.from_file(self.read("run.pt"))
            return in_cpp
        in_python: runs.Description = json.loads(self.read("run.json"))
        return in_python

    @property
    def run(self) -> runs.Description:
        run = self.description
        if run.get("base", "").startswith("schedulefree"):
            pytest.importorskip(
                "schedulefree", reason="NOT TESTED here: checkpoints of schedule-free optimizers"
            )
        return run

    @property
    def expected(self) -> Any:
        return runs.from_file(self.read("expected.pt"))

    def __str__(self) -> str:
        return f"{self.zip.parent.name}-{self.zip.stem}-{self.name}"


def fixtures(*families: str, having: str = "checkpoint.pt") -> list[Fixture]:
    found = []
    for path in sorted(FOLDER.glob("*/*.zip")):
        if path.stem in families:
            files = opened(path).namelist()
            found += [Fixture(path, file.rsplit("/", 1)[0]) for file in files if file.endswith(f"/{having}")]
    return found


TRAINED = fixtures("ssam", "adamw", "wrap", "diagonal", "cpp")
OBJECTS = fixtures("objects", having="object.pt")
# Not taken from a base that has loaded them: clean weights, since the base may have trained since.
IN_BASE = [f for f in fixtures("wrap") if f.description.get("saved") not in ("in train", "inside a pass")]
Force = Callable[[str], None]


def assert_same(found: Any, expected: Any) -> None:
    different = list(runs.differences(found, expected))
    assert not different, "\n".join(different[:10])


def test_there_are_fixtures() -> None:
    assert {f.zip.parent.name for f in TRAINED} >= {"1e48826"}
    for family, least in {"ssam": 76, "adamw": 42, "wrap": 40, "diagonal": 8, "noise": 9, "cpp": 44}.items():
        assert len(fixtures(family)) >= least, family
    assert len(OBJECTS) >= 49


# -- checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("fixture", TRAINED, ids=str)
def test_an_old_checkpoint_goes_on_in_its_bits(
    fixture: Fixture, capability: str, force_capability: Force
) -> None:
    force_capability(capability)
    training = runs.resume(fixture.run, fixture.read("checkpoint.pt"))
    training.go_on(fixture.run["more"])
    assert_same(training.result(), fixture.expected)


@pytest.mark.parametrize("fixture", TRAINED, ids=str)
def test_an_old_checkpoint_replaces_other_options_and_loads_before_its_model(fixture: Fixture) -> None:
    run = fixture.run
    training = runs.resume(runs.with_other_options(run), fixture.read("checkpoint.pt"), optimizer_first=True)
    training.go_on(run["more"])
    assert_same(training.result(), fixture.expected)


@pytest.mark.parametrize("fixture", IN_BASE, ids=str)
def test_an_old_wrapped_checkpoint_loads_into_the_base_that_is_then_wrapped(fixture: Fixture) -> None:
    training = runs.resume_in_base(fixture.run, fixture.read("checkpoint.pt"))
    training.go_on(fixture.run["more"])
    assert_same(training.result(), fixture.expected)


def groups_of(fixture: Fixture) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = runs.from_file(fixture.read("checkpoint.pt"))["opt"]["param_groups"]
    return groups


@pytest.mark.parametrize("family", ["ssam", "adamw", "wrap"])
def test_every_option_that_checkpoints_carry_has_more_than_one_value_in_them(family: str) -> None:
    make = torch_ssam.SSAMAdamW if family == "adamw" else torch_ssam.SSAM
    noise = set(make([torch.nn.Parameter(torch.ones(1))]).param_groups[0]) - {"params"}
    values: dict[str, set[str]] = {}
    for fixture in fixtures(family):
        for group in groups_of(fixture):
            for name in noise & group.keys():
                values.setdefault(name, set()).add(str(group[name]))
    assert values.keys() >= {"noise_std", "scale", "distribution", "samples", "keep_perturbed", "memory"}
    alike = {name for name, seen in values.items() if len(seen) < 2}
    # SSAM's fixtures have the rule of "fisher" under other numbers; torch's option of that name wrap only passes on.
    fisher = {"fisher_decay", "fisher_factor"}
    assert alike <= {"ssam": set(), "adamw": fisher, "wrap": {*fisher, "maximize", "dampening"}}[family]


# -- WeightNoise ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("fixture", fixtures("noise"), ids=str)
def test_an_old_state_of_weight_noise_goes_on_with_its_draws(
    fixture: Fixture, capability: str, force_capability: Force
) -> None:
    force_capability(capability)
    run, saved = fixture.run, runs.from_file(fixture.read("checkpoint.pt"))
    model = runs.make_model(run, seed=5)
    model.load_state_dict(saved["model"])
    noise = runs.make_noise(run, model, seed=1)
    noise.load_state_dict(saved["noise"])
    assert_same(runs.noisy_weights(noise, run["more"]), fixture.expected)


# -- whole objects -------------------------------------------------------------------------------------------

# Former modules that pickles name and the package does not have: to be taken off here as soon as it has them.
MISSING: frozenset[str] = frozenset()


def gap(*modules: str) -> list[pytest.MarkDecorator]:
    missing = MISSING & set(modules)
    reason = f"NOT SERVED: {', '.join(sorted(missing))}"
    return [pytest.mark.xfail(raises=ModuleNotFoundError, strict=True, reason=reason)] if missing else []


def with_gaps() -> Iterator[Any]:
    for fixture in OBJECTS:
        modules = {module for module, _ in names_in(fixture.read("object.pt"))}
        yield pytest.param(fixture, marks=gap(*modules), id=str(fixture))


def names_in(file: bytes) -> Iterator[tuple[str, str]]:
    """Module and name of all of ours that a pickle, or the pickles inside a file of torch.save, refer to."""
    if zipfile.is_zipfile(io.BytesIO(file)):
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            file = next(archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
    strings: list[str] = []
    memo: list[str | None] = []  # of the protocols that have STACK_GLOBAL; None: no string
    last: str | None = None
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            module, name = str(argument).split(" ")
        elif opcode.name == "STACK_GLOBAL":
            module, name = strings[-2:]
        else:
            if opcode.name == "MEMOIZE":
                memo.append(last)
            elif opcode.name in ("BINGET", "LONG_BINGET") and memo:
                argument = memo[argument]
            last = argument if isinstance(argument, str) else None
            strings += [last] if last is not None else []
            continue
        last = None
        if module.split(".")[0] == "torch_ssam":
            yield module, name


@pytest.mark.parametrize("fixture", list(with_gaps()))
def test_an_old_object_that_was_saved_whole_goes_on_in_its_bits(fixture: Fixture) -> None:
    run, file = fixture.run, fixture.read("object.pt")
    if run["what"] == "module":
        found: Any = runs.module_results(runs.from_object(run, file))
    elif run["what"] == "noise":
        found = runs.noisy_weights(runs.from_object(run, file), run["more"])
    elif run["what"] == "values":
        found = runs.values_of(runs.from_object(run, file), run)
    else:
        training = runs.resume_whole(run, file)
        training.go_on(run["more"])
        found = training.result()
    assert_same(found, fixture.expected)


def old_names() -> Iterator[Any]:
    for module, name in sorted({name for fixture in OBJECTS for name in names_in(fixture.read("object.pt"))}):
        yield pytest.param(module, name, marks=gap(module))


@pytest.mark.parametrize(("module", "name"), list(old_names()))
def test_the_name_under_which_old_pickles_know_a_class_leads_to_it(module: str, name: str) -> None:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    public = getattr(torch_ssam, name, found)
    assert found is public


# -- these tests can fail ------------------------------------------------------------------------------------


def tensors_in(value: Any, where: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield where, value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from tensors_in(part, f"{where}[{name!r}]")
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from tensors_in(part, f"{where}[{i}]")


def flip_lowest_bit(tensor: Tensor, element: int) -> None:
    flat = torch.as_strided(tensor.detach(), (tensor.numel(),), (1,))  # in memory's order
    flat.view(torch.uint8)[element * tensor.element_size()] ^= 1


SAMPLES = (
    "momentum",
    "masters_kept",
    "clip_kept",
    "fisher_kept",
    "adamw_kept",
    "schedule_free",
    "own_noise",
    "in_a_model",
)


@pytest.mark.parametrize("fixture", [f for f in TRAINED if f.name in SAMPLES], ids=str)
def test_a_bit_that_is_flipped_in_a_stored_result_is_named(fixture: Fixture) -> None:
    training = runs.resume(fixture.run, fixture.read("checkpoint.pt"))
    training.go_on(fixture.run["more"])
    found = training.result()
    names = [name for name, tensor in tensors_in(fixture.expected) if tensor.numel()]
    assert len(names) >= 3
    for name in names:
        expected = fixture.expected
        tensor = dict(tensors_in(expected))[name]
        flip_lowest_bit(tensor, tensor.numel() - 1)
        different = list(runs.differences(found, expected))
        in_its_memory = [t for _, t in tensors_in(expected) if t.data_ptr() == tensor.data_ptr()]  # tied
        assert any(line.startswith(f"{name}: 1 of {tensor.numel()} elements differ") for line in different), (
            name
        )
        assert len(different) == len(in_its_memory), different


@pytest.mark.parametrize("fixture", [f for f in TRAINED if f.name in SAMPLES], ids=str)
def test_every_tensor_in_a_checkpoint_counts_and_so_do_seed_and_draw(fixture: Fixture) -> None:
    run, file = fixture.run, fixture.read("checkpoint.pt")
    for name, tensor in tensors_in(runs.from_file(file)):
        trained = name.startswith("['model']") and not name.endswith(("['frozen']", "generator']"))
        if trained and run.get("saved") == "in train":
            continue  # the noisy weights: the clean ones, in the optimizer's state, take their place
        saved = runs.from_file(file)
        changed = dict(tensors_in(saved))[name]
        with torch.no_grad():
            whole = tensor.dtype == torch.int64 or name.endswith("['step']")
            changed += 1 if whole else 0.25
        assert ends_elsewhere(run, saved, fixture.expected), name
    for name in ("seed", "draw"):
        saved = runs.from_file(file)
        for group in saved["opt"]["param_groups"]:
            group[name] += 1
        assert ends_elsewhere(run, saved, fixture.expected), name


def ends_elsewhere(run: runs.Description, saved: Any, expected: Any) -> bool:
    training = runs.resume(run, runs.to_file(saved))
    training.go_on(run["more"])
    return any(runs.differences(training.result(), expected))
