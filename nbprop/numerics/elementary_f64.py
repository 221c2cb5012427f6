"""The scalar functions of `elementary.py` in float64: branch-free, so that a loop over them vectorises.

Every constant and every operation is float64. Polynomials are minimax fits (Remez exchange, weighted for the
relative error of the function) of the expression named beside them. Float to integer, and integer to float,
go through the addition of 1.5 * 2**52, whose sum holds the integer in its low bits: AVX2 has no conversion
between float64 and int64. `x if x < limit else limit` loses NaN; `limit if x > limit else x` keeps it.
"""

import numpy as np

from nbprop.numerics.scalars import bits, from_bits, in_register, scalar_function

_MAGNITUDE, _SIGN = np.uint64(0x7FFFFFFFFFFFFFFF), np.uint64(0x8000000000000000)
_ONE_BITS, _TWO_BITS = np.uint64(0x3FF0000000000000), np.uint64(0x4000000000000000)
_MANTISSA_BITS, _HALF_SHIFT = np.uint64(52), np.uint64(51)
_MANTISSA, _EXPONENT = np.uint64(0x000FFFFFFFFFFFFF), np.uint64(0xFFF0000000000000)

_ROUND = 1.5 * 2.0**52
_LOG2_E = 1.4426950408889634
_LN2 = 0.6931471805599453
_SQRT_HALF, _PDF_0 = 0.7071067811865476, 0.3989422804014327  # 1 / sqrt(2), 1 / sqrt(2 pi)
# ln 2 in two parts: 42 bits, so that a product with an exponent is exact, and the rest.
_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42fefa3800p-1"), float.fromhex("0x1.ef35793c76730p-45")

# (e**r - 1 - r) / r**2 on |r| <= ln(2) / 2: relative error of e**r - 1 below 1.8e-17.
_E2, _E3, _E4, _E5 = 0.5000000000000006, 0.16666666666666685, 0.04166666666657333, 0.008333333333314588
_E6, _E7, _E8 = 0.0013888888932481888, 0.00019841269903003267, 2.4801504314306175e-05
_E9, _E10, _E11 = 2.7557227986462265e-06, 2.7626381604650146e-07, 2.5114464535081603e-08

# The same polynomial for tanh: (1 - e**(-2 r) - 2 r) / (2 r**2), on |r| <= ln(2) / 4. Scaled by powers of two.
_T0, _T1, _T2, _T3, _T4 = -2 * _E2, 4 * _E3, -8 * _E4, 16 * _E5, -32 * _E6
_T5, _T6, _T7, _T8, _T9 = 64 * _E7, -128 * _E8, 256 * _E9, -512 * _E10, 1024 * _E11
_TWO_LOG2_E, _HALF_LN2 = 2 * _LOG2_E, 0.5 * _LN2

# (log((1 + s) / (1 - s)) / s - 2) / s**2 in s**2, for (1 + s) / (1 - s) in [sqrt(1/2), sqrt(2)]: relative
# error of the log below 1.3e-18.
_L1, _L2, _L3, _L4 = 0.6666666666666735, 0.3999999999941107, 0.28571428743266913, 0.222221984756213
_L5, _L6, _L7 = 0.18183569756785123, 0.15313902838504156, 0.14797511683817774

# -log(1 - erf(a)) / a - 1 on 0 < a < 5.95: relative error of erf below 7.1e-17. Adding a, rather than 1 here, saves
# half an ulp.
_R0, _R1, _R2, _R3 = 0.1283791670955126, 0.6366197723676116, 0.10277260330006031, -0.019128446963060982
_R4, _R5, _R6 = -0.00020919523040096398, 0.0016962105308330159, -0.0005901468175791807
_R7, _R8, _R9 = 2.5955222569427032e-05, 6.428997130700891e-05, -2.9323461568793007e-05
_R10, _R11, _R12 = 2.795747957207609e-06, 3.5648188500185713e-06, -2.4299162212178447e-06
_R13, _R14, _R15 = 8.537965365172726e-07, -1.7413674792961067e-07, 8.388742288236083e-09
_R16, _R17, _R18 = 7.777005540215633e-09, -3.151820718501472e-09, 6.808593743339538e-10
_R19, _R20 = -9.545112617711785e-11, 8.718209680057757e-12
_R21, _R22 = -4.753262719760982e-13, 1.1795870481822756e-14


