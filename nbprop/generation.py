"""`generate`: sequences continued integer by integer, each drawn from what a network says about the next one.

A decoding plan takes one position a call and keeps keys and values of those before in the layer state, so a new integer
costs one position's work. The loop over positions, and the draws, are compiled.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbprop.arrays import as_array, check_vector
from nbprop.autodiff.gradients import forward
from nbprop.compiler.jit import njit
from nbprop.lowering.plan import layer_state, workspace
from nbprop.lowering.plan import plan as make_plan
from nbprop.networks.network import Network
from nbprop.numerics.elementary import exp
from nbprop.numerics.random import GENERATE, stream, uniform_f64
from nbprop.runtime.datasets import check_column
from nbprop.runtime.pieces import Pace
from nbprop.validation import check_integer, check_number, check_seed


@njit
def draw(logits, temperature, top_k, u):
    """An integer with probability softmax(logits / temperature) among the top_k largest; -1 if one is NaN or infinity.

    logits IN (vocabulary,); temperature 0 takes the largest; top_k 0 takes all, and ties with the last of them count;
    u is uniform in [0, 1).
    """
    best, least = 0, logits[0]
    for k in range(logits.size):
        if not np.isfinite(logits[k]):
            return -1
        if logits[k] > logits[best]:
            best = k
    if temperature == 0.0:
        return best
    least = np.partition(logits, logits.size - top_k)[logits.size - top_k] if top_k > 0 else np.min(logits)
    top, total = np.float64(logits[best]), 0.0
    for k in range(logits.size):
        total += exp((np.float64(logits[k]) - top) / temperature) if logits[k] >= least else 0.0
    left = u * total
    for k in range(logits.size):
        if logits[k] >= least:
            left -= exp((np.float64(logits[k]) - top) / temperature)
            if left < 0.0:
                return k
    return best  # where rounding has left a rest


@njit
def continue_sequences(plan, params, tokens, at, how, x, logits, work, state, most):
    """Go on for up to `most` calls of `forward`; how many, -1 at the end, -2 where a logit is not finite.

    tokens INOUT (n, begin + count) int64; at INOUT: the place to fill next, which token stands at position 0, how many
    have been taken in; how: (capacity, window, temperature, top_k, seed); x (n, 1) int64 and logits
    (n, 1, vocabulary) are scratch.
    """
    capacity, window, temperature, top_k, seed = how
    done = 0
    while at[0] < tokens.shape[1]:
        m = at[0]
        if m - at[1] > capacity:
            at[1] = at[2] = m - window
        while at[2] < m:
            if done == most:
                return done
            x[:, 0] = tokens[:, at[2]]
            forward(plan, params, x, logits, work, state, at[2] - at[1])
            at[2] += 1
            done += 1
        for i in range(tokens.shape[0]):
            u = uniform_f64(seed, stream(GENERATE, 0, i), m)
            tokens[i, m] = draw(logits[i, 0], temperature, top_k, u)
            if tokens[i, m] < 0:
                return -2
        at[0] = m + 1
    return -1


def generate(
    net: Network,
    params: NDArray[Any],
    prompt: NDArray[Any],
    count: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    window: int | None = None,
    threads: int = 1,
) -> NDArray[np.int64]:
    """Continue sequences of integers: each next one is drawn from softmax(logits / temperature) of the position before.

    Parameters
    ----------
    net : Network
        From integers (T,) to logits (T, vocabulary), such as embedding, causal attention, dense.
    params : (net.n_params,) float32 or float64 array
    prompt : (n, p) integers, 1 <= p <= T
    count : int
        Integers to add to each sequence.
    temperature : float
        0 takes the largest logit; below 1 likely ones become likelier.
    top_k : int or None
        Draw among the so many largest logits alone.
    seed : int
        The draw at place m of sequence i is a function of (seed, i, m): the same on any number of threads, and a
        prompt that is the beginning of a result continues as that result did.
    window : int or None
        How many of the last integers to begin anew with when all T positions are taken; None refuses to go beyond. T
        itself sees as much as it can, at T positions' work for each integer from then on; T / 2 costs two.
    threads : int

    Returns
    -------
    (n, count) int64

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, sequences longer than T without a `window`, logits that are not finite.
    KeyboardInterrupt
        On Ctrl-C, within a fifth of a second or one position's work. Its `tokens` are the integers so far, (n, fewer).

    Each new integer costs one position's work: `plan(net, mode="decoding")` with a layer state, which holds keys and
    values of the positions before. Code of your own may do the same, compiled or not: call `forward` with x (n, 1),
    y (n, 1, vocabulary), that plan's workspace and state, and step = 0, 1, ... below T.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network(
    ...     (16,), nbprop.embedding(5, 8), nbprop.positions(), nbprop.attention(2), nbprop.dense(5)
    ... )
    >>> nbprop.generate(net, nbprop.init(net), np.array([[0, 3]]), 4, temperature=0).shape
    (1, 4)
    """
    if not isinstance(net, Network):
        raise TypeError(f"generate: net must be what nbprop.network(...) returns, got {type(net).__name__}")
    vocabulary, capacity = net.layers[0].index_limit, net.input_shape[0]
    if not vocabulary or net.output_shape != (capacity, vocabulary) or len(net.input_shape) != 1:
        raise ValueError(
            "generate: net must take integers (T,), by an embedding first, and give a logit for each, (T, vocabulary); "
            f"got {net.input_shape} to {net.output_shape}"
        )
    params = check_vector("generate: params", params, net.n_params, (np.float32, np.float64))
    prompt = as_array("generate: prompt", prompt)
    if prompt.ndim != 2 or not 1 <= prompt.shape[1] <= capacity:
        raise ValueError(
            f"generate: prompt must be an array (n, p) of 1 to {capacity} integers each, got shape {prompt.shape}"
        )
    prompt = check_column("generate", "prompt", prompt, None, prompt.shape[1:], params.dtype, vocabulary)
    count = check_integer("generate: count", count)
    top_k = 0 if top_k is None else min(check_integer("generate: top_k", top_k), vocabulary)
    temperature, seed = check_number("generate: temperature", temperature), check_seed("generate: seed", seed)
    threads = check_integer("generate: threads", threads)
    begin, n = prompt.shape[1], len(prompt)
    if window is None and begin + count - 1 > capacity:
        raise ValueError(
            f"generate: {begin} and {count} integers need {begin + count - 1} positions, the network has {capacity}; "
            f"ask for fewer, or give window={max(1, capacity // 2)} to begin anew with so many when they run out"
        )
    if window is not None:
        window = check_integer("generate: window", window, 1, capacity)
    plan = make_plan(net, batch=n, dtype=params.dtype, threads=threads, mode="decoding")
    tokens = np.empty((n, begin + count), np.int64)
    tokens[:, :begin] = prompt
    how = capacity, window or capacity, temperature, top_k, seed
    scratch = np.empty((n, 1), np.int64), np.empty((n, 1, vocabulary), params.dtype), workspace(plan), layer_state(plan)
    at, pace, done = np.array([begin, 0, 0]), Pace(), 0
    try:
        while done >= 0:
            most = pace.begin()
            done = continue_sequences(plan, params, tokens, at, how, *scratch, most)
            pace.end(max(done, 0))
    except KeyboardInterrupt as interrupt:
        interrupt.tokens = tokens[:, begin : at[0]].copy()  # type: ignore[attr-defined]
        raise
    if done == -2:
        raise ValueError(
            f"generate: a logit was NaN or infinite at place {at[0]}; look for NaN or huge numbers in params"
        )
    return tokens[:, begin:].copy()
