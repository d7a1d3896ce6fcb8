"""The operators as plain callables: `ops.perturb_(...)` and so on, with the schemas of csrc/ops.

They are the C++ entries of the dispatcher, without the Python layer of `torch.ops` above them, called with
gradients off. `torch.no_grad()` is not used for that: a signal on entry to its `__exit__` would leave
gradients off for good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torch_ssam.ops.library import WRITERS


def _without_grad(operator: Callable[..., None]) -> Callable[..., None]:
    enabled, enable = torch.is_grad_enabled, torch._C._set_grad_enabled

    def call(*args: Any, **kwargs: Any) -> None:
        before = enabled()
        try:
            enable(False)
            operator(*args, **kwargs)
        finally:
            enable(before)

    return call


class _Ops:
    """Entries of the operators that write into their arguments."""

    perturb_: Callable[..., None]
    perturb_from_clean_: Callable[..., None]
    restore_: Callable[..., None]
    follow_: Callable[..., None]
    advance_: Callable[..., None]
    update_: Callable[..., None]
    update_and_perturb_: Callable[..., None]
    update_rows_and_perturb_: Callable[..., None]
    add_squares_: Callable[..., None]
    project_: Callable[..., None]
    row_scales_: Callable[..., None]
    row_fisher_: Callable[..., None]
    clip_rows_: Callable[..., None]

    def __init__(self) -> None:
        for name in WRITERS:
            overload: Any = getattr(torch.ops.torch_ssam, name).default
            setattr(self, name, _without_grad(getattr(overload, "_op", overload)))


ops = _Ops()
