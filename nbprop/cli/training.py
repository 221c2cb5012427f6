"""The commands `nbprop train` and `nbprop predict`."""

import math
import os
import sys
from pathlib import Path

import numpy as np

import nbprop
from nbprop.cli.networks import read_network
from nbprop.compiler.report import reporting
from nbprop.io.atomic import write_atomically
from nbprop.io.data_files import Source, are_classes, open_data
from nbprop.io.networks import load_notes
from nbprop.losses import loss_named
from nbprop.runtime.datasets import check_layers
from nbprop.solvers.methods import METHODS
from nbprop.training.job import hyperparameters

BATCH = 1024  # samples per call without training; the workspace is proportional to it


class Failed(Exception):
    """The training failed."""


def say(text):
    """Write to standard error: progress and reports, since the output may be piped."""
    sys.stderr.write(text)
    sys.stderr.flush()


# -- train ---------------------------------------------------------------------------------------------------


def train(arguments):
    """The command `nbprop train`."""
    check_place(arguments.output, arguments.data)
    if arguments.loss is not None:
        loss_named(arguments.loss)  # refuses an unknown name
    if arguments.optimizer not in METHODS:
        hyperparameters("train", arguments.optimizer, arguments.lr, None, {})  # refuses an unknown name
    source = open_data(arguments.data, arguments.choices, True)
    net = read_network(arguments.net, source.sample_shape)
    dtype = np.dtype(arguments.dtype)
    print(*source.lines(), sep="\n")
    data = source.read(dtype, net.layers[0].index_limit)
    print(*source.lines_after(), sep="\n", flush=True)
    loss = arguments.loss or _usual_loss(net, data)
    plan = nbprop.plan(net, loss, 1, dtype, arguments.threads)
    x, y = data.x, _target_for(plan, loss, source, data)
    print(f"target: {', '.join(source.target_names)}, {_describe_target(plan, data, y)}")
    order = np.random.default_rng(arguments.seed).permutation(len(x))
    held = round(len(x) * arguments.held_out)
    if held == len(x):
        raise ValueError(f"--held-out {arguments.held_out:g} of {len(x)} samples leaves none to learn from")
    test, learn = order[:held], order[held:]
    params = nbprop.init(net, arguments.seed, dtype)
    print(
        f"{len(learn):,} samples to learn from, {held:,} held out; {net.n_params:,} parameters, loss {loss}", flush=True
    )
    with reporting(say):
        learn_x, learn_y = x[learn], y[learn]
        if not nbprop.trainable_mask(net).all():  # a network that is given numbers: those of scaling
            nbprop.fit_scaling(net, params, learn_x, learn_y)
        if arguments.optimizer in METHODS:
            state, failure = None, _minimize(net, params, learn_x, learn_y, loss, arguments)
        else:
            state, failure = _fit(net, params, learn_x, learn_y, loss, arguments)
        notes = {"loss": loss, "labels": data.labels, "features": source.features, "target": source.target_names}
        nbprop.save(arguments.output, net, params, state, notes=notes)
        _report(net, params, state, loss, "training", learn_x, learn_y, arguments.threads)
        if held:
            _report(net, params, state, loss, "held-out", x[test], y[test], arguments.threads)
    print(f"wrote {arguments.output}")
    if failure:
        raise Failed(failure)


def _usual_loss(net, data):
    """The default loss for a target."""
    shape = net.output_shape
    if data.labels is not None:
        return "binary_cross_entropy" if shape == (1,) and len(data.labels) == 2 else "softmax_cross_entropy"
    fits = bool(shape) and shape[-1] > 1 and data.y.shape[1:] == shape[:-1]
    return "softmax_cross_entropy" if fits and are_classes(data.y) else "mse"


