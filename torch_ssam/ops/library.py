"""Loads the operator library and describes its operators to torch.compile and FakeTensor.

One binary on LibTorch's stable ABI serves every PyTorch >= 2.10. The CUDA kernels are a second library,
loaded where the installed PyTorch has CUDA; where it cannot be loaded, everything on the CPU still works and
`cuda_load_error` says why. Devices that we have no kernels for get the plain PyTorch operators of plain.py.
Tests: tests/python/test_compile.py, test_cuda_registration.py, test_plain_operators.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from torch_ssam._built import check_built

_FOLDER = Path(__file__).parents[1] / "lib"
_OLDEST = (2, 10)

cuda_load_error: str | None = None


def _version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _load() -> None:
    global cuda_load_error
    load_library: Callable[[str], None] = torch.ops.load_library
    if _version() < _OLDEST:
        raise ImportError(
            f"torch_ssam needs PyTorch >= {_OLDEST[0]}.{_OLDEST[1]} and found {torch.__version__}. "
            "Upgrade it with `pip install --upgrade torch`."
        )
    check_built(_FOLDER.parent)
    load_library(str(_FOLDER / "libtorch_ssam.so"))
    cuda_library = _FOLDER / "libtorch_ssam_cuda.so"
    if torch.version.cuda is not None and cuda_library.exists():
        try:
            load_library(str(cuda_library))
        except OSError as error:
            cuda_load_error = (
                f"{cuda_library.name} could not be loaded into PyTorch {torch.__version__}: {error}"
            )


_load()


#: The operators that only write into their arguments; entries.py calls them.
WRITERS = (
    "perturb_",
    "perturb_from_clean_",
    "restore_",
    "follow_",
    "advance_",
    "update_",
    "update_and_perturb_",
    "update_rows_and_perturb_",
    "add_squares_",
    "project_",
    "row_scales_",
    "row_fisher_",
    "clip_rows_",
)
OPERATORS = (*WRITERS, "perturbed", "diagonal", "diagonal_backward")

#: Dispatch keys of devices without kernels of ours; plain.py stands in there. Never CPU, and CUDA only where it is ROCm's
#: name: a missing CUDA library is to be named, not hidden.
PLAIN_KEYS = tuple(
    key
    for key in ("MPS", "XPU", "HPU", "PrivateUse1", *(("CUDA",) if torch.version.hip is not None else ()))
    if hasattr(torch._C.DispatchKey, key)
)


def register_plain(key: str) -> torch.library.Library:
    """The plain operators for a dispatch key, as long as the result lives. plain.py is imported at the first call."""

    def kernel(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            from torch_ssam.ops import plain

            return plain.run(name, args, kwargs)

        return call

    registered = torch.library.Library("torch_ssam", "IMPL", key)  # type: ignore[no-untyped-call]
    for name in OPERATORS:
        registered.impl(name, kernel(name))  # type: ignore[no-untyped-call]
    return registered


_plain = [register_plain(key) for key in PLAIN_KEYS]


def has_plain(device: torch.device) -> bool:
    """Whether the plain operators serve a device."""
    key: str = torch._C._dispatch_key_for_device(device.type)
    return key in PLAIN_KEYS


def _tensors(values: Iterable[object]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _describe(name: str, fake: Callable[..., Any]) -> None:
    """Registers what an operator returns without data.

    A call that mixes meta tensors with others comes here too, since the dispatcher takes the meta device's kernel then:
    it would be answered with memory that nobody has written, or do nothing.
    """

    def on_one_device(*args: object, **kwargs: object) -> Any:
        devices = sorted({str(tensor.device) for tensor in _tensors((*args, *kwargs.values()))})
        if len(devices) > 1:
            raise ValueError(
                f"torch_ssam: tensors of one call are on different devices, {' and '.join(devices)}; expected one device "
                "a call. Move them to one, or call once for each device."
            )
        return fake(*args, **kwargs)

    torch.library.register_fake(f"torch_ssam::{name}", on_one_device)


def _mutates(*_args: object, **_kwargs: object) -> None:
    """An operator that only writes into its arguments has nothing to say of shapes."""


def _defined(**tensors: torch.Tensor | None) -> None:
    """The dispatcher lets None through where a schema asks for a tensor."""
    for name, tensor in tensors.items():
        if tensor is None:
            raise ValueError(f"torch_ssam: {name} is None; expected a tensor.")


def _perturbed(weights: torch.Tensor, *_args: object, **_kwargs: object) -> torch.Tensor:
    _defined(weights=weights)
    return torch.empty_like(weights)


def _diagonal(
    input: torch.Tensor,
    weight: torch.Tensor,
    generator: torch.Tensor | None = None,
    noise_std: float = 0.0,
    distribution: str = "gaussian",
    readout: bool = False,
) -> torch.Tensor:
    _defined(input=input, weight=weight)
    return input.new_empty(input.shape[:-1] if readout else input.shape)


def _diagonal_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    generator: torch.Tensor | None,
    noise_std: float,
    distribution: str,
    readout: bool,
    needs_input: bool,
    needs_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    _defined(grad_output=grad_output, input=input, weight=weight)
    return (
        input.new_empty(input.shape if needs_input else (0,)),
        weight.new_empty(weight.shape if needs_weight else (0,)),
    )


for _name in WRITERS:
    _describe(_name, _mutates)
_describe("perturbed", _perturbed)
_describe("diagonal", _diagonal)
_describe("diagonal_backward", _diagonal_backward)
