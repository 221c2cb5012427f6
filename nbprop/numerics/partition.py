"""How threads share the items of a loop."""

from nbprop.compiler.jit import njit


@njit
def share(total, part, parts):
    """The range [start, stop) of `total` items that falls to one of `parts` threads; some may be empty."""
    base, more = total // parts, total % parts
    start = part * base + min(part, more)
    return start, start + base + (1 if part < more else 0)


# Elements a vectorised loop takes at a time at most: 4 vectors of 16 float32.
_BLOCK = 64


@njit
def share_blocks(total, part, parts):
    """As `share`, in whole blocks of 64 elements: the bounds of an elementwise loop's share.

    LLVM may fuse a product and a sum one way in a loop's vector body and another way in its scalar tail (it did in
    gelu's derivative, float32). Cut at whole blocks, each element is in the body or in the tail on any number of
    threads.
    """
    first, last = share((total + _BLOCK - 1) // _BLOCK, part, parts)
    return min(first * _BLOCK, total), min(last * _BLOCK, total)
