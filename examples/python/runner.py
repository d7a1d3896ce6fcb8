"""Runs the demo's independent training runs in worker processes of one core each, with a progress bar.

Results come back in the order of the tasks. Tests: tests/python/test_demo.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from rich.console import Console

from torch_ssam.compare import Workers, rich_bar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Runner:
    """Context with the worker processes; with threads=1 everything runs in this process."""

    def __init__(self, threads: int, console: Console) -> None:
        self.console = console
        self.workers = Workers(threads)

    def __enter__(self) -> Runner:
        self.workers.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.workers.__exit__(*error)

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task], title: str) -> list[Result]:
        """[function(task) for task in tasks], with a progress bar."""
        results: dict[int, Result] = {}
        with rich_bar(title, self.console) as report:
            report(0, len(tasks))
            for i, result in self.workers.results(function, tasks):
                results[i] = result
                report(len(results), len(tasks))
        return [results[i] for i in range(len(tasks))]
