"""Several processes over MPI: the same bits on any number of them, and no error that leaves one waiting."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import launching
import pytest
from launching import MPIEXEC

from nbprop.cluster import ranks as ranks_module

pytest.importorskip("mpi4py")
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec")
SCRIPT = Path(__file__).with_name("on_ranks.py")


run, result = (functools.partial(function, SCRIPT) for function in (launching.run, launching.result))


# Of the solvers, test_bits_of_all_networks_solvers_and_optimizers_are_the_same takes some.
@pytest.mark.parametrize("what", [pytest.param("solvers", marks=pytest.mark.more), "trainings"])
def test_bits_are_the_same_on_1_and_2_ranks(what):
    alone = result(1, what)
    assert len(set(alone)) > 5
    assert result(2, what) == alone


@pytest.mark.parametrize("which", ["some", pytest.param("all", marks=pytest.mark.more)])
def test_bits_of_all_networks_solvers_and_optimizers_are_the_same_on_1_2_and_4_ranks(which):
    compared = result(4, "everything", which)
    assert len(compared) > 100
    assert {"dense", "lstm", "L-BFGS", "marquardt", "adam"} <= set(compared)


@pytest.mark.more
def test_gradients_in_compiled_code_have_the_bits_of_an_objective_on_any_number_of_ranks():
    pytest.importorskip("numba_mpi")
    alone = result(1, "compiled")
    assert result(2, "compiled") == alone
    assert result(3, "compiled") == alone


@pytest.mark.more
@pytest.mark.parametrize("what", ["solvers", "trainings"])
def test_bits_are_the_same_on_3_and_4_ranks(what):
    alone = result(1, what)
    assert result(3, what) == alone
    assert result(4, what) == alone


def openmpi():
    """(mpiexec and its options, environment) of Debian's Open MPI, or of another with that name; skips without."""
    found = shutil.which("mpiexec.openmpi")
    if found is None:
        pytest.skip("no mpiexec.openmpi: apt install openmpi-bin")
    libraries = sorted(Path(os.path.realpath(found)).parents[1].glob("lib/*/libmpi.so.40"))
    if not libraries:
        pytest.skip("no libmpi.so.40 beside mpiexec.openmpi")
    # The wheel of mpi4py has an extension for each of the two binary interfaces.
    environment = {"MPI4PY_MPIABI": "openmpi", "MPI4PY_LIBMPI": str(libraries[0])}
    as_root = dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
    return {"mpiexec": (found, "--oversubscribe"), **environment, **as_root}


@pytest.mark.more
def test_debian_s_open_mpi_gives_the_bits_of_mpich(tmp_path):
    other = openmpi()
    for what in ("solvers", "trainings"):
        assert result(3, what, **other) == result(1, what)
    assert result(2, "refusals", **other) == result(2, "refusals")
    whole = result(1, "training", tmp_path / "..")
    (tmp_path / "../run.safetensors").unlink()
    done = run(2, "training", tmp_path, STOP=json.dumps([int(signal.SIGKILL), 1, 3]), **other)
    assert done.returncode != 0
    assert result(3, "training", tmp_path, **other) == whole


