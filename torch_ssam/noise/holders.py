"""Who holds perturbed weights now, in the whole process: nobody else may step over them, or perturb them again.

What others write in place moves a tensor's version, by which it is found, but PyTorch's fused steps on CPUs move none:
their update would be undone with the noise, in silence. So torch's hook that runs before every step of every optimizer
asks here. It stays once anything was perturbed: a dict that torch runs through in one thread must not change in another,
and a compiled step would compile again. It costs each step of other optimizers one call, and ours nothing.
Tests: tests/python/test_other_optimizers.py.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import KeysView
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as _module
from torch.utils.hooks import RemovableHandle

from torch_ssam.noise import pieces
from torch_ssam.noise.members import Members
from torch_ssam.ops.dtensor import local_of
from torch_ssam.ops.untraced import untraced


class Holder(Protocol):
    """What perturbs weights: SavedWeights, as far as it is asked here."""

    looked_for_sharing: bool

    @property
    def applied_keys(self) -> KeysView[int]: ...

    def is_applied(self, param: Tensor) -> bool: ...

    def place_of(self) -> dict[Tensor, int]: ...

    def describe(self, params: list[Tensor], was: str, were: str) -> str: ...


#: Every holder that may have perturbed tensors, and perhaps some that have none any more. Weakly: an optimizer that
#: is let go takes its noise state with it.
holding: dict[weakref.ref[Holder], None] = {}

#: Under which torch's hooks before all steps have ours.
HOOK = RemovableHandle(_module._global_optimizer_pre_hooks).id


def hold(state: Holder, members: Members) -> None:
    """Notes that this state is about to perturb these tensors, which are clean to its knowledge.

    Raises:
        RuntimeError: they are perturbed by another one.
    """
    if holding:
        for other in _others(state):
            if not other.applied_keys.isdisjoint(members.keys):
                taken = members.where(other.is_applied).params
                raise RuntimeError(
                    f"{state.describe(taken, 'is', 'are')} perturbed already, by another optimizer "
                    "or WeightNoise: the noise of both would be in the gradient, and taking off one would disturb the other. "
                    "Leave perturb() or applied() of that one, or call its eval(), first; expected one optimizer of "
                    "torch_ssam for each parameter (a notebook's cell that is run twice makes two: delete the old one)."
                )
    if not state.looked_for_sharing:
        state.looked_for_sharing = True
        pieces.check_whole(list(state.place_of()))
        _warn_of_sharing(state)
    holding[weakref.ref(state)] = None
    if HOOK not in _module._global_optimizer_pre_hooks:
        _module._global_optimizer_pre_hooks[HOOK] = before_step


def let_go(state: Holder) -> None:
    """Notes that this state has no perturbed tensors any more."""
    holding.pop(weakref.ref(state), None)


def any_held(params: list[Tensor]) -> bool:
    """Whether any of these tensors holds noise now."""
    return any([other.is_applied(p) for other in _others(None) for p in params])


def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """A hook of torch. torch.compile traces it, and breaks its graph only while there is to check."""
    if holding:
        _check_step(optimizer)


def check_step(optimizer: Optimizer) -> None:
    """Raises RuntimeError where an optimizer steps over weights that are perturbed, unless it perturbed them itself."""
    own = getattr(optimizer, "_noise", None)
    if not hasattr(own, "applied_keys"):  # another's of that name
        own = None
    if own is not None and len(holding) == 1 and weakref.ref(own) in holding:
        return  # nearly always
    groups = getattr(optimizer, "param_groups", ())  # what is no Optimizer may use torch's hooks too
    params = [p for group in groups if isinstance(group, dict) for p in group.get("params", ())]
    keys = list(map(id, params))
    if own is not None and own.applied_keys >= set(keys):
        return  # and so no other holds them
    for other in _others(own):
        if other.applied_keys.isdisjoint(keys):
            continue
        written = [p for p in params if p.grad is not None and other.is_applied(p)]
        if written:
            weights = other.describe(written, "is", "are")
            raise RuntimeError(
                f"{type(optimizer).__name__}.step() over perturbed weights: {weights} perturbed now by an "
                "optimizer of torch_ssam, and the update would be lost with the noise. Step that optimizer (of wrap() the "
                "wrapper and not its base: scaler.step(opt), not scaler.step(opt.base)), or leave perturb(), or call its "
                "eval(), first."
            )


_check_step = untraced(check_step)


def _others(state: Holder | None) -> list[Holder]:
    """The others that hold perturbed weights."""
    others = []
    for reference in list(holding):
        other = reference()
        if other is None:
            holding.pop(reference, None)
        elif other is not state:
            others.append(other)
    return others


def _warn_of_sharing(state: Holder) -> None:
    shared = [p for p in state.place_of() if p.requires_grad and p.is_cpu and _is_shared(local_of(p))]
    if shared:
        warnings.warn(
            f"{state.describe(shared, 'is', 'are')} in memory that processes share (share_memory(), Hogwild): a pass "
            "writes clean + noise there and puts back the weights of before it, so that what other processes write "
            "meanwhile is lost, and readers see noise. Train them in one process, or average gradients "
            "(torch.nn.parallel.DistributedDataParallel).",
            UserWarning,
            stacklevel=2,
        )


def _is_shared(tensor: Tensor) -> bool:
    # Fake tensors and other subclasses have no memory to ask for.
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.is_shared()  # type: ignore[no-untyped-call]
