"""The same calls from inside @njit: the same bits, refusals, no allocation, and caches that outlive processes."""

import shutil
import tracemalloc

import numba
import numpy as np
import pytest
from numba.core.errors import TypingError
from numba.core.runtime import _nrt_python, rtsys

import nbprop
from support import ROOT, cases

N = 5


@numba.njit
def forward_backward(plan, params, x, y, dy, grads, dx, work, accumulate, state, step):
    nbprop.forward(plan, params, x, y, work, state, step)
    nbprop.backward(plan, params, x, dy, grads, dx, work, accumulate, state, step)


@numba.njit
def losses(plan, params, x, target, grads, work, weights, accumulate, state, step):
    first = nbprop.value(plan, params, x, target, work, weights, state, step)
    return first, nbprop.value_and_grad(plan, params, x, target, grads, work, weights, accumulate, state, step)


@numba.njit
def plain(plan, params, x, target, grads, work):
    return nbprop.value_and_grad(plan, params, x, target, grads, work)


@pytest.fixture(scope="module")
def arguments(classifier):
    rng = np.random.default_rng(4)
    params = nbprop.init(classifier.net, seed=1)
    x, target, weights = cases.data(classifier, N, rng, ties=True)
    return params, x, target, weights, rng.standard_normal((N, 4))


def test_the_same_bits_as_python(classifier, arguments):
    """All functions, every optional argument in its place, a batch below the capacity."""
    plan, (params, x, target, weights, dy) = classifier, arguments
    got, wanted = [], []
    for compiled, out in ((True, got), (False, wanted)):
        work, y, dx = nbprop.workspace(plan), np.full(dy.shape, np.nan), np.full(x.shape, np.nan)
        grads = [np.full(params.size, np.nan) for _ in range(3)]
        for accumulate in (False, True):
            call = forward_backward if compiled else forward_backward.py_func
            call(plan, params, x, y, dy, grads[0], dx, work, accumulate, None, 3)
            call(plan, params, x, y, dy, grads[1], None, work, accumulate, None, 3)
            call = losses if compiled else losses.py_func
            out += call(plan, params, x, target, grads[2], work, weights, accumulate, None, 3)
        out += [
            y,
            dx,
            *grads,
            np.float64((plain if compiled else plain.py_func)(plan, params, x, target, grads[0], work)),
        ]
    for a, b in zip(got, wanted, strict=True):
        cases.same_bits("njit", a, b)


def test_smaller_last_batch(classifier, arguments):
    params, x, target, *_ = arguments
    grads, work = np.empty(params.size), nbprop.workspace(classifier)

    @numba.njit
    def epoch(plan, params, x, target, grads, work, batch):
        total = 0.0
        for start in range(0, len(x), batch):
            total += nbprop.value_and_grad(
                plan, params, x[start : start + batch], target[start : start + batch], grads, work
            )
        return total

    wanted = sum(plain(classifier, params, x[s : s + 2], target[s : s + 2], grads.copy(), work) for s in (0, 2, 4))
    assert epoch(classifier, params, x, target, grads, work, 2) == wanted


def test_keywords_and_defaults(classifier, arguments):
    params, x, target, weights, _ = arguments

    @numba.njit
    def step(plan, params, x, target, grads, work, weights):
        return nbprop.value_and_grad(plan, params, x, target, grads, work, weights=weights, accumulate=True)

    grads, work = np.zeros(params.size), nbprop.workspace(classifier)
    wanted = np.zeros(params.size)
    loss = nbprop.value_and_grad(classifier, params, x, target, wanted, work, weights, True)
    assert step(classifier, params, x, target, grads, work, weights) == loss
    cases.same_bits("grads", grads, wanted)


VALUE_ERRORS = {
    "params": (lambda a: a[:-1], "params has a length"),
    "x": (lambda a: np.ones((7, 3)), "x brings more samples than the plan's batch"),
    "x ": (lambda a: np.ones((0, 3)), "x has no samples"),
    "x  ": (lambda a: np.ones((5, 2)), "x has a shape"),
    "x   ": (lambda a: np.zeros(a.nbytes + 1, np.uint8)[1:].view(np.float64).reshape(a.shape), "x must be aligned"),
    "target": (lambda a: a[:-1], "target must bring as many samples as x"),
    "target ": (lambda a: np.array([0, 1, 2, 3, 4]), "target must hold classes"),
    "target  ": (lambda a: np.array([0, -1, 2, 3, 3]), "target must hold classes"),
    "grads": (lambda a: np.ones(45), "grads has a length"),
    "work": (lambda a: a[:-1], "work has a length"),
}


