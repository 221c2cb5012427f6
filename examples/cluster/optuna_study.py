"""A search by Optuna in several processes, which share one study through a file and prune trials that fall behind.

    python examples/cluster/optuna_study.py                                   starts two processes itself
    srun -n 8 python examples/cluster/optuna_study.py --storage study.log     as a cluster does

The file may lie in a home that nodes share; a process that is killed costs its trial, and one that is started later
goes on with the study. Needs Optuna: pip install nbprop[optuna]
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import nbprop
import nbprop.data


def accuracy(trial, epochs):
    """Train one network with what Optuna suggests; its accuracy on held-out digits."""
    import optuna

    images, labels = nbprop.data.digits()
    order = np.random.default_rng(0).permutation(len(images))
    train, held = order[:1200], order[1200:]
    hidden = trial.suggest_int("hidden", 8, 64, log=True)
    net = nbprop.network((64,), nbprop.dense(hidden, activation="tanh"), nbprop.dense(10))
    params = nbprop.init(net, seed=0, dtype=np.float32)

    def report(history):
        trial.report(history.validation_loss[-1], history.epochs)
        return trial.should_prune()

    history = nbprop.fit(
        *(net, params, images[train], labels[train], "softmax_cross_entropy"),
        validation=(images[held], labels[held]),
        lr=trial.suggest_float("lr", 1e-4, 0.1, log=True),
        l2=trial.suggest_float("l2", 1e-6, 0.1, log=True),
        threads=int(os.environ.get("SLURM_CPUS_PER_TASK", "1")),
        **{"batch": 64, "epochs": epochs, "seed": 0, "progress": False, "callback": report},
    )
    if history.stopped == "callback":
        raise optuna.TrialPruned
    classes = nbprop.predict(net, params, images[held], kind="classes", loss="softmax_cross_entropy")
    return float((classes == labels[held]).mean())


def search(storage, trials, epochs, seed):
    """Do trials of the study in a file until it has so many."""
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="digits",
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(storage))),
        sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
        direction="maximize",
        load_if_exists=True,
    )
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    if len(study.get_trials(deepcopy=False, states=ended)) < trials:
        enough = optuna.study.MaxTrialsCallback(trials, states=ended)
        study.optimize(lambda trial: accuracy(trial, epochs), callbacks=[enough])
    return study


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", type=Path, help="the study's file (default: a temporary one)")
    parser.add_argument("--processes", type=int, default=2, help="how many to start (default: 2)")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    rank = os.environ.get("SLURM_PROCID")
    if rank is not None and arguments.storage is None:
        parser.error("--storage is needed, a file that all processes see")
    with tempfile.TemporaryDirectory() as temporary:
        storage = arguments.storage or Path(temporary) / "study.log"
        options = ["--storage", storage, "--trials", arguments.trials, "--epochs", arguments.epochs]
        command = [sys.executable, __file__, *map(str, options)]
        others = range(1, arguments.processes) if rank is None else ()
        started = [subprocess.Popen(command, env=os.environ | {"SLURM_PROCID": str(k)}) for k in others]
        study = search(storage, arguments.trials, arguments.epochs, int(rank or 0))
        failed = [process.wait() for process in started]
        if not rank or rank == "0":
            best = ", ".join(f"{name} {value:.3g}" for name, value in study.best_params.items())
            print(f"{len(study.trials)} trials; the best: {study.best_value:.1%} right with {best}")
        return next(filter(None, failed), 0)


if __name__ == "__main__":
    sys.exit(main())
