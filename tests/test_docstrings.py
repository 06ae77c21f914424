"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import pkgutil

import pytest
from torch import nn

import tlsc

MODULES = ["tlsc", *(found.name for found in pkgutil.walk_packages(tlsc.__path__, "tlsc."))]

EXTRAS = {"tlsc.adapters.basicsr": "basicsr", "tlsc.adapters.lightning": "lightning"}
"""Modules that need a package which is not there by default, or not on every Python."""


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples_run(name: str) -> None:
    extra = EXTRAS.get(name)
    if extra is not None and importlib.util.find_spec(extra) is None:
        pytest.skip(f"{extra} is an extra")
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize(
    "item",
    [
        *(getattr(tlsc.functional, name) for name in tlsc.functional.__all__),
        *(getattr(tlsc, name) for name in tlsc.__all__),
    ],
    ids=lambda item: getattr(item, "__name__", "?"),
)
def test_functions_and_layers_have_an_example(item: object) -> None:
    if inspect.isfunction(item) or (inspect.isclass(item) and issubclass(item, nn.Module)):
        assert doctest.DocTestFinder(recurse=False).find(item)[0].examples
