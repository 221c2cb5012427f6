"""What plans run on: each target is a module, imported when the first plan for it is made.

A backend offers, as names of its module,

    plan_class       the class of its plans, made with (net, loss, batch, dtype, threads, mode, precision=)
    prepare(plan)    what has to be loaded or started before a plan's first call
    training         the module that checks the data of `fit` and trains: check_vector, check_data, Job, ...
    job_on_ranks     the class of `fit`'s job on several ranks
    objective        the class of what `nbprop.objective` returns; objective_on_ranks: on several ranks
    take_step        a step of an optimizer
    checked_params   the parameters of `minimize`, checked: (where the result goes, the values on the host)

and raises RuntimeError, at import, where it cannot run. The CPU's is the one that all others are measured against; it
needs `prepare` alone, for the rest of the CPU side calls itself directly.
"""

import importlib

import numpy as np

_MODULES = {"cpu": "nbprop.runtime.backend", "cuda": "nbprop.cuda.backend"}
TARGETS = tuple(_MODULES)


def get(target):
    """The backend of a target; raises RuntimeError, with the remedy, where it cannot run."""
    return importlib.import_module(_MODULES[target])


def is_elsewhere(array):
    """Whether an array lies where the CPU cannot reach it, so that the call has to run there."""
    if isinstance(array, (np.ndarray, type)):
        return False
    return hasattr(array, "__cuda_array_interface__") or hasattr(array, "__dlpack__")
