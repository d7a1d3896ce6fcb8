"""What wrap() asks of the optimizer that it is given, said when it is wrapped rather than at the first step or save.

Optimizers are written by many hands: some keep no state of torch's kind, some evaluate the loss themselves, and some
have options or checkpoints that ours cannot be told from. Tests: tests/python/test_wrapped_bases.py.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch.optim import LBFGS, Optimizer

from torch_ssam.noise.options import NOISE_DEFAULTS
from torch_ssam.noise.pieces import check_no_engine
from torch_ssam.optim.base import NoiseDriver


def check_base(base: Any) -> None:
    """Raises TypeError or ValueError unless this is an optimizer that wrap() can drive, save and load."""
    check_no_engine(base)
    if not isinstance(base, Optimizer):
        raise TypeError(
            f"wrap() got {type(base).__name__}; expected a torch.optim.Optimizer, for example "
            "torch.optim.AdamW(model.parameters())."
        )
    if isinstance(base, NoiseDriver):
        raise TypeError(
            f"wrap() got {type(base).__name__}, which perturbs already; expected an optimizer whose step() uses p.grad."
        )
    _check_attributes(base)
    _check_step(base)
    _check_own_options(base)
    if type(base).state_dict is not Optimizer.state_dict:
        try:
            state_dict = base.state_dict()
        except Exception:  # ZeroRedundancyOptimizer has none before its ranks have met
            return
        check_layout(base, state_dict)


def _check_attributes(base: Optimizer) -> None:
    missing = [name for name in ("param_groups", "state", "defaults") if not hasattr(base, name)]
    if missing:
        raise TypeError(
            f"wrap() got {type(base).__name__}, which has no {' and no '.join(missing)}: its __init__ does not call "
            "torch.optim.Optimizer.__init__(params, defaults). Call it there, or wrap the optimizer that it holds."
        )


def _check_step(base: Optimizer) -> None:
    """Raises for those that need a closure, as far as can be seen: by what step() takes, or by a SAM's two halves."""
    if isinstance(base, LBFGS):
        why = "runs closures of its own"
    elif all(callable(getattr(base, name, None)) for name in ("first_step", "second_step")):
        why = "perturbs by itself, with first_step() and second_step()"
    else:
        # Of the class: a scheduler puts a function into the instance that takes self again.
        needed = [
            name
            for name, parameter in list(_parameters_of(type(base).step).items())[1:]
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if not needed:
            return
        why = f"cannot step without {' and '.join(needed)}"
    raise TypeError(
        f"wrap() got {type(base).__name__}, which {why}; expected an optimizer whose step() uses p.grad. wrap() takes the "
        "gradient at perturbed weights, puts the clean ones back, and then calls step() without arguments."
    )


def _parameters_of(step: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(step).parameters)
    except (TypeError, ValueError):  # not written in Python
        return {}


def _check_own_options(base: Optimizer) -> None:
    """Raises if the base's own options have names of ours. What only groups have is the user's, for the noise."""
    taken = sorted(NOISE_DEFAULTS.keys() & base.defaults.keys())
    # From an earlier wrap(), which has left a mark; a copy of that base has none, but all of the names.
    if (
        not taken
        or hasattr(base, "_torch_ssam_wrap")
        or {"noise_std", "distribution", "samples"} <= set(taken)
    ):
        return
    names = " and ".join(map(repr, taken))
    raise ValueError(
        f"wrap() got {type(base).__name__}, which has options of its own called {names}: so are the noise's, and both are in "
        "the same groups. Rename them in the base, in a subclass for example."
    )


def check_layout(base: Optimizer, state_dict: Any) -> None:
    """Raises TypeError unless the noise's part of a checkpoint can go into this state_dict of the base."""
    whole = isinstance(state_dict, dict) and isinstance(state_dict.get("state"), dict)
    groups = state_dict.get("param_groups") if whole else None
    if isinstance(groups, list) and all(isinstance(group, dict) for group in groups):
        came = [len(group.get("params", ())) for group in groups]
        if came == [len(group["params"]) for group in base.param_groups]:
            return
        what = f"parameter groups of {came} tensors"
    else:
        what = (
            f"keys {sorted(map(str, state_dict))[:5]}"
            if isinstance(state_dict, dict)
            else f"{state_dict!r:.60}"
        )
    raise TypeError(
        f"wrap() cannot save {type(base).__name__}, whose state_dict() has a layout of its own, with {what}; expected "
        'torch.optim\'s, {"state": ..., "param_groups": [...]} with every parameter in its group, since the noise\'s seed, '
        "draw and options go there. Wrap the optimizer inside it, or give it that layout."
    )
