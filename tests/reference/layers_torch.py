"""Losses and gradients of gates, features, group norms, paddings, transposed and bidirectional layers by PyTorch.

In float64: the cases of layers.npz. Images are NHWC here and NCHW in PyTorch.
"""

import math

import networks_torch
import torch
import torch.nn.functional as F
from images_torch import channels_first, channels_last, pair
from networks_torch import ACTIVATIONS, generated, layer_dense


def run_prelu(layer, x, parameters):
    return F.prelu(x.movedim(-1, 1), parameters.take(x.shape[-1])).movedim(1, -1)


def run_glu(layer, x, parameters):
    name = layer.get("activation", "sigmoid")
    if name == "sigmoid":
        return F.glu(x, -1)
    a, b = x.chunk(2, dim=-1)
    return a * ACTIVATIONS[name](b)


def run_groupnorm(layer, x, parameters):
    affine = layer.get("affine", True)
    s, b = (parameters.take(x.shape[-1]) if affine else None for _ in range(2))
    return F.group_norm(x.movedim(-1, 1), layer["groups"], s, b, layer.get("epsilon", 1e-5)).movedim(1, -1)


def run_fourier(layer, x, parameters):
    z = 2 * math.pi * layer["scale"] * (x @ parameters.take(x.shape[-1], layer["units"]))
    return torch.cat([z.cos(), z.sin()], dim=-1)


def run_padded(layer, x, parameters):
    """A convolution with a border of the image's own pixels; 1-D where the layer is, for PyTorch has no other way."""
    axes = int(layer["type"][4])
    kernel, stride, padding = (pair(layer, name, usual)[2 - axes :] for name, usual in SETTINGS)
    w, b = parameters.take(*kernel, x.shape[-1], layer["filters"]), parameters.take(layer["filters"])
    sides = [size for size in reversed(padding) for _ in range(2)]
    image = F.pad(x.movedim(-1, 1), sides, layer["padding_mode"])
    convolve = F.conv2d if axes == 2 else F.conv1d
    return ACTIVATIONS[layer.get("activation", "identity")](
        convolve(image, w.movedim((-1, -2), (0, 1)), b, stride).movedim(1, -1)
    )


SETTINGS = (("kernel", None), ("stride", 1), ("padding", 0))


def run_transposed(layer, x, parameters):
    kernel, stride, padding = (pair(layer, name, usual) for name, usual in SETTINGS)
    more = layer.get("output_padding", 0)
    more = (more, more) if layer["type"].endswith("2d") else (0, more)
    groups, filters = layer.get("groups", 1), layer["filters"]
    w, b = parameters.take(*kernel, filters // groups, x.shape[-1]), parameters.take(filters)
    z = F.conv_transpose2d(
        channels_first(x), w.permute(3, 2, 0, 1), b, stride, padding, more, groups, pair(layer, "dilation", 1)
    )
    return ACTIVATIONS[layer.get("activation", "identity")](channels_last(z, x))


MODULES = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM}


def run_bidirectional(layer, x, parameters):
    """One PyTorch module, whose weights are the leaves; its two biases of a gate are ours and zero."""
    inner = layer["layer"]
    units, kind = inner["units"], inner["type"]
    module = MODULES[kind](x.shape[-1], units, batch_first=True, bidirectional=True).double()
    width, weights = units * (4 if kind == "lstm" else 1), {}
    for suffix in ("", "_reverse"):
        w, u, b = parameters.take(x.shape[-1], width), parameters.take(units, width), parameters.take(width)
        weights |= {f"weight_ih_l0{suffix}": w.T, f"weight_hh_l0{suffix}": u.T}
        weights |= {f"bias_ih_l0{suffix}": b, f"bias_hh_l0{suffix}": torch.zeros_like(b)}
    y, _ = torch.func.functional_call(module, weights, (x,))
    if inner.get("output") == "last":
        return torch.cat([y[:, -1, :units], y[:, 0, units:]], dim=-1)
    return y


def effective_weight(layer, v, g=None):
    """The weight that PyTorch's parametrization makes of v (..., inputs, units), a leaf, and of g."""
    matrix = v.reshape(-1, v.shape[-1]).T
    module = torch.nn.Linear(*matrix.shape[::-1], bias=False).double()
    name = "parametrizations.weight.original"
    if layer["type"] == "weight_norm":
        torch.nn.utils.parametrizations.weight_norm(module)
        weights = {f"{name}0": g.reshape(-1, 1), f"{name}1": matrix}
    else:
        torch.nn.utils.parametrizations.spectral_norm(module)
        u = torch.full((len(matrix),), len(matrix) ** -0.5, dtype=torch.float64)
        weights = {f"{name}": matrix, "parametrizations.weight.0._u": u}
        weights["parametrizations.weight.0._v"] = F.normalize(matrix.detach().T @ u, dim=0)
        module.eval()  # takes no step of the power iteration
    eye = torch.eye(matrix.shape[1], dtype=torch.float64)
    return torch.func.functional_call(module, weights, (eye,)).reshape(v.shape)


