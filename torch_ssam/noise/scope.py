"""Scope: a with-block that ends exactly once, whatever interrupts it.

Python looks for signals on entry to every Python function, so Ctrl-C may strike in an ordinary `__exit__`
before its first line; `self` then lives on in the traceback and the block stays open while the caller's
handler runs. Here the `with` statement gets an exit callable that alone owns a guard, so that unwinding it
ends the block before any handler. Tests: tests/python/test_signals.py, test_exceptions.py.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch_ssam.noise.weights import PerturbedWeightsChanged
from torch_ssam.ops.untraced import untraced


class _Guard:
    """Ends an open scope when it is told to, or when nothing holds it any more."""

    open = False

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def close(self) -> None:
        if not self.open:
            return
        try:
            self.scope._end()
        except PerturbedWeightsChanged:
            self.__class__ = _Guard
            raise
        except BaseException:  # a signal in the middle: ending again is right wherever it struck
            self.scope._end()
            self.__class__ = _Guard
            raise
        self.__class__ = _Guard


class _OpenGuard(_Guard):
    """The class of a guard while its scope is open: a finalizer is a place where a signal gets lost."""

    open = True

    def __del__(self) -> None:
        self.close()


@untraced
def _exit(
    guard_of: Callable[[], _Guard | None],
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    # Only a weak reference comes in: an interrupted frame must not keep the guard alive.
    guard: _Guard | None = None
    try:
        guard = guard_of()
        if guard is not None:
            guard.close()
    except PerturbedWeightsChanged as changed:
        if error is None:
            raise
        # The exception on its way matters more; the message must not get lost with it.
        warnings.warn(str(changed), RuntimeWarning, stacklevel=2)
    except BaseException:
        if guard is not None:
            guard.close()
        raise
    if kind is None and guard is not None:
        guard.scope._completed()


class _OwningExit(partial[None]):
    """The exit callable of a `with` statement, and the only owner of its guard."""

    guard: _Guard


class _ExitDescriptor:
    @untraced
    def __get__(self, scope: Scope | None, owner: type | None = None) -> Any:
        if scope is None:  # contextlib.ExitStack takes it from the class
            return lambda scope, *error: _exit(scope._find_guard, *error)
        guard = scope._find_guard()
        if guard is None:
            guard = _Guard(scope)
            scope._guard = weakref.ref(guard)
        leave = _OwningExit(_exit, weakref.ref(guard))
        leave.guard = guard
        return leave


class Scope:
    """Base of the contexts in which parameters are perturbed. May be entered again, but not inside itself."""

    _guard: Callable[[], _Guard | None] | None = None
    _own_guard: _Guard | None = None

    def _check(self) -> None:
        """Raises if the scope may not be entered now; changes nothing."""

    def _begin(self) -> None:
        """Perturbs."""
        raise NotImplementedError

    def _end(self) -> None:
        """Undoes `_begin`, as far as it got. Called again when interrupted."""
        raise NotImplementedError

    def _completed(self) -> None:
        """Called after an end without an exception."""

    def _find_guard(self) -> _Guard | None:
        return self._own_guard or (self._guard() if self._guard is not None else None)

    @untraced
    def __enter__(self) -> None:
        guard = self._find_guard()
        if guard is None:  # not a `with` statement: whoever called keeps this scope, and the scope its guard
            guard = self._own_guard = _Guard(self)
        self._check()
        try:
            guard.__class__ = _OpenGuard
            self._begin()
        except BaseException:
            guard.close()
            raise

    if TYPE_CHECKING:

        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None: ...

    else:
        __exit__ = _ExitDescriptor()
