"""Short trainings on some of the digits, which several files of tests take up and compare."""

import numpy as np
import pytest

import nbprop
import nbprop.data
from nbprop.training import trainer as running

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


class Stopped(Exception):
    """Raised from inside a run."""


def train_some_steps(monkeypatch, count, **options):
    """A run that ends from inside after so many steps; the history that its exception has."""
    done, run_steps = iter(range(count)), running.epochs.run_steps

    def cut(job, steps):
        if next(done, None) is None:
            raise Stopped
        return run_steps(job, steps)

    with monkeypatch.context() as patch:
        patch.setattr(running, "_PACE", 0.0)  # one step a call
        patch.setattr(running.epochs, "run_steps", cut)
        with pytest.raises(Stopped) as caught:
            train(**options)
    return caught.value.history
