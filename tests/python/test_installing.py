"""Installing from a checkout: again and again, isolated and not, and what is said where something is missing.

Where the sources are not (`make wheel` runs the tests without them) what installs is left out.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

import pytest
import setuptools
import torch

import torch_ssam
from torch_ssam import _built

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "CMakeLists.txt",
    "LICENSE",
    "README.md",
    "cmake",
    "csrc",
    "pyproject.toml",
    "setup.py",
    "tools",
    "torch_ssam",
)

#: Of a wheel: what pip writes, and manuals and programs that a build does not use.
LEFT_OUT = ("RECORD", "INSTALLER", "REQUESTED", ".pyc", ".rst", "ccmake", "cpack", "ctest")

needs_sources = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="no sources to install from")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The sources alone, in a path with spaces."""
    folder = tmp_path / "a check out"
    built = shutil.ignore_patterns("lib", "include", "share", "*.so", "__pycache__", "*.egg-info")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=built if name == "torch_ssam" else None)
        else:
            folder.mkdir(exist_ok=True)
            shutil.copy(source, folder / name)
    return folder


def packed(name: str, folder: Path) -> None:
    """A wheel of a package that is installed here, so that pip finds it without a network."""
    found = importlib.metadata.distribution(name)
    site, scripts = Path(str(found.locate_file("."))).resolve(), Path(sysconfig.get_path("scripts")).resolve()
    stem = f"{found.metadata['Name'].replace('-', '_')}-{found.version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for file in found.files or []:
            path = Path(str(found.locate_file(file))).resolve()
            if file.suffix in LEFT_OUT or file.name in LEFT_OUT or not path.is_file():
                continue
            if path.is_relative_to(site):
                wheel.write(path, path.relative_to(site))
            elif path.is_relative_to(scripts) and not path.read_bytes().startswith(
                b"#!"
            ):  # pip makes the others
                wheel.write(path, f"{stem}.data/scripts/{path.name}")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


MODULE = """#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1,
                             nullptr, nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__C() {
  PyObject* made = PyModule_Create(&module);
  PyModule_AddIntConstant(made, "answer", ANSWER);
  return made;
}
"""


