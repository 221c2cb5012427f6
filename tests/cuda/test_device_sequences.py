"""Sequences on the device against the CPU: lengths, state from call to call, losses over positions, decoding, `fit`."""

import numpy as np
import pytest

import nbprop
import nbprop.cuda
from support.cases import close

device = nbprop.cuda.to_device
N, T, C = 5, 3, 2
LENGTHS = np.array([3, 1, 2, 3, 1], np.int32)
WEIGHTS = np.array([1, 0.5, 0, 2, 1], np.float32)


def sequences(rng, n=N):
    """x with NaN beyond the lengths: what stands there may not matter."""
    x = rng.standard_normal((n, T, C)).astype(np.float32)
    for row, length in zip(x, LENGTHS, strict=True):
        row[length:] = np.nan
    return x


# rnn is wider than two of a simulated block's groups, so that its sums are made slice by slice and unit by unit.
LAYERS = {
    "rnn": nbprop.rnn(17, "relu", carry=True),
    "lstm": nbprop.lstm(9, carry=True),
    "gru": nbprop.gru(3, carry=True),
    "last": nbprop.gru(2, output="last", carry=True),
}


@pytest.mark.parametrize("case", LAYERS)
def test_lengths_and_carried_state(case):
    """Two calls in a row: the second one begins with the state of the first."""
    net, rng = nbprop.network((T, C), LAYERS[case], nbprop.dense(2)), np.random.default_rng(2)
    params = (nbprop.init(net) + 0.1 * rng.standard_normal(net.n_params)).astype(np.float32)
    shape = (N, *net.output_shape)
    calls = [(sequences(rng), rng.standard_normal(shape).astype(np.float32)) for _ in range(2)]
    found = {}
    for target, to in (("cpu", np.array), ("cuda", device)):
        plan = nbprop.plan(net, "mse", N + 1, np.float32, target=target)
        state, work = nbprop.layer_state(plan), nbprop.workspace(plan)
        given, grads, dx, losses = to(params), to(np.full_like(params, np.nan)), to(np.zeros_like(calls[0][0])), []
        for x, wanted in calls:
            data = to(x), to(wanted), grads, work, to(WEIGHTS)
            losses.append(nbprop.value_and_grad(plan, given, *data, state=state, lengths=to(LENGTHS)))
        arrays = {"grads": grads, "state": state, "dx": dx}
        x, dy = map(to, calls[0])
        nbprop.forward(plan, given, x, to(np.zeros(shape, np.float32)), work, state, lengths=to(LENGTHS))
        nbprop.backward(plan, given, x, dy, to(np.zeros_like(params)), dx, work, state=state, lengths=to(LENGTHS))
        found[target] = arrays | {"losses": np.array(losses)}
    for name, wanted in found["cpu"].items():
        array = found["cuda"][name]
        close(name, array if isinstance(array, np.ndarray) else array.to_host(), wanted, 1e-5)


def test_decoding():
    """One position a call; the layer state holds what the positions before left."""
    net, rng = nbprop.network((T, C), nbprop.lstm(3), nbprop.gru(2), nbprop.rnn(2)), np.random.default_rng(3)
    plan = nbprop.plan(net, None, 2, np.float32, mode="decoding", target="cuda")
    params, x = nbprop.init(net, dtype=np.float32), rng.standard_normal((2, T, C)).astype(np.float32)
    whole, cpu = np.empty((2, T, 2), np.float32), nbprop.plan(net, None, 2, np.float32)
    nbprop.forward(cpu, params, x, whole, nbprop.workspace(cpu))
    state, work, y = nbprop.layer_state(plan), nbprop.workspace(plan), nbprop.cuda.empty((2, 1, 2))
    for t in range(T):
        nbprop.forward(plan, device(params), device(x[:, t : t + 1]), y, work, state, t)
        close("y", y.to_host()[:, 0], whole[:, t], 1e-5)
    with pytest.raises(ValueError, match=r"forward: step must be a position in 0\.\.2"):
        nbprop.forward(plan, device(params), device(x[:, :1]), y, work, state, T)


def test_lengths_are_checked_before_anything_is_written():
    net = nbprop.network((T, C), nbprop.gru(2), nbprop.dense(1))
    plan = nbprop.plan(net, "mse", N, np.float32, target="cuda")
    grads, target, work = nbprop.cuda.zeros(net.n_params), nbprop.cuda.zeros((N, T, 1)), nbprop.workspace(plan)
    x, params = nbprop.cuda.zeros((N, T, C)), device(nbprop.init(net, dtype=np.float32))
    for lengths in (LENGTHS + 1, LENGTHS - 1):
        with pytest.raises(ValueError, match=rf"value_and_grad: lengths must hold lengths in 1\.\.{T}, got [04]"):
            nbprop.value_and_grad(plan, params, x, target, grads, work, lengths=device(lengths))
    assert not grads.to_host().any()


@pytest.mark.parametrize("shuffle", [True, False])
def test_fit_with_lengths_is_the_cpus(shuffle):
    """Carried state without shuffling; weights and lengths of held-out data count in its mean."""
    net = nbprop.network((T, C), nbprop.dropout(0.3), nbprop.gru(3, carry=not shuffle), nbprop.dense(1))
    rng, options = np.random.default_rng(4), {"batch": 3, "epochs": 2, "lr": 0.05, "shuffle": shuffle, "patience": 9}
    x, target = np.nan_to_num(sequences(rng)), rng.standard_normal((N, T, 1)).astype(np.float32)
    found = []
    for where, to in (("cpu", np.array), ("cuda", device)):
        params = to(nbprop.init(net, dtype=np.float32))
        state = nbprop.layer_state(nbprop.plan(net, "mse", 3, np.float32, target=where))
        held_out = to(x), to(target), to(WEIGHTS), to(LENGTHS)
        given = {"lengths": to(LENGTHS), "state": state, "validation": held_out}
        history = nbprop.fit(net, params, to(x), to(target), "mse", **options, **given)
        found.append([history.loss, history.validation_loss, params, state])
    for name, wanted, got in zip(("loss", "validation", "params", "state"), *found, strict=True):
        close(name, got if isinstance(got, list) else got.to_host(), wanted, 1e-5)
