"""Every example in a docstring of the package runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import torch_ssam

MODULES = ["torch_ssam"] + [
    f"torch_ssam.{m.name}" for m in pkgutil.iter_modules(torch_ssam.__path__) if m.name not in ("_C", "__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.failed == 0


def test_the_classes_people_use_have_examples() -> None:
    finder = doctest.DocTestFinder()
    for name in ("SSAM", "WeightNoise", "DiagonalLinear", "wrap"):
        found = finder.find(getattr(torch_ssam, name), name)
        assert any(test.examples for test in found), name
