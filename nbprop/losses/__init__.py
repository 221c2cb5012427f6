"""The registry of losses: one file, and one line here, for each."""

from nbprop.losses.base import LOSSES, Loss
from nbprop.losses.beta_nll import beta_nll
from nbprop.losses.binary_cross_entropy import binary_cross_entropy
from nbprop.losses.cosine import cosine
from nbprop.losses.custom import custom_loss
from nbprop.losses.focal import focal
from nbprop.losses.gaussian_nll import gaussian_nll
from nbprop.losses.hinge import hinge
from nbprop.losses.huber import huber
from nbprop.losses.kl_divergence import kl_divergence, soft_cross_entropy
from nbprop.losses.log_cosh import log_cosh
from nbprop.losses.mae import mae
from nbprop.losses.mse import mse
from nbprop.losses.poisson_nll import poisson_nll
from nbprop.losses.quantile import quantile
from nbprop.losses.softmax_cross_entropy import softmax_cross_entropy
from nbprop.losses.student_t_nll import student_t_nll
from nbprop.validation import choose


def loss_named(loss):
    """The loss with a name, or the loss itself."""
    return loss if isinstance(loss, Loss) else choose("loss", loss, LOSSES)()


__all__ = [
    "LOSSES",
    "Loss",
    "beta_nll",
    "binary_cross_entropy",
    "cosine",
    "custom_loss",
    "focal",
    "gaussian_nll",
    "hinge",
    "huber",
    "kl_divergence",
    "log_cosh",
    "loss_named",
    "mae",
    "mse",
    "poisson_nll",
    "quantile",
    "soft_cross_entropy",
    "softmax_cross_entropy",
    "student_t_nll",
]