def install(checkout: Path, target: Path, *options: str, **environment: str) -> None:
    """`pip install .` into an empty folder."""
    shutil.rmtree(target, ignore_errors=True)
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TORCH_SSAM_BUILD_DIR")}
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, *options, "."],
        cwd=checkout,
        env={
            **kept,
            "FORCE_CUDA": "0",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_COMPILE": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def answer(target: Path) -> int:
    """What the installed `_C` says."""
    code = "import _C; print(_C.answer)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=target / "torch_ssam", capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@needs_sources
@pytest.mark.slow
def test_installing_twice_isolated_and_not_builds_what_the_sources_say(
    checkout: Path, tmp_path: Path
) -> None:
    """`pip install .` in an environment of pip's own, which pip then deletes, and again with --no-build-isolation.

    Before the first lie the remains of a configuration that was cut off, made elsewhere, for other tools; before the second
    a module and a library that the sources no longer have, and a source is changed. Everything is configured, built and
    installed as always, but what compiles is next to nothing: C++ sources are empty, `_C` has one number.
    """
    for source in (checkout / "csrc").rglob("*.cpp"):
        source.write_text("")
    module = checkout / "csrc" / "python" / "module.cpp"
    module.write_text(MODULE.replace("ANSWER", "1"))
    temporary = checkout / "build" / f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    compilers = temporary / "CMakeFiles" / "3.99.0"
    compilers.mkdir(parents=True)
    (compilers / "CMakeCXXCompiler.cmake").write_text('set(CMAKE_CXX_COMPILER "/gone/g++')
    (temporary / "CMakeCache.txt").write_text(
        "CMAKE_GENERATOR:INTERNAL=Unix Makefiles\nCMAKE_HOME_DIRECTORY:INTERNAL=/gone/checkout\n"
        "CMAKE_MAKE_PROGRAM:FILEPATH=/gone/make\nCMAKE_CXX_COMPILER:FILEPATH=/gone/g++\n"
    )
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("setuptools", "pybind11", "cmake", "ninja"):
        packed(name, wheels)
    torch_folder, target = str(Path(torch.__file__).parent), tmp_path / "site"

    install(
        checkout, target, PIP_NO_INDEX="1", PIP_FIND_LINKS=wheels.as_uri(), TORCH_SSAM_TORCH_DIR=torch_folder
    )
    assert answer(target) == 1
    first = {str(path.relative_to(target)) for path in target.rglob("*")}
    assert {
        "torch_ssam/lib/libtorch_ssam.so",
        "torch_ssam/share/cmake/TorchSSAM/TorchSSAMConfig.cmake",
    } <= first
    assert "pip-build-env" in (temporary / "CMakeCache.txt").read_text()

    module.write_text(MODULE.replace("ANSWER", "2"))
    (package,) = (checkout / "build").glob("lib*/torch_ssam")
    (package / "gone.py").touch()
    for folder in (package, checkout / "torch_ssam"):
        (folder / "lib").mkdir(exist_ok=True)
        (folder / "lib" / "libtorch_ssam_cuda.so").touch()
    install(checkout, target, "--no-build-isolation", TORCH_SSAM_TORCH_DIR=torch_folder)
    assert answer(target) == 2
    assert {str(path.relative_to(target)) for path in target.rglob("*")} == first
    assert "pip-build-env" not in (temporary / "CMakeCache.txt").read_text()


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Python with setuptools and nothing else."""
    environment = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    package = Path(setuptools.__file__).parent
    (info,) = package.parent.glob(f"setuptools-{setuptools.__version__}*info")
    for path in (package, package.parent / "_distutils_hack", info):
        (site / path.name).symlink_to(path)
    return environment / "bin" / "python"


def build_wheel(python: Path, checkout: Path, before: str = "", **environment: str) -> list[str]:
    """Builds as pip does without isolation, and gives the lines of the error."""
    code = f"import sys; sys.path.insert(0, 'tools')\n{before}\nimport build_backend; build_backend.build_wheel('wheels')"
    done = subprocess.run(
        [python, "-c", code],
        cwd=checkout,
        env={"PATH": "/nowhere", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


@needs_sources
def test_missing_build_tools_are_named_in_one_line(bare: Path, checkout: Path) -> None:
    assert build_wheel(bare, checkout)[-1] == (
        "torch_ssam cannot be built here (pybind11 missing, cmake missing, ninja missing): pip install "
        "'pybind11>=2.13' 'cmake>=3.22' ninja, or install without --no-build-isolation."
    )


@needs_sources
def test_missing_and_old_setuptools_are_named_in_one_line(bare: Path, checkout: Path) -> None:
    missing = build_wheel(bare, checkout, "sys.modules['setuptools'] = None")
    assert missing == [
        "torch_ssam cannot be built here (setuptools missing): pip install 'setuptools>=77', or install without "
        "--no-build-isolation."
    ]
    old = build_wheel(bare, checkout, "import setuptools; setuptools.__version__ = '65.5.0'")[-1]
    assert "(setuptools 65.5.0, pybind11 missing" in old
    assert "pip install 'setuptools>=77' 'pybind11>=2.13'" in old


@needs_sources
def test_the_backend_names_the_setuptools_of_pyproject() -> None:
    (wanted,) = (
        word for word in (ROOT / "pyproject.toml").read_text().split('"') if word.startswith("setuptools>=")
    )
    assert f"'{wanted}'" in (ROOT / "tools" / "build_backend.py").read_text()


@needs_sources
def test_an_error_of_cmake_ends_with_its_message_and_no_traceback(checkout: Path) -> None:
    said = build_wheel(
        Path(sys.executable),
        checkout,
        PATH=os.environ["PATH"],
        FORCE_CUDA="0",
        TORCH_SSAM_TORCH_DIR=str(Path(torch.__file__).parent),
        CMAKE_ARGS="-DTORCH_SSAM_TORCH_DIR='/no torch'",
    )
    assert any("found none at '/no torch'" in line for line in said)
    assert said[-1] == "torch_ssam could not be built: CMake's message is above."


def linked(package: Path, *, built: bool) -> Path:
    """A copy of the package that is imported here, by links, with or without its native parts."""
    package.mkdir(parents=True)
    for path in Path(torch_ssam.__file__).parent.iterdir():
        if built or not (path.name == "lib" or path.suffix == ".so"):
            (package / path.name).symlink_to(path)
    return package


def imported(folder: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """`python -c "import torch_ssam"` in a folder, with other folders on Python's path."""
    return subprocess.run(
        [sys.executable, "-c", "import torch_ssam; print(torch_ssam.theory.existence_threshold(0.5, 2))"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_checkout_that_is_not_built_says_so_and_where_the_installed_copy_is(tmp_path: Path) -> None:
    checkout, site = tmp_path / "check out", tmp_path / "site"
    linked(checkout / "torch_ssam", built=False)
    (checkout / "CMakeLists.txt").touch()
    installed = linked(site / "torch_ssam", built=True)
    said = imported(checkout, site)
    assert said.returncode == 1
    assert said.stderr.splitlines()[-1] == (
        f"ImportError: torch_ssam was found in a checkout that is not built, {checkout}: lib/libtorch_ssam.so is missing. "
        f"A built copy is installed in {installed}: to use it, run Python from another folder (and without the checkout "
        "on PYTHONPATH). To build the checkout, run `make build` there."
    )
    followed = imported(tmp_path, site)
    assert followed.stdout == "0.25\n", followed.stderr


class Finder:
    """As an editable install's: it knows one package."""

    def __init__(self, package: Path) -> None:
        self._package = package

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != self._package.name:
            return None
        return spec_from_file_location(name, self._package / "__init__.py")


def test_every_package_without_native_parts_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    package = tmp_path / "torch_ssam"
    (package / "lib").mkdir(parents=True)
    with pytest.raises(
        ImportError, match=r"torch_ssam is not whole: lib/libtorch_ssam.so is missing. Reinstall"
    ):
        _built.check_built(package)
    (tmp_path / "CMakeLists.txt").touch()
    with pytest.raises(
        ImportError, match=r"not built, .*: lib/libtorch_ssam.so is missing. Run `make build`"
    ):
        _built.check_built(package)
    (package / "lib" / "libtorch_ssam.so").touch()
    (package / "_C.cpython-37-other.so").touch()
    wanted = rf"no _C for Python 3.{sys.version_info[1]} \(_C.cpython-37-other.so found\). Run `make build`"
    with pytest.raises(ImportError, match=wanted):
        _built.check_built(package)
    elsewhere = linked(tmp_path / "editable" / "torch_ssam", built=True)
    monkeypatch.setattr(sys, "meta_path", [Finder(package), Finder(elsewhere)])
    with pytest.raises(ImportError, match=re.escape(f"A built copy is installed in {elsewhere}:")):
        _built.check_built(package)
    _built.check_built(elsewhere)
