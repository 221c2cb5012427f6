"""The commands `nbprop predict` and `nbprop export`, which use what `nbprop train` has written."""

import math
import sys
from pathlib import Path

import numpy as np

import nbprop
from nbprop.cli.places import check_place, say
from nbprop.compiler.report import reporting
from nbprop.io.atomic import write_atomically
from nbprop.io.data_files import open_data
from nbprop.io.networks import load_notes
from nbprop.io.table_source import Columns
from nbprop.losses import loss_named
from nbprop.prediction import Predictor

BATCH = 1024  # samples per call; the workspace is proportional to it


def predict(arguments):
    """The command `nbprop predict`: runs the network piece by piece, and writes the outputs as they come."""
    net, params = nbprop.load(arguments.model)
    notes = _checked(arguments.model, load_notes(arguments.model))
    to_array = arguments.output is not None and Path(arguments.output).suffix == ".npy"
    if arguments.output is not None:
        if Path(arguments.output).suffix not in (".csv", ".npy") and Path(arguments.output).is_file():
            raise ValueError(f"{arguments.output}: a file of predictions must be named .csv or .npy")
        check_place(arguments.output, arguments.data, arguments.model)
    predictor, names = _predictor(arguments, net, params, notes)
    source = open_data(arguments.data, arguments.choices, False, _known(notes))
    if source.sample_shape != net.input_shape:
        raise ValueError(
            f"{arguments.data} has samples of shape {source.sample_shape}, the network takes {net.input_shape}"
        )
    say("".join(f"{line}\n" for line in source.lines()))
    with reporting(say):
        outputs = _outputs(predictor, source, names)
        if to_array:
            parts = list(outputs)
            if not parts:
                raise ValueError(f"{arguments.data}: no samples")
            write_atomically(arguments.output, lambda path: _save_array(path, np.concatenate(parts)))
        elif arguments.output is not None:
            write_atomically(arguments.output, lambda path: _save_text(path, outputs))
        else:
            for part in outputs:
                _write_rows(sys.stdout, part)
    say("".join(f"{line}\n" for line in source.lines_after()))


def export(arguments):
    """The command `nbprop export`."""
    net, params = nbprop.load(arguments.model)
    notes = _checked(arguments.model, load_notes(arguments.model))
    plan = nbprop.plan(net, None, 1, params.dtype, mode="inference")
    state = nbprop.load_state(arguments.model, plan) if plan.state_size else None
    functions = None if arguments.functions is None else arguments.functions.split(",")
    with reporting(say):
        nbprop.export_c(
            arguments.output,
            net,
            params,
            functions,
            arguments.dtype or params.dtype,
            arguments.batch,
            arguments.loss or notes.get("loss"),
            state,
        )
    print(f"wrote {arguments.output}.c and {arguments.output}.h")


def _checked(model, notes):
    """The notes of a model, checked to be of the form that `train` writes."""
    for name in ("labels", "features"):
        value = notes.get(name)
        if value is not None and not _texts(value):
            raise ValueError(f"{model}: its notes of {name} are damaged: they must be a list of text, got {value!r}")
    if not isinstance(notes.get("loss"), str | None):
        raise ValueError(f"{model}: its note of the loss is damaged: it must be text, got {notes['loss']!r}")
    columns = notes.get("columns")
    if columns is not None and not (isinstance(columns, list) and all(map(_is_column, columns))):
        raise ValueError(f"{model}: its notes of columns are damaged")
    if columns is not None and notes.get("features") is not None and len(columns) != len(notes["features"]):
        raise ValueError(
            f"{model}: its notes are damaged: {len(columns)} columns for {len(notes['features'])} features"
        )
    return notes


def _texts(value):
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_column(value):
    """Whether a note describes a column: its categories, or what is filled in where a number is missing."""
    if not isinstance(value, dict) or len(value) != 1:
        return False
    if value.get("fill", 0.0) is None:
        return True
    fill = value.get("fill")
    return _texts(value.get("categories")) or (isinstance(fill, float) and math.isfinite(fill))


def columns_note(columns):
    """What `_known` reads: for each feature its categories, or what is filled in where a number is missing."""
    both = zip(columns.categories, columns.fills, strict=True)
    return [{"fill": fill} if kinds is None else {"categories": kinds} for kinds, fill in both]


def _known(notes):
    """The columns that a network was trained with, or None."""
    noted = notes.get("columns") or []
    if not noted and notes.get("features") is None:
        return None
    return Columns(notes.get("features"), [one.get("categories") for one in noted], [one.get("fill") for one in noted])


def _predictor(arguments, net, params, notes):
    """(the network, ready to run, the names of its classes or None)."""
    plan = nbprop.plan(net, None, 1, params.dtype, mode="inference")
    state = nbprop.load_state(arguments.model, plan) if plan.state_size else None
    kind = "classes" if arguments.classes else "probabilities" if arguments.probabilities else "output"
    loss = arguments.loss or notes.get("loss")
    if kind != "output" and loss is None:
        raise ValueError(
            f"{arguments.model} does not name the loss that it was trained with, on which --{kind} depends; say "
            "--loss softmax_cross_entropy or --loss binary_cross_entropy"
        )
    if kind != "output" and not loss_named(loss).has_classes:
        raise ValueError(f"{arguments.model} was trained with {loss}: its outputs are numbers, not classes")
    labels = notes.get("labels")
    if kind != "output" and labels and len(labels) != max(2, math.prod(net.output_shape)):
        raise ValueError(f"{arguments.model} names {len(labels)} classes for outputs of shape {net.output_shape}")
    predictor = Predictor("predict", net, params, BATCH, kind, loss if kind != "output" else None, state)
    return predictor, np.array(labels) if labels and kind == "classes" else None


def _outputs(predictor, source, names):
    """What is predicted, piece by piece."""
    used = predictor.plan
    for piece in source.pieces(used.dtype, used.x_classes):
        out = np.empty((len(piece.x), *predictor.shape), predictor.dtype)
        predictor(piece.x, out)
        yield out if names is None else names[out]


def _save_array(path, y):
    with open(path, "wb") as file:
        np.save(file, y, allow_pickle=False)


def _save_text(path, parts):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for part in parts:
            _write_rows(file, part)


def _write_rows(file, part):
    """Rows of a .csv, with enough digits to read the same numbers back."""
    import csv

    rows = part.reshape(len(part), -1)
    if rows.dtype.kind == "f":
        digits = "%.9g" if rows.dtype == np.float32 else "%.17g"
        line = ",".join([digits] * rows.shape[1]) + "\n"
        file.writelines(line % tuple(row) for row in rows.tolist())
    else:
        csv.writer(file, lineterminator="\n").writerows(rows.tolist())
