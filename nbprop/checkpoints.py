"""Checkpoints of a training: its arrays as safetensors, its place and history as JSON in the metadata.

A file is written aside, brought to the disk and renamed: a kill at any moment leaves the old one or the new one.
"""

import json
import os

from nbprop.storage import write_atomically

FORMAT = 1
_KEY = "nbprop_checkpoint"


def write_checkpoint(path, identity, arrays, progress, history):
    """Write a file; raises OSError when that fails, and the old file is as it was."""
    from safetensors.numpy import save_file

    content = {"format": FORMAT, "identity": identity, "progress": progress, "history": history}
    metadata = {_KEY: json.dumps(content)}
    write_atomically(path, lambda temporary: save_file(arrays, temporary, metadata))


def read_checkpoint(path, identity, shapes):
    """(arrays, progress, history) of a run with this identity; None where there is no file.

    Raises ValueError for a file that is cut or something else, and for another run's, naming what differs.
    """
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    if not os.path.exists(name):
        return None
    try:
        with safe_open(name, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            arrays = {key: file.get_tensor(key) for key in names}
    except SafetensorError as error:
        raise ValueError(f"fit: {name} is damaged or no checkpoint ({error}); delete it to start anew") from None
    try:
        content = json.loads(metadata[_KEY])
        version = content["format"]
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(f"fit: {name} is no checkpoint of nbprop.fit; pass another path") from None
    if version != FORMAT:
        raise ValueError(f"fit: {name} has format {version}, and this version of nbprop reads {FORMAT}")
    for key, value in identity.items():
        if content["identity"].get(key) != value:
            there = content["identity"].get(key)
            raise ValueError(
                f"fit: {name} is of another run: its {key} is {there!r}, this one's is {value!r}; "
                "pass another path, or resume=False to start anew"
            )
    if {key: array.shape for key, array in arrays.items()} != shapes:
        raise ValueError(f"fit: {name} does not hold the arrays of this run; delete it to start anew")
    return arrays, content["progress"], content["history"]
