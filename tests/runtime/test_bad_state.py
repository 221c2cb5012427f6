"""`state`, `step`, `lengths` and `mode` of any kind: taken or refused rightly, and nothing written where refused."""

import warnings

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbprop

NET = nbprop.network((4, 3), nbprop.rnn(5, carry=True), nbprop.dropout(0.3), nbprop.dense(2), nbprop.layernorm(0.1))
PLAN = nbprop.plan(NET, "mse", batch=3)
SIZE, N, LONGEST = PLAN.state_size, 3, 4
_RNG = np.random.default_rng(0)
PARAMS, V = nbprop.init(NET, seed=1), _RNG.standard_normal(NET.n_params)
X, TARGET = _RNG.standard_normal((N, 4, 3)), _RNG.standard_normal((N, 4, 2))

DTYPES = [np.float64] * 4 + [np.float32, np.int64, np.bool_, np.complex128, np.dtype(">f8"), object]
INTEGERS = [np.int64, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.uint64]
LENGTH_DTYPES = [*INTEGERS, np.float64, np.bool_, np.dtype(">i4"), object]
FUNCTIONS = {
    "forward": lambda g: nbprop.forward(PLAN, PARAMS, X, g["y"], g["work"], **g["more"]),
    "value": lambda g: nbprop.value(PLAN, PARAMS, X, TARGET, g["work"], **g["more"]),
    "value_and_grad": lambda g: nbprop.value_and_grad(PLAN, PARAMS, X, TARGET, g["grads"], g["work"], **g["more"]),
    "backward": lambda g: nbprop.backward(PLAN, PARAMS, X, TARGET, g["grads"], None, g["work"], **g["more"]),
    "vjp": lambda g: nbprop.vjp(PLAN, PARAMS, X, TARGET, g["grads"], None, g["work"], **g["more"]),
    "jvp": lambda g: nbprop.jvp(PLAN, PARAMS, V, X, None, g["y"], g["work"], **g["more"]),
    "hvp": lambda g: nbprop.hvp(PLAN, PARAMS, V, X, TARGET, g["grads"], g["work"], **g["more"]),
}


def buffers(**more):
    y, grads, work = np.full((N, 4, 2), 3.0), np.full(NET.n_params, 4.0), np.full(PLAN.work_size, 5.0)
    return {"y": y, "grads": grads, "work": work, "more": more}


def laid_out(values, dtype, layout):
    """An array of these values; where it is not as NumPy makes it, in another order or place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = np.asarray(values).astype(dtype)
    if layout == "strided":
        array = np.stack([array, array], axis=-1)[..., 0]
    elif layout == "misaligned" and array.dtype != object:
        found = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
        found[...] = array
        array = found
    elif layout == "read-only":
        array.flags.writeable = False
    return array


def runs(function, given, name):
    """Whether a call runs; refused, it names the argument and leaves every array as it was."""
    arrays = [a for a in (*given.values(), *given["more"].values()) if isinstance(a, np.ndarray)]
    before = [a.tobytes() for a in arrays]
    refusal = None
    try:
        FUNCTIONS[function](given)
    except (TypeError, ValueError) as error:
        refusal = str(error)
    if refusal is not None:
        assert name in refusal
        assert refusal.startswith(f"{function}: ")
        assert [a.tobytes() for a in arrays] == before, "something was written"
    return refusal is None


LAYOUTS = ["plain"] * 3 + ["strided", "misaligned", "read-only"]


@settings(max_examples=150, deadline=None)
@given(
    function=st.sampled_from(list(FUNCTIONS)),
    shape=st.sampled_from([(SIZE,)] * 6 + [(SIZE - 1,), (SIZE + 1,), (0,), (1, SIZE), (SIZE, 1), ()]),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
)
def test_any_state(function, shape, dtype, layout):
    state = laid_out(np.full(shape, 1.0), dtype, layout)
    usual = state.flags.c_contiguous and state.flags.aligned and state.flags.writeable
    fits = state.dtype == np.float64 and state.dtype.isnative and shape == (SIZE,) and usual
    assert runs(function, buffers(state=state), "state") == fits


@settings(max_examples=150, deadline=None)
@given(
    function=st.sampled_from(list(FUNCTIONS)),
    lengths=st.lists(st.integers(-1, LONGEST + 1), min_size=N - 1, max_size=N + 1)
    | st.lists(st.integers(1, LONGEST), min_size=N, max_size=N),
    dtype=st.sampled_from(LENGTH_DTYPES),
    layout=st.sampled_from(LAYOUTS),
    column=st.booleans(),
)
def test_any_lengths(function, lengths, dtype, layout, column):
    array = laid_out(lengths, dtype, layout)
    array = array[:, None] if column else array
    shape = array.shape == (N,) and array.flags.c_contiguous and array.flags.aligned
    integers = array.dtype.kind in "iu" and array.dtype.isnative
    fits = shape and integers and all(1 <= int(value) <= LONGEST for value in array)
    assert runs(function, buffers(state=nbprop.layer_state(PLAN), lengths=array), "lengths") == fits


@settings(max_examples=150, deadline=None)
@given(
    function=st.sampled_from(list(FUNCTIONS)),
    step=st.integers(-(2**70), 2**70)
    | st.integers(-3, 3)
    | st.sampled_from([0.0, 1.5, "1", None, 1j, np.int32(7), np.uint8(200), True, np.float64(2), np.array(3), [1]])
    | st.sampled_from([2**40 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]),
)
def test_any_step(function, step):
    whole = (isinstance(step, (int, np.integer)) and not isinstance(step, bool)) or (
        isinstance(step, np.ndarray) and step.dtype.kind == "i"
    )
    fits = whole and 0 <= int(step) < 2**40
    assert runs(function, buffers(state=nbprop.layer_state(PLAN), step=step), "step") == fits


@given(mode=st.text(max_size=9) | st.none() | st.integers() | st.sampled_from(["training ", "Inference", "decode"]))
def test_any_mode(mode):
    if mode not in ("training", "inference", "decoding"):
        with pytest.raises(ValueError, match="mode: unknown name"):
            nbprop.plan(NET, mode=mode)


@pytest.mark.parametrize(
    ("function", "name"),
    [("forward", "work"), ("forward", "y"), ("value_and_grad", "grads"), ("backward", "grads"), ("hvp", "work")],
)
def test_state_may_share_memory_with_nothing(function, name):
    given = buffers()
    given["more"] = {"state": given[name].reshape(-1)[:SIZE]}
    assert not runs(function, given, "shares memory")


@numba.njit
def compiled(plan, params, x, y, work, state, step):
    nbprop.forward(plan, params, x, y, work, state, step)


def test_steps_in_compiled_code():
    given = buffers()
    arguments = PLAN, PARAMS, X, given["y"], given["work"], nbprop.layer_state(PLAN)
    compiled(*arguments, 2**40 - 1)
    given["y"][:] = 3.0
    for step in (-1, 2**40):
        with pytest.raises(ValueError, match=r"step must be in 0\.\.2\*\*40 - 1"):
            compiled(*arguments, step)
    assert (given["y"] == 3.0).all()
