"""The optimizers on flat vectors: one step each, in place, called the same way from Python and from @njit.

The mathematics is in update_rules.py, the checks in step.py. A step counts from 0 and keys the bias corrections of
Adam; state is one flat vector, zero at first. Every function takes, after its hyperparameters:

decay_mask : (n,) bool or uint8, or None
    Parameters that weight decay applies to; all when None.
trainable : (n,) bool or uint8, or None
    Parameters to update; the bits of the others, and of their state, stay as they are.
threads : int
    How many threads share the update; the bits do not depend on it.
l1 : float or None
    A penalty l1 sum(|p|), which the gradients leave out: the update ends in its proximal step, at the rule's own rate
    for each parameter, so that parameters become 0 (proximal.py; orthant-wise for rprop, lion and adadelta).
    schedule_free_adamw has none: what it returns is a mean of its steps, in which no parameter would be exactly 0.
penalized : (n,) bool or uint8, or None
    Parameters that l1 counts; all when None.

Each raises TypeError or ValueError for an argument that does not fit (in @njit a wrong dtype or order is a typing
error), and nothing has been written then.
"""

from typing import Any

import numpy as np
from numba.extending import overload
from numpy.typing import DTypeLike, NDArray

from nbprop.compiler.jit import FLAGS
from nbprop.optimizers.step import take_step
from nbprop.optimizers.update_rules import RULES
from nbprop.validation import as_dtype, check_integer, choose


def optimizer_state(optimizer: str, n_params: int, dtype: DTypeLike = np.float64) -> NDArray[Any]:
    """A new state for an optimizer: 1-D, `dtype`, zeros; as many elements per parameter as the rule has.

    Adam's is (2 n_params,): first all running means of the gradient, then those of its square. `sgd` needs none: (0,).

    >>> import nbprop
    >>> nbprop.optimizer_state("adam", 5).shape
    (10,)
    """
    rule = choose("optimizer", optimizer, RULES)
    n_params = check_integer("optimizer_state: n_params", n_params, 0, 1 << 40)
    return np.zeros(rule.slots * n_params, as_dtype(dtype))


def sgd(
    params: NDArray[Any],
    grads: NDArray[Any],
    state: NDArray[Any],
    step: int,
    lr: float = 0.01,
    weight_decay: float = 0.0,
    decay_mask: NDArray[Any] | None = None,
    trainable: NDArray[Any] | None = None,
    threads: int = 1,
    l1: float | None = None,
    penalized: NDArray[Any] | None = None,
) -> None:
    """Gradient descent, in place: p -= lr (g + weight_decay p). `state` is (0,).

    >>> import nbprop, numpy as np
    >>> params, grads = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    >>> state = nbprop.optimizer_state("sgd", 2)
    >>> nbprop.sgd(params, grads, state, step=0, lr=0.1)
    >>> params.round(6)
    array([0.95, 2.05])
    """
    take_step(
        "sgd", params, grads, state, step, decay_mask, trainable, threads, lr, weight_decay, l1=l1, penalized=penalized
    )


def momentum(
    params: NDArray[Any],
    grads: NDArray[Any],
    state: NDArray[Any],
    step: int,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    rumelhart: bool = False,
    decay_mask: NDArray[Any] | None = None,
    trainable: NDArray[Any] | None = None,
    threads: int = 1,
    l1: float | None = None,
    penalized: NDArray[Any] | None = None,
) -> None:
    """Gradient descent with momentum, in place: v = momentum v + g; p -= lr v. `state` is (n,), the velocities.

    With rumelhart=True the form of Rumelhart, Hinton and Williams (1986, equation 9): v = momentum v + lr g; p -= v.
    The two differ only where lr changes from step to step. Weight decay is added to the gradient.

    >>> import nbprop, numpy as np
    >>> params, grads = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    >>> state = nbprop.optimizer_state("momentum", 2)
    >>> nbprop.momentum(params, grads, state, step=0, lr=0.1)
    >>> params.round(6)
    array([0.95, 2.05])
    """
    take_step(
        "momentum",
        params,
        grads,
        state,
        step,
        decay_mask,
        trainable,
        threads,
        lr,
        momentum,
        weight_decay,
        rumelhart,
        l1=l1,
        penalized=penalized,
    )


