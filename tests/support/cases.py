"""The table of networks that the contract tests run, and buffers that notice what touches them."""

import numpy as np

import nbprop
from nbprop.layers import ACTIVATIONS
from nbprop.losses import LOSSES
from nbprop.numerics.elementary import exp
from nbprop.numerics.scalars import like

CLASSIFIER = nbprop.network((3,), nbprop.dense(5, activation="tanh"), nbprop.dense(4))
REGRESSOR = nbprop.network((3,), nbprop.dense(5, activation="tanh"), nbprop.dense(2))

dense = nbprop.dense

# A first or second derivative jumps at 0: central differences are only right away from there.
_KINKED = ("'relu'", "'leaky_relu'", "'elu'", "'selu'", "'softsign'", "prelu(", "max_pool")

# name -> network. Odd sizes throughout: no width is a multiple of a vector's.
NETWORKS = {
    "dense": nbprop.network((3,), dense(5)),
    "dense_no_bias": nbprop.network((3,), dense(5, bias=False), dense(1, bias=False)),
    "dense_narrow": nbprop.network((1,), dense(1, activation="tanh"), dense(1)),
    "dense_wide": nbprop.network((19,), dense(37, activation="tanh"), dense(3)),
    "dense_positions": nbprop.network((2, 3), dense(4, activation="tanh"), dense(3)),
    # Rows enough for weight gradients in pieces, even of one sample.
    "dense_many_positions": nbprop.network((260, 2), dense(3, activation="tanh"), dense(2)),
    "flatten": nbprop.network((2, 3), dense(3, activation="tanh"), nbprop.flatten(), dense(5)),
    "residual": nbprop.network((5,), nbprop.residual(dense(7, activation="tanh"), dense(5)), dense(3)),
    "residual_of_activation": nbprop.network((5,), nbprop.residual(nbprop.activation("tanh")), dense(3)),
    "residual_twice": nbprop.network((5,), nbprop.residual(nbprop.residual(dense(5, activation="tanh"))), dense(2)),
    "concat": nbprop.network((3,), nbprop.concat(dense(2, activation="tanh"), [], [dense(4), dense(3)]), dense(3)),
    "concat_of_activations": nbprop.network(
        (5,), nbprop.concat([nbprop.activation("tanh")], [nbprop.activation("gelu")], []), dense(3)
    ),
    "tied": nbprop.network((3,), dense(3, activation="tanh"), dense(3, share="0.dense"), dense(3)),
    "tied_weight": nbprop.network((3,), dense(3, activation="tanh"), dense(3, share="0.dense.weight"), dense(3)),
    "slicing": nbprop.network(
        (2, 7), nbprop.concat([nbprop.slicing(2, 7), dense(3, activation="tanh")], nbprop.slicing(0, 3)), dense(3)
    ),
    "reshape": nbprop.network((2, 3), dense(5, activation="tanh"), nbprop.reshape((5, 2)), dense(3)),
    "dropout": nbprop.network((3,), nbprop.dropout(0.3), dense(17, "tanh"), nbprop.dropout(0.5, seed=3), dense(3)),
    "embedding": nbprop.network((3,), nbprop.embedding(7, 5), dense(3, activation="tanh")),
    "positions": nbprop.network((3, 5), nbprop.positions("normal"), dense(3, activation="tanh")),
    "attention": nbprop.network((5, 6), nbprop.attention(2), dense(3, activation="tanh")),
    "attention_not_causal": nbprop.network((35, 3), nbprop.attention(1, causal=False, bias=False)),
    "tied_embedding": nbprop.network(
        (3,), nbprop.embedding(7, 5), dense(5, activation="tanh"), dense(7, share="0.embedding.weight.T")
    ),
    "tied_transposed": nbprop.network(
        (5,), dense(3, activation="tanh"), dense(5, bias=False, share="0.dense.weight.T", activation="tanh"), dense(2)
    ),
    "conv2d": nbprop.network((5, 6, 3), nbprop.conv2d(5, 3, padding=1, activation="tanh"), nbprop.conv2d(2, (2, 3))),
    "conv2d_options": nbprop.network(
        (6, 5, 4),
        nbprop.conv2d(6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, activation="gelu"),
        nbprop.conv2d(3, 2, padding="same", stride=2, bias=False),
    ),
    "conv2d_pointwise": nbprop.network((2, 3, 3), nbprop.conv2d(5, 1, activation="tanh"), nbprop.conv2d(2, 1)),
    "conv1d": nbprop.network((7, 2), nbprop.conv1d(3, 3, padding="same", activation="tanh"), nbprop.conv1d(2, 2, 2)),
    "max_pool2d": nbprop.network((5, 4, 3), nbprop.max_pool2d(2), nbprop.flatten(), dense(3, activation="tanh")),
    "max_pool2d_overlap": nbprop.network(
        (5, 6, 3), nbprop.conv2d(3, 2), nbprop.max_pool2d(3, stride=(2, 1), padding=1)
    ),
    "max_pool1d": nbprop.network((7, 3), nbprop.max_pool1d(2, stride=3), dense(3, activation="tanh")),
    "avg_pool2d": nbprop.network((5, 4, 3), nbprop.avg_pool2d(2), dense(3, activation="tanh")),
    "avg_pool2d_overlap": nbprop.network((4, 5, 3), nbprop.avg_pool2d((3, 2), stride=1, padding=1), dense(3)),
    "avg_pool1d": nbprop.network((7, 3), dense(3, activation="tanh"), nbprop.avg_pool1d(3, stride=2)),
    "global_max_pool": nbprop.network((3, 4, 5), nbprop.conv2d(5, 1), nbprop.global_max_pool(), dense(3)),
    "global_avg_pool": nbprop.network((4, 3), dense(5, activation="tanh"), nbprop.global_avg_pool(), dense(3)),
    "local_response_norm": nbprop.network((3, 7), nbprop.local_response_norm(4, alpha=0.5, k=1), dense(3)),
    "layernorm": nbprop.network((2, 3), dense(7, "tanh"), nbprop.layernorm(), dense(3, "tanh"), nbprop.layernorm(0.1)),
    "rmsnorm": nbprop.network((2, 3), nbprop.rmsnorm(0.1), dense(19), nbprop.rmsnorm(0.01), dense(3)),
    "batchnorm": nbprop.network((3, 3), dense(17, "tanh"), nbprop.batchnorm(epsilon=0.1), dense(3)),
    "rnn": nbprop.network((3, 2), nbprop.rnn(5), dense(3)),
    "rnn_last": nbprop.network((4, 3), nbprop.rnn(1, activation="sigmoid"), nbprop.rnn(3, output="last"), dense(2)),
    "lstm": nbprop.network((3, 2), nbprop.lstm(5), dense(3)),
    "lstm_last": nbprop.network((4, 3), nbprop.lstm(1), nbprop.lstm(3, output="last"), dense(2)),
    "gru": nbprop.network((3, 2), nbprop.gru(5), dense(3)),
    "gru_last": nbprop.network((4, 3), nbprop.gru(1), nbprop.gru(3, output="last"), dense(2)),
    "standardize": nbprop.network((2, 3), nbprop.standardize(trainable=True), dense(5, activation="tanh"), dense(3)),
    "standardize_given": nbprop.network((2, 3), nbprop.standardize(), dense(3, activation="tanh"), nbprop.rescale()),
    "rescale": nbprop.network((2, 3), dense(5, activation="tanh"), dense(3), nbprop.rescale(trainable=True)),
    "scaling_inside": nbprop.network(
        (7,), dense(5), nbprop.standardize(trainable=True), nbprop.rescale(trainable=True), dense(3, activation="tanh")
    ),
    "prelu": nbprop.network((2, 3), dense(5), nbprop.prelu(0.5), dense(3)),
    "glu": nbprop.network((2, 3), dense(10), nbprop.glu(), dense(3)),
    "glu_silu": nbprop.network((3,), dense(14), nbprop.glu("silu"), dense(2)),
    "groupnorm": nbprop.network((2, 3, 4), dense(6, "tanh"), nbprop.groupnorm(3, 0.1), dense(3)),
    "groupnorm_plain": nbprop.network((3, 6), nbprop.groupnorm(2, 0.1, affine=False), dense(3, activation="tanh")),
    "fourier_features": nbprop.network((2, 3), nbprop.fourier_features(5, 0.3), dense(3, activation="tanh")),
    "fourier_features_trained": nbprop.network((3,), dense(2), nbprop.fourier_features(5, 0.2, True), dense(3)),
    "bidirectional": nbprop.network((4, 3), nbprop.bidirectional(nbprop.lstm(2)), dense(3)),
    "bidirectional_last": nbprop.network((3, 2), nbprop.bidirectional(nbprop.rnn(3, output="last")), dense(2)),
    "conv2d_reflect": nbprop.network(
        (5, 4, 3), nbprop.conv2d(4, 3, padding=(2, 1), padding_mode="reflect", activation="tanh"), nbprop.conv2d(2, 2)
    ),
    "conv2d_replicate": nbprop.network(
        (4, 5, 2), dense(3), nbprop.conv2d(3, (3, 2), stride=2, padding="same", padding_mode="replicate")
    ),
    "conv1d_circular": nbprop.network(
        (5, 2), nbprop.conv1d(3, 1, padding=3, padding_mode="circular", activation="tanh")
    ),
    "conv_transpose2d": nbprop.network(
        (3, 2, 4),
        nbprop.conv_transpose2d(6, 3, 2, padding=1, output_padding=1, groups=2, activation="tanh"),
        nbprop.conv_transpose2d(2, (2, 1), dilation=2, bias=False),
    ),
    "conv_transpose1d": nbprop.network((4, 2), nbprop.conv_transpose1d(3, 2, stride=3, activation="gelu"), dense(2)),
    "ascending": nbprop.network((2, 3), dense(6, activation="tanh"), nbprop.ascending(3), dense(3)),
    "weight_norm": nbprop.network((3,), nbprop.weight_norm(dense(5, activation="tanh")), dense(2)),
    "weight_norm_images": nbprop.network(
        (4, 3, 2), nbprop.weight_norm(nbprop.conv2d(3, 2, padding=1, activation="tanh")), nbprop.conv2d(2, 2)
    ),
    "spectral_norm": nbprop.network((3,), nbprop.spectral_norm(dense(5, activation="tanh")), dense(2)),
    "spectral_norm_images": nbprop.network(
        (7, 2), dense(3), nbprop.spectral_norm(nbprop.conv1d(4, 3, 2, activation="tanh")), dense(2)
    ),
    "no_parameters": nbprop.network((5,), nbprop.activation("tanh")),
}
NETWORKS |= {f"fused_{name}": nbprop.network((3,), dense(5, activation=name), dense(3)) for name in ACTIVATIONS}
NETWORKS |= {f"alone_{name}": nbprop.network((5,), nbprop.activation(name), dense(3)) for name in ACTIVATIONS}


