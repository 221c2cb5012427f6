"""Ops on arrays larger than every cache write past the caches: the bits are those of the same rows in smaller calls."""

import numpy as np
import pytest

import nbprop
from nbprop.numerics.streaming import _LARGE

# name -> (network, elements that the layer reads and writes for one that it is given)
NETWORKS = {
    # Rows of 1,001 begin anywhere in a cache line; several pieces, the last of them short.
    "layernorm": (nbprop.network((1001,), nbprop.layernorm()), 2),
    "layernorm without parameters": (nbprop.network((600,), nbprop.layernorm(scale=False, shift=False)), 2),
    "softmax": (nbprop.network((1001,), nbprop.activation("softmax")), 2),
    # The gradient; channels of two vectors, and of a fraction of one, which is not streamed.
    "max_pool2d": (nbprop.network((64, 64, 32), nbprop.max_pool2d(2)), 1.5),
    "max_pool2d, few channels": (nbprop.network((64, 64, 3), nbprop.max_pool2d(2)), 1.5),
}


def _results(net, x, dy, batch, threads):
    """(y, dx), `batch` samples at a time."""
    plan = nbprop.plan(net, batch=batch, dtype=x.dtype, threads=threads)
    params, work = nbprop.init(net, 1, x.dtype), nbprop.workspace(plan)
    grads, y, dx = np.empty_like(params), np.empty_like(dy), np.full_like(x, np.nan)
    for first in range(0, len(x), batch):
        some = slice(first, first + batch)
        nbprop.forward(plan, params, x[some], y[some], work)
        nbprop.vjp(plan, params, x[some], dy[some], grads, dx[some], work)
    return y, dx


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_streamed_has_the_same_bits(name):
    net, moved = NETWORKS[name]
    parts, dtype, random = 4, np.dtype(np.float32), np.random.default_rng(3)
    size = int(np.prod(net.input_shape))
    batch = -(-int(1.1 * _LARGE / dtype.itemsize / moved) // (size * parts)) * parts
    assert batch * size * moved * dtype.itemsize > _LARGE > batch // parts * size * moved * dtype.itemsize
    x = random.standard_normal((batch, *net.input_shape), dtype)
    dy = random.standard_normal((batch, *net.output_shape), dtype)
    expected = _results(net, x, dy, batch // parts, 1)
    for threads in (1, 2):
        for found, right in zip(_results(net, x, dy, batch, threads), expected, strict=True):
            np.testing.assert_array_equal(found.view(np.int32), right.view(np.int32))
