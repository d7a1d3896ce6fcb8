"""Checks of single values, whoever owns them: numbers, counts, flags, names.

Each says what came, what was expected and in which unit. Shapes, dtypes and devices are the operators' to check.
Tests: tests/python/test_bad_input.py.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


def number(name: str, value: Any, *, low: float = 0.0, open_low: bool = False) -> float:
    """A finite float >= low (> low where `open_low`)."""
    bound = "a finite number" if low == -math.inf else f"a finite number {'>' if open_low else '>='} {low:g}"
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        raise ValueError(f"{name} is a tensor of shape {tuple(value.shape)}; expected {bound}.")
    try:
        if isinstance(value, bool | str | bytes | bytearray):  # float() would take them
            raise TypeError
        result = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected {bound}.") from None
    if not math.isfinite(result) or result < low or (open_low and result == low):
        raise ValueError(f"{name} is {result}; expected {bound}.")
    return result


def integer(name: str, value: Any, expected: str = "an int") -> int:
    """An int, from anything that is one (NumPy's, a tensor's), but not a bool."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected {expected}.") from None


def count(name: str, value: Any, *, low: int = 1, high: int = 2**32 - 1) -> int:
    """An int from low to high."""
    result = integer(name, value)
    if not low <= result <= high:
        raise ValueError(f"{name} is {result}; expected {low} to {high}.")
    return result


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected True or False.")
    return value


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of the names."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}.")
    return str(value)


class Option(NamedTuple):
    """One option of a parameter group, named once: default, check of its own, and what it is, in a line."""

    default: Any
    check: Callable[[str, Any], object]
    text: str


def check_each(options: dict[str, Option], group: dict[str, Any]) -> None:
    """Each option of a group by itself; what goes together is the caller's to check."""
    for name, option in options.items():
        option.check(name, group[name])


def defaults_of(options: dict[str, Option]) -> dict[str, Any]:
    """The options' defaults, by name."""
    return {name: option.default for name, option in options.items()}
