"""Losses and gradients of layers on images and sequences by PyTorch, in float64: the cases of images.npz.

Images are NHWC here and NCHW in PyTorch; sequences are images of one row.
"""

import networks_torch
import torch.nn.functional as F
from networks_torch import ACTIVATIONS, generated, layer_dense


def pair(layer, name, default):
    """(rows, columns) of a setting; a sequence has one row."""
    value = layer.get(name, default)
    values = value if isinstance(value, list) else [value] * (1 if layer["type"].endswith("1d") else 2)
    neutral = 0 if name == "padding" else 1
    return tuple(values) if len(values) == 2 else (neutral, values[0])


def channels_first(x):
    """NCHW from NHWC, or from (n, time, channels)."""
    return (x[:, None] if x.dim() == 3 else x).permute(0, 3, 1, 2)


def channels_last(y, x):
    y = y.permute(0, 2, 3, 1)
    return y[:, 0] if x.dim() == 3 else y


def run_conv(layer, x, parameters):
    kernel, stride = pair(layer, "kernel", None), pair(layer, "stride", 1)
    dilation, groups = pair(layer, "dilation", 1), layer.get("groups", 1)
    shape = (*kernel, x.shape[-1] // groups, layer["filters"])
    w, b = parameters.take(*shape), parameters.take(layer["filters"])
    image = channels_first(x)
    if layer.get("padding") == "same":
        total = [
            max(0, (-(-extent // s) - 1) * s + d * (k - 1) + 1 - extent)
            for extent, k, s, d in zip(image.shape[2:], kernel, stride, dilation, strict=True)
        ]
        (top, bottom), (left, right) = ((size // 2, size - size // 2) for size in total)
        image, padding = F.pad(image, (left, right, top, bottom)), (0, 0)
    else:
        padding = pair(layer, "padding", 0)
    z = F.conv2d(image, w.permute(3, 2, 0, 1), b, stride, padding, dilation, groups)
    return ACTIVATIONS[layer.get("activation", "identity")](channels_last(z, x))


def run_pool(layer, x, parameters):
    pool = F.max_pool2d if layer["type"].startswith("max") else F.avg_pool2d
    kernel = pair(layer, "kernel", None)
    stride = pair(layer, "stride", None) if "stride" in layer else kernel
    return channels_last(pool(channels_first(x), kernel, stride, pair(layer, "padding", 0)), x)


def run_global(layer, x, parameters):
    axes = tuple(range(1, x.dim() - 1))
    if "avg" in layer["type"]:
        return x.mean(dim=axes)
    return F.adaptive_max_pool2d(channels_first(x), 1)[:, :, 0, 0]


def run_norm(layer, x, parameters):
    """PyTorch divides alpha by the number of channels that it sums."""
    size, alpha = layer["size"], layer["alpha"]
    y = F.local_response_norm(channels_first(x), size, size * alpha, layer["beta"], layer["k"])
    return channels_last(y, x)


networks_torch.LAYERS |= {
    "conv2d": run_conv,
    "conv1d": run_conv,
    "max_pool2d": run_pool,
    "max_pool1d": run_pool,
    "avg_pool2d": run_pool,
    "avg_pool1d": run_pool,
    "global_max_pool": run_global,
    "global_avg_pool": run_global,
    "local_response_norm": run_norm,
}


def conv(filters, kernel, axes=2, **options):
    return {"type": f"conv{axes}d", "filters": filters, "kernel": kernel, **options}


def pool(kind, kernel, axes=2, **options):
    return {"type": f"{kind}_pool{axes}d", "kernel": kernel, **options}


def networks():
    """{name: (input shape, layers)}; odd sizes, windows that leave a rest, overlaps and gaps."""
    flat, dense = {"type": "flatten"}, layer_dense
    convolutions = {
        "plain": ((6, 5, 3), [conv(5, 3)]),
        "one_channel": ((7, 6, 1), [conv(3, 5, padding=2, activation="relu")]),
        "strided": ((8, 7, 2), [conv(5, [3, 2], stride=[2, 3], padding=[1, 0], activation="tanh"), conv(3, 2)]),
        "dilated": (
            (9, 8, 3),
            [conv(4, [2, 3], dilation=[3, 2], padding=1, activation="tanh"), conv(2, 3, dilation=2)],
        ),
        "groups": ((5, 6, 4), [conv(6, 3, groups=2, padding=1, activation="relu"), conv(4, 2, groups=2, stride=2)]),
        "depthwise": ((5, 5, 3), [conv(6, 3, groups=3, padding=1), conv(3, 1, groups=3)]),
        "same": ((5, 6, 2), [conv(3, [4, 3], padding="same", activation="tanh"), conv(2, 3, padding="same", stride=2)]),
        "pointwise": ((3, 4, 5), [conv(7, 1, activation="relu"), conv(2, 1, stride=2), conv(3, 1, padding=1)]),
        "whole_image": ((3, 4, 5), [conv(7, [3, 4])]),
        "wide": ((4, 3, 17), [conv(35, 2, padding=1, activation="relu")]),
        "deep": ((3, 3, 31), [conv(2, 3)]),
        "sequence": ((9, 3), [conv(5, 4, 1, padding=2, stride=2, activation="tanh"), conv(2, 2, 1, dilation=2)]),
        "sequence_same": ((7, 4), [conv(6, 4, 1, padding="same", groups=2), conv(3, 3, 1, padding="same", stride=3)]),
    }
    pools = {
        "max": ((5, 7, 3), [pool("max", 2)]),
        "max_overlap": ((7, 8, 3), [pool("max", 3, stride=2)]),
        "max_padded": ((6, 5, 5), [pool("max", [3, 2], stride=[1, 3], padding=1), conv(2, 2)]),
        "max_gaps": ((7, 7, 17), [pool("max", 2, stride=3)]),
        "max_sequence": ((8, 3), [pool("max", 3, 1, stride=2, padding=1)]),
        "avg": ((5, 7, 3), [pool("avg", 2)]),
        "avg_padded": ((6, 5, 18), [pool("avg", [3, 2], stride=[1, 3], padding=1)]),
        "avg_sequence": ((8, 3), [pool("avg", 3, 1, stride=2, padding=1)]),
        "global_max": ((3, 5, 4), [{"type": "global_max_pool"}, dense(3)]),
        "global_avg": ((3, 5, 4), [{"type": "global_avg_pool"}, dense(3)]),
        "global_sequence": ((5, 3), [conv(4, 2, 1, activation="tanh"), {"type": "global_max_pool"}]),
    }
    norm = {"type": "local_response_norm", "size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}
    norms = {
        "krizhevsky": ((3, 2, 9), [norm]),
        "strong": ((3, 2, 7), [norm | {"size": 3, "alpha": 0.5, "beta": 0.6, "k": 1.0}, dense(3)]),
        "even": ((2, 5), [norm | {"size": 4, "alpha": 0.3, "beta": 0.5}]),
        "few_channels": ((2, 2, 3), [norm | {"size": 9, "alpha": 0.2, "beta": 1.0}]),
    }
    lenet = [conv(3, 3, padding=1, activation="tanh"), pool("max", 2), conv(4, 3), flat, dense(5, "relu"), dense(4)]
    return (
        {f"conv/{name}": network for name, network in convolutions.items()}
        | {f"pool/{name}": network for name, network in pools.items()}
        | {f"norm/{name}": network for name, network in norms.items()}
        | {"lenet": ((8, 7, 1), lenet)}
    )


def cases():
    """Return {case: (description, arrays)}."""
    result = {}
    for number, (name, network) in enumerate(networks().items()):
        for n in (1, 5) if number % 3 == 0 else (5,):
            result[f"{name}/mse/{n}"] = generated(name, *network, "mse", n, n == 5 and number % 2 == 0)
    return result
