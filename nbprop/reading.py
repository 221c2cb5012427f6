"""What the command line reads: networks written as words, and data from .npz and .csv files."""

import zipfile
from pathlib import Path

import numpy as np

from nbprop import layers
from nbprop.network import choose, network

# Layers that take functions or other layers cannot be written as one word.
_WORDS = {name: getattr(layers, name) for name in layers.__all__ if name.islower()}
for _name in ("custom", "elementwise", "residual", "concat"):
    del _WORDS[_name]


def read_network(text, input_shape):
    """A network from words such as ``dense:64:tanh dense:10``: a layer's name and its arguments, joined by colons.

    An activation's name stands for a layer of it. Raises ValueError for an unknown word or wrong arguments.

    >>> read_network("dense:8 relu dense:1", (4,))
    network((4,), dense(8), activation('relu'), dense(1))
    """
    found = []
    for word in text.replace(",", " ").split():
        name, *arguments = word.split(":")
        if name in layers.ACTIVATIONS and not arguments:
            found.append(layers.activation(name))
            continue
        make = choose("network", name, _WORDS | dict.fromkeys(layers.ACTIVATIONS))
        try:
            found.append(make(*map(_argument, arguments)))
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"network: {word!r}: {error}") from None
    if not found:
        raise ValueError('network: no layers; write for instance "dense:64:tanh dense:10"')
    return network(input_shape, *found)


def _argument(text):
    """A number where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def read_data(path, targets):
    """(x, target or None) from a file.

    path : .npz with arrays `x` and, when targets > 0, `y` (or `target`); or .csv of numbers, where the last `targets`
        columns are the target. A first line without any number holds names and is skipped.
    targets : columns of a .csv that are the target; 0 for none

    A target of one column of whole numbers comes as (n,) int64, any other as (n, k) or the shape it has.
    """
    path = Path(path)
    if path.suffix == ".npz":
        x, y = _read_npz(path, targets)
    elif path.suffix == ".csv":
        table = _read_csv(path)
        if table.shape[1] <= targets:
            raise ValueError(
                f"{path}: {table.shape[1]} columns, of which the last {targets} are the target, leave none for x"
            )
        split = table.shape[1] - targets
        x, y = table[:, :split], table[:, split:] if targets else None
    else:
        raise ValueError(f"{path}: data must be a .npz or a .csv file")
    if x.size == 0:
        raise ValueError(f"{path}: no samples")
    for name, array in (("x", x), ("the target", y)):
        if array is not None and not np.isfinite(array).all():
            sample = int(np.argwhere(~np.isfinite(array))[0][0]) + 1
            raise ValueError(f"{path}: {name} holds NaN or infinity, first in sample {sample}; remove it or fill it in")
    if y is None:
        return x, None
    if len(y) != len(x):
        raise ValueError(f"{path}: y must bring as many samples as x, got {len(y)} for {len(x)}")
    flat = y.reshape(len(y), -1)
    if flat.shape[1] == 1 and np.array_equal(flat, np.rint(flat)):
        return x, flat[:, 0].astype(np.int64)
    return x, flat if y.ndim == 1 else y


def _read_npz(path, targets):
    try:
        stored = np.load(path, allow_pickle=False)
        arrays = {name: stored[name] for name in stored.files}
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npz file: {error}") from None
    names = {"x": ("x",), "y": ("y", "target")} if targets else {"x": ("x",)}
    found = []
    for wanted, spellings in names.items():
        name = next((name for name in spellings if name in arrays), None)
        if name is None:
            raise ValueError(f"{path}: needs an array named {wanted}; it holds {', '.join(arrays) or 'nothing'}")
        if arrays[name].dtype.kind not in "biuf" or arrays[name].ndim == 0:
            raise ValueError(f"{path}: {name} must be an array of numbers, got {arrays[name].dtype}")
        found.append(arrays[name])
    return found[0] if found[0].ndim > 1 else found[0][:, None], found[1] if targets else None


def _read_csv(path):
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line for line in file if line.strip()]
        if lines and all(isinstance(_argument(field.strip()), str) for field in lines[0].split(",")):
            del lines[0]
        # Of an empty file, loadtxt would only warn.
        table = np.loadtxt(lines, delimiter=",", ndmin=2) if lines else None
    except ValueError as error:
        raise ValueError(f"{path}: every field must be a number: {error}") from None
    if table is None:
        raise ValueError(f"{path}: no samples")
    return table
