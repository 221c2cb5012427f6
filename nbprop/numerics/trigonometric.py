"""Sine and cosine for compiled loops, for float32 and float64; as `elementary.py`, but for arguments up to LIMIT.

x = k pi / 2 + r with |r| <= pi / 4, taken off in three parts of pi / 2 of which the first two have 33 bits, so that
their products with k below 2**20 are exact (Cody and Waite 1980, "Software manual for the elementary functions",
chapter 8). sin r and cos r are the minimax polynomials of FreeBSD's msun (k_sin.c and k_cos.c). Beyond LIMIT, where
neighbouring float32 are 1/16 apart, the loops below call the C library.

float32 is computed in float64 and rounded. Error below 0.6 ulp in float32, 1.1 ulp in float64, of 1 near multiples of
pi / 2.
"""

import math

from numpy import float32, float64, uint32, uint64

from nbprop.compiler.jit import njit
from nbprop.numerics.scalars import bits, by_precision, from_bits, like, scalar_function

LIMIT = 1e6

_ROUND = 1.5 * 2.0**52
_TWO_OVER_PI = 0.6366197723675814
# pi / 2 in three parts: 33 bits, 33 bits, the rest.
_FIRST, _SECOND, _THIRD = 1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21
# (sin r - r) / r**3 and (cos r - 1 + r**2 / 2) / r**4 in r**2, on |r| <= pi / 4: errors below 2**-58.
_S1, _S2, _S3 = -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04
_S4, _S5, _S6 = 2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10
_C1, _C2, _C3 = 4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05
_C4, _C5, _C6 = -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11

_NO, _ONE, _TWO, _TO_SIGN = uint64(0), uint64(1), uint64(2), uint64(62)

# The same for float32 alone: pi / 2 in parts of 11 bits, 11 bits and the rest; k is below 2**13.
DEVICE_LIMIT = float32(8192.0)
_ROUND_F32, _TWO_OVER_PI_F32, _NAN_F32 = float32(1.5 * 2.0**23), float32(0.6366197723675814), float32(math.nan)
_FIRST_F32, _SECOND_F32, _THIRD_F32 = float32(1.5703125), float32(4.837512969970703e-04), float32(7.549789948768648e-08)
_S1_F32, _S2_F32, _S3_F32 = float32(-1.6666654611e-01), float32(8.3321608736e-03), float32(-1.9515295891e-04)
_C1_F32, _C2_F32, _C3_F32 = (
    float32(4.166664568298827e-02),
    float32(-1.388731625493765e-03),
    float32(2.443315711809948e-05),
)
_WHOLE_F32, _HALF_F32 = float32(1.0), float32(0.5)
_NO_32, _ONE_32, _TWO_32, _TO_SIGN_32 = uint32(0), uint32(1), uint32(2), uint32(30)


@scalar_function
def _quarter_turns(x, turns):
    """sin(x + turns pi / 2) for |x| <= LIMIT."""
    shifted = x * _TWO_OVER_PI + _ROUND
    k = shifted - _ROUND
    r = ((x - k * _FIRST) - k * _SECOND) - k * _THIRD
    z = r * r
    sine = r + r * z * (((((_S6 * z + _S5) * z + _S4) * z + _S3) * z + _S2) * z + _S1)
    half = 0.5 * z
    rest = z * z * (((((_C6 * z + _C5) * z + _C4) * z + _C3) * z + _C2) * z + _C1)
    w = 1.0 - half
    cosine = w + (((1.0 - w) - half) + rest)
    quarter = bits(shifted) + turns
    value = cosine if (quarter & _ONE) != _NO else sine
    return from_bits(bits(value) ^ ((quarter & _TWO) << _TO_SIGN))


@scalar_function
def _sin_f64(x):
    return _quarter_turns(x, _NO)


@scalar_function
def _sin_f32(x):
    return float32(_quarter_turns(float64(x), _NO))


@scalar_function
def _cos_f64(x):
    return _quarter_turns(x, _ONE)


@scalar_function
def _cos_f32(x):
    return float32(_quarter_turns(float64(x), _ONE))


