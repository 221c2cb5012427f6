"""The mathematics of the optimizers: for each, one scalar function that updates one parameter.

``rule(p, g, s, t, u, decay, c)`` returns the new p and the new state (s, t, u) of one parameter with gradient g; a rule
with fewer than three state elements returns the others unchanged. `decay` is the weight decay of the parameter, 0 if a
mask exempts it, and c are constants of the step, all in the type of the elements. ``constants(zero, step, h)`` computes
(decay, c) once per step, in float64, from the hyperparameters h (padded to six), and rounds them to the type of `zero`.
CPU loops and CUDA kernels call the same two functions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import types

from nbprop.compiler.intrinsics import FrameType, array_at, as_frame, load, load_double
from nbprop.compiler.jit import njit
from nbprop.compiler.native import Native
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import by_precision, like, scalar_function

# What a hyperparameter must be: in words in step.WANTED.
NOT_NEGATIVE, FRACTION, POSITIVE, AT_LEAST_ONE, SWITCH = range(1, 6)

MOST_HYPERPARAMETERS = 6

_LARGEST_F32, _LARGEST_F64 = np.finfo(np.float32).max, float(np.finfo(np.float64).max)


@scalar_function
def sign(x):
    """-1, 0 or 1; NaN for NaN."""
    return like(x, 1.0) if x > like(x, 0.0) else (like(x, -1.0) if x < like(x, 0.0) else x)


@scalar_function
def _bounded_for_square_f32(g):
    """`bounded_for_square` in one precision."""
    most = np.float32(2.0**63)
    limited = most if g > most else g
    # 0 g is 0, or NaN if g is not finite, and one fused operation.
    return (-most if limited < -most else limited) + like(g, 0.0) * g


@scalar_function
def _bounded_for_square_f64(g):
    """`bounded_for_square` in one precision."""
    most = 2.0**511
    limited = most if g > most else g
    return (-most if limited < -most else limited) + like(g, 0.0) * g


@by_precision(_bounded_for_square_f32, _bounded_for_square_f64)
def _bounded_for_square(g):
    """As `bounded_for_square`."""


@njit
def bounded_for_square(g):
    """g within +-2**63 in float32, or +-2**511 in float64, so that a running mean of its square stays finite.

    A rule that divides by the root of such a mean takes the same step as for a smaller gradient. NaN for infinity.
    """
    return _bounded_for_square(g)


@scalar_function
def _at_most_largest_f32(x):
    """`at_most_largest` in one precision."""
    return _LARGEST_F32 if x > _LARGEST_F32 else x


@scalar_function
def _at_most_largest_f64(x):
    """`at_most_largest` in one precision."""
    return _LARGEST_F64 if x > _LARGEST_F64 else x


@by_precision(_at_most_largest_f32, _at_most_largest_f64)
def _at_most_largest(x):
    """As `at_most_largest`."""


@njit
def at_most_largest(x):
    """min(x, the largest finite number)."""
    return _at_most_largest(x)


# -- sgd, and momentum in three forms ------------------------------------------------------------------------


@scalar_function
def sgd_constants(zero, step, h):
    """weight decay, (lr,)."""
    lr, weight_decay, _, _, _, _ = h
    return like(zero, weight_decay), (like(zero, lr),)


@scalar_function
def sgd_rule(p, g, s, t, u, decay, c):
    """p -= lr (g + decay p)."""
    return p - c[0] * (g + decay * p), s, t, u


@scalar_function
def momentum_constants(zero, step, h):
    """weight decay, (momentum, gain, rate)."""
    lr, momentum, weight_decay, rumelhart, _, _ = h
    gain, rate = (lr, 1.0) if rumelhart != 0.0 else (1.0, lr)
    return like(zero, weight_decay), (like(zero, momentum), like(zero, gain), like(zero, rate))


@scalar_function
def momentum_rule(p, g, velocity, t, u, decay, c):
    """v = momentum v + gain g; p -= rate v.

    (gain, rate) is (1, lr) in PyTorch's form. In that of Rumelhart, Hinton and Williams (Nature 323, 1986, equation 9)
    it is (lr, 1), and -v is their weight change: changing lr then leaves the accumulated velocity unchanged.
    """
    momentum, gain, rate = c
    velocity = momentum * velocity + gain * (g + decay * p)
    return p - rate * velocity, velocity, t, u


@scalar_function
def nesterov_constants(zero, step, h):
    """weight decay, (lr, momentum)."""
    lr, momentum, weight_decay, _, _, _ = h
    return like(zero, weight_decay), (like(zero, lr), like(zero, momentum))


@scalar_function
def nesterov_rule(p, g, velocity, t, u, decay, c):
    """v = momentum v + g; p -= lr (g + momentum v) (Sutskever et al. 2013, in PyTorch's form)."""
    lr, momentum = c
    g = g + decay * p
    velocity = momentum * velocity + g
    return p - lr * (g + momentum * velocity), velocity, t, u


# -- rates that adapt to each parameter ----------------------------------------------------------------------


@scalar_function
def rmsprop_constants(zero, step, h):
    """weight decay, (lr, decay, 1 - decay, eps)."""
    lr, decay, eps, weight_decay, _, _ = h
    return like(zero, weight_decay), (like(zero, lr), like(zero, decay), like(zero, 1.0 - decay), like(zero, eps))


@scalar_function
def rmsprop_rule(p, g, square, t, u, decay, c):
    """v = decay v + (1 - decay) g^2; p -= lr g / (sqrt(v) + eps) (Hinton, Coursera lecture 6e, 2012)."""
    lr, kept, fresh, eps = c
    g = bounded_for_square(g + decay * p)
    square = kept * square + fresh * (g * g)
    return p - lr * (g / (math.sqrt(square) + eps)), square, t, u


@scalar_function
def adagrad_constants(zero, step, h):
    """weight decay, (lr, eps)."""
    lr, eps, weight_decay, _, _, _ = h
    return like(zero, weight_decay), (like(zero, lr), like(zero, eps))


@scalar_function
def adagrad_rule(p, g, square, t, u, decay, c):
    """v += g^2; p -= lr g / (sqrt(v) + eps) (Duchi, Hazan and Singer 2011, figure 1, diagonal)."""
    lr, eps = c
    g = bounded_for_square(g + decay * p)
    square = at_most_largest(square + g * g)
    return p - lr * (g / (math.sqrt(square) + eps)), square, t, u


@scalar_function
def _adam_constants(zero, step, lr, beta1, beta2, eps):
    """lr and 1 / sqrt(v) with their bias corrections of this step, eps, beta1, 1 - beta1, beta2, 1 - beta2."""
    rate = lr / (1.0 - beta1 ** (step + 1.0))
    root = 1.0 / np.sqrt(1.0 - beta2 ** (step + 1.0))
    return (
        like(zero, rate),
        like(zero, root),
        like(zero, eps),
        like(zero, beta1),
        like(zero, 1.0 - beta1),
        like(zero, beta2),
        like(zero, 1.0 - beta2),
    )


@scalar_function
def adam_constants(zero, step, h):
    """weight decay, constants of `_adam_step`."""
    lr, beta1, beta2, eps, weight_decay, _ = h
    return like(zero, weight_decay), _adam_constants(zero, step, lr, beta1, beta2, eps)


@scalar_function
def adamw_constants(zero, step, h):
    """lr times weight decay, constants of `_adam_step`."""
    lr, beta1, beta2, eps, weight_decay, _ = h
    return like(zero, lr * weight_decay), _adam_constants(zero, step, lr, beta1, beta2, eps)


@scalar_function
def _adam_step(p, g, m, v, c):
    """m and v are running means of g and g^2; p -= rate m / (sqrt(v) root + eps).

    rate and root contain the bias corrections.
    """
    rate, root, eps, beta1, rest1, beta2, rest2 = c
    g = bounded_for_square(g)
    m = beta1 * m + rest1 * g
    v = beta2 * v + rest2 * (g * g)
    return p - rate * (m / (math.sqrt(v) * root + eps)), m, v


@scalar_function
def adam_rule(p, g, m, v, u, decay, c):
    """Kingma and Ba 2015, algorithm 1; weight decay is added to the gradient."""
    p, m, v = _adam_step(p, g + decay * p, m, v, c)
    return p, m, v, u


@scalar_function
def adamw_rule(p, g, m, v, u, decay, c):
    """Loshchilov and Hutter 2019, algorithm 2: p shrinks by lr * weight_decay * p, apart from the gradient."""
    p, m, v = _adam_step(p - decay * p, g, m, v, c)
    return p, m, v, u


@scalar_function
def amsgrad_rule(p, g, m, v, most, decay, c):
    """Reddi, Kale and Kumar 2018, algorithm 2, in PyTorch's form: Adam with the largest v so far in its place."""
    rate, root, eps, beta1, rest1, beta2, rest2 = c
    g = bounded_for_square(g + decay * p)
    m = beta1 * m + rest1 * g
    v = beta2 * v + rest2 * (g * g)
    # NaN in v stays.
    most = most if v <= most else v
    return p - rate * (m / (math.sqrt(most) * root + eps)), m, v, most


@scalar_function
def radam_constants(zero, step, h):
    """weight decay, constants of `_adam_step`: sqrt(v) counts once its variance is known, from rho above 5 on."""
    lr, beta1, beta2, eps, weight_decay, _ = h
    t = step + 1.0
    kept = beta2**t
    longest = 2.0 / (1.0 - beta2) - 1.0
    rho = longest - 2.0 * t * kept / (1.0 - kept)
    rate, counts, floor = lr / (1.0 - beta1**t), 0.0, 1.0
    if rho > 5.0:
        variance = (rho - 4.0) * (rho - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * rho)
        rate, counts, floor = rate * np.sqrt(variance * (1.0 - kept)), 1.0, eps
    return like(zero, weight_decay), (
        like(zero, rate),
        like(zero, counts),
        like(zero, floor),
        like(zero, beta1),
        like(zero, 1.0 - beta1),
        like(zero, beta2),
        like(zero, 1.0 - beta2),
    )


@scalar_function
def nadam_constants(zero, step, h):
    """weight decay, rates of g and of m, 1 / sqrt(v)'s correction, eps, beta1, 1 - beta1, beta2, 1 - beta2.

    The momentum of step t (from 1) is mu_t = beta1 (1 - q^t / 2) with q = 0.96^momentum_decay, and the product of the
    first t is beta1^t exp(-sum over k of 2^-k / k q^k (1 - q^(t k)) / (1 - q^k)), whose 1 - q^k and 1 - q^(t k) come
    from recurrences without cancellation.
    """
    lr, beta1, beta2, eps, momentum_decay, weight_decay = h
    t, slow = step + 1.0, np.log(0.96) * momentum_decay
    first, first_t = -np.expm1(slow), -np.expm1(slow * t)
    power, left, left_t, weight, total = np.exp(slow), first, first_t, 0.5, 0.0
    for k in range(1, 54):
        total += weight / k * (1.0 - left) * (left_t / left if left > 0.0 else t)
        left += first - left * first
        left_t += first_t - left_t * first_t
        weight *= 0.5
    product = beta1**t * np.exp(-total)
    mu = beta1 * (1.0 - 0.5 * np.exp(slow * t))
    following = beta1 * (1.0 - 0.5 * np.exp(slow * t) * power)
    return like(zero, weight_decay), (
        like(zero, lr * (1.0 - mu) / (1.0 - product)),
        like(zero, lr * following / (1.0 - product * following)),
        like(zero, 1.0 / np.sqrt(1.0 - beta2**t)),
        like(zero, eps),
        like(zero, beta1),
        like(zero, 1.0 - beta1),
        like(zero, beta2),
        like(zero, 1.0 - beta2),
    )


@scalar_function
def nadam_rule(p, g, m, v, u, decay, c):
    """p -= (rate_g g + rate_m m) / (sqrt(v) root + eps): Nesterov's momentum in Adam (Dozat 2016), as in PyTorch."""
    rate_g, rate_m, root, eps, beta1, rest1, beta2, rest2 = c
    g = bounded_for_square(g + decay * p)
    m = beta1 * m + rest1 * g
    v = beta2 * v + rest2 * (g * g)
    scale = math.sqrt(v) * root + eps
    return p - (rate_g * (g / scale) + rate_m * (m / scale)), m, v, u


@scalar_function
def adadelta_constants(zero, step, h):
    """weight decay, (lr, decay, 1 - decay, eps)."""
    lr, decay, eps, weight_decay, _, _ = h
    return like(zero, weight_decay), (like(zero, lr), like(zero, decay), like(zero, 1.0 - decay), like(zero, eps))


@scalar_function
def adadelta_rule(p, g, square, moved, u, decay, c):
    """v = decay v + (1 - decay) g^2; d = g sqrt(w + eps) / sqrt(v + eps); w = decay w + (1 - decay) d^2; p -= lr d.

    Zeiler 2012, algorithm 1; lr is PyTorch's.
    """
    lr, kept, fresh, eps = c
    g = bounded_for_square(g + decay * p)
    square = kept * square + fresh * (g * g)
    step = math.sqrt(moved + eps) * (g / math.sqrt(square + eps))
    return p - lr * step, square, kept * moved + fresh * (step * step), u


@scalar_function
def schedule_free_adamw_constants(zero, step, h):
    """weight decay, (lr, weight of this z in the mean, lr (1 - beta1 (1 - weight)), root, eps, beta2, 1 - beta2).

    Step t weighs as the square of its share of lr: 1, or t / warm_up before. The weights' sums are closed forms.
    """
    lr, beta1, beta2, eps, weight_decay, warm_up = h
    t = step + 1.0
    rate, weight = lr, 1.0 / t
    if warm_up > 1.0:
        rising = np.floor(warm_up)
        if t < warm_up:
            rate, weight = lr * t / warm_up, 6.0 * t / ((t + 1.0) * (2.0 * t + 1.0))
        else:
            risen = rising * (rising + 1.0) * (2.0 * rising + 1.0) / (6.0 * warm_up * warm_up)
            weight = 1.0 / (risen + t - rising)
    return like(zero, weight_decay), (
        like(zero, rate),
        like(zero, weight),
        like(zero, rate * (1.0 - beta1 * (1.0 - weight))),
        like(zero, 1.0 / np.sqrt(1.0 - beta2**t)),
        like(zero, eps),
        like(zero, beta2),
        like(zero, 1.0 - beta2),
    )


@scalar_function
def schedule_free_adamw_rule(p, g, ahead, v, mean, decay, c):
    """Defazio et al. 2024, algorithm 1: z -= rate d, x += weight (z - x), y = (1 - beta1) z + beta1 x.

    d = g / (sqrt(v) root + eps) + decay y, and p is y, at which gradients are taken. The state is z - y, v and x - y,
    all 0 at first: x, which is to be used, is p + mean, also where p is not trained.
    """
    rate, weight, whole, root, eps, beta2, rest2 = c
    g = bounded_for_square(g)
    v = beta2 * v + rest2 * (g * g)
    d = g / (math.sqrt(v) * root + eps) + decay * p
    move = weight * ahead - whole * d
    ahead = ahead - rate * d
    mean = mean + weight * (ahead - mean)
    return p + move, ahead - move, v, mean - move


# -- rates that look at signs --------------------------------------------------------------------------------


@scalar_function
def rprop_constants(zero, step, h):
    """weight decay, (lr, shrink, grow, smallest, largest)."""
    lr, shrink, grow, smallest, largest, weight_decay = h
    c = (like(zero, lr), like(zero, shrink), like(zero, grow), like(zero, smallest), like(zero, largest))
    return like(zero, weight_decay), c


@scalar_function
def rprop_rule(p, g, before, size, u, decay, c):
    """p -= sign(g) size; size grows while g keeps its sign, and shrinks, without a step, when g changes it.

    Riedmiller and Braun 1993, without weight backtracking, as in PyTorch. A size of 0 has not been set yet: it
    starts as lr.
    """
    lr, shrink, grow, smallest, largest = c
    zero = like(p, 0.0)
    g = g + decay * p
    size = lr if size == zero else size
    turn = sign(g) * sign(before)
    size = size * grow if turn > zero else (size * shrink if turn < zero else size)
    size = largest if size > largest else (smallest if size < smallest else size)
    g = zero if turn < zero else g
    return p - sign(g) * size, g, size, u


@scalar_function
def lion_constants(zero, step, h):
    """weight decay, (lr, beta1, 1 - beta1, beta2, 1 - beta2)."""
    lr, beta1, beta2, weight_decay, _, _ = h
    c = like(zero, lr), like(zero, beta1), like(zero, 1.0 - beta1), like(zero, beta2), like(zero, 1.0 - beta2)
    return like(zero, weight_decay), c


@scalar_function
def lion_rule(p, g, m, t, u, decay, c):
    """p -= lr (sign(beta1 m + (1 - beta1) g) + decay p); m = beta2 m + (1 - beta2) g.

    Chen et al. 2023, algorithm 2.
    """
    lr, beta1, rest1, beta2, rest2 = c
    direction = sign(beta1 * m + rest1 * g)
    return p - lr * (direction + decay * p), beta2 * m + rest2 * g, t, u


# -- kernels: a rule over flat arrays ------------------------------------------------------------------------

# The row of a kernel: addresses (0 for a mask that was not given), then numbers; hyperparameters are float64.
# FACTORS, of the parameters' learning rates, is for the kernels that take them.
PARAMS, GRADS, STATE, DECAY_MASK, TRAINABLE, N, STEP, HYPERPARAMETERS = range(8)
FACTORS = HYPERPARAMETERS + MOST_HYPERPARAMETERS
ROW = FACTORS + 1

# The share of a thread starts at a multiple of this many elements, so that no cache line is shared by threads.
_GRAIN = 64


def _update(rule, constants, slots, scaled=False):
    """The kernel of a rule with `slots` state elements per parameter.

    scaled: with a factor of each parameter's learning rate, by which its step is multiplied: of every rule but
    schedule_free_adamw, the step is proportional to the rate, and no state depends on it.
    """

    def update(frame, row, part, parts):
        """One step of the rule on the arrays of a row: PARAMS INOUT (n,), GRADS IN (n,), STATE INOUT (slots, n).

        DECAY_MASK and TRAINABLE IN (n,), bytes, or 0 for all; FACTORS IN (n,) if `scaled`.
        """
        n = load(row, N)
        if n == 0:
            return 0
        first, last = share((n + _GRAIN - 1) // _GRAIN, part, parts)
        first, last = first * _GRAIN, min(last * _GRAIN, n)
        if first >= last:
            return 0
        p = array_at(frame, load(row, PARAMS), n)[first:last]
        g = array_at(frame, load(row, GRADS), n)[first:last]
        state = array_at(frame, load(row, STATE), slots * n)
        s, t = state[first:last] if slots > 0 else p, state[n + first : n + last] if slots > 1 else p
        u = state[2 * n + first : 2 * n + last] if slots > 2 else p
        as_bytes = as_frame(0, np.uint8)
        decay_mask = array_at(as_bytes, load(row, DECAY_MASK), n)[first:last]
        trainable = array_at(as_bytes, load(row, TRAINABLE), n)[first:last]
        every_decays, every_trains = load(row, DECAY_MASK) == 0, load(row, TRAINABLE) == 0
        factors = array_at(frame, load(row, FACTORS), n)[first:last] if scaled else p
        zero = like(p[0], 0.0)
        h = (
            load_double(row, HYPERPARAMETERS),
            load_double(row, HYPERPARAMETERS + 1),
            load_double(row, HYPERPARAMETERS + 2),
            load_double(row, HYPERPARAMETERS + 3),
            load_double(row, HYPERPARAMETERS + 4),
            load_double(row, HYPERPARAMETERS + 5),
        )
        decay, c = constants(zero, float(load(row, STEP)), h)
        if every_trains and every_decays:
            # A loop of its own: LLVM takes the masks out of the loop below for short rules only. The others, nadam and
            # schedule_free_adamw, would not be vectorised, and take seven times as long.
            for i in range(p.size):
                new_p, new_s, new_t, new_u = rule(p[i], g[i], s[i], t[i], u[i], decay, c)
                p[i] = p[i] + factors[i] * (new_p - p[i]) if scaled else new_p
                if slots > 0:
                    s[i] = new_s
                if slots > 1:
                    t[i] = new_t
                if slots > 2:
                    u[i] = new_u
            return 0
        for i in range(p.size):
            if every_trains or trainable[i] != 0:
                own_decay = decay if every_decays or decay_mask[i] != 0 else zero
                new_p, new_s, new_t, new_u = rule(p[i], g[i], s[i], t[i], u[i], own_decay, c)
                p[i] = p[i] + factors[i] * (new_p - p[i]) if scaled else new_p
                if slots > 0:
                    s[i] = new_s
                if slots > 1:
                    t[i] = new_t
                if slots > 2:
                    u[i] = new_u
        return 0

    return update


def kernel_signature(dtype):
    """int64 kernel(frame, row, part, parts), like an op's, so that a walk can split it; the frame carries the dtype."""
    return types.int64(FrameType(dtype), types.int64, types.int64, types.int64)


@dataclass(frozen=True)
class Rule:
    """An optimizer: its scalar functions, its hyperparameters with their kinds, its state elements per parameter."""

    name: str
    slots: int
    hyperparameters: dict[str, int]
    rule: Callable
    constants: Callable
    kernel: Native
    scaled_kernel: Native


RULES: dict[str, Rule] = {}


def _define(name, slots, rule, constants, **hyperparameters):
    kernel, scaled = (
        Native(_update(rule, constants, slots, scaled), kernel_signature, name=f"nbprop.optimizers.{name}{suffix}")
        for scaled, suffix in ((False, ""), (True, ".scaled"))
    )
    RULES[name] = Rule(name, slots, hyperparameters, rule, constants, kernel, scaled)


_DECAY = {"weight_decay": NOT_NEGATIVE}
_BETAS = {"lr": NOT_NEGATIVE, "beta1": FRACTION, "beta2": FRACTION}
_ADAM = {**_BETAS, "eps": NOT_NEGATIVE, **_DECAY}
_define("sgd", 0, sgd_rule, sgd_constants, lr=NOT_NEGATIVE, **_DECAY)
_MOMENTUM = {"lr": NOT_NEGATIVE, "momentum": FRACTION, **_DECAY}
_define("momentum", 1, momentum_rule, momentum_constants, **_MOMENTUM, rumelhart=SWITCH)
_define("nesterov", 1, nesterov_rule, nesterov_constants, **_MOMENTUM)
_define("rmsprop", 1, rmsprop_rule, rmsprop_constants, lr=NOT_NEGATIVE, decay=FRACTION, eps=NOT_NEGATIVE, **_DECAY)
_define("adagrad", 1, adagrad_rule, adagrad_constants, lr=NOT_NEGATIVE, eps=NOT_NEGATIVE, **_DECAY)
_define("adam", 2, adam_rule, adam_constants, **_ADAM)
_define("adamw", 2, adamw_rule, adamw_constants, **_ADAM)
_RPROP = {"shrink": FRACTION, "grow": AT_LEAST_ONE, "smallest": POSITIVE, "largest": POSITIVE}
_define("rprop", 2, rprop_rule, rprop_constants, lr=POSITIVE, **_RPROP, **_DECAY)
_define("lion", 1, lion_rule, lion_constants, **_BETAS, **_DECAY)
_define("amsgrad", 3, amsgrad_rule, adam_constants, **_ADAM)
_define("radam", 2, adam_rule, radam_constants, **_ADAM)
_define("nadam", 2, nadam_rule, nadam_constants, **_BETAS, eps=NOT_NEGATIVE, momentum_decay=NOT_NEGATIVE, **_DECAY)
_define("adadelta", 2, adadelta_rule, adadelta_constants, lr=NOT_NEGATIVE, decay=FRACTION, eps=NOT_NEGATIVE, **_DECAY)
_define(
    "schedule_free_adamw", 3, schedule_free_adamw_rule, schedule_free_adamw_constants, **_ADAM, warm_up=NOT_NEGATIVE
)


# -- the device ----------------------------------------------------------------------------------------------

# Width of a row of constants that a device's update reads: weight decay, then the constants of a rule.
CONSTANTS = 9


def constants_of(name, dtype, step, values):
    """A step's weight decay and constants, (CONSTANTS,) of dtype; `values`: the hyperparameters in their order."""
    padded = (*map(float, values), *[0.0] * (MOST_HYPERPARAMETERS - len(values)))
    decay, found = RULES[name].constants(np.dtype(dtype).type(0), float(step), padded)
    return np.array([decay, *found, *[0] * (CONSTANTS - 1 - len(found))], dtype)
