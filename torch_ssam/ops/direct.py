"""The step of many tensors as one call past the dispatcher, which looks at every tensor afresh and keeps nothing.

On its way through the stable ABI each tensor of a list is boxed, and Python looks at each several times besides: more
than the arithmetic of small tensors. csrc/python/direct.cpp does both in C, with the operator's own checks and loops;
`step` answers False, with nothing written, to all that is out of the ordinary, and the dispatcher then serves it or
says what is wrong. It needs DLPack's C exchange, of PyTorch >= 2.10. Tests: tests/python/test_direct.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from torch_ssam.ops import library

_direct: Any = importlib.import_module("torch_ssam._C").direct

_functions: Callable[[], int] = torch._C._len_torch_function_stack
_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_transform: Callable[[], object] = torch._C._functorch.peek_interpreter_stack
_profiling: Callable[[], bool] = torch._C._autograd._profiler_enabled

#: Whether this PyTorch has what direct calls need.
available: bool = _direct.bind(torch.Tensor, torch.nn.Parameter, str(library._FOLDER / "libtorch_ssam.so"))

#: `step(...) -> bool`, by position; the arguments are those of csrc/python/direct.cpp.
step: Callable[..., bool] = _direct.step


def is_watched() -> bool:
    """Whether a mode, a transform or a profiler is on, which would see an operator's call, and must not miss it."""
    return _functions() != 0 or _modes() != 0 or _transform() is not None or _profiling()


def versions(tensors: list[torch.Tensor]) -> list[int]:
    """The version of each tensor."""
    if available:
        read: list[int] = _direct.versions(tensors)
        return read
    return [tensor._version for tensor in tensors]