@scalar_function
def _magnitude(x):
    return from_bits(bits(x) & _MAGNITUDE)


@scalar_function
def _with_sign_of(x, y):
    """The magnitude of y with the sign of x, zeros included."""
    return from_bits((bits(y) & _MAGNITUDE) | (bits(x) & _SIGN))


@scalar_function
def _reduce(x):
    """x = n ln 2 + r with |r| <= ln(2) / 2: n + 1.5 * 2**52, and e**r - 1."""
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = (((_E11 * r + _E10) * r + _E9) * r + _E8) * r + _E7
    p = ((((p * r + _E6) * r + _E5) * r + _E4) * r + _E3) * r + _E2
    return shifted, (r * r) * p + r


@scalar_function
def _power_of_two(shifted):
    """2**n for n in [-1022, 1023], from n + 1.5 * 2**52."""
    return from_bits((bits(shifted) << _MANTISSA_BITS) + _ONE_BITS)


@scalar_function
def exp_f64(x):
    x = 710.0 if x > 710.0 else x
    x = -746.0 if x < -746.0 else x
    shifted, p = _reduce(x)
    # 2**n in two factors: n = 1024 overflows one, and a subnormal result is to be rounded once.
    exponent = bits(shifted) << _MANTISSA_BITS
    half = (bits(shifted) << _HALF_SHIFT) & _EXPONENT
    return (p + 1.0) * from_bits(half + _ONE_BITS) * from_bits((exponent - half) + _ONE_BITS)


@scalar_function
def expm1_f64(x):
    z = 710.0 if x > 710.0 else x
    z = -45.0 if z < -45.0 else z
    shifted, p = _reduce(z)
    overflows = shifted > _ROUND + 1023.0
    scale = _power_of_two(shifted - 1.0 if overflows else shifted)
    y = scale * p + (scale - 1.0)
    return _with_sign_of(x, y + y if overflows else y)


@scalar_function
def tanh_f64(x):
    """(1 - e) / (1 + e) with e = exp(-2 |x|) = 2**-n (1 - 2 q); n ln 2 in one part costs at most 0.1 ulp here.

    Estrin's scheme, since the steps of Horner's wait for each other.
    """
    a, limit = _magnitude(x), in_register(22.5)
    a = limit if a > limit else a
    minus_n = a * in_register(-_TWO_LOG2_E) + in_register(_ROUND)
    r = a + (minus_n - in_register(_ROUND)) * in_register(_HALF_LN2)
    r2 = r * r
    low = (in_register(_T1) * r + in_register(_T0)) + (in_register(_T3) * r + in_register(_T2)) * r2
    high = (in_register(_T5) * r + in_register(_T4)) + (in_register(_T7) * r + in_register(_T6)) * r2
    r4 = r2 * r2
    q = r2 * (low + r4 * (high + r4 * (in_register(_T9) * r + in_register(_T8)))) + r
    exponent = bits(minus_n) << _MANTISSA_BITS
    scale, twice = from_bits(exponent + _ONE_BITS), from_bits(exponent + _TWO_BITS) * q
    return _with_sign_of(x, (twice + (1.0 - scale)) / ((1.0 + scale) - twice))


@scalar_function
def sigmoid_f64(x):
    e = exp_f64(-_magnitude(x))
    return (e if x < 0.0 else 1.0) / (1.0 + e)


