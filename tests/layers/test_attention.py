"""Attention, embeddings, positions and tied logits beyond the contract: PyTorch's results, lengths, second derivatives,
decoding against the whole sequence, memory, and what is refused."""

import numpy as np
import pytest

import nbprop
from support import stored
from support.cases import Buffers, close, same_bits

pytestmark = pytest.mark.usefixtures("four_cores")
CASES = stored.load("attention")
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}


def attention_results(case, dtype, threads, spare):
    description, arrays = CASES[case]
    net = nbprop.network(description["shape"], nbprop.attention(description["heads"], description["causal"]))
    buffers, n = Buffers(), len(arrays["x"])
    plan = nbprop.plan(net, batch=n + spare, dtype=dtype, threads=threads)
    params, x, dy = (buffers.constant(arrays[name].astype(dtype)) for name in ("params", "x", "dy"))
    lengths = buffers.constant(arrays.get("lengths"))
    y, dx, grads = (buffers.poisoned(a.shape, dtype) for a in (dy, x, params))
    work = buffers.poisoned((plan.work_size,), dtype)
    nbprop.forward(plan, params, x, y, work, lengths=lengths)
    nbprop.backward(plan, params, x, dy, grads, dx, work, lengths=lengths)
    buffers.check()
    return {"output": y, "x_grad": dx, "grad": grads}


def lm(description):
    """Embedding, positions, one residual attention, tied logits."""
    return nbprop.network(
        description["shape"],
        nbprop.embedding(description["vocabulary"], description["width"]),
        nbprop.positions(),
        nbprop.residual(nbprop.attention(description["heads"])),
        nbprop.dense(description["vocabulary"], bias=description["bias"], share="0.embedding.weight.T"),
    )


def tied_results(case, dtype, threads, spare):
    description, arrays = CASES[case]
    buffers, n = Buffers(), len(arrays["x"])
    plan = nbprop.plan(lm(description), "softmax_cross_entropy", n + spare, dtype, threads)
    params, x, target = (buffers.constant(arrays[name]) for name in ("params", "x", "target"))
    params, x = params.astype(dtype), x.astype(np.uint8)
    y, grads = buffers.poisoned(arrays["output"].shape, dtype), buffers.poisoned(params.shape, dtype)
    work = buffers.poisoned((plan.work_size,), dtype)
    nbprop.forward(plan, params, x, y, work)
    work[:] = np.nan
    loss = nbprop.value_and_grad(plan, params, x, target, grads, work)
    buffers.check()
    return {"output": y, "grad": grads, "loss": np.float64(loss)}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", list(CASES))
def test_against_pytorch(case, dtype):
    run = tied_results if case.startswith("tied") else attention_results
    arrays, results = CASES[case][1], run(case, dtype, 1, 0)
    for name, got in results.items():
        wanted = arrays[name]
        if name == "output" and "lengths" in arrays:
            # PyTorch's mean over what is seen goes on behind the end; here the heads find 0.
            inside = np.arange(wanted.shape[1]) < arrays["lengths"][:, None]
            got, wanted = got[inside], wanted[inside]
        close(name, got, wanted, TOLERANCE[dtype])
    for threads, spare in ((2, 3), (4, 0)):
        other = run(case, dtype, threads, spare)
        for name, got in results.items():
            same_bits(name, other[name], got)


def test_behind_a_samples_length_the_heads_find_nothing():
    net = nbprop.network((40, 6), nbprop.attention(2, init="normal"))
    plan, params = nbprop.plan(net, batch=2), nbprop.init(net)
    bias = nbprop.views(net, params)["0.attention.output.bias"]
    bias[:] = np.arange(6)
    x, y = np.random.default_rng(0).standard_normal((2, 40, 6)), np.empty((2, 40, 6))
    lengths, work, changed = np.array([3, 33], np.int32), nbprop.workspace(plan), np.empty((2, 40, 6))
    nbprop.forward(plan, params, x, y, work, lengths=lengths)
    assert not y[0, 3:].any()
    assert not y[1, 33:].any()
    x[0, 3:], x[1, 33:] = np.nan, np.nan
    nbprop.forward(plan, params, x, changed, work, lengths=lengths)
    same_bits("what stands behind", changed, y)


