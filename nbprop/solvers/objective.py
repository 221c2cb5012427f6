"""`objective` makes, of a plan and data, the function that SciPy's optimizers minimise.

SciPy works in float64 and keeps references to what a function returns, so every gradient is a new float64 array. A
float32 plan converts inside. More samples than the plan's batch are split into chunks; with W_k the weight of chunk k
(its number of samples, without weights) and L_k its loss, the loss is sum(W_k L_k) / sum(W_k), and likewise its
gradient.
"""

from typing import Any

from numpy.typing import NDArray

from nbprop import backends
from nbprop.cluster.parts import check_transport, on_ranks
from nbprop.lowering.plan import Plan
from nbprop.runtime.datasets import check_dataset, check_layer_state, check_layers
from nbprop.solvers.losses_of_data import Objective
from nbprop.solvers.losses_on_ranks import ObjectiveOnRanks


@on_ranks
def objective(
    plan: Plan,
    x: NDArray[Any],
    target: NDArray[Any],
    weights: NDArray[Any] | None = None,
    state: NDArray[Any] | None = None,
    comm: Any = None,
    pieces: int = 64,
    data: str = "whole",
    transport: str | None = None,
) -> "Objective":
    """The function that SciPy's optimizers minimise: theta -> (loss, gradient).

    Parameters
    ----------
    plan : Plan made with a loss, float64 or float32
    x : (n, *input_shape) array of the plan's dtype; n may exceed the plan's batch, it is then split into chunks
    target : (n, *output_shape) array of the plan's dtype; integers (n, *output_shape[:-1]) for classes
    weights : (n,) array of the plan's dtype, none negative, or None; the loss is sum(w l) / sum(w)
    state : array from `layer_state(plan)`, where the network has one; each call begins with it; it is not changed
    comm, pieces, data : as `fit` takes them: several processes compute the pieces of the data, over MPI, and all call
        fun together, with the same theta
    transport : as `fit` takes it; fun.transport says which one is used

    Layers that differ between training and use (dropout, batch normalization) need a plan with mode="inference".

    The arrays are kept, not copied: change them and the objective changes.

    Returns
    -------
    Objective
        fun(theta), where theta is a (n_params,) float64 array whatever the plan's dtype, returns a float and a new
        (n_params,) float64 array. A loss that is not finite is returned as infinity. fun.hessp(theta, v) is the exact
        Hessian-vector product, which SciPy's Newton methods take as hessp. An objective must not be shared by threads.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, NaN or infinity in x, target or weights, classes out of range. fun raises
        them for a theta of another shape or dtype.

    Examples
    --------
    >>> import nbprop, numpy as np, scipy.optimize
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> x = np.linspace(-1, 1, 20)[:, None]
    >>> fun = nbprop.objective(nbprop.plan(net, loss="mse", batch=20), x, 3 * x + 1)
    >>> scipy.optimize.minimize(fun, nbprop.init(net), jac=True).x.round(3)
    array([3., 1.])
    """
    return objective_for("objective", plan, x, target, weights, state, comm, transport)


def objective_for(function, plan, x, target, weights, state, ranks=None, transport=None):
    """`objective`, with errors in the name of `function`; ranks: `Ranks`, or None."""
    on_device = getattr(plan, "target", "cpu") != "cpu"
    check_transport(function, transport, ranks, on_device)
    if on_device:
        backend = backends.get(plan.target)
        if ranks is None:
            return backend.objective(function, plan, x, target, weights, state)
        return backend.objective_on_ranks(function, plan, x, target, weights, state, ranks, transport)
    x, target, weights = check_dataset(function, plan, x, target, weights)
    check_layers(function, plan, takes_state=True)
    state = check_layer_state(function, plan, state)
    state = state if plan.state_size > 0 else None
    if ranks is None:
        return Objective(plan, x, target, weights, state)
    return ObjectiveOnRanks(plan, x, target, weights, state, ranks)
