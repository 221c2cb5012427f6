"""Derivatives beyond the gradient, exact, from Python and from @njit: products with the Jacobian and the Hessian.

Directions go forward with every op and come back with it (Pearlmutter 1994, "Fast exact multiplication by the
Hessian"); a product costs two to three gradients and no matrix is ever formed. Errors are those of `value_and_grad`; a
network with a layer that has no tangent kernels is refused by the layer's name.
"""

from typing import Any

from numpy.typing import NDArray

from nbprop.autodiff.faces import plan_function
from nbprop.lowering.plan import Plan


@plan_function
def jvp(
    plan: Plan,
    params: NDArray[Any],
    v: NDArray[Any] | None,
    x: NDArray[Any],
    dx: NDArray[Any] | None,
    out: NDArray[Any],
    work: NDArray[Any],
    state: NDArray[Any] | None = None,
    step: int = 0,
    lengths: NDArray[Any] | None = None,
) -> None:
    """The outputs' derivative along a direction: out = J_params v + J_x dx.

    Parameters
    ----------
    plan : Plan
    params : (n_params,) array of the plan's dtype
    v : (n_params,) array or None (zero), a direction in parameter space
    x : (n, *input_shape) array
    dx : (n, *input_shape) array or None (zero), a direction in input space
    out : (n, *output_shape) array, overwritten
    work : 1-D array from `workspace(plan)`, overwritten
    state, step, lengths : as `value_and_grad` takes them; state is left as it is

    Raises
    ------
    TypeError, ValueError
        As `value_and_grad`.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params = nbprop.plan(net, loss="mse", batch=2), np.array([2.0, 1.0])  # y = 2 x + 1
    >>> x, target = np.array([[1.0], [3.0]]), np.array([[3.0], [6.0]])
    >>> work = nbprop.workspace(plan)
    >>> out = np.empty((2, 1))
    >>> nbprop.jvp(plan, params, None, x, np.ones((2, 1)), out, work)  # dy/dx
    >>> out.ravel()
    array([2., 2.])
    """


@plan_function
def vjp(
    plan: Plan,
    params: NDArray[Any],
    x: NDArray[Any],
    dy: NDArray[Any],
    grads: NDArray[Any],
    dx: NDArray[Any] | None,
    work: NDArray[Any],
    accumulate: bool = False,
    state: NDArray[Any] | None = None,
    step: int = 0,
    lengths: NDArray[Any] | None = None,
) -> None:
    """`forward` and `backward` in one call: grads = dy^T J_params and, unless dx is None, dx = dy^T J_x.

    Parameters
    ----------
    plan, params, x, work, state, step, lengths : as `value_and_grad` takes them
    dy : (n, *output_shape) array
    grads : (n_params,) array, overwritten, or added to with accumulate=True
    dx : (n, *input_shape) array, overwritten, or None

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params = nbprop.plan(net, loss="mse", batch=2), np.array([2.0, 1.0])  # y = 2 x + 1
    >>> x, target = np.array([[1.0], [3.0]]), np.array([[3.0], [6.0]])
    >>> work = nbprop.workspace(plan)
    >>> grads, dx = np.empty(2), np.empty((2, 1))
    >>> nbprop.vjp(plan, params, x, np.ones((2, 1)), grads, dx, work)
    >>> grads, dx.ravel()
    (array([4., 2.]), array([2., 2.]))
    """


@plan_function
def hvp(
    plan: Plan,
    params: NDArray[Any],
    v: NDArray[Any],
    x: NDArray[Any],
    target: NDArray[Any],
    out: NDArray[Any],
    work: NDArray[Any],
    weights: NDArray[Any] | None = None,
    state: NDArray[Any] | None = None,
    step: int = 0,
    lengths: NDArray[Any] | None = None,
    dx: NDArray[Any] | None = None,
) -> None:
    """Hessian-vector product: out = H v, H the second derivative of the (weighted) loss by the parameters.

    With dx, out is the gradient's derivative along (v, dx): the mixed second derivative by parameters and input too.

    Parameters
    ----------
    plan, params, x, target, work, weights, step, lengths : as `value_and_grad` takes them
    state : the same, left as it is
    v : (n_params,) array
    out : (n_params,) array, overwritten
    dx : (n, *input_shape) array or None (zero), a direction in input space

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1, bias=False))
    >>> plan = nbprop.plan(net, loss="mse", batch=1)
    >>> out = np.empty(1)
    >>> x = np.full((1, 1), 3.0)
    >>> nbprop.hvp(plan, np.ones(1), np.ones(1), x, x, out, nbprop.workspace(plan))
    >>> out
    array([18.])
    """


