"""`generate`: its sequences against draws from whole sequences' logits, its draws against their probabilities."""

import numpy as np
import pytest

import nbprop
from nbprop.compiler.jit import njit
from nbprop.generation import draw
from nbprop.numerics.random import GENERATE, stream, uniform_f64
from nbprop.runtime.pieces import Pace

NET = nbprop.network(
    (6,),
    nbprop.embedding(5, 8),
    nbprop.positions("normal"),
    nbprop.residual(nbprop.layernorm(), nbprop.attention(2)),
    nbprop.dense(5),
)
PARAMS = nbprop.init(NET, seed=1)
PROMPT = np.array([[0, 3], [4, 4], [1, 2]])


@njit
def uniform(seed, sample, place):
    return uniform_f64(seed, stream(GENERATE, 0, sample), place)


def slow(prompt, count, temperature, seed, window):
    """The same without a cache: the last integers' logits from whole sequences, the draw from a cumulated softmax."""
    plan, tokens, firsts = nbprop.plan(NET, batch=len(prompt)), prompt, 0
    work, y = nbprop.workspace(plan), np.empty((len(prompt), 6, 5))
    for m in range(prompt.shape[1], prompt.shape[1] + count):
        firsts = m - window if m - firsts > 6 else firsts
        x = np.zeros((len(prompt), 6), np.int64)
        x[:, : m - firsts] = tokens[:, firsts:m]
        nbprop.forward(plan, PARAMS, x, y, work)
        p = np.exp(y[:, m - firsts - 1] / temperature)
        cumulated = np.cumsum(p / p.sum(axis=1, keepdims=True), axis=1)
        drawn = [np.searchsorted(row, uniform(seed, i, m), "right") for i, row in enumerate(cumulated)]
        tokens = np.concatenate([tokens, np.array(drawn)[:, None]], axis=1)
    return tokens[:, prompt.shape[1] :]


@pytest.mark.parametrize("window", [1, 3, 6])
def test_sequences_are_those_of_whole_sequences_logits(window):
    wanted = slow(PROMPT, 25, 0.8, 7, window)
    for threads in (1, 2):
        got = nbprop.generate(NET, PARAMS, PROMPT, 25, temperature=0.8, seed=7, window=window, threads=threads)
        assert (got == wanted).all()
    assert len(np.unique(wanted)) > 2


def test_a_result_continues_as_it_did():
    whole = nbprop.generate(NET, PARAMS, PROMPT, 4, seed=3)
    begun = np.concatenate([PROMPT, whole[:, :2]], axis=1)
    assert (nbprop.generate(NET, PARAMS, begun, 2, seed=3) == whole[:, 2:]).all()
    assert (nbprop.generate(NET, PARAMS, PROMPT[:1], 4, seed=3) == whole[:1]).all(), "sequences do not meet"
    assert (nbprop.generate(NET, PARAMS, PROMPT, 4, seed=4) != whole).any()


def test_float32_and_greedy():
    greedy = [nbprop.generate(NET, PARAMS.astype(t), PROMPT, 5, temperature=0) for t in (np.float32, np.float64)]
    assert (greedy[0] == greedy[1]).all()
    for seed in (0, 1):
        assert (nbprop.generate(NET, PARAMS, PROMPT, 5, top_k=1, seed=seed) == greedy[1]).all()


@pytest.mark.parametrize("top_k", [0, 2])
def test_draws_have_their_probabilities(top_k):
    """A draw is the quantile function of its distribution: of evenly spaced u each result takes its share."""
    logits, n = np.array([0.3, -1.0, 2.0, 0.3, -3.0]), 20000
    p = np.exp(logits / 0.7)
    if top_k:
        p[logits < 0.3] = 0  # the second largest is there twice
    counts = np.bincount([draw(logits, 0.7, top_k, (i + 0.5) / n) for i in range(n)], minlength=5)
    assert np.abs(counts / n - p / p.sum()).max() <= 1 / n


@pytest.mark.parametrize("window", [None, 2])
def test_pieces_change_no_bit_and_an_interrupt_brings_what_is_there(window, monkeypatch):
    count = 5 if window is None else 17
    whole = nbprop.generate(NET, PARAMS, PROMPT, count, window=window)
    monkeypatch.setattr(Pace, "begin", lambda self: 1)
    assert (nbprop.generate(NET, PARAMS, PROMPT, count, window=window) == whole).all()
    pieces = iter(range(100))

    def end(self, done):
        if next(pieces) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Pace, "end", end)
    with pytest.raises(KeyboardInterrupt) as caught:
        nbprop.generate(NET, PARAMS, PROMPT, count, window=window)
    tokens = caught.value.tokens
    assert 0 < tokens.shape[1] < count
    assert (tokens == whole[:, : tokens.shape[1]]).all()


WRONG = {
    "a network of real numbers": ({"net": nbprop.network((3, 4), nbprop.dense(4))}, "must take integers"),
    "logits of another number": ({"net": nbprop.network((3,), nbprop.embedding(4, 3))}, r"\(3,\) to \(3, 3\)"),
    "params of another network": ({"params": PARAMS[:-1]}, r"params must have shape \(\d+,\)"),
    "a list": ({"params": list(PARAMS)}, "params must be a NumPy array, got list"),
    "a flat prompt": ({"prompt": PROMPT[0]}, r"prompt must be an array \(n, p\) of 1 to 6 integers .*shape \(2,\)"),
    "an empty prompt": ({"prompt": PROMPT[:, :0]}, "1 to 6 integers each"),
    "a prompt beyond the positions": ({"prompt": np.zeros((1, 7), int)}, r"1 to 6 integers each, got shape \(1, 7\)"),
    "a prompt of real numbers": ({"prompt": PROMPT / 2}, "prompt must hold integers .*, got float64"),
    "an integer outside": ({"prompt": PROMPT + 1}, r"prompt must hold classes in 0\.\.4, got 5"),
    "too many": ({"count": 6}, "2 and 6 integers need 7 positions, the network has 6; .* window=3"),
    "none": ({"count": 0}, r"count must be a positive integer, got 0"),
    "a window beyond the positions": ({"window": 7}, r"window must be an integer in 1\.\.6, got 7"),
    "a negative temperature": ({"temperature": -1.0}, "temperature must be a finite number of at least 0, got -1.0"),
    "huge numbers": ({"count": 10**30}, "count must be a positive integer"),
    "a huge seed": ({"seed": 2**63}, "seed must be an integer"),
    "no threads": ({"threads": True}, "threads must be a positive integer"),
    "no temperature": ({"temperature": np.nan}, "temperature must be a finite number of at least 0, got nan"),
    "top_k": ({"top_k": 0}, r"top_k must be a positive integer, got 0"),
    "a negative seed": ({"seed": -1}, "seed must be an integer"),
    "infinity": ({"params": PARAMS * 1e300}, "a logit was NaN or infinite at place 2"),
    "NaN": ({"params": PARAMS * np.nan}, "a logit was NaN or infinite at place 2"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_what_is_refused(what):
    given, message = WRONG[what]
    arguments = {"net": NET, "params": PARAMS, "prompt": PROMPT, "count": 5} | given
    if "net" in given:
        arguments["params"] = nbprop.init(given["net"])
    with pytest.raises((TypeError, ValueError), match=message):
        nbprop.generate(**arguments)
