"""Arrays that a device plan refuses, and how; and other libraries' arrays that it takes."""

import pickle

import numpy as np
import pytest
from foreign import Foreign

import nbprop
import nbprop.cuda
from nbprop.cuda import memory

NET = nbprop.network((3,), nbprop.dense(4))
N = 2


@pytest.fixture(scope="module")
def plan():
    return nbprop.plan(NET, "softmax_cross_entropy", batch=N, dtype=np.float32, target="cuda")


@pytest.fixture
def given(plan):
    """Fitting arguments of value_and_grad."""
    return {
        "params": nbprop.cuda.to_device(nbprop.init(NET, dtype=np.float32)),
        "x": nbprop.cuda.to_device(np.ones((N, 3), np.float32)),
        "target": nbprop.cuda.to_device(np.array([3, 0])),
        "grads": nbprop.cuda.zeros(NET.n_params),
        "work": nbprop.workspace(plan),
    }


BAD = {
    "host params": ("params", lambda a: a.to_host(), TypeError, "params is a NumPy array in host memory.*to_device"),
    "host x": ("x", lambda a: a.to_host(), TypeError, "x is a NumPy array in host memory"),
    "list": ("x", lambda a: [[1.0]], TypeError, "x must be a device array"),
    "missing": ("grads", lambda a: None, TypeError, "grads is needed"),
    "dtype": ("x", lambda a: nbprop.cuda.zeros((N, 3), np.float64), TypeError, "x must hold float32, got float64"),
    "shape": ("x", lambda a: nbprop.cuda.zeros((N, 4)), ValueError, r"x must have shape \(1..2, 3\)"),
    "length": ("params", lambda a: a[1:], ValueError, r"params must have shape \(16,\)"),
    "short work": ("work", lambda a: a[2:], ValueError, "work must have shape"),
    "capacity": ("x", lambda a: nbprop.cuda.zeros((N + 1, 3)), ValueError, "x brings more samples"),
    "empty": ("x", lambda a: nbprop.cuda.zeros((0, 3)), ValueError, "x has no samples"),
    "samples": ("target", lambda a: a[:1], ValueError, "target must bring as many samples"),
    "class": ("target", lambda a: nbprop.cuda.to_device(np.array([0, 4])), ValueError, r"classes in 0..3, got 4"),
    "negative class": ("target", lambda a: nbprop.cuda.to_device(np.array([0, -1])), ValueError, "classes in 0..3"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_arguments_are_refused(plan, given, case):
    name, change, error, message = BAD[case]
    given[name] = change(given[name])
    grads = given["grads"]
    with pytest.raises(error, match=f"value_and_grad: {message}" if "classes" not in message else message):
        nbprop.value_and_grad(plan, **given)
    assert grads is None or not grads.to_host().any()


def test_targets_outside_the_losss_range_are_refused(given):
    plan = nbprop.plan(NET, "binary_cross_entropy", batch=N, dtype=np.float32, target="cuda")
    for wrong in (-0.5, 1.0, 4.0):
        target = np.ones((N, 4), np.float32)
        target[1, 2] = wrong
        given |= {"target": nbprop.cuda.to_device(target), "work": nbprop.workspace(plan)}
        if wrong == 1.0:
            assert np.isfinite(nbprop.value_and_grad(plan, **given))
            continue
        with pytest.raises(ValueError, match=rf"target must lie in 0\.\.1 .*got {wrong} at target\[1, 2\]"):
            nbprop.value_and_grad(plan, **given)


def test_shared_memory_is_refused(plan, given):
    given["grads"] = given["params"]
    with pytest.raises(ValueError, match="grads is written and shares memory with params"):
        nbprop.value_and_grad(plan, **given)


def test_device_arrays_are_refused_by_a_cpu_plan(given):
    plan = nbprop.plan(NET, "softmax_cross_entropy", batch=N, dtype=np.float32)
    given["work"] = nbprop.workspace(plan)
    with pytest.raises(TypeError, match="params is in device memory, but this call runs on the CPU"):
        nbprop.value_and_grad(plan, **given)


def test_a_layer_without_a_kernel_is_named():
    identity = nbprop.elementwise("identity_of_mine", lambda x: x, lambda x, y: 1.0)
    with pytest.raises(ValueError, match=r"layer 0\.identity_of_mine has no CUDA kernel for"):
        nbprop.plan(nbprop.network((3,), identity()), target="cuda")


def test_another_target_is_refused():
    with pytest.raises(ValueError, match="target: unknown name 'cudo'; did you mean 'cuda'"):
        nbprop.plan(NET, target="cudo")


def test_plans_pickle(plan, given):
    loss = nbprop.value_and_grad(plan, **given)
    again = pickle.loads(pickle.dumps(plan))
    assert again.target == "cuda"
    assert nbprop.value_and_grad(again, **given) == loss


def test_arrays_of_other_libraries(plan, given):
    loss = nbprop.value_and_grad(plan, **given)
    assert nbprop.value_and_grad(plan, **{name: Foreign(array) for name, array in given.items()}) == loss
    wrong = {"strides": (4, 8)}, {"mask": object()}
    for changes, message in zip(wrong, ("x must be C-contiguous", "x has a mask"), strict=True):
        with pytest.raises(ValueError, match=message):
            nbprop.value_and_grad(plan, **given | {"x": Foreign(given["x"], **changes)})
    grads = Foreign(given["grads"], data=(given["grads"].address, True))
    with pytest.raises(ValueError, match="grads is written and must not be read-only"):
        nbprop.value_and_grad(plan, **given | {"grads": grads})


def test_dlpack_there_and_back():
    ours = nbprop.cuda.to_device(np.arange(6, dtype=np.float32).reshape(2, 3))

    class Other:
        """Speaks DLPack and nothing else."""

        __dlpack__, __dlpack_device__ = ours.__dlpack__, ours.__dlpack_device__

    seen = memory.as_array("x", Other())
    assert (seen.address, seen.shape, seen.dtype) == (ours.address, ours.shape, ours.dtype)


@pytest.mark.skipif(not nbprop.cuda.simulated(), reason="NumPy sees the simulator's memory, not a GPU's")
def test_numpy_sees_our_arrays_through_dlpack():
    from nbprop.cuda import dlpack

    ours = nbprop.cuda.to_device(np.arange(6, dtype=np.int16).reshape(2, 3))
    theirs = np.from_dlpack(ours)
    assert theirs.ctypes.data == ours.address
    assert (theirs == ours.to_host()).all()
    del theirs
    ours.__dlpack__()
    assert not dlpack._alive


def test_views():
    array = nbprop.cuda.to_device(np.arange(12.0).reshape(4, 3))
    assert (array[1:3].to_host() == np.arange(12.0).reshape(4, 3)[1:3]).all()
    assert array[1:3].reshape(-1 + 7).shape == (6,)
    with pytest.raises(TypeError, match="takes slices along its first axis"):
        array[1]
    with pytest.raises(ValueError, match="copy_from: needs float64 of shape"):
        array.copy_from(np.zeros(3))
