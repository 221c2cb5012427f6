"""What test_ranks.py runs under mpiexec: `python on_ranks.py NAME [FOLDER]`; rank 0 prints what it found."""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

import nbprop
from nbprop.solvers import losses_of_data
from nbprop.training import loop as epochs

COMM = MPI.COMM_WORLD
PIECES = 16
RNG = np.random.default_rng(0)
X = RNG.normal(size=(301, 3))
T, W = np.sin(X.sum(1, keepdims=True)), RNG.uniform(0, 2, 301)
NET = nbprop.network((3,), nbprop.dense(8, "tanh"), nbprop.dense(1))
P0 = nbprop.init(NET, seed=1)
RANKS = {"comm": COMM, "pieces": PIECES}


def digest(*values):
    return [hashlib.blake2b(np.ascontiguousarray(value).tobytes(), digest_size=8).hexdigest() for value in values]


def both():
    """x, target, weights and data=, whole and split."""
    here = nbprop.rank_rows(COMM, len(X), PIECES)
    yield X, T, W, "whole"
    yield X[here], T[here], W[here], "split"


def solvers():
    """Objective, its derivatives, and every kind of solver."""
    found, plan = [], nbprop.plan(NET, loss="mse", batch=50)
    for x, t, w, data in both():
        rest = RANKS | {"data": data}
        fun = nbprop.objective(plan, x, t, w, **rest)
        loss, gradient = fun(P0)
        own = digest(loss, gradient, fun.hessp(P0, gradient), fun.loss(P0))
        alone = nbprop.objective(plan, X, T, W)(P0)
        np.testing.assert_allclose(loss, alone[0], rtol=1e-13)
        np.testing.assert_allclose(gradient, alone[1], rtol=1e-10, atol=1e-13)
        for method in ("L-BFGS", "L-BFGS-B", "trust-ncg"):
            params = P0.copy()
            result = nbprop.minimize(plan, params, x, t, method, weights=w, maxiter=12, seconds=600, **rest)
            own += digest(params, result.fun)
        for method in ("marquardt", "trf"):
            params = P0.copy()
            result = nbprop.least_squares(plan, params, x, t, method, weights=w, max_nfev=8, **rest)
            own += digest(params, result.cost)
        found.append(own)
    assert found[0] == found[1]
    return found[0]


def trainings():
    """`fit`, with what changes its steps."""
    x, t, w = (array.astype(np.float32) for array in (X, T, W))
    rows, held = (nbprop.rank_rows(COMM, len(X), PIECES, batch) for batch in (50, None))
    net = nbprop.network((3,), nbprop.dense(60, "tanh"), nbprop.dropout(0.1), nbprop.dense(1))
    found = []
    for kinds in (
        {},
        {"shuffle": False, "validation": "held", "patience": 3},
        {"clip_norm": 0.1, "schedule": "cosine", "optimizer": "adamw", "threads": 2},
        {"shard_update": True},
        {"shard_update": True, "clip_norm": 0.1, "schedule": "cosine", "optimizer": "adamw"},
        {
            "shard_update": True,
            "clip_value": 0.05,
            "l1": 1e-3,
            "max_norm": 1.0,
            "average": 0.9,
            "optimizer": "momentum",
        },
        {"clip_value": 0.05, "l1": 1e-3, "max_norm": 1.0, "average": 0.9, "optimizer": "momentum"},
    ):
        for data, here, there in (("whole", slice(None), slice(None)), ("split", rows, held)):
            options = dict(kinds)
            if "validation" in options:
                options["validation"] = (x[there], t[there])
            params = nbprop.init(net, seed=1, dtype=np.float32)
            history = nbprop.fit(
                net, params, x[here], t[here], "mse", weights=w[here], batch=50, epochs=4, data=data, **RANKS, **options
            )
            assert history.loss[-1] < history.loss[0]
            found += digest(params, history.loss, history.validation_loss)
    starts = [6 * k for k in range(7)]
    assert [found[k : k + 6] for k in (starts[3:6])] == [found[k : k + 6] for k in (0, starts[2], starts[6])]
    return found


