"""A stretch of Python that no signal's exception ends in the middle, as none ends a kernel in the middle.

Ctrl-C between two tensors would leave half of the weights noisy, with nobody to know which. Handlers in Python wait until the
stretch is over, and run then. Tests: tests/python/test_plain_operators.py.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

Frame = FrameType | None


class Uninterrupted:
    """`with Uninterrupted():` holds back the handlers of signals. Only the main thread runs any; elsewhere it does nothing."""

    def __init__(self) -> None:
        self._holding = False
        self._handlers: dict[int, Callable[[int, Frame], Any]] = {}
        self._came: list[tuple[int, Frame]] = []

    def _handle(self, number: int, frame: Frame) -> None:
        # A signal may come before all are held, or while they are put back.
        if self._holding:
            self._came.append((number, frame))
        else:
            self._handlers[number](number, frame)

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._handle)
            self._holding = True
        except BaseException:
            self._put_back()
            raise

    def _put_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __exit__(self, *_error: object) -> None:
        self._holding = False
        try:
            self._put_back()
        finally:
            while self._came:
                number, frame = self._came.pop(0)
                self._handlers[number](number, frame)
