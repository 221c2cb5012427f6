"""SweepCV: the numbers of GridSearchCV, by one fleet."""

import joblib
import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.datasets import load_diabetes, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, KFold

from nbprop.estimators import NetworkClassifier, NetworkRegressor, SweepCV

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
GRID = {"l2": [1e-3, 0.3], "l1": [0.0, 0.01], "random_state": [0, 1]}


def problem(name):
    """(estimator, grid, X, y, sample_weight)."""
    weights = np.random.default_rng(0).uniform(0.2, 2.0, 100)
    if name == "classifier":
        X, y = load_wine(return_X_y=True)
        model = NetworkClassifier((5,), activation="tanh", solver="lbfgs", epochs=25)
        return model, GRID, X[::2], np.array(["a", "b", "c"])[y[::2]], None
    X, y = load_diabetes(return_X_y=True)
    weights[:3] = 0
    if name == "marquardt":
        model = NetworkRegressor((3,), activation="tanh", solver="marquardt", epochs=15)
        return model, {"l2": [0.0, 0.3], "random_state": [3]}, X[:100], y[:100], weights
    return NetworkRegressor((4,), activation="tanh", solver="lbfgs", epochs=25), GRID, X[:100], y[:100], weights


@pytest.mark.parametrize("name", ["regressor", "classifier", "marquardt"])
def test_its_results_are_those_of_grid_search(name):
    """Folds of unequal size, seeds, l1 and l2, sample weights with zeros: the same bits of every score."""
    model, grid, X, y, weights = problem(name)
    cv = KFold(3, shuffle=True, random_state=1) if name != "classifier" else 3
    theirs = GridSearchCV(model, grid, cv=cv).fit(X, y, sample_weight=weights)
    jobs = 2 if name == "regressor" else None
    with joblib.parallel_config("threading"):
        ours = SweepCV(clone(model), grid, cv=cv, threads=2, n_jobs=jobs).fit(X, y, sample_weight=weights)
    assert ours.cv_results_["params"] == theirs.cv_results_["params"]
    for key in ("split0_test_score", "split2_test_score", "mean_test_score", "std_test_score"):
        assert np.abs(ours.cv_results_[key] - theirs.cv_results_[key]).max() < 1e-8, key
    assert np.array_equal(ours.cv_results_["rank_test_score"], theirs.cv_results_["rank_test_score"])
    assert ours.best_params_ == theirs.best_params_
    assert np.array_equal(ours.predict(X), theirs.predict(X))
    assert ours.score(X, y) == theirs.score(X, y)
    assert hasattr(ours, "predict_proba") == is_classifier(model) == is_classifier(ours)
    assert ours.n_splits_ == 3


def test_what_it_cannot_sweep_is_refused():
    X, y = load_diabetes(return_X_y=True)
    regressor = NetworkRegressor((3,), solver="lbfgs", epochs=3)
    for model, grid, said in (
        (regressor, {"hidden": [(3,), (4,)]}, "param_grid may have l1, l2, random_state, got hidden"),
        (NetworkRegressor(), {"l2": [0.1]}, "solver must be 'lbfgs' or 'marquardt', got 'adam'"),
        (clone(regressor).set_params(patience=3, validation_fraction=0.2), {"l2": [0.1]}, "no validation_fraction"),
        (clone(regressor).set_params(dtype=np.float32), {"l2": [0.1]}, "in float64"),
        (object(), {"l2": [0.1]}, "must be a NetworkRegressor"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            SweepCV(model, grid).fit(X[:40], y[:40])
    with pytest.warns(ConvergenceWarning, match="5 of 5 fits met no criterion"):
        SweepCV(regressor, {"l2": [0.1]}, refit=False).fit(X[:40], y[:40])
