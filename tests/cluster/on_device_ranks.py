"""What test_device_ranks.py runs under mpiexec, in the simulator: `python on_device_ranks.py NAME`; rank 0 prints."""

import json
import os
import sys

import delayed
import nccl_stand_in
import numpy as np
import pytest
import turns
from mpi4py import MPI
from numba.cuda.simulator import kernel
from on_ranks import digest

import nbprop
import nbprop.cuda
from nbprop.cuda import fitting_on_ranks, toolkit, transports
from nbprop.optimizers.api import OPTIMIZERS
from support import cases

kernel.BlockManager.run, kernel.np = turns.run, turns.ShuffledBlocks()
COMM = MPI.COMM_WORLD
PIECES = 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(21, 3))
T, W = np.sin(X.sum(1, keepdims=True)), RNG.uniform(0, 2, 21)
W[:2] = 0
NET = nbprop.network((3,), nbprop.dense(17, "tanh"), nbprop.dense(1))
PLAIN = nbprop.network((3,), nbprop.dense(6, "tanh"), nbprop.dense(1))  # 31 parameters: no whole number of pairs
P0 = nbprop.init(PLAIN, seed=1)
RANKS = {"comm": COMM, "pieces": PIECES}
device = nbprop.cuda.to_device


def put(*arrays, dtype=np.float32):
    return [device(np.ascontiguousarray(array.astype(dtype))) for array in arrays]


