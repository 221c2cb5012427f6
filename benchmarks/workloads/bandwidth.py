"""Layers with little work per number: the forward op alone, on arrays of 64 MB, compared with a copy of as many bytes.

Ours is the layer's kernel as a plan would call it, without walking a table and without the copy of the output that a
network of one layer would add; torch's is the function, which allocates its output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from harness.places import module
from harness.work import Work
from workloads.rows import Row, aligned

SIZE = 1024  # of a row
COUNT = 64 * 2**20 // 4 // SIZE  # rows in 64 MB of float32


def numbers() -> np.ndarray:
    return aligned(np.random.default_rng(0).standard_normal((COUNT, SIZE), np.float32))


def nbprop(row: Row, threads: int) -> Work:
    """The only op of the layer's plan, on arrays of its operands' sizes."""
    import nbprop as nb

    frame = module("nbprop.program.frame", "nbprop.frame")

    layer = {
        "layernorm": nb.layernorm,
        "softmax": lambda: nb.activation("softmax"),
        "dropout": lambda: nb.dropout(0.1),
    }[row.name.split("_")[0]]()
    net, x = nb.network((SIZE,), layer), numbers()
    (op,) = nb.plan(net, batch=COUNT, dtype=np.float32).parts["forward"]
    given = {frame.X: x.reshape(-1), frame.PARAMS: aligned(nb.init(net, dtype=np.float32))}
    arrays = [
        given[buffer.space][buffer.offset : buffer.offset + buffer.size]
        if buffer.space in given
        else aligned(np.zeros(buffer.size, np.float32))
        for buffer in op.operands
    ]
    sizes, named = iter(op.sizes), {"n": COUNT, "step": 0, "first_sample": 0, "part": 0, "parts": 1}
    scalars = [named[name] if name in named else next(sizes) for name in op.kernel.scalars]
    kernel = _uncounted(op.kernel, len(arrays))

    def run(n: int) -> None:
        for _ in range(n):
            kernel(*arrays, *scalars)

    run(1)
    return Work(run, check=None if row.name.startswith("dropout") else float(np.abs(arrays[0][:SIZE]).sum()))


def _uncounted(kernel: Any, arrays: int) -> Callable[..., None]:
    """The kernel on arrays that nobody owns, as in a walk: of others, Numba counts the references, atomically, at each
    slice."""
    if not hasattr(kernel, "_by_itself"):  # commits before it was made at first use
        return kernel
    views = "".join(f"    a{i} = numba.carray(pointer(a{i}, 0), a{i}.size)\n" for i in range(arrays))
    names = ", ".join(f"a{i}" for i in range(arrays))
    pointer = module("nbprop.numerics.gemm.microkernel", "nbprop.gemm.microkernel").pointer
    space = {"numba": numba, "pointer": pointer, "kernel": kernel._by_itself}
    exec(f"def call({names}, *scalars):\n{views}    kernel({names}, *scalars)", space)
    return numba.njit(space["call"])


def torch(row: Row, threads: int) -> Work:
    import torch
    import torch.nn.functional as functional

    torch.set_num_threads(threads)
    x, one, zero = torch.from_numpy(numbers()), torch.ones(SIZE), torch.zeros(SIZE)
    function = {
        "layernorm": lambda: functional.layer_norm(x, (SIZE,), one, zero),
        "softmax": lambda: torch.softmax(x, -1),
        "dropout": lambda: functional.dropout(x, 0.1),
    }[row.name.split("_")[0]]

    def run(n: int) -> None:
        with torch.no_grad():
            for _ in range(n):
                function()

    check = None if row.name.startswith("dropout") else float(function()[0].abs().sum())
    return Work(run, check=check)
