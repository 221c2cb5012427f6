"""What the toolkit asks of CUDA's driver and of cuda.core, with stand-ins for them: needs numba-cuda, and no GPU."""

from types import SimpleNamespace

import pytest

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "nbprop[cuda-gate]"')

import nbprop.cuda

if nbprop.cuda.simulated():
    pytest.skip("the simulator has no driver", allow_module_level=True)

from nbprop.cuda import toolkit, transports


class Device:
    """cuda.core's, of which there is one; `log` is what was asked of it and of what it made."""

    def __init__(self, log):
        self.log = log

    def create_stream(self, options=None):
        self.log.append(("stream", options.nonblocking))
        return SimpleNamespace(name="made")

    def create_graph_builder(self):
        return Builder(self.log)


class Builder:
    """A graph builder that says what happens to it; fails to end where the log says so."""

    def __init__(self, log):
        self.log = log

    def begin_building(self):
        self.log.append("begin")

    def end_building(self):
        self.log.append("end")
        return self

    def complete(self):
        return SimpleNamespace(launch=lambda stream: self.log.append(("launch", stream)))

    def close(self):
        self.log.append("close")


@pytest.fixture
def log(monkeypatch):
    found = []
    monkeypatch.setattr(toolkit, "_core_device", lambda: Device(found))
    return found


def test_streams_block_with_the_default_one(log):
    assert toolkit.new_stream().name == "made"
    assert log == [("stream", False)]


def test_graphs_are_recorded_on_a_stream_of_their_own(log):
    capture = toolkit.Capture(lambda stream: log.append(type(stream).__name__))
    assert log == ["_Rehearsal", "begin", "Builder", "end", "close"]
    capture.replay("a stream")
    assert log[-1] == ("launch", "a stream")


def test_a_failing_recording_closes_its_builder(log):
    def enqueue(stream):
        if isinstance(stream, Builder):
            raise RuntimeError("no launch today")

    with pytest.raises(RuntimeError, match="no launch today"):
        toolkit.Capture(enqueue)
    assert log == ["begin", "close"]


@pytest.mark.parametrize("shared", [0, 100])
def test_kernels_are_loaded_on_each_device_before_their_launches(shared, log, monkeypatch):
    """Once for each; and where they ask for it, the device lets them have all of its shared memory."""
    from numba.cuda.cudadrv import driver

    def function():
        return SimpleNamespace(handle="handle", device=SimpleNamespace(id=here), attrs=SimpleNamespace(shared=27))

    class Kernel:
        def __init__(self):
            self.overloads = {"signature": SimpleNamespace(_codelibrary=SimpleNamespace(get_cufunc=function))}

        def __getitem__(self, configuration):
            return lambda *given: log.append(("launch", configuration, given))

    stand_in = SimpleNamespace(
        cuKernelGetFunction=lambda handle: f"{handle} here",
        cuFuncLoad=lambda loaded: log.append(("load", loaded)),
        cuKernelSetAttribute=lambda attribute, most, handle, device: log.append(("most", most, device)),
    )
    monkeypatch.setattr(driver, "driver", stand_in)
    monkeypatch.setattr(toolkit, "current_device", lambda: here)
    monkeypatch.setattr(toolkit, "shared_memory_of_a_block", lambda: 1000)
    kernel, wanted = Kernel(), []
    for here in (0, 1):
        for stream in (toolkit.REHEARSAL, "stream", "stream"):
            toolkit.launch(kernel, 3, stream, lambda: (5,), shared)
        wanted += [("load", "handle here"), *([("most", 973, here)] if shared else [])]
        wanted += [("launch", (3, toolkit.THREADS, "stream", shared), (5,))] * 2
    assert log == wanted


def test_another_library_is_called_with_the_streams_number_and_not_in_a_rehearsal():
    called = []
    for stream in (toolkit.REHEARSAL, 0, SimpleNamespace(__cuda_stream__=lambda: (0, 7))):
        toolkit.call_library(called.append, stream)
    assert called == [0, 7]


def test_waiting_for_the_default_stream_waits_for_those_that_block_with_it(monkeypatch):
    """By an event of its own, for which the driver has it wait for the others; not by the driver's call for streams."""
    waited = []
    event = SimpleNamespace(sync=lambda: waited.append("event"))
    default = SimpleNamespace(record=lambda: event, wait=lambda other: waited.append(other))
    monkeypatch.setattr(toolkit, "_legacy_stream", lambda: default)
    toolkit.synchronize()
    toolkit.follow(0, "another")
    assert waited == ["event", "another"]


def test_devices_are_told_apart_by_what_no_process_counts_differently(monkeypatch):
    gpus = [SimpleNamespace(_device=SimpleNamespace(uuid=name)) for name in ("GPU-a", "GPU-b")]
    current = SimpleNamespace(id=1, compute_capability=(9, 0))
    monkeypatch.setattr(toolkit, "_cuda", SimpleNamespace(gpus=gpus, get_current_device=lambda: current))
    assert toolkit.visible_devices() == ["GPU-a", "GPU-b"]
    assert toolkit.identity_of_device() == "GPU-b"
    found = toolkit.kind_of_device()
    assert found["the device"] == "compute capability 9.0"
    assert found["the version of numba-cuda"]


@pytest.mark.parametrize(
    ("name", "aware", "chosen"),
    [(None, True, "mpi"), (None, False, "host"), (None, None, "host"), ("host", True, "host"), ("mpi", None, "mpi")],
)
def test_the_transport_is_the_mpi_s_where_it_is_cuda_aware(monkeypatch, name, aware, chosen):
    agreed = []
    ranks = SimpleNamespace(
        function="fit", comm=None, rank=0, size=1, agree=agreed.append, gather=lambda value: [value]
    )
    monkeypatch.setattr(transports, "mpi_takes_device_memory", lambda: aware)
    monkeypatch.setattr(toolkit, "identity_of_device", lambda: "GPU-a")
    monkeypatch.setattr(toolkit, "kind_of_device", lambda: {"the device": "compute capability 9.0"})
    assert transports.open_transport(ranks, name).name == chosen
    assert agreed == [{"transport": chosen, "the device": "compute capability 9.0"}]


def test_an_mpi_that_is_not_cuda_aware_gets_no_device_memory(monkeypatch):
    monkeypatch.setattr(transports, "mpi_takes_device_memory", lambda: False)
    with pytest.raises(RuntimeError, match=r'fit: transport="mpi" needs a CUDA-aware MPI, and this one says'):
        transports.open_transport(SimpleNamespace(function="fit", comm=None, rank=0, size=1), "mpi")