@pytest.mark.parametrize("case", list(VALUE_ERRORS))
def test_values_are_refused(classifier, arguments, case):
    """A ValueError that names the argument; nothing written. Signatures are those already compiled."""
    params, x, target, *_ = arguments
    values = {"params": params, "x": x, "target": target, "grads": np.ones(44), "work": nbprop.workspace(classifier)}
    name = case.strip()
    values[name] = VALUE_ERRORS[case][0](values[name])
    values["work"][:] = 2.0
    before = {key: array.tobytes() for key, array in values.items()}
    with pytest.raises(ValueError, match=VALUE_ERRORS[case][1]):
        plain(classifier, *values.values())
    assert {key: array.tobytes() for key, array in values.items()} == before


@pytest.mark.parametrize("other", ["params", "x", "work"])
def test_aliases_are_refused(classifier, arguments, other):
    params, x, target, *_ = arguments
    buffer = np.full(1000, 0.5)
    values = {"params": params, "x": x, "target": target, "grads": buffer[:44], "work": nbprop.workspace(classifier)}
    shape = values[other].shape
    values[other] = buffer[43 : 43 + values[other].size].reshape(shape)
    with pytest.raises(ValueError, match="is written and shares memory with another argument"):
        plain(classifier, *values.values())
    assert (buffer == 0.5).all()


TYPING_ERRORS = {
    "params": (lambda a: a.astype(np.float32), "params must hold float64 as the plan does, got float32"),
    "x": (lambda a: np.asfortranarray(a), "x must be C-contiguous"),
    "x ": (lambda a: a.tolist(), "x must be an array, got"),
    "x  ": (lambda a: a > 0, "x must hold float64 as the plan does, got bool"),
    "target": (lambda a: a + 0j, "target must hold float64 as the plan does, got complex128"),
    "grads": (lambda a: np.frombuffer(a.tobytes()), "grads is written and must not be read-only"),
    "work": (lambda a: None, "work must be an array, got none"),
    "plan": (lambda a: 3, "plan must be what nbprop.plan"),
}


@pytest.mark.filterwarnings("ignore::numba.core.errors.NumbaPendingDeprecationWarning")  # reflected lists
@pytest.mark.parametrize("case", list(TYPING_ERRORS))
def test_types_are_refused(classifier, arguments, case):
    """A typing error whose text names the argument."""
    params, x, target, *_ = arguments
    values = {"plan": classifier, "params": params, "x": x, "target": target}
    values |= {"grads": np.ones(44), "work": nbprop.workspace(classifier)}
    values[case.strip()] = TYPING_ERRORS[case][0](values[case.strip()])
    with pytest.raises(TypingError) as caught:
        plain(*values.values())
    assert f"nbprop.value_and_grad: {TYPING_ERRORS[case][1]}" in str(caught.value)


def test_step_must_be_an_integer(classifier, arguments):
    params, x, target, weights, _ = arguments
    with pytest.raises(TypingError, match=r"nbprop.value: step must be an integer, got float64"):
        losses(classifier, params, x, target, np.ones(44), nbprop.workspace(classifier), weights, False, None, 1.5)


def test_a_plan_as_a_global(arguments, classifier):
    """Frozen into the function: its table, no address of ours."""
    params, x, target, *_ = arguments
    plan = classifier

    @numba.njit
    def step(params, x, target, grads, work):
        return nbprop.value_and_grad(plan, params, x, target, grads, work)

    grads, wanted, work = np.empty(44), np.empty(44), nbprop.workspace(classifier)
    assert step(params, x, target, grads, work) == nbprop.value_and_grad(plan, params, x, target, wanted, work)
    cases.same_bits("grads", grads, wanted)


def test_one_compiled_function_for_all_networks(classifier, regressor, arguments):
    """Another network's plan is another value of the same type: no signature is added."""
    params, x, target, *_ = arguments
    plain(classifier, params, x, target, np.empty(44), nbprop.workspace(classifier))
    known = len(plain.signatures)
    deeper = nbprop.plan(
        nbprop.network((3,), nbprop.dense(9, activation="relu"), nbprop.dense(4)), "softmax_cross_entropy", 5
    )
    plain(deeper, nbprop.init(deeper.net), x, target, np.empty(deeper.n_params), nbprop.workspace(deeper))
    assert len(plain.signatures) == known


