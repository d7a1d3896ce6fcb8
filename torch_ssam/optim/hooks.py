"""The hooks of torch.optim round a step, paid only where a hook or a profiler wants them.

A step of a small network takes 20 us; the wrapper that torch puts round every step would double it. The step of a
wrapped optimizer leaves what torch runs round all steps (hooks for every optimizer, a profiler's range) to its base's
step, which has it: once a step. Tests: tests/python/test_ssam_optimizer.py, test_other_optimizers.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import optimizer as _module

from torch_ssam.noise import holders
from torch_ssam.ops.untraced import untraced

_profiling: Callable[[], bool] = torch._C._autograd._profiler_enabled


def hooked_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step with what `torch.optim.Optimizer` puts round it, where a hook or a profiler wants it."""
    with_hooks = _module.Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def call(self: Any, closure: Callable[[], Any] | None = None) -> Any:
        if type(self).step is not own:  # a subclass's step, which torch has hooked, calls ours
            return step(self, closure)
        hooked = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        if self._steps_by_base:
            return _between_own_hooks(step, self, closure) if hooked else step(self, closure)
        before = _module._global_optimizer_pre_hooks
        if (
            hooked
            or len(before) > (holders.HOOK in before)
            or _module._global_optimizer_post_hooks
            or _profiling()
        ):
            return with_hooks(self, closure)
        if holders.holding:
            holders.check_step(self)
        result = step(self, closure)
        self._optimizer_step_code()
        return result

    own = untraced(call)
    own.hooked = True  # type: ignore[attr-defined]  # torch's mark of a step that it need not wrap
    return own


def _between_own_hooks(step: Callable[..., Any], optimizer: Any, *args: Any) -> Any:
    """The step between the hooks of this optimizer, which may change its arguments, and not those of all."""
    given: tuple[tuple[Any, ...], dict[str, Any]] = (optimizer, *args), {}
    for hook in optimizer._optimizer_step_pre_hooks.values():
        changed = hook(optimizer, *given)
        if changed is not None:
            if not isinstance(changed, tuple) or len(changed) != 2:
                raise RuntimeError(
                    f"a step hook returned {changed!r}; expected None or (new_args, new_kwargs)."
                )
            given = changed
    result = step(*given[0], **given[1])
    for hook in optimizer._optimizer_step_post_hooks.values():
        hook(optimizer, *given)
    return result
