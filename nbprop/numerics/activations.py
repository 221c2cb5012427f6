"""Activations and their derivatives as scalar functions, written once for CPU loops and CUDA kernels.

`value_of(x, code)` is f(x); `derivative_of(s, code)` is f', where s is x for the codes in NEEDS_INPUT, and y = f(x) for
the others; they are what the device calls. Loops that must vectorise branch on the code outside, and call the function
of one activation (for the sine, that of trigonometric.py).

Sources: ReLU, Nair & Hinton 2010; leaky ReLU, Maas et al. 2013 (slope 0.01); ELU, Clevert et al. 2016 (alpha 1); GELU,
Hendrycks & Gimpel 2016, section 2; SiLU, Elfwing et al. 2018; softplus, Dugas et al. 2001; Mish, Misra 2019; SELU,
Klambauer et al. 2017; hard sigmoid and hard swish, Howard et al. 2019, section 5.2; hard tanh, Collobert 2004;
softsign, Bergstra et al. 2009; sine, Sitzmann et al. 2020.
"""

import math

from nbprop.compiler.jit import njit
from nbprop.numerics.elementary import erf, exp, expm1, sigmoid, softplus, tanh
from nbprop.numerics.scalars import like, scalar_function
from nbprop.numerics.trigonometric import cos_or_nan, sin_or_nan

IDENTITY, RELU, LEAKY_RELU, ELU, GELU, GELU_TANH, SILU, SOFTPLUS, SIGMOID, TANH, SOFTMAX = range(11)
MISH, SELU, HARD_SIGMOID, HARD_TANH, HARD_SWISH, SOFTSIGN, SINE = range(11, 18)

ACTIVATIONS = {
    "identity": IDENTITY,
    "relu": RELU,
    "leaky_relu": LEAKY_RELU,
    "elu": ELU,
    "gelu": GELU,
    "gelu_tanh": GELU_TANH,
    "silu": SILU,
    "softplus": SOFTPLUS,
    "sigmoid": SIGMOID,
    "tanh": TANH,
    "softmax": SOFTMAX,
    "mish": MISH,
    "selu": SELU,
    "hard_sigmoid": HARD_SIGMOID,
    "hard_tanh": HARD_TANH,
    "hard_swish": HARD_SWISH,
    "softsign": SOFTSIGN,
    "sine": SINE,
}
# f' is a function of x; for all others it is written as a function of y.
NEEDS_INPUT = frozenset({GELU, GELU_TANH, SILU, MISH, HARD_SWISH, SINE})
# f(max(x)) = max(f(x)).
MONOTONE = frozenset({RELU, LEAKY_RELU, ELU, SOFTPLUS, SIGMOID, TANH, SELU, HARD_SIGMOID, HARD_TANH, SOFTSIGN})

ROOT_HALF = math.sqrt(0.5)
ROOT_2_OVER_PI = math.sqrt(2.0 / math.pi)
ONE_OVER_ROOT_2_PI = 1.0 / math.sqrt(2.0 * math.pi)
CUBIC = 0.044715
SLOPE = 0.01
# Of SELU: they make mean 0 and variance 1 of independent inputs a fixed point (Klambauer et al. 2017, equation 14).
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


@scalar_function
def _bounded_below(x):
    """max(x, -1000): f and f' have reached their limits there, and 0 times infinity would be NaN."""
    return like(x, -1000.0) if x < like(x, -1000.0) else x


@scalar_function
def _bounded(x):
    """x within -1000..1000, beyond which f' and f'' are constant, so that no power of x overflows. NaN stays NaN."""
    x = _bounded_below(x)
    return like(x, 1000.0) if x > like(x, 1000.0) else x


@scalar_function
def relu(x):
    """max(x, 0); NaN for NaN."""
    return like(x, 0.0) if x <= 0 else x


@scalar_function
def leaky_relu(x):
    """x, or 0.01 x where x is negative."""
    return x * like(x, SLOPE) if x <= 0 else x


@scalar_function
def elu(x):
    """x, or e^x - 1 where x is negative."""
    return expm1(x) if x <= 0 else x


@scalar_function
def elu_derivative(y):
    """f', from y = f(x)."""
    return y + like(y, 1.0) if y <= 0 else like(y, 1.0)


@scalar_function
def gaussian_cdf(x):
    """The standard normal distribution function."""
    return like(x, 0.5) * (like(x, 1.0) + erf(x * like(x, ROOT_HALF)))


@scalar_function
def gaussian_density(x):
    """The standard normal density."""
    return like(x, ONE_OVER_ROOT_2_PI) * exp(like(x, -0.5) * x * x)


@scalar_function
def gelu(x):
    """x times the standard normal distribution function of x."""
    x = _bounded_below(x)
    return x * gaussian_cdf(x)


