"""Builds the native parts with CMakeLists.txt, which holds the only list of sources, and packs them.

PyTorch's headers come from the environment that pip installs into, also under build isolation (pip hides that
environment's packages from the build but not its folder). TORCH_SSAM_TORCH_DIR names another. FORCE_CUDA=1 builds the
CUDA kernels or fails; FORCE_CUDA=0 leaves them out; otherwise they are built where nvcc is found.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


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


class CMakeBuild(build_ext):
    """One CMake build for everything native; the results lie in torch_ssam/ of the wheel or the checkout."""

    def build_extension(self, ext: Extension) -> None:
        torch = find_torch()
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(os.environ.get("TORCH_SSAM_BUILD_DIR", self.build_temp)).resolve()
        build.mkdir(parents=True, exist_ok=True)
        cmake = shutil.which("cmake") or "cmake"
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
        if shutil.which("ninja"):
            arguments.append("-GNinja")
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.run([cmake, "-S", str(ROOT), "-B", str(build), *arguments], check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel", jobs], check=True)
        # An editable install runs from the checkout, and setuptools copies only the extension there.
        targets = {package, ROOT / "torch_ssam"} if self.inplace or self.editable_mode else {package}
        for target in targets:
            subprocess.run(
                [cmake, "--install", str(build), "--prefix", str(target), "--component", "python"], check=True
            )

    @staticmethod
    def _pybind11_dir() -> str:
        import pybind11

        return pybind11.get_cmake_dir()


setup(ext_modules=[Extension("torch_ssam._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