def nesterov(
    params: NDArray[Any],
    grads: NDArray[Any],
    state: NDArray[Any],
    step: int,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    decay_mask: NDArray[Any] | None = None,
    trainable: NDArray[Any] | None = None,
    threads: int = 1,
    l1: float | None = None,
    penalized: NDArray[Any] | None = None,
) -> None:
    """Nesterov's momentum, in place: v = momentum v + g; p -= lr (g + momentum v). `state` is (n,), the velocities.

    Sutskever et al. 2013, in PyTorch's form. Weight decay is added to the gradient.

    >>> import nbprop, numpy as np
    >>> params, grads = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    >>> state = nbprop.optimizer_state("nesterov", 2)
    >>> nbprop.nesterov(params, grads, state, step=0, lr=0.1)
    >>> params.round(6)
    array([0.905, 2.095])
    """
    take_step(
        "nesterov",
        params,
        grads,
        state,
        step,
        decay_mask,
        trainable,
        threads,
        lr,
        momentum,
        weight_decay,
        l1=l1,
        penalized=penalized,
    )


def rmsprop(
    params: NDArray[Any],
    grads: NDArray[Any],
    state: NDArray[Any],
    step: int,
    lr: float = 0.01,
    decay: float = 0.99,
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    decay_mask: NDArray[Any] | None = None,
    trainable: NDArray[Any] | None = None,
    threads: int = 1,
    l1: float | None = None,
    penalized: NDArray[Any] | None = None,
) -> None:
    """RMSprop, in place: v = decay v + (1 - decay) g^2; p -= lr g / (sqrt(v) + eps). `state` is (n,), the v.

    Hinton, Coursera lecture 6e, 2012. Weight decay is added to the gradient.

    >>> import nbprop, numpy as np
    >>> params, grads = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    >>> state = nbprop.optimizer_state("rmsprop", 2)
    >>> nbprop.rmsprop(params, grads, state, step=0, lr=0.1)
    >>> params.round(6)
    array([0., 3.])
    """
    take_step(
        "rmsprop",
        params,
        grads,
        state,
        step,
        decay_mask,
        trainable,
        threads,
        lr,
        decay,
        eps,
        weight_decay,
        l1=l1,
        penalized=penalized,
    )


def adagrad(
    params: NDArray[Any],
    grads: NDArray[Any],
    state: NDArray[Any],
    step: int,
    lr: float = 0.01,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    decay_mask: NDArray[Any] | None = None,
    trainable: NDArray[Any] | None = None,
    threads: int = 1,
    l1: float | None = None,
    penalized: NDArray[Any] | None = None,
) -> None:
    """AdaGrad, in place: v += g^2; p -= lr g / (sqrt(v) + eps). `state` is (n,), the sums v.

    Duchi, Hazan and Singer 2011. Weight decay is added to the gradient.

    >>> import nbprop, numpy as np
    >>> params, grads = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    >>> state = nbprop.optimizer_state("adagrad", 2)
    >>> nbprop.adagrad(params, grads, state, step=0, lr=0.1)
    >>> params.round(6)
    array([0.9, 2.1])
    """
    take_step(
        "adagrad",
        params,
        grads,
        state,
        step,
        decay_mask,
        trainable,
        threads,
        lr,
        eps,
        weight_decay,
        l1=l1,
        penalized=penalized,
    )


