"""What `opt.attach(model)` puts on a model: state_dicts, copies and pickles with clean weights in them, and a warning.

While weights are kept perturbed, frameworks save, copy and evaluate the model at moments of their own. A state_dict hook
serves the first, hooks of the parameters the second (copy and pickle look for `__deepcopy__` and `__reduce_ex__` on
the object itself), and a forward hook notices the third. All hold the optimizer weakly. Tests: test_clean_weights.py,
test_attached.py.
"""

from __future__ import annotations

import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

COPYING = ("__deepcopy__", "__reduce_ex__")


class Owner(Protocol):
    """What is asked here of an optimizer that holds noise on its weights."""

    _training: bool
    _noticed_eval: bool

    def _clean_of(self, param: Tensor) -> Tensor: ...


def _nobody() -> None:
    return None


class _Hook:
    """Of a model, about its optimizer. A copied or pickled model has other parameters, and no noise."""

    def __init__(self, owner: Owner) -> None:
        self._owner: Callable[[], Owner | None] = weakref.ref(owner)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._owner = _nobody


class _HandOutClean(_Hook):
    """A state_dict hook: puts clean weights in the place of a module's own parameters.

    What `keep_vars=True` asks for, the parameters themselves, stays as it is.
    """

    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
        owner = self._owner()
        if owner is None:
            return
        for name, p in module._parameters.items():
            held = state_dict.get(prefix + name)
            if p is not None and held is not None and held is not p:
                clean = owner._clean_of(p)
                if clean is not p:
                    state_dict[prefix + name] = clean.detach()


def hand_out_clean(model: nn.Module, owner: Owner) -> list[RemovableHandle]:
    """Hooks under which the state_dict of the model, or of any part of it, has clean weights in it."""
    hook = _HandOutClean(owner)
    return [
        module.register_state_dict_post_hook(hook)  # type: ignore[no-untyped-call]
        for module in model.modules()
    ]


class _NoticeEval(_Hook):
    """A forward hook: warns once where a model in eval mode runs while its weights are kept perturbed."""

    def __getattr__(self, name: str) -> Any:
        if name == "__name__":  # TorchScript compiles forward hooks, and asks for it
            raise AttributeError(
                "torch.jit.script() of a model that opt.attach() was called on: script it before, or call remove() of the "
                "handles that attach() returned."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        if torch.compiler.is_compiling() or module.training:
            return
        owner = self._owner()
        if owner is None or not owner._training or owner._noticed_eval:
            return
        owner._noticed_eval = True
        warnings.warn(
            "an attached model in eval mode runs at perturbed weights, since its optimizer is in train. To evaluate, call "
            "opt.eval() as well as model.eval(), and opt.train() before the next step, or run the model inside `with "
            "opt.clean_weights():`. Where a model in eval mode is being trained, this is as it should be.",
            UserWarning,
            stacklevel=2,
        )


class _CopyClean:
    """What copies and pickles one parameter: with its clean weights in it, and without these methods.

    The parameter stays one object, so that a model and an optimizer that are copied together stay together. Where a
    module's own `__deepcopy__` reads the weights by other means, it reads what is there.
    """

    def __init__(self, param: Tensor) -> None:
        self._param: Callable[[], Any] = weakref.ref(param)
        self.owners: dict[int, Callable[[], Owner | None]] = {}  # by the handle that attach() returned

    def clean(self, param: Tensor) -> Tensor:
        """The clean weights; the parameter itself where nobody perturbs it."""
        owners = (owner() for owner in self.owners.values())
        found = (owner._clean_of(param) for owner in owners if owner is not None)
        return next((clean for clean in found if clean is not param), param)

    def deepcopy(self, memo: dict[int, Any]) -> Any:
        param = self._param()
        if id(param) in memo:
            return memo[id(param)]
        clean, twin = self.clean(param), type(param).__deepcopy__(param, memo)
        if clean is not param:
            with torch.no_grad():
                twin.copy_(clean)
        return twin

    def reduce(self, protocol: int) -> Any:
        param = self._param()
        # Nothing is copied: like the parameter's own memory, that of the clean weights is only read.
        twin = nn.Parameter(self.clean(param).detach(), param.requires_grad)
        twin.__dict__.update({name: value for name, value in param.__dict__.items() if name not in COPYING})
        return twin.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


def _methods_of(param: Tensor) -> _CopyClean | None:
    found = getattr(param.__dict__.get("__reduce_ex__"), "__self__", None)
    return found if isinstance(found, _CopyClean) else None


class _CopyHandle(RemovableHandle):
    """Of the copying methods of a model's parameters. Only of plain ones: what shards weights copies in its own ways."""

    def __init__(self, model: nn.Module, owner: Owner) -> None:
        params: OrderedDict[int, Any] = OrderedDict()
        super().__init__(params)
        self._params = params
        for p in model.parameters():
            if type(p) is nn.Parameter:
                methods = _methods_of(p) or _CopyClean(p)
                methods.owners[self.id] = weakref.ref(owner)
                p.__dict__.update(__deepcopy__=methods.deepcopy, __reduce_ex__=methods.reduce)
                params[id(p)] = weakref.ref(p)

    def remove(self) -> None:
        """Detaches."""
        for ref in self._params.values():
            p = ref()
            methods = None if p is None else _methods_of(p)
            if methods is not None:
                methods.owners.pop(self.id, None)
                if not methods.owners:
                    for name in COPYING:
                        p.__dict__.pop(name, None)
        self._params.clear()


def attach(model: nn.Module, owner: Owner) -> list[RemovableHandle]:
    """All of it; a handle for each part."""
    return [
        *hand_out_clean(model, owner),
        model.register_forward_pre_hook(_NoticeEval(owner)),
        _CopyHandle(model, owner),
    ]
