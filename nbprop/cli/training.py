"""The command `nbprop train`."""

import math
from dataclasses import dataclass

import numpy as np

import nbprop
from nbprop.cli import scores
from nbprop.cli.embedding import embeddings, leave_unscaled, network_with_embeddings
from nbprop.cli.networks import read_network
from nbprop.cli.places import Failed, check_place, say
from nbprop.cli.predicting import BATCH, columns_note
from nbprop.cli.targets import Task, usual_loss
from nbprop.compiler.report import reporting
from nbprop.io.data_files import open_data
from nbprop.io.table_source import TableSource
from nbprop.losses import loss_named
from nbprop.prediction import Predictor
from nbprop.runtime.datasets import check_layers
from nbprop.solvers.methods import METHODS
from nbprop.training.job import hyperparameters

_HIDDEN = "dense:64:relu dense:64:relu"  # what a network has inside if no other is asked for


@dataclass
class Trained:
    """A network that has been trained, with its layer state, and the losses of the epochs if it has had some."""

    net: nbprop.Network
    params: np.ndarray
    state: np.ndarray | None = None
    curve: list | None = None
    failure: str | None = None  # why the training failed, although there is a result


def train(arguments):
    """The command `nbprop train`."""
    check_place(arguments.output, arguments.data)
    if arguments.loss is not None:
        loss_named(arguments.loss)  # refuses an unknown name
    if arguments.optimizer not in METHODS:
        hyperparameters("train", arguments.optimizer, arguments.lr, None, {})  # refuses an unknown name
    source = open_data(arguments.data, arguments.choices, True)
    net, limit = None, 0
    if arguments.net is not None:
        net = read_network(arguments.net, source.sample_shape)
        limit = net.layers[0].index_limit
    source.fills_later = isinstance(source, TableSource) and arguments.choices.on_missing == "fill" and not limit
    print(*source.lines(), sep="\n")
    data = source.read(np.dtype(arguments.dtype), limit)
    print(*source.lines_after(), sep="\n", flush=True)
    loss = arguments.loss or usual_loss(net, data, arguments.task)
    embedded = embeddings(source, arguments.embed, arguments.net is None)
    net = _network(arguments, source, data, net, loss, embedded)
    task = Task(net, loss, source, data, data.x.dtype)
    task.embedded = embedded
    print(f"target: {', '.join(source.target_names)}, {task.described()}")
    metrics = scores.metrics_for(arguments.metric, task.of_classes) if task.scored or arguments.metric else []
    order = np.random.default_rng(arguments.seed).permutation(len(data.x))
    held = round(len(order) * arguments.held_out)
    if held == len(order):
        raise ValueError(f"--held-out {arguments.held_out:g} of {len(order)} samples leaves none to learn from")
    test, learn = order[:held], order[held:]
    print(
        f"{len(learn):,} samples to learn from, {held:,} held out; {net.n_params:,} parameters, loss {loss}", flush=True
    )
    with reporting(say):
        _cross_validate(task, learn, metrics, arguments)
        x, means = task.samples(learn)
        trained = _train_network(task, x, task.y[learn], arguments)
        notes = {"loss": loss, "labels": data.labels, "features": source.features, "target": source.target_names}
        if isinstance(source, TableSource):
            notes["columns"] = columns_note(source.known(means))
        nbprop.save(arguments.output, net, trained.params, trained.state, notes=notes)
        guess = _report(task, trained, "training", x, task.y[learn], metrics, arguments.threads)
        truth = task.y[learn]
        if held:
            truth, (x, _) = task.y[test], task.samples(test, means)
            guess = _report(task, trained, "held-out", x, truth, metrics, arguments.threads)
        _print_table(task, truth, guess, "held out" if held else "training")
    print(f"wrote {arguments.output}")
    _draw(arguments.picture, task, trained, truth, guess, "held out" if held else "training")
    if trained.failure:
        raise Failed(trained.failure)


def _network(arguments, source, data, net, loss, embedded):
    """The network to train: the one that was asked for, or one for this target; with scaling and embeddings."""
    scale, words = arguments.scale, arguments.net
    kind = loss_named(loss)
    if net is None:
        scale = True if scale is None else scale
        outputs = len(data.labels) if data.labels is not None else math.prod(data.y.shape[1:])
        if data.labels is None and kind.has_classes and kind.target((2,))[1]:
            outputs = int(data.y.max()) + 1
        elif kind.kind == "binary_cross_entropy" and data.labels is not None:
            outputs = 1
        outputs = 2 * outputs if kind.kind == "gaussian_nll" else outputs
        words = f"{'flatten ' if len(source.sample_shape) > 1 else ''}{_HIDDEN} dense:{outputs}"
    elif not scale and not embedded:
        return net
    if scale:
        plain = network_with_embeddings(words, source.sample_shape, embedded)
        rescaled = not kind.has_classes and kind.target(plain.output_shape)[0] == plain.output_shape
        words = f"standardize {words}" + (" rescale" if rescaled else "")
    if arguments.net is None:
        print(f"network: {words} (--net takes another)")
    for one in embedded:
        print(f"embedding: {one.name}, {one.categories} categories as {one.units} numbers (--embed 0: ones and zeros)")
    return network_with_embeddings(words, source.sample_shape, embedded)


