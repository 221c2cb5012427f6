"""The device as a backend of nbprop (see nbprop/backends.py); importing it needs CUDA, or the simulator."""

from nbprop import cuda

cuda.require()

from nbprop.cuda import fitting as training  # noqa: E402
from nbprop.cuda import memory  # noqa: E402
from nbprop.cuda.fitting_on_ranks import JobOnRanks as job_on_ranks  # noqa: E402
from nbprop.cuda.objective import DeviceObjective as objective  # noqa: E402
from nbprop.cuda.objective import DeviceObjectiveOnRanks as objective_on_ranks  # noqa: E402
from nbprop.cuda.optimizers import take_step  # noqa: E402
from nbprop.cuda.plan import DevicePlan as plan_class  # noqa: E402

__all__ = [
    "checked_params",
    "job_on_ranks",
    "objective",
    "objective_on_ranks",
    "plan_class",
    "prepare",
    "take_step",
    "training",
]


def prepare(plan):
    """Nothing: a device plan compiles its launches when it is made."""


def checked_params(function, plan, params, others):
    """params on the device, once they fit the plan and share no memory with the others; and their values."""
    params = training.check_vector(f"{function}: params", params, plan.n_params, (plan.dtype,), True)
    arrays = {name: memory.as_array(name, other) for name, other in others.items() if other is not None}
    memory.check_separate(function, {"params": params}, arrays)
    return params, params.to_host()
