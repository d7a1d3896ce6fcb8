"""A `cuda` device on the CPU for tests/python/test_cuda.py: nvcc's host code launches the translated PTX of the kernels.

Tensors "on the GPU" are CPU tensors whose storage is marked: `.cuda()`, `.to("cuda")` and `device="cuda"` mark, what is
computed from marked tensors is marked, `.cpu()` copies. An operator of torch_ssam that gets a marked tensor runs with the
library's CUDA backend (runtime.cpp), any other as always. Streams, graphs, several devices and memory are not there: tests of
those carry the mark `real_gpu`. TORCH_SSAM_EMULATED_CUDA is the library, build/cpp/ptx/libtorch_ssam_cuda.so.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

LIBRARY = os.environ.get("TORCH_SSAM_EMULATED_CUDA", "")


@functools.cache
def library() -> ctypes.CDLL:
    torch.ops.load_library(LIBRARY)
    return ctypes.CDLL(LIBRARY)


def launches() -> int:
    """Of translated kernels, by the operators of this process."""
    function = library().torch_ssam_ptx_launches
    function.restype = ctypes.c_int64
    return int(function())


def _storages(value: object) -> Iterator[Any]:
    if isinstance(value, torch.Tensor):
        if value.layout == torch.strided:
            yield value.untyped_storage()
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _storages(each)
    elif isinstance(value, dict):
        yield from _storages(list(value.values()))


def is_marked(value: object) -> bool:
    return any(getattr(storage, "on_emulated_cuda", False) for storage in _storages(value))


def mark(value: Any) -> Any:
    for storage in _storages(value):
        storage.on_emulated_cuda = True
    return value


def _is_ours(function: object) -> bool:
    name = getattr(function, "_qualified_op_name", None) or str(getattr(function, "_name", ""))
    return name.startswith("torch_ssam::")


def _is_cuda(value: object) -> bool:
    return isinstance(value, str | torch.device) and str(value).startswith("cuda")


# What reads or replaces a tensor's memory without computing from it.
_NO_RESULT = ("__get__", "__set__", "untyped_storage", "copy_")


class EmulatedCuda(TorchFunctionMode):
    """Inside, the device `cuda` is emulated."""

    def __enter__(self) -> Any:
        library()
        return super().__enter__()

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        marked = is_marked(args) or is_marked(kwargs)
        if _is_ours(function):
            return self._ours(function, args, kwargs, marked)
        name = getattr(function, "__name__", "")
        if name == "cuda" or (name == "to" and any(map(_is_cuda, args[1:]))):
            return mark(args[0].detach().clone(memory_format=torch.preserve_format))
        if name == "cpu":
            return args[0].detach().clone()
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
            marked = True
        out = function(*args, **kwargs)
        return mark(out) if marked and name not in _NO_RESULT else out

    @staticmethod
    def _ours(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], marked: bool) -> Any:
        library().torch_ssam_ptx_device(int(marked))
        try:
            out = function(*args, **kwargs)
        finally:
            library().torch_ssam_ptx_device(0)
        return mark(out) if marked else out
