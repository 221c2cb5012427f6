"""What the parameters of a kernel declare, and what an op must bring: sizes as NamedTuples, by name."""

import importlib
import pkgutil
from typing import NamedTuple

import numba
import numpy as np
import pytest

import nbprop
from nbprop.compiler.registry import known_natives
from nbprop.lowering.builder import Builder
from nbprop.program.contract import Contract
from nbprop.program.kernel import FRAME_WORDS, Kernel, kernel
from nbprop.program.ops import Op
from nbprop.program.sizes import Rows


class Box(NamedTuple):
    height: int
    width: int


class Mat(NamedTuple):  # the same fields, another class
    height: int
    width: int


def test_a_named_tuple_is_one_parameter_and_a_word_for_each_field():
    def boxed(y, x, n, box: Box, code, y_accumulate, accumulate, part, parts):
        pass

    found = Contract(boxed, FRAME_WORDS)
    assert found.arrays == ["y", "x"]
    assert found.sizes == ["box", "code", "y_accumulate"]
    assert found.words == ["height", "width", "code", "y_accumulate"]
    assert found.checked((Box(width=3, height=2), np.int64(5), True)) == (Box(2, 3), 5, 1)
    op = Op(Kernel(boxed, name="boxed"), (), (Box(width=3, height=np.int64(2)), 5, 0), (), "")
    assert op.words == [2, 3, 5, 0]
    assert op.numbers == {"height": 2, "width": 3, "code": 5, "y_accumulate": 0}


@pytest.mark.parametrize(
    "sizes", [(2, 3, 5, 0), ((2, 3), 5, 0), (Mat(2, 3), 5, 0), (Box(2, 3), 5), (Box(2, 3), Box(2, 3), 0), ()]
)
def test_other_sizes_are_refused(sizes):
    """Numbers in a row, another class of the same fields, one too few: nothing is taken by its position."""

    @kernel
    def boxed(y, n, box: Box, code, more):
        pass

    build = Builder(nbprop.network((3,), nbprop.dense(2)), 1, np.dtype(np.float64), 1)
    with pytest.raises(TypeError, match=r"boxed takes arrays \(y\) and sizes \(box: Box, code, more\), got 1 operands"):
        build.emit(boxed, (build.buffer(6),), (), sizes)


def test_names_are_taken_once():
    def twice(y, n, box: Box, width):
        pass

    def reserved(y, n, sizes: Rows, step, part, parts, rows):
        pass

    with pytest.raises(TypeError, match="twice: a size is named width"):
        Contract(twice, FRAME_WORDS)
    with pytest.raises(TypeError, match="reserved: a size is named rows"):
        Contract(reserved, FRAME_WORDS)


def test_annotations_may_be_strings():
    def boxed(y, n, sizes: "Rows", code: "int"):
        pass

    def unknown(y, n, sizes: "Bin"):  # noqa: F821
        pass

    assert Contract(boxed, FRAME_WORDS).tuples == {"sizes": Rows}
    with pytest.raises(TypeError, match="unknown: the annotation of sizes is not known: name 'Bin'"):
        Contract(unknown, FRAME_WORDS)


@numba.njit
def boxed_forward(y, x, n, sizes: Box):
    """y = 2 x + the column. y OUT, x IN (n, height, width)."""
    for i in range(n * sizes.height):
        for j in range(sizes.width):
            y[i * sizes.width + j] = 2 * x[i * sizes.width + j] + j


@numba.njit
def boxed_backward(dx, dy, x, y, n, sizes: Box):
    """dx = 2 dy. dx OUT, dy, x and y IN (n, height, width)."""
    for i in range(n * sizes.height * sizes.width):
        dx[i] = 2 * dy[i]


def test_a_custom_layer_takes_its_sizes_whole(registries):
    layer = nbprop.custom(
        "boxed", boxed_forward, boxed_backward, sizes=lambda shape: Box(height=shape[0], width=shape[1])
    )
    plan = nbprop.plan(nbprop.network((2, 3), layer()), batch=2)
    x, y = np.random.default_rng(1).standard_normal((2, 2, 3)), np.empty((2, 2, 3))
    nbprop.forward(plan, np.empty(0), x, y, nbprop.workspace(plan))
    assert np.array_equal(y, 2 * x + np.arange(3))
    assert [op.numbers for op in plan.parts["forward"]] == [{"height": 2, "width": 3}]


def test_a_custom_layer_may_take_them_one_by_one(registries):
    """A function `sizes` that returns a NamedTuple, whose kernels take plain numbers, as before they could do else."""

    @numba.njit
    def forward(y, x, n, height, width):
        y[:] = x

    @numba.njit
    def backward(dx, dy, x, y, n, height, width):
        dx[:] = dy

    layer = nbprop.custom("plain_box", forward, backward, sizes=lambda shape: Box(*shape))
    build = Builder(nbprop.network((2, 3), layer()), 1, np.dtype(np.float64), 1)
    layer().lower(build, nbprop.program.ops.Value((2, 3), build.buffer(6)), "0", ())
    assert build.ops[0].sizes == (2, 3)


def test_another_order_of_fields_is_another_kernel():
    """The code of a kernel depends on the order of the fields, which neither its source nor its code object shows."""

    def fingerprint(fields):
        def swapped(y, n, sizes):
            y[0] = sizes.height - sizes.width

        swapped.__annotations__["sizes"] = NamedTuple("Box", [(name, int) for name in fields])
        return Kernel(swapped, name="swapped").fingerprint(numba.float64)

    assert fingerprint(("height", "width")) == fingerprint(("height", "width"))
    assert fingerprint(("height", "width")) != fingerprint(("width", "height"))


def test_no_kernel_takes_many_loose_sizes():
    """More than three integers of a row are a NamedTuple, but for what to add to, and the bits of real numbers."""
    for module in pkgutil.walk_packages(nbprop.__path__, "nbprop."):
        if not module.name.startswith(("nbprop.cuda", "nbprop.__main__", "nbprop.estimators")):
            importlib.import_module(module.name)
    kernels = [native for native in known_natives if isinstance(native, Kernel) and native.name.startswith("nbprop.")]
    assert len(kernels) > 100
    loose = {
        native.name: plain
        for native in kernels
        if len(
            plain := [
                name
                for name in native.contract.sizes
                if name not in native.contract.tuples and not name.endswith(("_accumulate", "_bits"))
            ]
        )
        > 3
    }
    assert not loose
    documented = {of for native in kernels for of in native.contract.tuples.values()}
    assert all(of.__doc__ and not of.__doc__.startswith(f"{of.__name__}(") for of in documented)