def everything(which="some"):
    """Each network of the contract tests, each solver and each optimizer, on 1, 2 and 4 ranks of this job of 4.

    which: "all", or "some": on 1 rank and, in turns, on 2 or on 4; updates, in turns, sharded or not.
    """
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from nbprop.optimizers.api import OPTIMIZERS
    from nbprop.solvers.least_squares import _METHODS
    from nbprop.solvers.methods import METHODS
    from support import cases

    comms = MPI.COMM_SELF, COMM.Split(COMM.rank // 2, COMM.rank), COMM
    compared = []

    def same(name, run):
        chosen = comms if which == "all" else (comms[0], comms[1 + len(compared) % 2])
        found = [run(comm) for comm in chosen]
        assert all(other == found[0] for other in found), f"{name}: {found}"
        compared.append(name)

    for number, (name, (net, loss)) in enumerate(cases.CASES.items()):
        modal = any(layer.modal for _, layer in net.nodes)  # the loss must be one function of the parameters
        plan = nbprop.plan(net, loss=loss or "mse", batch=2, mode="inference" if modal else "training")
        rng = np.random.default_rng(number)
        x, target, weights = cases.data(plan, 9, rng, ties=False)
        params, state = nbprop.init(net, seed=number), cases.state_of(plan)

        def gradient(comm, plan=plan, given=(x, target, weights, state), params=params):
            return digest(*nbprop.objective(plan, *given, comm=comm, pieces=4)(params))

        same(name, gradient)

    plan = nbprop.plan(NET, loss="mse", batch=50)
    for method, row in METHODS.items():
        limit = {"maxiter": 3} if "maxiter" in row.options else {"maxfun": 9}

        def search(comm, method=method, limit=limit):
            params = P0.copy()
            result = nbprop.minimize(plan, params, X, T, method, weights=W, comm=comm, pieces=4, **limit)
            return digest(params, result.fun)

        same(method, search)
    for method in _METHODS:

        def squares(comm, method=method):
            params = P0.copy()
            result = nbprop.least_squares(plan, params, X, T, method, max_nfev=4, comm=comm, pieces=4)
            return digest(params, result.cost)

        same(method, squares)
    for number, optimizer in enumerate(OPTIMIZERS):
        ways = [False] if optimizer == "schedule_free_adamw" else [False, True]
        for sharded in ways if which == "all" else ways[number // 2 % len(ways) :][:1]:

            def train(comm, optimizer=optimizer, sharded=sharded):
                params = P0.copy()
                options = {"epochs": 1, "batch": 150, "pieces": 4, "shard_update": sharded}
                history = nbprop.fit(NET, params, X, T, "mse", optimizer, comm=comm, **options)
                return digest(params, history.loss)

            same(optimizer, train)

    def few(comm):
        """Three samples in four pieces: on four ranks, one has none."""
        params, (x, target) = P0.copy(), (X[:3], T[:3])
        nbprop.fit(NET, params, x, target, "mse", epochs=2, comm=comm, pieces=4, shard_update=True)
        return digest(params, *nbprop.objective(plan, x, target, comm=comm, pieces=4)(P0))

    same("few samples", few)

    rng = np.random.default_rng(3)
    over_positions = nbprop.network((5, 3), nbprop.rnn(3), nbprop.dense(1))
    sequences, lengths = rng.normal(size=(24, 5, 3)), rng.integers(1, 6, 24)
    gaps, classes = T.copy(), rng.integers(0, 4, 301)
    gaps[rng.random(301) < 0.6], classes[rng.random(301) < 0.6] = np.nan, -1
    gaps[:60], classes[:60] = np.nan, -1  # of the first batch, some pieces have no target at all
    classifier = nbprop.network((3,), nbprop.dense(4))
    for name, net, x, target, loss, options in (
        ("lengths", over_positions, sequences, rng.normal(size=(24, 5, 1)), "mse", {"lengths": lengths, "batch": 12}),
        ("missing", NET, X, gaps, nbprop.mse(missing="ignore"), {"weights": W}),
        ("ignored", classifier, X, classes, nbprop.softmax_cross_entropy(ignore_index=-1), {"shuffle": False}),
    ):

        def weighed(comm, net=net, data=(x, target), loss=loss, options=options):
            """The pieces of a batch have its mean, not each its own."""
            given = {"optimizer": "sgd", "lr": 0.1, "batch": 128, "epochs": 2, "shuffle": True} | options
            params, alone = (nbprop.init(net, seed=2) for _ in range(2))
            history = nbprop.fit(net, params, *data, loss, comm=comm, pieces=4, **given)
            plain = nbprop.fit(net, alone, *data, loss, **given)
            np.testing.assert_allclose(params, alone, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(history.loss, plain.loss, rtol=1e-10)
            return digest(params, history.loss)

        same(name, weighed)
    alone, plain = P0.copy(), P0.copy()
    nbprop.fit(NET, alone, X, T, "mse", epochs=2, comm=MPI.COMM_SELF, pieces=1)
    nbprop.fit(NET, plain, X, T, "mse", epochs=2)
    assert digest(alone) == digest(plain)  # one rank and one piece are no other training
    return compared


def compiled():
    """`value_and_grad_on_ranks` and a search in @njit code, over numba-mpi."""
    import numba

    @numba.njit
    def search(plan, data, theta, grads, work, state):
        loss = nbprop.value_and_grad_on_ranks(plan, data, theta, grads, work)
        for _ in range(20):
            if nbprop.lbfgs_step(state, theta, loss, grads) != 0:
                break
            loss = nbprop.value_and_grad_on_ranks(plan, data, theta, grads, work)
        return loss

    plan, found = nbprop.plan(NET, loss="mse", batch=16), []
    work, grads = nbprop.workspace(plan), np.empty(plan.n_params)
    for x, t, w, data in both():
        for weights in (w, None):
            rest = RANKS | {"data": data}
            held = nbprop.data_on_ranks(plan, x, t, weights, **rest)
            loss = nbprop.value_and_grad_on_ranks(plan, held, P0, grads, work)
            expected = nbprop.objective(plan, x, t, weights, **rest)(P0)
            assert digest(loss, grads) == digest(*expected)
            theta, state = P0.copy(), nbprop.lbfgs_state(P0.size)
            last = search(plan, held, theta, grads, work, state)
            assert last < loss / 2
            found.append(digest(theta, last))
    assert found[:2] == found[2:]
    wrong = P0 if COMM.rank < COMM.size - 1 else P0[:-1]  # the last rank's arguments do not fit: all say so
    with pytest.raises(ValueError, match="do not fit the plan, on this rank or another"):
        nbprop.value_and_grad_on_ranks(plan, held, wrong, grads, work)
    with pytest.raises(ValueError, match="comm must be MPI"):
        nbprop.data_on_ranks(plan, X, T)
    if COMM.size > 1:
        with pytest.raises(ValueError, match="comm must be MPI"):
            nbprop.data_on_ranks(plan, X, T, comm=COMM.Split(0, -COMM.rank))
    return found[0] + found[1]


def refusals():
    """Errors that one rank finds, and every rank raises."""
    plan, last, found = nbprop.plan(NET, loss="mse", batch=50), COMM.rank == COMM.size - 1, []

    def caught(call):
        try:
            call()
        except Exception as error:
            texts = COMM.allgather(f"{type(error).__name__}: {error}")
            found.append([texts[0], texts[-1]])
        else:
            raise AssertionError("no error")

    poisoned = X.copy()
    poisoned[7, 1] = np.nan
    x = poisoned if last else X
    caught(lambda: nbprop.objective(plan, x, T, **RANKS))
    caught(lambda: nbprop.fit(NET, P0.copy(), x, T, "mse", **RANKS))
    caught(lambda: nbprop.fit(NET, nbprop.init(NET, seed=COMM.rank), X, T, "mse", **RANKS))
    caught(lambda: nbprop.minimize(plan, nbprop.init(NET, seed=COMM.rank), X, T, **RANKS))
    caught(lambda: nbprop.fit(NET, P0.copy(), X[: 300 + COMM.rank], T[: 300 + COMM.rank], "mse", **RANKS))
    caught(lambda: nbprop.fit(NET, P0.copy(), X[:70], T[:70], "mse", data="split", **(RANKS | {"pieces": 7})))

    def callback(*_):
        if last:
            raise OSError("the disk is full")

    caught(lambda: nbprop.fit(NET, P0.copy(), X, T, "mse", epochs=2, callback=callback, **RANKS))
    caught(lambda: nbprop.minimize(plan, P0.copy(), X, T, callback=callback, **RANKS))
    fun = nbprop.objective(plan, X, T, **RANKS)
    caught(lambda: fun(P0 + (COMM.rank == 0)))
    caught(lambda: fun(P0) if last else fun.loss(P0))
    caught(lambda: nbprop.fit(NET, P0.copy(), X, T, "mse", comm=COMM, pieces=1))
    batchnorm = nbprop.network((3,), nbprop.dense(4), nbprop.batchnorm(), nbprop.dense(1))
    state = nbprop.layer_state(nbprop.plan(batchnorm, "mse", 64))
    caught(lambda: nbprop.fit(batchnorm, nbprop.init(batchnorm), X, T, "mse", batch=64, state=state, **RANKS))
    caught(lambda: nbprop.fit(NET, P0.copy(), X, T, "mse", seed=COMM.rank, **RANKS))
    caught(lambda: nbprop.fit(NET, P0.copy(), X, T, "mse", shard_update=COMM.rank == 0, **RANKS))
    state = nbprop.optimizer_state("adam", P0.size)
    caught(lambda: nbprop.fit(NET, P0.copy(), X, T, "mse", optimizer_state=state, shard_update=True, **RANKS))
    own = slice(0, 3 - 3 * last)  # of three samples, the last rank holds none
    caught(lambda: nbprop.objective(plan, X[own], T[own], data="split", **RANKS))
    rng, squares = np.random.default_rng(COMM.rank), nbprop.least_squares
    own = X[rng.permutation(len(X))]  # each rank has shuffled the data on its own
    for call in (
        lambda: nbprop.fit(
            nbprop.network((3,), nbprop.dense(8), nbprop.dense(1)) if last else NET, P0, X, T, "mse", **RANKS
        ),
        lambda: nbprop.fit(NET, P0, own, T, "mse", **RANKS),
        lambda: nbprop.fit(NET, P0, X, T, "mse", validation=(own, T), **RANKS),
        lambda: nbprop.objective(plan, own, T, **RANKS),
        lambda: squares(plan, P0.copy(), X, own[:, :1].copy(), **RANKS),
        lambda: nbprop.fit(NET, P0, X, T, "mse", weights=W if last else None, **RANKS),
        lambda: nbprop.fit(NET, P0, X, T, "mse", l2=0.1 * COMM.rank, **RANKS),
        lambda: nbprop.fit(NET, P0, X, T, "mse", lr_scale={"0.dense": 1.0 + COMM.rank}, **RANKS),
        lambda: nbprop.fit(NET, P0, X, T, "mse", trainable=np.full(P0.size, not last), **RANKS),
        lambda: nbprop.fit(NET, P0, X, T, "mse", max_norm=1.0 + COMM.rank, **RANKS),
    ):
        caught(call)
    with pytest.MonkeyPatch.context() as patch:
        if last:
            patch.setattr(nbprop, "__version__", "0.0.1")
        caught(lambda: nbprop.fit(NET, P0, X, T, "mse", **RANKS))

    def full(*_):
        raise MemoryError("no room")

    with pytest.MonkeyPatch.context() as patch:
        if last:  # amid the work of a step
            patch.setattr(epochs, "gradient_of", full)
            patch.setattr(losses_of_data, "value_and_grad", full)
        caught(lambda: nbprop.fit(NET, P0.copy(), X, T, "mse", epochs=1, **RANKS))
        caught(lambda: nbprop.minimize(plan, P0.copy(), X, T, maxiter=2, **RANKS))
    assert np.isfinite(fun(P0)[0])  # after all this the ranks are still in step
    return found


def hang(folder):
    """A training of which one rank never comes back from its callback."""
    Path(folder, str(os.getpid())).touch()
    wait = (lambda history: signal.pause()) if COMM.rank == 1 else None
    nbprop.fit(NET, P0.copy(), X, T, "mse", callback=wait, **RANKS)


def training(folder):
    """A training with a checkpoint that resumes; environment: STOP, at which epoch a signal comes, and to whom."""
    number, rank, epoch = json.loads(os.environ.get("STOP", "[0, 0, 0]"))

    def callback(history):
        if number and history.epochs == epoch and COMM.rank == rank:
            os.kill(os.getpid(), number)

    params = P0.copy()
    history = nbprop.fit(
        *(NET, params, X, T, "mse"),
        **{"epochs": 6, "batch": 50, "checkpoint": os.path.join(folder, "run.safetensors"), "resume": True},
        **{"checkpoint_seconds": 0.0, "callback": callback},
        **{"shard_update": bool(os.environ.get("SHARDED"))},
        **RANKS,
    )
    return digest(params, history.loss)


if __name__ == "__main__":
    result = globals()[sys.argv[1]](*sys.argv[2:])
    if COMM.rank == 0:
        print(json.dumps(result))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