def _bump(x):
    """(1 + x) / 2 + x exp(-x^2 / 2)"""
    return like(x, 0.5) * (like(x, 1.0) + x) + x * exp(like(x, -0.5) * x * x)


def _bump_derivative(x, y):
    return like(x, 0.5) + (like(x, 1.0) - x * x) * exp(like(x, -0.5) * x * x)


_BUMP_IN_C = """
/* y = (1 + x) / 2 + x exp(-x^2 / 2). y OUT, x IN (n, size). */
static void bumpy_forward(real *restrict y, const real *restrict x, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        y[i] = R(0.5) * (R(1.0) + x[i]) + x[i] * nb_exp(R(-0.5) * x[i] * x[i]);
    }
}

/* dx = dy (1 / 2 + (1 - x^2) exp(-x^2 / 2)). */
static void bumpy_backward(real *restrict dx, const real *restrict dy, const real *restrict x, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        dx[i] = dy[i] * (R(0.5) + (R(1.0) - x[i] * x[i]) * nb_exp(R(-0.5) * x[i] * x[i]));
    }
}
"""
_bumpy = nbprop.elementwise("bumpy", _bump, _bump_derivative, c=_BUMP_IN_C)

_OUTPUT = nbprop.network((3,), dense(5, activation="tanh"), dense(4))
_OUTPUT_POSITIONS = nbprop.network((2, 3), dense(4, activation="tanh"), dense(4))

