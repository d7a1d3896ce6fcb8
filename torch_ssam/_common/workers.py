"""Independent runs in worker processes of one thread each, which end with the process that started them.

One core a run: small networks do not share cores well, and processor seconds of one thread compare fairly
also on a busy machine. Used by compare and the demo. Tests: tests/python/test_compare.py, test_demo.py.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import Connection
from typing import TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")


def cores() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _ready(alive: Connection) -> None:
    """What each worker does first: one thread, and an end as soon as the parent lets go of the pipe.

    The parent's own end counts, also by SIGKILL; a pool alone would leave workers that wait for ever.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            alive.recv()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Workers:
    """Context with `count` worker processes; with count 1 everything runs in this process, on one thread."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        self._threads = torch.get_num_threads()

    def __enter__(self) -> Workers:
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        if self.count > 1:
            # Not fork: a forked child inherits OpenMP threads that no longer run.
            context = multiprocessing.get_context("spawn")
            alive, self._lifeline = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(self.count, context, _ready, (alive,))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        torch.set_num_threads(self._threads)
        if self._pool is not None:
            if kind is None:
                self._pool.shutdown()
                self._lifeline.close()
            else:  # nobody waits for runs whose results nobody will read
                self._lifeline.close()
                self._pool.shutdown(wait=False, cancel_futures=True)

    def results(
        self, function: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Iterator[tuple[int, Result]]:
        """(i, function(tasks[i])) in the order in which they end; tasks start in their own order."""
        if self._pool is None:
            for i, task in enumerate(tasks):
                yield i, function(task)
            return
        futures = {self._pool.submit(function, task): i for i, task in enumerate(tasks)}
        for future in as_completed(futures):
            yield futures[future], future.result()
