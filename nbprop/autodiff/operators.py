"""Second derivatives and Jacobians as SciPy's LinearOperators, products without a matrix; and the Hessian whole."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbprop.arrays import as_array, check_array, check_vector
from nbprop.autodiff.derivatives import gauss_newton_product, hvp, jvp, vjp
from nbprop.autodiff.gradients import forward
from nbprop.lowering.plan import Plan, workspace
from nbprop.messages import ALIASED, failure
from nbprop.runtime.datasets import check_column, check_dataset, check_layers, check_plan
from nbprop.runtime.pieces import in_threads
from nbprop.validation import check_integer

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


def _pieces(plan, *arrays):
    """The arrays in pieces of at most the plan's batch; views."""
    for start in range(0, len(arrays[0]), plan.batch):
        yield tuple(None if array is None else array[start : start + plan.batch] for array in arrays)


def _vector(function, v, dtype):
    """What an operator is multiplied with, as a fresh contiguous vector; SciPy has checked its size."""
    v = as_array(f"{function}: the vector", v)
    if v.dtype.kind not in "iuf":
        raise TypeError(f"{function}: the vector must hold real numbers, got {v.dtype}")
    return np.array(v, dtype).reshape(-1)


def _symmetric(function, product, plan, params, x, target, weights):
    from scipy.sparse.linalg import LinearOperator

    x, target, weights = check_dataset(function, plan, x, target, weights)
    check_layers(function, plan)
    params = check_vector(f"{function}: params", params, plan.n_params, plan.dtype)
    params, work, part = params.copy(), workspace(plan), np.empty(plan.n_params, plan.dtype)
    total = plan.loss.counted(target, weights)

    def matvec(v):
        direction, result = _vector(function, v, plan.dtype), np.zeros(plan.n_params)
        for x_k, target_k, weights_k in _pieces(plan, x, target, weights):
            fraction = plan.loss.counted(target_k, weights_k) / total if total > 0 else 0.0
            if fraction > 0:
                product(plan, params, direction, x_k, target_k, part, work, weights_k)
                result += fraction * part.astype(np.float64)
        return result

    shape = (plan.n_params, plan.n_params)
    return LinearOperator(shape, matvec=matvec, rmatvec=matvec, dtype=np.dtype(np.float64))


def hessian_operator(
    plan: Plan, params: NDArray[Any], x: NDArray[Any], target: NDArray[Any], weights: NDArray[Any] | None = None
) -> "LinearOperator":
    """The Hessian of the loss at `params` as a symmetric scipy.sparse.linalg.LinearOperator.

    Arguments as `objective` takes them; params (n_params,) of the plan's dtype are copied. Products are float64.

    >>> import nbprop, numpy as np
    >>> net, x = nbprop.network((1,), nbprop.dense(1)), np.array([[1.0], [3.0]])
    >>> nbprop.hessian_operator(nbprop.plan(net, loss="mse", batch=2), nbprop.init(net), x, x) @ np.array([1.0, 0.0])
    array([10.,  4.])
    """
    return _symmetric("hessian_operator", hvp, plan, params, x, target, weights)


def gauss_newton_operator(
    plan: Plan, params: NDArray[Any], x: NDArray[Any], target: NDArray[Any], weights: NDArray[Any] | None = None
) -> "LinearOperator":
    """The Gauss-Newton matrix J^T H_L J at `params` as a LinearOperator; arguments as `hessian_operator`.

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params = nbprop.plan(net, loss="mse", batch=2), np.array([2.0, 1.0])  # y = 2 x + 1
    >>> x, target = np.array([[1.0], [3.0]]), np.array([[3.0], [6.0]])
    >>> (nbprop.gauss_newton_operator(plan, params, x, target) @ np.array([1.0, 0.0])).round(6)
    array([10.,  4.])
    """
    return _symmetric("gauss_newton_operator", gauss_newton_product, plan, params, x, target, weights)