@scalar_function
def gelu_derivative(x):
    """f', from x."""
    x = _bounded(x)
    return gaussian_cdf(x) + x * gaussian_density(x)


@scalar_function
def gelu_second_derivative(x):
    """f'', from x."""
    x = _bounded(x)
    return gaussian_density(x) * (like(x, 2.0) - x * x)


@scalar_function
def gelu_tanh_inner(x):
    """tanh(sqrt(2 / pi) (x + 0.044715 x^3))."""
    return tanh(like(x, ROOT_2_OVER_PI) * (x + like(x, CUBIC) * x * x * x))


@scalar_function
def gelu_tanh(x):
    """The approximation of gelu by tanh."""
    x = _bounded_below(x)
    return like(x, 0.5) * x * (like(x, 1.0) + gelu_tanh_inner(x))


@scalar_function
def gelu_tanh_derivative(x):
    """f', from x."""
    x = _bounded(x)
    t = gelu_tanh_inner(x)
    inner = like(x, ROOT_2_OVER_PI) * (like(x, 1.0) + like(x, 3 * CUBIC) * x * x)
    outer = (like(x, 1.0) - t * t) * inner
    return like(x, 0.5) * (like(x, 1.0) + t) + like(x, 0.5) * x * outer


@scalar_function
def gelu_tanh_second_derivative(x):
    """f'', from x."""
    x = _bounded(x)
    t = gelu_tanh_inner(x)
    inner = like(x, ROOT_2_OVER_PI) * (like(x, 1.0) + like(x, 3 * CUBIC) * x * x)
    inner_derivative = like(x, 6 * CUBIC * ROOT_2_OVER_PI) * x
    one_minus_square = like(x, 1.0) - t * t
    return one_minus_square * (inner + like(x, 0.5) * x * (inner_derivative - like(x, 2.0) * t * inner * inner))


@scalar_function
def silu(x):
    """x sigmoid(x)."""
    x = _bounded_below(x)
    return x * sigmoid(x)


@scalar_function
def silu_derivative(x):
    """f', from x."""
    x = _bounded(x)
    p = sigmoid(x)
    return p * (like(p, 1.0) + x * (like(p, 1.0) - p))


@scalar_function
def silu_second_derivative(x):
    """f'', from x."""
    x = _bounded(x)
    p = sigmoid(x)
    return p * (like(p, 1.0) - p) * (like(p, 2.0) + x * (like(p, 1.0) - like(p, 2.0) * p))


@scalar_function
def softplus_derivative(y):
    """f', from y = f(x)."""
    return -expm1(-y)


@scalar_function
def sigmoid_derivative(y):
    """f', from y = f(x)."""
    return y * (like(y, 1.0) - y)


@scalar_function
def tanh_derivative(y):
    """f', from y = f(x)."""
    return like(y, 1.0) - y * y


@scalar_function
def mish(x):
    """x tanh(softplus(x)) = x w / (w + 2) with w = e (e + 2) and e = e^x."""
    x = _bounded_below(x)
    e = exp(like(x, 40.0) if x > like(x, 40.0) else x)
    w = e * (e + like(x, 2.0))
    return x * (w / (w + like(x, 2.0)))


@scalar_function
def mish_parts(x):
    """tanh(softplus(x)), its derivative 4 e (1 + e) / (w + 2)^2, and sigmoid(x); w and e as in `mish`."""
    two = like(x, 2.0)
    e = exp(like(x, 40.0) if x > like(x, 40.0) else x)
    w = e * (e + two)
    slope = like(x, 4.0) * e * (like(x, 1.0) + e) / ((w + two) * (w + two))
    return w / (w + two), like(x, 0.0) if x > like(x, 40.0) else slope, e / (like(x, 1.0) + e)


@scalar_function
def mish_derivative(x):
    """f', from x."""
    x = _bounded(x)
    t, slope, _ = mish_parts(x)
    return t + x * slope


@scalar_function
def mish_second_derivative(x):
    """f'', from x."""
    x = _bounded(x)
    t, slope, p = mish_parts(x)
    return slope * (like(x, 2.0) + x * (like(x, 1.0) - p * (like(x, 1.0) + like(x, 2.0) * t)))


@scalar_function
def selu(x):
    """1.0507 x, or 1.7581 (e^x - 1) where x is negative."""
    return like(x, SELU_SCALE * SELU_ALPHA) * expm1(x) if x <= 0 else like(x, SELU_SCALE) * x


@scalar_function
def selu_derivative(y):
    """f', from y = f(x)."""
    return y + like(y, SELU_SCALE * SELU_ALPHA) if y <= 0 else like(y, SELU_SCALE)


