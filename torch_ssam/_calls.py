"""What a call of an optimizer costs before it does anything: torch.compile and profiler hooks, paid only in use.

A step of a small network takes 20 us; the wrappers that torch puts round every optimizer call would double it.
Tests: tests/python/test_compile.py, test_ssam_optimizer.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.optim import optimizer as _module

P = ParamSpec("P")
R = TypeVar("R")

_compiling = torch.compiler.is_dynamo_compiling
_watcher: Callable[[], object] = torch._C._dynamo.eval_frame.get_eval_frame_callback
_profiling: Callable[[], bool] = torch._C._autograd._profiler_enabled


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


def hooked_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step with what `torch.optim.Optimizer` puts round it, where a hook or a profiler wants it."""
    with_hooks = Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def call(self: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        if type(self).step is not own:  # a subclass's step, which torch has hooked, calls ours
            return step(self, closure)
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _module._global_optimizer_pre_hooks
            or _module._global_optimizer_post_hooks
            or _profiling()
        ):
            return with_hooks(self, closure)
        result = step(self, closure)
        self._optimizer_step_code()
        return result

    own = untraced(call)
    own.hooked = True  # type: ignore[attr-defined]  # torch's mark of a step that it need not wrap
    return own
