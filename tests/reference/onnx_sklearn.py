"""ONNX files of scikit-learn's multilayer perceptrons by skl2onnx, with inputs and outputs: onnx/mlp_*.onnx.

Needs scikit-learn and skl2onnx: python tests/reference/onnx_sklearn.py
"""

import warnings
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDER = Path(__file__).parent / "onnx"


def main():
    rng, results = np.random.default_rng(0), {}
    x = rng.standard_normal((40, 4)) * 3 + 1
    models = {
        "mlp_regressor": (
            make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(6, 5), activation="tanh", max_iter=20)),
            np.sin(x[:, 0]),
        ),
        "mlp_classes": (MLPClassifier(hidden_layer_sizes=(6,), max_iter=20), np.argmax(x[:, :3], axis=1)),
        "mlp_two_classes": (
            MLPClassifier(hidden_layer_sizes=(6,), activation="logistic", max_iter=20),
            (x[:, 0] > 1).astype(int),
        ),
    }
    for name, (model, target) in models.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(x, target)
        options = {id(model): {"zipmap": False}} if "class" in name else {}
        written = to_onnx(model, x[:1].astype(np.float32), options=options, target_opset=18)
        (FOLDER / f"{name}.onnx").write_bytes(written.SerializeToString())
        kept = x[:5].astype(np.float32)
        results |= {f"{name}/x": kept, f"{name}/y": (getattr(model, "predict_proba", model.predict))(kept)}
    np.savez_compressed(FOLDER / "sklearn.npz", **results)


if __name__ == "__main__":
    main()
