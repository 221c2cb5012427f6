"""What layers say of their kernels, so that the fusion pass can rewrite ops and know no layer (lowering/fusion.py).

A module registers here what its kernels are to each other; no layer looks at its neighbours.
"""

from typing import Any, NamedTuple

from nbprop.program.kernel import Kernel


class Selection(NamedTuple):
    """The kernels of an op whose output is elements of its input: the largest of each window.

    Their arrays: forward(y, index, x) writes the numbers and where they were, tangent(y, index, x) takes others from
    there, backward(x, y, index) brings numbers back there and puts zeros elsewhere.
    """

    forward: Kernel
    tangent: Kernel
    backward: Kernel


SELECTIONS: dict[Kernel, Selection] = {}  # by the forward kernel
ELEMENTWISE: dict[Kernel, Any] = {}  # kernel: (*sizes) -> whether its function never falls
PAIRS: dict[Kernel, list] = {}  # kernel: [(kernel of an op whose output it reads, rewrite)]


def selection(forward, tangent, backward):
    """Register the kernels of a selection of the largest: a function that never falls may run after it, on less."""
    SELECTIONS[forward] = Selection(forward, tangent, backward)


def elementwise(*kernels, never_falls):
    """Register kernels that change arrays in place, each element by those at its place in the other arrays.

    The first of their sizes is the elements of a sample; never_falls(*sizes): whether the function of an op never
    falls, so that the largest f(x) is f of the largest x.
    """
    for kernel in kernels:
        ELEMENTWISE[kernel] = never_falls


def fused_pair(writer, reader):
    """Decorate ``rewrite(build, write, read)``: an op in place of `read`, which reads what the op `write` has written.

    `build.op` makes the op, `build.buffer` scratch of its own; it may read what `write` reads. None: this pair stays as
    it is. `write` itself stays, and is dropped with other dead ops where nobody else needs what it writes.
    """

    def register(rewrite):
        PAIRS.setdefault(reader, []).append((writer, rewrite))
        return rewrite

    return register
