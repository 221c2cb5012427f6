"""Several processes over MPI: the same bits on any number of them, and no error that leaves one waiting."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nbprop.cluster import ranks as ranks_module

pytest.importorskip("mpi4py")
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec")
SCRIPT = Path(__file__).with_name("on_ranks.py")


def run(size, *arguments, timeout=240, **environment):
    """Run a function of on_ranks.py on so many ranks; the finished process."""
    return subprocess.run(
        [MPIEXEC, "-n", str(size), sys.executable, str(SCRIPT), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def result(size, *arguments, **environment):
    done = run(size, *arguments, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("what", ["solvers", "trainings"])
def test_bits_are_the_same_on_1_2_and_4_ranks(what):
    alone = result(1, what)
    assert len(set(alone)) > 5
    assert result(2, what) == alone
    assert result(4, what) == alone


def test_bits_of_all_networks_solvers_and_optimizers_are_the_same_on_1_2_and_4_ranks():
    compared = result(4, "everything")
    assert len(compared) > 100
    assert {"dense", "lstm", "L-BFGS", "marquardt", "adam"} <= set(compared)


@pytest.mark.more
def test_gradients_in_compiled_code_have_the_bits_of_an_objective_on_any_number_of_ranks():
    pytest.importorskip("numba_mpi")
    alone = result(1, "compiled")
    assert result(2, "compiled") == alone
    assert result(3, "compiled") == alone


@pytest.mark.more
def test_bits_are_the_same_on_3_ranks():
    assert result(3, "solvers") == result(1, "solvers")
    assert result(3, "trainings") == result(1, "trainings")


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


@pytest.mark.parametrize("comm", [1, "world", object()])
def test_what_is_no_communicator_is_refused(comm):
    with pytest.raises(TypeError, match="objective: comm must be a communicator of mpi4py"):
        ranks_module.check_comm("objective", comm)
