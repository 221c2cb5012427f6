"""Keras's layers as nbprop's: a function for each, of the step, the layer's settings, its weights, and its inputs.

Channels are last in both, and so are the columns of weights: hardly anything is turned. GRU's gates are z, r, h in
Keras and r, z, n here.
"""

from dataclasses import dataclass

import numpy as np

from nbprop.interchange.orders import Value
from nbprop.interchange.steps import Step
from nbprop.layers.embedding import Embedding
from nbprop.layers.gru import GRU
from nbprop.layers.layernorm import LayerNorm, RMSNorm
from nbprop.layers.lstm import LSTM
from nbprop.layers.rnn import RNN
from nbprop.validation import shown

_ACTIVATIONS = {name: name for name in ("relu", "tanh", "sigmoid", "softmax", "softplus", "elu", "gelu", "silu")}
_ACTIVATIONS |= {"linear": "identity", "swish": "silu", "hard_silu": "hard_swish", "hard_swish": "hard_swish"}
_ACTIVATIONS |= {name: name for name in ("mish", "selu", "hard_sigmoid", "hard_tanh", "softsign")}


class KerasStep(Step):
    """A layer of Keras."""

    def activated(self, value, name):
        """A value behind an activation by Keras's name."""
        return self.activation(value, self.named(name))

    def named(self, name):
        if name is None:
            return "identity"
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            raise self.fail(f"has the activation {shown(name)}, which nbprop has not, or with another setting")
        return _ACTIVATIONS[name]


@dataclass(frozen=True)
class Padded(Value):
    """An image with zeros around it, which a convolution takes over."""

    around: list[tuple[int, int]] | None = None


def _padding(step, value, settings, kernel, axes):
    around, padding = getattr(value, "around", None), settings.get("padding", "valid")
    if around is not None and padding == "valid":
        return around
    if around is not None or padding not in ("valid", "same"):
        raise step.fail(f"has padding {shown(padding)}, behind zeros or by itself, which nbprop has not")
    return "same" if padding == "same" else [(0, 0)] * axes


def _convolve(step, settings, weight, bias, value, groups):
    axes = weight.ndim - 2
    pads = _padding(step, value, settings, weight.shape[:-2], axes)
    strides, dilations = (_pair(settings.get(name, 1), axes) for name in ("strides", "dilation_rate"))
    value = Value(value.node, value.order, value.perm)
    return step.conv(value, weight, bias, strides, pads, dilations, groups)


def _pair(value, axes):
    return (value,) * axes if isinstance(value, int) else tuple(value)


def conv(step, settings, arrays, value):
    weight, bias = (*arrays, None)[:2]
    value = _convolve(step, settings, weight, bias, value, settings.get("groups", 1))
    return step.activated(value, settings["activation"])


def _grouped(weight):
    """A depthwise weight (..., channels, multiplier) as that of as many groups."""
    return weight.reshape(*weight.shape[:-2], 1, weight.shape[-2] * weight.shape[-1])


def depthwise(step, settings, arrays, value):
    weight, bias = (*arrays, None)[:2]
    value = _convolve(step, settings, _grouped(weight), bias, value, weight.shape[-2])
    return step.activated(value, settings["activation"])


def separable(step, settings, arrays, value):
    inner, outer, bias = (*arrays, None)[:3]
    value = _convolve(step, settings, _grouped(inner), None, value, inner.shape[-2])
    value = _convolve(step, {}, outer, bias, value, 1)
    return step.activated(value, settings["activation"])


def zeros(step, settings, arrays, value):
    padding = settings["padding"]
    axes = len(step.sample(value)) - 1
    padding = [padding] * axes if isinstance(padding, int) else padding
    pairs = [padding] if axes == 1 and len(padding) == 2 else padding
    around = [tuple(pair) if isinstance(pair, (list, tuple)) else (pair, pair) for pair in pairs]
    return Padded(value.node, value.order, value.perm, around)


