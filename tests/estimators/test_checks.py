"""scikit-learn's own checks of estimators, none of which is expected to fail."""

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator

from nbprop.estimators import NetworkClassifier, NetworkRegressor

ESTIMATORS = [NetworkClassifier(), NetworkRegressor()]
# Those that `make test` runs; `make test-more` runs the others.
FEW = {
    "check_classifiers_classes",
    "check_classifiers_one_label",
    "check_dict_unchanged",
    "check_estimator_sparse_tag",
    "check_estimators_nan_inf",
    "check_estimators_pickle",
    "check_fit_idempotent",
    "check_methods_subset_invariance",
    "check_n_features_in",
    "check_parameters_default_constructible",
    "check_readonly_memmap_input",
    "check_regressors_int",
    "check_sample_weight_equivalence_on_dense_data",
    "check_supervised_y_2d",
}


def checks():
    """What `parametrize_with_checks` tries, with marks."""
    for made in ESTIMATORS:
        for estimator, check in estimator_checks_generator(made):
            name = getattr(check, "func", check).__name__  # without the arguments that are bound to it
            marks = [] if name in FEW else pytest.mark.more
            yield pytest.param(estimator, check, marks=marks, id=f"{type(estimator).__name__}-{name}")


@pytest.mark.parametrize(("estimator", "check"), list(checks()))
def test_scikit_learns_checks(estimator, check):
    check(estimator)
