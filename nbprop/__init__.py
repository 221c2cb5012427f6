"""Backpropagation as a JIT-compiled numerical toolkit. Everything is a flat array; importing compiles nothing."""

from nbprop import schedules
from nbprop.analysis.explain import Contributions, Explanation, explain
from nbprop.analysis.gradcheck import gradcheck
from nbprop.analysis.rounding import RoundingError, rounding_error
from nbprop.analysis.summary import summary
from nbprop.autodiff.derivatives import fisher_product, gauss_newton_product, hvp, jacobian, jvp, per_sample_grads, vjp
from nbprop.autodiff.gradients import backward, forward, value, value_and_grad
from nbprop.autodiff.operators import gauss_newton_operator, hessian, hessian_operator, jacobian_operator
from nbprop.export.api import export_c
from nbprop.generation import generate
from nbprop.io.networks import load, load_state, save
from nbprop.layers import (
    activation,
    attention,
    avg_pool1d,
    avg_pool2d,
    batchnorm,
    concat,
    conv1d,
    conv2d,
    custom,
    dense,
    dropout,
    elementwise,
    embedding,
    flatten,
    global_avg_pool,
    global_max_pool,
    gru,
    layernorm,
    local_response_norm,
    lstm,
    max_pool1d,
    max_pool2d,
    positions,
    reshape,
    residual,
    rmsnorm,
    rnn,
    slicing,
)
from nbprop.losses import binary_cross_entropy, gaussian_nll, huber, mse, softmax_cross_entropy
from nbprop.lowering.plan import Plan, layer_state, plan, workspace
from nbprop.networks.initializers import init
from nbprop.networks.network import Network, network, views
from nbprop.numerics.partition import share
from nbprop.optimizers.api import adagrad, adam, adamw, lion, momentum, nesterov, optimizer_state, rmsprop, rprop, sgd
from nbprop.optimizers.clipping import clip_norm, clip_value
from nbprop.rollouts import rollout, rollout_adjoint, rollout_buffers
from nbprop.solvers import levenberg_marquardt as marquardt  # noqa: F401 (its name before there were packages)
from nbprop.solvers.fit_many import fit_many
from nbprop.solvers.lbfgs import lbfgs_state, lbfgs_step
from nbprop.solvers.least_squares import least_squares
from nbprop.solvers.levenberg_marquardt import lm_state, lm_step
from nbprop.solvers.minimize import minimize
from nbprop.solvers.objective import objective
from nbprop.training.fit import fit
from nbprop.training.history import History

__all__ = [
    "Contributions",
    "Explanation",
    "History",
    "Network",
    "Plan",
    "RoundingError",
    "activation",
    "adagrad",
    "adam",
    "adamw",
    "attention",
    "avg_pool1d",
    "avg_pool2d",
    "backward",
    "batchnorm",
    "binary_cross_entropy",
    "clip_norm",
    "clip_value",
    "concat",
    "conv1d",
    "conv2d",
    "custom",
    "dense",
    "dropout",
    "elementwise",
    "embedding",
    "explain",
    "export_c",
    "fisher_product",
    "fit",
    "fit_many",
    "flatten",
    "forward",
    "gauss_newton_operator",
    "gauss_newton_product",
    "gaussian_nll",
    "generate",
    "global_avg_pool",
    "global_max_pool",
    "gradcheck",
    "gru",
    "hessian",
    "hessian_operator",
    "huber",
    "hvp",
    "init",
    "jacobian",
    "jacobian_operator",
    "jvp",
    "layer_state",
    "layernorm",
    "lbfgs_state",
    "lbfgs_step",
    "least_squares",
    "lion",
    "lm_state",
    "lm_step",
    "load",
    "load_state",
    "local_response_norm",
    "lstm",
    "max_pool1d",
    "max_pool2d",
    "minimize",
    "momentum",
    "mse",
    "nesterov",
    "network",
    "objective",
    "optimizer_state",
    "per_sample_grads",
    "plan",
    "positions",
    "reshape",
    "residual",
    "rmsnorm",
    "rmsprop",
    "rnn",
    "rollout",
    "rollout_adjoint",
    "rollout_buffers",
    "rounding_error",
    "rprop",
    "save",
    "schedules",
    "sgd",
    "share",
    "slicing",
    "softmax_cross_entropy",
    "summary",
    "value",
    "value_and_grad",
    "views",
    "vjp",
    "workspace",
]
__version__ = "0.1.0"