def transformer(positions, causal=True, tied=True):
    """Two blocks of attention and dense layers with tied logits; float64 tests of everything that derives."""
    share = {"bias": False, "share": "0.embedding.weight.T"} if tied else {}
    return nbprop.network(
        (positions,),
        nbprop.embedding(7, 6),
        nbprop.positions("normal"),
        nbprop.residual(nbprop.attention(2, causal)),
        nbprop.residual(nbprop.dense(5, activation="gelu_tanh"), nbprop.dense(6)),
        nbprop.residual(nbprop.attention(3, causal, bias=False)),
        nbprop.dense(7, **share),
    )


@pytest.mark.parametrize(
    ("positions", "causal", "tied", "lengths"),
    [(5, True, True, None), (37, False, False, None), (131, True, True, None), (34, True, False, [34, 1, 20])],
)
def test_second_derivatives_are_differences_of_gradients(positions, causal, tied, lengths):
    net, n, step, rng = transformer(positions, causal, tied), 3, 1e-5, np.random.default_rng(3)
    plan = nbprop.plan(net, "softmax_cross_entropy", batch=n + 1, threads=2)
    params, v = nbprop.init(net, seed=1), rng.standard_normal(net.n_params)
    x, target = rng.integers(0, 7, (2, n, positions))
    lengths = None if lengths is None else np.array(lengths)
    high, low, out, work = *(np.empty(net.n_params) for _ in range(3)), np.full(plan.work_size, np.nan)
    nbprop.hvp(plan, params, v, x, target, out, work, lengths=lengths)
    nbprop.value_and_grad(plan, params + step * v, x, target, high, work, lengths=lengths)
    nbprop.value_and_grad(plan, params - step * v, x, target, low, work, lengths=lengths)
    close("hvp", out, (high - low) / (2 * step), 1e-6)
    y_dot, y_high, y_low = (np.empty((n, positions, 7)) for _ in range(3))
    work[:] = np.nan
    nbprop.jvp(plan, params, v, x, None, y_dot, work, lengths=lengths)
    nbprop.forward(plan, params + step * v, x, y_high, work, lengths=lengths)
    nbprop.forward(plan, params - step * v, x, y_low, work, lengths=lengths)
    close("jvp", y_dot, (y_high - y_low) / (2 * step), 1e-7)


def test_directions_of_x_alone():
    net = nbprop.network(
        *((4, 6), nbprop.positions("normal"), nbprop.attention(2), nbprop.dense(3)),
        nbprop.dense(6, share="2.dense.weight.T"),
    )
    step, rng, plan = 1e-5, np.random.default_rng(0), nbprop.plan(net, batch=2)
    params, work = nbprop.init(net), np.full(plan.work_size, np.nan)
    (x, dx), (y_dot, high, low) = rng.standard_normal((2, 2, 4, 6)), np.empty((3, 2, 4, 6))
    nbprop.jvp(plan, params, None, x, dx, y_dot, work)
    nbprop.forward(plan, params, x + step * dx, high, work)
    nbprop.forward(plan, params, x - step * dx, low, work)
    close("jvp", y_dot, (high - low) / (2 * step), 1e-8)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_decoding_gives_the_logits_of_the_whole_sequence(dtype):
    net, n, rng = transformer(131), 3, np.random.default_rng(0)
    params, x = nbprop.init(net, dtype=dtype), rng.integers(0, 7, (n, 131)).astype(np.int32)
    whole, y = nbprop.plan(net, batch=n, dtype=dtype), np.empty((n, 131, 7), dtype)
    nbprop.forward(whole, params, x, y, nbprop.workspace(whole))
    results = []
    for threads in (1, 2):
        plan = nbprop.plan(net, batch=n + 1, dtype=dtype, threads=threads, mode="decoding")
        state, work, one = nbprop.layer_state(plan), np.full(plan.work_size, np.nan, dtype), np.empty((n, 1, 7), dtype)
        state[:] = np.nan  # what no position has written is not read
        found = np.empty_like(y)
        for t in range(131):
            nbprop.forward(plan, params, np.ascontiguousarray(x[:, t : t + 1]), one, work, state, t)
            found[:, t] = one[:, 0]
        results.append(found)
    close("logits", results[0], y, TOLERANCE[dtype])
    same_bits("threads", results[1], results[0])


