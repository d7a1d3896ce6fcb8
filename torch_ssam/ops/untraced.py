"""What a call costs before it does anything: torch.compile's wrapper, paid only where it is in use.

A step of a small network takes 20 us; the wrapper that torch puts round an optimizer's calls would double it.
Tests: tests/python/test_compile.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo

P = ParamSpec("P")
R = TypeVar("R")

_compiling = torch.compiler.is_dynamo_compiling
_watcher: Callable[[], object] = torch._C._dynamo.eval_frame.get_eval_frame_callback


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """torch.compile breaks its graph at the function: traced, a changed lr or noise_std would compile again."""
    disabled = _disable_dynamo(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        # Dynamo takes the first as true while it traces; the second is there while it watches frames.
        if _compiling() or _watcher() is not None:
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return call
