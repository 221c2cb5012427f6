"""The scalar functions of `elementary.py` in float32: branch-free, so that a loop over them vectorises.

Every constant and every operation is float32. Polynomials are minimax fits (Remez exchange, weighted for the
relative error of the function) of the expression named beside them. Float to integer goes through the
addition of 1.5 * 2**23, whose sum holds the integer in its low bits: a direct conversion goes through int64,
for which AVX2 has no vector form. `x if x < limit else limit` loses NaN; `limit if x > limit else x` keeps it.
"""

import numpy as np
from numpy import float32, uint32

from nbprop.numerics.scalars import bits, from_bits, scalar_function

_ZERO, _HALF, _ONE = float32(0.0), float32(0.5), float32(1.0)
_INF, _NAN = float32(np.inf), float32(np.nan)
_MAGNITUDE, _SIGN, _ONE_BITS = uint32(0x7FFFFFFF), uint32(0x80000000), uint32(0x3F800000)
_TWO_TO_64_BITS = uint32(0x5F800000)
_MANTISSA_BITS, _MANTISSA, _EXPONENT = uint32(23), uint32(0x007FFFFF), uint32(0xFF800000)

_ROUND = float32(1.5 * 2**23)
_LOG2_E = float32(1.44269504)
_LN2 = float32(0.693147181)
_SQRT_HALF, _PDF_0 = float32(0.707106781), float32(0.398942280)  # 1 / sqrt(2), 1 / sqrt(2 pi)
# ln 2 in two parts: 16 bits, so that a product with an exponent is exact, and the rest.
_LN2_HIGH, _LN2_LOW = float32(0.693145752), float32(1.42860677e-06)

# (e**r - 1 - r) / r**2 on |r| <= ln(2) / 2: relative error of e**r - 1 below 1.4e-8.
_E2, _E3, _E4 = float32(0.5), float32(0.166665428), float32(0.0416662819)
_E5, _E6 = float32(0.00836661082), float32(0.00139464677)

# (log(1 + f) - f + f**2 / 2) / f**3 for 1 + f in [sqrt(1/2), sqrt(2)]: relative error of the log below 6e-9.
_L3, _L4, _L5 = float32(0.333333164), float32(-0.250008106), float32(0.200022861)
_L6, _L7, _L8 = float32(-0.166245535), float32(0.141812041), float32(-0.131287739)
_L9, _L10 = float32(0.128815889), float32(-0.0785950422)

# -log(1 - erf(a)) / a - 1 on 0 < a < 3.95: relative error of erf below 4.1e-9. Adding a, rather than 1 here, saves
# half an ulp.
_R0, _R1, _R2 = float32(0.128379172), float32(0.636619382), float32(0.102777829)
_R3, _R4, _R5 = float32(-0.0191530601), float32(-0.000160401207), float32(0.00166703015)
_R6, _R7, _R8 = float32(-0.000632836661), float32(0.000117640668), float32(-9.25613101e-06)


@scalar_function
def _magnitude(x):
    return from_bits(uint32(bits(x) & _MAGNITUDE))


@scalar_function
def _with_sign_of(x, y):
    """The magnitude of y with the sign of x, zeros included."""
    return from_bits(uint32((bits(y) & _MAGNITUDE) | (bits(x) & _SIGN)))


@scalar_function
def _reduce(x):
    """x = n ln 2 + r with |r| <= ln(2) / 2: n + 1.5 * 2**23, and e**r - 1."""
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = (((_E6 * r + _E5) * r + _E4) * r + _E3) * r + _E2
    return shifted, (r * r) * p + r


@scalar_function
def _power_of_two(shifted):
    """2**n for n in [-126, 127], from n + 1.5 * 2**23."""
    return from_bits(uint32((bits(shifted) << _MANTISSA_BITS) + _ONE_BITS))


@scalar_function
def exp_f32(x):
    x = float32(89.0) if x > float32(89.0) else x
    x = float32(-104.0) if x < float32(-104.0) else x
    shifted, p = _reduce(x)
    # 2**n in two factors: n = 128 overflows one, and a subnormal result is to be rounded once.
    exponent = uint32(bits(shifted) << _MANTISSA_BITS)
    half = uint32((bits(shifted) << uint32(22)) & _EXPONENT)
    first = from_bits(uint32(half + _ONE_BITS))
    second = from_bits(uint32(uint32(exponent - half) + _ONE_BITS))
    return (p + _ONE) * first * second


@scalar_function
def expm1_f32(x):
    z = float32(89.0) if x > float32(89.0) else x
    z = float32(-20.0) if z < float32(-20.0) else z
    shifted, p = _reduce(z)
    overflows = shifted > _ROUND + float32(127.0)
    scale = _power_of_two(shifted - _ONE if overflows else shifted)
    y = scale * p + (scale - _ONE)
    return _with_sign_of(x, y + y if overflows else y)


