"""Checkpoints of a training: its arrays as safetensors, its position and history as JSON in the metadata.

A file is written to a temporary name, synced to the disk and renamed, so that a kill at any moment leaves either the
old file or the new one. A file is used only if its checksum is right and every word fits the run that resumes from it.
"""

import errno
import json
import math
import os
import secrets
import stat
from dataclasses import dataclass

import numpy as np

from nbprop.io.atomic import write_atomically
from nbprop.io.networks import digest
from nbprop.networks.network import read_json
from nbprop.validation import brief, shown

FORMAT = 2
_KEY = "nbprop_checkpoint"
_PARTS = ("identity", "progress", "history", "added")
_KINDS = ("F32", "F64")

# Words of the job (loop.py) that hold the position of a training.
PLACE = ("EPOCH", "POSITION", "STEP", "LOWEST_EPOCH")
SUMS = ("LOSS_SUM", "WEIGHT_SUM", "LOWEST")


@dataclass
class Checkpoint:
    """The contents of a file: identity of the run, arrays, position, history, and what a callback added to that."""

    identity: dict
    arrays: dict
    progress: dict
    history: dict
    added: dict


def as_json(value):
    """A NumPy number or array as JSON takes it (the `default` of json.dumps)."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic) and isinstance(value.item(), (int, float, bool, str)):
        return value.item()
    raise TypeError(f"JSON cannot represent {type(value).__name__}")


def write_checkpoint(path, checkpoint):
    """Write a file; raises OSError if that fails, with the old file unchanged."""
    from safetensors.numpy import save_file

    content = {"format": FORMAT} | {name: getattr(checkpoint, name) for name in _PARTS}
    content = json.loads(json.dumps(content, default=as_json))  # as read back, which the digest covers
    content["digest"] = digest(checkpoint.arrays, content)
    write_atomically(path, lambda temporary: save_file(checkpoint.arrays, temporary, {_KEY: json.dumps(content)}))


def read_checkpoint(path):
    """The Checkpoint of a file with a valid checksum; None if there is no file.

    Raises ValueError for any other file, OSError for one that cannot be opened.
    """
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    try:
        with open(name, "rb"):  # its errors are clearer about what cannot be opened
            pass
    except FileNotFoundError:
        return None
    try:
        with safe_open(name, framework="numpy") as file:
            content = _content(name, file.metadata() or {})
            keys = sorted(file.keys())
            for key in keys:
                kind = file.get_slice(key).get_dtype()
                _require(name, key, kind in _KINDS, kind, f"of {' or '.join(_KINDS)}")
            arrays = {key: file.get_tensor(key) for key in keys}
    except SafetensorError as error:
        raise ValueError(
            f"fit: {name} is damaged or not a checkpoint ({brief(error)}); delete it to start over"
        ) from None
    claimed = content.pop("digest", None)
    if claimed != digest(arrays, content):
        raise ValueError(f"fit: {name} is damaged: its checksum is not that of its contents; delete it to start over")
    parts = [content.get(part) for part in _PARTS]
    for part, value in zip(_PARTS, parts, strict=True):
        _require(name, part, isinstance(value, dict), value, "a table of names")
    identity, progress, history, added = parts
    return Checkpoint(identity, arrays, progress, history, added)


def _content(name, metadata):
    try:
        content = read_json(metadata[_KEY])
        version = content["format"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"fit: {name} is not a checkpoint of nbprop.fit; pass another path") from None
    if type(version) is not int or version != FORMAT:
        raise ValueError(f"fit: {name} has format {shown(version)}, and this version of nbprop reads {FORMAT}")
    return content


def check_arrays(name, found, wanted):
    """Check that the arrays of a file have the names, shapes and dtypes of those of the run, {name: array}."""
    for key in sorted(set(found) ^ set(wanted)):
        said = "lacks" if key in wanted else "has, besides those of this run,"
        raise ValueError(f"fit: {name} {said} the array {brief(key)}; delete it to start over")
    for key, array in wanted.items():
        fits = found[key].shape == array.shape and found[key].dtype == array.dtype
        got = f"{found[key].dtype} of shape {found[key].shape}"
        _require(name, key, fits, got, f"{array.dtype} of shape {array.shape}")


def _require(name, word, fits, value, wanted):
    if not fits:
        got = value if isinstance(value, str) else repr(value)
        raise ValueError(
            f"fit: {name} is damaged: {brief(word)} must be {wanted}, got {got[:80]}; delete it to start over"
        )


def check_place(name, checkpoint, samples, batch, first_step, first_epoch, watched):
    """Check every word of a checkpoint that becomes an index or a bound against the numbers of the run.

    watched: "validation" or "training" if losses are measured at the end of each epoch, else None.
    """
    progress, history = checkpoint.progress, checkpoint.history
    for word in PLACE:
        _require(name, word, type(progress.get(word)) is int, progress.get(word), "an integer")
    for word in SUMS:
        _require(name, word, _is_number(progress.get(word)), progress.get(word), "a number")
    epoch, position, losses = progress["EPOCH"], progress["POSITION"], history.get("loss")
    _require(name, "loss", isinstance(losses, list), losses, "a list of numbers")
    done = len(losses)
    _require(name, "EPOCH", epoch == first_epoch + done, epoch, f"{first_epoch + done}, as its history has it")
    inside = 0 <= position < samples and position % batch == 0
    _require(name, "POSITION", inside, position, f"a multiple of {batch} in 0..{samples - 1}")
    step = first_step + done * -(-samples // batch) + position // batch
    _require(name, "STEP", progress["STEP"] == step, progress["STEP"], f"{step}, as its epoch and position have it")
    lowest = progress["LOWEST_EPOCH"]
    _require(name, "LOWEST_EPOCH", lowest == -1 or first_epoch <= lowest < epoch, lowest, "an epoch that has ended")
    seen, total = progress["WEIGHT_SUM"], progress["LOSS_SUM"]
    _require(name, "WEIGHT_SUM", 0 <= seen < math.inf and (position or seen == 0), seen, "the weight of this epoch")
    _require(name, "LOSS_SUM", math.isfinite(total) and (seen or total == 0), total, "the loss of this epoch")
    pending = progress.get("PENDING")
    fits = pending is False or (pending is True and watched is not None and done > 0 and position == 0)
    _require(name, "PENDING", fits, pending, "whether an epoch's end waits to be measured")
    measured = done - pending
    lengths = {"loss": done, "lr": done, "seconds": done, "validation_loss": 0, "training_loss": 0}
    _check_history(name, history, lengths if watched is None else lengths | {f"{watched}_loss": measured}, measured)


def _check_history(name, history, lengths, measured):
    for key, length in lengths.items():
        values = history.get(key)
        fits = isinstance(values, list) and len(values) == length and all(map(_is_number, values))
        _require(name, key, fits, values, f"a list of {length} numbers")
    best = history.get("best_epoch", "nothing")
    fits = best is None or (type(best) is int and 0 <= best < measured)
    _require(name, "best_epoch", fits, best, "an epoch that was measured, or null")
    _require(name, "best_loss", _is_number(history.get("best_loss")), history.get("best_loss"), "a number")
    before = history.get("before")
    _require(name, "before", _is_number(before) and 0 <= before < math.inf, before, "seconds")


def check_metrics_kept(name, checkpoint, metrics):
    """Check that a checkpoint has one number an epoch of each of the run's metrics; NaN where one is undefined."""
    kept, done = checkpoint.history.get("metrics", {}), len(checkpoint.history["loss"]) - checkpoint.progress["PENDING"]
    for metric in metrics:
        values = kept.get(metric) if isinstance(kept, dict) else None
        fits = isinstance(values, list) and len(values) == done and all(type(value) is float for value in values)
        _require(name, metric, fits, values, f"a list of {done} numbers")


def _is_number(value):
    return (type(value) is float and not math.isnan(value)) or (type(value) is int and abs(value) < 2**63)


def file_to_write(function, name, path, writes=True):
    """A path, or None, whose folder takes new files now: found out by making one, before hours of work.

    writes: whether this process will write it. Raises OSError, as a later write would.
    """
    if path is None:
        return None
    try:
        text = os.fspath(path)
    except TypeError:
        text = None
    if not isinstance(text, str) or "\0" in text:
        raise TypeError(f"{function}: {name} must be a path, got {shown(path)}")
    if not writes:
        return text
    final = os.path.realpath(text)
    folder, base = os.path.split(final)
    trial = os.path.join(folder, f".{base}.{secrets.token_hex(6)}.tmp")
    try:
        if os.path.isdir(final):
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if not os.path.isdir(folder):
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {folder}")
        if os.path.exists(final) and not stat.S_ISREG(os.stat(final).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        os.close(os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        os.unlink(trial)
    except OSError as error:
        raise OSError(error.errno, f"{function}: {name} {text} cannot be written: {error.strerror}") from None
    return text
