"""nbprop: backpropagation as a JIT-compiled numerical toolkit. Everything is a flat array; importing compiles nothing."""

from nbprop.calls import backward, forward, value, value_and_grad
from nbprop.initial import init
from nbprop.layers import activation, concat, dense, flatten, residual
from nbprop.losses import binary_cross_entropy, gaussian_nll, huber, mse, softmax_cross_entropy
from nbprop.network import Network, network, views
from nbprop.plan import Plan, plan, workspace

__all__ = [
    "Network",
    "Plan",
    "activation",
    "backward",
    "binary_cross_entropy",
    "concat",
    "dense",
    "flatten",
    "forward",
    "gaussian_nll",
    "huber",
    "init",
    "mse",
    "network",
    "plan",
    "residual",
    "softmax_cross_entropy",
    "value",
    "value_and_grad",
    "views",
    "workspace",
]
__version__ = "0.1.0"