@scalar_function
def tanh_f32(x):
    # With e = exp(-2|x|), (1 - e) / (1 + e). Both are sums of scale * p, rounded once: from exp(+2|x|), or
    # dividing by 2 - (1 - e), the error is half an ulp to an ulp larger.
    z = float32(-2.0) * _magnitude(x)
    z = float32(-20.0) if z < float32(-20.0) else z
    shifted, p = _reduce(z)
    scale = _power_of_two(shifted)
    y = (scale * p + (scale - _ONE)) / (scale * p + (scale + _ONE))
    return _with_sign_of(x, y)


@scalar_function
def sigmoid_f32(x):
    # exp(-|x|) as a normal number times 2**-64, so that a subnormal one is rounded once.
    z = from_bits(uint32(bits(x) | _SIGN))
    z = float32(-104.0) if z < float32(-104.0) else z
    shifted, p = _reduce(z)
    scale = from_bits(uint32((bits(shifted) << _MANTISSA_BITS) + _TWO_TO_64_BITS))
    e = (scale * p + scale) * float32(2.0**-64)
    return (e if x < _ZERO else _ONE) / (_ONE + e)


@scalar_function
def erf_f32(x):
    a = _magnitude(x)
    a = float32(3.95) if a > float32(3.95) else a
    q = ((((_R8 * a + _R7) * a + _R6) * a + _R5) * a + _R4) * a + _R3
    q = ((q * a + _R2) * a + _R1) * a + _R0
    shifted, p = _reduce(-(a * q + a))
    scale = _power_of_two(shifted)
    return _with_sign_of(x, scale * p + (scale - _ONE))


@scalar_function
def normal_cdf_f32(x):
    return _HALF + _HALF * erf_f32(x * _SQRT_HALF)


@scalar_function
def normal_pdf_f32(x):
    return _PDF_0 * exp_f32(-_HALF * (x * x))


@scalar_function
def _log_tail(f):
    """log(1 + f) - f for 1 + f in [sqrt(1/2), sqrt(2)]."""
    p = ((((_L10 * f + _L9) * f + _L8) * f + _L7) * f + _L6) * f + _L5
    p = (p * f + _L4) * f + _L3
    return (f * f) * (f * p - _HALF)


_SQRT_HALF_BITS = uint32(0x3F3504F3)
_SPLIT = uint32(_ONE_BITS - _SQRT_HALF_BITS)
_AS_INTEGER = uint32(0x4B000000)
_INTEGER_BIAS = float32(2**23 + 127)


@scalar_function
def _split(x):
    """For a normal x > 0, x = 2**k m with m in [sqrt(1/2), sqrt(2)): k, m and 2**-k (wrong for k = 128)."""
    u = uint32(bits(x) + _SPLIT)
    k = from_bits(uint32((u >> _MANTISSA_BITS) | _AS_INTEGER)) - _INTEGER_BIAS
    m = from_bits(uint32((u & _MANTISSA) + _SQRT_HALF_BITS))
    inverse = from_bits(uint32(uint32(_ONE_BITS + _ONE_BITS) - uint32(u & _EXPONENT)))
    return k, m, inverse


@scalar_function
def log_f32(x):
    subnormal = x < float32(2.0**-126)
    k, m, _ = _split(x * float32(2.0**23) if subnormal else x)
    k = k - float32(23.0) if subnormal else k
    f = m - _ONE
    y = k * _LN2_HIGH + (f + (k * _LN2_LOW + _log_tail(f)))
    y = y if x < _INF else x
    y = y if x > _ZERO else (-_INF if x == _ZERO else _NAN)
    return y if x == x else x


@scalar_function
def log1p_f32(x):
    u = _ONE + x
    # Knuth's two-sum: 1 + x = u + rest exactly.
    back = u - _ONE
    rest = (_ONE - (u - back)) + (x - back)
    k, m, inverse = _split(u)
    f = (m - _ONE) + (rest * inverse if u < float32(2.0**60) else _ZERO)
    y = k * _LN2_HIGH + (f + (k * _LN2_LOW + _log_tail(f)))
    y = _with_sign_of(x, y)
    y = y if x < _INF else x
    y = y if x > -_ONE else (-_INF if x == -_ONE else _NAN)
    return y if x == x else x


@scalar_function
def softplus_f32(x):
    # max(x, 0) + log(1 + e) with e = exp(-|x|): 1 + e is f + 1, or twice that and ln 2 more.
    e = exp_f32(-_magnitude(x))
    halve = e > float32(0.41421356)
    f = _HALF * e - _HALF if halve else e
    linear = _ZERO if x < _ZERO else x
    return linear + ((_LN2 if halve else _ZERO) + (f + _log_tail(f)))
