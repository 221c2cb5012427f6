"""Activations and their derivatives as scalar functions, written once for CPU loops and CUDA kernels.

`value_of(x, code)` is f(x); `slope_of(s, code)` is f', where s is x for the codes in NEEDS_INPUT and y = f(x) for the
others. Loops that must vectorise branch on the code outside and call the function of one activation.

Sources: ReLU, Nair & Hinton 2010; leaky ReLU, Maas et al. 2013 (slope 0.01); ELU, Clevert et al. 2016 (alpha 1); GELU,
Hendrycks & Gimpel 2016, section 2; SiLU, Elfwing et al. 2018; softplus, Dugas et al. 2001.
"""

import math

from nbprop.compiler.jit import njit
from nbprop.numerics.elementary import erf, exp, expm1, sigmoid, softplus, tanh
from nbprop.numerics.scalars import like, scalar_function

IDENTITY, RELU, LEAKY_RELU, ELU, GELU, GELU_TANH, SILU, SOFTPLUS, SIGMOID, TANH, SOFTMAX = range(11)

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
}
# f' needs x itself; for all others it is written in y.
NEEDS_INPUT = frozenset({GELU, GELU_TANH, SILU})
# f(max(x)) = max(f(x)).
MONOTONE = frozenset({RELU, LEAKY_RELU, ELU, SOFTPLUS, SIGMOID, TANH})

ROOT_HALF = math.sqrt(0.5)
ROOT_2_OVER_PI = math.sqrt(2.0 / math.pi)
ONE_OVER_ROOT_2_PI = 1.0 / math.sqrt(2.0 * math.pi)
CUBIC = 0.044715
SLOPE = 0.01


@scalar_function
def _floored(x):
    """x, or -1000 where it is below: f and f' are as at -infinity from there on, and 0 times infinity is no number."""
    return like(x, -1000.0) if x < like(x, -1000.0) else x


@scalar_function
def _clamped(x):
    """x within -1000..1000, where f' and f'' are as at the infinities: no power of x overflows. NaN stays NaN."""
    x = _floored(x)
    return like(x, 1000.0) if x > like(x, 1000.0) else x


@scalar_function
def relu(x):
    return like(x, 0.0) if x <= 0 else x


@scalar_function
def leaky_relu(x):
    return x * like(x, SLOPE) if x <= 0 else x


@scalar_function
def elu(x):
    return expm1(x) if x <= 0 else x


@scalar_function
def elu_slope(y):
    return y + like(y, 1.0) if y <= 0 else like(y, 1.0)


@scalar_function
def gaussian_cdf(x):
    return like(x, 0.5) * (like(x, 1.0) + erf(x * like(x, ROOT_HALF)))


@scalar_function
def gaussian_density(x):
    return like(x, ONE_OVER_ROOT_2_PI) * exp(like(x, -0.5) * x * x)


@scalar_function
def gelu(x):
    x = _floored(x)
    return x * gaussian_cdf(x)


@scalar_function
def gelu_slope(x):
    x = _clamped(x)
    return gaussian_cdf(x) + x * gaussian_density(x)


@scalar_function
def gelu_bend(x):
    """f''."""
    x = _clamped(x)
    return gaussian_density(x) * (like(x, 2.0) - x * x)


@scalar_function
def gelu_tanh_inner(x):
    return tanh(like(x, ROOT_2_OVER_PI) * (x + like(x, CUBIC) * x * x * x))


@scalar_function
def gelu_tanh(x):
    x = _floored(x)
    return like(x, 0.5) * x * (like(x, 1.0) + gelu_tanh_inner(x))


@scalar_function
def gelu_tanh_slope(x):
    x = _clamped(x)
    t = gelu_tanh_inner(x)
    inner = like(x, ROOT_2_OVER_PI) * (like(x, 1.0) + like(x, 3 * CUBIC) * x * x)
    slope = (like(x, 1.0) - t * t) * inner
    return like(x, 0.5) * (like(x, 1.0) + t) + like(x, 0.5) * x * slope


@scalar_function
def gelu_tanh_bend(x):
    """f''."""
    x = _clamped(x)
    t = gelu_tanh_inner(x)
    inner = like(x, ROOT_2_OVER_PI) * (like(x, 1.0) + like(x, 3 * CUBIC) * x * x)
    bend = like(x, 6 * CUBIC * ROOT_2_OVER_PI) * x
    rest = like(x, 1.0) - t * t
    return rest * (inner + like(x, 0.5) * x * (bend - like(x, 2.0) * t * inner * inner))


@scalar_function
def silu(x):
    x = _floored(x)
    return x * sigmoid(x)


@scalar_function
def silu_slope(x):
    x = _clamped(x)
    p = sigmoid(x)
    return p * (like(p, 1.0) + x * (like(p, 1.0) - p))


@scalar_function
def silu_bend(x):
    """f''."""
    x = _clamped(x)
    p = sigmoid(x)
    return p * (like(p, 1.0) - p) * (like(p, 2.0) + x * (like(p, 1.0) - like(p, 2.0) * p))


@scalar_function
def softplus_slope(y):
    return -expm1(-y)


@scalar_function
def sigmoid_slope(y):
    return y * (like(y, 1.0) - y)


@scalar_function
def tanh_slope(y):
    return like(y, 1.0) - y * y


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
    return x


@njit
def slope_of(s, code):
    """f' of the activation with this code; s is x for the codes in NEEDS_INPUT, y for the others."""
    one = like(s, 1.0)
    if code == RELU:
        return like(s, 0.0) if s <= 0 else one
    if code == LEAKY_RELU:
        return like(s, SLOPE) if s <= 0 else one
    if code == ELU:
        return elu_slope(s)
    if code == GELU:
        return gelu_slope(s)
    if code == GELU_TANH:
        return gelu_tanh_slope(s)
    if code == SILU:
        return silu_slope(s)
    if code == SOFTPLUS:
        return softplus_slope(s)
    if code == SIGMOID:
        return sigmoid_slope(s)
    if code == TANH:
        return tanh_slope(s)
    return one
