"""scikit-learn's perceptrons as networks: their own predictions, to rounding."""

import warnings

import numpy as np
import pytest
from interchange.test_onnx import forward

import nbprop

pytest.importorskip("sklearn", reason="there is no scikit-learn here")
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import LinearRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

X = np.random.default_rng(0).standard_normal((40, 3)) * 3 + 1
TARGETS = np.sin(X[:, :2])
CLASSES = np.argmax(X, axis=1)


def fitted(model, target):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, target)


def mlp(kind, activation="relu", sizes=(6, 5)):
    return kind(hidden_layer_sizes=sizes, activation=activation, max_iter=5, random_state=0)


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
def test_a_regressor_predicts_the_same(activation):
    model = fitted(mlp(MLPRegressor, activation), TARGETS)
    net, params = nbprop.from_sklearn(model)
    np.testing.assert_allclose(forward(net, params, X), model.predict(X), rtol=1e-12, atol=1e-13)
    assert len(net.layers) == 3


def test_scalers_become_layers():
    inner = make_pipeline(StandardScaler(), "passthrough", mlp(MLPRegressor))
    model = fitted(TransformedTargetRegressor(inner, transformer=StandardScaler()), TARGETS * 50 + 7)
    net, params = nbprop.from_sklearn(model)
    np.testing.assert_allclose(forward(net, params, X), model.predict(X), rtol=1e-12, atol=1e-12)
    assert [layer.kind for layer in net.layers] == ["standardize", "dense", "dense", "dense", "rescale"]


@pytest.mark.parametrize("target", [CLASSES, CLASSES == 0, np.stack([CLASSES == 0, X[:, 0] > 0], axis=1)])
def test_a_classifier_gives_probabilities_or_logits(target):
    """Of three classes, of two, and of two labels."""
    model = fitted(mlp(MLPClassifier), target)
    net, params = nbprop.from_sklearn(model)
    wanted = model.predict_proba(X)
    wanted = wanted[:, 1:] if target.ndim == 1 and wanted.shape[1] == 2 else wanted
    np.testing.assert_allclose(forward(net, params, X), wanted, rtol=1e-11, atol=1e-13)
    logits, same = nbprop.from_sklearn(model, logits=True)
    np.testing.assert_array_equal(same, params)
    assert logits.layers[-1].activation == "identity"


def test_weights_keep_their_dtype():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mlp(MLPRegressor).fit(X.astype(np.float32), TARGETS.astype(np.float32))
    assert nbprop.from_sklearn(model)[1].dtype == np.float32


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (3, "mlp must be a fitted MLPRegressor or MLPClassifier.*got int"),
        (MLPRegressor(), "mlp, a MLPRegressor, is not fitted"),
        (LinearRegression(), "got LinearRegression"),
        (make_pipeline(MinMaxScaler(), MLPRegressor()), "step minmaxscaler of the pipeline is a MinMaxScaler"),
    ],
)
def test_other_models_are_refused(model, told):
    with pytest.raises((TypeError, ValueError), match=f"from_sklearn: .*{told}"):
        nbprop.from_sklearn(model)