def adam(
    params: NDArray[Any],
    grads: NDArray[Any],
    state: NDArray[Any],
    step: int,
    lr: float = 0.001,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    decay_mask: NDArray[Any] | None = None,
    trainable: NDArray[Any] | None = None,
    threads: int = 1,
    l1: float | None = None,
    penalized: NDArray[Any] | None = None,
) -> None:
    """One step of Adam, in place.

    m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; p -= lr m' / (sqrt(v') + eps), where m' and v' are m
    and v over 1 - beta^(step + 1). Kingma and Ba 2015, algorithm 1.

    Parameters
    ----------
    params : (n,) float32 or float64 array, updated
    grads : (n,) array of the same dtype
    state : (2n,) array of the same dtype, updated; from ``optimizer_state("adam", n, dtype)``
    step : int
        Counts from 0.
    lr, beta1, beta2, eps : float
    weight_decay : float
        Added to the gradient as weight_decay * p; `adamw` has it apart from the gradient.
    decay_mask, trainable : (n,) bool or uint8 arrays, or None
        Which parameters decay, and which are updated at all; None means all.
    threads : int
        How many threads share the update; the bits do not depend on it.
    l1, penalized : float, (n,) bool or uint8 array or None
        A penalty l1 sum(|p|) on all parameters, or those of a mask, by a proximal step after the update, which makes
        parameters 0. The gradients leave it out: their plan has no l1.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit: names it, what it got and what was needed; nothing has been written then.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> params, grads = np.zeros(3), np.array([1.0, -2.0, 0.0])
    >>> nbprop.adam(params, grads, nbprop.optimizer_state("adam", 3), 0, lr=0.5)
    >>> params.round(6).tolist()
    [-0.5, 0.5, 0.0]
    """
    take_step(
        "adam",
        params,
        grads,
        state,
        step,
        decay_mask,
        trainable,
        threads,
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        l1=l1,
        penalized=penalized,
    )


def adamw(
    params: NDArray[Any],
    grads: NDArray[Any],
    state: NDArray[Any],
    step: int,
    lr: float = 0.001,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-08,
    weight_decay: float = 0.01,
    decay_mask: NDArray[Any] | None = None,
    trainable: NDArray[Any] | None = None,
    threads: int = 1,
    l1: float | None = None,
    penalized: NDArray[Any] | None = None,
) -> None:
    """Adam with decoupled weight decay, in place: p -= lr weight_decay p first, then `adam`'s step. `state` is (2n,).

    Loshchilov and Hutter 2019, algorithm 2.

    >>> import nbprop, numpy as np
    >>> params, grads = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    >>> state = nbprop.optimizer_state("adamw", 2)
    >>> nbprop.adamw(params, grads, state, step=0, lr=0.1)
    >>> params.round(6)
    array([0.899, 2.098])
    """
    take_step(
        "adamw",
        params,
        grads,
        state,
        step,
        decay_mask,
        trainable,
        threads,
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        l1=l1,
        penalized=penalized,
    )


def rprop(
    params: NDArray[Any],
    grads: NDArray[Any],
    state: NDArray[Any],
    step: int,
    lr: float = 0.01,
    shrink: float = 0.5,
    grow: float = 1.2,
    smallest: float = 1e-06,
    largest: float = 50.0,
    weight_decay: float = 0.0,
    decay_mask: NDArray[Any] | None = None,
    trainable: NDArray[Any] | None = None,
    threads: int = 1,
    l1: float | None = None,
    penalized: NDArray[Any] | None = None,
) -> None:
    """Rprop, in place, for full-batch gradients: p -= sign(g) size, with a step size for each parameter.

    A size starts as lr, is multiplied by `grow` while its gradient keeps its sign, and by `shrink` when it changes
    (then p stays), within smallest..largest. `state` is (2n,): the last gradients, then the sizes. Riedmiller and Braun
    1993, in PyTorch's form. Weight decay is added to the gradient.

    >>> import nbprop, numpy as np
    >>> params, grads = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    >>> state = nbprop.optimizer_state("rprop", 2)
    >>> nbprop.rprop(params, grads, state, step=0, lr=0.1)
    >>> params.round(6)
    array([0.9, 2.1])
    """
    take_step(
        "rprop",
        params,
        grads,
        state,
        step,
        decay_mask,
        trainable,
        threads,
        lr,
        shrink,
        grow,
        smallest,
        largest,
        weight_decay,
        l1=l1,
        penalized=penalized,
    )


