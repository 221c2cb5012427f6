"""The public names and where they are: what `import nbprop` offers, each imported when it is first used."""

from nbprop import schedules as schedules
from nbprop.analysis.explain import Contributions as Contributions
from nbprop.analysis.explain import Explanation as Explanation
from nbprop.analysis.explain import explain as explain
from nbprop.analysis.gradcheck import gradcheck as gradcheck
from nbprop.analysis.rounding import RoundingError as RoundingError
from nbprop.analysis.rounding import rounding_error as rounding_error
from nbprop.analysis.summary import summary as summary
from nbprop.autodiff.derivatives import (
    fisher_product as fisher_product,
)
from nbprop.autodiff.derivatives import (
    gauss_newton_product as gauss_newton_product,
)
from nbprop.autodiff.derivatives import (
    hvp as hvp,
)
from nbprop.autodiff.derivatives import (
    jacobian as jacobian,
)
from nbprop.autodiff.derivatives import (
    jvp as jvp,
)
from nbprop.autodiff.derivatives import (
    per_sample_grads as per_sample_grads,
)
from nbprop.autodiff.derivatives import (
    vjp as vjp,
)
from nbprop.autodiff.gradients import (
    backward as backward,
)
from nbprop.autodiff.gradients import (
    forward as forward,
)
from nbprop.autodiff.gradients import (
    value as value,
)
from nbprop.autodiff.gradients import (
    value_and_grad as value_and_grad,
)
from nbprop.autodiff.operators import (
    gauss_newton_operator as gauss_newton_operator,
)
from nbprop.autodiff.operators import (
    hessian as hessian,
)
from nbprop.autodiff.operators import (
    hessian_operator as hessian_operator,
)
from nbprop.autodiff.operators import (
    jacobian_operator as jacobian_operator,
)
from nbprop.generation import generate as generate
from nbprop.io.networks import load as load
from nbprop.io.networks import load_state as load_state
from nbprop.io.networks import save as save
from nbprop.layers import (
    activation as activation,
)
from nbprop.layers import (
    attention as attention,
)
from nbprop.layers import (
    avg_pool1d as avg_pool1d,
)
from nbprop.layers import (
    avg_pool2d as avg_pool2d,
)
from nbprop.layers import (
    batchnorm as batchnorm,
)
from nbprop.layers import (
    concat as concat,
)
from nbprop.layers import (
    conv1d as conv1d,
)
from nbprop.layers import (
    conv2d as conv2d,
)
from nbprop.layers import (
    custom as custom,
)
from nbprop.layers import (
    dense as dense,
)
from nbprop.layers import (
    dropout as dropout,
)
from nbprop.layers import (
    elementwise as elementwise,
)
from nbprop.layers import (
    embedding as embedding,
)
from nbprop.layers import (
    flatten as flatten,
)
from nbprop.layers import (
    global_avg_pool as global_avg_pool,
)
from nbprop.layers import (
    global_max_pool as global_max_pool,
)
from nbprop.layers import (
    gru as gru,
)
from nbprop.layers import (
    layernorm as layernorm,
)
from nbprop.layers import (
    local_response_norm as local_response_norm,
)
from nbprop.layers import (
    lstm as lstm,
)
from nbprop.layers import (
    max_pool1d as max_pool1d,
)
from nbprop.layers import (
    max_pool2d as max_pool2d,
)
from nbprop.layers import (
    positions as positions,
)
from nbprop.layers import (
    reshape as reshape,
)
from nbprop.layers import (
    residual as residual,
)
from nbprop.layers import (
    rmsnorm as rmsnorm,
)
from nbprop.layers import (
    rnn as rnn,
)
from nbprop.layers import (
    slicing as slicing,
)
from nbprop.losses import (
    binary_cross_entropy as binary_cross_entropy,
)
from nbprop.losses import (
    gaussian_nll as gaussian_nll,
)
from nbprop.losses import (
    huber as huber,
)
from nbprop.losses import (
    mse as mse,
)
from nbprop.losses import (
    softmax_cross_entropy as softmax_cross_entropy,
)
from nbprop.lowering.plan import Plan as Plan
from nbprop.lowering.plan import layer_state as layer_state
from nbprop.lowering.plan import plan as plan
from nbprop.lowering.plan import workspace as workspace
from nbprop.networks.initializers import init as init
from nbprop.networks.network import Network as Network
from nbprop.networks.network import network as network
from nbprop.networks.network import views as views
from nbprop.numerics.partition import share as share
from nbprop.optimizers.api import (
    adagrad as adagrad,
)
from nbprop.optimizers.api import (
    adam as adam,
)
from nbprop.optimizers.api import (
    adamw as adamw,
)
from nbprop.optimizers.api import (
    lion as lion,
)
from nbprop.optimizers.api import (
    momentum as momentum,
)
from nbprop.optimizers.api import (
    nesterov as nesterov,
)
from nbprop.optimizers.api import (
    optimizer_state as optimizer_state,
)
from nbprop.optimizers.api import (
    rmsprop as rmsprop,
)
from nbprop.optimizers.api import (
    rprop as rprop,
)
from nbprop.optimizers.api import (
    sgd as sgd,
)
from nbprop.optimizers.clipping import clip_norm as clip_norm
from nbprop.optimizers.clipping import clip_value as clip_value
from nbprop.rollouts import rollout as rollout
from nbprop.rollouts import rollout_adjoint as rollout_adjoint
from nbprop.rollouts import rollout_buffers as rollout_buffers
from nbprop.solvers.fit_many import fit_many as fit_many
from nbprop.solvers.lbfgs import lbfgs_state as lbfgs_state
from nbprop.solvers.lbfgs import lbfgs_step as lbfgs_step
from nbprop.solvers.least_squares import least_squares as least_squares
from nbprop.solvers.levenberg_marquardt import lm_state as lm_state
from nbprop.solvers.levenberg_marquardt import lm_step as lm_step
from nbprop.solvers.minimize import minimize as minimize
from nbprop.solvers.objective import objective as objective
from nbprop.training.fit import fit as fit
from nbprop.training.history import History as History

__version__: str
