"""The registry of losses: one file, and one line here, for each."""

from nbprop.losses.base import LOSSES, Loss
from nbprop.losses.binary_cross_entropy import binary_cross_entropy
from nbprop.losses.gaussian_nll import gaussian_nll
from nbprop.losses.huber import huber
from nbprop.losses.mse import mse
from nbprop.losses.softmax_cross_entropy import softmax_cross_entropy
from nbprop.validation import choose


def loss_named(loss):
    """The loss with a name, or the loss itself."""
    return loss if isinstance(loss, Loss) else choose("loss", loss, LOSSES)()


__all__ = [
    "LOSSES",
    "Loss",
    "binary_cross_entropy",
    "gaussian_nll",
    "huber",
    "loss_named",
    "mse",
    "softmax_cross_entropy",
]
