"""Shared by all Python tests: loads the operators, puts back what a test may change for the others
(random state, threads, default dtype, CPU kernels), and gives the fixtures that force a CPU variant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

import torch_ssam  # noqa: F401  (loads torch.ops.torch_ssam)

CAPABILITIES = ("plain", "avx2", "avx512")


@pytest.fixture(autouse=True)
def _restore_global_state() -> Iterator[None]:
    rng, numpy_rng = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    capability = torch.ops.torch_ssam.cpu_capability()
    yield
    torch.set_rng_state(rng)
    np.random.set_state(numpy_rng)  # noqa: NPY002
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.ops.torch_ssam._set_cpu_capability(capability)


@pytest.fixture
def force_capability() -> Callable[[str], None]:
    """Switches this process to a CPU variant; skips the test, saying so, where the processor lacks it."""

    def force(name: str) -> None:
        try:
            torch.ops.torch_ssam._set_cpu_capability(name)
        except (ValueError, RuntimeError) as error:
            pytest.skip(f"NOT TESTED here: {error}")
        assert torch.ops.torch_ssam.cpu_capability() == name

    return force


@pytest.fixture(params=CAPABILITIES)
def capability(request: pytest.FixtureRequest, force_capability: Callable[[str], None]) -> str:
    """Runs the test once with each CPU variant."""
    force_capability(request.param)
    return str(request.param)
