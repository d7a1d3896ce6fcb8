"""Runs the examples in the docstrings of every module of torch_ssam."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import torch_ssam

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(torch_ssam.__path__, "torch_ssam.")
    if not module.name.endswith(("__main__", "._C"))
)

#: What the examples of a module need beyond its import.
NEEDS = {"torch_ssam.sharpness._curvature": "curvlinops"}


@pytest.mark.parametrize("name", ["torch_ssam", *MODULES])
def test_the_examples_of_a_module_run(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("torch_ssam"):
            raise
        pytest.skip(f"NOT TESTED here: {name} needs {error.name}")
    torch.manual_seed(0)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("name", ["SSAM", "WeightNoise", "DiagonalLinear", "wrap"])
def test_every_public_front_has_an_example(name: str) -> None:
    finder = doctest.DocTestFinder(recurse=False)
    assert any(test.examples for test in finder.find(getattr(torch_ssam, name), name))
