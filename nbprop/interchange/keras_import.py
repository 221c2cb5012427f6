"""`from_keras`: a Sequential or Functional model of Keras as a network."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbprop.interchange.graph import Graph
from nbprop.interchange.keras_files import read_file, read_model
from nbprop.interchange.keras_layers import LAYERS, KerasStep, Padded
from nbprop.interchange.orders import Value
from nbprop.io.atomic import as_path
from nbprop.networks.network import Network
from nbprop.validation import brief, check_integer, shown

_MODELS = ("Sequential", "Functional", "Model")


def from_keras(model: Any) -> tuple[Network, NDArray[Any]]:
    """A Sequential or Functional model of Keras as a network with its parameters.

    Parameters
    ----------
    model : Keras model, or path of a .keras or .h5 file that `model.save` has written
        Files are read with h5py alone, without Keras (``nbprop[keras]``).

    Returns
    -------
    (Network, params) : params is (net.n_params,), of the weights' dtype

    Read are dense, convolutional (channels_last), pooling, normalization, embedding and recurrent layers, activations
    and reshapes, in chains with residual blocks (Add of x and f(x)) and concatenations. The model is read as it
    computes in use. Batch normalization comes as `standardize()` and `rescale(trainable=True)`.

    Raises
    ------
    TypeError, ValueError
        For a layer or a setting that nbprop has not, which is named; for a file that is cut, damaged, or points outside
        itself.
    OSError
        When there is no such file, or it may not be read.

    Examples
    --------
    >>> import nbprop
    >>> class Model:  # what of a model of Keras is looked at
    ...     layers = ()
    ...
    ...     def get_config(self):
    ...         x = {"class_name": "InputLayer", "config": {"name": "x", "batch_shape": [None, 3]}}
    ...         return {"layers": [x, {"class_name": "ReLU", "config": {"name": "relu"}}]}
    >>> nbprop.from_keras(type("Sequential", (Model,), {})())
    (network((3,), activation('relu')), array([], dtype=float32))
    """
    if isinstance(model, (str, os.PathLike)):
        name = as_path("from_keras: model", model)
        description, weights = read_file("from_keras", name)
        function = f"from_keras: {name}"
    else:
        description, weights = read_model("from_keras", model)
        function = "from_keras"
    return _Reader(function, description, weights).network()


class _Reader:
    """The layers of a model's description, one after another."""

    def __init__(self, function, description, weights):
        self.function, self.weights, self.graph = function, weights, Graph(function)
        kind, config = description.get("class_name"), description.get("config")
        if kind not in _MODELS or not isinstance(config, dict) or not isinstance(config.get("layers"), list):
            raise ValueError(
                f"{function}: it describes a {shown(kind)}; a Sequential or a Functional model can be read"
            )
        self.sequential, self.config = kind == "Sequential", config
        self.values: dict[str, Value] = {}
        self.dtypes: set[np.dtype[Any]] = set()

    def network(self):
        try:
            output = self._sequential() if self.sequential else self._functional()
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.function}: its description is damaged: {brief(repr(error))}") from None
        return self.graph.network(output.node, np.float64 if np.dtype(np.float64) in self.dtypes else np.float32)

    def _sequential(self):
        value = None
        for layer in self.config["layers"]:
            kind, settings = layer["class_name"], layer["config"]
            shape = settings.get("batch_shape") or settings.get("batch_input_shape")
            if value is None:
                shape = (
                    shape or self.config.get("build_input_shape") or layer.get("build_config", {}).get("input_shape")
                )
                value = self._input(settings["name"], shape)
            if kind != "InputLayer":
                value = self._layer(kind, settings, [value])
        if value is None:
            raise ValueError(f"{self.function}: the model has no layers")
        return value

    def _functional(self):
        for layer in self.config["layers"]:
            kind, settings, nodes = layer["class_name"], layer["config"], layer["inbound_nodes"]
            name = layer.get("name", settings["name"])
            if kind == "InputLayer":
                if self.values:
                    raise ValueError(f"{self.function}: {name} is a second input; nbprop's networks have one")
                self.values[name] = self._input(name, settings.get("batch_shape") or settings["batch_input_shape"])
                continue
            if len(nodes) != 1:
                raise ValueError(f"{self.function}: layer {name} is called {len(nodes)} times; nbprop has a layer once")
            self.values[name] = self._layer(kind, settings, [self.values[source] for source in _sources(nodes[0])])
        outputs = self.config["output_layers"]
        outputs = [outputs] if isinstance(outputs[0], str) else outputs
        if len(outputs) != 1:
            raise ValueError(f"{self.function}: the model has {len(outputs)} outputs; nbprop's networks have one")
        return self.values[outputs[0][0]]

    def _input(self, name, shape):
        if not isinstance(shape, (list, tuple)) or len(shape) < 2:
            raise ValueError(f"{self.function}: input {name} has no shape; build the model before it is saved")
        if any(extent is None for extent in shape[1:]):
            raise ValueError(f"{self.function}: input {name} has sizes that are left open, {list(shape)}; give them")
        sample = tuple(check_integer(f"{self.function}: a size of its input", extent) for extent in shape[1:])
        return Value(self.graph.input(sample), tuple(range(len(sample) + 1)))

    def _layer(self, kind, settings, values):
        name = settings["name"]
        step = KerasStep(self.graph, f"layer {name} ({kind})")
        read = LAYERS.get(kind)
        if read is None:
            raise step.fail("has no layer in nbprop")
        if settings.get("data_format", "channels_last") not in ("channels_last", None):
            raise step.fail("has its channels first; nbprop has them last")
        arrays = [self._array(step, array) for array in self.weights.get(name, [])]
        if any(isinstance(value, Padded) for value in values) and "Conv" not in kind:
            raise step.fail("reads an image with zeros around it, which only a convolution can take")
        try:
            return read(step, settings, arrays, *values)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            if str(error).startswith("from_keras"):
                raise
            raise step.fail(f"has settings or weights that do not fit: {brief(repr(error))}") from None

    def _array(self, step, array):
        if array.dtype.kind == "f":
            if array.dtype.itemsize < 4:
                raise step.fail(f"has weights of {array.dtype}; nbprop computes in float32 and float64")
            if not np.isfinite(array).all():
                raise step.fail("has weights that are not finite")
            self.dtypes.add(array.dtype)
        return array


def _sources(node):
    """The names of the layers that a call of a layer takes its inputs from, in Keras 3's form or Keras 2's."""
    if isinstance(node, dict):
        found = []

        def look(part):
            if isinstance(part, dict) and part.get("class_name") == "__keras_tensor__":
                found.append(part["config"]["keras_history"][0])
            elif isinstance(part, (list, tuple)):
                for item in part:
                    look(item)

        look(node["args"])
        return found
    return [entry[0] for entry in node]
