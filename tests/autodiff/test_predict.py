"""`predict`: chunk by chunk what one walk of all samples gives; classes and probabilities as the loss has them."""

import tracemalloc

import numpy as np
import pytest

import nbprop

dense = nbprop.dense
CLASSIFIER = nbprop.network((3,), dense(5, "tanh"), dense(4))
NORMED = nbprop.network((3,), dense(5), nbprop.batchnorm(), nbprop.dropout(0.5), dense(2))
SEQUENCES = nbprop.network((6, 3), nbprop.gru(4), dense(2))
CARRIED = nbprop.network((6, 3), nbprop.rnn(4, carry=True), dense(2))
WORDS = nbprop.network((4,), nbprop.embedding(7, 3), nbprop.flatten(), dense(2))


def at_once(net, params, x, state=None, lengths=None):
    plan = nbprop.plan(net, batch=len(x), dtype=params.dtype, mode="inference")
    y = np.empty((len(x), *net.output_shape), params.dtype)
    if state is None and plan.state_size:
        state = nbprop.layer_state(plan)
    nbprop.forward(plan, params, x, y, nbprop.workspace(plan), state, lengths=lengths)
    return y


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("net", [CLASSIFIER, NORMED, SEQUENCES, CARRIED, WORDS])
def test_chunks_give_what_one_walk_gives(net, dtype):
    rng, params = np.random.default_rng(0), nbprop.init(net, seed=1, dtype=dtype)
    shape = (23, *net.input_shape)
    x = rng.integers(0, 7, shape) if net is WORDS else rng.standard_normal(shape).astype(dtype)
    lengths = rng.integers(1, 7, 23) if net is SEQUENCES else None
    state = None
    if net is NORMED:
        training = nbprop.plan(net, "mse", batch=8, dtype=dtype)
        state, y = nbprop.layer_state(training), np.zeros((23, 2), dtype)
        nbprop.fit(net, params, x, y, "mse", epochs=2, batch=8, state=state)
    expected = at_once(net, params, x, state, lengths)
    tolerance = 20 * np.finfo(dtype).eps * np.abs(expected).max()
    for batch in (1, 5, 23, 1024):
        y = nbprop.predict(net, params, x, batch, state=state, lengths=lengths, threads=2)
        assert y.dtype == dtype
        assert np.abs(y - expected).max() <= tolerance


def test_state_of_any_batch(tmp_path):
    """What fit has left, what load_state gives, and its front alone are the same state; a part of it is none."""
    params, x = nbprop.init(NORMED), np.random.default_rng(0).standard_normal((7, 3))
    state = nbprop.layer_state(nbprop.plan(NORMED, "mse", batch=4))
    state[:] = np.arange(1, 1 + len(state))
    nbprop.save(tmp_path / "m.safetensors", NORMED, params, state)
    loaded = nbprop.load_state(tmp_path / "m.safetensors", nbprop.plan(NORMED, mode="inference"))
    expected = nbprop.predict(NORMED, params, x, state=state)
    assert (nbprop.predict(NORMED, params, x, state=loaded) == expected).all()
    with pytest.raises(ValueError, match="predict: state must have shape"):
        nbprop.predict(NORMED, params, x, state=state[:-1])
    with pytest.raises(TypeError, match="predict: state is needed for this network"):
        nbprop.predict(NORMED, params, x)
    carried = nbprop.plan(CARRIED, batch=5, mode="inference")
    x, params = np.ones((3, 6, 3)), nbprop.init(CARRIED)
    old = np.full_like(nbprop.layer_state(carried), 0.5)
    assert (nbprop.predict(CARRIED, params, x, state=old) == nbprop.predict(CARRIED, params, x)).all()


def test_classes_and_probabilities():
    """Against softmax and sigmoid in float64; huge logits neither overflow nor become NaN."""
    params, x = nbprop.init(CLASSIFIER), np.random.default_rng(0).standard_normal((9, 3))
    params[-4:] += [0, 800, -800, 0]
    y = nbprop.predict(CLASSIFIER, params, x)
    for loss in ("softmax_cross_entropy", nbprop.softmax_cross_entropy(), "kl_divergence"):
        found = nbprop.predict(CLASSIFIER, params, x, 4, "probabilities", loss)
        assert np.allclose(found, np.exp(y - np.logaddexp.reduce(y, axis=1, keepdims=True)), rtol=1e-12, atol=0)
        classes = nbprop.predict(CLASSIFIER, params, x, 4, "classes", loss)
        assert (classes.dtype, classes.tolist()) == (np.int64, y.argmax(1).tolist())
    found = nbprop.predict(CLASSIFIER, params, x, 4, "probabilities", "binary_cross_entropy")
    assert np.allclose(found, 1 / (1 + np.exp(-y.astype(np.longdouble))), rtol=1e-12, atol=1e-300)
    classes = nbprop.predict(CLASSIFIER, params, x, 4, "classes", "binary_cross_entropy")
    assert classes.tolist() == (y > 0).astype(int).tolist()


def test_losses_without_classes_are_refused():
    params, x = nbprop.init(CLASSIFIER), np.zeros((2, 3))
    with pytest.raises(ValueError, match="kind 'classes' needs a loss of classes; with mse outputs are numbers"):
        nbprop.predict(CLASSIFIER, params, x, kind="classes", loss="mse")
    with pytest.raises(ValueError, match=r"kind 'probabilities' depends on what .* give its loss"):
        nbprop.predict(CLASSIFIER, params, x, kind="probabilities")


def test_out_is_written_in_place_or_refused(tmp_path):
    params, x = nbprop.init(CLASSIFIER), np.random.default_rng(0).standard_normal((9, 3))
    expected = nbprop.predict(CLASSIFIER, params, x)
    out = np.empty((9, 4))
    assert nbprop.predict(CLASSIFIER, params, x, out=out) is out
    assert (out == expected).all()
    mapped = np.lib.format.open_memmap(tmp_path / "y.npy", "w+", shape=(9, 4))
    np.save(tmp_path / "x.npy", x)
    nbprop.predict(CLASSIFIER, params, np.load(tmp_path / "x.npy", mmap_mode="r"), 2, out=mapped)
    assert (np.load(tmp_path / "y.npy") == expected).all()
    for wrong in (np.empty((9, 3)), np.empty((9, 4), np.float32), np.empty((4, 9)).T, [1]):
        with pytest.raises((ValueError, TypeError), match="predict: out"):
            nbprop.predict(CLASSIFIER, params, x, out=wrong)
    room = np.zeros(100)
    room[:27] = x.ravel()
    with pytest.raises(ValueError, match="out shares memory with x"):
        nbprop.predict(CLASSIFIER, params, room[:27].reshape(9, 3), out=room[20:56].reshape(9, 4))
    assert (room[27:] == 0).all()


def test_memory_is_that_of_a_chunk(tmp_path):
    """Beside what it returns: 200,000 samples take no more than 2,000 do."""
    net = nbprop.network((8,), dense(200, "tanh"), dense(1))
    params, peaks = nbprop.init(net, dtype=np.float32), []
    for n in (2_000, 200_000):
        x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (n, 8))
        out = np.empty((n, 1), np.float32)
        nbprop.predict(net, params, x[:10], 500)
        tracemalloc.start()
        nbprop.predict(net, params, x, 500, out=out)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000
