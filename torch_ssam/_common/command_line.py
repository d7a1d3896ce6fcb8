"""What the commands of the package share: whole names of options, errors in one line, functions named by the user.

Used by the __main__.py of compare, experiments, robustness and sharpness. Tests: tests/python/test_command_lines.py.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .images import DataError


def command(name: str, description: str, **options: Any) -> argparse.ArgumentParser:
    """The parser of `python -m torch_ssam.NAME`, or without a name of `python -m torch_ssam`.

    An abbreviation is refused: `--lr` would be taken for `--lr-factors`.
    """
    return argparse.ArgumentParser(
        prog=f"python -m torch_ssam.{name}".rstrip("."),
        description=description,
        allow_abbrev=False,
        **options,
    )


def in_one_line(name: str, run: Callable[[], object], stopped: str = "stopped.") -> int:
    """Runs a command and gives its exit code: what the user can mend is told in one line, and so is Ctrl-C."""
    try:
        run()
    except (DataError, ValueError, TypeError, ImportError, OSError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: {stopped}", file=sys.stderr)
        return 130
    return 0


def named_function(name: str) -> Callable[..., Any]:
    """The function that MODULE:FUNCTION names, a module of the current folder too.

    Raises: ValueError: there is none.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"{name!r} is no MODULE:FUNCTION.")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` finds modules of the current folder
    try:
        found = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise ValueError(f"there is no module {module!r} here or on the Python path.") from None
    except AttributeError:
        raise ValueError(f"module {module!r} has no {function!r}.") from None
    if not callable(found):
        raise TypeError(f"{name} is a {type(found).__name__}; expected a function.")
    return found  # type: ignore[no-any-return]  # callable() narrows Any to nothing


def output_folder(path: Path) -> Path:
    """Makes the folder for results now, not after they are computed.

    Raises: ValueError: it cannot be.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {path} cannot be a folder ({error.strerror}); name another.") from None
    return path


def tqdm_bars(name: str, quiet: bool) -> bool | None:
    """The `progress` of a command: bars, or none where they are not wanted or tqdm is not there, which is said."""
    if quiet:
        return None
    if importlib.util.find_spec("tqdm") is None:
        print(f"{name}: no progress bars without tqdm (pip install tqdm).", file=sys.stderr)
        return None
    return True