def lion(
    params: NDArray[Any],
    grads: NDArray[Any],
    state: NDArray[Any],
    step: int,
    lr: float = 0.0001,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 0.0,
    decay_mask: NDArray[Any] | None = None,
    trainable: NDArray[Any] | None = None,
    threads: int = 1,
    l1: float | None = None,
    penalized: NDArray[Any] | None = None,
) -> None:
    """Lion, in place: p -= lr (sign(beta1 m + (1 - beta1) g) + weight_decay p); m = beta2 m + (1 - beta2) g.

    `state` is (n,), the m. Chen et al. 2023, algorithm 2; weight decay is decoupled.

    >>> import nbprop, numpy as np
    >>> params, grads = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    >>> state = nbprop.optimizer_state("lion", 2)
    >>> nbprop.lion(params, grads, state, step=0, lr=0.1)
    >>> params.round(6)
    array([0.9, 2.1])
    """
    take_step(
        "lion",
        params,
        grads,
        state,
        step,
        decay_mask,
        trainable,
        threads,
        lr,
        beta1,
        beta2,
        weight_decay,
        l1=l1,
        penalized=penalized,
    )


def amsgrad(
    params: NDArray[Any],
    grads: NDArray[Any],
    state: NDArray[Any],
    step: int,
    lr: float = 0.001,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    decay_mask: NDArray[Any] | None = None,
    trainable: NDArray[Any] | None = None,
    threads: int = 1,
    l1: float | None = None,
    penalized: NDArray[Any] | None = None,
) -> None:
    """Adam with the largest v so far in the place of v, in place. `state` is (3n,): m, v and the largest v.

    Reddi, Kale and Kumar 2018, algorithm 2, in PyTorch's form. Weight decay is added to the gradient.

    >>> import nbprop, numpy as np
    >>> params, grads = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    >>> nbprop.amsgrad(params, grads, nbprop.optimizer_state("amsgrad", 2), step=0, lr=0.1)
    >>> params.round(6)
    array([0.9, 2.1])
    """
    take_step(
        "amsgrad",
        params,
        grads,
        state,
        step,
        decay_mask,
        trainable,
        threads,
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        l1=l1,
        penalized=penalized,
    )


def radam(
    params: NDArray[Any],
    grads: NDArray[Any],
    state: NDArray[Any],
    step: int,
    lr: float = 0.001,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    decay_mask: NDArray[Any] | None = None,
    trainable: NDArray[Any] | None = None,
    threads: int = 1,
    l1: float | None = None,
    penalized: NDArray[Any] | None = None,
) -> None:
    """Rectified Adam, in place: no division by sqrt(v) in the first steps, until its variance is known.

    `state` is (2n,): m, then v. p -= lr r m' sqrt(1 - beta2^t) / (sqrt(v) + eps) with the rectification r, or lr m' in
    the first steps. Liu et al. 2020, algorithm 2, in PyTorch's form. Weight decay is added to the gradient.

    >>> import nbprop, numpy as np
    >>> params, grads = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    >>> nbprop.radam(params, grads, nbprop.optimizer_state("radam", 2), step=0, lr=0.1)
    >>> params.round(6)
    array([0.95, 2.05])
    """
    take_step(
        "radam",
        params,
        grads,
        state,
        step,
        decay_mask,
        trainable,
        threads,
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        l1=l1,
        penalized=penalized,
    )


def nadam(
    params: NDArray[Any],
    grads: NDArray[Any],
    state: NDArray[Any],
    step: int,
    lr: float = 0.002,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-08,
    momentum_decay: float = 0.004,
    weight_decay: float = 0.0,
    decay_mask: NDArray[Any] | None = None,
    trainable: NDArray[Any] | None = None,
    threads: int = 1,
    l1: float | None = None,
    penalized: NDArray[Any] | None = None,
) -> None:
    """Adam with Nesterov's momentum, in place. `state` is (2n,): m, then v.

    p -= lr (mu_(t+1) m' + (1 - mu_t) g') / (sqrt(v') + eps) with the momentum mu_t = beta1 (1 - 0.96^(t c) / 2) of
    step t, from 1, and c = momentum_decay. Dozat 2016, in PyTorch's form. Weight decay is added to the gradient.

    >>> import nbprop, numpy as np
    >>> params, grads = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    >>> nbprop.nadam(params, grads, nbprop.optimizer_state("nadam", 2), step=0, lr=0.1)
    >>> params.round(6)
    array([0.894355, 2.105645])
    """
    take_step(
        "nadam",
        params,
        grads,
        state,
        step,
        decay_mask,
        trainable,
        threads,
        lr,
        beta1,
        beta2,
        eps,
        momentum_decay,
        weight_decay,
        l1=l1,
        penalized=penalized,
    )


