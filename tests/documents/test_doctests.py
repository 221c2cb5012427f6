"""The examples in docstrings give what they show."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import nbprop
import nbprop.cuda


def _examples():
    """Every docstring of nbprop with an example in it; those on a device need one, or its simulator."""
    for module in pkgutil.walk_packages(nbprop.__path__, "nbprop."):
        on_device = module.name.startswith("nbprop.cuda")
        if module.name != "nbprop.__main__" and (not on_device or nbprop.cuda.simulated()):
            found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module.name))
            yield from (test for test in found if test.examples)


PACKAGE = Path(nbprop.__file__).parent
EXAMPLES = {test.name: test for test in _examples()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_give_what_they_show(name):
    if "onnx" in name:
        pytest.importorskip("onnx", reason="there is no onnx here")
    wrong = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(EXAMPLES[name], out=wrong.append)
    assert not wrong, "".join(wrong)


def test_every_example_is_found():
    """An example that the search does not reach would be one that nobody runs."""
    sources = [path for path in PACKAGE.rglob("*.py") if "cuda" not in path.parts or nbprop.cuda.simulated()]
    written = sum(len(re.findall(r"^ *>>> ", path.read_text(encoding="utf-8"), re.M)) for path in sources)
    assert sum(len(test.examples) for test in EXAMPLES.values()) == written > 100