def pool(largest):
    def read(step, settings, arrays, value):
        axes = step.pixels(value)
        kernel = _pair(settings["pool_size"], axes)
        strides = _pair(settings.get("strides") or kernel, axes)
        padding = [0] * axes
        if settings.get("padding", "valid") == "same":
            for k, extent in enumerate(step.sample(value)[:-1]):
                total = max(0, (-(-extent // strides[k]) - 1) * strides[k] + kernel[k] - extent)
                if total % 2:
                    raise step.fail("pads one side more than the other; nbprop's pools have the same on both")
                padding[k] = total // 2
        return step.pool(value, largest, kernel, strides, padding, False, counts_padding=False)

    return read


def global_pool(largest):
    def read(step, settings, arrays, value):
        axes = step.pixels(value)
        value = step.global_pool(value, largest, range(1, axes + 1), settings.get("keepdims", False))
        return value

    return read


def dense(step, settings, arrays, value):
    return step.activated(step.dense(value, *arrays), settings["activation"])


def embedding(step, settings, arrays, value):
    if settings.get("mask_zero"):
        raise step.fail("masks zeros; nbprop has lengths, which a call brings")
    order = (*value.order, len(step.sample(value)) + 1)
    return step.layer(value, Embedding(*arrays[0].shape), arrays, order)


def _last_axis(step, settings, value):
    axis = settings.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if axis not in (-1, len(value.order) - 1):
        raise step.fail(f"runs over axis {axis}, which is not the last")


def batchnorm(step, settings, arrays, value):
    _last_axis(step, settings, value)
    arrays = list(arrays)
    scale = arrays.pop(0) if settings.get("scale", True) else None
    shift = arrays.pop(0) if settings.get("center", True) else None
    return step.batchnorm(value, *arrays, settings["epsilon"], scale, shift)


def layernorm(step, settings, arrays, value):
    _last_axis(step, settings, value)
    if settings.get("rms_scaling"):
        raise step.fail("has rms_scaling; use RMSNormalization")
    layer = LayerNorm(settings["epsilon"], settings.get("scale", True), settings.get("center", True))
    return step.normalized(value, layer, arrays)


def rmsnorm(step, settings, arrays, value):
    _last_axis(step, settings, value)
    return step.normalized(value, RMSNorm(settings["epsilon"], bool(arrays)), arrays)


def normalization(step, settings, arrays, value):
    _last_axis(step, settings, value)
    if settings.get("invert") or len(arrays) < 2:
        raise step.fail("is inverted, or has not been adapted to data")
    std = np.maximum(np.sqrt(arrays[1]), 1e-7).ravel()
    return step.binary("div", step.binary("sub", value, arrays[0].ravel()), std)


def rescaling(step, settings, arrays, value):
    scaled = step.binary("mul", value, np.asarray(settings["scale"], np.float64))
    return step.binary("add", scaled, np.asarray(settings["offset"], np.float64))


def recurrent(kind):
    def read(step, settings, arrays, value):
        for name in ("go_backwards", "stateful", "return_state", "time_major"):
            if settings.get(name):
                raise step.fail(f"has {name}, which nbprop's layer has not")
        weight, recurrent_weight = arrays[:2]
        units, name = recurrent_weight.shape[0], step.named(settings["activation"])
        bias = arrays[2] if settings.get("use_bias", True) else np.zeros(weight.shape[1], weight.dtype)
        output = "sequence" if settings.get("return_sequences") else "last"
        if kind == "rnn":
            return step.layer(value, RNN(units, name, output), [weight, recurrent_weight, bias], _order(output))
        if name != "tanh" or settings.get("recurrent_activation", "sigmoid") != "sigmoid":
            raise step.fail("has activations other than tanh and sigmoid")
        if kind == "lstm":
            return step.layer(value, LSTM(units, output), [weight, recurrent_weight, bias], _order(output))
        if not settings.get("reset_after", True):
            raise step.fail("has reset_after=False; nbprop's gru resets behind the product")
        return step.layer(value, GRU(units, output), _gru(weight, recurrent_weight, bias, units), _order(output))

    return read


def _order(output):
    return (0, 1, 2) if output == "sequence" else (0, 1)


def _gru(weight, recurrent_weight, bias, units):
    """nbprop's arrays: r, z, n of z, r, h."""

    def blocks(array):
        z, r, h = np.split(array, 3, axis=-1)
        return np.concatenate([r, z, h], axis=-1)

    both = blocks(bias if bias.ndim == 2 else np.stack([bias, np.zeros_like(bias)]))
    joined = both[0].copy()
    joined[: 2 * units] += both[1, : 2 * units]
    return [blocks(weight), blocks(recurrent_weight), joined, both[1, 2 * units :]]


def relu(step, settings, arrays, value):
    slope = float(settings.get("negative_slope") or 0.0)
    if settings.get("max_value") is not None or settings.get("threshold") or slope not in (0.0, 0.01):
        raise step.fail("has a largest value, a threshold, or a slope other than 0 and 0.01")
    return step.activation(value, "leaky_relu" if slope else "relu")


def leaky_relu(step, settings, arrays, value):
    slope = float(settings.get("negative_slope", settings.get("alpha", 0.3)))
    if abs(slope - 0.01) > 1e-6:
        raise step.fail(f"has a slope of {slope:.6g}; nbprop's leaky_relu has 0.01")
    return step.activation(value, "leaky_relu")


def elu(step, settings, arrays, value):
    if settings.get("alpha", 1.0) != 1.0:
        raise step.fail(f"has alpha={settings['alpha']}; nbprop's elu has 1")
    return step.activation(value, "elu")


def softmax(step, settings, arrays, value):
    _last_axis(step, settings, value)
    return step.activation(value, "softmax")


def add(step, settings, arrays, *values):
    if len(values) != 2:
        raise step.fail(f"adds {len(values)} values; a residual block is y = x + f(x)")
    return step.binary("add", *values)


def concatenate(step, settings, arrays, *values):
    return step.concat(values, settings.get("axis", -1))


def reshape(step, settings, arrays, value):
    return step.reshape(value, [step.batch, *settings["target_shape"]])


LAYERS = {
    "Activation": lambda step, settings, arrays, value: step.activated(value, settings["activation"]),
    "Add": add,
    "AveragePooling1D": pool(False),
    "BatchNormalization": batchnorm,
    "Concatenate": concatenate,
    "Conv1D": conv,
    "Dense": dense,
    "DepthwiseConv1D": depthwise,
    "Dropout": lambda step, settings, arrays, value: value,
    "ELU": elu,
    "Embedding": embedding,
    "Flatten": lambda step, settings, arrays, value: step.flat(value),
    "GRU": recurrent("gru"),
    "GlobalAveragePooling1D": global_pool(False),
    "GlobalMaxPooling1D": global_pool(True),
    "LSTM": recurrent("lstm"),
    "LayerNormalization": layernorm,
    "LeakyReLU": leaky_relu,
    "MaxPooling1D": pool(True),
    "Normalization": normalization,
    "RMSNormalization": rmsnorm,
    "ReLU": relu,
    "Rescaling": rescaling,
    "Reshape": reshape,
    "SeparableConv1D": separable,
    "SimpleRNN": recurrent("rnn"),
    "Softmax": softmax,
    "ZeroPadding1D": zeros,
}
LAYERS |= {name.replace("1D", "2D"): read for name, read in LAYERS.items() if name.endswith("1D")}
LAYERS |= dict.fromkeys(
    ("SpatialDropout1D", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "ActivityRegularization", "Identity"),
    LAYERS["Dropout"],
)
