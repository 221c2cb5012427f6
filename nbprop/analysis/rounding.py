"""How far rounding changes the loss: the first use of reverse accumulation (Linnainmaa 1970, 1976).

Let v_1, v_2, ... be all values that a program computes, in order, and L its result. An error e_i made in computing v_i
changes L by (dL/dv_i) e_i, to first order, whatever happens to v_i afterwards. So one backward pass, which gives the
adjoint dL/dv_i of every v_i, gives the effect of all roundings together:

    L as computed - L  =  sum over i of (dL/dv_i) e_i

The model of e_i: the error of rounding to nearest is uniformly distributed within half a unit in the last place. With u
= 2^-24 (float32) or 2^-53 (float64), it is at most u |v|, with a root mean square of 0.42 u |v| (for mantissas
distributed as 1/m). All roundings are assumed independent (Henrici 1962). A value that sums k products is rounded after
each; since a sum of terms of either sign grows as the root of their number, the squares of its partial sums add up to k
/ 2 times the square of the total. Elementary functions, sums and products count as one rounding each, copies as none.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nbprop.arrays import check_vector, without_memmap
from nbprop.autodiff.gradients import forward, value_and_grad
from nbprop.lowering.plan import Plan, workspace
from nbprop.runtime.datasets import check_dataset, check_layer_state
from nbprop.validation import as_dtype

# Of rounding to nearest, in units of u: over mantissas m distributed as 1/m, sqrt(mean of 1/m^2 / 3).
_ROOT_MEAN_SQUARE = math.sqrt(3 / (8 * math.log(2)) / 3)


@dataclass(frozen=True)
class RoundingError:
    """What `rounding_error` returns; all in the loss's unit.

    loss : float, as the plan computes it
    estimate : float, the standard deviation of the loss's error
    worst : float, the error if every rounding were as large as possible, and changed the loss in the same direction
    parts : {layer's path, or "loss" or "penalty": the standard deviation of the error from its roundings}

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params = nbprop.plan(net, "mse", 1, np.float32), np.ones(2, np.float32)
    >>> found = nbprop.rounding_error(plan, params, np.ones((1, 1), np.float32), np.ones((1, 1), np.float32))
    >>> found.loss, sorted(found.parts)
    (1.0, ['0.dense', 'loss'])
    """

    loss: float
    estimate: float
    worst: float
    parts: dict


def rounding_error(
    plan: Plan,
    params: NDArray[Any],
    x: NDArray[Any],
    target: NDArray[Any],
    weights: NDArray[Any] | None = None,
    dtype: DTypeLike = np.float32,
    state: NDArray[Any] | None = None,
    step: int = 0,
    lengths: NDArray[Any] | None = None,
) -> RoundingError:
    """Estimate the error that rounding leaves in the loss, from the adjoint of every value that the walk computes.

    Parameters
    ----------
    plan : Plan made with a loss; any batch
    params, x, target, weights, step, lengths : as `value_and_grad` takes them, any number of samples
    dtype : float32 or float64
        The arithmetic whose error is estimated; so a float64 plan can estimate the error of float32.
    state : as `value_and_grad` takes it, for a plan of as many samples; not changed

    Returns
    -------
    RoundingError
        For the same params, x and target in either arithmetic: the rounding of these does not count. The estimate is a
        standard deviation: two in three errors are smaller. In the tests, it is within a factor of 2.5 of the root mean
        square of measured errors. Within an op that carries a state over positions, such as a recurrent layer's, only
        the rounding of its outputs counts.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((8,), nbprop.dense(16, activation="tanh"), nbprop.dense(1))
    >>> x = np.linspace(-1, 1, 800).reshape(100, 8)
    >>> found = nbprop.rounding_error(nbprop.plan(net, loss="mse"), nbprop.init(net), x, np.sin(3 * x[:, :1]))
    >>> 1e-9 < found.estimate < found.worst < 1e-5
    True
    """
    x, target, weights = check_dataset("rounding_error", plan, x, target, weights, lengths)
    params = check_vector("rounding_error: params", params, plan.n_params, plan.dtype)
    unit = float(np.finfo(as_dtype(dtype)).eps) / 2
    state, lengths = check_layer_state("rounding_error", plan, state), without_memmap(lengths)
    watched = Plan(plan.net, plan.loss, len(x), plan.dtype, plan.threads, plan.mode, "values", plan.penalty)
    work, y = workspace(watched), np.empty((len(x), *plan.output_shape), plan.dtype)
    more = {"step": step, "lengths": lengths}
    forward(watched, params, x, y, work, state=None if state is None else state.copy(), **more)
    grads, state = np.empty(plan.n_params, plan.dtype), None if state is None else state.copy()
    loss = value_and_grad(watched, params, x, target, grads, work, weights, state=state, **more)
    squares: dict[str, float] = {}
    worst = 0.0
    for path, kept in watched.watched.items():
        values, adjoints = (
            _read(work, buffer, len(x) * math.prod(kept.shape)) for buffer in (kept.output, kept.gradient)
        )
        effect = np.abs(values * adjoints)
        layer = path.partition("#")[0]
        squares[layer] = squares.get(layer, 0.0) + (1 + kept.terms / 2) * float(effect @ effect)
        worst += (1 + kept.terms) * float(effect.sum())
    squares["loss"], most = _of_the_loss(plan, y, target, weights, lengths)
    if plan.penalty is not None:
        squares["penalty"], of_penalty = _of_the_penalty(plan.penalty, params)
        most += of_penalty
    deviations = {layer: _ROOT_MEAN_SQUARE * unit * math.sqrt(square) for layer, square in squares.items()}
    return RoundingError(loss, math.hypot(*deviations.values()), unit * (worst + most), deviations)


def _of_the_penalty(penalty, params):
    """(sum of squares, sum) of the effects of the roundings within the penalty, in units of u: two for each term.

    Those of their sums, in 64 lanes of at most 64 terms whose sums are added in float64, are small beside these.
    """
    w = np.abs(params[penalty.mask(params.size)].astype(np.float64))
    terms = 0.5 * penalty.l2 * w * w + penalty.l1 * w
    return float(2 * terms @ terms), float(2 * terms.sum())


def _read(work, buffer, size):
    return work[buffer.offset : buffer.offset + size].astype(np.float64)


def _of_the_loss(plan, y, target, weights, lengths):
    """(sum of squares, sum) of the effects of the roundings within the loss, in units of u."""
    n, classes = len(y), plan.classes > 0
    y = y.reshape(-1, plan.output_shape[-1] if plan.output_shape else 1).astype(np.float64)
    target = target.reshape(-1) if classes else target.reshape(len(y), -1).astype(np.float64)
    terms = np.abs(plan.loss.summands(y, target))
    weight_of_row = np.ones((n, len(y) // n)) if weights is None else np.repeat(weights[:, None], len(y) // n, 1)
    if lengths is not None and len(plan.output_shape) > 1:
        positions = plan.output_shape[0]
        counted = np.arange(positions) < lengths[:, None]
        counted = np.repeat(counted, len(y) // (n * positions), 1)
        weight_of_row, terms = weight_of_row * counted, np.where(counted.reshape(-1, 1), terms, 0.0)
    weight_of_row = weight_of_row.reshape(-1).astype(np.float64)
    terms *= (weight_of_row / weight_of_row.sum())[:, None]
    # Each term has some two roundings; their sum has one per term, of at most the sum of their magnitudes.
    rows, count = terms.sum(1), terms.shape[1]
    return float(2 * (terms**2).sum() + count / 3 * rows @ rows), float(2 * terms.sum() + count * rows.sum())
