"""Builds the native parts with CMakeLists.txt, which holds the only list of sources, and packs them.

PyTorch's headers come from the environment that pip installs into, also under build isolation (pip hides that
environment's packages from the build but not its folder). TORCH_SSAM_TORCH_DIR names another. FORCE_CUDA=1 builds the
CUDA kernels or fails; FORCE_CUDA=0 leaves them out; otherwise they are built where nvcc is found. CMAKE_ARGS are
options for CMake. Tests: tests/python/test_installing.py.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
#: Folders of the package that CMake fills; torch_ssam/_C*.so lies beside them, a file for each Python.
BUILT = ("lib", "include", "share")


def find_torch() -> Path:
    """The folder of the torch package, found without importing it."""
    candidates = [Path(d) for d in [os.environ.get("TORCH_SSAM_TORCH_DIR", "")] if d]
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.submodule_search_locations:
        candidates.append(Path(next(iter(spec.submodule_search_locations))))
    candidates += [Path(sysconfig.get_path(kind)) / "torch" for kind in ("purelib", "platlib")]
    for folder in candidates:
        if (folder / "include/torch/csrc/stable/library.h").exists():
            return folder
    raise SystemExit(
        "torch_ssam needs PyTorch >= 2.10 to build and found none in "
        + ", ".join(str(c) for c in candidates)
        + ". Install PyTorch first, or name its folder in TORCH_SSAM_TORCH_DIR, or use --no-build-isolation."
    )


def find_program(name: str) -> str | None:
    """A program on the PATH (under build isolation pip's is first), else beside this Python."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def found_version(requirement: str) -> str | None:
    """The version there is of a build requirement, None where there is none that works."""
    if requirement == "setuptools":
        return setuptools.__version__
    if requirement == "pybind11":
        try:
            return importlib.metadata.version(requirement)
        except importlib.metadata.PackageNotFoundError:
            return None
    program = find_program(requirement) or (find_program("make") if requirement == "ninja" else None)
    if program is None:
        return None
    try:  # the program of a package that is gone is still there, and fails
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    number = re.search(r"\d+(\.\d+)*", said)
    return None if number is None else number[0]


def check_requirements() -> None:
    """Says in one line which build requirements of pyproject.toml are missing or too old."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^requires = \[(.*)\]$", text, re.MULTILINE)
    missing, came = [], []
    for requirement in re.findall(r'"([^"]+)"', listed[1] if listed else ""):
        name, _, oldest = requirement.partition(">=")
        found = found_version(name)
        if found is None or _numbers(found) < _numbers(oldest):
            missing.append(requirement)
            came.append(f"{name} {found or 'missing'}")
    if missing:
        raise SystemExit(
            f"torch_ssam cannot be built here ({', '.join(came)}): pip install "
            f"{' '.join(shlex.quote(m) for m in missing)}, or install without --no-build-isolation."
        )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def forget_configuration(folder: Path) -> None:
    """CMake's memory of an earlier build goes, objects stay: the build tool makes those again whose command changed.

    The memory holds paths: of pip's ninja, cmake and pybind11, deleted after every isolated build, of a compiler, Python
    or PyTorch that may be gone, of a checkout that was moved. CMake ends at such a path instead of looking again.
    """
    (folder / "CMakeCache.txt").unlink(missing_ok=True)
    for compilers in (folder / "CMakeFiles").glob("[0-9]*.[0-9]*"):
        shutil.rmtree(compilers)


def run_cmake(*arguments: str) -> None:
    """Runs CMake, whose messages are the error."""
    if subprocess.run([find_program("cmake") or "cmake", *arguments], check=False).returncode:
        raise SystemExit("torch_ssam could not be built: CMake's message is above.")


class Build(build):
    """A build from nothing but the sources: a module that was moved since the last one would be packed twice."""

    def run(self) -> None:
        check_requirements()
        folder = Path(self.build_lib).resolve()
        if folder.is_relative_to(ROOT / "build"):
            shutil.rmtree(folder, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """One CMake build for everything native; the results lie in torch_ssam/ of the wheel or the checkout."""

    def run(self) -> None:
        check_requirements()  # an editable install runs no `build`
        super().run()

    def build_extension(self, ext: Extension) -> None:
        torch = find_torch()
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        folder = Path(os.environ.get("TORCH_SSAM_BUILD_DIR", self.build_temp)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        forget_configuration(folder)
        arguments = [
            f"-DTORCH_SSAM_TORCH_DIR={torch}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={self._pybind11_dir()}",
            "-DTORCH_SSAM_BUILD_PYTHON=ON",
            f"-DCMAKE_BUILD_TYPE={os.environ.get('TORCH_SSAM_BUILD_TYPE', 'Release')}",
        ]
        if "FORCE_CUDA" in os.environ:
            wanted = os.environ["FORCE_CUDA"] not in ("", "0")
            arguments.append(f"-DTORCH_SSAM_BUILD_CUDA={'ON' if wanted else 'OFF'}")
        ninja = find_program("ninja")
        if ninja is not None:
            arguments += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        arguments += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        run_cmake("-S", str(ROOT), "-B", str(folder), *arguments)
        run_cmake("--build", str(folder), "--parallel", jobs)
        # An editable install runs from the checkout, and setuptools copies only the extension there.
        targets = {package, ROOT / "torch_ssam"} if self.inplace or self.editable_mode else {package}
        for target in targets:
            for name in BUILT:  # a library that is no longer built, such as that of the CUDA kernels
                shutil.rmtree(target / name, ignore_errors=True)
            run_cmake("--install", str(folder), "--prefix", str(target), "--component", "python")

    @staticmethod
    def _pybind11_dir() -> str:
        import pybind11

        return pybind11.get_cmake_dir()


setup(
    ext_modules=[Extension("torch_ssam._C", sources=[])], cmdclass={"build": Build, "build_ext": CMakeBuild}
)
