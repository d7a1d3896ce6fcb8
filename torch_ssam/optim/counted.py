"""Whether a pass counts: some p.grad is another tensor, or another version of it, than on entry.

Without this an empty `perturb()` followed by a plain backward would train without noise. What a pass writes counts
whatever its value, zeros too. Tests: test_counted_passes.py.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any

from torch import Tensor

from torch_ssam.ops.dtensor import is_sharded, local_of

Group = dict[str, Any]
PLAIN = {Tensor, type(None)}
Witness = weakref.ref[Tensor]


def _version(grad: Tensor | None) -> int:
    """A DTensor's gradient is also written through its local tensor, which has a version of its own."""
    if grad is None or grad.is_inference():  # these have none
        return 0
    return grad._version + local_of(grad)._version if is_sharded(grad) else grad._version


def _versions(grads: list[Tensor | None]) -> list[int]:
    """The same for many, in a third of the time."""
    if not set(map(type, grads)) <= PLAIN:
        return list(map(_version, grads))
    try:
        return [0 if grad is None else grad._version for grad in grads]
    except RuntimeError:
        return list(map(_version, grads))


class GradientWatch:
    """The gradients that are there when a pass begins.

    Args:
        groups: the parameter groups.
        emptied: whether the optimizer's own zero_grad took all gradients away since the last pass. Then only `witness`
            is looked at, a parameter that the last pass gave a gradient: reading p.grad takes longer than the noise of
            a small tensor.
        witness: a weak reference to it, or None.
    """

    def __init__(self, groups: list[Group], emptied: bool, witness: Witness | None) -> None:
        self.witness = witness
        # Weakly: a loop that clears gradients inside of the pass frees their memory.
        self._before: list[tuple[weakref.ref[Tensor] | None, int]] | None = None  # None where none was there
        known = None if witness is None else witness()
        if not emptied or known is None or known.grad is not None:
            self.look(groups)

    def look(self, groups: list[Group]) -> None:
        """Notes what is there now."""
        grads = [p.grad for group in groups for p in group["params"]]
        if any([grad is not None for grad in grads]):
            held = [None if grad is None else weakref.ref(grad) for grad in grads]
            self._before = list(zip(held, _versions(grads), strict=True))
        else:
            self._before = None

    def changed(self, groups: list[Group]) -> bool:
        """Whether a gradient has changed since."""
        before = iter(self._before or ())
        for p in (p for group in groups for p in group["params"]):
            held, version = next(before, (None, 0))
            grad: Tensor | None = p.grad
            if grad is None:
                if held is None:
                    continue
                return True
            self.witness = weakref.ref(p)
            if held is None or held() is not grad or version != _version(grad):
                return True
        return False


def first_gradient(groups: list[Group]) -> Tensor | None:
    """The first gradient that is there."""
    for group in groups:
        for p in group["params"]:
            if p.grad is not None:
                return p.grad  # type: ignore[no-any-return]
    return None


def warn_of_no_gradients() -> None:
    """For a step in a process group that moves nothing: a wrapper made the model's parameters anew, most likely."""
    warnings.warn(
        "step() while no parameter of the optimizer has a gradient: it trains nothing. In a process group that mostly means "
        "that the model has other parameters by now: FullyShardedDataParallel (the first FSDP) without use_orig_params makes "
        "new ones. Shard by torch.distributed.fsdp.fully_shard() and make the optimizer afterwards.",
        UserWarning,
        stacklevel=4,
    )
