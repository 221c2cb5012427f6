"""Keras models from files of both formats: what Keras computed, without Keras (tests/reference/keras_models.py)."""

import io
import json
import zipfile

import numpy as np
import pytest
from interchange.test_onnx import forward

import nbprop
from support import TESTS
from support.cases import close

h5py = pytest.importorskip("h5py", reason="there is no h5py here")
FOLDER = TESTS / "reference" / "keras"
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix != ".npz")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_compute_what_keras_did(path):
    with np.load(FOLDER / "results.npz") as file:
        x, wanted = file[f"{path.stem}/x"], file[f"{path.stem}/y"]
    net, params = nbprop.from_keras(path)
    assert params.dtype == np.float32
    close(path.name, forward(net, params, x), wanted, 5e-6)


def test_layers_are_what_one_would_write():
    dense = nbprop.dense
    x = dense(5, "softplus"), nbprop.layernorm(0.001), dense(6)
    branches = nbprop.concat(nbprop.residual(*x), dense(2))
    wanted = nbprop.network((4,), dense(6, "relu"), branches, dense(3, "sigmoid"))
    assert repr(nbprop.from_keras(FOLDER / "branches.keras")[0]) == repr(wanted)


class Layer:
    """As much of a layer of Keras as is read."""

    def __init__(self, name, *weights):
        self.name, self.weights = name, weights

    def get_weights(self):
        return list(self.weights)


class Sequential:
    """As much of a model of Keras as is read."""

    def __init__(self, *layers, shape=(None, 3)):
        self.layers = [Layer(f"l{k}", *weights) for k, (_, _, *weights) in enumerate(layers)]
        described = [{"class_name": "InputLayer", "config": {"batch_shape": shape, "name": "x"}}]
        for k, (kind, settings, *_) in enumerate(layers):
            described.append({"class_name": kind, "config": {"name": f"l{k}"} | settings})
        self.config = {"name": "net", "layers": described}

    def get_config(self):
        return self.config


W, B = np.ones((3, 2), np.float32), np.zeros(2, np.float32)
DENSE = ("Dense", {"activation": "linear"}, W, B)


def test_a_model_in_memory():
    net, params = nbprop.from_keras(Sequential(DENSE, ("ReLU", {}), ("Dropout", {})))
    assert repr(net) == repr(nbprop.network((3,), nbprop.dense(2, "relu")))
    np.testing.assert_array_equal(params, [1] * 6 + [0] * 2)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (3, "model must be a model of Keras or the path of a file, got int"),
        (Sequential(("Lambda", {})), r"layer l0 \(Lambda\) has no layer in nbprop"),
        (Sequential(("Dense", {"activation": "relu6"}, W, B)), "has the activation 'relu6'"),
        (Sequential(("Dense", {}, W, B)), "has settings or weights that do not fit: KeyError"),
        (Sequential(("Dense", {"activation": None}, W * np.nan, B)), "has weights that are not finite"),
        (Sequential(("LeakyReLU", {"negative_slope": 0.3})), "has a slope of 0.3"),
        (Sequential(DENSE, shape=(None, None)), "has sizes that are left open"),
        (Sequential(("Conv1D", {"data_format": "channels_first"}), shape=(None, 4, 3)), "has its channels first"),
        (
            Sequential(("ZeroPadding1D", {"padding": 1}), ("ReLU", {}), shape=(None, 4, 3)),
            "only a convolution can take",
        ),
        (
            Sequential(("GRU", {"activation": "tanh", "reset_after": False}, W, W, B), shape=(None, 4, 3)),
            "reset_after=False",
        ),
    ],
)
def test_what_is_no_network_is_named(model, told):
    with pytest.raises((TypeError, ValueError), match=f"from_keras: .*{told}"):
        nbprop.from_keras(model)


def test_files_that_are_cut_or_damaged(tmp_path):
    path = tmp_path / "model.keras"
    for source in (FOLDER / "chain.keras", FOLDER / "chain.h5"):
        whole = source.read_bytes()
        for length in (0, 10, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=r"from_keras: .*model\.keras"):
                nbprop.from_keras(path)
    with pytest.raises(OSError, match="nothing"):
        nbprop.from_keras(tmp_path / "nothing.keras")


def rewritten(path, change):
    """chain.keras with its weights changed."""
    with zipfile.ZipFile(FOLDER / "chain.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    content = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(content, "r+") as file:
        change(file["layers/dense/vars"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in (parts | {"model.weights.h5": content.getvalue()}).items():
            archive.writestr(name, part)


def test_weights_outside_the_file_are_not_read(tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.ones((4, 8), np.float32).tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["w"] = np.ones((4, 8), np.float32)

    def linked(group):
        del group["0"]
        group["0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "w")

    def external(group):
        del group["0"]
        group.create_dataset("0", (4, 8), np.float32, external=[(str(secret), 0, 128)])

    def huge(group):
        del group["0"]
        group.create_dataset("0", (2**15, 2**15), np.float32)

    for change, told in (
        (linked, "is a link"),
        (external, "lies outside the file"),
        (huge, "claims 4,294,967,296 bytes"),
    ):
        rewritten(tmp_path / "model.keras", change)
        with pytest.raises(ValueError, match=f"from_keras: .*{told}"):
            nbprop.from_keras(tmp_path / "model.keras")


def test_descriptions_that_are_damaged(tmp_path):
    with zipfile.ZipFile(FOLDER / "branches.keras") as archive:
        weights, config = archive.read("model.weights.h5"), json.loads(archive.read("config.json"))
    path = tmp_path / "model.keras"
    texts = [
        "[]",
        "{",
        json.dumps({"class_name": "Functional", "config": 3}),
        json.dumps(config).replace("Dense", "Foo"),
    ]
    texts.append(json.dumps(config).replace('"inbound_nodes"', '"inbound"'))
    for text in texts:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", text)
            archive.writestr("model.weights.h5", weights)
        with pytest.raises(ValueError, match=r"from_keras: .*model\.keras"):
            nbprop.from_keras(path)
