"""What `fit` returns."""

import math
from dataclasses import dataclass, field, fields

import numpy as np


@dataclass
class History:
    """What `fit` returns. Lists hold a number for each epoch that was finished.

    What a callback adds to it goes into checkpoints, too, where JSON can hold it (NumPy's numbers and arrays become
    Python's numbers and lists).
    """

    loss: list[float] = field(default_factory=list)  # mean over the samples seen, while the parameters moved
    validation_loss: list[float] = field(default_factory=list)  # at the epoch's end; empty without validation
    training_loss: list[float] = field(default_factory=list)  # the same of all training data: patience's, without those
    lr: list[float] = field(default_factory=list)  # of the epoch's last step
    seconds: list[float] = field(default_factory=list)  # since the start, when the epoch's end was seen
    first_step: int = 0  # the number of the first step
    steps: int = 0  # how many were done
    best_epoch: int | None = None  # at whose end the parameters had the lowest measured loss, from 0; None: no epoch's
    best_loss: float = math.inf  # that loss
    stopped: str = ""  # "epochs", "patience", "callback", "diverged" or "interrupted"
    message: str = ""  # the same in a sentence
    # What the optimizer remembers, for a next fit with first_step=next_step; None where `params` are an earlier step's.
    optimizer_state: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def epochs(self):
        """How many epochs were finished."""
        return len(self.loss)

    @property
    def next_step(self):
        """The number of the step after the last one."""
        return self.first_step + self.steps


FIELDS = {entry.name for entry in fields(History)}
# What a checkpoint's history says; the rest follows from its place.
KEPT = ("loss", "validation_loss", "training_loss", "lr", "seconds", "best_epoch", "best_loss")
