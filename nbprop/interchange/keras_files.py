"""Keras's files: the model's description, and each layer's weights; .keras archives and the older .h5.

HDF5 can point to other files and claim arrays that it does not hold: only what lies in the file itself is read.
"""

import io
import json
import os
import re
import zipfile

import numpy as np

from nbprop.io.networks import check_readable
from nbprop.networks.network import read_json
from nbprop.validation import brief, shown

_MOST_TEXT = 2**26  # bytes of a description
_MOST = 2**34  # of the weights
_DENSITY = 1000  # how many times larger than what is stored an array may be, where it is compressed


def read_file(function, name):
    """(description, {layer's name: [arrays]}) of a .keras or .h5 file."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{function} needs h5py for files; install it with: pip install nbprop[keras]") from error

    check_readable(function, name)
    if os.path.isdir(name):
        raise ValueError(f"{function}: {name} is a folder; save the model as .keras or .h5")
    try:
        if zipfile.is_zipfile(name):
            return _archive(h5py, function, name)
        with h5py.File(name, "r") as file:
            return _old_file(h5py, function, name, file)
    except (OSError, LookupError, TypeError, AttributeError, zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise ValueError(f"{function}: {name} is cut, damaged, or no file of Keras ({brief(error)})") from None


def _archive(h5py, function, name):
    with zipfile.ZipFile(name) as archive:
        config, weights = (archive.getinfo(part) for part in ("config.json", "model.weights.h5"))
        if config.file_size > _MOST_TEXT or weights.file_size > _MOST:
            raise ValueError(f"{function}: {name} claims {config.file_size + weights.file_size:,} bytes; it is damaged")
        description = _described(function, name, archive.read(config))
        with h5py.File(io.BytesIO(archive.read(weights)), "r") as file:
            layers = file.get("layers", {})
            named = {}
            for key in layers:
                group = _inside(h5py, function, name, layers, key)
                variables = _inside(h5py, function, name, group, "vars") if "vars" in group else group
                title = variables.attrs.get("name", key)
                named[title.decode() if isinstance(title, bytes) else str(title)] = (
                    key,
                    _arrays(h5py, function, name, group),
                )
    return description, _by_layer(description, named)


def _by_layer(description, named):
    """Arrays by the layers' names; files of Keras 3.0 have only names that it makes of the classes', counted."""
    counts: dict[str, int] = {}
    found = {}
    by_key = dict(named.values())
    for layer in description.get("config", {}).get("layers", []):
        kind, title = str(layer.get("class_name")), layer.get("config", {}).get("name")
        snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()
        key = f"{snake}_{counts[snake]}" if snake in counts else snake
        counts[snake] = counts.get(snake, 0) + 1
        found[title] = named[title][1] if title in named else by_key.get(key, [])
    return found


def _old_file(h5py, function, name, file):
    if "model_config" not in file.attrs or "model_weights" not in file:
        raise ValueError(
            f"{function}: {name} has no model_config and model_weights; save the whole model, not its weights"
        )
    text = file.attrs["model_config"]
    description = _described(function, name, text.encode() if isinstance(text, str) else bytes(text))
    weights, found = _inside(h5py, function, name, file, "model_weights"), {}
    for layer in weights.attrs["layer_names"]:
        layer = layer.decode() if isinstance(layer, bytes) else str(layer)
        group, arrays = _inside(h5py, function, name, weights, layer), []
        for path in group.attrs.get("weight_names", ()):
            part = group
            for piece in (path.decode() if isinstance(path, bytes) else str(path)).split("/"):
                part = _inside(h5py, function, name, part, piece)
            arrays.append(_array(h5py, function, name, part))
        found[layer] = arrays
    return description, found


def _described(function, name, text):
    try:
        found = read_json(text.decode("utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{function}: {name}: its description is damaged: {brief(error)}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{function}: {name}: its description is no object, but {shown(found)}")
    return found


def _inside(h5py, function, name, group, key):
    """What a group holds itself, not by a link to another file."""
    if not isinstance(group, h5py.Group):
        raise ValueError(f"{function}: {name} is damaged: {brief(key)} is no group")
    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
        raise ValueError(
            f"{function}: {name}: {brief(key)} is a link; what it names may lie outside the file, and is not read"
        )
    return group[key]


def _arrays(h5py, function, name, group):
    """All arrays of a layer, its own before those of what is inside it, in the order of their numbers."""
    found, groups = [], []
    for key in sorted(group, key=lambda key: (key != "vars", int(key) if key.isdecimal() else 0, key)):
        part = _inside(h5py, function, name, group, key)
        if isinstance(part, h5py.Dataset):
            found.append(_array(h5py, function, name, part))
        else:
            groups.append(part)
    for part in groups:
        found += _arrays(h5py, function, name, part)
    return found


def _array(h5py, function, name, part):
    if not isinstance(part, h5py.Dataset) or part.external or part.is_virtual:
        raise ValueError(f"{function}: {name}: an array of it lies outside the file, and is not read")
    if part.dtype.kind not in "fiu" or part.nbytes > _DENSITY * part.id.get_storage_size():
        raise ValueError(
            f"{function}: {name} is damaged: an array claims {part.nbytes:,} bytes of {part.dtype}, and has "
            f"{part.id.get_storage_size():,}"
        )
    return np.asarray(part[()])


def read_model(function, model):
    """(description, {layer's name: [arrays]}) of a model of Keras in memory."""
    if not all(hasattr(model, name) for name in ("get_config", "layers")):
        raise TypeError(f"{function}: model must be a model of Keras or the path of a file, got {type(model).__name__}")
    kind = "Sequential" if any(base.__name__ == "Sequential" for base in type(model).__mro__) else "Functional"
    description = {"class_name": kind, "config": json.loads(json.dumps(model.get_config(), default=str))}
    return description, {layer.name: [np.asarray(array) for array in layer.get_weights()] for layer in model.layers}
