"""Buffers, values and ops, as created by lowering."""

import math
from dataclasses import dataclass

from nbprop.program import frame
from nbprop.program.kernel import Kernel


@dataclass(eq=False, slots=True)
class Buffer:
    """A piece of memory that ops read and write; liveness determines its offset in the workspace."""

    size: int
    space: int = frame.WORK
    offset: int = -1
    name: str = ""


@dataclass(eq=False)
class Value:
    """An array (n, *shape) that flows through the network: its buffer and, in the backward pass, its gradient's."""

    shape: tuple[int, ...]
    buffer: Buffer
    gradient: Buffer | None = None

    def __post_init__(self):
        self.size = math.prod(self.shape)


@dataclass(frozen=True)
class Watched:
    """Where a walk with gradients leaves a value and its gradient, (batch, *shape) each; the terms that it sums up."""

    shape: tuple[int, ...]
    output: Buffer
    gradient: Buffer
    terms: int = 0


@dataclass(eq=False, slots=True)
class Op:
    """A row of the table: a kernel with its operands and sizes, each an integer or a NamedTuple of them."""

    kernel: Kernel
    operands: tuple
    sizes: tuple
    writes: tuple
    label: str
    barrier: bool = True

    @property
    def words(self):
        """The sizes as they stand in the row."""
        found: list[int] = []
        for size in self.sizes:
            found += (size,) if type(size) is int else size
        return found

    @property
    def numbers(self):
        """The same by name."""
        return dict(zip(self.kernel.words, map(int, self.words), strict=True))