def jacobian_operator(plan: Plan, params: NDArray[Any], x: NDArray[Any]) -> "LinearOperator":
    """The outputs' Jacobian by the parameters, (n * outputs, n_params), as a LinearOperator.

    plan : Plan, with or without a loss
    params : (n_params,) array of the plan's dtype, copied
    x : (n, *input_shape) array; more samples than the plan's batch are taken in chunks

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params = nbprop.plan(net, loss="mse", batch=2), np.array([2.0, 1.0])  # y = 2 x + 1
    >>> x, target = np.array([[1.0], [3.0]]), np.array([[3.0], [6.0]])
    >>> nbprop.jacobian_operator(plan, params, x) @ np.array([1.0, 0.0])
    array([1., 3.])
    """
    from scipy.sparse.linalg import LinearOperator

    function = "jacobian_operator"
    check_plan(function, plan)
    check_layers(function, plan)
    x = check_column(function, "x", x, None, plan.input_shape, plan.dtype, plan.x_classes)
    params = check_vector(f"{function}: params", params, plan.n_params, plan.dtype)
    params, work = params.copy(), workspace(plan)

    def matvec(v):
        direction = _vector(function, v, plan.dtype)
        out = np.empty((len(x), *plan.output_shape), plan.dtype)
        for x_k, out_k in _pieces(plan, x, out):
            jvp(plan, params, direction, x_k, None, out_k, work)
        return out.reshape(-1).astype(np.float64)

    def rmatvec(u):
        dy = _vector(function, u, plan.dtype).reshape(len(x), *plan.output_shape)
        part, result = np.empty(plan.n_params, plan.dtype), np.zeros(plan.n_params)
        for x_k, dy_k in _pieces(plan, x, dy):
            vjp(plan, params, x_k, dy_k, part, None, work)
            result += part.astype(np.float64)
        return result

    shape = (len(x) * plan.unit_size, plan.n_params)
    return LinearOperator(shape, matvec=matvec, rmatvec=rmatvec, dtype=np.dtype(np.float64))


def outputs(plan, params, x, work):
    """The network's outputs for any number of samples: (n, *output_shape), float64."""
    y = np.empty((len(x), *plan.output_shape), plan.dtype)
    for x_k, y_k in _pieces(plan, x, y):
        forward(plan, params, x_k, y_k, work)
    return y.astype(np.float64)


def hessian(
    plan: Plan,
    params: NDArray[Any],
    x: NDArray[Any],
    target: NDArray[Any],
    out: NDArray[Any],
    work: NDArray[Any],
    weights: NDArray[Any] | None = None,
    state: NDArray[Any] | None = None,
    step: int = 0,
    lengths: NDArray[Any] | None = None,
    threads: int = 1,
) -> None:
    """The whole Hessian of the loss by the parameters: products with unit vectors, a block of rows for each thread.

    Parameters
    ----------
    plan, params, x, target, work, weights, state, step, lengths : as `hvp` takes them
    out : (n_params, n_params) array of the plan's dtype, overwritten; symmetric up to rounding
    threads : int, blocks of rows computed at once, each but the first with a workspace of its own; the bits do not
        depend on it. For large batches a plan with threads of its own, which share each product, does as well.

    Raises
    ------
    TypeError, ValueError
        As `hvp`.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params = nbprop.plan(net, loss="mse", batch=2), np.array([2.0, 1.0])  # y = 2 x + 1
    >>> x, target = np.array([[1.0], [3.0]]), np.array([[3.0], [6.0]])
    >>> out = np.empty((2, 2))
    >>> nbprop.hessian(plan, params, x, target, out, nbprop.workspace(plan))
    >>> out.round(6)
    array([[10.,  4.],
           [ 4.,  2.]])
    """
    out = check_array("hessian: out", out, (check_plan("hessian", plan).n_params,) * 2, plan.dtype, written=True)
    # Each row is looked at by `hvp`; that a later row shares memory with what is read has to be known before the first.
    others = {"params": params, "x": x, "target": target, "work": work, "weights": weights, "state": state}
    for name, array in (others | {"lengths": lengths}).items():
        if isinstance(array, np.ndarray) and np.may_share_memory(out, array):
            raise failure(ALIASED, "hessian: out", detail=name)
    threads = check_integer("hessian: threads", threads, 1, 1 << 10)

    threads = min(threads, max(1, plan.n_params - 1))
    works = [*(workspace(plan) for _ in range(threads - 1)), work]

    def block(first, last, stopped):
        unit, own = np.zeros(plan.n_params, plan.dtype), works.pop()
        for row in range(first, last):
            if stopped():
                break
            unit[row] = 1.0
            hvp(plan, params, unit, x, target, out[row], own, weights, state, step, lengths)
            unit[row] = 0.0
        works.append(own)

    in_threads(block, [(0, min(1, plan.n_params))])  # what is refused or compiled is so before other threads start
    bounds = np.linspace(1, max(1, plan.n_params), threads + 1).astype(int).tolist()
    in_threads(block, list(pairwise(bounds)))
