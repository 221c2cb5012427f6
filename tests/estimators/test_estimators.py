"""The estimators beyond scikit-learn's checks: units, solvers, going on, weights, tables, networks of one's own."""

import importlib
import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import nbprop
from nbprop.estimators import NetworkClassifier, NetworkRegressor
from nbprop.optimizers.update_rules import RULES
from nbprop.solvers.methods import METHODS
from support.cases import same_bits

SMALL = {"hidden": (8,), "activation": "tanh", "random_state": 0}


def surface(n=60, outputs=1):
    """X (n, 2) and a smooth y of it."""
    X = np.random.default_rng(0).uniform(-1, 1, (n, 2))
    y = np.stack([X[:, 0] * X[:, 1], X[:, 0] + X[:, 1] ** 2], axis=1)
    return X, y[:, 0] if outputs == 1 else y


def blobs(n=60, classes=3):
    """X (n, 2) around as many centres, and their numbers."""
    rng, y = np.random.default_rng(0), np.arange(n) % classes
    return rng.normal(0, 0.3, (n, 2)) + np.array([[0, 0], [3, 0], [0, 3]])[y], y


@pytest.mark.parametrize("loss", ["mse", "huber", "gaussian_nll"])
def test_units_change_nothing(loss):
    """Neither those of X nor those of y, of each output its own; the network itself maps one to the other."""
    X, y = surface(outputs=2)
    model = NetworkRegressor(loss=loss, epochs=20, **SMALL).fit(X, y)
    there, unit, zero = np.array([1e-3, 1e6]), np.array([1e5, 1e-4]), np.array([-3e5, 2.0])
    other = clone(model).fit(X * there + 7, y * unit + zero)
    assert np.allclose(other.predict(X * there + 7), model.predict(X) * unit + zero, rtol=1e-6, atol=1e-6 * unit)
    if loss == "gaussian_nll":
        std, other_std = (m.predict(x, return_std=True)[1] for m, x in ((model, X), (other, X * there + 7)))
        assert np.allclose(other_std, std * unit, rtol=1e-6)


def test_the_network_alone_predicts_from_a_file(tmp_path):
    X, y = surface(outputs=2)
    model = NetworkRegressor(epochs=3, **SMALL).fit(X, 100 * y)
    nbprop.save(tmp_path / "net.safetensors", model.network_, model.params_)
    net, params = nbprop.load(tmp_path / "net.safetensors")
    plan, out = nbprop.plan(net, batch=60), np.empty((60, 2))
    nbprop.forward(plan, params, X, out, nbprop.workspace(plan))
    assert np.allclose(out, model.predict(X), rtol=1e-12)


def test_fit_is_nbprops_own():
    """The parameters are those that `nbprop.fit` finds for the network between the scaling."""
    X, y = surface()
    model = NetworkRegressor(epochs=4, batch=16, learning_rate=0.01, **SMALL).fit(X, y)
    net = nbprop.network((2,), nbprop.standardize(), nbprop.dense(8, activation="tanh"), nbprop.dense(1))
    params = nbprop.init(model.network_, seed=model._seed)[: net.n_params]
    front = nbprop.network((2,), nbprop.standardize())
    nbprop.fit_scaling(front, params[:4], X)
    target = ((y - y.mean()) / y.std())[:, None]
    history = nbprop.fit(net, params, X, target, "mse", lr=0.01, batch=16, epochs=4, seed=model._seed)
    assert np.allclose(model.params_[: net.n_params], params, rtol=1e-10)
    assert np.allclose(model.loss_curve_, history.loss, rtol=1e-10)


