"""Several processes with a device each, in the simulator: the same bits on any number of them, by any transport."""

import functools
import os
from pathlib import Path

import launching
import numpy as np
import pytest

import nbprop
from nbprop.cluster.parts import check_transport

pytest.importorskip("mpi4py")
pytestmark = pytest.mark.skipif(launching.MPIEXEC is None, reason="no mpiexec")
TESTS = Path(__file__).parents[1]
ENVIRONMENT = {
    "NUMBA_ENABLE_CUDASIM": "1",
    "PYTHONPATH": os.pathsep.join(str(place) for place in (TESTS / "cuda", TESTS)),
}
SCRIPT = Path(__file__).with_name("on_device_ranks.py")
run, result = (functools.partial(f, SCRIPT, **ENVIRONMENT) for f in (launching.run, launching.result))


# The script compares groups of one rank, of two and of four.
@pytest.mark.more
def test_bits_of_trainings_are_the_same_on_1_2_and_4_ranks():
    whole, split = result(4, "trainings", "sharded")
    assert whole != split  # whose samples are shuffled in another way


@pytest.mark.more
def test_bits_of_all_kinds_of_trainings_are_the_same_on_1_2_and_3_ranks():
    assert (
        len({tuple(found) for found in result(3, "trainings")}) == 8
    )  # of four kinds, sharded or not, whole and split


@pytest.mark.more
def test_bits_of_objectives_and_searches_are_the_same_on_1_2_and_4_ranks():
    assert len(result(4, "objectives")) == 5


@pytest.mark.more
def test_bits_of_networks_and_optimizers_are_the_same_on_1_2_and_4_ranks():
    assert len(result(4, "networks")) > 25


@pytest.mark.more
def test_the_transports_give_the_same_bits_and_nccl_is_asked_for_whole_groups():
    """Also on streams that put their work off: MPI sends nothing unfinished, and NCCL's calls keep their place."""
    found, groups = result(2, "transported")
    assert {tuple(digests) for digests in found.values()} == {tuple(found["plain, host, False"])}
    assert len(found) == 12
    # 86 parameters, of which rank 0 adds 64: each step, and in the end an objective of 31 float64 in one chunk.
    step = [[["send", 1, 4 * 22], ["recv", 1, 4 * 64]], [["broadcast", 0, 4 * 64], ["broadcast", 1, 4 * 22]]]
    assert groups == step * 6 + [[["recv", 1, 8 * 31]], [["broadcast", 0, 8 * 31]]]


@pytest.mark.more
def test_what_one_rank_finds_wrong_all_ranks_say():
    found = result(2, "refusals")
    for name, words in {
        "differ": "RankError: fit: transport differs between ranks: 'mpi' on rank 0, 'host' on rank 1",
        "objectives differ": "RankError: objective: transport differs between ranks: 'mpi' on rank 0, 'host' on rank 1",
        "unknown": "ValueError: fit: transport: unknown name 'tcp'; known: host, mpi, nccl",
        "no binding": 'RuntimeError: fit: transport="nccl" needs nccl4py',
        "no library": 'RuntimeError: fit: transport="nccl" needs the library NCCL; install both with: pip install',
        "other library": "RankError: fit: the version of NCCL differs between ranks: '2.30.0' on rank 0, '2.31.0' on",
        "one device": "RankError: fit: ranks 0 and 1 use the same device, GPU-7; call nbprop.cuda.use_device_of_rank",
        "too few devices": "RuntimeError: use_device_of_rank: ",
        "no device on one": "RuntimeError: use_device_of_rank: ",
        "data differ": "RankError: fit: x, of which all ranks must hold the same, differs between ranks",
        "data of objectives differ": "RankError: objective: target, of which all ranks must hold the same, differs",
        "params differ": "RankError: fit: params (start all ranks from the same seed) differs between ranks",
        "theta differs": "RankError: objective: the parameters differ between ranks",
        "places differ": "RankError: fit: where it runs differs between ranks: 'cuda' on rank 0, 'cpu' on rank 1",
    }.items():
        other, own = found.pop(name)
        assert other == own
        assert other.startswith(words)
        assert "devices" not in name or "has 2 ranks and 1 devices; start at most one rank for each" in other
    for name, function, words in (
        ("no binding on one", "fit", 'RuntimeError: fit: transport="nccl" needs nccl4py'),
        ("NaN on one", "fit", "ValueError: fit: x[7, 1] is nan"),
        ("fails on one", "fit", "MemoryError: the device has no room"),
        ("objective fails on one", "objective", "MemoryError: the device has no room"),
    ):
        other, own = found.pop(name)
        assert own.startswith(words)
        assert other.startswith(f"RankError: {function}: rank 1 failed: {words}")
    # The numbers of the devices that the ranks take, by what each sees.
    assert found.pop("devices") == {"all": [0, 1], "its own": [0, 0], "more": [0, 1]}
    assert not found


@pytest.mark.more
def test_an_error_amid_messages_ends_all_ranks_with_what_it_was():
    done = run(2, "broken", timeout=120)
    assert done.returncode != 0
    words = "fit: rank 1 failed amid messages, which ends all ranks: ncclSystemError: unhandled system error"
    assert words in done.stderr


@pytest.mark.more
def test_a_training_resumes_on_another_number_of_ranks(tmp_path):
    assert result(2, "resumed", tmp_path)


@pytest.mark.parametrize(("comm", "on_device", "words"), [(None, True, "pass comm, too"), (1, False, "leave it out")])
def test_a_transport_is_for_several_ranks_with_devices(comm, on_device, words):
    with pytest.raises(ValueError, match=f"fit: transport= is how arrays on devices travel between ranks.*{words}"):
        check_transport("fit", "mpi", comm, on_device)


def test_a_transport_in_one_process_is_refused():
    net, (x, target) = nbprop.network((2,), nbprop.dense(1)), (np.ones((4, 2)), np.ones((4, 1)))
    plan, params = nbprop.plan(net, "mse", 4), nbprop.init(net)
    for call in (
        lambda: nbprop.fit(net, params, x, target, "mse", transport="nccl"),
        lambda: nbprop.objective(plan, x, target, transport="nccl"),
        lambda: nbprop.minimize(plan, params, x, target, transport="nccl"),
    ):
        with pytest.raises(ValueError, match="transport= is how arrays on devices travel between ranks"):
            call()
