"""The CUDA library in a PyTorch that has CUDA, without a GPU: it loads there, every operator has its CUDA
registration and its fake kernel, and the operator library built against another PyTorch gives its known
numbers there.

Runs where PyTorch has CUDA: in this environment, or in the one whose Python TORCH_SSAM_CUDA_PYTHON names
(docs/cuda.md says how to make one). FAIL_WITHOUT_CUDA=1 makes a missing one an error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_ssam

PACKAGE = Path(torch_ssam.__file__).parent
# Operators that only say or choose which CPU loops are in use.
NO_DEVICE = {"cpu_capability", "_set_cpu_capability"}

REPORT = """
import importlib.util, json, sys, types
import torch
folder = sys.argv[1]
# The package's front, as far as it loads and describes the libraries, from the folder that was built.
package = types.ModuleType("torch_ssam")
package.__path__ = [folder]
sys.modules["torch_ssam"] = package
from torch_ssam.ops import library
import torch._library.simple_registry as registry

names = sorted(n for n in torch._C._dispatch_get_all_op_names() if n.startswith("torch_ssam::"))
has = torch._C._dispatch_has_kernel_for_dispatch_key
operators = {
    name.split("::")[1]: {
        "cpu": has(name, "CPU"),
        "cuda": has(name, "CUDA"),
        "sparse": (has(name, "SparseCPU"), has(name, "SparseCUDA")),
        "fake": registry.singleton.find(name).fake_impl.kernel is not None or has(name, "Meta"),
    }
    for name in names
}
weights = torch.linspace(-1, 1, 4097)
out = torch.ops.torch_ssam.perturbed(weights, torch.tensor([7, 3]), 2, 0.25)
checksum = int(out.view(torch.int32).to(torch.int64).mul(torch.arange(1, 4098)).sum())
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda, "error": library.cuda_load_error,
    "operators": operators, "checksum": checksum,
}))
"""


def checksum() -> int:
    out = torch.ops.torch_ssam.perturbed(torch.linspace(-1, 1, 4097), torch.tensor([7, 3]), 2, 0.25)
    return int(out.view(torch.int32).to(torch.int64).mul(torch.arange(1, 4098)).sum())


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    python = sys.executable if torch.version.cuda else os.environ.get("TORCH_SSAM_CUDA_PYTHON")
    problem = None
    if python is None:
        problem = "NOT TESTED here: PyTorch has no CUDA and TORCH_SSAM_CUDA_PYTHON names none that has"
    elif not (PACKAGE / "lib" / "libtorch_ssam_cuda.so").exists():
        problem = "NOT TESTED here: the CUDA library is not built (FORCE_CUDA=1 builds it where nvcc is)"
    if problem is not None:
        if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
            pytest.fail(f"FAIL_WITHOUT_CUDA=1. {problem}")
        pytest.skip(problem)
    assert python is not None
    done = subprocess.run([python, "-c", REPORT, str(PACKAGE)], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_the_cuda_library_loads(report: dict[str, Any]) -> None:
    assert report["cuda"] is not None
    assert report["error"] is None


def test_every_operator_has_its_cuda_kernel(report: dict[str, Any]) -> None:
    missing = [n for n, keys in report["operators"].items() if n not in NO_DEVICE and not keys["cuda"]]
    assert len(report["operators"]) > len(NO_DEVICE)
    assert missing == []


def test_sparse_tensors_reach_the_same_checks_on_both_devices(report: dict[str, Any]) -> None:
    assert any(cpu for cpu, _ in (keys["sparse"] for keys in report["operators"].values()))
    assert [n for n, keys in report["operators"].items() if keys["sparse"][0] != keys["sparse"][1]] == []


def test_every_operator_with_a_cpu_kernel_has_a_fake_kernel(report: dict[str, Any]) -> None:
    assert [n for n, keys in report["operators"].items() if keys["cpu"] and not keys["fake"]] == []
    assert {n for n, keys in report["operators"].items() if keys["cpu"]} == {
        n for n, keys in report["operators"].items() if keys["cuda"]
    }


def test_the_operator_library_gives_the_same_bits_there(report: dict[str, Any]) -> None:
    assert report["checksum"] == checksum()
