"""The device kernels of elementwise losses without kernels of their own; equations and arrays as on the CPU."""

from nbprop.cuda.losses.base import cuda_curvature, cuda_elementwise
from nbprop.losses.focal import Focal, focal_derivative, focal_second, focal_value
from nbprop.losses.hinge import Hinge, hinge_derivative, hinge_value
from nbprop.losses.log_cosh import LogCosh, expected_second, log_cosh_derivative, log_cosh_second, log_cosh_value
from nbprop.losses.mae import MeanAbsoluteError, absolute_error, absolute_error_derivative, zero_second
from nbprop.losses.poisson_nll import PoissonNLL, poisson_nll_derivative, poisson_nll_second, poisson_nll_value

_LOSSES = (
    (MeanAbsoluteError, absolute_error, absolute_error_derivative, zero_second),
    (LogCosh, log_cosh_value, log_cosh_derivative, log_cosh_second),
    (PoissonNLL, poisson_nll_value, poisson_nll_derivative, poisson_nll_second),
    (Hinge, hinge_value, hinge_derivative, zero_second),
    (Focal, focal_value, focal_derivative, focal_second),
)


def cuda_kernels(cuda):
    """The device kernels: those of every elementwise loss, with its value and derivatives."""
    values = [cuda_elementwise(cuda, loss.kernel, value, slope) for loss, value, slope, _ in _LOSSES]
    products = [cuda_curvature(cuda, loss.curvature, second) for loss, _, _, second in _LOSSES]
    products.append(cuda_curvature(cuda, LogCosh.fisher, expected_second))
    return [made for kernels in (*values, *products) for made in kernels]
