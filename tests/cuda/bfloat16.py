"""Products of bfloat16 in NumPy: what tensor cores compute, but for the rounding of their sums."""

import numpy as np


def bfloat16(values):
    """float32 numbers as bfloat16 in float64, by exact arithmetic: the nearest of 8 significant bits, ties to even."""
    values = np.asarray(values, np.float64)
    _, exponent = np.frexp(values)
    unit = np.ldexp(1.0, np.maximum(exponent - 8, -133))  # below 2**-126 the spacing stays 2**-133
    nearest = np.rint(values / unit) * unit
    return np.where(np.abs(nearest) >= 2.0**128, np.copysign(np.inf, values), nearest)


def split(values, planes):
    """Float32 numbers as one bfloat16, or as the sum of two: the largest part first."""
    values = np.asarray(values).astype(np.float32).astype(np.float64)
    parts = []
    for _ in range(planes):
        parts.append(bfloat16(values - sum(parts)))
    return parts


def times(left, right):
    """The product of two matrices in parts, without that of the smallest parts."""
    found = left[0] @ right[0]
    if len(left) == 2:
        found += left[0] @ right[1] + left[1] @ right[0]
    return found
