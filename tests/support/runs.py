"""Short trainings on some of the digits, which several files of tests take up and compare."""

import numpy as np

import nbprop
import nbprop.data

LOSS = "softmax_cross_entropy"
X, Y = nbprop.data.digits()
X, Y = X[:300], Y[:300]
NET = nbprop.network((64,), nbprop.dense(16, activation="tanh"), nbprop.dense(10))


def start(net=NET, seed=0, dtype=np.float32):
    return nbprop.init(net, seed, dtype)


def train(net=NET, x=X, y=Y, params=None, **options):
    """(params, history) of a short run."""
    params = start(net) if params is None else params
    return params, nbprop.fit(net, params, x, y, **{"loss": LOSS, "lr": 0.01, "batch": 32, "epochs": 4} | options)