@scalar_function
def erf_f64(x):
    a = _magnitude(x)
    a = 5.95 if a > 5.95 else a
    q = ((((_R22 * a + _R21) * a + _R20) * a + _R19) * a + _R18) * a + _R17
    q = (((((q * a + _R16) * a + _R15) * a + _R14) * a + _R13) * a + _R12) * a + _R11
    q = (((((q * a + _R10) * a + _R9) * a + _R8) * a + _R7) * a + _R6) * a + _R5
    q = ((((q * a + _R4) * a + _R3) * a + _R2) * a + _R1) * a + _R0
    shifted, p = _reduce(-(a * q + a))
    scale = _power_of_two(shifted)
    return _with_sign_of(x, scale * p + (scale - 1.0))


@scalar_function
def normal_cdf_f64(x):
    return 0.5 + 0.5 * erf_f64(x * _SQRT_HALF)


@scalar_function
def normal_pdf_f64(x):
    return _PDF_0 * exp_f64(-0.5 * (x * x))


@scalar_function
def _log_tail(f):
    """log(1 + f) - f for 1 + f in [sqrt(1/2), sqrt(2)]."""
    s = f / (2.0 + f)
    z = s * s
    r = (((((_L7 * z + _L6) * z + _L5) * z + _L4) * z + _L3) * z + _L2) * z + _L1
    h = 0.5 * f * f
    return s * (h + z * r) - h


_SQRT_HALF_BITS = np.uint64(0x3FE6A09E667F3BCD)
_SPLIT = np.uint64(_ONE_BITS - _SQRT_HALF_BITS)
_TWICE_ONE_BITS = np.uint64(0x7FE0000000000000)
_AS_INTEGER = np.uint64(0x4330000000000000)
_INTEGER_BIAS = 2.0**52 + 1023.0


@scalar_function
def _split(x):
    """For a normal x > 0, x = 2**k m with m in [sqrt(1/2), sqrt(2)): k, m and 2**-k (wrong for k = 1024)."""
    u = bits(x) + _SPLIT
    k = from_bits((u >> _MANTISSA_BITS) | _AS_INTEGER) - _INTEGER_BIAS
    m = from_bits((u & _MANTISSA) + _SQRT_HALF_BITS)
    inverse = from_bits(_TWICE_ONE_BITS - (u & _EXPONENT))
    return k, m, inverse


@scalar_function
def log_f64(x):
    subnormal = x < 2.0**-1022
    k, m, _ = _split(x * 2.0**54 if subnormal else x)
    k = k - 54.0 if subnormal else k
    f = m - 1.0
    y = k * _LN2_HIGH + (f + (k * _LN2_LOW + _log_tail(f)))
    y = y if x < np.inf else x
    y = y if x > 0.0 else (-np.inf if x == 0.0 else np.nan)
    return y if x == x else x


@scalar_function
def log1p_f64(x):
    u = 1.0 + x
    # Knuth's two-sum: 1 + x = u + rest exactly.
    back = u - 1.0
    rest = (1.0 - (u - back)) + (x - back)
    k, m, inverse = _split(u)
    f = (m - 1.0) + (rest * inverse if u < 2.0**60 else 0.0)
    y = k * _LN2_HIGH + (f + (k * _LN2_LOW + _log_tail(f)))
    y = _with_sign_of(x, y)
    y = y if x < np.inf else x
    y = y if x > -1.0 else (-np.inf if x == -1.0 else np.nan)
    return y if x == x else x


@scalar_function
def softplus_f64(x):
    # max(x, 0) + log(1 + e) with e = exp(-|x|): 1 + e is f + 1, or twice that and ln 2 more.
    e = exp_f64(-_magnitude(x))
    halve = e > 0.41421356237309503
    f = 0.5 * e - 0.5 if halve else e
    linear = 0.0 if x < 0.0 else x
    return linear + ((_LN2 if halve else 0.0) + (f + _log_tail(f)))