def run_reparametrized(layer, x, parameters):
    inner = layer["layer"]
    units = inner.get("units", inner.get("filters"))
    g = parameters.take(units) if layer["type"] == "weight_norm" else None
    if inner["type"] == "dense":
        w, b = effective_weight(layer, parameters.take(x.shape[-1], units), g), parameters.take(units)
        return ACTIVATIONS[inner.get("activation", "identity")](x @ w + b)
    kernel = pair(inner, "kernel", None)
    w = effective_weight(layer, parameters.take(*kernel, x.shape[-1], units), g)
    z = F.conv2d(channels_first(x), w.permute(3, 2, 0, 1), parameters.take(units))
    return ACTIVATIONS[inner.get("activation", "identity")](channels_last(z, x))


networks_torch.LAYERS |= {
    "weight_norm": run_reparametrized,
    "spectral_norm": run_reparametrized,
    "prelu": run_prelu,
    "glu": run_glu,
    "groupnorm": run_groupnorm,
    "fourier_features": run_fourier,
    "conv_transpose2d": run_transposed,
    "conv_transpose1d": run_transposed,
    "bidirectional": run_bidirectional,
}
_ZERO_PADDED = {kind: networks_torch.LAYERS[kind] for kind in ("conv2d", "conv1d")}


def run_conv(layer, x, parameters):
    padded = layer.get("padding_mode", "zeros") != "zeros"
    return (run_padded if padded else _ZERO_PADDED[layer["type"]])(layer, x, parameters)


networks_torch.LAYERS |= {"conv2d": run_conv, "conv1d": run_conv}


def layer(kind, **options):
    return {"type": kind, **options}


def networks():
    """{name: (input shape, layers)}."""
    dense = layer_dense
    conv, up = {"filters": 4, "kernel": 3, "activation": "tanh"}, {"filters": 4, "kernel": 3}
    return {
        "prelu": ((3, 4), [layer("prelu", slope=0.25), dense(5), layer("prelu"), dense(2)]),
        "glu": ((2, 6), [layer("glu"), dense(4)]),
        "glu_gelu": ((5,), [dense(14), layer("glu", activation="gelu"), dense(4)]),
        "groupnorm": ((3, 5, 6), [layer("groupnorm", groups=3), dense(4)]),
        "groupnorm_instance": ((7, 4), [layer("groupnorm", groups=4, epsilon=1e-3), dense(3)]),
        "groupnorm_plain": ((4, 6), [dense(8), layer("groupnorm", groups=1, affine=False), dense(3)]),
        "groupnorm_vectors": ((9,), [dense(8), layer("groupnorm", groups=2), dense(3)]),
        "fourier_features": ((2,), [layer("fourier_features", units=7, scale=0.5, trainable=True), dense(3)]),
        "conv2d_reflect": ((5, 6, 2), [layer("conv2d", padding=[2, 1], padding_mode="reflect", **conv), dense(3)]),
        "conv2d_replicate": ((4, 5, 2), [layer("conv2d", padding=3, stride=2, padding_mode="replicate", **conv)]),
        "conv2d_circular": ((4, 3, 2), [layer("conv2d", padding=[1, 3], padding_mode="circular", **conv), dense(2)]),
        "conv1d_reflect": ((7, 2), [layer("conv1d", padding=2, padding_mode="reflect", **conv), dense(2)]),
        "conv_transpose2d": ((4, 3, 2), [layer("conv_transpose2d", **up), dense(3)]),
        "conv_transpose2d_stride": (
            (4, 3, 6),
            [layer("conv_transpose2d", stride=[2, 3], padding=1, output_padding=1, groups=2, activation="tanh", **up)],
        ),
        "conv_transpose2d_dilation": ((3, 4, 2), [layer("conv_transpose2d", dilation=[1, 2], stride=2, **up)]),
        "conv_transpose1d": ((5, 3), [layer("conv_transpose1d", stride=2, padding=1, **up), dense(2)]),
        "bidirectional_lstm": ((6, 3), [layer("bidirectional", layer=layer("lstm", units=4)), dense(2)]),
        "bidirectional_last": ((5, 2), [layer("bidirectional", layer=layer("rnn", units=3, output="last")), dense(2)]),
        "weight_norm": ((3,), [layer("weight_norm", layer=dense(7, "tanh")), dense(2)]),
        "weight_norm_images": ((4, 3, 2), [layer("weight_norm", layer=layer("conv2d", **conv)), dense(2)]),
        "spectral_norm": ((5,), [layer("spectral_norm", layer=dense(4, "tanh")), dense(2)]),
        "spectral_norm_images": ((3, 4, 3), [layer("spectral_norm", layer=layer("conv2d", **conv)), dense(3)]),
    }


def cases():
    """Return {case: (description, arrays)}."""
    result = {}
    for number, (name, network) in enumerate(networks().items()):
        for n in (1, 5) if number % 3 == 0 else (5,):
            result[f"{name}/mse/{n}"] = generated(name, *network, "mse", n, n == 5 and number % 2 == 0)
    return result