def _target_for(plan, loss, source, data):
    """The target as the loss needs it: class numbers, or numbers in the plan's dtype."""
    y, path, shape = data.y, source.path, plan.target_shape
    if data.labels is not None:
        outputs = plan.classes or (2 if loss == "binary_cross_entropy" and plan.output_shape == (1,) else 0)
        if outputs == 0:
            text = source.text_target or f"{path}: the target is text"
            raise ValueError(f"{text}; loss {loss} needs numbers, and softmax_cross_entropy takes text as classes")
        if outputs != len(data.labels):
            raise ValueError(
                f"{path}: the target is text of {len(data.labels)} classes ({', '.join(data.labels[:8])}), and the "
                f"network's outputs are for {outputs}; end it with dense:{len(data.labels)}"
            )
    if plan.classes:
        if y.shape[1:] != shape and y.ndim == len(shape) + 2 and y.shape[-1] == plan.classes:
            raise ValueError(
                f"{path}: {loss} needs class numbers, and the target has rows of {plan.classes} numbers; where "
                "these are one-hot, np.argmax(y, axis=-1) gives class numbers"
            )
        _check_target_shape(path, loss, y, shape)
        wrong = (y != np.rint(y)) | (y < 0) | (y >= plan.classes)
        if wrong.any():
            i = int(np.argmax(wrong.reshape(len(y), -1).any(1)))
            value = y[i][wrong[i]].reshape(-1)[0] if y.ndim > 1 else y[i]
            place = source.target_place(Source.piece(data.rows), i)
            raise ValueError(
                f"{path}: {place} must hold classes in 0..{plan.classes - 1}, got {value:g}; {loss} takes whole "
                "numbers as class numbers: end the network with more outputs, or number the classes from 0"
            )
        return np.ascontiguousarray(y, np.int64)
    if y.ndim == 1 and shape == (1,):
        y = y[:, None]
    _check_target_shape(path, loss, y, shape)
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(y, plan.dtype)
    wrong = ~np.isfinite(out)
    if wrong.any():
        i = int(np.argmax(wrong.reshape(len(y), -1).any(1)))
        place = source.target_place(Source.piece(data.rows), i)
        raise ValueError(f"{path}: {place}: {plan.dtype} cannot represent it; say --dtype float64, or scale the target")
    return out


def _check_target_shape(path, loss, y, shape):
    if y.shape[1:] != shape:
        raise ValueError(
            f"{path}: {loss} needs a target of shape {shape} for each sample of this network, got {y.shape[1:]}; see "
            "--target and --targets, or change the last layer of the network"
        )


def _describe_target(plan, data, y):
    if data.labels is not None:
        return f"{len(data.labels)} classes: {', '.join(data.labels)}"
    if plan.classes:
        return f"classes of 0..{plan.classes - 1}, {len(np.unique(y))} of them present"
    return f"numbers from {y.min():g} to {y.max():g}"


def _fit(net, params, x, y, loss, arguments):
    """Train by mini-batches; returns (layer state or None, why the training failed or None)."""
    batch = min(arguments.batch, len(x))
    state = nbprop.layer_state(nbprop.plan(net, loss, batch, params.dtype))
    history = nbprop.fit(
        net,
        params,
        x,
        y,
        loss=loss,
        optimizer=arguments.optimizer,
        lr=arguments.lr,
        batch=batch,
        epochs=arguments.epochs,
        seed=arguments.seed,
        threads=arguments.threads,
        state=state,
    )
    kept = state if state.size else None
    if history.stopped != "diverged":
        return kept, None
    if history.best_epoch is None:
        raise Failed(f"training diverged and nothing was written: {history.message}, or scale the data")
    return kept, f"training diverged: {history.message}, or scale the data"


def _minimize(net, params, x, y, loss, arguments):
    """Train by a full-batch method; returns why it failed, or None."""
    plan = nbprop.plan(net, loss, min(BATCH, len(x)), params.dtype, arguments.threads)
    check_layers("minimize", plan, takes_state=True)
    state = nbprop.layer_state(plan) if plan.state_size else None
    start = _loss(plan, params, x, y, state)
    if not math.isfinite(start):
        raise Failed(f"the loss at the start is {start}, and nothing was written; scale the data")
    result = nbprop.minimize(plan, params, x, y, arguments.optimizer, maxiter=arguments.epochs, state=state)
    print(f"{arguments.optimizer}: {result.nit} iterations, {result.message}")
    if not math.isfinite(result.fun) or not (result.success or result.fun < start):
        raise Failed(f"{arguments.optimizer} did not lower the loss, and nothing was written: {result.message}")
    return None


def _loss(plan, params, x, y, state):
    """The mean loss, in batches."""
    work, total = nbprop.workspace(plan), 0.0
    for start in range(0, len(x), plan.batch):
        here = slice(start, start + plan.batch)
        total += len(x[here]) * nbprop.value(plan, params, x[here], y[here], work, state=_copy(state))
    return total / len(x)


def _copy(state):
    """A copy of layer state for one call, so that no state is carried between samples."""
    return None if state is None else state.copy()


