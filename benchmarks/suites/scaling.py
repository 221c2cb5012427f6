"""How the time of a gradient grows with batch, width, depth, parameters and threads.

The dashboard fits an exponent to each: time ~ size^exponent.
"""

from __future__ import annotations

import numpy as np

from suites.feature import needed, same_as


class Scaling:
    """A tanh net, mse, float32: two hidden layers of 64, batch 128, except for what is varied."""

    timeout = 300

    def prepare(self, **varied: int) -> None:
        sizes = {"batch": 128, "width": 64, "depth": 2, "threads": 1} | varied
        with needed():
            import nbprop

            hidden = [nbprop.dense(sizes["width"], activation="tanh") for _ in range(sizes["depth"])]
            net = nbprop.network((16,), *hidden, nbprop.dense(4))
            plan = nbprop.plan(net, loss="mse", batch=sizes["batch"], dtype=np.float32, threads=sizes["threads"])
            self.value_and_grad = nbprop.value_and_grad
            params = nbprop.init(net, seed=0, dtype=np.float32)
            x, target = np.ones((sizes["batch"], 16), np.float32), np.ones((sizes["batch"], 4), np.float32)
            self.arguments = (plan, params, x, target, np.empty_like(params), nbprop.workspace(plan))
            self.value_and_grad(*self.arguments)

    def run(self) -> None:
        self.value_and_grad(*self.arguments)


class Batch(Scaling):
    params = ([1, 4, 16, 64, 256, 1024, 4096],)
    param_names = ("batch",)

    def setup(self, batch: int) -> None:
        self.prepare(batch=batch)

    def time_gradient(self, batch: int) -> None:
        self.run()


class Width(Scaling):
    params = ([8, 16, 32, 64, 128, 256, 512, 1024],)
    param_names = ("width",)

    def setup(self, width: int) -> None:
        self.prepare(width=width)

    def time_gradient(self, width: int) -> None:
        self.run()


class Depth(Scaling):
    params = ([1, 2, 4, 8, 16, 32],)
    param_names = ("depth",)

    def setup(self, depth: int) -> None:
        self.prepare(depth=depth)

    def time_gradient(self, depth: int) -> None:
        self.run()


class Threads(Scaling):
    """512 wide, so that there is work for several threads."""

    params = ([1, 2, 4],)
    param_names = ("threads",)

    def setup(self, threads: int) -> None:
        from harness import machine

        if threads > machine.cores():
            raise NotImplementedError(f"this process may use {machine.cores()} cores")
        self.prepare(threads=threads, width=512)

    @same_as("6403ed0082f5f8111c36a40c764d3d47fff257893687d3df31f454ea9ab703d7")
    def time_gradient(self, threads: int) -> None:
        self.run()


class Parameters:
    """The optimizer alone, on flat vectors from cache-resident to past every cache."""

    params = ([10**3, 10**4, 10**5, 10**6, 10**7],)
    param_names = ("parameters",)
    timeout = 300

    def setup(self, parameters: int) -> None:
        with needed():
            import nbprop

            self.adam = nbprop.adam
            self.state = nbprop.optimizer_state("adam", parameters, np.float32)
        self.params_, self.grads = np.ones(parameters, np.float32), np.full(parameters, 0.1, np.float32)
        self.adam(self.params_, self.grads, self.state, 0, 1e-3)

    def time_adam(self, parameters: int) -> None:
        self.adam(self.params_, self.grads, self.state, 1, 1e-3)
