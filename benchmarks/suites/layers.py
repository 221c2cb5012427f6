"""Each activation, loss and normalization on its own: forward and gradient, float32 and float64."""

from __future__ import annotations

import numpy as np

from suites.feature import needed

ACTIVATIONS = [
    "identity", "relu", "leaky_relu", "elu", "gelu", "gelu_tanh", "silu", "softplus", "sigmoid", "tanh",
]  # fmt: skip
LOSSES = ["mse", "softmax_cross_entropy", "binary_cross_entropy", "huber", "gaussian_nll"]


class Activations:
    """dense(64) with an activation on a batch of 128: only the activation differs."""

    params = (ACTIVATIONS, ["float32", "float64"])
    param_names = ("activation", "dtype")

    def setup(self, activation: str, dtype: str) -> None:
        with needed():
            import nbprop

            net = nbprop.network((64,), nbprop.dense(64, activation=activation))
            self.plan = nbprop.plan(net, loss="mse", batch=128, dtype=np.dtype(dtype))
            self.weights = nbprop.init(net, seed=0, dtype=np.dtype(dtype))
            self.work, self.grads = nbprop.workspace(self.plan), np.empty_like(self.weights)
            self.forward, self.value_and_grad = nbprop.forward, nbprop.value_and_grad
        self.x = np.random.default_rng(0).standard_normal((128, 64)).astype(dtype)
        self.y = np.empty_like(self.x)
        self.time_forward()
        self.time_gradient()

    def time_forward(self, *parameters: str) -> None:
        self.forward(self.plan, self.weights, self.x, self.y, self.work)

    def time_gradient(self, *parameters: str) -> None:
        self.value_and_grad(self.plan, self.weights, self.x, self.x, self.grads, self.work)


class Losses:
    """dense(10) on a batch of 128 with each loss."""

    params = (LOSSES,)
    param_names = ("loss",)

    def setup(self, loss: str) -> None:
        with needed():
            import nbprop

            net = nbprop.network((64,), nbprop.dense(10))
            self.plan = nbprop.plan(net, loss=loss, batch=128, dtype=np.float32)
            self.weights = nbprop.init(net, seed=0, dtype=np.float32)
            self.work, self.grads = nbprop.workspace(self.plan), np.empty_like(self.weights)
            self.value_and_grad = nbprop.value_and_grad
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((128, 64)).astype(np.float32)
        self.target = {
            "softmax_cross_entropy": rng.integers(0, 10, 128),
            "binary_cross_entropy": rng.integers(0, 2, (128, 10)).astype(np.float32),
            "gaussian_nll": rng.standard_normal((128, 5)).astype(np.float32),
        }.get(loss, rng.standard_normal((128, 10)).astype(np.float32))
        self.time_gradient(loss)

    def time_gradient(self, loss: str) -> None:
        self.value_and_grad(self.plan, self.weights, self.x, self.target, self.grads, self.work)


class Normalizations:
    """A normalization or dropout of (128, 16, 64) numbers and a dense layer of one output, forward and gradient."""

    params = (["layernorm", "rmsnorm", "batchnorm", "dropout"], ["float32", "float64"])
    param_names = ("layer", "dtype")

    def setup(self, layer: str, dtype: str) -> None:
        with needed():
            import nbprop

            net = nbprop.network((16, 64), getattr(nbprop, layer)(), nbprop.dense(1))
            self.plan = nbprop.plan(net, loss="mse", batch=128, dtype=np.dtype(dtype))
            self.weights = nbprop.init(net, seed=0, dtype=np.dtype(dtype))
            self.state = nbprop.layer_state(self.plan)
            self.work, self.grads = nbprop.workspace(self.plan), np.empty_like(self.weights)
            self.forward, self.value_and_grad = nbprop.forward, nbprop.value_and_grad
        self.x = np.random.default_rng(0).standard_normal((128, 16, 64)).astype(dtype)
        self.y = np.zeros((128, 16, 1), dtype)
        self.target = self.y.copy()
        self.time_forward()
        self.time_gradient()

    def time_forward(self, *parameters: str) -> None:
        self.forward(self.plan, self.weights, self.x, self.y, self.work, self.state)

    def time_gradient(self, *parameters: str) -> None:
        given = self.weights, self.x, self.target, self.grads, self.work
        self.value_and_grad(self.plan, *given, state=self.state)