# (network, loss or None: a linear function of the output through forward and backward)
CASES = {name: (net, None) for name, net in NETWORKS.items()}
_EXACT = [name for name, loss in LOSSES.items() if loss.exact_gradient]
CASES |= {f"loss_{name}": (_OUTPUT, name) for name in _EXACT}
CASES |= {f"loss_{name}_positions": (_OUTPUT_POSITIONS, name) for name in _EXACT}
CASES |= {"elementwise": (nbprop.network((3,), dense(5), _bumpy(), dense(4)), None)}
CASES |= {
    "loss_huber_delta": (_OUTPUT, nbprop.huber(delta=0.3)),
    "loss_mse_weighted": (_OUTPUT, nbprop.mse(missing="ignore", output_weights=(1.0, 0.0, 2.0, 0.5))),
    "loss_softmax_cross_entropy_smoothed": (_OUTPUT_POSITIONS, nbprop.softmax_cross_entropy(0.1, ignore_index=-100)),
    "loss_quantile_four": (_OUTPUT, nbprop.quantile((0.1, 0.25, 0.5, 0.9))),
}


def kinked(net):
    """Whether the network's output has kinks at zeros."""
    return any(name in repr(net) for name in _KINKED)


def state_of(plan):
    """New layer state, for a plan that has some."""
    return nbprop.layer_state(plan) if plan.state_size else None


