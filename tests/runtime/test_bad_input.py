"""Bad input from Python: refused with a message that names the argument, and nothing written before.

The same in @njit is in test_njit.py.
"""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbprop
from support import cases

PLAN = nbprop.plan(cases.CLASSIFIER, loss="softmax_cross_entropy", batch=6)
REGRESSION = nbprop.plan(cases.REGRESSOR, loss="mse", batch=6)
WRITTEN = ("grads", "work", "y", "dx")
FUNCTIONS = {
    "forward": ("params", "x", "y", "work"),
    "value": ("params", "x", "target", "work", "weights"),
    "value_and_grad": ("params", "x", "target", "grads", "work", "weights"),
    "backward": ("params", "x", "dy", "grads", "dx", "work"),
}
EVERY = [(function, name) for function, names in FUNCTIONS.items() for name in names]
OPTIONAL = ("weights", "dx")


def good(plan, n=4):
    """Arguments that fit, by name."""
    rng = np.random.default_rng(0)
    shape = (n, *plan.target_shape)
    return {
        "params": nbprop.init(plan.net),
        "x": rng.standard_normal((n, *plan.input_shape)),
        "target": rng.integers(0, plan.classes, shape) if plan.classes else rng.standard_normal(shape),
        "grads": np.full(plan.n_params, 3.0),
        "work": np.full(plan.work_size + 3, 4.0),
        "weights": rng.uniform(0.5, 2, n),
        "y": np.full((n, *plan.output_shape), 5.0),
        "dy": rng.standard_normal((n, *plan.output_shape)),
        "dx": np.full((n, *plan.input_shape), 6.0),
    }


def call(function, plan, values):
    return getattr(nbprop, function)(plan, *(values[name] for name in FUNCTIONS[function]))


def refused(function, values, kind, *words, plan=PLAN):
    """The call raises `kind`, its message holds the function and `words`, and no byte has changed."""
    arrays = [value for value in values.values() if isinstance(value, np.ndarray)]
    before = [array.tobytes() for array in arrays]
    with pytest.raises(kind) as caught:
        call(function, plan, values)
    for word in (function, *words):
        assert str(word) in str(caught.value), f"{word!r} is not in {caught.value}"
    assert type(caught.value) is kind
    assert [array.tobytes() for array in arrays] == before, "something was written"


def changed(function, name, change):
    values = {key: value for key, value in good(PLAN).items() if key in FUNCTIONS[function]}
    values[name] = change(values[name])
    return values


def misaligned(array):
    found = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    found[...] = array
    return found


def strided(array):
    return np.stack([array, array], axis=-1)[..., 0]


def other_dtype(array):
    return array.astype(np.float32)


def matrix(array):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.asmatrix(array)


NO_ARRAYS = {
    "a list": lambda array: array.tolist(),
    "a number": lambda array: 1.5,
    "a string": lambda array: "x",
    "a matrix": matrix,
    "a masked array": lambda array: np.ma.array(array),
    "bytes": lambda array: array.tobytes(),
    "a scalar": lambda array: np.float64(1.0),
    "an array's type": lambda array: np.ndarray,
}
WRONG_DTYPES = {
    "float32": other_dtype,
    "half": lambda array: array.astype(np.float16),
    "long double": lambda array: array.astype(np.longdouble),
    "complex": lambda array: array.astype(np.complex128),
    "bool": lambda array: array.astype(bool),
    "objects": lambda array: array.astype(object),
    "text": lambda array: array.astype("U4"),
    "dates": lambda array: array.astype(np.int64).astype("M8[s]"),
    "records": lambda array: np.zeros(array.shape, [("a", "f8")]),
    "swapped bytes": lambda array: array.astype(array.dtype.newbyteorder("S")),
}
WRONG_SHAPES = {
    "one axis more": lambda array: array[..., None],
    "an axis before": lambda array: array[None],
    "0-d": lambda array: array.reshape(-1)[:1].reshape(()),
    "a shorter last axis": lambda array: np.ascontiguousarray(array[..., :-1]),
    "no samples": lambda array: array[:0],
}


@pytest.mark.parametrize("what", NO_ARRAYS)
@pytest.mark.parametrize(("function", "name"), EVERY)
def test_only_arrays(function, name, what):
    values = changed(function, name, NO_ARRAYS[what])
    refused(function, values, TypeError, f"{name} must be a NumPy array", type(values[name]).__name__)


