"""What `fit` calls beside its steps: an object with a method for each occasion, and adapters to loggers.

The loggers' packages are imported when a training begins, never before.
"""

import importlib
import math
import os
from typing import Any

import numpy as np

from nbprop.validation import check_integer

__all__ = ["Callback", "MLflow", "TensorBoard", "WandB"]


class Callback:
    """What `fit(callbacks=[...])` calls; subclass it, and write the methods that you need.

    A `step` or `epoch` that returns True ends the training. `every`: the steps between two calls of `step`; 0: none.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> class Watch(nbprop.callbacks.Callback):
    ...     every = 5
    ...
    ...     def step(self, step, loss, lr):
    ...         print(step, loss < 10)
    >>> net, x = nbprop.network((1,), nbprop.dense(1)), np.ones((40, 1))
    >>> history = nbprop.fit(net, nbprop.init(net), x, x, "mse", batch=4, epochs=1, callbacks=[Watch()])
    5 True
    10 True
    """

    every = 0

    def begin(self, history: Any) -> None:
        """Called before the first step, with the history of what a resumed run has done."""

    def step(self, step: int, loss: float, lr: float) -> Any:
        """Called after every `every` steps: how many have been done, the last one's loss and learning rate."""

    def epoch(self, history: Any) -> Any:
        """Called after each epoch."""

    def end(self, history: Any) -> None:
        """Called after the last step, also if an exception ends the training."""


class _Function(Callback):
    """A function of the history, called after each epoch."""

    def __init__(self, function):
        self.function = function

    def epoch(self, history):
        return self.function(history)


def asks_to_stop(answer):
    """Whether what a callback returned ends the training: True does, any other value, such as a count, does not."""
    return isinstance(answer, (bool, np.bool_)) and bool(answer)


def check_callbacks(callback, callbacks):
    """fit's two arguments as one list of `Callback`s."""
    found: list[Callback] = [] if callback is None else [_Function(callback)]
    if callbacks is None:
        return found
    if not isinstance(callbacks, (list, tuple)):
        raise TypeError(f"fit: callbacks must be a list of Callbacks or functions, got {type(callbacks).__name__}")
    for one in callbacks:
        if not isinstance(one, Callback) and not callable(one):
            raise TypeError(f"fit: callbacks must be Callbacks or functions, got {type(one).__name__}")
        found.append(one if isinstance(one, Callback) else _Function(one))
        check_integer("fit: callbacks: every", found[-1].every, 0)
    return found


class _Logger(Callback):
    """Writes the last numbers of the history after each epoch, and a step's every `every` steps."""

    package, install = "", ""

    def __init__(self, every):
        self.every = check_integer(f"{type(self).__name__}: every", every, 0)

    def _import(self, *names):
        """The first of these modules that is installed."""
        for name in names:
            try:
                return importlib.import_module(name)
            except ImportError:
                continue
        raise ImportError(
            f"callbacks.{type(self).__name__} needs {self.package}; install it with: pip install {self.install}"
        )

    def step(self, step, loss, lr):
        """Write the loss and the learning rate of a step."""
        self._write({"step_loss": loss, "step_lr": lr}, step)

    def epoch(self, history):
        """Write the last number of each list of the history."""
        lists = {"loss": history.loss, "validation_loss": history.validation_loss, "lr": history.lr}
        lists |= {"training_loss": history.training_loss, "seconds": history.seconds, **history.metrics}
        values = {name: values[-1] for name, values in lists.items() if values and math.isfinite(values[-1])}
        self._write(values, history.next_step)

    def _write(self, values, step):
        raise NotImplementedError


class TensorBoard(_Logger):
    """Write the history to TensorBoard's event files, by tensorboardX or PyTorch.

    Parameters
    ----------
    folder : path
        Where the files go; ``tensorboard --logdir folder`` shows them.
    every : int
        Steps between two entries of a step's loss; 0: one entry for each epoch only.

    Examples
    --------
    >>> import nbprop
    >>> nbprop.callbacks.TensorBoard("runs/1", every=100).every
    100
    """

    package, install = "tensorboardX, or PyTorch with tensorboard", "tensorboardX"

    def __init__(self, folder: str | os.PathLike[str], every: int = 0) -> None:
        super().__init__(every)
        self.folder = os.fspath(folder)

    def begin(self, history):
        """Open a new event file."""
        self._writer = self._import("tensorboardX", "torch.utils.tensorboard").SummaryWriter(self.folder)

    def _write(self, values, step):
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def end(self, history):
        """Close the file."""
        self._writer.close()


class MLflow(_Logger):
    """Log the history to a run of MLflow.

    Parameters
    ----------
    experiment, run_name : str or None
        Names; None: MLflow's own choice. The run begins and ends with the training.
    every : int
        As for `TensorBoard`.

    Examples
    --------
    >>> import nbprop
    >>> nbprop.callbacks.MLflow("digits", every=100).every
    100
    """

    package = install = "mlflow"

    def __init__(self, experiment: str | None = None, run_name: str | None = None, every: int = 0) -> None:
        super().__init__(every)
        self.experiment, self.run_name = experiment, run_name

    def begin(self, history):
        """Start a run."""
        self._mlflow = self._import("mlflow")
        if self.experiment is not None:
            self._mlflow.set_experiment(self.experiment)
        self._mlflow.start_run(run_name=self.run_name)

    def _write(self, values, step):
        self._mlflow.log_metrics(values, step=step)

    def end(self, history):
        """End the run."""
        self._mlflow.end_run()


class WandB(_Logger):
    """Log the history to a run of Weights & Biases.

    Parameters
    ----------
    project : str or None
        The project's name; None: wandb's own choice.
    every : int
        As for `TensorBoard`.
    **options
        What else `wandb.init` takes, such as ``name=`` and ``config=``.

    Examples
    --------
    >>> import nbprop
    >>> nbprop.callbacks.WandB("digits", every=100, name="first").every
    100
    """

    package = install = "wandb"

    def __init__(self, project: str | None = None, every: int = 0, **options: Any) -> None:
        super().__init__(every)
        self.project, self.options = project, options

    def begin(self, history):
        """Start a run."""
        self._run = self._import("wandb").init(project=self.project, **self.options)

    def _write(self, values, step):
        self._run.log(values, step=step)

    def end(self, history):
        """End the run."""
        self._run.finish()