@by_precision(_sin_f32, _sin_f64)
def sin(x):
    """The sine, for |x| <= LIMIT; a finite number for any other finite x."""


@by_precision(_cos_f32, _cos_f64)
def cos(x):
    """The cosine, for |x| <= LIMIT; a finite number for any other finite x."""


# -- on the device ---------------------------------------------------------------------------------------------
#
# A graphics processor computes in float64 at a sixty-fourth of float32's speed, and the C library's reduction of large
# arguments needs local memory in every kernel. So float32 stays float32, up to DEVICE_LIMIT.


@scalar_function
def _quarter_turns_f32(x, turns):
    """sin(x + turns pi / 2) in float32, for |x| <= DEVICE_LIMIT: as `_quarter_turns`, with the constants of Cephes."""
    shifted = x * _TWO_OVER_PI_F32 + _ROUND_F32
    k = shifted - _ROUND_F32
    r = ((x - k * _FIRST_F32) - k * _SECOND_F32) - k * _THIRD_F32
    z = r * r
    sine = r + r * z * ((_S3_F32 * z + _S2_F32) * z + _S1_F32)
    cosine = (_WHOLE_F32 - _HALF_F32 * z) + z * z * ((_C3_F32 * z + _C2_F32) * z + _C1_F32)
    quarter = uint32(bits(shifted) + turns)  # Numba widens sums of uint32
    value = cosine if (quarter & _ONE_32) != _NO_32 else sine
    return from_bits(uint32(bits(value) ^ ((quarter & _TWO_32) << _TO_SIGN_32)))


@scalar_function
def _device_sin_f32(x):
    return _quarter_turns_f32(x, _NO_32) if abs(x) <= DEVICE_LIMIT else x * _NAN_F32


@scalar_function
def _device_cos_f32(x):
    return _quarter_turns_f32(x, _ONE_32) if abs(x) <= DEVICE_LIMIT else x * _NAN_F32


@scalar_function
def _device_sin_f64(x):
    return sin(x) if abs(x) <= LIMIT else math.nan


@scalar_function
def _device_cos_f64(x):
    return cos(x) if abs(x) <= LIMIT else math.nan


@by_precision(_device_sin_f32, _device_sin_f64)
def sin_or_nan(x):
    """The sine on the device: NaN beyond DEVICE_LIMIT in float32, beyond LIMIT in float64."""


@by_precision(_device_cos_f32, _device_cos_f64)
def cos_or_nan(x):
    """The cosine on the device, as `sin_or_nan`."""


# -- loops -----------------------------------------------------------------------------------------------------

# Each function below has two loops: with the C library's in it, the first would not vectorise. `not <=` is true of NaN.


@njit
def sines(y, x):
    """y = sin(x); they do not overlap. y OUT, x IN (n,)."""
    for i in range(y.size):
        y[i] = sin(x[i])
    for i in range(y.size):
        if not abs(x[i]) <= like(x[i], LIMIT):
            y[i] = math.sin(x[i])


@njit
def cosines(y, x):
    """y = cos(x); they do not overlap. y OUT, x IN (n,)."""
    for i in range(y.size):
        y[i] = cos(x[i])
    for i in range(y.size):
        if not abs(x[i]) <= like(x[i], LIMIT):
            y[i] = math.cos(x[i])


@njit
def scale_by_cosine(d, x):
    """d *= cos(x); they do not overlap. d INOUT, x IN (n,)."""
    for i in range(d.size):
        d[i] *= cos(x[i]) if abs(x[i]) <= like(x[i], LIMIT) else like(x[i], 1.0)
    for i in range(d.size):
        if not abs(x[i]) <= like(x[i], LIMIT):
            d[i] *= math.cos(x[i])


@njit
def subtract_times_sine(y, a, b, x):
    """y -= a b sin(x); they do not overlap. y INOUT, a, b and x IN (n,)."""
    for i in range(y.size):
        y[i] -= a[i] * b[i] * (sin(x[i]) if abs(x[i]) <= like(x[i], LIMIT) else like(x[i], 0.0))
    for i in range(y.size):
        if not abs(x[i]) <= like(x[i], LIMIT):
            y[i] -= a[i] * b[i] * math.sin(x[i])