def _report(net, params, state, loss, name, x, y, threads):
    """Print the loss on some data, and for classes the accuracy, of the network in inference mode."""
    plan = nbprop.plan(net, loss, min(BATCH, len(x)), params.dtype, threads, mode="inference")
    layers = None
    if plan.state_size:
        layers = nbprop.layer_state(plan)
        layers[: len(state)] = state[: len(layers)]
    line = f"{name} loss: {_loss(plan, params, x, y, layers):.6g}"
    if decision(loss) is not None:
        work, right, out = nbprop.workspace(plan), 0, np.empty((plan.batch, *plan.output_shape), params.dtype)
        for start in range(0, len(x), plan.batch):
            here = slice(start, start + plan.batch)
            logits = out[: len(x[here])]
            nbprop.forward(plan, params, x[here], logits, work, _copy(layers))
            right += int(
                (decision(loss)(logits) == (y[here] > 0.5 if logits.shape == y[here].shape else y[here])).sum()
            )
        line += f", {name} accuracy: {100 * right / y.size:.1f} %"
    print(line, flush=True)


def decision(loss):
    """The function from the outputs of a network to classes, by the loss that it was trained with; None for none."""
    return {"softmax_cross_entropy": lambda y: y.argmax(-1), "binary_cross_entropy": lambda y: (y > 0).astype(int)}.get(
        loss
    )


# -- predict -------------------------------------------------------------------------------------------------


def predict(arguments):
    """The command `nbprop predict`: runs the network piece by piece, and writes the outputs as they come."""
    net, params = nbprop.load(arguments.model)
    notes = _checked(arguments.model, load_notes(arguments.model))
    to_array = arguments.output is not None and Path(arguments.output).suffix == ".npy"
    if arguments.output is not None:
        if Path(arguments.output).suffix not in (".csv", ".npy") and Path(arguments.output).is_file():
            raise ValueError(f"{arguments.output}: a file of predictions must be named .csv or .npy")
        check_place(arguments.output, arguments.data, arguments.model)
    classes = _classes(arguments, net, notes) if arguments.classes else None
    source = open_data(arguments.data, arguments.choices, False, notes.get("features"))
    if source.sample_shape != net.input_shape:
        raise ValueError(
            f"{arguments.data} has samples of shape {source.sample_shape}, the network takes {net.input_shape}"
        )
    say("".join(f"{line}\n" for line in source.lines()))
    with reporting(say):
        outputs = _outputs(arguments.model, net, params, source, classes)
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
        if value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            raise ValueError(f"{model}: its notes of {name} are damaged: they must be a list of text, got {value!r}")
    if not isinstance(notes.get("loss"), str | None):
        raise ValueError(f"{model}: its note of the loss is damaged: it must be text, got {notes['loss']!r}")
    return notes


def _classes(arguments, net, notes):
    """The function from outputs to classes; to labels if the network was trained with them."""
    loss = arguments.loss or notes.get("loss")
    if loss is None:
        raise ValueError(
            f"{arguments.model} does not name the loss that it was trained with, on which --classes depends; say "
            "--loss softmax_cross_entropy or --loss binary_cross_entropy"
        )
    decide, labels = decision(loss), notes.get("labels")
    if decide is None:
        raise ValueError(f"{arguments.model} was trained with {loss}: its outputs are numbers, not classes")
    if not labels:
        return decide
    if len(labels) != max(2, math.prod(net.output_shape)):
        raise ValueError(f"{arguments.model} names {len(labels)} classes for outputs of shape {net.output_shape}")
    names = np.array(labels)
    return lambda y: names[decide(y)]


def _outputs(model, net, params, source, classes):
    """The network's outputs, piece by piece."""
    plan = nbprop.plan(net, None, BATCH, params.dtype, mode="inference")
    state = nbprop.load_state(model, plan) if plan.state_size else None
    work, out = nbprop.workspace(plan), np.empty((BATCH, *net.output_shape), params.dtype)
    for piece in source.pieces(params.dtype, net.layers[0].index_limit):
        for start in range(0, len(piece.x), BATCH):
            x = piece.x[start : start + BATCH]
            nbprop.forward(plan, params, x, out[: len(x)], work, _copy(state))
            yield out[: len(x)].copy() if classes is None else classes(out[: len(x)])


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


# -- places --------------------------------------------------------------------------------------------------


def check_place(output, *read):
    """Check, before the work, that the folder of the output can be written, and that the output is not an input."""
    path = Path(output)
    if path.is_dir():
        raise IsADirectoryError(f"{output}: it is a folder; name a file")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{output}: there is no folder {folder}")
    if (not path.exists() or path.is_file()) and not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{output}: the folder {folder} may not be written")
    for other in read:
        if path.exists() and Path(other).exists() and path.samefile(other):
            raise ValueError(f"{output} is the file that is read; name another one to write")
