"""Slow, obvious references for layers on images: every window is cut out, and everything is done for it alone.

Images are (n, height, width, channels), sequences (n, time, channels). Each layer is as in naive_network.py:
(layer, x, reader) -> output, and a function from the gradient by that output to the gradient by x.
"""

import itertools

import numpy as np

from support import naive


def setting(layer, name, default):
    """One number for each axis of an image or a sequence."""
    value, axes = layer.get(name, default), 1 if layer["type"].endswith("1d") else 2
    return value if isinstance(value, list) else [value] * axes


def borders(layer, extents):
    """(before, after) zeros for each axis."""
    if layer.get("padding") != "same":
        return [(size, size) for size in setting(layer, "padding", 0)]
    sizes = []
    for extent, k, s, d in zip(
        extents, setting(layer, "kernel", None), setting(layer, "stride", 1), setting(layer, "dilation", 1), strict=True
    ):
        total = max(0, (-(-extent // s) - 1) * s + d * (k - 1) + 1 - extent)
        sizes.append((total // 2, total - total // 2))
    return sizes


def windows(layer, padded):
    """{output pixel: index of its window} over the axes between samples and channels."""
    kernel, dilation = setting(layer, "kernel", None), setting(layer, "dilation", 1)
    stride = setting(layer, "stride", None) if "stride" in layer or "filters" not in layer else [1] * len(kernel)
    stride = kernel if stride[0] is None else stride
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    counts = [(e - r) // s + 1 for e, r, s in zip(padded.shape[1:-1], reach, stride, strict=True)]
    found = {}
    for pixel in itertools.product(*map(range, counts)):
        spans = [slice(p * s, p * s + r, d) for p, s, r, d in zip(pixel, stride, reach, dilation, strict=True)]
        found[pixel] = (slice(None), *spans)
    return found, counts


def uncover(padded, sides):
    """Without the borders."""
    inside = [slice(before, extent - after) for (before, after), extent in zip(sides, padded.shape[1:-1], strict=True)]
    return padded[(slice(None), *inside)]


def conv(layer, x, reader):
    groups, filters = layer.get("groups", 1), layer["filters"]
    channels = x.shape[-1] // groups
    (w, dw), (b, db) = reader.take(*setting(layer, "kernel", None), channels, filters), reader.take(filters)
    sides = borders(layer, x.shape[1:-1])
    padded = np.pad(x, [(0, 0), *sides, (0, 0)])
    found, counts = windows(layer, padded)
    function, function_backward = naive.ACTIVATIONS[layer.get("activation", "identity")]
    z = np.empty((len(x), *counts, filters), x.dtype)
    axes = tuple(range(1, x.ndim))

    def group_parts():
        for g in range(groups):
            yield slice(g * channels, (g + 1) * channels), slice(g * filters // groups, (g + 1) * filters // groups)

    for pixel, window in found.items():
        for seen, made in group_parts():
            product = np.tensordot(padded[window][..., seen], w[..., made], (axes, tuple(range(x.ndim - 1))))
            z[(slice(None), *pixel, made)] = product + b[made]

    def pull(dy):
        dz, dx = function_backward(z, dy), np.zeros_like(padded)
        for pixel, window in found.items():
            for seen, made in group_parts():
                d = dz[(slice(None), *pixel, made)]
                dw[..., made] += np.tensordot(padded[window][..., seen], d, (0, 0))
                dx[window][..., seen] += np.tensordot(d, w[..., made], (1, w.ndim - 1))
        db[:] += dz.reshape(-1, filters).sum(axis=0)
        return uncover(dx, sides)

    return function(z), pull


def pool(layer, x, reader):
    """The largest number of each window, the first of equal ones; or the mean, in which padding counts as zeros."""
    largest = layer["type"].startswith("max")
    sides = [(size, size) for size in setting(layer, "padding", 0)]
    padded = np.pad(x, [(0, 0), *sides, (0, 0)], constant_values=-np.inf if largest else 0)
    found, counts = windows(layer, padded)
    y = np.empty((len(x), *counts, x.shape[-1]), x.dtype)
    for pixel, window in found.items():
        values = padded[window].reshape(len(x), -1, x.shape[-1])
        y[(slice(None), *pixel)] = values.max(axis=1) if largest else values.mean(axis=1)

    def pull(dy):
        dx = np.zeros_like(padded)
        for pixel, window in found.items():
            d, values = dy[(slice(None), *pixel)], padded[window].reshape(len(x), -1, x.shape[-1])
            taken = np.arange(values.shape[1])[None, :, None] == values.argmax(axis=1)[:, None]
            share = (
                np.where(taken, d[:, None], 0)
                if largest
                else np.repeat(d[:, None] / values.shape[1], values.shape[1], 1)
            )
            dx[window] += share.reshape(dx[window].shape)
        return uncover(dx, sides)

    return y, pull


def global_pool(layer, x, reader):
    kind = layer["type"].split("_")[1]
    whole = {"type": f"{kind}_pool{x.ndim - 2}d", "kernel": list(x.shape[1:-1])}
    y, pull = pool(whole, x, reader)
    return y.reshape(len(x), -1), lambda dy: pull(dy.reshape(y.shape))


def local_response_norm(layer, x, reader):
    """y_i = x_i / d_i^beta with d_i = k + alpha times the sum of x_j^2, j from i - size // 2 to i + (size - 1) // 2.

    Krizhevsky et al. 2012, section 3.3.
    """
    size, alpha, beta, k = (layer[name] for name in ("size", "alpha", "beta", "k"))
    channels = np.arange(x.shape[-1])
    distance = channels[:, None] - channels  # j - i
    near = ((distance >= -(size // 2)) & (distance <= (size - 1) // 2)).astype(x.dtype)  # [j, i]
    d = k + x.dtype.type(alpha) * (x * x) @ near
    d = d.astype(x.dtype)

    def pull(dy):
        inner = (dy * x * d ** x.dtype.type(-beta - 1)) @ near.T
        return (dy * d ** x.dtype.type(-beta) - x.dtype.type(2 * alpha * beta) * x * inner).astype(x.dtype)

    return x * d ** x.dtype.type(-beta), pull


LAYERS = {
    "conv2d": conv,
    "conv1d": conv,
    "max_pool2d": pool,
    "max_pool1d": pool,
    "avg_pool2d": pool,
    "avg_pool1d": pool,
    "global_max_pool": global_pool,
    "global_avg_pool": global_pool,
    "local_response_norm": local_response_norm,
}
