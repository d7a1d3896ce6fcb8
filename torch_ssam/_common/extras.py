"""Modules that torch_ssam can do without, imported where they are needed. Used by what measures and studies.

Tests: tests/python/test_extras.py, test_sharpness.py.
"""

from __future__ import annotations

import importlib
from typing import Any


def need(module: str, extra: str, what: str) -> Any:
    """Imports an optional module, or says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.split(".")[0]
        raise ImportError(f"{what} needs {name} ({error}): pip install 'torch_ssam[{extra}]'") from None
