"""The device kernels of elementwise losses without kernels of their own; equations and arrays as on the CPU."""

from nbprop.cuda.losses.base import cuda_elementwise
from nbprop.losses.focal import Focal, focal_derivative, focal_value
from nbprop.losses.hinge import Hinge, hinge_derivative, hinge_value
from nbprop.losses.log_cosh import LogCosh, log_cosh_derivative, log_cosh_value
from nbprop.losses.mae import MeanAbsoluteError, absolute_error, absolute_error_derivative
from nbprop.losses.poisson_nll import PoissonNLL, poisson_nll_derivative, poisson_nll_value

_LOSSES = (
    (MeanAbsoluteError, absolute_error, absolute_error_derivative),
    (LogCosh, log_cosh_value, log_cosh_derivative),
    (PoissonNLL, poisson_nll_value, poisson_nll_derivative),
    (Hinge, hinge_value, hinge_derivative),
    (Focal, focal_value, focal_derivative),
)


def cuda_kernels(cuda):
    """The device kernels: those of every elementwise loss, with its value and derivative."""
    return [made for loss, *scalars in _LOSSES for made in cuda_elementwise(cuda, loss.kernel, *scalars)]
