"""Why backpropagation: one network learns the same digits in four ways. How much does each evaluation achieve?

Before it, one could train the last layer (Rosenblatt 1958, Widrow and Hoff 1960), or change weights at random and keep
what helps. Backpropagation yields all derivatives for the cost of about three evaluations; a random change yields one
number. Here a 64-32-10 network learns the 8x8 digits that come with the package, with all images in every step:

    backprop              gradient descent with momentum on all weights               3 evaluations a step
    last layer            the same, but only the last layer moves                     3 evaluations a step
    all weights at once   a step along a random direction, by the slope found there   2 evaluations a step
                          (Spall 1992, equation 2.3)
    one weight at a time  a random change of one weight, kept if the loss is lower    1 evaluation a step

Accuracy on 360 held-out images is plotted against evaluations: forward passes over the other 1,437 images.

Run: python examples/history/why_backprop.py [--seed N] [--picture PATH]
"""

import numba
import numpy as np

import nbprop
import nbprop.data
from command import command
from nbprop.io.pictures import save_picture

HELD_OUT, BUDGET, QUICK_BUDGET = 360, 10_000, 3_000
COSTS = {"backprop": 3, "last layer": 3, "all weights at once": 2, "one weight at a time": 1}


@numba.njit
def descend(plan, params, x, target, work, steps, trainable, grads, velocity):
    """Gradient descent with momentum on the trainable parameters."""
    for step in range(steps):
        nbprop.value_and_grad(plan, params, x, target, grads, work)
        nbprop.momentum(params, grads, velocity, step, 0.2, 0.9, 0.0, False, None, trainable)


@numba.njit
def perturb_all(plan, params, x, target, work, steps, rng, rate, direction):
    """Along a random direction of signs: the slope by a central difference, and a step of `rate` times the slope."""
    reach = 1e-4
    for _ in range(steps):
        for i in range(direction.size):
            direction[i] = 1.0 if rng.random() < 0.5 else -1.0
        high = nbprop.value(plan, params + reach * direction, x, target, work)
        low = nbprop.value(plan, params - reach * direction, x, target, work)
        params -= rate * (high - low) / (2 * reach) * direction


@numba.njit
def perturb_one(plan, params, x, target, work, steps, rng, size, lowest):
    """A random change of one weight, undone unless it lowers the loss; lowest (1,): the loss so far."""
    for _ in range(steps):
        i = rng.integers(0, params.size)
        before = params[i]
        params[i] += size * rng.standard_normal()
        loss = nbprop.value(plan, params, x, target, work)
        if loss < lowest[0]:
            lowest[0] = loss
        else:
            params[i] = before


class Race:
    """The four learners on one split of the digits, from the same initial weights."""

    def __init__(self, seed):
        images, labels = nbprop.data.digits(np.float64)
        order = np.random.default_rng(seed).permutation(len(images))
        self.test_x, self.test_labels = images[order[:HELD_OUT]], labels[order[:HELD_OUT]]
        self.x, self.labels = images[order[HELD_OUT:]], labels[order[HELD_OUT:]]
        self.net = nbprop.network((64,), nbprop.dense(32, activation="tanh"), nbprop.dense(10))
        self.plan = nbprop.plan(self.net, "softmax_cross_entropy", len(self.x))
        self.work, self.seed = nbprop.workspace(self.plan), seed

    def learner(self, name, params):
        """A function (steps) that trains params in place."""
        data, rng = (self.plan, params, self.x, self.labels, self.work), np.random.default_rng(self.seed)
        if name == "all weights at once":
            direction = np.empty_like(params)
            return lambda steps: perturb_all(*data, steps, rng, 0.01, direction)
        if name == "one weight at a time":
            lowest = np.array([nbprop.value(*data)])
            return lambda steps: perturb_one(*data, steps, rng, 1.0, lowest)
        trainable, grads, velocity = np.ones(params.size, bool), np.empty_like(params), np.zeros_like(params)
        if name == "last layer":
            trainable[: self.net.slots["1.dense.weight"].offset] = False
        return lambda steps: descend(*data, steps, trainable, grads, velocity)

    def accuracy(self, params):
        """The percentage of held-out images that are read right."""
        logits = np.empty((HELD_OUT, 10))
        nbprop.forward(self.plan, params, self.test_x, logits, self.work)
        return 100 * float(np.mean(logits.argmax(1) == self.test_labels))

    def run(self, name, budget):
        """(evaluations, accuracies) on the way to `budget` evaluations."""
        params = nbprop.init(self.net, self.seed)
        learn, steps = self.learner(name, params), 0
        evaluations, accuracies = [0], [self.accuracy(params)]
        for stop in np.unique(np.geomspace(1, budget / COSTS[name], 60).astype(int)):
            learn(int(stop) - steps)
            steps = int(stop)
            evaluations.append(steps * COSTS[name])
            accuracies.append(self.accuracy(params))
        return np.array(evaluations), np.array(accuracies)


def evaluations_to(goal, evaluations, accuracies):
    """How many evaluations the first `goal` percent took; None if it was never reached."""
    reached = accuracies >= goal
    return int(evaluations[reached.argmax()]) if reached.any() else None


def run(seed, quick=False):
    """Backprop reaches 90 % in at most a tenth of the evaluations of random changes; it ends above the last layer."""
    race, budget = Race(seed), QUICK_BUDGET if quick else BUDGET
    curves = {name: race.run(name, budget) for name in COSTS}
    result = {f"evaluations_to_90_percent: {name}": evaluations_to(90, *curve) for name, curve in curves.items()}
    needed = list(result.values())
    best = {name: round(float(accuracies.max()), 2) for name, (_, accuracies) in curves.items()}
    random_changes = min(count or budget for count in needed[2:])
    return {
        "reproduced": needed[0] is not None
        and random_changes >= 10 * needed[0]
        and best["backprop"] > best["last layer"],
        "random_changes_over_backprop": round(random_changes / (needed[0] or budget), 1),
        **result,
        **{f"best_percent: {name}": value for name, value in best.items()},
    }


def draw(seed, path):
    from nbprop import plot

    race = Race(seed)
    figure, axes = plot.panels(size=(7.5, 4.5))
    for name in COSTS:
        evaluations, accuracies = race.run(name, BUDGET)
        axes.semilogx(evaluations[1:], accuracies[1:], label=f"{name}: best {accuracies.max():.1f} %")
    axes.set(
        xlabel="evaluations (forward walks over 1,437 images)",
        ylabel="right on 360 held-out images, %",
        title=f"{race.net.n_params:,} weights, four ways to learn",
        ylim=(0, 101),
    )
    axes.legend(loc="lower right")
    save_picture(figure, path)


if __name__ == "__main__":
    command(__doc__, run, draw)