# -- training ------------------------------------------------------------------------------------------------


def _train_network(task, x, y, arguments):
    """A new network, trained on samples; `Trained`."""
    net = task.net
    params = nbprop.init(net, arguments.seed, x.dtype if x.dtype.kind == "f" else np.dtype(arguments.dtype))
    if not nbprop.trainable_mask(net).all():  # a network that is given numbers: those of scaling
        nbprop.fit_scaling(net, params, x, y)
        leave_unscaled(net, params, task.embedded)
    train = _minimize if arguments.optimizer in METHODS else _fit
    return train(net, params, x, y, task.loss, arguments)


def _fit(net, params, x, y, loss, arguments):
    """Train by mini-batches; a `Trained`."""
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
    found = Trained(net, params, state if state.size else None, curve=history.loss)
    if history.stopped == "diverged" and history.best_epoch is None:
        raise Failed(f"training diverged and nothing was written: {history.message}, or scale the data")
    if history.stopped == "diverged":
        found.failure = f"training diverged: {history.message}, or scale the data"
    return found


def _minimize(net, params, x, y, loss, arguments):
    """Train by a full-batch method; a `Trained`."""
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
    return Trained(net, params)


def _cross_validate(task, learn, metrics, arguments):
    """Train on all folds of the samples but one, for each in turn; print the mean results on the one left out."""
    if not arguments.cv:
        return
    if arguments.cv > len(learn):
        raise ValueError(f"--cv {arguments.cv} needs as many samples to learn from, got {len(learn)}")
    found = []
    for fold in range(arguments.cv):
        rest = np.concatenate([learn[k :: arguments.cv] for k in range(arguments.cv) if k != fold])
        x, means = task.samples(rest)
        trained = _train_network(task, x, task.y[rest], arguments)
        if trained.failure:
            raise Failed(f"fold {fold + 1} of --cv {arguments.cv}: {trained.failure}")
        x, _ = task.samples(learn[fold :: arguments.cv], means)
        loss, values, _ = _scores(task, trained, x, task.y[learn[fold :: arguments.cv]], metrics, arguments.threads)
        found.append([loss, *values])
    columns = zip(["loss", *metrics], np.mean(found, 0), np.std(found, 0), strict=True)
    line = ", ".join(f"{name} {scores.shown(name, mean)} (+- {scores.shown(name, std)})" for name, mean, std in columns)
    print(f"cross-validation, {arguments.cv} folds: {line}", flush=True)


# -- reports -------------------------------------------------------------------------------------------------


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


def _scores(task, trained, x, y, metrics, threads):
    """(the mean loss, values of the metrics, what is predicted) on samples, in inference mode."""
    predictor = Predictor(
        "train", trained.net, trained.params, min(BATCH, len(x)), state=trained.state, threads=threads
    )
    out = np.empty((len(x), *predictor.shape), predictor.dtype)
    predictor(x, out)
    plan = nbprop.plan(trained.net, task.loss, min(BATCH, len(x)), out.dtype, threads, mode="inference")
    layers = None
    if plan.state_size:
        layers = nbprop.layer_state(plan)
        layers[: len(trained.state)] = trained.state[: len(layers)]
    truth, guess = task.truth(y), task.guess(out)
    values = [scores.score(name, truth, guess) for name in metrics]
    return _loss(plan, trained.params, x, y, layers), values, guess


def _report(task, trained, name, x, y, metrics, threads):
    """Print the loss and the metrics on some samples; returns what is predicted."""
    loss, values, guess = _scores(task, trained, x, y, metrics, threads)
    parts = [f"{name} loss: {loss:.6g}"]
    parts += [f"{name} {kind}: {scores.shown(kind, value)}" for kind, value in zip(metrics, values, strict=True)]
    print(", ".join(parts), flush=True)
    return guess


def _print_table(task, truth, guess, name):
    """What was taken for what."""
    if task.labels is not None:
        lines = scores.confusion_lines(scores.confusion(task.truth(truth), guess, task.labels), task.labels)
        print(
            *(f"{name}: {line}" if at == 0 else f"{'':{len(name)}}  {line}" for at, line in enumerate(lines)), sep="\n"
        )


def _draw(path, task, trained, truth, guess, name):
    """The picture of the report."""
    if path is None or not task.scored:
        return
    if scores.draw(path, trained.curve, task.truth(truth), guess, task.labels, name):
        print(f"wrote {path}")
    else:
        say("no picture: matplotlib is not installed; pip install 'nbprop[plot]'\n")
