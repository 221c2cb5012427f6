"""A slow, obvious walk over a network that is described as in tests/reference/README.md.

Each layer returns its output and a function that takes the gradient by that output, adds the gradients of the
layer's parameters, and returns the gradient by its input. Parameters are one flat vector in network order:
each weight (n_in, n_out) row-major, then its bias; a tied array is not stored again.
"""

import numpy as np

from support import naive, naive_images, naive_norms


class Reader:
    """Hands out the next arrays of a flat vector, each with the same part of the gradient."""

    def __init__(self, params):
        self.params, self.grads = params, np.zeros_like(params)
        self.position = 0
        self.dense = []  # {"weight": (view, gradient), "bias": ...} of each dense layer so far

    def take(self, *shape):
        part = slice(self.position, self.position + np.prod(shape))
        self.position = part.stop
        return self.params[part].reshape(shape), self.grads[part].reshape(shape)


def dense(layer, x, reader):
    shared = reader.dense[layer["tied_to"]] if "tied_to" in layer else {}
    tied, units = layer.get("tied", []), layer["units"]
    arrays = {
        "weight": shared["weight"] if "weight" in tied else reader.take(x.shape[-1], units),
        "bias": shared["bias"] if "bias" in tied else reader.take(units),
    }
    reader.dense.append(arrays)
    (w, dw), (b, db) = arrays["weight"], arrays["bias"]
    function, function_backward = naive.ACTIVATIONS[layer.get("activation", "identity")]
    z = naive.dense_forward(x, w, b)

    def pull(dy):
        dx, w_part, b_part = naive.dense_backward(x, w, function_backward(z, dy))
        dw[:] += w_part
        db[:] += b_part
        return dx

    return function(z), pull


def activation(layer, x, reader):
    function, function_backward = naive.ACTIVATIONS[layer["activation"]]
    return function(x), lambda dy: function_backward(x, dy)


def flatten(layer, x, reader):
    return x.reshape(len(x), -1), lambda dy: dy.reshape(x.shape)


def residual(layer, x, reader):
    """y = x + f(x)."""
    y, pull = sequence(layer["layers"], x, reader)
    return x + y, lambda dy: dy + pull(dy)


def concat(layer, x, reader):
    """The branches' outputs of one input, side by side along the last axis."""
    outputs, pulls = zip(*[sequence(branch, x, reader) for branch in layer["branches"]], strict=True)
    ends = np.cumsum([y.shape[-1] for y in outputs])

    def pull(dy):
        parts = np.split(dy, ends[:-1], axis=-1)
        return sum(pull(part) for pull, part in zip(pulls, parts, strict=True))

    return np.concatenate(outputs, axis=-1), pull


LAYERS = {
    "dense": dense,
    "activation": activation,
    "flatten": flatten,
    "residual": residual,
    "concat": concat,
    **naive_images.LAYERS,
    **naive_norms.LAYERS,
}


def sequence(layers, x, reader):
    pulls = []
    for layer in layers:
        x, pull = LAYERS[layer["type"]](layer, x, reader)
        pulls.append(pull)

    def pull_all(dy):
        for pull in reversed(pulls):
            dy = pull(dy)
        return dy

    return x, pull_all


def forward(layers, params, x):
    """Return the network's output."""
    return sequence(layers, x, Reader(params))[0]


def backward(layers, params, x, dy):
    """Return the flat gradient and the gradient by x, for the gradient dy by the output."""
    reader = Reader(params)
    _, pull = sequence(layers, x, reader)
    dx = pull(dy)
    return reader.grads, dx


def value_and_grad(layers, params, x, loss, target, weights=None):
    """Return the loss, the flat gradient and the gradient by x."""
    value, dy = naive.loss_and_gradient(loss, forward(layers, params, x), target, weights)
    return value, *backward(layers, params, x, dy)
