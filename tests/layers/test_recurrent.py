"""Recurrent layers: PyTorch's results, lengths, state from call to call, second derivatives, losses over positions."""

import numpy as np
import pytest

import nbprop
from support import naive, naive_recurrent, stored
from support.cases import Buffers, close, data, same_bits
from support.contract import central_differences, parameters

pytestmark = pytest.mark.usefixtures("four_cores")
CASES = stored.load("recurrent")
LAYERS = {"rnn": nbprop.rnn, "lstm": nbprop.lstm, "gru": nbprop.gru}


def layer_of(description):
    kind, *activation = description["layer"].split("_")
    options = {"activation": activation[0]} if activation else {}
    return LAYERS[kind](description["units"], output=description["output"], carry=description["carry"], **options)


def padded(x, lengths):
    """x with NaN beyond the lengths: what stands there may not matter."""
    x = x.copy()
    for row, length in zip(x, lengths, strict=True):
        row[length:] = np.nan
    return x


def padding_is_zero(array, lengths):
    return all((row[length:] == 0).all() for row, length in zip(array, lengths, strict=True))


def run(plan, description, arrays):
    """Forward and backward of a stored case into poisoned buffers; what they wrote, the state as PyTorch orders it."""
    n, dtype, buffers = len(arrays["x"]), plan.dtype, Buffers()
    lengths = arrays.get("lengths")
    x = arrays["x"] if lengths is None else padded(arrays["x"], lengths)
    params, x, dy = (buffers.constant(a.astype(dtype)) for a in (arrays["params"], x, arrays["dy"]))
    state = None
    if description["carry"]:
        state = buffers.poisoned(
            (plan.state_size // plan.batch // description["units"], plan.batch, description["units"]), dtype
        )
        state[:, :n] = arrays["begin"].reshape(len(state), n, -1)
    flat = None if state is None else state.reshape(-1)
    work, y = buffers.poisoned((plan.work_size,), dtype), buffers.poisoned((n, *plan.output_shape), dtype)
    grads, dx = buffers.poisoned(params.shape, dtype), buffers.poisoned(x.shape, dtype)
    nbprop.forward(plan, params, x, y, work, flat, 0, lengths)
    nbprop.backward(plan, params, x, dy, grads, dx, work, False, flat, 0, lengths)
    buffers.check()
    out = {"output": y, "grad": grads, "x_grad": dx}
    if state is not None:
        out["end"] = state[:, :n].ravel()
        assert np.isnan(state[:, n:]).all(), "the state of samples that the call did not bring"
    if lengths is not None:
        assert padding_is_zero(dx, lengths)
        assert description["output"] == "last" or padding_is_zero(y, lengths)
    return out


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", list(CASES))
def test_pytorch(case, dtype):
    description, arrays = CASES[case]
    n, *shape = arrays["x"].shape
    net = nbprop.network(shape, layer_of(description))
    results = [
        run(nbprop.plan(net, None, batch, dtype, threads), description, arrays)
        for threads, batch in ((1, n), (1, n + 2), (2, n), (4, n + 3))
    ]
    for name, value in results[0].items():
        # float32: gradients through nine steps add up hundreds of roundings.
        close(name, value, arrays[name], 1e-12 if dtype == np.float64 else 2e-5)
        for other in results[1:]:
            same_bits(name, other[name], value)


@pytest.mark.parametrize("case", list(CASES))
def test_the_plain_reference_is_pytorchs(case):
    description, arrays = CASES[case]
    n, positions, _ = arrays["x"].shape
    begin = list(arrays["begin"].reshape(-1, n, description["units"]))
    lengths = arrays.get("lengths", np.full(n, positions))
    given = (description["layer"], arrays["params"], arrays["x"], begin, lengths, description["output"])
    y, end = naive_recurrent.forward(*given)
    close("output", y, arrays["output"], 1e-13)
    close("end", np.concatenate([state.ravel() for state in end]), arrays["end"], 1e-13)


@pytest.mark.parametrize("kind", list(LAYERS))
def test_against_the_plain_reference(kind):
    """More steps and odd sizes than PyTorch's results have."""
    n, positions, features, units = 7, 33, 3, 19
    net, rng = nbprop.network((positions, features), LAYERS[kind](units)), np.random.default_rng(1)
    plan, y = nbprop.plan(net, None, n, threads=2), np.empty((n, positions, units))
    params, lengths = parameters(plan, rng), rng.integers(1, positions + 1, n)
    x = rng.standard_normal((n, positions, features))
    begin = [np.zeros((n, units)) for _ in range(2 if kind == "lstm" else 1)]
    nbprop.forward(plan, params, padded(x, lengths), y, nbprop.workspace(plan), lengths=lengths)
    close("y", y, naive_recurrent.forward(kind, params, x, begin, lengths, "sequence")[0], 1e-12)


# -- lengths and losses --------------------------------------------------------------------------------------

N, T, C = 4, 5, 2
LENGTHS = np.array([5, 2, 4, 1])


def over_positions(kind, **options):
    return nbprop.network((T, C), LAYERS[kind](3, **options), nbprop.dense(4))


def batch_of(plan, rng):
    x, target, weights = data(plan, N, rng, ties=False)
    return padded(x, LENGTHS), target, weights


@pytest.mark.parametrize("loss", list(naive.LOSSES))
def test_a_loss_is_the_mean_over_the_positions_that_count(loss):
    plan, rng = nbprop.plan(over_positions("rnn"), loss, N + 1, threads=2), np.random.default_rng(2)
    params, work, y = parameters(plan, rng), nbprop.workspace(plan), np.empty((N, T, 4))
    x, target, weights = batch_of(plan, rng)
    grads = np.empty_like(params)
    nbprop.forward(plan, params, x, y, work, lengths=LENGTHS)
    for w in (None, weights):
        total = mass = 0.0
        for i, length in enumerate(LENGTHS):
            for t in range(length):
                each, _ = naive.loss_and_gradient(loss, y[i : i + 1, t], target[i : i + 1, t])
                total += each * (1.0 if w is None else w[i])
                mass += 1.0 if w is None else w[i]
        beyond = target.copy()
        if not plan.classes:
            beyond = padded(beyond, LENGTHS)
        got = nbprop.value_and_grad(plan, params, x, beyond, grads, work, w, lengths=LENGTHS)
        close("loss", got, total / mass, 1e-12)
        assert nbprop.value(plan, params, x, beyond, work, w, lengths=LENGTHS) == got

        def measure(w=w):
            return nbprop.value(plan, params, x, target, work, w, lengths=LENGTHS)

        close("grads", grads, central_differences(measure, params), 1e-7)
        whole = np.full(N, T)
        full = nbprop.value(plan, params, np.nan_to_num(x), target, work, w, lengths=whole)
        close("lengths of T", full, nbprop.value(plan, params, np.nan_to_num(x), target, work, w), 1e-14)


def test_a_network_that_ends_in_one_output_has_plain_weights():
    plan, rng = nbprop.plan(over_positions("gru", output="last"), "mse", N), np.random.default_rng(3)
    params, work, y = parameters(plan, rng), nbprop.workspace(plan), np.empty((N, 4))
    x, target, weights = batch_of(plan, rng)
    nbprop.forward(plan, params, x, y, work, lengths=LENGTHS)
    wanted, _ = naive.loss_and_gradient("mse", y, target, weights)
    close("loss", nbprop.value(plan, params, x, target, work, weights, lengths=LENGTHS), wanted, 1e-12)


def test_fit_weighs_held_out_batches_by_their_positions():
    net, rng = over_positions("rnn"), np.random.default_rng(4)
    plan = nbprop.plan(net, "mse", 7)
    params, x = parameters(plan, rng), rng.standard_normal((7, T, C))
    target, lengths = rng.standard_normal((7, T, 4)), np.array([1, 5, 2, 3, 1, 4, 4])
    held_out = (x, target, None, lengths)
    history = nbprop.fit(
        net, params, x, target, "mse", "sgd", lr=0.0, batch=3, epochs=1, lengths=lengths, validation=held_out
    )
    wanted = nbprop.value(plan, params, x, target, nbprop.workspace(plan), lengths=lengths)
    close("validation loss", history.validation_loss[-1], wanted, 1e-12)


# -- second derivatives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["sequence", "last"])
@pytest.mark.parametrize("kind", ["rnn", "rnn_sigmoid", "lstm", "gru"])
def test_derivatives_along_directions(kind, output):
    """jvp, hvp, gauss_newton_product against differences; lengths, weights and carried state are heeded."""
    kind, *activation = kind.split("_")
    options = {"activation": activation[0]} if activation else {}
    layers = (LAYERS[kind](3, carry=True, **options), LAYERS[kind](2, output=output, **options))
    net = nbprop.network((T, C), *layers, nbprop.dense(3))
    plan, rng = nbprop.plan(net, "softmax_cross_entropy", N), np.random.default_rng(5)
    params, work = parameters(plan, rng), nbprop.workspace(plan)
    x, target, weights = batch_of(plan, rng)
    begin = rng.standard_normal(plan.state_size)
    v, dx = rng.standard_normal(plan.n_params), rng.standard_normal(x.shape)
    step = 1e-5

    def state():
        return begin.copy()

    def moved(sign, what, *arguments):
        out = np.full_like(what, np.nan)
        if what.ndim > 1:
            nbprop.forward(plan, params + sign * step * v, x + sign * step * dx, out, work, state(), 0, LENGTHS)
        else:
            p = params + sign * step * v
            nbprop.value_and_grad(plan, p, x, target, out, work, weights, False, state(), 0, LENGTHS)
        return out

    kept = state()
    y_dot, out = np.empty((N, *plan.output_shape)), np.empty_like(params)
    for threads in (1, 4):
        threaded = nbprop.plan(net, plan.loss, N, threads=threads)
        work[:] = np.nan
        nbprop.jvp(threaded, params, v, x, dx, y_dot, work, kept, 0, LENGTHS)
        close("jvp", y_dot, (moved(1, y_dot) - moved(-1, y_dot)) / (2 * step), 1e-8)
        work[:] = np.nan
        nbprop.hvp(threaded, params, v, x, target, out, work, weights, kept, 0, LENGTHS)
        close("hvp", out, (moved(1, out) - moved(-1, out)) / (2 * step), 1e-7)
    same_bits("state", kept, begin)
    # v^T G v = y'^T H_L y', and H_L y' by a difference of the loss's gradients by y, here through the vjp of that.
    nbprop.jvp(plan, params, v, x, None, y_dot, work, kept, 0, LENGTHS)
    nbprop.gauss_newton_product(plan, params, v, x, target, out, work, weights, kept, 0, LENGTHS)
    y = np.empty_like(y_dot)
    nbprop.forward(plan, params, x, y, work, state(), 0, LENGTHS)
    counts = weights[:, None] * (np.arange(T) < LENGTHS[:, None]) if output == "sequence" else weights
    p = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
    along = (p * y_dot).sum(-1, keepdims=True)
    close("v G v", v @ out, ((p * y_dot * (y_dot - along)).sum(-1) * counts).sum() / counts.sum(), 1e-10)


@pytest.mark.parametrize("kind", list(LAYERS))
def test_rows_of_single_samples(kind):
    """jacobian and per_sample_grads take samples one by one, each with its own length and state."""
    net = nbprop.network((T, C), LAYERS[kind](2, carry=True))
    plan, rng = nbprop.plan(net, "mse", N), np.random.default_rng(6)
    params, work, alone = parameters(plan, rng), nbprop.workspace(plan), nbprop.plan(net, "mse", 1)
    x, target, _ = batch_of(plan, rng)
    begin = rng.standard_normal(plan.state_size)
    pieces = begin.reshape(-1, N, 2)
    rows, jacobian = np.empty((N, plan.n_params)), np.empty((N * T * 2, plan.n_params))
    state = begin.copy()
    nbprop.per_sample_grads(plan, params, x, target, rows, work, state, 0, LENGTHS)
    nbprop.jacobian(plan, params, x, jacobian, work, begin.copy(), 0, LENGTHS)
    dy = rng.standard_normal((N, T, 2))
    for i in range(N):
        here, grads = slice(i, i + 1), np.empty(plan.n_params)
        own, work_alone = pieces[:, i].flatten(), nbprop.workspace(alone)
        given = (work_alone, None, False, own, 0, LENGTHS[here])
        nbprop.value_and_grad(alone, params, x[here], target[here], grads, *given)
        close("per_sample_grads", rows[i], grads, 1e-13)
        close("state", state.reshape(-1, N, 2)[:, i].ravel(), own, 1e-14)
        own = pieces[:, i].flatten()
        nbprop.vjp(alone, params, x[here], dy[here], grads, None, work_alone, False, own, 0, LENGTHS[here])
        close("jacobian", dy[i].ravel() @ jacobian[i * T * 2 : (i + 1) * T * 2], grads, 1e-13)


# -- state ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(LAYERS))
def test_carried_state_joins_calls(kind):
    rng = np.random.default_rng(7)
    whole, half = (nbprop.network((t, C), LAYERS[kind](3, carry=True), nbprop.dense(2)) for t in (6, 3))
    plans = [nbprop.plan(net, "mse", N) for net in (whole, half)]
    params, x = parameters(plans[0], rng), rng.standard_normal((N, 6, C))
    y, parts = np.empty((N, 6, 2)), [np.empty((N, 3, 2)) for _ in range(2)]
    state, once = nbprop.layer_state(plans[1]), nbprop.layer_state(plans[0])
    assert not state.any()
    nbprop.forward(plans[0], params, x, y, nbprop.workspace(plans[0]), once)
    for k in range(2):
        piece = np.ascontiguousarray(x[:, 3 * k : 3 * k + 3])
        nbprop.forward(plans[1], params, piece, parts[k], nbprop.workspace(plans[1]), state)
    same_bits("halves", np.concatenate(parts, axis=1), y)
    same_bits("state", state, once)
    # The gradient of the second half alone, with its beginning held fast.
    work, dy, grads = nbprop.workspace(plans[1]), rng.standard_normal((N, 3, 2)), np.empty_like(params)
    begin = nbprop.layer_state(plans[1])
    nbprop.forward(plans[1], params, np.ascontiguousarray(x[:, :3]), parts[0], work, begin)
    first = begin.copy()
    nbprop.forward(plans[1], params, piece, parts[1], work, begin)
    nbprop.backward(plans[1], params, piece, dy, grads, None, work, False, begin)

    def along_dy():
        nbprop.forward(plans[1], params, piece, parts[1], nbprop.workspace(plans[1]), first.copy())
        return float((dy * parts[1]).sum())

    close("truncated", grads, central_differences(along_dy, params), 1e-7)


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("kind", list(LAYERS))
def test_decoding_gives_what_the_whole_sequence_gives(kind, carry):
    net = nbprop.network((T, C), LAYERS[kind](3, carry=carry), LAYERS[kind](2), nbprop.dense(2))
    plan, one = nbprop.plan(net, None, N), nbprop.plan(net, None, N + 1, mode="decoding")
    rng = np.random.default_rng(8)
    params, x, y = parameters(plan, rng), rng.standard_normal((N, T, C)), np.empty((N, T, 2))
    state = nbprop.layer_state(plan) if carry else None
    nbprop.forward(plan, params, x, y, nbprop.workspace(plan), state)
    cache, work, out = nbprop.layer_state(one), nbprop.workspace(one), np.empty((N, 1, 2))
    for again in range(2):
        for t in range(T):
            nbprop.forward(one, params, np.ascontiguousarray(x[:, t : t + 1]), out, work, cache, t)
            if again == 0 or not carry:
                same_bits(f"position {t}", out[:, 0], y[:, t])
    assert carry or not np.isnan(cache[: 3 * N]).any()


# -- descriptions --------------------------------------------------------------------------------------------


def test_initial_weights():
    net = nbprop.network((3, 6), nbprop.lstm(5), nbprop.lstm(4, unit_forget_bias=False))
    parts = nbprop.views(net, nbprop.init(net, seed=1))
    gates = np.split(parts["0.lstm.recurrent_weight"], 4, axis=1)
    for k, gate in enumerate(gates):
        close("orthogonal", gate @ gate.T, np.eye(5), 1e-14)
        assert all(np.abs(gate - other).max() > 0.1 for other in gates[:k])
    bound = np.sqrt(6 / (6 + 5))
    assert 0.9 * bound < np.abs(parts["0.lstm.weight"]).max() <= bound
    assert parts["0.lstm.bias"].tolist() == [0.0] * 5 + [1.0] * 5 + [0.0] * 10
    assert not parts["1.lstm.bias"].any()


def test_descriptions():
    net = nbprop.network(
        (3, 2), nbprop.rnn(4, activation="relu"), nbprop.lstm(3, carry=True), nbprop.gru(2, output="last")
    )
    assert nbprop.Network.from_json(net.to_json()) == net
    assert repr(net) == "network((3, 2), rnn(4, activation='relu'), lstm(3, carry=True), gru(2, output='last'))"
    assert net.n_params == (2 + 4 + 1) * 4 + (4 + 3 + 1) * 12 + (3 + 2 + 1) * 6 + 2


@pytest.mark.parametrize("kind", list(LAYERS))
def test_what_is_refused(kind):
    layer = LAYERS[kind]
    with pytest.raises(ValueError, match="units must be a positive integer, got 0"):
        layer(0)
    with pytest.raises(ValueError, match="output: unknown name 'lst'; did you mean 'last'"):
        layer(3, output="lst")
    with pytest.raises(TypeError, match="carry must be True or False, got 1"):
        layer(3, carry=1)
    with pytest.raises(ValueError, match=rf"0\.{kind} on an input of shape \(6,\): {kind} needs sequences: .*two axes"):
        nbprop.network((6,), layer(3))
    with pytest.raises(ValueError, match=rf"layer 0\.{kind} makes of one position \(3,\)"):
        nbprop.plan(nbprop.network((4, 2), layer(3, output="last")), mode="decoding")


def test_activations_that_need_their_argument_are_refused():
    with pytest.raises(ValueError, match="activation: unknown name 'gelu'"):
        nbprop.rnn(3, activation="gelu")
    with pytest.raises(TypeError, match=r"unit_forget_bias must be True or False, got 1\.0"):
        nbprop.lstm(3, unit_forget_bias=1.0)


WRONG = {
    "a sequence longer than the network's": ({"x": np.zeros((N, T + 1, C))}, r"x must have shape \(1\.\.4, 5, 2\)"),
    "a length beyond it": ({"lengths": np.array([5, 6, 1, 1])}, r"lengths must hold lengths in 1\.\.5, got 6"),
    "an empty sequence": ({"lengths": np.array([5, 0, 1, 1])}, r"lengths must hold lengths in 1\.\.5, got 0"),
    "too few lengths": ({"lengths": np.array([5, 1])}, "lengths must bring as many samples as x"),
    "the state of another network": ({"state": np.zeros(N * 5)}, r"state must have shape \(24,\), got .*layer_state"),
    "the state of another dtype": ({"state": np.zeros(N * 6, np.float32)}, "state must hold float64"),
    "no state": ({"state": None}, "state is needed"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_nothing_is_written_for_bad_input(case):
    given, message = WRONG[case]
    plan = nbprop.plan(over_positions("lstm", carry=True), "mse", N)
    state = np.full(plan.state_size, 0.5)
    arguments = {"x": np.zeros((N, T, C)), "state": state, "lengths": None} | given
    grads, work = np.full(plan.n_params, np.nan), np.full(plan.work_size, np.nan)
    x, target = arguments.pop("x"), np.zeros((N, T, 4))
    with pytest.raises((TypeError, ValueError), match=message):
        nbprop.value_and_grad(plan, nbprop.init(plan.net), x, target, grads, work, **arguments)
    assert np.isnan(grads).all()
    assert np.isnan(work).all()
    assert (state == 0.5).all()


def test_lengths_are_over_the_first_axis_of_x():
    plan = nbprop.plan(nbprop.network((6,), nbprop.reshape((3, 2)), nbprop.rnn(2)), batch=1)
    y = np.full((1, 3, 2), np.nan)
    with pytest.raises(ValueError, match="lengths is for networks with a layer that takes lengths over x's first axis"):
        nbprop.forward(plan, nbprop.init(plan.net), np.ones((1, 6)), y, nbprop.workspace(plan), lengths=np.array([2]))
    nbprop.forward(plan, nbprop.init(plan.net), np.ones((1, 6)), y, nbprop.workspace(plan))
    assert np.isfinite(y).all()


@pytest.mark.parametrize("kind", list(LAYERS))
def test_steps_large_enough_to_be_packed(kind):
    """Each thread packs into scratch of its own; a sample's bits are the same alone, packed and on two threads."""
    units, n = {"rnn": 400, "lstm": 200, "gru": 300}[kind], 100
    net, rng = nbprop.network((3, 5), LAYERS[kind](units)), np.random.default_rng(9)
    params = nbprop.init(net, seed=1, dtype=np.float32)
    x, dy = (rng.standard_normal((n, 3, width)).astype(np.float32) for width in (5, units))

    def outputs(plan, here):
        y, dx = np.empty_like(dy[here]), np.empty_like(x[here])
        work, grads = np.full(plan.work_size, np.nan, np.float32), np.empty_like(params)
        nbprop.forward(plan, params, x[here], y, work)
        nbprop.backward(plan, params, x[here], dy[here], grads, dx, work)
        return y, dx, grads

    plans = [nbprop.plan(net, None, n, np.float32, threads) for threads in (1, 2)]
    first, second = (outputs(plan, slice(None)) for plan in plans)
    for name, one, other in zip(("y", "dx", "grads"), first, second, strict=True):
        assert np.isfinite(one).all()
        same_bits(name, one, other)
    few = outputs(plans[0], slice(0, 7))
    same_bits("y of a few", few[0], first[0][:7])
    same_bits("dx of a few", few[1], first[1][:7])
