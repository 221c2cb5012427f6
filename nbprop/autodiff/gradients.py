"""The public functions that walk a plan: forward, backward, value, value_and_grad; from Python and from @njit.

Each `def` gives a function's arguments and what is to be known of them; its code is made from its row in
runtime/signatures.py (faces.py).
"""

from typing import Any

from numpy.typing import NDArray

from nbprop.autodiff.faces import plan_function
from nbprop.lowering.plan import Plan


@plan_function
def forward(
    plan: Plan,
    params: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    work: NDArray[Any],
    state: NDArray[Any] | None = None,
    step: int = 0,
    lengths: NDArray[Any] | None = None,
) -> None:
    """Run the network: writes y.

    Parameters
    ----------
    plan : Plan
    params : (n_params,) array of the plan's dtype
    x : (n, *input_shape) array, n at most the plan's batch
    y : (n, *output_shape) array, overwritten; logits for a network under a cross-entropy loss
    work : 1-D array from `workspace(plan)`, overwritten; `backward` needs what this call leaves there
    state : 1-D array from `layer_state(plan)`, changed, where the network has one
    step : int, keys the random numbers of dropout; the position of a decoding plan
    lengths : (n,) integers or None, how many positions of each sample count (None: all), for networks over sequences.
        What x, target, dy or a direction hold beyond is never multiplied: it may be NaN. An output over positions is 0
        there, and has no gradient. Layers that mix positions without heeding lengths (convolutions, pools,
        dense layers behind `flatten`) take x as 0 there

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit; nothing has been written then. In @njit a wrong dtype or order is a
        typing error.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((3,), nbprop.dense(2))
    >>> plan = nbprop.plan(net, batch=4)
    >>> y = np.empty((4, 2))
    >>> nbprop.forward(plan, nbprop.init(net), np.zeros((4, 3)), y, nbprop.workspace(plan))
    >>> y.max()
    np.float64(0.0)
    """


@plan_function
def value(  # type: ignore[empty-body]  # plan_function makes it
    plan: Plan,
    params: NDArray[Any],
    x: NDArray[Any],
    target: NDArray[Any],
    work: NDArray[Any],
    weights: NDArray[Any] | None = None,
    state: NDArray[Any] | None = None,
    step: int = 0,
    lengths: NDArray[Any] | None = None,
) -> float:
    """The loss: the mean over the batch, weighted as sum(w l) / sum(w); in nats for likelihoods.

    Arguments and errors as `value_and_grad`, without gradients.

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params = nbprop.plan(net, loss="mse", batch=2), np.array([2.0, 1.0])  # y = 2 x + 1
    >>> x, target = np.array([[1.0], [3.0]]), np.array([[3.0], [6.0]])
    >>> nbprop.value(plan, params, x, target, nbprop.workspace(plan))
    0.5
    """


@plan_function
def value_and_grad(  # type: ignore[empty-body]  # plan_function makes it
    plan: Plan,
    params: NDArray[Any],
    x: NDArray[Any],
    target: NDArray[Any],
    grads: NDArray[Any],
    work: NDArray[Any],
    weights: NDArray[Any] | None = None,
    accumulate: bool = False,
    state: NDArray[Any] | None = None,
    step: int = 0,
    lengths: NDArray[Any] | None = None,
) -> float:
    """The loss and its gradient with respect to the parameters.

    Parameters
    ----------
    plan : Plan made with a loss
    params : (n_params,) array of the plan's dtype
    x : (n, *input_shape) array, n at most the plan's batch
    target : (n, *output_shape) array of the plan's dtype, in the range that the loss names; integers
        (n, *output_shape[:-1]) for classes
    grads : (n_params,) array, overwritten, or added to with accumulate=True
    work : 1-D array from `workspace(plan)`, overwritten
    weights : (n,) array or None; the loss is sum(w l) / sum(w)
    accumulate : bool
    state : 1-D array from `layer_state(plan)`, changed, where the network has one
    step : int, keys the random numbers of dropout
    lengths : (n,) integers or None, how many positions of each sample count. Where the output is a sequence
        (n, T, ...) too, the loss is the mean over these positions, sum(w_i l_it) / sum(w_i length_i); those beyond have
        no loss and no gradient, whatever the target holds there

    Returns
    -------
    float
        The loss: mean over the batch. NaN when the data or the parameters make it so.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit: names it, what it got and what was needed. Nothing has been written then. In
        @njit, a wrong dtype or order is a typing error, a wrong shape or value a ValueError.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((3,), nbprop.dense(1))
    >>> plan = nbprop.plan(net, loss="mse", batch=4)
    >>> params, grads = nbprop.init(net), np.empty(net.n_params)
    >>> nbprop.value_and_grad(plan, params, np.zeros((4, 3)), np.ones((4, 1)), grads, nbprop.workspace(plan))
    1.0
    >>> grads[-1]
    np.float64(-2.0)
    """


@plan_function
def backward(
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
    """From dy = dL/dy to the gradients, after `forward` with the same params, x and work.

    Parameters
    ----------
    dy : (n, *output_shape) array; with respect to the logits for a network under a cross-entropy loss
    grads : (n_params,) array, overwritten, or added to with accumulate=True
    dx : (n, *input_shape) array, overwritten, or None
    plan, params, x, work, state, step, lengths : as `forward` had them

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
    >>> y, grads, dx = np.empty((2, 1)), np.empty(2), np.empty((2, 1))
    >>> nbprop.forward(plan, params, x, y, work)
    >>> nbprop.backward(plan, params, x, np.ones((2, 1)), grads, dx, work)
    >>> grads, dx.ravel()
    (array([4., 2.]), array([2., 2.]))
    """