@pytest.mark.more
def test_a_rank_that_hangs_ends_with_the_job_s_time(tmp_path):
    """As at a scheduler's wall time: mpiexec gets SIGTERM, and no rank is left."""
    with pytest.raises(subprocess.TimeoutExpired):
        run(2, "hang", tmp_path, timeout=60)
    ranks = [int(path.name) for path in tmp_path.iterdir()]
    assert len(ranks) == 2
    deadline = time.monotonic() + 20
    while any(map(_runs, ranks)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_runs, ranks))


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_what_one_rank_finds_wrong_all_ranks_say():
    found = iter(result(2, "refusals"))
    other, own = next(found)
    assert own == "ValueError: objective: x holds NaN or infinity at x[7, 1]" or "x[7, 1]" in own
    assert other.startswith("RankError: objective: rank 1 failed: ValueError: objective: x")
    other, own = next(found)
    assert "rank 1 failed: ValueError: fit: x" in other
    assert "x[7, 1]" in own
    for words in ("fit: params (start all ranks from the same seed) differs", "minimize: params differs"):
        other, own = next(found)
        assert other == own
        assert other.startswith(f"RankError: {words} between ranks")
    other, own = next(found)
    assert (
        other
        == own
        == (
            "RankError: fit: x has 300 samples on rank 0 and 301 on rank 1; give all ranks the whole data, or each its "
            "part with data='split'"
        )
    )
    other, own = next(found)
    assert other == own
    assert "of 140 samples in 7 pieces, rank 0 must hold" in other
    assert "nbprop.rank_rows(comm, 140, 7, 128)" in other
    for _ in range(2):
        other, own = next(found)
        assert own == "OSError: the disk is full"
        assert other.endswith("rank 1 failed: OSError: the disk is full")
    other, own = next(found)
    assert other == own
    assert "the parameters differ between ranks" in other
    other, own = next(found)
    assert other == own
    assert "one comes to a loss, another to a gradient" in other
    other, own = next(found)
    assert (
        other
        == own
        == (
            "ValueError: fit: 2 ranks need at least as many pieces, got pieces=1; results depend on pieces and not on "
            "ranks, so choose a number for all runs that are to be the same"
        )
    )
    other, own = next(found)
    assert other == own
    assert "1.batchnorm computes statistics over a batch" in other
    for words in ("seed differs between ranks: 0 on rank 0, 1 on rank 1", "shard_update differs between ranks"):
        other, own = next(found)
        assert other == own
        assert other.startswith(f"RankError: fit: {words}")
    other, own = next(found)
    assert other == own
    assert "shard_update does not go with optimizer_state" in other
    other, own = next(found)
    assert own.startswith("ValueError: objective: x")
    assert "rank 1 failed: ValueError: objective: x" in other
    same = "of which all ranks must hold the same, differs"
    for words in (
        *("fit: the network differs", f"fit: x, {same}", f"fit: validation x, {same}", f"objective: x, {same}"),
        *(f"least_squares: target, {same}", "fit: whether there are weights differs", "fit: the loss differs"),
        *("fit: lr_scale differs", "fit: trainable differs", "fit: max_norm differs"),
        "fit: the version of nbprop differs",
    ):
        other, own = next(found)
        assert other == own
        assert other.startswith(f"RankError: {words}")
    for function in ("fit", "minimize"):
        other, own = next(found)
        assert own == "MemoryError: no room"
        assert other == f"RankError: {function}: rank 1 failed: MemoryError: no room"
    assert next(found, None) is None


@pytest.mark.more
@pytest.mark.parametrize(("before", "after"), [("", ""), ("1", "1"), ("1", "")])
def test_a_killed_training_resumes_on_another_number_of_ranks(tmp_path, before, after):
    """Before and after the kill, the update is sharded or not."""
    whole = result(1, "training", tmp_path / "..")
    (tmp_path / "../run.safetensors").unlink()
    done = run(2, "training", tmp_path, STOP=json.dumps([int(signal.SIGKILL), 1, 3]), SHARDED=before)
    assert done.returncode != 0
    assert (tmp_path / "run.safetensors").exists()
    assert result(3, "training", tmp_path, SHARDED=after) == whole


@pytest.mark.more
def test_a_signal_to_a_sharded_training_writes_all_of_its_state(tmp_path):
    whole = result(2, "training", tmp_path / "..")
    (tmp_path / "../run.safetensors").unlink()
    done = run(4, "training", tmp_path, STOP=json.dumps([int(signal.SIGUSR1), 2, 2]), SHARDED="1")
    assert done.returncode == 75
    assert result(3, "training", tmp_path) == whole


@pytest.mark.more
@pytest.mark.parametrize("rank", [0, 1])
def test_a_scheduler_s_warning_writes_a_checkpoint_and_asks_to_be_queued_again(tmp_path, rank):
    whole = result(2, "training", tmp_path / "..")
    (tmp_path / "../run.safetensors").unlink()
    done = run(2, "training", tmp_path, STOP=json.dumps([int(signal.SIGUSR1), rank, 2]))
    assert done.returncode == 75
    assert result(4, "training", tmp_path) == whole


@pytest.mark.more
def test_ctrl_c_on_one_rank_stops_all(tmp_path):
    done = run(2, "training", tmp_path, STOP=json.dumps([int(signal.SIGINT), 1, 2]))
    assert done.returncode != 0
    assert done.stderr.count("KeyboardInterrupt: fit was interrupted after") == 2


EXAMPLE = Path(__file__).parents[2] / "examples/cluster/mpi_digits.py"


@pytest.mark.more
def test_the_example_starts_two_processes_and_says_if_there_is_no_mpiexec():
    command = [sys.executable, str(EXAMPLE), "--epochs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 processes, 1 epochs: loss")
    without = f"import runpy, shutil, sys; shutil.which = lambda *a, **k: None; sys.argv = {command[1:]}"
    program = f"{without}; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stderr == "there is no mpiexec; install an MPI, for example with `pip install mpich`\n"


@pytest.mark.parametrize("comm", [1, "world", object()])
def test_what_is_no_communicator_is_refused(comm):
    with pytest.raises(TypeError, match="objective: comm must be a communicator of mpi4py"):
        ranks_module.check_comm("objective", comm)
