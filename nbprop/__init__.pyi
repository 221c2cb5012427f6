"""The public names: what `import nbprop` offers, each imported from its place when it is first used."""

# ruff: noqa: I001 (it would put each alias into a statement of its own)

from nbprop import callbacks as callbacks, schedules as schedules
from nbprop.analysis.bounds import Bounds as Bounds, bounds as bounds
from nbprop.analysis.explain import Contributions as Contributions, Explanation as Explanation, explain as explain
from nbprop.analysis.gradcheck import gradcheck as gradcheck
from nbprop.analysis.rounding import RoundingError as RoundingError, rounding_error as rounding_error
from nbprop.analysis.summary import summary as summary
from nbprop.analysis.trace import Trace as Trace, trace as trace
from nbprop.autodiff.bound import bind as bind
from nbprop.autodiff.derivatives import (
    fisher_product as fisher_product,
    gauss_newton_product as gauss_newton_product,
    hvp as hvp,
    jacobian as jacobian,
    jvp as jvp,
    per_sample_grads as per_sample_grads,
    vjp as vjp,
)
from nbprop.autodiff.gradients import (
    backward as backward,
    forward as forward,
    value as value,
    value_and_grad as value_and_grad,
)
from nbprop.autodiff.on_ranks import (
    data_on_ranks as data_on_ranks,
    value_and_grad_on_ranks as value_and_grad_on_ranks,
)
from nbprop.autodiff.operators import (
    gauss_newton_operator as gauss_newton_operator,
    hessian as hessian,
    hessian_operator as hessian_operator,
    jacobian_operator as jacobian_operator,
)
from nbprop.cluster.parts import rank_rows as rank_rows
from nbprop.cluster.ranks import RankError as RankError
from nbprop.export.api import export_c as export_c
from nbprop.generation import generate as generate
from nbprop.interchange.keras_import import from_keras as from_keras
from nbprop.interchange.onnx_export import to_onnx as to_onnx
from nbprop.interchange.onnx_import import from_onnx as from_onnx
from nbprop.interchange.safetensors_import import from_safetensors as from_safetensors
from nbprop.interchange.sklearn_import import from_sklearn as from_sklearn
from nbprop.interchange.torch_import import from_torch as from_torch
from nbprop.io.chunk_files import file_chunks as file_chunks
from nbprop.io.networks import load as load, load_state as load_state, save as save
from nbprop.layers import (
    activation as activation,
    ascending as ascending,
    attention as attention,
    avg_pool1d as avg_pool1d,
    avg_pool2d as avg_pool2d,
    batchnorm as batchnorm,
    bidirectional as bidirectional,
    concat as concat,
    conv1d as conv1d,
    conv2d as conv2d,
    conv_transpose1d as conv_transpose1d,
    conv_transpose2d as conv_transpose2d,
    custom as custom,
    dense as dense,
    dropout as dropout,
    elementwise as elementwise,
    embedding as embedding,
    flatten as flatten,
    fourier_features as fourier_features,
    global_avg_pool as global_avg_pool,
    global_max_pool as global_max_pool,
    glu as glu,
    groupnorm as groupnorm,
    gru as gru,
    layernorm as layernorm,
    local_response_norm as local_response_norm,
    lstm as lstm,
    max_pool1d as max_pool1d,
    max_pool2d as max_pool2d,
    positions as positions,
    prelu as prelu,
    rescale as rescale,
    reshape as reshape,
    residual as residual,
    rmsnorm as rmsnorm,
    rnn as rnn,
    slicing as slicing,
    spectral_norm as spectral_norm,
    standardize as standardize,
    weight_norm as weight_norm,
)
from nbprop.losses import (
    beta_nll as beta_nll,
    binary_cross_entropy as binary_cross_entropy,
    cosine as cosine,
    custom_loss as custom_loss,
    focal as focal,
    gaussian_nll as gaussian_nll,
    hinge as hinge,
    huber as huber,
    kl_divergence as kl_divergence,
    log_cosh as log_cosh,
    mae as mae,
    mse as mse,
    poisson_nll as poisson_nll,
    quantile as quantile,
    soft_cross_entropy as soft_cross_entropy,
    softmax_cross_entropy as softmax_cross_entropy,
    student_t_nll as student_t_nll,
)
from nbprop.lowering.plan import Plan as Plan, layer_state as layer_state, plan as plan, workspace as workspace
from nbprop.networks.initializers import init as init
from nbprop.networks.network import (
    Network as Network,
    network as network,
    trainable_mask as trainable_mask,
    views as views,
)
from nbprop.numerics.sharing import share as share
from nbprop.optimizers.api import (
    adadelta as adadelta,
    adagrad as adagrad,
    adam as adam,
    adamw as adamw,
    amsgrad as amsgrad,
    lion as lion,
    momentum as momentum,
    nadam as nadam,
    nesterov as nesterov,
    optimizer_state as optimizer_state,
    radam as radam,
    rmsprop as rmsprop,
    rprop as rprop,
    schedule_free_adamw as schedule_free_adamw,
    sgd as sgd,
)
from nbprop.optimizers.clipping import clip_norm as clip_norm, clip_value as clip_value
from nbprop.optimizers.max_norm import max_norm as max_norm, weight_matrices as weight_matrices
from nbprop.optimizers.training_step import train_step as train_step
from nbprop.prediction import predict as predict
from nbprop.rollouts import rollout as rollout, rollout_adjoint as rollout_adjoint, rollout_buffers as rollout_buffers
from nbprop.solvers.fit_many import fit_many as fit_many
from nbprop.solvers.lbfgs import lbfgs as lbfgs, lbfgs_state as lbfgs_state, lbfgs_step as lbfgs_step
from nbprop.solvers.least_squares import least_squares as least_squares
from nbprop.solvers.levenberg_marquardt import (
    levenberg_marquardt as levenberg_marquardt,
    lm_state as lm_state,
    lm_step as lm_step,
)
from nbprop.solvers.minimize import minimize as minimize
from nbprop.solvers.objective import objective as objective
from nbprop.training.chunks import fit_chunks as fit_chunks
from nbprop.training.fit import fit as fit
from nbprop.training.history import History as History
from nbprop.training.scaling import fit_scaling as fit_scaling

__version__: str
