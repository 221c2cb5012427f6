"""Kinds of arguments: what of each is wrong, and what of anything drawn at random is right; see any_argument.py."""

import math

import numpy as np
from hypothesis import strategies as st

import nbprop
from support import cases


class WithUnit(np.ndarray):
    """A subclass with a meaning of its own."""


# -- kinds of arguments: what is wrong, and what of anything drawn at random is right -------------------------

NOTHING_LIKE_IT = (object(), ..., {1: 2}, b"bytes", 1j, np.ma.masked, float)
HUGE = (10**400, -(10**400), 2**63, -(2**63) - 1)


class Kind:
    """What an argument may be. wrong(): examples that must be refused; right(value): whether a value is documented."""

    def __init__(self, *, optional=False):
        self.optional = optional

    def examples(self, valid):
        return [value for value in self.wrong(valid) if not (value is None and self.optional)]


class Integer(Kind):
    """An integer in least..most."""

    def __init__(self, least=1, most=2**31 - 1, **more):
        super().__init__(**more)
        self.least, self.most = least, most

    def wrong(self, valid):
        below = () if self.least <= -(2**62) else (self.least - 1, np.int64(self.least - 1))
        return [None, "1", 1.5, math.nan, math.inf, [1], True, np.array([1, 2]), *HUGE, *below, *NOTHING_LIKE_IT]


class AnySize(Integer):
    """An integer, however large: more than there is counts as all."""

    def wrong(self, valid):
        large = (int, np.integer)
        return [value for value in super().wrong(valid) if not (isinstance(value, large) and value > 2**31)]


class Index(Integer):
    """An integer, or an array of one for each sample."""

    def wrong(self, valid):
        return [value for value in super().wrong(valid) if not isinstance(value, np.ndarray)] + [np.array([0, 9])]


class Window(Integer):
    """An integer, or one for each axis."""

    def wrong(self, valid):
        return [[1.5] if value == [1] else value for value in super().wrong(valid) if not isinstance(value, np.ndarray)]


class Number(Kind):
    """A finite number, at least 0, or above it."""

    def __init__(self, *, above=False, below=math.inf, infinite=False, **more):
        super().__init__(**more)
        self.above, self.below, self.infinite = above, below, infinite

    def wrong(self, valid):
        found = [None, "1", math.nan, -1.0, -math.inf, [1.0], True, np.array([1.0, 2.0]), -(10**400), *NOTHING_LIKE_IT]
        found += [0.0] if self.above else []
        found += [self.below] if self.below < math.inf else []
        return found + ([] if self.infinite else [math.inf, 10**400])


class Flag(Kind):
    """True or False."""

    def wrong(self, valid):
        return [None, "no", "", 2, 0.5, [], np.array([True, False]), *NOTHING_LIKE_IT]


class Choice(Kind):
    """One of several names, or what stands for one."""

    def wrong(self, valid):
        return [None, "nonsense", "", 3, 1.5, ["mse"], np.zeros(2), *NOTHING_LIKE_IT]


class Named(Choice):
    """One of several names, or a function."""

    def wrong(self, valid):
        return [value for value in super().wrong(valid) if not callable(value)]


class Text(Kind):
    """Any name."""

    def wrong(self, valid):
        return [None, "", 3, 1.5, ["mse"], np.zeros(2), *NOTHING_LIKE_IT]


class Shape(Kind):
    """A tuple of sizes, or a size."""

    def wrong(self, valid):
        return [None, "", "3", (1.5,), (0,), (-1,), (True,), (2**63,), (10**400,), [None], *NOTHING_LIKE_IT, *HUGE]


class Made(Kind):
    """What a function of nbprop returns: a network, a plan."""

    def wrong(self, valid):
        others = [cases.CLASSIFIER, nbprop.plan(cases.CLASSIFIER)]
        return [None, "x", 3, np.zeros(3), *(o for o in others if type(o) is not type(valid)), *NOTHING_LIKE_IT]


class Function(Kind):
    """A function."""

    def wrong(self, valid):
        return [None, "f", 3, np.zeros(3), object(), [len]]


class Anywhere(Kind):
    """A path."""

    def wrong(self, valid):
        return [None, 3.5, [], {}, 1j, np.zeros(2), object()]


class Dtype(Kind):
    """float32 or float64."""

    def wrong(self, valid):
        return [None, "f2", np.int64, complex, "nonsense", 3, object(), np.longdouble]


