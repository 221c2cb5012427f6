"""Train on handwritten digits with several processes, and get the same network, to the last bit, as with one.

    python examples/cluster/mpi_digits.py                     starts two processes itself
    mpiexec -n 4 python examples/cluster/mpi_digits.py        as a cluster does (srun in SLURM)

Each process computes the gradients of its pieces of every batch; the pieces are summed in one tree, whose order does
not depend on the processes. The training can be killed and resumed on another number of them.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

import nbprop
import nbprop.data


def train(comm, epochs, checkpoint):
    """Train on all processes of comm; prints on the first one."""
    images, labels = nbprop.data.digits()
    train_x, train_y, test_x, test_y = images[:-300], labels[:-300], images[-300:], labels[-300:]
    net = nbprop.network((64,), nbprop.dense(64, activation="tanh"), nbprop.dense(10))
    params = nbprop.init(net, seed=0, dtype=np.float32)
    history = nbprop.fit(
        *(net, params, train_x, train_y, "softmax_cross_entropy"),
        **{"lr": 0.005, "batch": 64, "epochs": epochs, "seed": 0, "progress": False},
        **{"checkpoint": checkpoint, "resume": checkpoint is not None},
        **{"comm": comm, "pieces": 8},
    )
    if comm.Get_rank() == 0:
        right = (nbprop.predict(net, params, test_x, kind="classes", loss="softmax_cross_entropy") == test_y).mean()
        print(f"{comm.Get_size()} processes, {history.epochs} epochs: loss {history.loss[-1]:.4f}, {right:.1%} right")
        print(f"parameters: {hashlib.blake2b(params.tobytes(), digest_size=8).hexdigest()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="how many to start (default: 2)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--checkpoint", help="a file to write the state to, and to resume from")
    arguments = parser.parse_args()
    from mpi4py import MPI

    started = {"PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"} & os.environ.keys()
    if started or arguments.processes == 1:
        train(MPI.COMM_WORLD, arguments.epochs, arguments.checkpoint)
        return 0
    beside = str(Path(sys.executable).parent)
    mpiexec = shutil.which("mpiexec", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if mpiexec is None:
        print("there is no mpiexec; install an MPI, for example with `pip install mpich`", file=sys.stderr)
        return 1
    return subprocess.run([mpiexec, "-n", str(arguments.processes), sys.executable, *sys.argv]).returncode


if __name__ == "__main__":
    sys.exit(main())