@scalar_function
def hard_sigmoid(x):
    """x / 6 + 1 / 2, within 0..1."""
    y = x * like(x, 1.0 / 6.0) + like(x, 0.5)
    return like(x, 0.0) if x <= like(x, -3.0) else (like(x, 1.0) if x >= like(x, 3.0) else y)


@scalar_function
def hard_sigmoid_derivative(y):
    """f', from y = f(x)."""
    return like(y, 1.0 / 6.0) if (y > like(y, 0.0)) & (y < like(y, 1.0)) else like(y, 0.0)


@scalar_function
def hard_tanh(x):
    """x, within -1..1."""
    return like(x, -1.0) if x <= like(x, -1.0) else (like(x, 1.0) if x >= like(x, 1.0) else x)


@scalar_function
def hard_tanh_derivative(y):
    """f', from y = f(x)."""
    return like(y, 1.0) if (y > like(y, -1.0)) & (y < like(y, 1.0)) else like(y, 0.0)


@scalar_function
def hard_swish(x):
    """x hard_sigmoid(x)."""
    y = x * (x + like(x, 3.0)) * like(x, 1.0 / 6.0)
    return like(x, 0.0) if x <= like(x, -3.0) else (x if x >= like(x, 3.0) else y)


@scalar_function
def hard_swish_derivative(x):
    """f', from x."""
    slope = x * like(x, 1.0 / 3.0) + like(x, 0.5)
    return like(x, 0.0) if x <= like(x, -3.0) else (like(x, 1.0) if x >= like(x, 3.0) else slope)


@scalar_function
def hard_swish_second_derivative(x):
    """f'', from x."""
    return like(x, 1.0 / 3.0) if (x > like(x, -3.0)) & (x < like(x, 3.0)) else like(x, 0.0)


@scalar_function
def softsign(x):
    """x / (1 + |x|); where 1 no longer counts, x is taken for 1e18, so that infinity gives 1."""
    x = like(x, 1e18) if x > like(x, 1e18) else x
    x = like(x, -1e18) if x < like(x, -1e18) else x
    return x / (like(x, 1.0) + abs(x))


@scalar_function
def softsign_derivative(y):
    """f', from y = f(x)."""
    rest = like(y, 1.0) - abs(y)
    return rest * rest


@scalar_function
def softsign_bend(y):
    """The derivative of f' by y, from y = f(x); 0 at the jump, y = 0."""
    rest = like(y, 2.0) * (like(y, 1.0) - abs(y))
    return -rest if y > like(y, 0.0) else (rest if y < like(y, 0.0) else y)


@njit
def value_of(x, code):
    """f(x) of the activation with this code."""
    if code == RELU:
        return relu(x)
    if code == LEAKY_RELU:
        return leaky_relu(x)
    if code == ELU:
        return elu(x)
    if code == GELU:
        return gelu(x)
    if code == GELU_TANH:
        return gelu_tanh(x)
    if code == SILU:
        return silu(x)
    if code == SOFTPLUS:
        return softplus(x)
    if code == SIGMOID:
        return sigmoid(x)
    if code == TANH:
        return tanh(x)
    if code == MISH:
        return mish(x)
    if code == SELU:
        return selu(x)
    if code == HARD_SIGMOID:
        return hard_sigmoid(x)
    if code == HARD_TANH:
        return hard_tanh(x)
    if code == HARD_SWISH:
        return hard_swish(x)
    if code == SOFTSIGN:
        return softsign(x)
    if code == SINE:
        return sin_or_nan(x)
    return x


@njit
def derivative_of(s, code):
    """f' of the activation with this code; s is x for the codes in NEEDS_INPUT, y for the others."""
    one = like(s, 1.0)
    if code == RELU:
        return like(s, 0.0) if s <= 0 else one
    if code == LEAKY_RELU:
        return like(s, SLOPE) if s <= 0 else one
    if code == ELU:
        return elu_derivative(s)
    if code == GELU:
        return gelu_derivative(s)
    if code == GELU_TANH:
        return gelu_tanh_derivative(s)
    if code == SILU:
        return silu_derivative(s)
    if code == SOFTPLUS:
        return softplus_derivative(s)
    if code == SIGMOID:
        return sigmoid_derivative(s)
    if code == TANH:
        return tanh_derivative(s)
    if code == MISH:
        return mish_derivative(s)
    if code == SELU:
        return selu_derivative(s)
    if code == HARD_SIGMOID:
        return hard_sigmoid_derivative(s)
    if code == HARD_TANH:
        return hard_tanh_derivative(s)
    if code == HARD_SWISH:
        return hard_swish_derivative(s)
    if code == SOFTSIGN:
        return softsign_derivative(s)
    if code == SINE:
        return cos_or_nan(s)
    return one
