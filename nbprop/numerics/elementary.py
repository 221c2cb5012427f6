"""Elementary functions for compiled loops, one name each for float32 and float64.

    for i in range(y.size):
        y[i] = functions.tanh(x[i])

compiles to vector instructions of the processor's width: no call, no branch, no table. The type of x selects the
function of elementary_f32.py or elementary_f64.py; any other type is a typing error. Equal x give equal bits in the
vector body of a loop and in its scalar tail. NaN gives NaN; the limits at infinity, the signs of zeros,
overflow to infinity and gradual underflow to subnormals and 0 are those of the exact function.

Error bounds are in units in the last place of the exact result, in float32 and in float64. Measured against
mpmath, and for float32 on every number with 2**-14 <= |x| < 256; with and without fused multiply-add.
"""

from nbprop.numerics import elementary_f32 as f32
from nbprop.numerics import elementary_f64 as f64
from nbprop.numerics.scalars import by_precision


@by_precision(f32.exp_f32, f64.exp_f64)
def exp(x):
    """e**x. Error below 1.1 and 1.1 ulp."""


@by_precision(f32.expm1_f32, f64.expm1_f64)
def expm1(x):
    """e**x - 1, also where x is small. Error below 1.8 and 2.3 ulp."""


@by_precision(f32.log_f32, f64.log_f64)
def log(x):
    """The natural logarithm; -inf at 0, NaN below. Error below 1.0 and 1.0 ulp."""


@by_precision(f32.log1p_f32, f64.log1p_f64)
def log1p(x):
    """log(1 + x), also where x is small; -inf at -1, NaN below. Error below 1.6 and 1.5 ulp."""


@by_precision(f32.tanh_f32, f64.tanh_f64)
def tanh(x):
    """The hyperbolic tangent; never beyond -1 and 1. Error below 2.1 and 2.3 ulp."""


@by_precision(f32.sigmoid_f32, f64.sigmoid_f64)
def sigmoid(x):
    """1 / (1 + e**-x); never beyond 0 and 1. Error below 2.5 and 2.5 ulp."""


@by_precision(f32.softplus_f32, f64.softplus_f64)
def softplus(x):
    """log(1 + e**x). Error below 1.9 and 2.3 ulp."""


@by_precision(f32.erf_f32, f64.erf_f64)
def erf(x):
    """The error function; never beyond -1 and 1. Error below 2.3 and 3.2 ulp."""


@by_precision(f32.normal_cdf_f32, f64.normal_cdf_f64)
def normal_cdf(x):
    """(1 + erf(x / sqrt(2))) / 2. Error below 1.5 ulp of 1: absolute, not relative to a small lower tail."""


@by_precision(f32.normal_pdf_f32, f64.normal_pdf_f64)
def normal_pdf(x):
    """e**(-x**2 / 2) / sqrt(2 pi). Error below 2.5 + x**2 / 2 ulp: that of rounding x**2 / 2."""
