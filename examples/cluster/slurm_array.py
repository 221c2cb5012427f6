"""A sweep as an array of SLURM jobs: each fits its share of the candidates as one fleet and writes a file.

    python examples/cluster/slurm_array.py                          starts two tasks itself, and collects
    sbatch --array=0-7 sweep.sh                                     as a cluster does; sweep.sh is
        #SBATCH --cpus-per-task=2 --time=01:00:00 --requeue
        srun python examples/cluster/slurm_array.py --tasks 8 --folder sweep
    python examples/cluster/slurm_array.py --collect --folder sweep

Candidates are penalties and random starts of a network that reads digits. The results are the same, to the last bit,
for any number of tasks. A task that ended early runs again by `sbatch --array=3 sweep.sh`; one that has written its
file has nothing to do.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import nbprop
import nbprop.data

CANDIDATES = [(l2, seed) for l2 in (0.0, 1e-4, 1e-3, 1e-2) for seed in range(4)]
NET = nbprop.network((64,), nbprop.dense(12, activation="tanh"), nbprop.dense(10))


def run_task(task, tasks, folder, maxiter):
    """Fit the candidates task, task + tasks, ...; their losses and accuracies go to a file."""
    path = folder / f"task-{task:04d}-of-{tasks}.npz"
    if path.exists():
        return
    own = np.arange(task, len(CANDIDATES), tasks)
    images, labels = nbprop.data.digits(np.float64)
    order = np.random.default_rng(0).permutation(len(images))
    train, held = order[:400], order[400:800]
    result = thetas = None
    if len(own):
        thetas = np.stack([nbprop.init(NET, seed=CANDIDATES[k][1]) for k in own])
        result = nbprop.fit_many(
            *(NET, thetas, images[train][None], labels[train][None], "softmax_cross_entropy"),
            data=np.zeros(len(own), np.int64),  # all of them share one set
            l2=np.array([CANDIDATES[k][0] for k in own]),
            maxiter=maxiter,
            threads=int(os.environ.get("SLURM_CPUS_PER_TASK", "1")),
        )
    right = [
        (nbprop.predict(NET, theta, images[held], kind="classes", loss="softmax_cross_entropy") == labels[held]).mean()
        for theta in ([] if thetas is None else thetas)
    ]
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with open(unfinished, "wb") as file:
        np.savez(file, own=own, losses=[] if result is None else result.fun, right=right)
    os.replace(unfinished, path)  # whole or not at all


def collect(folder):
    """Print the best candidate of all tasks' files; the exit status."""
    losses, right = np.full(len(CANDIDATES), np.nan), np.full(len(CANDIDATES), np.nan)
    for path in sorted(folder.glob("task-*.npz")):
        with np.load(path) as found:
            losses[found["own"]], right[found["own"]] = found["losses"], found["right"]
    if missing := np.flatnonzero(np.isnan(losses)).tolist():
        print(f"{folder}: candidates {missing} have no result; run their tasks again", file=sys.stderr)
        return 1
    best = int(right.argmax())
    l2, seed = CANDIDATES[best]
    print(f"{len(CANDIDATES)} candidates; the best has l2={l2:g}, seed {seed}: {right[best]:.1%} right")
    print(f"losses: {hashlib.blake2b(losses.tobytes(), digest_size=8).hexdigest()}")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=2, help="tasks that divide the candidates (default: 2)")
    parser.add_argument("--folder", type=Path, help="where the results go (default: a temporary one)")
    parser.add_argument("--collect", action="store_true", help="print the results of all tasks")
    parser.add_argument("--maxiter", type=int, default=30)
    arguments = parser.parse_args()
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    if arguments.folder is None and (task is not None or arguments.collect):
        parser.error("--folder is needed, which all tasks see")
    if arguments.collect:
        return collect(arguments.folder)
    if task is not None:
        if not 0 <= int(task) < arguments.tasks:
            parser.error(
                f"SLURM_ARRAY_TASK_ID={task} is none of --tasks {arguments.tasks}: use --array=0-N, --tasks N+1"
            )
        arguments.folder.mkdir(parents=True, exist_ok=True)
        run_task(int(task), arguments.tasks, arguments.folder, arguments.maxiter)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        options = ["--tasks", str(arguments.tasks), "--folder", str(folder), "--maxiter", str(arguments.maxiter)]
        started = [
            subprocess.Popen([sys.executable, __file__, *options], env=os.environ | {"SLURM_ARRAY_TASK_ID": str(k)})
            for k in range(arguments.tasks)
        ]
        failed = [process.wait() for process in started]
        return next(filter(None, failed), 0) or collect(folder)


if __name__ == "__main__":
    sys.exit(main())