@pytest.mark.parametrize("what", WRONG_DTYPES)
@pytest.mark.parametrize(("function", "name"), EVERY)
def test_dtype(function, name, what):
    values = changed(function, name, WRONG_DTYPES[what])
    wanted = "integers" if name == "target" else "float64"
    refused(function, values, TypeError, f"{name} must hold {wanted}", values[name].dtype, values[name].shape)


@pytest.mark.parametrize("what", WRONG_SHAPES)
@pytest.mark.parametrize(("function", "name"), EVERY)
def test_shape(function, name, what):
    values = changed(function, name, WRONG_SHAPES[what])
    if name == "work" and what == "a shorter last axis":
        values[name] = values[name][:-3].copy()
    refused(function, values, ValueError, name, values[name].shape)


@pytest.mark.parametrize(("function", "name"), EVERY)
def test_order_and_alignment(function, name):
    refused(function, changed(function, name, strided), ValueError, f"{name} must be C-contiguous")
    if name == "target":  # bytes cannot be misaligned
        return
    refused(function, changed(function, name, misaligned), ValueError, f"{name} must be aligned")


@pytest.mark.parametrize(("function", "name"), [pair for pair in EVERY if pair[1] in ("x", "y", "dy", "dx")])
def test_fortran_order(function, name):
    refused(function, changed(function, name, np.asfortranarray), ValueError, f"{name} must be C-contiguous")


@pytest.mark.parametrize(("function", "name"), [pair for pair in EVERY if pair[1] in WRITTEN])
def test_read_only(function, name):
    def lock(array):
        array.flags.writeable = False
        return array

    refused(function, changed(function, name, lock), ValueError, f"{name} is written and must not be read-only")


@pytest.mark.parametrize(("function", "name"), [pair for pair in EVERY if pair[1] not in OPTIONAL])
def test_missing(function, name):
    refused(function, changed(function, name, lambda array: None), TypeError, f"{name} is needed and got None")


@pytest.mark.parametrize(
    ("function", "name"), [pair for pair in EVERY if pair[1] in ("target", "y", "dy", "dx", "weights")]
)
def test_another_number_of_samples(function, name):
    values = changed(function, name, lambda array: np.ascontiguousarray(array[:3]))
    refused(function, values, ValueError, name, values[name].shape)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_capacity_and_empty(function):
    refused(function, good(PLAN, 7), ValueError, "x brings more samples than the plan's batch of 6", (7, 3))
    refused(function, good(PLAN, 0), ValueError, "x has no samples", (0, 3))


def _pairs():
    for function, names in FUNCTIONS.items():
        for written in names:
            for other in names:
                if written in WRITTEN and other != written:
                    yield function, written, other


@pytest.mark.parametrize("offset", [0, 1, -1])
@pytest.mark.parametrize(("function", "written", "other"), list(_pairs()))
def test_aliasing(function, written, other, offset):
    """Each written argument against each other one: the same start, and one element of overlap at either end."""
    values = {key: value for key, value in good(PLAN).items() if key in FUNCTIONS[function]}
    size, other_size = values[written].size, values[other].size
    buffer = np.zeros(size + other_size)
    start = {0: 0, 1: size - 1, -1: -1}[offset] + (other_size if offset < 0 else 0)
    # `written` lies at 0 (or, for -1, behind `other`, whose last element is its first).
    first, second = (0, start) if offset >= 0 else (start, 0)
    values[written] = buffer[first : first + size].reshape(values[written].shape)
    place = buffer[second : second + other_size]
    values[other] = (place.view(np.int64) if other == "target" else place).reshape(values[other].shape)
    assert np.may_share_memory(values[written], values[other])
    refused(function, values, ValueError, "is written and shares memory with", written, other)


def test_neighbours_are_no_aliases():
    """Arguments side by side in one buffer are fine: bounds are half open."""
    wanted = good(PLAN)
    call("value_and_grad", PLAN, wanted)
    values, names = good(PLAN), FUNCTIONS["value_and_grad"]
    buffer, place = np.zeros(sum(values[name].size for name in names)), 0
    for name in names:
        piece = buffer[place : place + values[name].size]
        place += piece.size
        piece = piece.view(values[name].dtype).reshape(values[name].shape)
        piece[...] = values[name]
        values[name] = piece
    assert call("value_and_grad", PLAN, values) == call("value_and_grad", PLAN, wanted)
    cases.same_bits("grads", values["grads"], wanted["grads"])


INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("function", ["value", "value_and_grad"])
def test_classes(function, dtype):
    """Any integer type serves; a class outside is refused, at any place and however large."""
    right = good(PLAN)
    wanted = call(function, PLAN, right)
    values = good(PLAN) | {"target": right["target"].astype(dtype)}
    assert call(function, PLAN, values) == wanted
    for wrong in {4, np.iinfo(dtype).max, np.iinfo(dtype).min} - {0}:
        for place in (0, 3):
            values = good(PLAN) | {"target": right["target"].astype(dtype)}
            values["target"][place] = wrong
            refused(function, values, ValueError, "target must hold classes in 0..3", wrong)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "plan", [None, 3, cases.CLASSIFIER, np.zeros(100, np.int64), object()], ids=lambda p: type(p).__name__
)
def test_no_plan(function, plan):
    refused(
        function, good(PLAN), TypeError, "plan must be what nbprop.plan(...) returns", type(plan).__name__, plan=plan
    )


@pytest.mark.parametrize("function", FUNCTIONS)
def test_another_networks_plan(function):
    refused(
        function,
        good(PLAN),
        ValueError,
        "params must have shape (32,), got float64 array of shape (44,)",
        plan=REGRESSION,
    )
    single = nbprop.plan(cases.CLASSIFIER, loss="softmax_cross_entropy", batch=6, dtype=np.float32)
    refused(function, good(PLAN), TypeError, "params must hold float32, got float64", plan=single)


@pytest.mark.parametrize("target", [[0, 1, 2, 3], None, np.zeros(4, np.int64), np.zeros((4, 4)), "x"], ids=repr)
@pytest.mark.parametrize("function", ["value", "value_and_grad"])
def test_a_plan_without_a_loss(function, target):
    plan = nbprop.plan(cases.CLASSIFIER, batch=6)
    refused(
        function, good(PLAN) | {"target": target, "work": nbprop.workspace(plan)}, ValueError, "has no loss", plan=plan
    )


