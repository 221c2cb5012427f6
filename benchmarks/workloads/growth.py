"""Rows of which one size grows at a time: batch, width, depth, parameters, positions of a sequence, threads.

A tanh net of two hidden layers of 64, batch 128, except for what is varied, and an LSTM for the positions.
"""

from __future__ import annotations

from dataclasses import dataclass

from workloads.recurrent import FEATURES, UNITS
from workloads.rows import BY_NAME, Row

LIBRARIES = ("nbprop", "torch", "jax-jit")  # all are called from Python, step by step


@dataclass(frozen=True)
class Axis:
    """What grows, and its sizes."""

    name: str
    title: str
    sizes: tuple[int, ...]

    def rows(self, cores: int = 2, quick: bool = False) -> dict[Row, tuple[int, ...]]:
        """The rows, with the sizes that each stands for: one, or for threads all."""
        sizes = (self.sizes[0], self.sizes[-1]) if quick else self.sizes
        if self.name == "threads":
            counts = tuple(sorted({1, cores, 2 * cores}))  # the last one has more threads than cores
            return {_row(self, 0, counts): counts}
        return {_row(self, size, (1,)): (size,) for size in sizes}


def _row(axis: Axis, size: int, threads: tuple[int, ...]) -> Row:
    sizes = {"batch": 128, "width": 512 if axis.name == "threads" else 64, "depth": 2}
    kind, module, flops = "gradient", "", 0.0
    if axis.name == "parameters":
        kind, sizes = "step", {"batch": 16, "width": size, "depth": 2}
    elif axis.name in sizes:
        sizes[axis.name] = size
    widths = (16, *[sizes["width"]] * sizes["depth"], 4)
    if axis.name == "positions":
        kind, module, widths, sizes = "own", "recurrent", (size,), {"batch": 32}
        flops = 6.0 * 32 * size * (FEATURES + UNITS) * 4 * UNITS
    return Row(
        f"growth_{axis.name}_{size}", f"{axis.title} {size}", kind, widths, batch=sizes["batch"],
        contenders=LIBRARIES, threads=threads, module=module, own_flops=flops,
    )  # fmt: skip


AXES = (
    Axis("batch", "batch", (1, 4, 16, 64, 256, 1024, 4096)),
    Axis("width", "width of two hidden layers", (8, 16, 32, 64, 128, 256, 512, 1024)),
    Axis("depth", "hidden layers", (1, 2, 4, 8, 16, 32)),
    # Of an Adam step; the width of two hidden layers stands for their number, which the results have.
    Axis("parameters", "parameters", (16, 64, 256, 1024, 2048)),
    Axis("positions", "positions of a sequence", (10, 30, 100, 300, 1000)),
    Axis("threads", "threads", (0,)),
)


def row_named(name: str) -> Row:
    """A row of the comparison table, or one of these."""
    if name in BY_NAME:
        return BY_NAME[name]
    _, axis, size = name.split("_")
    found = next(one for one in AXES if one.name == axis)
    return _row(found, int(size), (1,))
