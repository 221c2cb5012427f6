"""Networks with their parameters in safetensors files, which other frameworks read; the description is in the metadata.

There is one tensor for each name in `nbprop.views` and, if the state was given, for each piece of layer state that does
not belong to samples, in the dtype of the parameters. The metadata has one key, "nbprop": a JSON object with the format
version, the network, and a checksum of network and tensors. With one key and sorted tensors, the bytes of a file depend
on its contents alone.
"""

import hashlib
import json
import os
import stat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbprop.arrays import as_array, check_kinds
from nbprop.collector import collector_paused
from nbprop.io.atomic import as_path, write_atomically
from nbprop.lowering.plan import Plan, first_state
from nbprop.lowering.programs import state_layout
from nbprop.messages import LENGTH, failure
from nbprop.networks.network import Network, check_flat, read_json, views
from nbprop.validation import brief, shown

FORMAT = 1
_KEY = "nbprop"
_PIECE = 1 << 22  # bytes read at a time
_DTYPES = {"F32": np.float32, "F64": np.float64}


def save(
    path: str | os.PathLike[str],
    net: Network,
    params: NDArray[Any],
    state: NDArray[Any] | None = None,
    *,
    notes: dict[str, str] | None = None,
) -> None:
    """Write a network and its parameters to a file, atomically.

    Parameters
    ----------
    path : str or path; by convention it ends in .safetensors. An existing file is replaced atomically.
    net : Network
    params : (net.n_params,) float32 or float64 array
    state : array of the same dtype from `layer_state(plan)`, or None
        The running statistics of the network, if it has some, which belong to it like params: `load_state` reads them.
    notes : dict that JSON can hold, or None
        What else belongs to the network, such as the names of its inputs and classes: `load_notes` reads it.

    Other tools find each parameter as an array under its name in `nbprop.views`: "0.dense.weight" of shape (in, out);
    and statistics under names such as "1.batchnorm.running_mean". The state of samples is not stored.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit; nothing has been written then.
    OSError
        If the file cannot be written (full disk, no permission); an old file is then unchanged.

    Examples
    --------
    >>> import nbprop, os, tempfile
    >>> net = nbprop.network((4,), nbprop.dense(2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "small.safetensors")
    ...     nbprop.save(path, net, nbprop.init(net))
    ...     net, params = nbprop.load(path)
    >>> net, params.dtype
    (network((4,), dense(2)), dtype('float64'))
    """
    from safetensors.numpy import save_file

    if not isinstance(net, Network):
        raise TypeError(f"save: net must be what nbprop.network(...) returns, got {type(net).__name__}")
    name = as_path("save: path", path)
    check_kinds("save: params", check_flat("save: params", params, net.n_params), (np.float32, np.float64))
    tensors = views(net, params.view(np.ndarray)) | _state_tensors(net, params, state)
    config, noted = net.to_config(), _checked_notes(notes)
    checksum = digest(tensors, _covered(config, notes))
    description = json.dumps({"format": FORMAT, "network": config, "digest": checksum} | noted)
    write_atomically(name, lambda temporary: save_file(tensors, temporary, {_KEY: description}))


