"""A fleet divided among joblib's workers: processes, threads, or whatever backend the user has registered.

A worker gets a part of the fleet, fits it as `Fleet.fit` does here, and sends parameters and losses back. joblib
(extra `nbprop[joblib]`; scikit-learn brings it) is imported when it is used.
"""

import sys
import threading
from dataclasses import replace
from itertools import pairwise

import numpy as np

from nbprop.solvers.fleet import ModelError, Outcome
from nbprop.validation import check_integer

_PARTS = 4  # for each worker: models take different times
_MOST = 1 << 20


class _Stop:
    """Whether the caller has given up. Workers that are threads of this process see it; a copy elsewhere never is set,
    since the backend ends those workers itself.
    """

    def __init__(self):
        self._event = threading.Event()
        self.set, self.is_set = self._event.set, self._event.is_set

    def __reduce__(self):
        return _Stop, ()


def job_count(function, n_jobs):
    """The number of workers that n_jobs stands for: 1 for none, without joblib's being needed."""
    if n_jobs is None and "joblib" not in sys.modules:
        return 1  # nobody can have configured it
    if n_jobs is not None:
        n_jobs = check_integer(f"{function}: n_jobs", n_jobs, -_MOST, _MOST)
        if n_jobs == 0:
            raise ValueError(
                f"{function}: n_jobs must be a positive integer, negative as joblib counts, or None, got 0"
            )
    if n_jobs == 1:
        return 1
    try:
        import joblib
    except ImportError:
        raise ImportError(
            f"{function}: n_jobs={n_jobs} needs joblib, which is not installed; pip install nbprop[joblib]"
        ) from None
    return joblib.effective_n_jobs(n_jobs)


def fit_in_jobs(fleet, n_jobs, workers, threads):
    """Fit all models of a fleet, in place, in joblib's workers. Returns their Outcome."""
    import joblib
    from joblib.parallel import get_active_backend

    fleet.fit(1, only_compile=True)  # once, rather than in each worker at the same time
    models, stop = len(fleet.thetas), _Stop()
    bounds = np.linspace(0, models, min(models, _PARTS * workers) + 1).astype(int).tolist()
    each, outcome = max(1, threads // workers), Outcome.of(models)
    left = set(pairwise(bounds))
    # A backend that hands results over one by one keeps those there are when another part fails. Arrays that joblib
    # maps into workers' memory must be writable to be what compiled code is compiled for.
    one_by_one = getattr(get_active_backend()[0], "supports_return_generator", False)
    pool = joblib.Parallel(
        n_jobs, return_as="generator_unordered" if one_by_one else "list", batch_size=1, mmap_mode="c"
    )
    calls = (joblib.delayed(_fit_part)(fleet.part(*part), each, stop, part) for part in pairwise(bounds))
    try:
        for (first, last), thetas, found in pool(calls):
            own = slice(first, last)
            fleet.thetas[own] = thetas
            outcome.losses[own], outcome.iterations[own] = found.losses, found.iterations
            outcome.status[own] = found.status
            left.remove((first, last))
    except KeyboardInterrupt:
        pass  # the status of the unfinished models says so
    except ModelError:
        raise
    except Exception as error:
        unfinished = ", ".join(_named(*part) for part in sorted(left)[:8])
        raise RuntimeError(
            f"fit_many: a worker failed while {unfinished} were unfinished: {type(error).__name__}: {error}"
        ) from error
    finally:
        stop.set()
    return outcome


def _named(first, last):
    return f"model {first}" if last == first + 1 else f"models {first} to {last - 1}"


def _fit_part(fleet, threads, stop, part):
    """What a worker does: (the part, its parameters, its Outcome)."""
    try:
        # Of its own: the caller's may be another thread's, and what has been sent may be read-only.
        owned = {name: _own(getattr(fleet, name)) for name in ("xs", "ys", "weights", "data", "counts")}
        fleet = replace(fleet, thetas=np.array(fleet.thetas), **owned)
        return part, fleet.thetas, fleet.fit(threads, stop.is_set)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"fit_many: {_named(*part)}: {type(error).__name__}: {error}") from error


def _own(array):
    return None if array is None else np.require(array, requirements=["C", "W", "E"])
