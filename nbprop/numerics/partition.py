"""How threads divide the items of a loop."""

from nbprop.compiler.jit import njit


@njit
def share(total: int, part: int, parts: int) -> tuple[int, int]:
    """The range [start, stop) of `total` items that belongs to thread `part` of `parts`; it may be empty."""
    base, more = total // parts, total % parts
    start = part * base + min(part, more)
    return start, start + base + (1 if part < more else 0)


# The most elements that a vectorised loop processes at a time: 4 vectors of 16 float32.
_BLOCK = 64


@njit
def share_blocks(total, part, parts):
    """As `share`, in whole blocks of 64 elements: the bounds of one thread in an elementwise loop.

    LLVM may fuse a product and a sum in the vector body of a loop but not in its scalar tail (it did in gelu's
    derivative, float32). Cut at whole blocks, an element is in the body, or in the tail, on any number of threads.
    """
    first, last = share((total + _BLOCK - 1) // _BLOCK, part, parts)
    return min(first * _BLOCK, total), min(last * _BLOCK, total)
