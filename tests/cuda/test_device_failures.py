"""What goes wrong around a device: arrays in the wrong memory, streams, no room, a lost device. Host data stays."""

import numpy as np
import pytest
from foreign import Foreign

import nbprop
import nbprop.cuda
from nbprop.cuda import memory, toolkit
from support.cases import same_bits

NET = nbprop.network((3,), nbprop.dense(2))
RNG = np.random.default_rng(5)
X, TARGET = RNG.standard_normal((6, 3)).astype(np.float32), RNG.standard_normal((6, 2)).astype(np.float32)
PARAMS = nbprop.init(NET, dtype=np.float32)
device = nbprop.cuda.to_device


# -- the wrong memory ----------------------------------------------------------------------------------------


class OnlyDLPack:
    """An array on a GPU that speaks DLPack and nothing else."""

    def __dlpack_device__(self):
        return 2, 0


def _plan(target="cpu"):
    return nbprop.plan(NET, "mse", 6, np.float32, target=target)


ON_THE_CPU = {
    "value": lambda a: nbprop.value(_plan(), PARAMS, a, TARGET, nbprop.workspace(_plan())),
    "objective": lambda a: nbprop.objective(_plan(), a, TARGET),
    "objective: theta": lambda a: nbprop.objective(_plan(), X, TARGET)(a),
    "minimize": lambda a: nbprop.minimize(_plan(), a, X, TARGET),
    "fit": lambda a: nbprop.fit(NET, PARAMS.copy(), a, TARGET, "mse"),
    "fit, mask": lambda a: nbprop.fit(NET, PARAMS.copy(), X, TARGET, "mse", trainable=a),
    "adam": lambda a: nbprop.adam(PARAMS.copy(), a, nbprop.optimizer_state("adam", 8, np.float32), 0),
    "clip_norm": lambda a: nbprop.clip_norm(a, 1.0),
}


@pytest.mark.parametrize("case", ON_THE_CPU)
def test_device_arrays_are_refused_on_the_cpu(case):
    for array in (device(PARAMS), OnlyDLPack()):
        with pytest.raises(TypeError, match="is in device memory, but this call runs on the CPU; copy it to the host"):
            ON_THE_CPU[case](array)


def on_device():
    """Arguments of value on the device."""
    return [_plan("cuda"), device(PARAMS), device(X), device(TARGET), nbprop.workspace(_plan("cuda"))]


def test_another_devices_arrays_are_refused(monkeypatch):
    given = on_device()
    elsewhere = device(X)
    elsewhere.device = 1
    with pytest.raises(ValueError, match="value: x lies in the memory of device 1, but the plan runs on device 0"):
        nbprop.value(*given[:2], elsewhere[:3], *given[3:])
    for found, text in ((1, "device 1"), (None, "no device that the driver knows")):
        monkeypatch.setattr(toolkit, "device_of", lambda address, found=found: found)
        with pytest.raises(ValueError, match=f"value: x lies in the memory of {text}, but the plan runs on device 0"):
            nbprop.value(*given[:2], Foreign(given[2]), *given[3:])
    monkeypatch.setattr(toolkit, "current_device", lambda: 1)
    with pytest.raises(ValueError, match="value: the plan was made for device 0, but device 1 is the current one"):
        nbprop.value(*given)


def test_pending_work_is_waited_for(monkeypatch):
    waited, given = [], on_device()
    monkeypatch.setattr(toolkit, "wait_for", waited.append)
    for stream in (7, 1, None):  # somebody's, the default one, none named
        nbprop.value(*given[:2], Foreign(given[2], stream=stream), *given[3:])
    assert waited == [7]
    with pytest.raises(ValueError, match="value: x names stream 0"):
        nbprop.value(*given[:2], Foreign(given[2], stream=0), *given[3:])
    assert given[2].__cuda_array_interface__["stream"] == 1


def test_a_plan_of_the_cpu_makes_no_recorded_step():
    with pytest.raises(ValueError, match='TrainingStep: the plan runs on the CPU; make it with target="cuda"'):
        nbprop.cuda.TrainingStep(_plan(), *on_device()[1:4])


# -- no room, and a lost device ------------------------------------------------------------------------------


def test_fit_without_room_changes_nothing(monkeypatch):
    params, data = device(PARAMS), (device(X), device(TARGET))
    room, allocate = 2000, toolkit.allocate

    def few(size):
        nonlocal room
        room -= size
        if room < 0:
            raise MemoryError(f"the device has no room for {size} bytes")
        return allocate(size)

    monkeypatch.setattr(toolkit, "allocate", few)
    with pytest.raises(MemoryError, match="the device has no room for"):
        nbprop.fit(NET, params, *data, "mse")
    same_bits("params", params.to_host(), PARAMS)


class DriverError(Exception):
    """As numba-cuda raises it."""

    def __init__(self, code, name):
        super().__init__(f"[{code}] Call to cuMemcpyDtoHAsync results in {name}")
        self.code = code


def failing(monkeypatch, calls, error):
    """Let the driver fail after so many more reads."""
    work = toolkit.host_array

    def host_array(*arguments):
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise error
        return work(*arguments)

    monkeypatch.setattr(toolkit, "host_array", host_array)


@pytest.mark.skipif(not nbprop.cuda.simulated(), reason="a stand-in for a driver's errors")
@pytest.mark.parametrize("name", ["CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_ILLEGAL_ADDRESS"])
def test_a_lost_device_is_named_and_host_data_stays(name, monkeypatch):
    given, host = on_device(), np.full(8, 3, np.float32)
    failing(monkeypatch, 0, DriverError(700, name))
    for call in (lambda: nbprop.value(*given), given[1].to_host, lambda: given[1].copy_from(host)):
        with pytest.raises(
            nbprop.cuda.DeviceLostError, match=rf"the CUDA device is lost \({name}\) with the contents of its memory"
        ):
            call()
    assert (host == 3).all()


@pytest.mark.skipif(not nbprop.cuda.simulated(), reason="a stand-in for a driver's errors")
def test_other_errors_of_the_driver_go_through(monkeypatch):
    given = on_device()
    failing(monkeypatch, 0, DriverError(1, "CUDA_ERROR_INVALID_VALUE"))
    with pytest.raises(DriverError, match="CUDA_ERROR_INVALID_VALUE"):
        nbprop.value(*given)


@pytest.mark.skipif(not nbprop.cuda.simulated(), reason="a stand-in for a driver's errors")
def test_fit_goes_on_from_its_checkpoint_after_the_device_was_lost(tmp_path, monkeypatch):
    whole, data = device(PARAMS), (device(X), device(TARGET), "mse")
    options = {"batch": 3, "checkpoint": tmp_path / "point", "checkpoint_seconds": 0}
    nbprop.fit(NET, whole, *data, batch=3, epochs=3)
    with monkeypatch.context() as patch:

        def lose(history):
            if history.epochs == 2:
                failing(patch, 0, DriverError(719, "CUDA_ERROR_LAUNCH_FAILED"))

        with pytest.raises(nbprop.cuda.DeviceLostError):
            nbprop.fit(NET, device(PARAMS), *data, epochs=3, callback=lose, **options)
    again = device(np.zeros_like(PARAMS))
    nbprop.fit(NET, again, *data, epochs=3, resume=True, **options)
    same_bits("params", again.to_host(), whole.to_host())


def test_views_and_copies_know_their_device():
    array = device(X)
    array.device = 1
    assert array[1:].device == array.reshape(18).device == 1
    assert array.__dlpack_device__() == (memory.dlpack.DEVICE, 1)
