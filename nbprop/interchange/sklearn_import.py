"""`from_sklearn`: scikit-learn's multilayer perceptrons, with the scalers around them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbprop.interchange.graph import Graph
from nbprop.layers.activation import Activation
from nbprop.layers.dense.layer import Dense
from nbprop.networks.network import Network
from nbprop.validation import check_flag

_ACTIVATIONS = {"identity": "identity", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu", "softmax": "softmax"}


def from_sklearn(mlp: Any, logits: bool = False) -> tuple[Network, NDArray[Any]]:
    """The network of a fitted MLPRegressor or MLPClassifier of scikit-learn, with its parameters.

    Parameters
    ----------
    mlp : estimator
        A fitted MLPRegressor, MLPClassifier, or a Pipeline of StandardScaler and one of them; either inside a
        TransformedTargetRegressor with a StandardScaler. Scalers become `standardize()` and `rescale()`.
    logits : bool
        Whether to leave out a classifier's softmax or sigmoid, which losses of classes apply themselves, to train on.

    Returns
    -------
    (Network, params) : params is (net.n_params,), of the weights' dtype. A regressor's output is what `predict` gives,
        a classifier's `predict_proba`, in the order of `classes_`; of two classes, the probability of the second.

    Raises
    ------
    TypeError, ValueError
        For another estimator, one that is not fitted, or another step of a pipeline.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> from sklearn.neural_network import MLPRegressor
    >>> x = np.linspace(0, 1, 20)[:, None]
    >>> mlp = MLPRegressor(hidden_layer_sizes=(8,), activation="tanh").partial_fit(x, x.ravel() ** 2)
    >>> nbprop.from_sklearn(mlp)[0]
    network((1,), dense(8, activation='tanh'), dense(1))
    """
    logits = check_flag("from_sklearn: logits", logits)
    before, inner, after = _taken_apart(mlp)
    weights = inner.coefs_
    graph = Graph("from_sklearn")
    value = graph.input((weights[0].shape[0],))
    for step in before:
        mean, std = _mean_and_std(step, weights[0].shape[0])
        value = graph.standardized(value, mean, std, type(step).__name__)
    last = len(weights) - 1
    for index, (weight, bias) in enumerate(zip(weights, inner.intercepts_, strict=True)):
        name = inner.out_activation_ if index == last else inner.activation
        name = _ACTIVATIONS["identity" if index == last and logits else name]
        value = graph.layer(value, Dense(weight.shape[1]), (weight, bias), f"layer {index}")
        value = graph.layer(value, Activation(name), (), f"layer {index}")
    for step in after:
        mean, std = _mean_and_std(step, weights[-1].shape[1])
        value = graph.scaled(value, mean, std, type(step).__name__)
    return graph.network(value, weights[0].dtype)


def _taken_apart(mlp):
    """(scalers of the input, the perceptron, scalers of its target)."""
    try:
        from sklearn.compose import TransformedTargetRegressor
        from sklearn.neural_network import MLPClassifier, MLPRegressor
        from sklearn.pipeline import Pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError("from_sklearn needs scikit-learn; install it with: pip install nbprop[sklearn]") from error

    before, after = [], []
    while not isinstance(mlp, (MLPRegressor, MLPClassifier)):
        if isinstance(mlp, TransformedTargetRegressor) and isinstance(
            getattr(mlp, "transformer_", None), StandardScaler
        ):
            after, mlp = [mlp.transformer_], mlp.regressor_
        elif isinstance(mlp, Pipeline):
            *steps, (_, mlp) = mlp.steps
            for name, step in steps:
                if step is None or step == "passthrough":
                    continue
                if not isinstance(step, StandardScaler):
                    raise TypeError(
                        f"from_sklearn: step {name} of the pipeline is a {type(step).__name__}; a StandardScaler "
                        "is what nbprop has a layer for"
                    )
                before.append(step)
        else:
            raise TypeError(
                "from_sklearn: mlp must be a fitted MLPRegressor or MLPClassifier, a Pipeline of StandardScaler and "
                f"one of them, or these in a TransformedTargetRegressor with a StandardScaler, got {type(mlp).__name__}"
            )
    if not hasattr(mlp, "coefs_") or not all(hasattr(step, "n_features_in_") for step in before):
        raise ValueError(f"from_sklearn: mlp, a {type(mlp).__name__}, is not fitted; call its fit first")
    return before, mlp, after


def _mean_and_std(scaler, size):
    mean = np.zeros(size) if scaler.mean_ is None else scaler.mean_
    return mean, np.ones(size) if scaler.scale_ is None else scaler.scale_