def test_memory_grows_with_the_positions_not_with_their_square():
    sizes = [nbprop.plan(nbprop.network((t, 8), nbprop.attention(2))).work_size for t in (1000, 2000, 4000)]
    assert sizes[2] - sizes[1] <= 2.1 * (sizes[1] - sizes[0])


REFUSED = {
    "heads": (lambda: nbprop.network((3, 10), nbprop.attention(4)), "4 heads do not divide 10 features"),
    "no heads": (lambda: nbprop.attention(0), "heads must be a positive integer, got 0"),
    "causal": (lambda: nbprop.attention(2, causal=1), "causal must be True or False, got 1"),
    "init": (lambda: nbprop.attention(2, init="small"), "init: unknown name 'small'"),
    "no sequence": (lambda: nbprop.network((4,), nbprop.attention(2)), r"\(positions, features\)"),
    "positions": (lambda: nbprop.network((4,), nbprop.positions()), r"\(positions, features\)"),
    "vocabulary": (lambda: nbprop.embedding(0, 3), "vocabulary must be a positive integer, got 0"),
    "not first": (
        lambda: nbprop.network((3,), nbprop.dense(2), nbprop.embedding(4, 3)),
        r"layer 1\.embedding takes integers, which only x holds; put it first",
    ),
    "tied, nothing there": (
        lambda: nbprop.network((3,), nbprop.embedding(4, 3), nbprop.dense(4, share="0.embeding.weight.T")),
        r"finds no 0\.embeding\.weight; did you mean '0\.embedding\.weight'",
    ),
    "tied, another shape": (
        lambda: nbprop.network((3,), nbprop.embedding(4, 3), nbprop.dense(5, share="0.embedding.weight.T")),
        r"needs shape \(5, 3\), but 0\.embedding\.weight has \(4, 3\)",
    ),
    "decoding without order": (
        lambda: nbprop.plan(nbprop.network((3, 4), nbprop.attention(2, causal=False)), mode="decoding"),
        r'mode="decoding" needs attention\(causal=True\)',
    ),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_does_not_fit_is_refused(what):
    make, message = REFUSED[what]
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize("wrong", [-1, 7, 255])
def test_an_index_outside_the_vocabulary_is_refused_before_anything_is_written(wrong):
    net = transformer(5)
    plan, params = nbprop.plan(net, "softmax_cross_entropy", batch=2), nbprop.init(net)
    x, target = np.zeros((2, 5), np.int16), np.zeros((2, 5), np.int16)
    x[1, 4] = wrong
    grads, work = np.full(net.n_params, np.nan), nbprop.workspace(plan)
    with pytest.raises(ValueError, match=rf"x must hold .* 0\.\.6.*{wrong}"):
        nbprop.value_and_grad(plan, params, x, target, grads, work)
    assert np.isnan(grads).all()


def test_descriptions_survive_json():
    net = transformer(5, causal=False)
    assert nbprop.Network.from_json(net.to_json()) == net
    for layer in (nbprop.attention(3, False, False, "normal"), nbprop.embedding(3, 2), nbprop.positions("zeros")):
        assert eval(repr(layer), vars(nbprop)) == layer
