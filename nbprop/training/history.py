"""What `fit` returns."""

import math
from dataclasses import dataclass, field, fields

import numpy as np


@dataclass
class History:
    """What `fit` returns. Lists hold one number per finished epoch.

    What a callback adds to it is stored in checkpoints too, if JSON can represent it (NumPy numbers and arrays become
    Python numbers and lists).

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> x, params = np.linspace(-1, 1, 20)[:, None], np.zeros(2)
    >>> history = nbprop.fit(net, params, x, 2 * x, "mse", lr=0.1, batch=10, epochs=3)
    >>> history.epochs, history.steps, history.stopped
    (3, 6, 'epochs')
    """

    loss: list[float] = field(default_factory=list)  # mean over the samples of the epoch, while the parameters changed
    validation_loss: list[float] = field(default_factory=list)  # at the end of the epoch; empty without validation
    training_loss: list[float] = field(default_factory=list)  # on all training data, for patience without validation
    lr: list[float] = field(default_factory=list)  # of the epoch's last step
    seconds: list[float] = field(default_factory=list)  # from the start to the end of the epoch
    metrics: dict[str, list[float]] = field(default_factory=dict)  # by name, at the ends of epochs
    first_step: int = 0  # the number of the first step
    steps: int = 0  # number of steps done
    best_epoch: int | None = None  # with the lowest measured loss at its end, from 0; None: none
    best_loss: float = math.inf  # that loss
    stopped: str = ""  # "epochs", "patience", "callback", "diverged" or "interrupted"
    message: str = ""  # the same in a sentence
    transport: str | None = None  # of gradients between devices: "host", "mpi" or "nccl"; None: there was none
    # State of the optimizer, for a next fit with first_step=next_step; None if `params` are not those of the last step.
    optimizer_state: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def epochs(self):
        """The number of finished epochs."""
        return len(self.loss)

    @property
    def next_step(self):
        """The number of the step after the last one."""
        return self.first_step + self.steps


FIELDS = {entry.name for entry in fields(History)}
# What a checkpoint holds of the history; the rest follows from its position.
KEPT = ("loss", "validation_loss", "training_loss", "lr", "seconds", "best_epoch", "best_loss")
