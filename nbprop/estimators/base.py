"""What the estimators share: their arguments, the network that they make of them, its training, its outputs.

A table's own units stay outside nowhere: the network begins with `standardize` and, for a regression, ends in
`rescale`. Training sees the network without the latter and the target divided by its standard deviation instead, so
that no step size and no tolerance depends on the target's units, and each of several outputs counts alike.
"""

import math
import warnings

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

import nbprop
from nbprop.callbacks import Callback
from nbprop.layers.scaling import Rescale, Standardize
from nbprop.losses.penalty import weights_of
from nbprop.optimizers.update_rules import RULES
from nbprop.solvers.methods import METHODS
from nbprop.validation import as_dtype, check_callable, check_flag, check_integer, check_number, nearest, shown

# Samples that a prediction takes at a time, and a search over all data: what their workspaces have room for.
_PREDICTED, _SEARCHED = 1024, 16384
_SEARCHES = {name.lower(): name for name in METHODS} | {"lbfgs": "L-BFGS", "marquardt": "marquardt"}


class NetworkEstimator(BaseEstimator):
    """The arguments, documented by the two classes that are used; fit, predictions and checks that both need."""

    def __init__(
        self,
        hidden=(64, 64),
        *,
        net=None,
        activation="relu",
        init="glorot_uniform",
        loss=None,
        solver="adam",
        solver_options=None,
        weight_decay=None,
        l2=0.0,
        l1=0.0,
        batch=128,
        epochs=200,
        learning_rate=None,
        schedule=None,
        patience=None,
        validation_fraction=None,
        dropout=0.0,
        scale=True,
        dtype=None,
        threads=1,
        random_state=None,
        warm_start=False,
        callbacks=None,
        verbose=False,
    ):
        self.hidden = hidden
        self.net = net
        self.activation = activation
        self.init = init
        self.loss = loss
        self.solver = solver
        self.solver_options = solver_options
        self.weight_decay = weight_decay
        self.l2 = l2
        self.l1 = l1
        self.batch = batch
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.dropout = dropout
        self.scale = scale
        self.dtype = dtype
        self.threads = threads
        self.random_state = random_state
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.verbose = verbose

    # -- arguments -------------------------------------------------------------------------------------------

    def _check_arguments(self):
        """Look at all arguments that nbprop's own functions do not name as this class does."""
        name = type(self).__name__
        if self.net is not None and not isinstance(self.net, nbprop.Network):
            raise TypeError(f"{name}: net must be what nbprop.network(...) returns or None, got {shown(self.net)}")
        for units in self._hidden():
            check_integer(f"{name}: hidden", units)
        if self._search() is None and self.solver not in RULES:
            known = [*RULES, *_SEARCHES]
            raise ValueError(f"{name}: solver: unknown name {shown(self.solver)}; {nearest(self.solver, known)}")
        if not isinstance(self.solver_options, (dict, type(None))):
            raise TypeError(f"{name}: solver_options must be a dict or None, got {shown(self.solver_options)}")
        check_number(f"{name}: dropout", self.dropout)
        check_number(f"{name}: l2", self.l2)
        check_number(f"{name}: l1", self.l1)
        check_flag(f"{name}: scale", self.scale)
        check_flag(f"{name}: warm_start", self.warm_start)
        for argument in ("batch", "epochs", "threads"):
            check_integer(f"{name}: {argument}", getattr(self, argument))
        for argument in ("learning_rate", "weight_decay"):
            if getattr(self, argument) is not None:
                check_number(f"{name}: {argument}", getattr(self, argument))
        if self.patience is not None:
            check_integer(f"{name}: patience", self.patience)
        if self.validation_fraction is not None:
            check_number(f"{name}: validation_fraction", self.validation_fraction, 0.0, 1.0, "()")
        for callback in self.callbacks or ():
            if not isinstance(callback, Callback):
                check_callable(f"{name}: callbacks", callback)
        self._check_search()

    def _check_search(self):
        """A method of all data at once is given nothing that it would pass over."""
        if self._search() is None:
            return
        name, passed_over = type(self).__name__, ("learning_rate", "schedule", "weight_decay", "callbacks", "dropout")
        for argument in passed_over:
            if getattr(self, argument):
                raise ValueError(f"{name}: solver {self.solver!r} takes no {argument}; leave it out, or use 'adam'")
        if self._search() == "marquardt" and (self.patience is not None or self.validation_fraction is not None):
            raise ValueError(f"{name}: solver 'marquardt' takes no validation_fraction and no patience; use 'lbfgs'")

    def _hidden(self):
        return (self.hidden,) if isinstance(self.hidden, (int, np.integer)) else tuple(self.hidden)

    def _search(self):
        """The method of `minimize`, or "marquardt"; None where the solver is an optimizer of `fit`."""
        return _SEARCHES.get(self.solver.lower()) if isinstance(self.solver, str) else None

    def _dtypes(self):
        """The types that X may have; another one becomes the first of them."""
        return [np.float64, np.float32] if self.dtype is None else [as_dtype(self.dtype)]

    # -- data ------------------------------------------------------------------------------------------------

    def _table(self, X, y, reset, **checks):
        """X and y as arrays, once scikit-learn has looked at them."""
        return validate_data(self, X, y, multi_output=True, dtype=self._dtypes(), order="C", reset=reset, **checks)

    def _weights(self, sample_weight, X):
        """Sample weights of X's dtype, or None."""
        if sample_weight is None:
            return None
        weights = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
        if not weights.any():
            raise ValueError("Sample weights must contain at least one non-zero number.")
        return weights

    # -- the network -----------------------------------------------------------------------------------------

    def _network(self, outputs, rescaled):
        """The whole network: the user's own, or one of dense layers."""
        if self.net is not None:
            given, wanted = self.net.input_shape, self.n_features_in_
            if math.prod(given) != wanted or self.net.layers[0].index_limit:
                raise ValueError(f"{type(self).__name__}: net takes inputs of shape {given}, X has {wanted} features")
            if self.net.output_shape != (outputs,):
                shape = self.net.output_shape
                raise ValueError(f"{type(self).__name__}: net gives outputs of shape {shape}, y needs ({outputs},)")
            return self.net
        layers = [nbprop.standardize()] if self.scale else []
        for units in self._hidden():
            layers.append(nbprop.dense(int(units), activation=self.activation, init=self.init))
            layers += [nbprop.dropout(self.dropout)] if self.dropout else []
        layers += [nbprop.dense(outputs), *([nbprop.rescale()] if self.scale and rescaled else [])]
        return nbprop.network((self.n_features_in_,), *layers)

    def _check_same(self, outputs, rescaled):
        """What goes on has the network that it has begun with."""
        wanted = self._network(outputs, rescaled)
        if wanted != self.network_:
            raise ValueError(
                f"{type(self).__name__}: the model has begun with {shown(self.network_)} and goes on with the same, "
                f"got {shown(wanted)}; pass warm_start=False, or a clone, to begin anew"
            )

    def _begin(self, outputs, rescaled, x, target, weights, dtype):
        """A new network with parameters, in the units of the data."""
        self.network_ = net = self._network(outputs, rescaled)
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.params_ = nbprop.init(net, seed=self._seed, dtype=dtype)
        self.loss_curve_, self.validation_loss_curve_, self.n_iter_ = [], None, 0
        self._optimizer_state, self._step, self._state = None, 0, None
        if isinstance(net.layers[0], Standardize):
            front = nbprop.network(net.input_shape, net.layers[0])
            nbprop.fit_scaling(front, self.params_[: front.n_params], self._shaped(x), weights=weights)
        if isinstance(net.layers[-1], Rescale):
            k = target.shape[1]
            numbers = np.empty(2 * k, dtype)
            nbprop.fit_scaling(nbprop.network((k,), nbprop.standardize()), numbers, target, weights=weights)
            mean, std = numbers[:k], numbers[k:]
            if outputs == 2 * k:  # means, and log variances, which change by twice the unit's logarithm
                mean, std = np.concatenate([mean, 2 * np.log(std)]), np.concatenate([std, np.ones(k, dtype)])
            self.params_[net.n_params - 2 * outputs :] = np.concatenate([mean, std])

    def _shaped(self, x):
        return x.reshape(len(x), *self.network_.input_shape)

    def _trained(self, target):
        """(the network that is trained, the target in its units)."""
        net = self.network_
        if target.dtype.kind != "f" or not isinstance(net.layers[-1], Rescale) or net.layers[-1].trainable:
            return net, target
        inner = nbprop.network(net.input_shape, *net.layers[:-1])
        mean, std = np.split(self.params_[inner.n_params :], 2)
        k = target.shape[-1]
        return inner, (target - mean[:k]) / std[:k]

    # -- training --------------------------------------------------------------------------------------------

    def _train(self, loss, x, target, weights, *, epochs, stratify=None, held_out=True):
        """Train `params_` on the data; zero weights, validation, what the solver leaves."""
        net, data, stratify = self._counting(x, target, weights, stratify)
        validation = None
        if held_out and self.validation_fraction is not None:
            data, validation = self._split(data, stratify)
        if not self.params_.flags.writeable:  # a model that was loaded as a memory map
            self.params_ = self.params_.copy()
        params = self.params_[: net.n_params]
        if self._search() is None:
            self._by_batches(net, params, loss, data, validation, epochs, self.patience if held_out else None)
        else:
            self._by_search(net, params, loss, data, validation, epochs)

    def _counting(self, x, target, weights, stratify=None):
        """(the network that is trained, its data, stratify), without samples of weight 0."""
        if weights is not None and not weights.all():  # a batch of such samples alone has no mean
            kept = weights > 0
            x, target, weights = x[kept], target[kept], weights[kept]
            stratify = None if stratify is None else stratify[kept]
        net, target = self._trained(target)
        return net, (self._shaped(x), target, weights), stratify

    def _split(self, data, stratify):
        """(training data, validation data)."""
        rows = np.arange(len(data[0]))
        train, held = train_test_split(
            rows, test_size=self.validation_fraction, random_state=self._seed, stratify=stratify
        )
        return tuple(tuple(None if a is None else a[part] for a in data) for part in (train, held))

    def _by_batches(self, net, params, loss, data, validation, epochs, patience):
        x, target, weights = data
        batch = min(self.batch, len(x))
        if self._state is None:
            plan = nbprop.plan(net, loss=loss, batch=batch, dtype=params.dtype)
            self._state = nbprop.layer_state(plan) if plan.state_size else None
        history = nbprop.fit(
            net,
            params,
            x,
            target,
            loss,
            self.solver,
            self.learning_rate,
            batch,
            epochs,
            seed=self._seed,
            weights=weights,
            validation=validation,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            decay_mask=weights_of(net),
            l2=self.l2,
            l1=self.l1,
            threads=self.threads,
            patience=patience,
            callbacks=list(self.callbacks or ()),
            progress=bool(self.verbose),
            state=self._state,
            optimizer_state=self._optimizer_state,
            first_step=self._step,
            **(self.solver_options or {}),
        )
        if history.stopped == "diverged":
            warnings.warn(f"{type(self).__name__}: {history.message}", ConvergenceWarning, stacklevel=2)
        self._optimizer_state = history.optimizer_state
        self._step = history.next_step if self._optimizer_state is not None else 0
        self.n_iter_ += history.epochs
        self.loss_curve_ += history.loss
        self.loss_ = self.loss_curve_[-1] if self.loss_curve_ else math.nan
        if validation is not None:
            self.validation_loss_curve_ = [*(self.validation_loss_curve_ or []), *history.validation_loss]

    def _by_search(self, net, params, loss, data, validation, epochs):
        x, target, weights = data
        size = min(len(x), _SEARCHED)
        plan = nbprop.plan(net, loss, size, params.dtype, self.threads, l2=self.l2, l1=self.l1)
        options = dict(self.solver_options or {})
        if self._search() == "marquardt":
            result = nbprop.least_squares(
                plan, params, x, target, "marquardt", weights=weights, max_nfev=epochs, **options
            )
            total = len(x) if weights is None else weights.sum(dtype=np.float64)
            self.loss_ = 2 * float(result.cost) / float(total * plan.unit_size)
        else:
            result = nbprop.minimize(
                plan,
                params,
                x,
                target,
                self._search(),
                weights=weights,
                maxiter=epochs,
                options=options,
                validation=validation,
                patience=self.patience,
                progress=bool(self.verbose),
            )
            self.loss_ = float(result.fun)
            self.validation_loss_curve_ = result.validation
        if not result.success and result.status != -1:
            warnings.warn(f"{type(self).__name__}: {result.message}", ConvergenceWarning, stacklevel=2)
        self.n_iter_ += int(result.nit)

    # -- predictions -----------------------------------------------------------------------------------------

    def _outputs(self, X):
        """The network's outputs, (n, outputs) of the parameters' dtype, a piece of the data at a time."""
        check_is_fitted(self)
        dtype = self.params_.dtype
        x = self._shaped(validate_data(self, X, dtype=dtype, order="C", reset=False))
        size = 1 if len(x) == 1 else _PREDICTED
        return nbprop.predict(self.network_, self.params_, x, size, state=self._state, threads=self.threads)