@pytest.mark.parametrize("solver", [*RULES, "lbfgs", "marquardt", "bfgs", "trust-ncg"])
def test_every_solver(solver):
    X, y = surface()
    model = NetworkRegressor(solver=solver, epochs=15, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    first = NetworkRegressor(epochs=1, learning_rate=0.0, **SMALL).fit(X, y)
    assert 0 < model.n_iter_ <= 15
    assert model.score(X, y) > first.score(X, y)
    assert len(model.loss_curve_) == (model.n_iter_ if solver in RULES else 0)
    mse = np.mean(((model.predict(X) - y) / y.std()) ** 2)
    assert solver in RULES or model.loss_ == pytest.approx(mse)


@pytest.mark.more
@pytest.mark.parametrize("solver", list(METHODS))
def test_every_method_of_minimize(solver):
    X, y = blobs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = NetworkClassifier(solver=solver, epochs=30, **SMALL).fit(X, y)
    assert model.score(X, y) > 0.9


def test_searches_say_where_they_ended():
    X, y = surface()
    with pytest.warns(ConvergenceWarning, match="NetworkRegressor: "):
        NetworkRegressor(solver="lbfgs", epochs=2, **SMALL).fit(X, y)
    with pytest.warns(ConvergenceWarning, match="try a lower lr"):
        NetworkRegressor(solver="sgd", learning_rate=1e10, **SMALL).fit(X, y)


@pytest.mark.parametrize("kind", [NetworkRegressor, NetworkClassifier])
def test_calls_of_partial_fit_are_one_fit(kind):
    """Bit for bit on the same data: the order of samples and the optimizer's memory go on."""
    X, y = blobs()
    model, whole = kind(batch=16, **SMALL), kind(batch=16, epochs=3, **SMALL).fit(X, y)
    first = {} if kind is NetworkRegressor else {"classes": [0, 1, 2]}
    for call in range(3):
        model.partial_fit(X, y, **(first if call == 0 else {}))
    same_bits("params", model.params_, whole.params_)
    assert (model.loss_curve_, model.n_iter_) == (whole.loss_curve_, 3)
    with pytest.raises(AttributeError, match="partial_fit"):
        kind(solver="lbfgs").partial_fit  # noqa: B018


def test_classes_of_partial_fit():
    X, y = blobs()
    model = NetworkClassifier(**SMALL)
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        model.partial_fit(X, y)
    model.partial_fit(X[y < 2], y[y < 2], classes=[0, 1, 2])
    assert model.predict_proba(X).shape == (60, 3)
    model.partial_fit(X, y)
    with pytest.raises(ValueError, match="y holds the class 7"):
        model.partial_fit(X, np.where(y == 0, 7, y))
    with pytest.raises(ValueError, match="not the same as on the first call"):
        model.partial_fit(X, y, classes=[0, 1])


def test_warm_start_goes_on_with_the_same_scaling():
    X, y = surface()
    model = NetworkRegressor(epochs=2, warm_start=True, **SMALL).fit(X, y)
    mask, before = nbprop.trainable_mask(model.network_), model.params_.copy()
    loss = model.loss_
    model.fit(10 * X, y)
    assert np.array_equal(model.params_ == before, ~mask)
    model.fit(X, y)
    assert len(model.loss_curve_) == model.n_iter_ == 6
    with pytest.raises(ValueError, match="goes on with the same"):
        clone(model).fit(X, y).set_params(hidden=(9,)).fit(X, y)
    model.set_params(warm_start=False).fit(X, y)
    assert model.loss_ == loss
    classifier = NetworkClassifier(epochs=1, warm_start=True, **SMALL).fit(*blobs())
    with pytest.raises(ValueError, match="y holds the class 9"):
        classifier.fit(X, np.full(60, 9))


def test_weights_count_samples_and_classes():
    X, y = surface(30)
    times = np.arange(30) % 3
    options = {"epochs": 30, "batch": 100} | SMALL
    weighted = NetworkRegressor(**options).fit(X, y, sample_weight=times)
    repeated = NetworkRegressor(**options).fit(np.repeat(X, times, axis=0), np.repeat(y, times))
    assert np.allclose(weighted.predict(X), repeated.predict(X), rtol=1e-7)
    # Batches of one sample, of which a third weigh nothing.
    assert np.isfinite(NetworkRegressor(**options | {"batch": 1}).fit(X, y, times).predict(X)).all()
    X, y = blobs(30)
    by_class = NetworkClassifier(class_weight={0: 1, 1: 2, 2: 0}, **options).fit(X, y)
    by_sample = NetworkClassifier(**options).fit(X, y, sample_weight=np.array([1, 2, 0])[y])
    same_bits("params", by_class.params_, by_sample.params_)
    assert NetworkClassifier(class_weight="balanced", **options).fit(X, y).score(X, y) > 0.5
    for wrong, text in ((-times, "[Nn]egative"), (0 * times, "at least one non-zero")):
        with pytest.raises(ValueError, match=text):
            NetworkRegressor(**options).fit(X, y, sample_weight=wrong)


def test_validation_patience_and_callbacks():
    X, y = surface()
    model = NetworkRegressor(epochs=500, learning_rate=0.3, patience=3, validation_fraction=0.25, **SMALL).fit(X, y)
    best = int(np.argmin(model.validation_loss_curve_))
    assert len(model.validation_loss_curve_) == model.n_iter_ == best + 4 < 500
    seen = []
    model = NetworkRegressor(callbacks=[seen.append, lambda history: history.epochs == 5], **SMALL).fit(X, y)
    assert len(seen) == model.n_iter_ == 5
    assert model.validation_loss_curve_ is None

    class Watch(nbprop.callbacks.Callback):
        every = 1

        def step(self, step, loss, lr):
            seen.append(step)
            return step == 3

    seen.clear()
    NetworkRegressor(callbacks=[Watch()], **SMALL).fit(X, y)
    assert seen == [1, 2, 3]
    X, y = blobs()
    model = NetworkClassifier(solver="lbfgs", epochs=30, patience=2, validation_fraction=0.25, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert len(model.fit(X, y).validation_loss_curve_) == model.n_iter_ + 1


def test_classes_of_any_kind():
    X, y = blobs()
    names = np.array(["a", "b", "c"])[y]
    model = NetworkClassifier(epochs=100, learning_rate=0.03, **SMALL).fit(X, names)
    assert model.score(X, names) == 1
    assert np.allclose(model.predict_proba(X).sum(axis=1), 1)
    assert np.allclose(np.exp(model.predict_log_proba(X)), model.predict_proba(X))
    two = {}
    for loss in ("softmax_cross_entropy", "binary_cross_entropy", None):
        two[loss] = clone(model).set_params(loss=loss).fit(X, y > 0)
        assert two[loss].score(X, y > 0) == 1
        assert np.allclose(two[loss].predict_proba(X).sum(axis=1), 1)
    assert [m.network_.output_shape for m in two.values()] == [(2,), (1,), (1,)]
    labels = np.stack([y == 0, y != 1], axis=1).astype(int)
    several = clone(model).fit(X, labels)
    assert several.score(X, labels) == 1
    assert np.array_equal(several.predict_proba(X) > 0.5, labels)


def test_networks_of_ones_own():
    """Images, statistics of batches, dropout, scaling inside; what does not fit is refused."""
    images, digits = load_digits(return_X_y=True)
    images, digits = images[:300], digits[:300]
    layers = nbprop.conv2d(4, 3, activation="relu"), nbprop.flatten(), nbprop.batchnorm(), nbprop.dropout(0.1)
    net = nbprop.network((8, 8, 1), nbprop.standardize(), *layers, nbprop.dense(10))
    model = NetworkClassifier(net=net, epochs=15, learning_rate=0.01, dtype=np.float32, random_state=0)
    assert model.fit(images, digits).score(images, digits) > 0.95
    assert model.params_.dtype == np.float32
    again = pickle.loads(pickle.dumps(model))
    same_bits("logits", again.predict_proba(images), model.predict_proba(images))
    X, y = surface()
    net = nbprop.network((2,), nbprop.dense(4, activation="tanh"), nbprop.dense(1), nbprop.rescale())
    model = NetworkRegressor(net=net, epochs=2, random_state=0).fit(X, 1000 * y)
    assert nbprop.views(net, model.params_)["2.rescale.std"] == pytest.approx(1000 * y.std())
    for data, text in (((X[:, :1], y), "X has 1 features"), ((X, np.stack([y, y], 1)), r"y needs \(2,\)")):
        with pytest.raises(ValueError, match=f"NetworkRegressor: net .*{text}"):
            NetworkRegressor(net=net).fit(*data)


def test_wrong_arguments_are_refused_by_name():
    X, y = blobs()
    for options, text in (
        ({"net": "dense"}, "net must be"),
        ({"hidden": (3.5,)}, "hidden must be"),
        ({"solver": "adm"}, "solver: unknown name 'adm'; did you mean 'adam'"),
        ({"solver": 3}, "solver: unknown name 3"),
        ({"solver_options": 3}, "solver_options must be"),
        ({"solver_options": {"beta3": 3}}, "beta3"),
        ({"activation": "rleu"}, "rleu"),
        ({"init": "glorot"}, "init"),
        ({"loss": "msee"}, "msee"),
        ({"epochs": 0}, "epochs must be"),
        ({"batch": 1.5}, "batch must be"),
        ({"threads": None}, "threads must be"),
        ({"learning_rate": -1.0}, "learning_rate must be"),
        ({"weight_decay": "1"}, "weight_decay must be"),
        ({"patience": 0}, "patience must be"),
        ({"validation_fraction": 1.0}, "validation_fraction must be"),
        ({"dropout": 1.0}, "dropout"),
        ({"scale": "yes"}, "scale must be"),
        ({"dtype": "int8"}, "dtype must be"),
        ({"schedule": "cosin"}, "cosin"),
        ({"callbacks": [3]}, "callbacks must be"),
        ({"solver": "lbfgs", "learning_rate": 0.1}, "solver 'lbfgs' takes no learning_rate"),
        ({"solver": "lbfgs", "dropout": 0.1}, "solver 'lbfgs' takes no dropout"),
        ({"solver": "marquardt", "patience": 3}, "takes no validation_fraction and no patience"),
    ):
        for kind in (NetworkRegressor, NetworkClassifier):
            with pytest.raises((ValueError, TypeError), match=text):
                kind(**options).fit(X, y)
    for loss in ("softmax_cross_entropy", "binary_cross_entropy"):
        with pytest.raises(ValueError, match="takes no numbers of any size"):
            NetworkRegressor(loss=loss).fit(X, y)
    with pytest.raises(ValueError, match="loss must be one of"):
        NetworkClassifier(loss="mse").fit(X, y)
    with pytest.raises(ValueError, match="takes two classes, got 3"):
        NetworkClassifier(loss="binary_cross_entropy").fit(X, y)
    with pytest.raises(ValueError, match="return_std needs"):
        NetworkRegressor(epochs=1).fit(X, y).predict(X, return_std=True)


# -- inside scikit-learn -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["pandas", "polars", "pyarrow"])
def test_tables_keep_their_names(make):
    X, y = surface()
    columns = {"width": X[:, 0], "height": X[:, 1]}
    library = importlib.import_module(make)
    table = library.table(columns) if make == "pyarrow" else library.DataFrame(columns)
    model = NetworkRegressor(epochs=2, **SMALL).fit(table, y)
    assert model.feature_names_in_.tolist() == ["width", "height"]
    same_bits("y", model.predict(table), NetworkRegressor(epochs=2, **SMALL).fit(X, y).predict(X))


def test_categories_through_a_column_transformer():
    import pandas

    X, _ = surface()
    kind = np.array(["small", "large"])[np.arange(60) % 2]
    table = pandas.DataFrame({"width": X[:, 0], "kind": pandas.Categorical(kind)})
    encode = make_column_transformer(
        (OneHotEncoder(), make_column_selector(dtype_include="category")), remainder="passthrough"
    )
    model = make_pipeline(encode, NetworkRegressor(epochs=200, **SMALL)).fit(table, 5 * (kind == "large") + X[:, 0])
    assert model.score(table, 5 * (kind == "large") + X[:, 0]) > 0.9


def test_grids_and_calibration():
    X, y = blobs()
    grid = GridSearchCV(NetworkClassifier(epochs=3, **SMALL), {"hidden": [(4,), (4, 4)], "activation": ["relu"]}, cv=2)
    assert set(grid.fit(X, y).best_params_) == {"hidden", "activation"}
    model = CalibratedClassifierCV(NetworkClassifier(epochs=30, learning_rate=0.03, **SMALL), cv=2).fit(X, y)
    assert np.allclose(model.predict_proba(X).sum(axis=1), 1)


@pytest.mark.more
@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_jobs_give_the_same_bits(backend):
    import joblib

    X, y = surface()
    model = NetworkRegressor(epochs=20, **SMALL)
    alone = cross_val_score(model, X, y, cv=3)
    with joblib.parallel_backend(backend, n_jobs=2):
        same_bits("scores", cross_val_score(model, X, y, cv=3), alone)


def test_scikit_learn_is_imported_when_used(script):
    """nbprop itself imports none of it; without it the message says what to install."""
    script(
        """
import sys
import nbprop
assert not any(name.split(".")[0] in ("sklearn", "pandas", "narwhals") for name in sys.modules)
sys.modules["sklearn"] = None
try:
    import nbprop.estimators
except ImportError as error:
    assert "pip install nbprop[sklearn]" in str(error)
else:
    raise AssertionError("imported")
"""
    )


def test_mapie_gives_intervals_and_sets():
    """Conformal prediction around both estimators: the intervals and sets of a cross and a split method."""
    regression = pytest.importorskip("mapie.regression")
    classification = pytest.importorskip("mapie.classification")
    X, y = surface(120)
    y = y + 0.05 * np.random.default_rng(1).standard_normal(len(y))
    model = NetworkRegressor(**SMALL, solver="lbfgs", epochs=30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence, and of MAPIE's own
        cross = regression.CrossConformalRegressor(model, confidence_level=0.8, cv=3).fit_conformalize(X, y)
        points, intervals = cross.predict_interval(X)
        X, y = blobs(120)
        classifier = NetworkClassifier(**SMALL, solver="lbfgs", epochs=30).fit(X[:60], y[:60])
        split = classification.SplitConformalClassifier(classifier, confidence_level=0.9, prefit=True)
        labels, sets = split.conformalize(X[60:], y[60:]).predict_set(X)
    inside = (intervals[:, 0, 0] <= surface(120)[1]) & (surface(120)[1] <= intervals[:, 1, 0])
    assert points.shape == (120,)
    assert inside.mean() > 0.8
    assert (labels == y).mean() > 0.9
    assert sets[np.arange(120), y, 0].mean() > 0.85
