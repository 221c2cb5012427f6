"""`SweepCV`: a grid of penalties and seeds over folds, all of whose networks are fitted as one fleet.

The networks of a sweep differ in data, start and penalties alone, so that `nbprop.fit_many` fits them side by side
in compiled code: what takes 80 calls of `fit` otherwise, with their checks, plans and searches, is one.
"""

import time
import warnings

import numpy as np
from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import check_scoring
from sklearn.model_selection import ParameterGrid, check_cv
from sklearn.utils import _safe_indexing, indexable
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

import nbprop
from nbprop.estimators.base import NetworkEstimator
from nbprop.validation import check_flag, check_integer, shown

_SWEPT = ("l1", "l2", "random_state")
_METHODS = ("L-BFGS", "marquardt")


def _of_best(name):
    """Whether the best estimator has been fitted, and has the method."""
    return lambda self: hasattr(self.best_estimator_ if hasattr(self, "best_estimator_") else self.estimator, name)


class SweepCV(MetaEstimatorMixin, BaseEstimator):
    """A search over penalties and seeds by cross-validation, in the form of scikit-learn's GridSearchCV.

    Its results are those of GridSearchCV with the same estimator, grid and folds; the networks are fitted together.

    Parameters
    ----------
    estimator : NetworkRegressor or NetworkClassifier
        With solver "lbfgs" or "marquardt", in float64, without validation_fraction, patience and warm_start.
    param_grid : dict or list of dicts
        Lists of values of "l2", "l1" and "random_state".
    scoring : str, function or None
        As GridSearchCV takes it: one metric; the estimator's own score when None.
    cv : int, splitter or iterable
        Folds, as GridSearchCV takes them.
    refit : bool
        Fit the best candidate to all data: `best_estimator_`, which `predict` and others use.
    threads : int
        Threads that divide the networks; the bits do not depend on it.
    n_jobs : int or None
        Workers of joblib that divide the networks, as `nbprop.fit_many` takes it; they share the threads.

    Attributes
    ----------
    cv_results_ : dict of arrays
        "params", "param_l2", ..., "split0_test_score", ..., "mean_test_score", "std_test_score", "rank_test_score",
        "mean_n_iter".
    best_index_, best_params_, best_score_
        Of the candidate with the highest mean score.
    best_estimator_ : the estimator, with refit
    n_splits_ : int
    fit_time_ : float
        Seconds that the fleet took.

    Examples
    --------
    >>> import numpy as np
    >>> from nbprop.estimators import NetworkRegressor
    >>> X = np.linspace(-1, 1, 60)[:, None]
    >>> y = X[:, 0] ** 2 + 0.1 * np.random.default_rng(0).standard_normal(60)
    >>> options = {"solver_options": {"ftol": 1e-5}, "activation": "tanh", "solver": "lbfgs", "epochs": 1000}
    >>> sweep = SweepCV(NetworkRegressor((8,), **options), {"l2": [1e-4, 1.0], "random_state": [0, 1]}, cv=3).fit(X, y)
    >>> sweep.best_params_["l2"]
    0.0001
    """

    def __init__(self, estimator, param_grid, *, scoring=None, cv=5, refit=True, threads=1, n_jobs=None):
        self.estimator = estimator
        self.param_grid = param_grid
        self.scoring = scoring
        self.cv = cv
        self.refit = refit
        self.threads = threads
        self.n_jobs = n_jobs

    def fit(self, X, y, *, groups=None, sample_weight=None):
        """Fit all candidates to all folds, score them, and refit the best. Returns self."""
        candidates = list(ParameterGrid(self.param_grid))
        self._check(candidates)
        X, y, groups, sample_weight = indexable(X, y, groups, sample_weight)
        folds = list(check_cv(self.cv, y, classifier=is_classifier(self.estimator)).split(X, y, groups))
        scorer, began = check_scoring(self.estimator, scoring=self.scoring), time.perf_counter()
        models, iterations = self._fitted(candidates, folds, X, y, sample_weight)
        self.n_splits_, self.fit_time_ = len(folds), time.perf_counter() - began
        # As scikit-learn's searches, from the version on in which scorers say that they can.
        weighs = sample_weight is not None and getattr(scorer, "_accept_sample_weight", lambda: False)()
        scores = np.empty((len(candidates), len(folds)))
        for fold, (_, held) in enumerate(folds):
            x_held, y_held = _safe_indexing(X, held), _safe_indexing(y, held)
            more = {"sample_weight": _safe_indexing(sample_weight, held)} if weighs else {}
            for k in range(len(candidates)):
                scores[k, fold] = scorer(models[k][fold], x_held, y_held, **more)
        self._collect(candidates, scores, iterations)
        if self.refit:
            self.best_estimator_ = clone(self.estimator).set_params(**self.best_params_)
            self.best_estimator_.fit(X, y, sample_weight=sample_weight)
        return self

    def _check(self, candidates):
        """Look at the arguments, and at the estimator as far as its own `fit` does not."""
        model = self.estimator
        if not isinstance(model, NetworkEstimator):
            raise TypeError(f"SweepCV: estimator must be a NetworkRegressor or NetworkClassifier, got {shown(model)}")
        unknown = sorted({name for candidate in candidates for name in candidate} - set(_SWEPT))
        if unknown:
            known = ", ".join(_SWEPT)
            got = ", ".join(unknown)
            raise ValueError(f"SweepCV: param_grid may have {known}, got {got}; GridSearchCV takes others")
        check_flag("SweepCV: refit", self.refit)
        check_integer("SweepCV: threads", self.threads)
        if model._search() not in _METHODS:
            raise ValueError(f"SweepCV: estimator's solver must be 'lbfgs' or 'marquardt', got {shown(model.solver)}")
        for name in ("validation_fraction", "patience", "warm_start"):
            if getattr(model, name):
                raise ValueError(f"SweepCV: estimator must have no {name}, got {shown(getattr(model, name))}")
        if set(model.solver_options or {}) - {"gtol", "ftol"}:
            raise ValueError(f"SweepCV: estimator's solver_options may have gtol and ftol, got {model.solver_options}")

    def _fitted(self, candidates, folds, X, y, sample_weight):
        """(estimators by candidate and fold, iterations (candidates, folds)), fitted as one fleet."""
        models: list[list] = [[] for _ in candidates]
        sets = []
        for train, _ in folds:
            x_train, y_train = _safe_indexing(X, train), _safe_indexing(y, train)
            weights = None if sample_weight is None else _safe_indexing(sample_weight, train)
            begun: dict[str, tuple] = {}  # by seed, the model and its data
            for k, candidate in enumerate(candidates):
                seed = repr(candidate.get("random_state", self.estimator.random_state))
                model = clone(self.estimator).set_params(**candidate)
                if seed not in begun:
                    loss, *data = model._prepared(x_train, y_train, weights)
                    begun[seed] = model, loss, data
                else:
                    first = begun[seed][0]
                    vars(model).update({name: value for name, value in vars(first).items() if name not in _SWEPT})
                    model.params_ = first.params_.copy()
                models[k].append(model)
            sets.append(next(iter(begun.values()))[1:])
        self._run(models, sets)
        return models, np.array([[model.n_iter_ for model in row] for row in models])

    def _run(self, models, sets):
        """Fit all models, (candidates, folds), to the sets, one a fold."""
        first = models[0][0]
        loss, nets = sets[0][0], [data[0] for _, data in sets]
        if any(net != nets[0] for net in nets):
            raise ValueError("SweepCV: the folds need different networks; is a class missing in one of them?")
        net, samples = nets[0], np.array([len(data[1]) for _, data in sets])
        if first.params_.dtype != np.float64:
            raise ValueError("SweepCV: networks are fitted in float64; pass the estimator dtype=numpy.float64")
        xs, ys, weights = (_stacked([data[k] for _, data in sets], samples) for k in (1, 2, 3))
        flat = [model for row in models for model in row]
        thetas = np.stack([model.params_[: net.n_params] for model in flat])
        l2, l1 = (np.array([float(getattr(model, name)) for model in flat]) for name in ("l2", "l1"))
        marquardt = first._search() == "marquardt"
        tolerances = {"gtol": 1e-8, "ftol": 1e-8 if marquardt else 0.0} | (first.solver_options or {})
        result = nbprop.fit_many(
            net,
            thetas,
            xs,
            ys,
            loss,
            first._search(),
            first.epochs,
            threads=self.threads,
            n_jobs=self.n_jobs,
            weights=weights,
            samples=samples,
            data=np.tile(np.arange(len(sets)), len(models)),
            l2=l2,
            l1=l1,
            **tolerances,
        )
        if not result.success.all():
            text = (
                f"SweepCV: {(~result.success).sum()} of {len(flat)} fits met no criterion within {first.epochs} epochs"
            )
            warnings.warn(text, ConvergenceWarning, stacklevel=4)
        for k, model in enumerate(flat):
            model.params_[: net.n_params] = thetas[k]
            model.n_iter_, model.loss_ = int(result.nit[k]), float(result.fun[k])

    def _collect(self, candidates, scores, iterations):
        """`cv_results_`, and the best candidate."""
        mean = scores.mean(1)
        rank = 1 + (mean[:, None] < mean[None, :]).sum(1)
        found = {"params": candidates}
        for name in dict.fromkeys(name for candidate in candidates for name in candidate):
            given = [candidate.get(name) for candidate in candidates]
            column = np.ma.MaskedArray(np.empty(len(given), object), mask=[name not in c for c in candidates])
            column[:] = given
            found[f"param_{name}"] = column
        found |= {f"split{fold}_test_score": scores[:, fold] for fold in range(scores.shape[1])}
        found |= {"mean_test_score": mean, "std_test_score": scores.std(1), "rank_test_score": rank.astype(np.int32)}
        self.cv_results_ = found | {"mean_n_iter": iterations.mean(1)}
        self.best_index_ = int(mean.argmax())
        self.best_params_, self.best_score_ = candidates[self.best_index_], float(mean[self.best_index_])

    # -- the best estimator --------------------------------------------------------------------------------------

    @property
    def classes_(self):
        """Of a classifier."""
        return self.best_estimator_.classes_

    @property
    def n_features_in_(self):
        """Of X in `fit`, with refit."""
        return self.best_estimator_.n_features_in_

    def _best(self):
        check_is_fitted(self, "best_estimator_")
        return self.best_estimator_

    def predict(self, X):
        """As the best estimator."""
        return self._best().predict(X)

    def score(self, X, y):
        """As the best estimator, by `scoring`."""
        return check_scoring(self._best(), scoring=self.scoring)(self._best(), X, y)

    @available_if(_of_best("predict_proba"))
    def predict_proba(self, X):
        """As the best estimator."""
        return self._best().predict_proba(X)

    @available_if(_of_best("predict_log_proba"))
    def predict_log_proba(self, X):
        """As the best estimator."""
        return self._best().predict_log_proba(X)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        own = self.estimator.__sklearn_tags__() if hasattr(self.estimator, "__sklearn_tags__") else tags
        tags.estimator_type, tags.classifier_tags, tags.regressor_tags = (
            own.estimator_type,
            own.classifier_tags,
            own.regressor_tags,
        )
        tags.target_tags, tags.input_tags = own.target_tags, own.input_tags
        return tags


def _stacked(arrays, samples):
    """Arrays of samples of several sets as one, (sets, most samples, ...), with zeros behind; None for Nones."""
    if arrays[0] is None:
        return None
    found = np.zeros((len(arrays), samples.max(), *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(found, arrays, strict=True):
        row[: len(array)] = array
    return found
