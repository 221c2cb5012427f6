"""Networks as scikit-learn's estimators: `NetworkRegressor`, `NetworkClassifier`, and `SweepCV` over penalties.

They need ``nbprop[sklearn]``.

Nothing else of nbprop imports this package, nor scikit-learn.
"""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("nbprop.estimators needs scikit-learn; install it with: pip install nbprop[sklearn]") from error

from nbprop.estimators.classifier import NetworkClassifier
from nbprop.estimators.regressor import NetworkRegressor
from nbprop.estimators.sweep import SweepCV

__all__ = ["NetworkClassifier", "NetworkRegressor", "SweepCV"]