def digest(tensors, description=None):
    """Checksum of a file's contents: 32 hexadecimal digits of BLAKE2b.

    tensors: {name: C-contiguous array}; covers names, dtypes, shapes and bytes, but not their order. description: what
    else to cover, anything that JSON can represent, as it is read back. Arrays are not copied.
    """
    found = hashlib.blake2b(json.dumps(description, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        array = tensors[name]
        found.update(repr((name, array.dtype.str, tuple(array.shape))).encode())
        found.update(array.reshape(-1).view(np.uint8))
    return found.hexdigest()


def _checked_notes(notes):
    """{"notes": notes} for the description of a file; {} if there are none."""
    if notes is None:
        return {}
    try:
        if not isinstance(notes, dict) or json.loads(json.dumps(notes, allow_nan=False)) != notes:
            raise TypeError("JSON reads it back changed")
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"save: notes must be a dict of what JSON can hold: {error}") from None
    return {"notes": notes}


def _covered(config, notes):
    """What a checksum covers beside the tensors."""
    return config if notes is None else [config, notes]


def load_notes(path):
    """The notes that `save` has written with a network; {} if there are none.

    Raises ValueError and OSError as `load` does.
    """
    return _read("load_notes", as_path("load_notes: path", path))[3] or {}


def _state_tensors(net, params, state):
    """{name: piece} of layer state to store."""
    if state is None:
        return {}
    layout, more = state_layout(net)
    size = sum(extent for _, extent in layout.values())
    state = as_array("save: state", state)
    check_kinds("save: state", state, params.dtype)
    if state.ndim != 1 or state.size < size or (state.size > size and not more):
        wanted = f"({size},)" + (" or longer" if more else "")
        remedy = "; nbprop.layer_state(plan) makes one that fits"
        raise failure(LENGTH, "save: state", shape=wanted, got=state.shape, remedy=remedy)
    return {name: np.ascontiguousarray(state[offset : offset + extent]) for name, (offset, extent) in layout.items()}


def load(path: str | os.PathLike[str]) -> tuple[Network, NDArray[Any]]:
    """Read what `save` has written.

    Returns
    -------
    (Network, params) : params is (net.n_params,), in the dtype in which it was saved

    Raises
    ------
    ValueError
        For a file that is truncated or too long, is not a network, is from a newer version, has tensors other than
        those of its network, or was changed after it was saved (by its checksum; a file without one is accepted); says
        which.
    OSError
        When there is no such file, or it may not be read.

    Examples
    --------
    >>> import nbprop, tempfile, pathlib
    >>> net = nbprop.network((3,), nbprop.dense(2))
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.safetensors"
    >>> nbprop.save(path, net, nbprop.init(net, seed=0))
    >>> net, params = nbprop.load(path)
    >>> net, params.shape
    (network((3,), dense(2)), (8,))
    """
    net, params, _, _ = _read("load", as_path("load: path", path))
    return net, params


def load_state(path: str | os.PathLike[str], plan: Plan) -> NDArray[Any]:
    """New layer state for a plan, with the running statistics that `save` has stored.

    Parameters
    ----------
    path : str or path
    plan : Plan of the file's network and dtype, of any batch and mode

    Returns
    -------
    As `layer_state(plan)`; the state of samples is as before the first step

    Raises
    ------
    ValueError
        As `load`; for a file of another network or dtype, or one that was saved without state.
    OSError
        When there is no such file, or it may not be read.

    Examples
    --------
    >>> import nbprop, os, tempfile
    >>> net = nbprop.network((4,), nbprop.batchnorm(), nbprop.dense(2))
    >>> plan = nbprop.plan(net, batch=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "small.safetensors")
    ...     nbprop.save(path, net, nbprop.init(net), nbprop.layer_state(plan))
    ...     state = nbprop.load_state(path, nbprop.plan(net, mode="inference"))
    >>> state
    array([0., 0., 0., 0., 1., 1., 1., 1.])
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"load_state: plan must be what nbprop.plan(...) returns, got {type(plan).__name__}")

    name = as_path("load_state: path", path)
    net, params, stored, _ = _read("load_state", name)
    if net != plan.net:
        raise ValueError(f"load_state: {name} holds {shown(net)}, the plan is of {shown(plan.net)}")
    layout, _ = state_layout(net)
    if layout and not stored:
        raise ValueError(f"load_state: {name} has no layer state; save it with save(path, net, params, state)")
    if stored and params.dtype != plan.dtype:
        raise ValueError(f"load_state: {name} holds {params.dtype}, the plan is of {plan.dtype}")
    state = first_state(plan)
    for piece, (offset, size) in layout.items():
        state[offset : offset + size] = stored[piece]
    return plan.new_state(state)


def check_readable(function, name):
    """Check that a file can be read; raises OSError, or ValueError for a pipe or device, which might never end."""
    mode = os.stat(name).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{function}: {name} is a device or a pipe; copy what comes from it into a file")
    with open(name, "rb"):  # its errors are clearer than those of the library
        pass


@collector_paused()
def _read(function, name):
    """(net, params, {name: piece of layer state}, notes) of a file, once all of it has been checked."""
    from safetensors import SafetensorError, safe_open

    check_readable(function, name)
    try:
        with safe_open(name, framework="numpy") as file:
            net, config, checksum, notes = _network(function, name, file.metadata() or {})
            layout, dtype = _check_tensors(function, name, net, file)
            params = np.empty(net.n_params, dtype)
            tensors = views(net, params)
            for path, view in tensors.items():
                _fill(view, file.get_slice(path))
            state = {piece: file.get_tensor(piece) for piece in layout}
    except SafetensorError as error:
        raise ValueError(f"{function}: {name}: {_damage(name)} ({brief(error)})") from None
    if checksum is not None and checksum != digest(tensors | state, _covered(config, notes)):
        raise ValueError(f"{function}: {name} is damaged: its contents do not match its checksum")
    return net, params, state, notes


def _fill(view, stored):
    """Copy a stored tensor piece by piece, since the library copies whatever is requested."""
    if view.ndim == 0:
        view[...] = stored[...]
        return
    rows = max(1, _PIECE // max(1, view[:1].nbytes))
    for first in range(0, len(view), rows):
        view[first : first + rows] = stored[first : min(first + rows, len(view))]


def _network(function, name, metadata):
    """(network, its description, checksum or None, notes or None) of a file's metadata."""
    if _KEY not in metadata:
        raise ValueError(f"{function}: {name} is a safetensors file, but its metadata describes no nbprop network")
    try:
        description = read_json(metadata[_KEY])
        version, config = description["format"], description["network"]
        checksum, unknown = description.get("digest"), set(description) - {"format", "network", "digest", "notes"}
        notes = description.get("notes")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{function}: {name}: its description of the network is damaged: {brief(repr(error))}"
        ) from None
    if type(version) is not int or version < 1:
        raise ValueError(f"{function}: {name}: its format must be a positive integer, got {shown(version)}")
    if version > FORMAT:
        newest = f"this nbprop reads up to {FORMAT}; install a newer nbprop"
        raise ValueError(f"{function}: {name} has format {shown(version)} and {newest}")
    if unknown:
        raise ValueError(f"{function}: {name}: its description is damaged: what is {shown(min(unknown))}?")
    if "notes" in description and not isinstance(notes, dict):
        raise ValueError(f"{function}: {name}: its notes are damaged: {shown(notes)} in place of an object")
    try:
        return Network.from_config(config), config, checksum, notes
    except ValueError as error:
        hint = "; import the module that defines it first" if "layer kind" in str(error) else ""
        raise ValueError(f"{function}: {name}: {brief(error)}{hint}") from None


