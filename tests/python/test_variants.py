"""Every CPU variant (plain, avx2, avx512) gives the same bits: switched in this process, and forced from
the start of a fresh one by TORCH_SSAM_CPU_CAPABILITY. The hash is over the outputs of all operators,
dtypes and distributions; a variant that the processor lacks is skipped by name.
tests/cpp/test_kernels.cpp compares the loops themselves.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import PAIRS, generator_of, random, sgd
from conftest import CAPABILITIES

ops = torch.ops.torch_ssam


def all_outputs() -> list[torch.Tensor]:
    outputs: list[torch.Tensor] = []
    for master, model in PAIRS:
        for distribution in ("gaussian", "rademacher"):
            for n in (1, 33, 4097, 20011):
                clean, buffer = random(n, master, 1), random(n, master, 2)
                grad, param = random(n, model, 3), torch.empty(n, dtype=model)
                ops.perturb_from_clean_([param], [clean], generator_of(), [3], 0.1, distribution)
                outputs += [param.clone()]
                ops.update_and_perturb_(
                    [param],
                    [clean],
                    [grad],
                    [buffer],
                    *sgd(0.1, 0.9, 0.0, 0.01, nesterov=True),
                    generator_of(),
                    [3],
                    0.1,
                    distribution,
                )
                ops.project_([clean], 1.5)
                outputs += [param, clean, buffer]
            x, w = random((70, 1030), model, 4), random((3, 1030), master, 5)
            for readout in (False, True):
                y = ops.diagonal(x, w, generator_of(), 0.1, distribution, readout)
                grads = ops.diagonal_backward(
                    random(tuple(y.shape), model, 6),
                    x,
                    w,
                    generator_of(),
                    0.1,
                    distribution,
                    readout,
                    True,
                    True,
                )
                outputs += [y, *grads]
    return outputs


def hash_of_outputs() -> str:
    digest = hashlib.sha256()
    for tensor in all_outputs():
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def run_child(capability: str, expression: str) -> tuple[str, str]:
    """Standard output (the value of `expression`) and standard error of a fresh process."""
    child = subprocess.run(
        [sys.executable, "-c", f"import conftest, test_variants as t; print({expression})"],
        cwd=Path(__file__).parent,
        env={
            **os.environ,
            "TORCH_SSAM_CPU_CAPABILITY": capability,
            "PYTHONPATH": os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return child.stdout, child.stderr


@pytest.fixture(scope="module")
def plain_hash() -> str:
    before = ops.cpu_capability()
    ops._set_cpu_capability("plain")
    digest = hash_of_outputs()
    ops._set_cpu_capability(before)
    return digest


def test_a_variant_switched_in_this_process_gives_the_bits_of_plain(capability: str, plain_hash: str) -> None:
    assert ops.cpu_capability() == capability
    assert hash_of_outputs() == plain_hash


def test_the_chosen_variant_gives_the_bits_of_plain(plain_hash: str) -> None:
    assert ops.cpu_capability() in CAPABILITIES
    assert hash_of_outputs() == plain_hash


def test_a_variant_forced_by_the_environment_gives_the_bits_of_plain(
    capability: str, plain_hash: str
) -> None:
    output, errors = run_child(capability, "t.ops.cpu_capability(), t.hash_of_outputs()")
    assert output.strip() == f"{capability} {plain_hash}"
    assert "TORCH_SSAM_CPU_CAPABILITY" not in errors


def test_an_unknown_capability_in_the_environment_is_reported_and_the_best_is_used() -> None:
    output, errors = run_child("sse9", "t.ops.cpu_capability()")
    assert output.strip() == run_child("", "t.ops.cpu_capability()")[0].strip()
    assert output.strip() in CAPABILITIES
    assert "TORCH_SSAM_CPU_CAPABILITY=sse9 is not one of plain, avx2, avx512" in errors