class Array(Kind):
    """An array of the valid one's dtype and shape; free: of as many axes, longer: a vector of at least its length."""

    def __init__(self, *, finite=False, longer=False, integers=False, written=False, free=False, kinds=(), **more):
        super().__init__(**more)
        self.finite, self.longer, self.integers, self.written = finite, longer, integers, written
        self.free, self.kinds = free, kinds

    def wrong(self, valid):
        others = [None, valid.tolist(), 1.5, "x", np.float64(1.0), np.ndarray, memoryview(valid.copy()), object()]
        subclasses = [np.ma.array(valid, mask=np.arange(valid.size).reshape(valid.shape) == 0), valid.view(WithUnit)]
        subclasses += [
            np.rec.array(valid),
            valid.view(np.char.chararray) if valid.dtype.kind == "U" else valid.view(WithUnit),
        ]
        if valid.ndim == 2:
            subclasses.append(valid.view(np.matrix))
        found = [*others, *subclasses, valid[..., None], np.zeros((), valid.dtype), valid.astype(object)]
        found += [valid.astype(complex), valid.astype("U4"), valid.astype(valid.dtype.newbyteorder("S"))]
        found += [valid.astype(np.float16), np.stack([valid, valid], -1)[..., 0] if valid.size > 1 else None]
        shifted = np.zeros(valid.nbytes + 1, np.uint8)[1:].view(valid.dtype).reshape(valid.shape)
        shifted[...] = valid
        found += [shifted] if valid.itemsize > 1 else []
        if self.written:
            found.append(valid.copy())
            found[-1].flags.writeable = False
        if self.finite and not self.integers:
            for value in (math.nan, math.inf, -math.inf):
                found.append(valid.copy())
                found[-1].flat[-1] = value
        if self.integers:
            for value in (np.iinfo(valid.dtype).max, -1):
                found.append(valid.copy())
                found[-1].flat[-1] = value
        return [value for value in found if not (isinstance(value, np.ndarray) and self.fits(value, valid))]

    def fits(self, array, valid):
        """Whether it is as documented, apart from values."""
        if type(array) is not np.ndarray or not (array.flags.c_contiguous and array.flags.aligned):
            return False
        if self.integers:
            right = array.dtype.kind in "iu" and array.dtype.isnative
            right = right and array.size > 0 and array.min() >= 0 and array.max() <= valid.max()
        else:
            right = array.dtype in [np.dtype(kind) for kind in self.kinds or [valid.dtype]]
            right = right and (not self.finite or bool(np.isfinite(array).all()))
        if self.longer:
            shape = array.ndim == 1 and array.size >= valid.size
        elif self.free:
            shape = array.ndim == valid.ndim and (array.size > 0 or not self.integers)
        else:
            shape = array.shape == valid.shape
        return right and shape and (array.flags.writeable or not self.written)


def arrays(valid):
    """Random arrays, often of the valid dtype or shape: strides, byte orders, subclasses, values."""
    shapes = st.one_of(st.just(valid.shape), st.lists(st.integers(0, 5), max_size=4).map(tuple))
    dtypes = st.sampled_from(
        [valid.dtype.str] * 3 + ["f8", "f4", ">f8", "i8", "u1", ">i4", "?", "c16", "f2", "O", "S3"]
    )
    views = st.sampled_from(["plain", "plain", "reversed", "transposed", "every second", "read-only", "broadcast"])
    types = st.sampled_from([np.ndarray] * 4 + [WithUnit, np.ma.MaskedArray])
    values = st.sampled_from([0, 0, 1, math.nan, math.inf, -1])

    def make(shape, dtype, view, kind, value):
        dtype = np.dtype(dtype)
        value = value if dtype.kind in "fc" or math.isfinite(value) else 0
        value = abs(value) if dtype.kind == "u" else value
        array = np.full(shape, value, dtype)
        if view == "every second" and shape:
            array = np.full((*shape[:-1], 2 * shape[-1]), value, dtype)[..., ::2]
        elif view == "broadcast" and shape:
            array = np.broadcast_to(np.full(shape[-1:], value, dtype), shape)
        elif view == "reversed" and shape:
            array = array[::-1]
        elif view == "transposed":
            array = array.T
        elif view == "read-only":
            array.flags.writeable = False
        return array if kind is np.ndarray else array.view(kind)

    return st.builds(make, shapes, dtypes, views, types, values)