def _check_tensors(function, name, net, file):
    """Check that the tensors are those of the network, in shape, and of one dtype.

    Returns the stored part of the layout of the layer state, and the dtype.
    """
    shapes = {path: slot.parameter.shape for path, slot in net.slots.items()}
    found, wanted, layout = set(file.keys()), set(shapes), {}
    if found - wanted:  # only then is it worth to find out what state the network has
        layout, _ = state_layout(net)
        layout = layout if found & set(layout) else {}
        wanted |= set(layout)
        shapes |= {path: (size,) for path, (_, size) in layout.items()}
    for problem, paths in (("lacks", wanted - found), ("has, besides the network's,", found - wanted)):
        if paths:
            some = ", ".join(sorted(paths)[:10]) + (f" and {len(paths) - 10} more" if len(paths) > 10 else "")
            raise ValueError(f"{function}: {name} {problem} the tensor {brief(some)}")
    dtypes = set()
    for path, shape in shapes.items():
        tensor = file.get_slice(path)
        if tuple(tensor.get_shape()) != shape:
            raise ValueError(
                f"{function}: {name}: {brief(path)} must have shape {shape}, got {tuple(tensor.get_shape())}"
            )
        dtypes.add(tensor.get_dtype())
    if len(dtypes) > 1 or not dtypes <= set(_DTYPES):
        raise ValueError(
            f"{function}: {name}: its tensors must all be F32 or all F64, got {brief(', '.join(sorted(dtypes)))}"
        )
    return layout, _DTYPES[dtypes.pop()] if dtypes else np.float64


def _damage(name):
    """What is wrong with a file that the library refuses, from its size and the one that its header promises."""
    size = os.path.getsize(name)
    with open(name, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        begins = file.read(1)
        if size == 0:
            return "the file is empty"
        if begins != b"{":
            return "this is not a safetensors file"
        if 8 + length > size:
            return f"the file is truncated, or not safetensors: {size} bytes, but its header alone needs {8 + length}"
        try:
            header = read_json(begins + file.read(length - 1))
            ends = [tensor["data_offsets"][1] for key, tensor in header.items() if key != "__metadata__"]
            promised = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return "its header is damaged, or this is not a safetensors file"
    if size < promised:
        return f"the file is truncated: {size} bytes of {promised}"
    return (
        f"the file is too large: {size} bytes, where its header promises {promised}"
        if size > promised
        else ("its header does not match its contents")
    )