def comms():
    """This job's ranks in groups of 1, of 2 and of 4, as far as there are."""
    yield MPI.COMM_SELF
    if COMM.size > 2:
        yield COMM.Split(COMM.rank // 2, COMM.rank)
    if COMM.size > 1:
        yield COMM


def same(name, run):
    """The result of run(comm), which must be the same in all groups of ranks."""
    found = [run(comm) for comm in comms()]
    assert all(other == found[0] for other in found), f"{name}: {found}"
    return found[0]


def whole_and_split(comm, batch=None):
    """x, target, weights and data=: all of it on each rank, and parts."""
    here = nbprop.rank_rows(comm, len(X), PIECES, batch)
    yield X, T, W, "whole"
    yield X[here], T[here], W[here], "split"


TRAININGS = {
    "plain": {},
    "shuffled not": {"shuffle": False, "validation": True, "patience": 3},
    "clipped": {"clip_norm": 0.1, "schedule": "cosine", "optimizer": "adamw"},
    "sharded": {"shard_update": True},
    "sharded, clipped": {"shard_update": True, "clip_norm": 0.1, "schedule": "cosine", "optimizer": "adamw"},
    "much": {"clip_value": 0.05, "l1": 1e-3, "max_norm": 1.0, "average": 0.9, "optimizer": "momentum"},
    "sharded, much": {
        **{"shard_update": True, "clip_value": 0.05, "l1": 1e-3, "max_norm": 1.0, "average": 0.9},
        "optimizer": "momentum",
    },
}
EQUAL = [("plain", "sharded"), ("clipped", "sharded, clipped"), ("much", "sharded, much")]


def trained(comm, kinds, data, transport="host", epochs=2):
    x, t, w, kind = data
    options = dict(kinds)
    if options.pop("validation", False):
        held = nbprop.rank_rows(comm, len(X), PIECES) if kind == "split" else slice(None)
        options["validation"] = tuple(put(X[held], T[held]))
    (params,) = put(nbprop.init(NET, seed=1))
    x, t, w = put(x, t, w)
    options |= {"comm": comm, "pieces": PIECES, "data": kind, "transport": transport}
    history = nbprop.fit(NET, params, x, t, "mse", weights=w, batch=8, epochs=epochs, **options)
    assert history.transport == transport
    return digest(params.to_host(), history.loss, history.validation_loss)


def trainings(*names):
    """`fit`, with what changes its steps."""
    found = {}
    for name in names or TRAININGS:
        for kind in (0, 1):
            found[name, kind] = same(
                name, lambda comm, n=name, k=kind: trained(comm, TRAININGS[n], [*whole_and_split(comm, 8)][k])
            )
    for one, other in EQUAL:
        if (one, 0) in found and (other, 0) in found:
            assert [found[one, k] for k in (0, 1)] == [found[other, k] for k in (0, 1)]
    return [found[key] for key in found]


def objectives():
    """`objective` and `minimize`, beside those of the CPU."""
    found = []
    for dtype, digits in ((np.float32, 2e-5), (np.float64, 1e-12)):
        plan, reference = (nbprop.plan(PLAIN, "mse", 4, dtype, target=target) for target in ("cuda", "cpu"))
        wanted = nbprop.objective(reference, *(a.astype(dtype) for a in (X, T, W)))(P0)
        for kind in (0, 1):

            def evaluated(comm, plan=plan, dtype=dtype, kind=kind, wanted=wanted, digits=digits):
                *columns, data = [*whole_and_split(comm)][kind]
                x, t, w = put(*columns, dtype=dtype)
                fun = nbprop.objective(plan, x, t, w, comm=comm, pieces=PIECES, data=data)
                loss, gradient = fun(P0)
                np.testing.assert_allclose(loss, wanted[0], rtol=digits)
                np.testing.assert_allclose(gradient, wanted[1], rtol=10 * digits, atol=digits)
                (theta,) = put(P0, dtype=dtype)
                there, on_device = fun(theta)
                assert there == loss
                np.testing.assert_array_equal(on_device.to_host(), gradient.astype(dtype))
                np.testing.assert_allclose(fun.loss(P0), loss, rtol=digits)
                np.testing.assert_array_equal(fun(P0)[1], gradient)
                return digest(loss, gradient)

            found.append(same("objective", evaluated))

    def minimized(comm):
        plan, (x, t, w, params) = nbprop.plan(PLAIN, "mse", 4, np.float32, target="cuda"), put(X, T, W, P0)
        result = nbprop.minimize(plan, params, x, t, weights=w, maxiter=2, comm=comm, pieces=PIECES, transport="mpi")
        assert result.fun < result.jac.size
        return digest(params.to_host(), result.fun)

    def with_lengths(comm):
        """The pieces of a batch have its mean over positions, not each its own."""
        net, lengths = nbprop.network((4, 2), nbprop.rnn(2), nbprop.dense(1)), RNG.integers(1, 5, 8)
        x, t = put(RNG.normal(size=(8, 4, 2)), RNG.normal(size=(8, 4, 1)))
        options = {"lengths": device(lengths), "lr": 0.1, "batch": 8, "epochs": 1}
        params, alone = put(nbprop.init(net, seed=1), nbprop.init(net, seed=1))
        history = nbprop.fit(net, params, x, t, "mse", "sgd", comm=comm, pieces=PIECES, **options)
        plain = nbprop.fit(net, alone, x, t, "mse", "sgd", **options)
        np.testing.assert_allclose(params.to_host(), alone.to_host(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(history.loss, plain.loss, rtol=1e-5)

    with_lengths(COMM)
    return [*found, same("minimize", minimized)]


# A layer of each way to compute, and what one block, several launches, and carried state do.
LAYERS = (
    *("dense", "dense_positions", "residual", "tied", "conv2d", "max_pool2d", "batchnorm", "layernorm", "embedding"),
    *("attention", "lstm", "gru_last", "prelu", "weight_norm", "loss_softmax_cross_entropy", "loss_gaussian_nll"),
)


def networks():
    """Gradients of networks of the contract tests, and a step of every optimizer."""
    for number, name in enumerate(LAYERS):
        net, loss = cases.CASES[name]
        modal = any(layer.modal for _, layer in net.nodes)
        mode = "inference" if modal else "training"
        plan = nbprop.plan(net, loss or "mse", 2, np.float32, mode=mode, target="cuda")
        x, target, weights = cases.data(plan, 6, np.random.default_rng(number), ties=False)
        columns = [device(a.astype(np.float32) if a.dtype.kind == "f" else a) for a in (x, target, weights)]
        params = nbprop.init(net, seed=number)
        state = nbprop.layer_state(plan) if plan.state_size else None

        def gradient(comm, plan=plan, given=(*columns, state), params=params):
            return digest(*nbprop.objective(plan, *given, comm=comm, pieces=PIECES)(params))

        same(name, gradient)
    for number, optimizer in enumerate(OPTIMIZERS):

        def train(comm, optimizer=optimizer, sharded=number % 2 == 1 and optimizer != "schedule_free_adamw"):
            params, x, t = put(P0, X[:8], T[:8])
            options = {"epochs": 1, "batch": 8, "pieces": PIECES, "shard_update": sharded, "comm": comm}
            nbprop.fit(PLAIN, params, x, t, "mse", optimizer, **options)
            return digest(params.to_host())

        same(optimizer, train)
    return [*LAYERS, *OPTIMIZERS]


def over(transport, kinds, delays=False):
    """A training and an objective by one transport; with delays, on streams that put work off as long as they may."""
    with pytest.MonkeyPatch.context() as patch:
        if delays:
            delayed.use(patch)
        data = next(whole_and_split(COMM))
        found = trained(COMM, TRAININGS[kinds], data, transport)
        plan, (x, t) = nbprop.plan(PLAIN, "mse", 4, np.float32, target="cuda"), put(X, T)
        fun = nbprop.objective(plan, x, t, comm=COMM, pieces=PIECES, transport=transport)
        assert fun.transport == transport
        return found + digest(*fun(P0))


def transported():
    """The same bits by each transport, and on streams that put work off; what NCCL was asked for."""
    with nccl_stand_in.nccl(COMM) as played:
        found = {
            f"{kinds}, {transport}, {delays}": over(transport, kinds, delays)
            for kinds in ("plain", "sharded")
            for transport in transports.TRANSPORTS
            for delays in (False, True)
        }
        assert played.module.Communicator.made == 1, "later calls use the communicator again"
        played.groups.clear()
        over("nccl", "sharded")
    return found, played.groups


def fitted(**options):
    """A training on all ranks, with other arguments."""
    given = {"params": P0, "x": X, "target": T} | {k: options.pop(k) for k in ("params", "x", "target") if k in options}
    return nbprop.fit(PLAIN, *put(*given.values()), "mse", batch=8, epochs=1, **(RANKS | options))


def refusals():
    """Errors that one rank finds, or all, and every rank raises."""
    last, found = COMM.rank == COMM.size - 1, {}

    def caught(name, call):
        try:
            call()
        except Exception as error:
            texts = COMM.allgather(f"{type(error).__name__}: {error}")
            found[name] = [texts[0], texts[-1]]
        else:
            raise AssertionError(f"{name}: no error")

    def with_nccl(hidden=False, **options):
        with nccl_stand_in.nccl(COMM, **options), pytest.MonkeyPatch.context() as patch:
            if hidden:
                patch.setitem(sys.modules, "nccl.core", None)
            fitted(transport="nccl")

    def patched(place, name, value, call):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, value)
            call()

    poisoned = X.copy()
    poisoned[7, 1] = np.nan
    other = P0 + (COMM.rank > 0)
    plan = nbprop.plan(PLAIN, "mse", 4, np.float32, target="cuda")
    fun = nbprop.objective(plan, *put(X, T), **RANKS)
    caught("differ", lambda: fitted(transport="host" if last else "mpi"))
    caught(
        "objectives differ", lambda: nbprop.objective(plan, *put(X, T), transport="host" if last else "mpi", **RANKS)
    )
    caught("unknown", lambda: fitted(transport="tcp"))
    caught("no binding", lambda: with_nccl(hidden=True))
    caught("no binding on one", lambda: with_nccl(hidden=last))
    caught("no library", lambda: with_nccl(library=None))
    caught("other library", lambda: with_nccl(library=f"2.{30 + COMM.rank}.0"))
    caught("one device", lambda: patched(toolkit, "identity_of_device", lambda: "GPU-7", fitted))
    few = patched, toolkit, "visible_devices", lambda: ["GPU-7"], lambda: nbprop.cuda.use_device_of_rank(COMM)
    caught("too few devices", lambda: few[0](*few[1:]))
    none = lambda: [] if last else ["GPU-7"]  # noqa: E731
    caught("no device on one", lambda: patched(toolkit, "visible_devices", none, few[-1]))
    caught("NaN on one", lambda: fitted(x=poisoned if last else X))
    shuffled = X[np.random.default_rng(COMM.rank).permutation(len(X))]
    caught("data differ", lambda: fitted(x=shuffled))
    caught("data of objectives differ", lambda: nbprop.objective(plan, *put(X, shuffled[:, :1]), **RANKS))
    caught("params differ", lambda: fitted(params=other))
    caught("theta differs", lambda: fun(put(other)[0]))
    host = [array.astype(np.float32) for array in (P0, X, T)]
    there = host if last else put(*host)
    caught("places differ", lambda: nbprop.fit(PLAIN, *there, "mse", batch=8, epochs=1, **RANKS))

    def full(*_):
        raise MemoryError("the device has no room")

    if last:
        caught("fails on one", lambda: patched(fitting_on_ranks.Bound, "enqueue", full, fitted))
        caught("objective fails on one", lambda: patched(fun, "_gradient", full, lambda: fun(P0)))
    else:
        caught("fails on one", fitted)
        caught("objective fails on one", lambda: fun(P0))
    assert np.isfinite(fun(P0)[0])  # after all this the ranks are still in step
    return found | {"devices": devices()}


def devices():
    """The number of the device that each rank takes, by what the ranks see."""
    found = {}
    shown = {
        "all": ["GPU-3", "GPU-5"],
        "its own": [f"GPU-{COMM.rank}"],
        "more": [f"GPU-{k}" for k in range(COMM.rank + 2)],
    }
    for name, seen in shown.items():
        with pytest.MonkeyPatch.context() as patch:
            selected = []
            patch.setattr(toolkit, "visible_devices", lambda seen=seen: seen)
            patch.setattr(toolkit, "select_device", selected.append)
            number = nbprop.cuda.use_device_of_rank(COMM)
        assert selected == [number]
        found[name] = COMM.allgather(number)
    return found


def broken():
    """NCCL fails on the last rank, where the others wait within it."""
    with nccl_stand_in.nccl(COMM, fails="send" if COMM.rank == COMM.size - 1 else None):
        fitted(transport="nccl")


def resumed(folder):
    """A training that stops after an epoch, and goes on with another number of ranks, sharded or not."""
    path, (straight,) = os.path.join(folder, "run.safetensors"), put(P0)
    options = {"batch": 8, "pieces": PIECES, "checkpoint": path, "resume": True, "optimizer": "adamw"}
    nbprop.fit(
        PLAIN, straight, *put(X, T), "mse", epochs=2, comm=COMM, **(options | {"checkpoint": None, "resume": False})
    )
    groups = (COMM, True), (MPI.COMM_SELF, False), (COMM, True)
    for epochs, (comm, sharded) in enumerate(groups):
        (params,) = put(P0)

        def stop(history, last=epochs):
            return last == 0

        if comm is COMM or COMM.rank == 0:
            history = nbprop.fit(
                PLAIN, params, *put(X, T), "mse", epochs=2, comm=comm, shard_update=sharded, callback=stop, **options
            )
            assert history.stopped == ("callback" if epochs == 0 else "epochs")
        COMM.Barrier()
        if epochs and (comm is COMM or COMM.rank == 0):
            np.testing.assert_array_equal(params.to_host(), straight.to_host())
    return digest(straight.to_host())


if __name__ == "__main__":
    result = globals()[sys.argv[1]](*sys.argv[2:])
    if COMM.rank == 0:
        print(json.dumps(result))
