"""The generator of the noise: (seed, draw) on every device that has parameters, and what operators are told of a draw.

A CPU's tensor stays at draw 0 and is never written: an operator call for each step would cost more than an addition. A
GPU's moves on the GPU, where a replayed CUDA graph moves it too. Tests: test_noise_contract.py, test_checkpoints.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torch_ssam.noise.members import Group
from torch_ssam.ops import library
from torch_ssam.ops.entries import ops

_CPU = torch.device("cpu")


class NoiseArguments(NamedTuple):
    """How one perturbation is made: the arguments that follow generator and place in every operator that makes noise.

    In the order of csrc/ops/arguments.h.
    """

    noise_std: float
    distribution: str
    sample: int
    negate: bool
    draw_offset: int

    @classmethod
    def of(cls, group: Group, sample: int, negate: bool, draw_offset: int) -> NoiseArguments:
        """Those of a group, of a pass of a step."""
        return cls(float(group["noise_std"]), group["distribution"], sample, negate, draw_offset)

    def mirrored(self) -> NoiseArguments:
        """The same noise with the other sign."""
        return self._replace(negate=not self.negate)


class Generator:
    """Seed and draw. `stream` is added to the seed: ranks with noise of their own share the seed, and so the checkpoint."""

    def __init__(self, seed: int, stream: int = 0) -> None:
        self.seed, self.stream = seed, stream
        self._draw = 0
        self._tensors: dict[torch.device | str, Tensor] = {}

    @property
    def draw(self) -> int:
        """The draw in use while perturbed, else the next one. Read where it may move alone (in a CUDA graph)."""
        for tensor in self._tensors.values():
            if not tensor.is_cpu:
                return int(tensor[1].item())
        return self._draw

    def set(self, seed: int, draw: int) -> None:
        """Continues with this seed and draw."""
        self.seed, self._draw = seed, draw
        for tensor in self._tensors.values():
            tensor.copy_(self._new(tensor.device, draw))

    def advance(self) -> None:
        """Moves on to the next draw."""
        for tensor in self._tensors.values():
            if not tensor.is_cpu:
                ops.advance_(tensor, 1)
        self._draw += 1

    def on(self, device: torch.device) -> tuple[Tensor, int]:
        """(seed, draw) on a device, and what to add to this draw."""
        on_cpu = device == _CPU or device.type == "cpu"  # making the name takes as long as a tensor's checks
        key = "cpu" if on_cpu else device  # a string's hash costs less
        tensor = self._tensors.get(key)
        if tensor is None:
            _require_kernels(device)
            with torch.inference_mode(False):
                tensor = self._new(device, self.draw)
            self._tensors[key] = tensor
        return tensor, self._draw if on_cpu else 0

    def _new(self, device: torch.device, draw: int) -> Tensor:
        seed = (self.seed + self.stream + 2**63) % 2**64 - 2**63
        return torch.tensor([seed, 0 if device.type == "cpu" else draw], dtype=torch.int64, device=device)


def _require_kernels(device: torch.device) -> None:
    if device.type == "cpu" or library.has_plain(device):
        return
    if device.type == "cuda":
        if library.cuda_load_error is not None:
            raise RuntimeError(library.cuda_load_error)
        if torch._C._dispatch_has_kernel_for_dispatch_key("torch_ssam::perturb_", "CUDA"):
            return
        raise RuntimeError(
            "This build of torch_ssam has no CUDA kernels. Build it where nvcc is found, or with FORCE_CUDA=1."
        )
    raise RuntimeError(
        f"torch_ssam has no operators for device type '{device.type}'; expected cpu, cuda, mps, xpu, hpu or a backend of "
        "PrivateUse1."
    )
