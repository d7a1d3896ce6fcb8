"""Progress as every long call takes it: None, True for a tqdm bar, or a function of (done, total).

Command lines with a rich console pass the function of `rich_bar`. Tests: tests/python/test_simulate.py,
test_sharpness.py, test_compare.py.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

Report = Callable[[int, int], object]


def resolve_progress(progress: Any, total: int, unit: str) -> tuple[Report | None, Callable[[], object]]:
    """The function to call with (done, total), or None, and what closes the bar."""
    if progress is None or progress is False:
        return None, lambda: None
    if progress is not True:
        if not callable(progress):
            raise TypeError(f"progress must be None, True or a function, got {type(progress).__name__}")
        return progress, lambda: None
    try:
        tqdm = importlib.import_module("tqdm.auto").tqdm
    except ImportError:
        raise ImportError(
            "progress=True needs tqdm: pip install tqdm, which every extra brings; or pass a function"
        ) from None
    bar = tqdm(total=total, unit=unit, unit_scale=True)

    def report(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return report, bar.close


@contextlib.contextmanager
def rich_bar(title: str, console: Any) -> Iterator[Report]:
    """Context with a bar on a rich console; gives the function to call with (done, total)."""
    rich = importlib.import_module("rich.progress")
    columns = (
        rich.TextColumn("{task.description:<34}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=console) as progress:
        bar = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
