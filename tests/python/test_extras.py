"""The extras of pyproject.toml beside what the code imports: each command's extra brings what the command uses.

The code is read, not run: which optional packages a command can come to is followed from function to function. Then each
command is run where nothing but PyTorch, NumPy and its own extra can be imported.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch

import torch_ssam

PACKAGE = Path(torch_ssam.__file__).parent
PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
COMMANDS = ("compare", "experiments", "noise", "robustness", "sharpness")
#: Packages whose name is not that of the module that is imported.
MODULES = {
    "scikit-learn": "sklearn",
    "curvlinops-for-pytorch": "curvlinops",
    "aihwkit-lightning": "aihwkit_lightning",
}
#: A table is shown on the rich console that it is handed: whoever has one has rich.
HANDED = {("robustness", "rich")}


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def extras() -> dict[str, set[str]]:
    """The modules that each extra of pyproject.toml brings."""
    text = PYPROJECT.read_text()
    section = text[text.index("[project.optional-dependencies]") :]
    found = re.findall(r"^(\w+) = \[(.*?)\]$", section[: section.index("\n[tool")], re.MULTILINE | re.DOTALL)
    listed = {name: re.findall(r'"([^"]+)"', inside) for name, inside in found}
    whole = re.fullmatch(r"torch_ssam\[(.*)\]", listed.pop("all")[0])
    assert whole
    made = {
        name: {MODULES.get(name_of(r), name_of(r)) for r in requirements}
        for name, requirements in listed.items()
    }
    made["all"] = set().union(*(made[name] for name in whole[1].split(",")))
    return made


OPTIONAL = {"matplotlib", "rich", "sklearn", "scipy", "tqdm", "curvlinops"}


class Module:
    """What a module's functions and classes name, by the definition that names it."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.is_package = name, path.name == "__init__.py"
        tree = ast.parse(path.read_text())
        self.definitions = {
            node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        self.rest = [node for node in tree.body if node not in self.definitions.values()]
        self.imports: dict[str, tuple[str, str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                origin = self._origin(node)
                self.imports |= {a.asname or a.name: (origin, a.name) for a in node.names}

    def _origin(self, node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])


@lru_cache
def module(name: str) -> Module | None:
    if name.partition(".")[0] != "torch_ssam":
        return None
    path = PACKAGE.joinpath(*name.split(".")[1:])
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return Module(name, file)
    return None


def packages_in(node: ast.AST) -> set[str]:
    """Optional packages that are imported inside: by a statement, or by name through a call."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            found |= {alias.name for alias in part.names}
        elif isinstance(part, ast.ImportFrom):
            found.add(part.module or "")
        elif isinstance(part, ast.Call) and part.args and isinstance(part.args[0], ast.Constant):
            if getattr(part.func, "attr", getattr(part.func, "id", "")) in (
                "need",
                "import_module",
                "find_spec",
            ):
                found.add(str(part.args[0].value))
        elif isinstance(part, ast.Constant) and re.fullmatch(r"[a-z]+\.[a-z_.]+", str(part.value)):
            found.add(str(part.value))  # of a list of modules to need
    return {name.partition(".")[0] for name in found} & OPTIONAL


def resolved(place: str, name: str) -> tuple[str, str] | None:
    """The module and definition that a name of a module stands for, through re-exports; "" for a whole module."""
    for _ in range(10):
        here = module(place)
        if here is None:
            return None
        if name in here.definitions:
            return place, name
        if name not in here.imports:
            return None
        origin, imported = here.imports[name]
        if module(f"{origin}.{imported}") is not None:
            return f"{origin}.{imported}", ""
        place, name = origin, imported
    return None


def reached(command: str) -> set[str]:
    """The optional packages of all that the functions of a command's room can come to."""
    todo, seen, found = [], set(), set()
    for path in (PACKAGE / command).glob("*.py"):
        name = f"torch_ssam.{command}" + ("" if path.stem == "__init__" else f".{path.stem}")
        here = module(name)
        assert here is not None
        todo += [(name, definition) for definition in here.definitions]
        for node in here.rest:
            found |= packages_in(node)
    while todo:
        place, definition = todo.pop()
        if (place, definition) in seen:
            continue
        seen.add((place, definition))
        here = module(place)
        assert here is not None
        node = here.definitions[definition]
        found |= packages_in(node)
        for part in ast.walk(node):
            target = None
            if isinstance(part, ast.Name):
                target = resolved(place, part.id)
            elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                whole = resolved(place, part.value.id)
                target = resolved(whole[0], part.attr) if whole is not None and whole[1] == "" else None
            if target is not None and target[1]:
                todo.append(target)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_an_extra_is_what_its_command_can_come_to(command: str) -> None:
    used = {package for package in reached(command) if (command, package) not in HANDED}
    assert extras()[command] == used


def test_what_is_followed_is_what_is_used() -> None:
    """Known ends of the way: a bar from a measure two rooms away, data from a function of a shared module."""
    assert "tqdm" in reached("compare")
    assert "sklearn" in reached("compare")
    assert "curvlinops" not in reached("compare")
    assert resolved("torch_ssam.compare._measures", "sharpness") == ("torch_ssam.sharpness", "")
    assert resolved("torch_ssam.sharpness", "average") == ("torch_ssam.sharpness._average", "average")


def test_every_optional_import_names_an_extra_that_brings_it() -> None:
    known, found = extras(), 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "need":
                wanted, extra = (
                    ast.literal_eval(a) if isinstance(a, ast.Constant) else "" for a in node.args[:2]
                )
                assert not wanted or wanted.partition(".")[0] in known[extra], f"{path}: {wanted} of {extra}"
                found += 1
    assert found > 8


def test_the_examples_and_all_are_whole() -> None:
    known = extras()
    examples = PYPROJECT.parent / "examples" / "python"
    used = set().union(*(packages_in(ast.parse(path.read_text())) for path in examples.glob("*.py")))
    assert used | {"tqdm"} == known["demo"]  # tqdm: the bars of the functions that it calls
    assert known["all"] == set().union(*(known[name] for name in (*COMMANDS, "demo")))


def allowed(extra: str) -> set[str]:
    """Distributions that an environment with this extra has, as far as they are installed here."""
    text = PYPROJECT.read_text()
    line = re.search(rf"^{extra} = \[(.*)\]$", text, re.MULTILINE)
    assert line
    todo = ["torch", "numpy", *(name_of(r) for r in re.findall(r'"([^"]+)"', line[1]))]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        todo += [name_of(r) for r in requires if "extra ==" not in r]
    return seen


RUN = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
HIDDEN = set(%r)
sys.meta_path[:] = map(Without, sys.meta_path)
sys.path.insert(0, "")
from torch_ssam.%s.__main__ import main
sys.exit(main(%r))
"""
FACTORY = """
import torch
data = [(torch.randn(8, 4), torch.randint(0, 2, (8,)))]
def two(): return torch.nn.Linear(4, 2), data
def three(): return torch.nn.Linear(4, 2), torch.nn.functional.cross_entropy, data
"""
SMALL = (
    "--epochs 1 --batch 32 --train 64 --validation 32 --rates 0.1 --adam-rates 0.01 --knob-values 1 --seeds 1 "
    "--robustness-seeds 0"
)
ARGUMENTS = {
    "compare": f"--data digits --model mlp --methods sgd,ssam --workers 1 {SMALL}",
    "experiments": "signatures --quick",
    "noise": "factory:two one.pt --draws 2",
    "robustness": "factory:two one.pt two.pt --draws 2",
    "sharpness": "factory:three one.pt two.pt --samples 2",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_with_its_own_extra_alone(command: str, tmp_path: Path) -> None:
    for name in extras()[command]:
        pytest.importorskip(name)
    there = allowed(command)
    hidden = [
        name
        for name, owners in importlib.metadata.packages_distributions().items()
        if name != "torch_ssam" and not {name_of(o) for o in owners} & {*there, "setuptools", "torch-ssam"}
    ]
    assert {"pytest", "hypothesis"} <= set(hidden)
    (tmp_path / "factory.py").write_text(FACTORY)
    for name in ("one", "two"):
        torch.save(torch.nn.Linear(4, 2).state_dict(), tmp_path / f"{name}.pt")
    done = subprocess.run(
        [sys.executable, "-c", RUN % (hidden, command, [*ARGUMENTS[command].split(), "--out", "out"])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "out").rglob("*.png"))