def test_no_allocation_in_a_step(classifier, arguments):
    """A thousand steps in @njit allocate nothing through Numba; from Python, they leave and peak at next to nothing."""
    plan, (params, x, target, weights, dy) = classifier, arguments
    grads, work, y, dx = np.empty(44), nbprop.workspace(plan), np.empty(dy.shape), np.empty(x.shape)

    @numba.njit
    def steps(count, plan, params, x, target, grads, work, weights, y, dy, dx):
        for _ in range(count):
            nbprop.value(plan, params, x, target, work)
            nbprop.value_and_grad(plan, params, x, target, grads, work, weights, True)
            nbprop.forward(plan, params, x, y, work)
            nbprop.backward(plan, params, x, dy, grads, dx, work)

    steps(1, plan, params, x, target, grads, work, weights, y, dy, dx)
    _nrt_python.memsys_enable_stats()
    try:
        before = rtsys.get_allocation_stats().alloc
        steps(1000, plan, params, x, target, grads, work, weights, y, dy, dx)
        # One for each array that comes in from Python, none for the 4,000 calls.
        assert rtsys.get_allocation_stats().alloc - before <= 9
    finally:
        _nrt_python.memsys_disable_stats()
    steps.py_func(3, plan, params, x, target, grads, work, weights, y, dy, dx)
    tracemalloc.start()
    try:
        base = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        steps.py_func(200, plan, params, x, target, grads, work, weights, y, dy, dx)
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Boxed numbers and argument tuples of one call, never an array: x alone is 120 bytes plus NumPy's own object.
    assert left - base < 512
    assert peak - base < 2048


CACHED = """
import sys
import numpy as np
import numba
import nbprop

net = nbprop.network((3,), nbprop.dense(4, activation="tanh"), nbprop.dense(2))
GLOBAL = nbprop.plan(net, loss="mse", batch=8)


@numba.njit(cache=True)
def by_argument(plan, params, x, target, grads, work):
    return nbprop.value_and_grad(plan, params, x, target, grads, work)


@numba.njit(cache=True)
def by_global(params, x, target, grads, work):
    return nbprop.value_and_grad(GLOBAL, params, x, target, grads, work)


params = nbprop.init(net, seed=2)
x, target, grads, work = np.ones((8, 3)), np.zeros((8, 2)), np.empty(net.n_params), nbprop.workspace(GLOBAL)
rest = (params, x, target, grads, work)
for function, values in ((by_argument, (GLOBAL, *rest)), (by_global, rest)):
    try:
        print(function(*values), end=" ")
    except RuntimeError as error:
        print(f"RuntimeError: {error}", end=" ")
print(sum(by_argument.stats.cache_hits.values()), sum(by_global.stats.cache_hits.values()))
"""


def test_a_users_cache_lives_on_and_dies_with_the_version(script, tmp_path):
    """cache=True across processes: hits, same numbers; after an upgrade of nbprop a clear error, never a wrong jump."""
    # Numba keys its index on the source's path and time: one file for all runs. Its cache lies beside it.
    (tmp_path / "user.py").write_text(CACHED, encoding="utf-8")
    run = "import runpy; runpy.run_path('user.py', run_name='user')"
    package = tmp_path / "upgraded"
    shutil.copytree(ROOT / "nbprop", package / "nbprop", ignore=shutil.ignore_patterns("__pycache__", "data"))
    original = script(run, PYTHONPATH=package)
    again = script(run, PYTHONPATH=package)
    loss = original.split()[0]
    assert original == f"{loss} {loss} 0 0\n"
    assert again == f"{loss} {loss} 1 1\n"
    source = package / "nbprop" / "runtime" / "walker.py"
    source.write_text(source.read_text(encoding="utf-8") + "\n# another version\n", encoding="utf-8")
    upgraded = script(run, PYTHONPATH=package)
    assert upgraded.count("RuntimeError: ") == 2
    assert "another version of nbprop" in upgraded
    assert upgraded.endswith(" 1 1\n")
