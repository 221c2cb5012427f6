"""`NetworkRegressor`: numbers from a table."""

import math

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.metaestimators import available_if

from nbprop.estimators.base import NetworkEstimator
from nbprop.losses import loss_named
from nbprop.optimizers.update_rules import RULES


class NetworkRegressor(RegressorMixin, NetworkEstimator):
    """A network for regression, as a scikit-learn estimator: one output or several, data in its own units.

    Parameters
    ----------
    hidden : tuple of int
        Units of the hidden dense layers; () for a linear model.
    net : nbprop.Network or None
        A network of your own in place of dense layers: it takes X's features, in any shape of as many numbers, and
        gives as many outputs as y has (with "gaussian_nll" twice as many). Its `standardize` in front and `rescale` at
        the end, where it has them, are set from the data; hidden, activation, init, dropout and scale are not looked
        at.
    activation : str
        Of the hidden layers (see `nbprop.activation`).
    init : str or None
        Of the hidden layers' weights (see `nbprop.dense`). Glorot's, as scikit-learn's networks have it, gives smaller
        outputs to begin with than He's, and on small tables better ones at the end.
    loss : str, loss or None
        "mse" (None), "huber" or nbprop.huber(delta), "gaussian_nll" (the network then gives log variances, too, and
        `predict(X, return_std=True)` standard deviations), or a loss of your own over outputs and targets of one shape.
        With scale it is taken of the target in units of its standard deviation.
    solver : str
        An optimizer of `nbprop.fit` ("adam", "adamw", "sgd", "momentum", "nesterov", "rmsprop", "adagrad", "rprop",
        "lion"), "lbfgs" or any method of `nbprop.minimize`, or "marquardt" (Levenberg-Marquardt, for "mse").
    solver_options : dict or None
        More arguments of the solver: {"beta2": 0.99}, {"max_norm": 3.0}, {"gtol": 1e-6}.
    weight_decay : float or None
        Of an optimizer, on weights, not on biases; the optimizer's own default when None.
    l2, l1 : float
        Penalties on weights, not on biases, which belong to the loss (see `nbprop.plan`) with any solver: l2 / 2 times
        the sum of squares plus l1 times that of magnitudes. scikit-learn's alpha is l2 / 2 times the number of samples
        for "mse", and l2 times it for classifiers. For l1 an optimizer (not schedule_free_adamw) or
        "lbfgs"; weights then become 0.
    batch, epochs : int
        Samples a step, and how often each is seen; epochs are iterations of the methods that take all data at once.
    learning_rate : float or None
        The optimizer's own default when None.
    schedule : str, function or None
        Of the learning rate, as `nbprop.fit` takes it.
    patience : int or None
        Stop after so many epochs without a lower loss, and go back to the best parameters: the loss of the validation
        data, without those of all training data.
    validation_fraction : float or None
        Part of the data, drawn at random, that only the validation loss sees.
    dropout : float
        Rate behind each hidden layer.
    scale : bool
        Standardize X, and the target, inside the network.
    dtype : numpy.float32, numpy.float64 or None
        Of the parameters and the computation; X's own when None (float64 where X is neither).
    threads : int
        The bits of the result do not depend on it.
    random_state : int, RandomState instance or None
        Of initial parameters, the order of samples, the validation data.
    warm_start : bool
        `fit` goes on from the parameters that an earlier one left, scaling included.
    callbacks : list of functions and of objects like `nbprop.callbacks.Callback`, or None
        A function is called with the `nbprop.History` after each epoch; training stops when one returns True. Loggers
        to TensorBoard, MLflow and Weights & Biases are in `nbprop.callbacks`.
    verbose : bool
        Show a bar (needs tqdm).

    Attributes
    ----------
    network_ : Network
        What maps X to y in their own units; ``nbprop.save(path, model.network_, model.params_)`` stores it.
    params_ : (network_.n_params,) array
    loss_, loss_curve_ : float, list of float
        The last epoch's mean loss, and all epochs' (empty for methods of all data at once).
    validation_loss_curve_ : list of float or None
    n_iter_ : int
        Epochs or iterations.
    n_features_in_, feature_names_in_, n_outputs_

    Examples
    --------
    >>> import numpy as np
    >>> X = np.linspace(-1, 1, 40)[:, None]
    >>> model = NetworkRegressor(hidden=(8,), activation="tanh", learning_rate=0.05, random_state=0)
    >>> bool(model.fit(X, 1000 * X[:, 0] ** 2).score(X, 1000 * X[:, 0] ** 2) > 0.99)
    True
    """

    def fit(self, X, y, sample_weight=None):
        """Train on X (n, features) and y (n,) or (n, outputs); sample_weight (n,): none negative. Returns self."""
        self._check_arguments()
        begun = self.warm_start and hasattr(self, "params_")
        data = self._data(X, y, sample_weight, anew=not begun)
        self._optimizer_state, self._step = None, 0
        self._train(*data, epochs=self.epochs)
        return self

    @available_if(lambda self: self.solver in RULES)
    def partial_fit(self, X, y, sample_weight=None):
        """One epoch over these data, on top of what earlier calls have learned.

        The first call sets the scaling; patience and validation_fraction are not looked at.
        """
        self._check_arguments()
        data = self._data(X, y, sample_weight, anew=not hasattr(self, "params_"))
        self._train(*data, epochs=1, held_out=False)
        return self

    def _prepared(self, X, y, sample_weight):
        """(loss, network that is trained, x, target, weights) of a new model, for `SweepCV`."""
        self._check_arguments()
        loss, *data = self._data(X, y, sample_weight, anew=True)
        net, data, _ = self._counting(*data)
        return loss, net, *data

    def _data(self, X, y, sample_weight, anew):
        """(loss, x, target, weights), once they fit; the network is made where it is anew."""
        x, y = self._table(X, y, anew, y_numeric=True)
        target = np.ascontiguousarray(y, x.dtype).reshape(len(y), -1)
        weights = self._weights(sample_weight, x)
        if not np.isfinite(target).all():
            raise ValueError(f"{type(self).__name__}: y holds numbers that are too large for {x.dtype}")
        if anew:
            self.n_outputs_, self._flat = target.shape[1], y.ndim == 1
        elif target.shape[1] != self.n_outputs_:
            raise ValueError(
                f"{type(self).__name__}: y must have {self.n_outputs_} outputs, as in the call before, "
                f"got {target.shape[1]}"
            )
        loss = self._loss(target.shape[1])
        outputs = target.shape[1] * (2 if loss.kind == "gaussian_nll" else 1)
        if anew:
            self._begin(outputs, True, x, target, weights, x.dtype)
        else:
            self._check_same(outputs, True)
        return loss, x.astype(self.params_.dtype, copy=False), target.astype(self.params_.dtype), weights

    def _loss(self, outputs):
        """The loss, once it has been found to be one of numbers."""
        loss = loss_named("mse" if self.loss is None else self.loss)
        if loss.kind == "gaussian_nll":
            return loss
        if loss.target((outputs,)) != ((outputs,), 0) or loss.target_range != (-math.inf, math.inf):
            raise ValueError(
                f"{type(self).__name__}: loss {loss.kind} takes no numbers of any size as targets; use mse, huber or "
                "gaussian_nll"
            )
        return loss

    def predict(self, X, return_std=False):
        """y for X, in the shape that y had in `fit`; with return_std (y, its standard deviation) of "gaussian_nll"."""
        y = self._outputs(X)
        mean = y[:, : self.n_outputs_]
        mean = mean.ravel() if self._flat else mean
        if not return_std:
            return mean
        if y.shape[1] == self.n_outputs_:
            raise ValueError(f"{type(self).__name__}: return_std needs a model with loss='gaussian_nll'")
        std = np.exp(0.5 * y[:, self.n_outputs_ :])
        return mean, std.ravel() if self._flat else std

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