def adadelta(
    params: NDArray[Any],
    grads: NDArray[Any],
    state: NDArray[Any],
    step: int,
    lr: float = 1.0,
    decay: float = 0.9,
    eps: float = 1e-06,
    weight_decay: float = 0.0,
    decay_mask: NDArray[Any] | None = None,
    trainable: NDArray[Any] | None = None,
    threads: int = 1,
    l1: float | None = None,
    penalized: NDArray[Any] | None = None,
) -> None:
    """Adadelta, in place: v = decay v + (1 - decay) g^2; d = g sqrt(w + eps) / sqrt(v + eps); p -= lr d.

    w is the same mean of d^2. `state` is (2n,): v, then w. Zeiler 2012, algorithm 1. Weight decay is added to the
    gradient.

    >>> import nbprop, numpy as np
    >>> params, grads = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    >>> nbprop.adadelta(params, grads, nbprop.optimizer_state("adadelta", 2), step=0, lr=0.1)
    >>> params.round(6)
    array([0.999684, 2.000316])
    """
    take_step(
        "adadelta",
        params,
        grads,
        state,
        step,
        decay_mask,
        trainable,
        threads,
        lr,
        decay,
        eps,
        weight_decay,
        l1=l1,
        penalized=penalized,
    )


def schedule_free_adamw(
    params: NDArray[Any],
    grads: NDArray[Any],
    state: NDArray[Any],
    step: int,
    lr: float = 0.0025,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    warm_up: float = 0.0,
    decay_mask: NDArray[Any] | None = None,
    trainable: NDArray[Any] | None = None,
    threads: int = 1,
) -> None:
    """AdamW without a schedule, in place: the mean of its steps takes the place of a falling rate.

    `params` hold y, at which gradients are to be taken; the parameters to use, also to measure a loss, are their mean
    x = params + state[2 * n:]. `fit` sees to that by itself. `state` is (3n,): z - y, v and x - y. Defazio et al. 2024,
    "The road less scheduled", algorithm 1.

    Parameters
    ----------
    params, grads, state, step, eps, decay_mask, trainable, threads
        As for `adam`.
    lr : float
        Constant: the weights of the mean follow `warm_up` alone.
    beta1, beta2 : float
        y = (1 - beta1) z + beta1 x; the decay of v, the running mean of g^2.
    weight_decay : float
        z -= lr weight_decay y, apart from the gradient.
    warm_up : float
        Steps over which lr rises in a straight line.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> params, state = np.zeros(2), nbprop.optimizer_state("schedule_free_adamw", 2)
    >>> for step in range(200):
    ...     nbprop.schedule_free_adamw(params, params - [1.0, -2.0], state, step, lr=0.1)
    >>> (params + state[4:]).round(1).tolist()
    [1.0, -2.0]
    """
    take_step(
        "schedule_free_adamw",
        params,
        grads,
        state,
        step,
        decay_mask,
        trainable,
        threads,
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        warm_up,
    )


_EVERY: Any = (sgd, momentum, nesterov, rmsprop, adagrad, adam, adamw, rprop, lion)
_EVERY += (amsgrad, radam, nadam, adadelta, schedule_free_adamw)
OPTIMIZERS = {function.__name__: function for function in _EVERY}


def _compile_as_written(function):
    """Inside @njit, compile the function as written above: `take_step` has an overload."""

    @overload(function, jit_options=FLAGS, strict=False)
    def same(*arguments, **named):
        return function


for _function in OPTIMIZERS.values():
    _compile_as_written(_function)
