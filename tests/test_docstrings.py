"""The examples in the docstrings of the public names run."""

import doctest
import importlib

import cwt
import pytest


@pytest.mark.parametrize("module", sorted(set(cwt._HOME.values())))
def test_examples_in_docstrings_run(module):
    found = importlib.import_module(module)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(found, optionflags=options)
    assert result.failed == 0


@pytest.mark.parametrize("name", [n for n in cwt.__all__ if n != "__version__"])
def test_public_names_are_documented(name):
    text = getattr(cwt, name).__doc__
    assert text
    assert len(text.split()) > 4
    assert name in cwt.__dir__()


def test_the_names_for_type_checkers_are_those_that_are_loaded():
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(cwt))
    declared = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("cwt.")
        for alias in node.names
    }
    assert declared == cwt._HOME
    assert set(cwt.__all__) == set(cwt._HOME) | {"__version__"}
