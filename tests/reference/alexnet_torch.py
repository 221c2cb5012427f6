"""Ten steps of AlexNet by PyTorch in float32: the cases of alexnet.npz.

Weights and images come from seeded generators of NumPy's, so that only losses need to be stored. Dropout is off.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

SIDE, SEED, BATCH, RATE, STEPS = 224, 0, 4, 0.001, 10
# filters, kernel, groups, and what F.conv2d takes besides; then normalized, pooled
CONVOLUTIONS = (
    (96, 11, 1, {"stride": 4, "padding": 2}, True, True),
    (256, 5, 2, {"padding": 2}, True, True),
    (384, 3, 1, {"padding": 1}, False, False),
    (384, 3, 2, {"padding": 1}, False, False),
    (256, 3, 2, {"padding": 1}, False, True),
)


def parameters(classes, width):
    """[(weight, bias)] in nbprop's layout: (kernel, kernel, channels / groups, filters), then (inputs, units)."""
    rng, found, channels = np.random.default_rng(SEED), [], 3

    def maps(count):
        return max(2, 2 * round(count * width / 2))

    def draw(*shape):
        weight = rng.standard_normal(shape, np.float32) * np.float32(0.01 / math.sqrt(width))
        found.append((weight, np.full(shape[-1], len(found) in (1, 3, 4, 5, 6), np.float32)))

    for filters, kernel, groups, *_ in CONVOLUTIONS:
        draw(kernel, kernel, channels // groups, maps(filters))
        channels = maps(filters)
    draw(36 * channels, maps(4096))
    draw(maps(4096), maps(4096))
    draw(maps(4096), classes)
    return [tuple(torch.tensor(part, requires_grad=True) for part in pair) for pair in found]


def logits(layers, x):
    for (weight, bias), (_, _, groups, options, normalized, pooled) in zip(layers, CONVOLUTIONS, strict=False):
        x = F.relu(F.conv2d(x, weight.permute(3, 2, 0, 1), bias, groups=groups, **options))
        # PyTorch divides alpha by the five channels that it sums.
        x = F.local_response_norm(x, 5, 5e-4, 0.75, 2.0) if normalized else x
        x = F.max_pool2d(x, 3, 2) if pooled else x
    x = x.permute(0, 2, 3, 1).flatten(1)
    for weight, bias in layers[5:-1]:
        x = F.relu(x @ weight + bias)
    return x @ layers[-1][0] + layers[-1][1]


def trajectory(classes, width):
    """The losses before each step, and after the last."""
    rng = np.random.default_rng(SEED + 1)
    x = torch.tensor(60 * rng.standard_normal((BATCH, SIDE, SIDE, 3), np.float32)).permute(0, 3, 1, 2)
    labels, layers = torch.tensor(rng.integers(0, classes, BATCH)), parameters(classes, width)
    optimizer = torch.optim.SGD([part for pair in layers for part in pair], RATE, 0.9, weight_decay=5e-4)
    losses = []
    for _ in range(STEPS + 1):
        optimizer.zero_grad()
        loss = F.cross_entropy(logits(layers, x), labels)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return np.array(losses)


def cases():
    """Return {case: (description, arrays)}."""
    settings = {"published": {"classes": 1000, "width": 1.0}, "narrow": {"classes": 10, "width": 0.125}}
    return {name: (options, {"losses": trajectory(**options)}) for name, options in settings.items()}