def data(plan, n, rng, *, ties):
    """x, target (None without a loss) and sample weights. ties: the first sample is zero, the second twice there."""
    shape = (n, *plan.input_shape)
    x = rng.integers(0, plan.x_classes, shape) if plan.x_classes else rng.standard_normal(shape)
    if ties:
        x[0] = 0
        x[-1] = x[n // 2]
    target = None
    if plan.loss is not None:
        shape = (n, *plan.target_shape)
        low = max(-1, plan.target_range[0])
        target = rng.integers(0, plan.classes, shape) if plan.classes else rng.uniform(low, 1, shape)
    weights = rng.uniform(0.5, 2, n)
    weights[n // 2] = 0 if n > 1 else 1
    x = x if plan.x_classes else x.astype(plan.dtype)
    return x, target if plan.classes or target is None else target.astype(plan.dtype), weights


class Buffers:
    """Arrays that lie inside larger ones, at an odd element of a cache line, with guard values around."""

    _MARGIN = 24
    _GUARD = 0x5A

    def __init__(self):
        self._wholes = []

    def _inside(self, nbytes, itemsize):
        whole = np.full(nbytes + 2 * self._MARGIN * itemsize + 128, self._GUARD, np.uint8)
        first = -whole.ctypes.data % 64 + self._MARGIN // 8 * 8 * itemsize
        first += (itemsize - (whole.ctypes.data + first)) % 64
        self._wholes.append((whole, first, first + nbytes))
        return whole[first : first + nbytes]

    def poisoned(self, shape, dtype):
        """A NaN-filled array that may be written."""
        dtype = np.dtype(dtype)
        found = self._inside(int(np.prod(shape)) * dtype.itemsize, dtype.itemsize).view(dtype).reshape(shape)
        found[...] = np.nan
        assert found.size == 0 or found.ctypes.data % 64 == dtype.itemsize
        return found

    def constant(self, array):
        """A read-only copy of an array (None: None)."""
        if array is None:
            return None
        array = np.asarray(array)
        found = self._inside(array.nbytes, array.itemsize).view(array.dtype).reshape(array.shape)
        found[...] = array
        found.flags.writeable = False
        return found

    def check(self):
        """Nothing around the arrays has been written."""
        for whole, first, stop in self._wholes:
            assert (whole[:first] == self._GUARD).all(), "written before an array"
            assert (whole[stop:] == self._GUARD).all(), "written behind an array"


def close(name, got, wanted, tolerance, floor=1e-3):
    """|got - wanted| <= tolerance, relative to the largest |wanted| (or `floor`, if that is larger)."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape, name
    scale = max(np.abs(wanted).max(initial=0.0), floor)
    error = np.abs(got - wanted).max(initial=0.0) / scale
    assert error <= tolerance, f"{name}: relative error {error:.2g}, allowed {tolerance:.2g}"


def same_bits(name, got, wanted):
    """The same bytes (NaN equals NaN, 0 differs from -0)."""
    assert np.asarray(got).tobytes() == np.asarray(wanted).tobytes(), f"{name}: other bits"
