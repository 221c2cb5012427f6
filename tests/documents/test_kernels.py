"""Every kernel's docstring says of each array whether it is IN, OUT or INOUT, and its shape: read off the sources.

A kernel is a function that a plan's walk calls (`@kernel`), one of the device's launches (`@on_device`), or a compiled
function of numerics, losses and optimizers that writes into one of its arguments (`@njit`). Read off the sources, since
the device's kernels cannot be imported without a GPU.
"""

import ast
import importlib
import pkgutil
import re
from pathlib import Path
from typing import NamedTuple

import pytest

import nbprop
from nbprop.compiler.registry import known_natives
from nbprop.program.kernel import Kernel

ROOT = Path(nbprop.__file__).parent
# Where @njit makes kernels, rather than helpers of a driver in the same file.
COMPILED = ("numerics", "losses", "optimizers", "solvers")
ROLES = re.compile(r"\b(\w+(?:(?:, | and )\w+)*) (?:: )?(INOUT|IN|OUT)\b|\b(scratch)(?:, \w+)* ?(:) \S")


class Source(NamedTuple):
    """A kernel in the source: its arrays, those that it writes into itself, its docstring."""

    place: str
    arrays: list
    written: set
    docstring: str


def decorator_of(function):
    """The name of a function's only decorator that makes a kernel, "" for none."""
    for decorator in function.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(target, ast.Name) and target.id in ("kernel", "on_device", "njit"):
            return target.id
    return ""


def indexed(function, context):
    """Names of parameters that a function reads (ast.Load) or writes (ast.Store) by index."""
    parameters = {argument.arg for argument in function.args.args}
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, context) and isinstance(node.value, ast.Name):
            found |= {node.value.id} & parameters
    return found


def addresses(function):
    """Names of parameters that a function takes as addresses: pointer(c, offset)."""
    parameters = {argument.arg for argument in function.args.args}
    calls = (node for node in ast.walk(function) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    return {
        call.args[0].id
        for call in calls
        if call.func.id == "pointer" and call.args and isinstance(call.args[0], ast.Name)
    } & parameters


def sources_in(path):
    package = path.relative_to(ROOT).parts[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef) or not (decorator := decorator_of(node)):
            continue
        names, written = [argument.arg for argument in node.args.args], indexed(node, ast.Store)
        if decorator == "njit":
            if package not in COMPILED or node.name.startswith("_") or not (written or addresses(node)):
                continue
            known = written | indexed(node, ast.Load) | addresses(node)
            arrays = [name for name in names if name in known]
        else:
            arrays = names[: names.index("n")]
        yield Source(f"{path.relative_to(ROOT)}:{node.name}", arrays, written, ast.get_docstring(node) or "")


SOURCES = [source for path in sorted(ROOT.rglob("*.py")) for source in sources_in(path)]


def roles_of(docstring):
    """{name: (role, whether a shape follows)} as a docstring declares them: "dx OUT, dy, x IN (n, size)"."""
    found = {}
    docstring = re.sub(r"(?<!\n)\n(?!\n)\s*", " ", docstring)
    for match in ROLES.finditer(docstring):
        sentence = re.split(r"\.\s|\n\s*\n", docstring[match.end() :], maxsplit=1)[0]
        for name in re.split(r", | and ", match[1] or match[3]):
            found[name] = match[2] or "SCRATCH", match[2] is None or "(" in sentence
    return found


def complaints(source):
    """What a kernel's docstring does not say, or says wrongly."""
    if not source.docstring:
        return ["has no docstring"]
    roles, found = roles_of(source.docstring), []
    for name in source.arrays:
        role, shaped = roles.get(name, ("", True))
        if not role:
            found.append(f"does not say whether {name} is IN, OUT or INOUT")
        if not shaped:
            found.append(f"gives no shape of {name}")
        if role == "IN" and name in source.written:
            found.append(f"says that {name} is IN, but writes it")
    return found


@pytest.mark.parametrize("package", sorted({str(Path(s.place.split(":")[0]).parent) for s in SOURCES}))
def test_docstrings_know_every_array(package):
    here = [s for s in SOURCES if str(Path(s.place.split(":")[0]).parent) == package]
    wrong = [f"{source.place} {text}" for source in here for text in complaints(source)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_kernel_escapes():
    """The sources hold every kernel that the package defines when it is imported."""
    for module in pkgutil.walk_packages(nbprop.__path__, "nbprop."):
        if not module.name.startswith(("nbprop.cuda", "nbprop.__main__")):
            importlib.import_module(module.name)
    read = {source.place.partition(":")[2] for source in SOURCES}
    defined = {k.function.__name__ for k in known_natives if isinstance(k, Kernel) and k.name.startswith("nbprop.")}
    assert len(defined) > 50
    assert defined <= read, defined - read
    assert sum(source.place.startswith("cuda/") for source in SOURCES) >= 90


@pytest.mark.parametrize(
    ("docstring", "complaint"),
    [
        ("", "has no docstring"),
        ("y = x. y OUT (n,).", "does not say whether x is IN"),
        ("y = x. y OUT, x IN.", "gives no shape of y"),
        ("y = x. y, x IN (n, size).", "says that y is IN, but writes it"),
    ],
)
def test_a_docstring_that_leaves_something_out_is_found(docstring, complaint):
    found = complaints(Source("layers/copy.py:copy", ["y", "x"], {"y"}, docstring))
    assert any(complaint in text for text in found)
    assert not complaints(Source("layers/copy.py:copy", ["y", "x"], {"y"}, "y = x. y OUT, x IN (n, size)."))


def is_zero(node):
    """Whether an expression is 0, `zero` or `like(x, 0.0)`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "like":
        node = node.args[1]
    return (isinstance(node, ast.Constant) and node.value == 0) or (isinstance(node, ast.Name) and node.id == "zero")


def added_under_a_condition(tree):
    """Lines that add to an element of an array a product or 0: vector and scalar code may differ (compiler/jit.py)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Subscript):
            value = node.value
            if isinstance(value, ast.IfExp) and (is_zero(value.body) or is_zero(value.orelse)):
                yield node.lineno


def test_no_sum_depends_on_the_lane():
    for path in sorted(ROOT.rglob("*.py")):
        if path.relative_to(ROOT).parts[0] not in ("cuda", "cli"):
            found = list(added_under_a_condition(ast.parse(path.read_text(encoding="utf-8"))))
            assert not found, f"{path.relative_to(ROOT)}: choose between sums in lines {found}"


@pytest.mark.parametrize("zero", ["0.0", "zero", "like(a, 0.0)"])
def test_a_sum_that_depends_on_the_lane_is_found(zero):
    for line in (f"y[i] += a * b if c else {zero}", f"y[i] -= {zero} if c else a * b"):
        assert list(added_under_a_condition(ast.parse(line))) == [1]
    assert not list(added_under_a_condition(ast.parse("y[i] = y[i] + a * b if c else y[i]")))
