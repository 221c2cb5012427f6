"""gradcheck finds gradients that are wrong, and says which: each fault of a table, in a layer, a loss or a tangent."""

import dataclasses
from typing import Any, ClassVar

import numba
import pytest

import nbprop
from nbprop.layers.activation import activation_backward, activation_forward, activation_second
from nbprop.losses import LOSSES
from nbprop.losses.base import Loss, row_scale, total_weight
from nbprop.networks.layer import REGISTRY, Layer
from nbprop.numerics.activations import TANH
from nbprop.numerics.copies import copy
from nbprop.program.kernel import kernel


@pytest.fixture(scope="module", autouse=True)
def registries():
    """Kinds that this module defines are forgotten after it."""
    before = dict(REGISTRY), dict(LOSSES)
    yield
    for registry, kept in zip((REGISTRY, LOSSES), before, strict=True):
        registry.clear()
        registry.update(kept)


# -- a layer: y = w relu(x) + b + x^2 / 2, by features; `fault` is a size, so that one compilation serves all ----------

LAYER_FAULTS = {
    "right": None,
    "x off by a thousandth": "x",
    "x without the square's term": "x",
    "x with its kink elsewhere": "x",
    "x of the last sample only": "x",
    "w off by a thousandth": r"1\.faulty\.w",
    "w without the first sample": r"1\.faulty\.w",
    "w with its kink elsewhere": r"1\.faulty\.w",
    "b of the wrong sign": r"1\.faulty\.b",
    "b never written": r"1\.faulty\.b",
}
NUMBERS = {name: number for number, name in enumerate(LAYER_FAULTS)}


@numba.njit
def faulty_forward(y, x, w, b, n, size, fault):
    for i in range(n * size):
        y[i] = w[i % size] * max(x[i], 0.0) + b[i % size] + 0.5 * x[i] * x[i]


@numba.njit
def faulty_backward(dx, dw, db, dy, x, y, w, b, n, size, fault):
    for j in range(size):
        dw[j] = 0.0
        if fault != 9:
            db[j] = 0.0
    for i in range(n * size):
        j = i % size
        slope = w[j] if x[i] > (0.5 if fault == 3 else 0.0) else 0.0
        dx[i] = dy[i] * (slope + (0.0 if fault == 2 else x[i])) * (1.001 if fault == 1 else 1.0)
        if fault == 4 and i < (n - 1) * size:
            dx[i] = 0.0
        if not (fault == 6 and i < size):
            dw[j] += dy[i] * (1.001 if fault == 5 else 1.0) * max(x[i], 0.5 if fault == 7 else 0.0)
        if fault != 9:
            db[j] += -dy[i] if fault == 8 else dy[i]


@pytest.fixture(scope="module")
def faulty(registries):
    return nbprop.custom(
        "faulty",
        faulty_forward,
        faulty_backward,
        parameters=lambda shape, **options: {"w": (shape, "ones"), "b": (shape, "zeros")},
        sizes=lambda shape, fault: (shape[0], fault),
    )


@pytest.mark.parametrize("loss", [None, "mse"])
@pytest.mark.parametrize("fault", LAYER_FAULTS)
def test_faults_of_a_layer(faulty, fault, loss):
    """With a loss, and without, where forward and backward are held against one another."""
    net = nbprop.network((3,), nbprop.dense(4), faulty(fault=NUMBERS[fault]))
    if LAYER_FAULTS[fault] is None:
        assert set(nbprop.gradcheck(net, loss)) == {"x", *net.slots}
    else:
        with pytest.raises(ValueError, match=rf"^gradcheck: {LAYER_FAULTS[fault]}, entry \d+: the gradient is "):
            nbprop.gradcheck(net, loss)


# -- a loss: the mean of (y - t)^2 + (y - t)^4 / 4 ---------------------------------------------

FIRST, SECOND = r"0\.dense\.\w+, entry \d+: the gradient", r"hvp of 0\.dense\.\w+, entry \d+: the derivative"
LOSS_FAULTS = {
    "right": None,
    "off by a thousandth": FIRST,
    "without the fourth power's term": FIRST,
    "without weights": FIRST,
    "curvature off by a thousandth": SECOND,
    "curvature without the fourth power's term": SECOND,
    "curvature without weights": SECOND,
}


