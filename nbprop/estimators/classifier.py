"""`NetworkClassifier`: classes from a table."""

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from nbprop.estimators.base import NetworkEstimator
from nbprop.losses import loss_named
from nbprop.optimizers.update_rules import RULES

_LOSSES = ("softmax_cross_entropy", "binary_cross_entropy")


class NetworkClassifier(ClassifierMixin, NetworkEstimator):
    """A network for classification, as a scikit-learn estimator: two classes, several, or several labels at once.

    Parameters
    ----------
    loss : str or None
        "softmax_cross_entropy", an output for each class, or "binary_cross_entropy", one output for two classes, or one
        for each label. None: the latter for two classes and for labels (with a net of your own: by its outputs).
    class_weight : dict, "balanced" or None
        Weights of the classes, as scikit-learn takes them; they multiply sample weights. For several labels a list.

    The others as of `NetworkRegressor`; scale is of X alone.

    Attributes
    ----------
    classes_ : array of the classes, or the labels' numbers

    The others as of `NetworkRegressor`. `network_` gives logits.

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.linspace(-1, 1, 40)[:, None], np.repeat(["low", "high"], 20)
    >>> model = NetworkClassifier(hidden=(8,), learning_rate=0.05, random_state=0).fit(X, y)
    >>> model.predict([[-0.5], [0.5]]).tolist()
    ['low', 'high']
    """

    def __init__(
        self,
        hidden=(64, 64),
        *,
        net=None,
        activation="relu",
        init="glorot_uniform",
        loss=None,
        class_weight=None,
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
        super().__init__(
            hidden,
            net=net,
            activation=activation,
            init=init,
            loss=loss,
            solver=solver,
            solver_options=solver_options,
            weight_decay=weight_decay,
            l2=l2,
            l1=l1,
            batch=batch,
            epochs=epochs,
            learning_rate=learning_rate,
            schedule=schedule,
            patience=patience,
            validation_fraction=validation_fraction,
            dropout=dropout,
            scale=scale,
            dtype=dtype,
            threads=threads,
            random_state=random_state,
            warm_start=warm_start,
            callbacks=callbacks,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(self, X, y, sample_weight=None):
        """Train on X (n, features) and y: classes (n,) or 0 and 1 (n, labels); sample_weight (n,). Returns self."""
        self._check_arguments()
        begun = self.warm_start and hasattr(self, "params_")
        x, target, weights, codes = self._data(X, y, sample_weight, None, anew=not begun)
        self._optimizer_state, self._step = None, 0
        self._train(self._loss_kind, x, target, weights, epochs=self.epochs, stratify=codes)
        return self

    @available_if(lambda self: self.solver in RULES)
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """One epoch over these data, on top of what earlier calls have learned.

        The first call needs all classes (for labels: their numbers) and sets the scaling; patience and
        validation_fraction are not looked at.
        """
        self._check_arguments()
        anew = not hasattr(self, "params_")
        if anew and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        if not anew and classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes={classes!r} is not the same as on the first call: {self.classes_!r}")
        if self.class_weight == "balanced":
            raise ValueError(
                f"{type(self).__name__}: class_weight 'balanced' needs all data at once; pass partial_fit a dict"
            )
        x, target, weights, _ = self._data(X, y, sample_weight, classes, anew)
        self._train(self._loss_kind, x, target, weights, epochs=1, held_out=False)
        return self

    def _prepared(self, X, y, sample_weight):
        """(loss, network that is trained, x, target, weights) of a new model, for `SweepCV`."""
        self._check_arguments()
        *data, _ = self._data(X, y, sample_weight, None, anew=True)
        net, data, _ = self._counting(*data)
        return self._loss_kind, net, *data

    def _data(self, X, y, sample_weight, classes, anew):
        """(x, target, weights, the classes' codes or None), once they fit; the network is made where it is anew."""
        x, y = self._table(X, y, anew)
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y")
        if kind == "multiclass-multioutput":
            raise ValueError(f"{type(self).__name__}: y must hold a class for each sample, or 0 and 1 for each label")
        labelled = kind == "multilabel-indicator"
        y = y if labelled else column_or_1d(y, warn=True)
        weights = self._weights(sample_weight, x)
        if self.class_weight is not None:
            by_class = compute_sample_weight(self.class_weight, y).astype(x.dtype)
            weights = by_class if weights is None else weights * by_class
        if anew:
            own = np.arange(y.shape[1]) if labelled else np.unique(y)
            self.classes_, self._labelled = own if classes is None else np.unique(classes), labelled
        codes = self._codes(y, labelled, fitting=classes is None and anew)
        self._loss_kind, outputs = self._loss_and_outputs()
        if anew:
            self._begin(outputs, False, x, None, weights, x.dtype)
        else:
            self._check_same(outputs, False)
        x = x.astype(self.params_.dtype, copy=False)
        if self._loss_kind == "binary_cross_entropy":
            return x, codes.reshape(len(x), -1).astype(x.dtype), weights, None if labelled else codes
        return x, codes, weights, codes

    def _codes(self, y, labelled, fitting):
        """The classes' numbers (n,), or the labels (n, labels), once they are those of the model."""
        if labelled != self._labelled or (labelled and y.shape[1] != len(self.classes_)):
            raise ValueError(f"{type(self).__name__}: y must be of the kind that the model has begun with")
        if labelled:
            return y
        codes = np.searchsorted(self.classes_, y)
        known = self.classes_[np.minimum(codes, len(self.classes_) - 1)] == y
        if not fitting and not np.all(known):
            found = y[~known].tolist()[0]
            raise ValueError(
                f"{type(self).__name__}: y holds the class {found!r}, the model has begun with {self.classes_}"
            )
        return codes

    def _loss_and_outputs(self):
        """(the loss's name, how many outputs it needs)."""
        wanted = self.loss if self.loss is None else loss_named(self.loss).kind
        if wanted not in (None, *_LOSSES):
            raise ValueError(f"{type(self).__name__}: loss must be one of {', '.join(_LOSSES)} or None, got {wanted}")
        count, two = len(self.classes_), len(self.classes_) == 2
        if self._labelled:
            if wanted == "softmax_cross_entropy":
                raise ValueError(f"{type(self).__name__}: several labels need loss='binary_cross_entropy'")
            return "binary_cross_entropy", count
        if wanted == "binary_cross_entropy" and not two:
            raise ValueError(f"{type(self).__name__}: loss 'binary_cross_entropy' takes two classes, got {count}")
        single = two if self.net is None else two and self.net.output_shape == (1,)
        if wanted == "binary_cross_entropy" or (wanted is None and single):
            return "binary_cross_entropy", 1
        return "softmax_cross_entropy", count

    def predict(self, X):
        """The likeliest class of each sample, or the labels, 0 and 1."""
        outputs = self._outputs(X)
        found = loss_named(self._loss_kind).classes_of(outputs)
        return found if self._labelled else self.classes_[found.reshape(len(found))]

    def predict_log_proba(self, X):
        """Logarithms of the probabilities: (n, classes), or (n, labels)."""
        logits = self._outputs(X).astype(np.float64)
        if self._labelled:
            return -np.logaddexp(0, -logits)
        if self._loss_kind == "binary_cross_entropy":
            return np.concatenate([-np.logaddexp(0, logits), -np.logaddexp(0, -logits)], axis=1)
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    def predict_proba(self, X):
        """The probabilities of the classes, (n, classes), or of the labels, (n, labels)."""
        return np.exp(self.predict_log_proba(X))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
