"""Slow, obvious references for normalization: the derivative of a row is its whole Jacobian, written out.

Each layer is as in naive_network.py: (layer, x, reader) -> output, and a function from the gradient by that output to
the gradient by x.
"""

import numpy as np


def affine(layer, x, reader):
    """(s, ds), (b, db): ones and zeros, and gradients that nobody reads, where the layer has none."""
    size, absent = x.shape[-1], np.zeros(x.shape[-1], x.dtype)
    scale = reader.take(size) if layer.get("scale", True) else (absent + 1, absent.copy())
    shifted = layer.get("shift", layer["type"] != "rmsnorm")
    return scale, reader.take(size) if shifted else (absent, absent.copy())


def normalized(x, epsilon, centered):
    """x^ of one vector, and its Jacobian by x."""
    size, eye = len(x), np.eye(len(x), dtype=x.dtype)
    t = x - x.mean() if centered else x
    r = 1 / np.sqrt((t * t).mean() + x.dtype.type(epsilon))
    along = eye - 1 / x.dtype.type(size) if centered else eye
    return t * r, r * along - r**3 * np.outer(t, t) / size


def rows(layer, x, reader):
    """layernorm and rmsnorm."""
    (s, ds), (b, db) = affine(layer, x, reader)
    pairs = [normalized(row, layer.get("epsilon", 1e-5), layer["type"] == "layernorm") for row in x.reshape(-1, len(s))]
    h = np.array([row for row, _ in pairs])

    def pull(dy):
        flat = dy.reshape(-1, len(s))
        ds[:] += (flat * h).sum(axis=0)
        db[:] += flat.sum(axis=0)
        return np.array([jacobian.T @ (s * g) for (_, jacobian), g in zip(pairs, flat, strict=True)]).reshape(x.shape)

    return (s * h + b).reshape(x.shape), pull


def batch(layer, x, reader):
    """batchnorm in training: each feature over all samples and positions is one vector."""
    (s, ds), (b, db) = affine(layer, x, reader)
    columns = x.reshape(-1, len(s)).T
    pairs = [normalized(column, layer.get("epsilon", 1e-5), True) for column in columns]
    h = np.array([column for column, _ in pairs])

    def pull(dy):
        flat = dy.reshape(-1, len(s)).T
        ds[:] += (flat * h).sum(axis=1)
        db[:] += flat.sum(axis=1)
        parts = [jacobian.T @ (k * g) for (_, jacobian), k, g in zip(pairs, s, flat, strict=True)]
        return np.array(parts).T.reshape(x.shape)

    return (s[:, None] * h + b[:, None]).T.reshape(x.shape), pull


LAYERS = {"layernorm": rows, "rmsnorm": rows, "batchnorm": batch}