@plan_function
def gauss_newton_product(
    plan: Plan,
    params: NDArray[Any],
    v: NDArray[Any],
    x: NDArray[Any],
    target: NDArray[Any],
    out: NDArray[Any],
    work: NDArray[Any],
    weights: NDArray[Any] | None = None,
    state: NDArray[Any] | None = None,
    step: int = 0,
    lengths: NDArray[Any] | None = None,
) -> None:
    """Gauss-Newton product: out = J^T H_L J v, H_L the Hessian of the loss by the output.

    Positive semidefinite for every loss that is convex in the output, which gaussian_nll is not; `fisher_product` is.
    Arguments as `hvp`. Source: Schraudolph 2002, "Fast curvature matrix-vector products".

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params = nbprop.plan(net, loss="mse", batch=2), np.array([2.0, 1.0])  # y = 2 x + 1
    >>> x, target = np.array([[1.0], [3.0]]), np.array([[3.0], [6.0]])
    >>> work = nbprop.workspace(plan)
    >>> out = np.empty(2)
    >>> nbprop.gauss_newton_product(plan, params, np.array([1.0, 0.0]), x, target, out, work)
    >>> out
    array([10.,  4.])
    """


@plan_function
def fisher_product(
    plan: Plan,
    params: NDArray[Any],
    v: NDArray[Any],
    x: NDArray[Any],
    target: NDArray[Any],
    out: NDArray[Any],
    work: NDArray[Any],
    weights: NDArray[Any] | None = None,
    state: NDArray[Any] | None = None,
    step: int = 0,
    lengths: NDArray[Any] | None = None,
) -> None:
    """Product with the Fisher information matrix: out = J^T E[H_L] J v, the expectation over targets from the model.

    The true Fisher matrix: the loss is a mean of terms -log p (over samples and positions; for all losses but
    softmax_cross_entropy over outputs too), and with g the gradient of a term, the matrix is the mean of E[g g^T] over
    all terms, weighted as the loss is. Positive semidefinite. It is not the empirical Fisher matrix, whose g belongs to
    the target at hand (`per_sample_grads` gives those); the values in target do not matter here.

    softmax_cross_entropy : categorical, binary_cross_entropy : Bernoulli; the same as the Gauss-Newton product
    mse : the Gaussian of variance 1 / 2 whose negative log-likelihood it is; the same as the Gauss-Newton product
    gaussian_nll : the Gaussian of the predicted mean and variance; not the Gauss-Newton product, since mean and log
        variance are not its natural parameters
    huber : the density proportional to exp(-loss) (Huber 1964, section 4)

    Arguments and errors as `hvp`; a loss that is no negative log-likelihood is refused by its name. Sources:
    Schraudolph 2002; Martens 2020, "New insights and perspectives on the natural gradient method", section 9.

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan = nbprop.plan(net, loss="binary_cross_entropy", batch=1)
    >>> out, work = np.empty(2), nbprop.workspace(plan)
    >>> nbprop.fisher_product(plan, np.zeros(2), np.ones(2), np.ones((1, 1)), np.ones((1, 1)), out, work)
    >>> out.round(6)
    array([0.5, 0.5])
    """


@plan_function
def jacobian(
    plan: Plan,
    params: NDArray[Any],
    x: NDArray[Any],
    out: NDArray[Any],
    work: NDArray[Any],
    state: NDArray[Any] | None = None,
    step: int = 0,
    lengths: NDArray[Any] | None = None,
) -> None:
    """The outputs' derivatives by the parameters, row by row.

    Parameters
    ----------
    plan, params, x, work, state, step, lengths : as `forward` takes them
    out : (n * outputs, n_params) array, overwritten: row i * outputs + k belongs to output k of sample i

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params = nbprop.plan(net, loss="mse", batch=2), np.array([2.0, 1.0])  # y = 2 x + 1
    >>> x, target = np.array([[1.0], [3.0]]), np.array([[3.0], [6.0]])
    >>> work = nbprop.workspace(plan)
    >>> out = np.empty((2, 2))
    >>> nbprop.jacobian(plan, params, x, out, work)
    >>> out  # by the weight and by the bias
    array([[1., 1.],
           [3., 1.]])
    """


@plan_function
def per_sample_grads(
    plan: Plan,
    params: NDArray[Any],
    x: NDArray[Any],
    target: NDArray[Any],
    out: NDArray[Any],
    work: NDArray[Any],
    state: NDArray[Any] | None = None,
    step: int = 0,
    lengths: NDArray[Any] | None = None,
) -> None:
    """The gradient of each sample's own loss.

    Parameters
    ----------
    plan, params, x, target, work, state, step, lengths : as `value_and_grad` takes them
    out : (n, n_params) array, overwritten; the mean of its rows is the gradient of the batch

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params = nbprop.plan(net, loss="mse", batch=2), np.array([2.0, 1.0])  # y = 2 x + 1
    >>> x, target = np.array([[1.0], [3.0]]), np.array([[3.0], [6.0]])
    >>> work = nbprop.workspace(plan)
    >>> out = np.empty((2, 2))
    >>> nbprop.per_sample_grads(plan, params, x, target, out, work)
    >>> out
    array([[0., 0.],
           [6., 2.]])
    """
