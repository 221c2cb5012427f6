"""The learning procedure of 1986: whole sweeps in compiled code.

Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", Nature 323 (1986), 533-536 ("the
letter"), and "Learning internal representations by error propagation", Parallel Distributed Processing 1, chapter 8
(MIT Press 1986, "the chapter"). Sigmoid units; the error is E = 1/2 sum (y - d)^2 over outputs and cases (letter,
equation 3), its derivative is propagated back through the net (equations 4 to 7), and weights move by
dw(t) = -rate dE/dw(t) + momentum dw(t - 1) (equation 9), after each sweep through all cases or after each case.
"""

import numba
import numpy as np

import nbprop


def units(count, share=None):
    """A layer of sigmoid units, fully connected to the one below; `share` names a layer whose weights it uses."""
    return nbprop.dense(count, activation="sigmoid", share=share)


def start(net, seed, spread=0.3):
    """Weights and biases, random and uniform between -0.3 and 0.3 (letter, figure 1)."""
    return np.random.default_rng(seed).uniform(-spread, spread, net.n_params)


def outputs(net, params, x):
    """The outputs of a net, (n, *output_shape)."""
    plan = nbprop.plan(net, batch=len(x))
    y = np.empty((len(x), *net.output_shape))
    nbprop.forward(plan, params, x, y, nbprop.workspace(plan))
    return y


class Learner:
    """A net, its cases and its velocity: `sweep` learns.

    params : (n_params,), changed in place
    x, target : (n, ...) and (n, outputs) float64 arrays, the cases
    tied : slice of parameters that are replicas of one weight: each moves by the sum of their gradients
    """

    def __init__(self, net, params, x, target, tied=slice(0, 0)):
        self.plan, self.params, self.x, self.target, self.tied = nbprop.plan(net, batch=len(x)), params, x, target, tied
        self.velocity, self.grads, self.work = np.zeros_like(params), np.empty_like(params), nbprop.workspace(self.plan)
        self.y, self.dy = np.empty_like(target), np.empty_like(target)

    def sweep(self, most, rate, momentum=0.9, decay=0.0, good_enough=0.0, within=0.0, each=None):
        """Make up to `most` sweeps; returns their number until every output was `within` that distance of its target.

        decay : fraction of every weight that is subtracted after each change
        good_enough : an output closer than this to its target has no error
        each : cases per weight change; all by default
        """
        return _sweep(
            *(self.plan, self.params, self.velocity, self.x, self.target, self.y, self.dy, self.grads, self.work),
            *(most, each or len(self.x), rate, momentum, decay, good_enough, within),
            *(self.tied.start, self.tied.stop),
        )


@numba.njit
def _sweep(
    plan, params, velocity, x, target, y, dy, grads, work,
    most, each, rate, momentum, decay, good_enough, within, first_tied, last_tied,
):  # fmt: skip
    """See `Learner.sweep`."""
    for sweep in range(most):
        nbprop.forward(plan, params, x, y, work)
        if np.abs(y - target).max() < within:
            return sweep
        for i in range(0, len(x), each):
            here = slice(i, i + each)
            if each < len(x):
                nbprop.forward(plan, params, x[here], y[here], work)
            for k in range(i, min(i + each, len(x))):
                for j in range(target.shape[1]):
                    error = y[k, j] - target[k, j]
                    dy[k, j] = 0.0 if abs(error) < good_enough else error
            nbprop.backward(plan, params, x[here], dy[here], grads, None, work)
            grads[first_tied:last_tied] = grads[first_tied:last_tied].sum()
            nbprop.momentum(params, grads, velocity, sweep, rate, momentum, 0.0, True)
            params *= 1 - decay
    return most
