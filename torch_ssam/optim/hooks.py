"""The hooks of torch.optim round a step, paid only where a hook or a profiler wants them.

A step of a small network takes 20 us; the wrapper that torch puts round every step would double it.
Tests: tests/python/test_ssam_optimizer.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as _module

from ..ops.untraced import untraced

_profiling: Callable[[], bool] = torch._C._autograd._profiler_enabled


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
