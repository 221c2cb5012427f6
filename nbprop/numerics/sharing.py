"""`nbprop.share`: how kernels of one's own divide a loop among threads, checked when Python calls it."""

from numba.extending import overload

from nbprop.compiler.argument_types import check_integer_type
from nbprop.compiler.jit import FLAGS
from nbprop.numerics import partition
from nbprop.validation import check_integer

_share = partition.share


def share(total: int, part: int, parts: int) -> tuple[int, int]:
    """The range [start, stop) of `total` items that belongs to part `part` of `parts`; it may be empty.

    Ranges follow each other, differ in size by at most 1, and together are all items. In a kernel, `part` and `parts`
    are its last arguments, which the walk fills in.

    Parameters
    ----------
    total : int, at least 0
    part : int, in 0..parts - 1
    parts : int, at least 1

    Raises
    ------
    TypeError, ValueError
        For other arguments. Compiled code is not slowed down by checks of values; a wrong type is a typing error there.

    Examples
    --------
    >>> import nbprop
    >>> [nbprop.share(10, part, 3) for part in range(3)]
    [(0, 4), (4, 7), (7, 10)]
    """
    total = check_integer("share: total", total, 0)
    parts = check_integer("share: parts", parts, 1)
    part = check_integer("share: part", part, 0, parts - 1)
    base, more = divmod(total, parts)
    start = part * base + min(part, more)
    return start, start + base + (1 if part < more else 0)


@overload(share, jit_options=FLAGS, strict=False)
def _share_compiled(total, part, parts):
    for name, found in (("total", total), ("part", part), ("parts", parts)):
        check_integer_type(f"nbprop.share: {name}", found)
    return lambda total, part, parts: _share(total, part, parts)