@kernel
def faulty_loss(losses, dy, y, target, weights, n, rows, size, fault):
    mass = total_weight(weights, n) * rows
    for i in range(n * rows):
        losses[i] = 0.0
        scale = 1.0 / mass if fault == 3 else row_scale(weights, mass, rows, i)
        for j in range(i * size, (i + 1) * size):
            d = y[j] - target[j]
            losses[i] += (d * d + d**4 / 4) / size
            if dy.size > 0:
                dy[j] = scale * (2 * d + (0.0 if fault == 2 else d**3)) / size * (1.001 if fault == 1 else 1.0)


@kernel
def faulty_curvature(dy_dot, y_dot, y, target, weights, n, rows, size, fault):
    mass = total_weight(weights, n) * rows
    for i in range(n * rows):
        scale = 1.0 / mass if fault == 6 else row_scale(weights, mass, rows, i)
        for j in range(i * size, (i + 1) * size):
            d = y[j] - target[j]
            second = (2 + (0.0 if fault == 5 else 3 * d * d)) * (1.001 if fault == 4 else 1.0)
            dy_dot[j] = scale * second * y_dot[j] / size


@pytest.fixture(scope="module")
def faulty_loss_class(registries):
    @dataclasses.dataclass(frozen=True)
    class FaultyLoss(Loss):
        kind = "faulty_loss"
        kernel = faulty_loss
        curvature = faulty_curvature
        fault: int = 0

        def sizes(self, output_shape):
            return (*super().sizes(output_shape), self.fault)

    return FaultyLoss


@pytest.mark.parametrize("fault", LOSS_FAULTS)
def test_faults_of_a_loss(faulty_loss_class, fault):
    net = nbprop.network((3,), nbprop.dense(2))
    loss = faulty_loss_class(list(LOSS_FAULTS).index(fault))
    if LOSS_FAULTS[fault] is None:
        nbprop.gradcheck(net, loss)
    else:
        with pytest.raises(ValueError, match=rf"^gradcheck: {LOSS_FAULTS[fault]} is "):
            nbprop.gradcheck(net, loss)


# -- tangents: a tanh whose derivatives along a direction are wrong ---------------------------------------------

TANGENT_FAULTS = {
    "right": None,
    "the output's without its slope": "jvp, entry",
    "the gradient's without its curvature": r"hvp of 0\.dense\.weight, entry",
}


@pytest.fixture(scope="module")
def faulty_tanh(registries):
    @dataclasses.dataclass(frozen=True)
    class FaultyTanh(Layer):
        kind = "faulty_tanh"
        tangents = True
        checks: ClassVar[dict[str, Any]] = {}
        fault: str = "right"

        def lower(self, build, x, path, names):
            sizes, y = (x.size, TANH), build.value(x.shape)
            build.emit(activation_forward, (y.buffer,), (x.buffer,), sizes)
            if build.with_tangents:
                build.emit(copy, (build.new_tangent(y.buffer),), (build.whole_tangent(x.buffer),), (x.size,))
                if self.fault != "the output's without its slope":
                    build.emit(activation_backward, (), (y.buffer,), sizes, inplace=(build.tangent(y.buffer),))

            def rule(dy):
                if build.with_tangents and self.fault != "the gradient's without its curvature":
                    reads, pair = (y.buffer, build.tangent(y.buffer)), (build.tangent(dy), dy)
                    build.emit(activation_second, (), reads, sizes, inplace=pair)
                else:
                    for buffer in (dy, build.tangent(dy)) if build.with_tangents else (dy,):
                        build.emit(activation_backward, (), (y.buffer,), sizes, inplace=(buffer,))
                build.accumulate_gradient(x, dy)

            build.on_backward(y, rule)
            return y

    return FaultyTanh


@pytest.mark.parametrize("fault", TANGENT_FAULTS)
def test_faults_of_tangents(faulty_tanh, fault):
    net = nbprop.network((3,), nbprop.dense(4), faulty_tanh(fault), nbprop.dense(2))
    if TANGENT_FAULTS[fault] is None:
        nbprop.gradcheck(net, "mse")
    else:
        with pytest.raises(ValueError, match=f"^gradcheck: {TANGENT_FAULTS[fault]}"):
            nbprop.gradcheck(net, "mse")
