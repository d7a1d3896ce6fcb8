"""The operators as plain callables: `ops.perturb_(...)` and so on, with the schemas of csrc/ops.

They are the C++ entries of the dispatcher, without the Python layer of `torch.ops` above them: one microsecond less a
call, and no Python frame in which a signal could strike between the operator's work and our note of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import _library as _library

NAMES = (
    "perturb_",
    "perturb_from_clean_",
    "restore_",
    "advance_",
    "update_",
    "update_and_perturb_",
    "project_",
)


class _Ops:
    """Entries of the operators that write into their arguments."""

    perturb_: Callable[..., None]
    perturb_from_clean_: Callable[..., None]
    restore_: Callable[..., None]
    advance_: Callable[..., None]
    update_: Callable[..., None]
    update_and_perturb_: Callable[..., None]
    project_: Callable[..., None]

    def __init__(self) -> None:
        for name in NAMES:
            overload: Any = getattr(torch.ops.torch_ssam, name).default
            setattr(self, name, getattr(overload, "_op", overload))


ops = _Ops()