@pytest.mark.parametrize("step", [1.5, "1", None, [1]])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_step(function, step):
    with pytest.raises(TypeError, match=f"{function}: step must be an integer, got {type(step).__name__}"):
        getattr(nbprop, function)(PLAN, *(good(PLAN)[name] for name in FUNCTIONS[function]), step=step)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_memory_maps_serve(function, tmp_path):
    """A np.memmap is an array like others, as input and as output; read-only ones only as input."""
    wanted, values = good(PLAN), good(PLAN)
    for arguments in (wanted, values):
        nbprop.forward(PLAN, *(arguments[name] for name in FUNCTIONS["forward"]))  # what backward follows
    loss = call(function, PLAN, wanted)
    for name in FUNCTIONS[function]:
        source = values[name]
        np.save(tmp_path / f"{name}.npy", source)
        values[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r+" if name in WRITTEN else "r")
        assert type(values[name]) is np.memmap
    assert call(function, PLAN, values) == loss
    written = [name for name in FUNCTIONS[function] if name in WRITTEN]
    for name in written:
        cases.same_bits(name, values[name][: wanted[name].size], wanted[name])
    values[written[0]] = np.load(tmp_path / f"{written[0]}.npy", mmap_mode="r")
    refused(function, values, ValueError, f"{written[0]} is written and must not be read-only")


def test_odd_but_right_arrays_serve():
    """Read-only inputs, strides that no element uses, and a longer workspace are no errors."""
    values = good(PLAN, 1)
    wanted = call("value_and_grad", PLAN, values)
    wide = np.lib.stride_tricks.as_strided(values["x"], (1, 3), (1000, 8))
    for name in ("params", "x", "target", "weights"):
        values[name].flags.writeable = False
    assert call("value_and_grad", PLAN, values | {"x": wide}) == wanted
    assert call("value_and_grad", PLAN, values | {"work": np.empty(10_000)}) == wanted


SHAPES = st.lists(st.integers(0, 7), max_size=4).map(tuple)
DTYPES = st.sampled_from(["f8", "f8", "f8", "f4", ">f8", "i8", "i4", "u1", "i1", "?", "c16", "f2", "S3", "O"])
VIEWS = st.sampled_from(["plain", "plain", "reversed", "transposed", "every second", "read-only", "broadcast"])


@st.composite
def arrays(draw, likely):
    """A random array; often one of the likely shape and dtype."""
    shape = likely.shape if draw(st.booleans()) else draw(SHAPES)
    dtype = likely.dtype if draw(st.booleans()) else np.dtype(draw(DTYPES))
    view = draw(VIEWS)
    if view == "every second" and shape:
        array = np.zeros((*shape[:-1], 2 * shape[-1]), dtype)[..., ::2]
    elif view == "broadcast" and shape:
        array = np.broadcast_to(np.zeros(shape[-1:], dtype), shape)
    else:
        array = np.zeros(shape, dtype)
    if view == "reversed" and shape:
        array = array[::-1]
    if view == "transposed":
        array = array.T
    if view == "read-only":
        array.flags.writeable = False
    return array


def fits(plan, function, values):
    """Whether the documentation allows the arguments; slow, obvious, and independent of the compiled checks."""
    n = values["x"].shape[0] if values["x"].ndim else 0
    shapes = {
        "params": (plan.n_params,),
        "grads": (plan.n_params,),
        "weights": (n,),
        "x": (n, *plan.input_shape),
        "dx": (n, *plan.input_shape),
        "y": (n, *plan.output_shape),
        "dy": (n, *plan.output_shape),
        "target": (n, *plan.target_shape),
    }
    if not 1 <= n <= plan.batch:
        return False
    for name in FUNCTIONS[function]:
        array = values[name]
        integer = name == "target" and plan.classes
        right = array.dtype.kind in "iu" if integer else array.dtype == plan.dtype
        shape = array.shape == shapes[name] if name in shapes else array.ndim == 1 and array.size >= plan.work_size
        if not (right and shape and array.dtype.isnative and array.flags.c_contiguous):
            return False
        if name in WRITTEN and not array.flags.writeable:
            return False
    return True


@pytest.mark.parametrize("plan", [PLAN, REGRESSION], ids=["classes", "values"])
@pytest.mark.parametrize("function", FUNCTIONS)
@settings(derandomize=True, max_examples=60, deadline=None)
@given(drawn=st.data())
def test_random_arguments(function, plan, drawn):
    """Random shapes, dtypes, strides: exactly what the documentation allows runs; the rest is refused by name."""
    values = good(plan)
    for name in drawn.draw(st.lists(st.sampled_from(FUNCTIONS[function]), min_size=1, max_size=2, unique=True)):
        values[name] = drawn.draw(arrays(values[name]))
    if fits(plan, function, values):
        call(function, plan, values)
        return
    before = {name: np.array(array, copy=True) for name, array in values.items()}
    with pytest.raises((TypeError, ValueError)) as caught:
        call(function, plan, values)
    assert any(f"{function}: {name} " in str(caught.value) for name in FUNCTIONS[function])
    for name, array in values.items():
        assert before[name].tobytes() == array.tobytes(), f"{name} was written"


@settings(derandomize=True, max_examples=80, deadline=None)
@given(st.floats(allow_nan=True, allow_infinity=True), st.integers(0, 11))
def test_random_values(value, place):
    """Any number in x: no crash, no exception, and NaN or infinity never becomes a finite wrong loss."""
    values = good(REGRESSION)
    values["x"].reshape(-1)[place] = value
    loss = call("value_and_grad", REGRESSION, values)
    assert isinstance(loss, float)
    assert not np.isnan(value) or np.isnan(loss)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    st.one_of(
        st.none(), st.text("xyz\0é", max_size=5), st.floats(), st.integers(-3, 0), st.booleans(), st.binary(max_size=3)
    ),
    st.sampled_from(["batch", "threads", "dtype", "loss", "net"]),
)
def test_random_arguments_of_plan(wrong, name):
    values = {"net": cases.CLASSIFIER, "loss": "mse", "batch": 2, "dtype": np.float64, "threads": 1} | {name: wrong}
    if (name, wrong) in (("loss", None), ("dtype", None)):
        return
    with pytest.raises((TypeError, ValueError), match=name if name != "net" else "plan: net"):
        nbprop.plan(**values)
