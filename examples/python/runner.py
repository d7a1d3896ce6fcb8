"""Runs the demo's independent training runs, one core each, in as many processes as there are threads.

One core a run, because networks this small do not share well, and because CPU seconds of one core compare
methods fairly also on a busy machine. Results come back in the order of the tasks.
Tests: tests/python/test_demo.py.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Task = TypeVar("Task")
Result = TypeVar("Result")


def one_thread() -> None:
    """What each worker does first."""
    torch.set_num_threads(1)


class Runner:
    """Context with the worker processes; with threads=1 everything runs in this process."""

    def __init__(self, threads: int, console: Console) -> None:
        self.console = console
        self.pool: Executor | None = None
        if threads > 1:
            # Not fork: a forked child inherits OpenMP threads that no longer run.
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(threads, mp_context=context, initializer=one_thread)

    def __enter__(self) -> Runner:
        one_thread()
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task], title: str) -> list[Result]:
        """[function(task) for task in tasks], with a progress bar."""
        columns = (
            TextColumn("{task.description:<34}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task(title, total=len(tasks))
            if self.pool is None:
                results = []
                for task in tasks:
                    results.append(function(task))
                    progress.advance(bar)
                return results
            futures = [self.pool.submit(function, task) for task in tasks]
            for future in as_completed(futures):
                future.result()
                progress.advance(bar)
            return [future.result() for future in futures]
