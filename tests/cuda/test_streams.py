"""The order of work on several streams, by streams that put it off as long as CUDA lets them (see delayed.py)."""

import delayed
import numpy as np
import pytest

import nbprop
import nbprop.cuda
from nbprop.cuda import kernels, memory, oneblock, toolkit
from nbprop.cuda.plan import DevicePlan
from nbprop.losses import loss_named
from support.cases import same_bits

pytestmark = pytest.mark.skipif(not nbprop.cuda.simulated(), reason="a model of a device's streams")

NET = nbprop.network((3,), nbprop.dense(5, activation="tanh"), nbprop.dense(2))
RNG = np.random.default_rng(5)
X, TARGET = RNG.standard_normal((7, 3)).astype(np.float32), RNG.standard_normal((7, 2)).astype(np.float32)
device = nbprop.cuda.to_device


def trained_by_steps(read_between=False):
    """Parameters after steps on data that changes between them; the caller never waits."""
    params, x = device(nbprop.init(NET, dtype=np.float32)), device(X)
    step = nbprop.cuda.TrainingStep(nbprop.plan(NET, "mse", 7, np.float32, target="cuda"), params, x, device(TARGET))
    for k in range(10):  # more than a page
        x[:] = device(X * np.float32(k))
        step()
        if read_between:
            params.to_host()
    return params.to_host()


def fitted(validation=True):
    """Parameters after a fit that keeps the best ones, which its last epochs are not."""
    params, data = device(nbprop.init(NET, dtype=np.float32)), (device(X), device(TARGET))
    options = {"validation": (device(X[:3]), device(TARGET[:3]))} if validation else {}
    options |= {"schedule": lambda step: 0.05 if step < 6 else 3.0}
    history = nbprop.fit(NET, params, *data, "mse", optimizer="sgd", batch=4, epochs=6, patience=9, **options)
    assert history.best_epoch < 5
    return params.to_host()


def stepped_on_another_stream(make):
    """Steps made on the default stream and called within a stream of the caller's, and the other way round."""
    plan, found = nbprop.plan(NET, "mse", 7, np.float32, target="cuda"), []
    for made, called in ((0, make()), (make(), 0), (make(), make())):
        params, x = device(nbprop.init(NET, dtype=np.float32)), device(X)
        with nbprop.cuda.use_stream(made):
            step = nbprop.cuda.TrainingStep(plan, params, x, device(TARGET))
        with nbprop.cuda.use_stream(called):
            for k in range(3):
                x[:] = device(X * np.float32(k))
                step()
            found.append(params.to_host())
    return np.array(found)


WORKS = {
    "steps": trained_by_steps,
    "steps, read between": lambda: trained_by_steps(read_between=True),
    "fit, best epoch": lambda: fitted(validation=False),
    "fit, best by validation": fitted,
}


@pytest.mark.parametrize("stream", ["default", pytest.param("nbprop's", marks=pytest.mark.more), "non-blocking"])
@pytest.mark.parametrize("work", WORKS)
def test_work_keeps_its_order(work, stream, monkeypatch):
    """Whatever stream is the current one."""
    wanted = WORKS[work]()
    default = delayed.use(monkeypatch)
    streams = {"default": lambda: 0, "nbprop's": toolkit.new_stream, "non-blocking": delayed.Stream}
    with nbprop.cuda.use_stream(streams[stream]()):
        same_bits("params", WORKS[work](), wanted)
    assert default.works or stream != "default", "the model of the streams was not used"


@pytest.mark.parametrize("kind", ["nbprop's", "non-blocking"])
def test_steps_called_on_another_stream_keep_their_order(kind, monkeypatch):
    wanted = stepped_on_another_stream(toolkit.new_stream)
    delayed.use(monkeypatch)
    make = toolkit.new_stream if kind == "nbprop's" else delayed.Stream
    same_bits("params", stepped_on_another_stream(make), wanted)


@pytest.mark.parametrize("work", WORKS)
def test_the_model_sees_streams_without_order(work, monkeypatch):
    """With step streams that do not block, as cuda.core makes them, the same works go wrong."""
    wanted = WORKS[work]()
    delayed.use(monkeypatch, blocking=False)
    assert (WORKS[work]() != wanted).any()


def test_an_array_is_there_once_it_is_written(monkeypatch):
    """A write is waited for: the host array may change, and any stream may read."""
    delayed.use(monkeypatch)
    host, array = np.ones(3, np.float32), nbprop.cuda.empty(3)
    array.copy_from(host)
    host[:] = 2
    with nbprop.cuda.use_stream(delayed.Stream()):
        same_bits("array", array.to_host(), np.ones(3, np.float32))
    assert memory.current_stream() == 0


# -- graphs --------------------------------------------------------------------------------------------------


def test_a_capture_that_fails_is_made_again(monkeypatch):
    """The call that failed raises, the builder is closed, and the next call records and takes the step."""
    closed, failing = [], True

    class Graph(toolkit.SimulatedGraph):
        def enqueue(self, work):
            if failing:
                raise RuntimeError("no capture today")
            super().enqueue(work)

        def close(self):
            closed.append(failing)
            if failing:
                raise RuntimeError("the capture was invalidated")

    monkeypatch.setattr(toolkit, "SimulatedGraph", Graph)
    plan, params = nbprop.plan(NET, "mse", 7, np.float32, target="cuda"), device(nbprop.init(NET, dtype=np.float32))
    step, before = nbprop.cuda.TrainingStep(plan, params, device(X), device(TARGET)), params.to_host()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no capture today"):
            step()
    assert np.isnan(step.loss())
    same_bits("params", params.to_host(), before)
    failing = False
    step()
    assert step.loss() > 0
    assert closed == [True, True, False]


@pytest.mark.parametrize("small", [True, False])
def test_nothing_is_made_ready_while_a_graph_is_recorded(small, monkeypatch):
    """Every kernel has been compiled before: in the rehearsal, or by a launch of its own."""
    if not small:
        monkeypatch.setattr(oneblock, "MOST_ELEMENTS", 0)
    recording, compiled = [], []
    compile_, begin, end = toolkit.compile, toolkit.SimulatedGraph.begin_building, toolkit.SimulatedGraph.end_building
    monkeypatch.setattr(toolkit, "compile", lambda *given: compiled.append(bool(recording)) or compile_(*given))
    monkeypatch.setattr(toolkit.SimulatedGraph, "begin_building", lambda graph: recording.append(1) or begin(graph))
    monkeypatch.setattr(toolkit.SimulatedGraph, "end_building", lambda graph: recording.clear() or end(graph))
    kernels.DeviceKernel.compiled.cache_clear()
    oneblock._compiled.cache_clear()
    plan = DevicePlan(NET, loss_named("mse"), 7, np.dtype(np.float32), 1, "training")
    params = device(nbprop.init(NET, dtype=np.float32))
    nbprop.cuda.TrainingStep(plan, params, device(X), device(TARGET))()
    assert compiled
    assert not any(compiled)
