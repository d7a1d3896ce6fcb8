"""A pass of a step as a context: noise on, gradients counted, noise off and every bit back.

`perturb()` and `perturbations()` of base.py make them; what ends one whatever interrupts it is noise/scope.py's. Tests:
test_ssam_driving.py, test_counted_passes.py, test_exceptions.py.
"""

from __future__ import annotations

from typing import Any

from torch_ssam.noise.scope import Scope
from torch_ssam.optim.counted import GradientWatch
from torch_ssam.optim.passes import Pass

FIRST = Pass(0, False, False)


class Perturbation(Scope):
    """One pass: inside, the parameters hold clean + noise; leaving puts the exact clean bits back.

    `perturb()` makes one that moves on to the next draw when it ends; the passes of one step share theirs
    (`last=False`), and the pass at clean weights moves nothing.
    """

    def __init__(self, owner: Any, one: Pass = FIRST, last: bool = True, by_closure: bool = False) -> None:
        self._owner = owner
        self._pass = one
        self._last = last
        self._by_closure = by_closure
        self._watch: GradientWatch | None = None

    def _check(self) -> None:
        self._owner._check_pass()

    def _begin(self) -> None:
        owner = self._owner
        owner._inside_pass = True
        owner._watched = not (self._by_closure or self._pass.clean)
        if owner._watched and not owner._fresh:
            owner._watch = GradientWatch(owner.param_groups, owner._emptied, owner._witness)
        owner._emptied = False
        if not self._pass.clean:
            owner._noise.apply(self._pass.sample, self._pass.negate)

    def _end(self) -> None:
        owner = self._owner
        self._watch, owner._watch = owner._watch, None
        owner._watched = owner._emptied = False
        try:
            owner._noise.restore()
        finally:
            if owner._inside_pass:
                if self._last:
                    owner._noise.generator.advance()
                owner._inside_pass = False

    def _completed(self) -> None:
        owner, watch = self._owner, self._watch
        if self._by_closure:
            owner._fresh = True
        elif watch is not None:
            if watch.changed(owner.param_groups):
                owner._fresh = True
            else:  # counts for nothing, and takes nothing from the passes before it
                owner._pass_without_gradient = True
            owner._witness = watch.witness
