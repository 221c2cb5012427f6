"""`fit`: train a network on data, in place.

The arguments are checked here; job.py lays out what compiled code works on; trainer.py drives it.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nbprop import backends
from nbprop.callbacks import Callback, check_callbacks
from nbprop.cluster.parts import check_transport, on_ranks, total_samples
from nbprop.cluster.ranks import processor
from nbprop.io.networks import digest
from nbprop.io.progress import check_progress
from nbprop.losses import Loss
from nbprop.lowering.plan import plan as make_plan
from nbprop.lowering.plan import plan_like
from nbprop.networks.network import Network
from nbprop.optimizers import clipping
from nbprop.optimizers.proximal import PROXIMAL
from nbprop.optimizers.update_rules import RULES
from nbprop.runtime import arguments as arg
from nbprop.schedules import Plateau
from nbprop.system import warnings_of_the_end
from nbprop.training import checkpoint as checkpoints
from nbprop.training import identity as identities
from nbprop.training import job as on_host
from nbprop.training import loop as words
from nbprop.training.averaging import check_average
from nbprop.training.history import History
from nbprop.training.job import hyperparameters
from nbprop.training.job_on_ranks import JobOnRanks
from nbprop.training.measuring import counts_apart
from nbprop.training.metrics import check_metrics
from nbprop.training.rates import rate_factors
from nbprop.training.trainer import Settings, Trainer
from nbprop.validation import check_callable, check_flag, check_integer, check_number, check_seed


@on_ranks
def fit(
    net: Network,
    params: NDArray[Any],
    x: NDArray[Any],
    target: NDArray[Any],
    loss: str | Loss,
    optimizer: str = "adam",
    lr: float | None = None,
    batch: int = 128,
    epochs: int = 10,
    shuffle: bool = True,
    seed: int = 0,
    weights: NDArray[Any] | None = None,
    validation: tuple[Any, ...] | None = None,
    schedule: str | Callable[[int], float] | Plateau | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    weight_decay: float | None = None,
    decay_mask: NDArray[Any] | None = None,
    trainable: NDArray[Any] | None = None,
    threads: int = 1,
    patience: int | None = None,
    callback: Callable[[History], Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 10.0,
    resume: bool = False,
    progress: bool | None = None,
    state: NDArray[Any] | None = None,
    lengths: NDArray[Any] | None = None,
    optimizer_state: NDArray[Any] | None = None,
    first_step: int = 0,
    allow_changed: tuple[str, ...] = (),
    comm: Any = None,
    pieces: int = 64,
    data: str = "whole",
    shard_update: bool = False,
    average: float | Literal["swa"] | None = None,
    average_start: int = 0,
    metrics: Sequence[str | Callable[..., float]] | None = None,
    class_weight: NDArray[Any] | Literal["balanced"] | None = None,
    accumulate: int = 1,
    lr_scale: NDArray[Any] | dict[str, float] | None = None,
    callbacks: Sequence[Callback | Callable[[History], Any]] | None = None,
    l2: float = 0.0,
    l1: float = 0.0,
    penalized: NDArray[np.bool_] | None = None,
    max_norm: float | None = None,
    transport: str | None = None,
    **others: Any,
) -> History:
    """Train a network by mini-batches; updates `params` in place.

    Parameters
    ----------
    net : Network
    params : (net.n_params,) float32 or float64 array, updated; its dtype is that of the training. With a device array
        everything else is one, too, and training runs there (docs/cuda.md)
    x : (n, *net.input_shape) array of the same dtype (integers for an embedding); may be a np.memmap
    target : (n, *net.output_shape) array of the same dtype; integers (n, *net.output_shape[:-1]) for classes
    loss : str or loss, as `plan` takes it
    optimizer : str
        "adam", "adamw", "sgd", "momentum", "nesterov", "rmsprop", "adagrad", "rprop", "lion", "amsgrad", "radam",
        "nadam", "adadelta" or "schedule_free_adamw".
    lr : float
        Learning rate; the optimizer's own default when None.
    batch : int
        Samples a step; the last batch of an epoch may be smaller.
    epochs : int
    shuffle : bool
        Whether to shuffle the samples before each epoch, with a generator keyed by (seed, epoch).
    seed : int
    weights : (n,) array or None
        Sample weights; a batch's loss is sum(w l) / sum(w).
    validation : (x, target), (x, target, weights), (x, target, weights, lengths) or None
        Data to compute a loss on after each epoch, in inference mode: without dropout, with running statistics, and
        without l2 and l1.
    schedule : str, function, `schedules.Plateau` or None
        "constant", "step", "cosine", "one_cycle", "warm_up", "polynomial" or "warm_restarts" for the whole run (see
        `schedules.named`), "plateau", or a function of the step, from 0, that returns the learning rate; with a
        checkpoint, up to 1,000 rates are evaluated beforehand.
    clip_norm, clip_value : float or None
        Clip the gradient by its Euclidean norm, or each element, before the update.
    weight_decay : float or None
        The optimizer's own default when None.
    decay_mask, trainable : (net.n_params,) bool or uint8 arrays, or None
        Which parameters decay, and which are trained at all; all when None. Numbers that layers are given, such as
        those of `standardize`, are not trained in any case (`trainable_mask`).
    threads : int
        The bits do not depend on it.
    patience : int or None
        Stop after this many epochs without a lower loss, and restore the best parameters. Without validation, the loss
        is that of all training data, computed after each epoch, which takes about a third more time.
    callback : function or None
        Called as callback(history) after each epoch; training stops when it returns True.
    checkpoint : path or None
        A file to write the whole state to, atomically, every `checkpoint_seconds` and at the end. Whether its folder
        can be written is tried before the first epoch; a later write that fails is a warning, and is tried again.
    resume : bool
        Continue from the file `checkpoint` if it exists: a run that was killed then gives the result of an
        uninterrupted one, bit for bit. All that the result depends on must be unchanged: network, loss, data,
        hyperparameters, rates, masks, seed. `epochs` may be larger, if the rates of the steps done so far do not depend
        on it.
    progress : bool or None
        Show a bar with tqdm; None: when it is installed and the output is a terminal.
    state : array or None
        Layer state, updated, for a network that has some: `layer_state(plan)` of a plan with the same batch. It always
        belongs to the parameters: if these are the best epoch's, so is the state.
    lengths : (n,) integers or None
        The length of each sample, for networks over sequences.
    optimizer_state : array or None
        The state of the optimizer, updated: `optimizer_state(optimizer, net.n_params, dtype)`, or that in the history
        of an earlier fit, with first_step=history.next_step. Several fits are then equivalent to one.
    first_step : int
        The number of the first step, for training that continues: it keys schedule functions, dropout, Adam's bias
        corrections and, divided by the steps per epoch, the order of samples. A schedule by name spans this call.
    allow_changed : tuple of str
        What may have changed in a resumed run, such as ("lr",) or ("x", "target"); errors name it.
    average : float, "swa" or None
        Use the mean of the parameters instead of the last ones: it is what is measured, kept as best and returned. A
        decay such as 0.999: a = decay a + (1 - decay) p after each step. "swa": the mean over the ends of epochs, for a
        rate that stays high. Running statistics are averaged, too.
    average_start : int
        Epochs before the mean begins.
    metrics : list of str or functions, or None
        What to compute at the end of each epoch, into `history.metrics`, of the outputs for the validation data
        (without, for all training data): "accuracy" and "auc" under a cross-entropy, "r2" under another loss, or a
        function of (y, target), host arrays of all samples, under its name.
    class_weight : (classes,) float array, "balanced" or None
        Factors of the samples' weights in training, by their class; "balanced": n / (classes * count of each).
    accumulate : int
        Batches whose gradients make one update, by their weighted mean, as one batch of all would, in the memory of
        one. The steps of schedules, callbacks and dropout count batches. Not where batches of equal weights differ in
        what their means are over: with `lengths` of positions, or a loss that leaves targets out.
    lr_scale : dict, (net.n_params,) array or None
        Factors of the learning rate, by the beginning of names in `views`, as in {"0.dense": 0.1, "0.dense.bias": 1.0}
        (the longest counts), or of each parameter. Not with schedule_free_adamw.
    callbacks : list of `callbacks.Callback` or functions, or None
        Called after epochs, and as often as they ask between (`nbprop.callbacks`, with loggers to TensorBoard, MLflow
        and Weights & Biases).
    l2, l1, penalized
        Penalties, which belong to the loss as `plan` has them: losses of training data in the history have them, too.
        l2's gradient is part of the gradient, as weight decay is (not as that of adamw). l1 is no part of it: each
        update ends in a proximal step, which sets parameters to 0 (optimizers/proximal.py; orthant-wise for rprop,
        lion and adadelta, whose steps do not depend on the gradient's size). Not with schedule_free_adamw.
    max_norm : float or None
        After each update, scale the incoming weights of each unit so that their norm is at most this
        (`nbprop.max_norm`); units of which a weight is not trained are left alone. Not with schedule_free_adamw.
    comm : communicator of mpi4py, or None
        Several processes train together (docs/cluster.md): all ranks make the same call, each computes its pieces of
        every batch, and all end with the same parameters. SIGTERM and SIGUSR1 write a checkpoint, if there is one, and
        end with status 75.
    pieces : int
        With comm, in how many a batch is cut, by sizes alone; their gradients are summed in one binary tree. The bits
        depend on pieces, and not on the ranks.
    data : "whole" or "split"
        With comm, whether x, target, weights and validation hold all samples on each rank, or its part (`rank_rows`).
        The samples of a piece are then shuffled among themselves.
    shard_update : bool
        With comm, whether each rank updates a part of the parameters and holds this part of the optimizer's state
        alone, with the same bits. `history.optimizer_state` is then None; a checkpoint has all of it.
    transport : "host", "mpi", "nccl" or None
        With comm and device arrays, how gradients travel between devices: copied through host memory, by a CUDA-aware
        MPI, or by NCCL (docs/cluster.md). None: "mpi" if the MPI says that it is CUDA-aware, else "host".
        `history.transport` says which. The bits do not depend on it.
    **others
        The optimizer's own arguments, such as beta1=0.8.

    Returns
    -------
    History
        Losses, learning rates and times of each epoch, and why training stopped. `params` then hold the result of the
        last step; with `patience`, that of the best epoch. The best epoch is that with the lowest loss measured after
        it, with its parameters, in inference mode: `best_loss`. A loss, clipped norm or parameter that is not finite
        ends the training as "diverged"; params then are those with the lowest loss, so measured, among the initial ones
        and those kept from earlier epochs.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, NaN or infinity in the data, a checkpoint that is damaged or of another run;
        nothing has been written then.
    OSError
        When `checkpoint` cannot be written, or not be read; nothing has been written then.
    KeyboardInterrupt
        On Ctrl-C, after the current step. `params` then hold the parameters of the best epoch with `validation` or
        `patience`, else those of the last step; a checkpoint has been written if asked for. This exception, and any
        other after the first step, has the history so far as its `history`.

    Examples
    --------
    >>> import nbprop, nbprop.data, numpy as np
    >>> images, labels = nbprop.data.digits()
    >>> net = nbprop.network((64,), nbprop.dense(32, activation="tanh"), nbprop.dense(10))
    >>> params = nbprop.init(net, seed=0, dtype=np.float32)
    >>> history = nbprop.fit(net, params, images, labels, "softmax_cross_entropy", lr=0.01, epochs=5)
    >>> history.stopped, history.loss[-1] < 0.3
    ('epochs', True)
    """
    if not isinstance(net, Network):
        raise TypeError(f"fit: net must be what nbprop.network(...) returns, got {type(net).__name__}")
    batch, epochs = (
        check_integer("fit: batch", batch, high=math.inf),
        check_integer("fit: epochs", epochs, high=math.inf),
    )
    patience = None if patience is None else check_integer("fit: patience", patience, high=math.inf)
    threads, seed = check_integer("fit: threads", threads, 1, 2**16 - 1), check_seed("fit: seed", seed)
    shuffle, resume = check_flag("fit: shuffle", shuffle), check_flag("fit: resume", resume)
    clips = {"clip_value": clip_value, "clip_norm": clip_norm}
    clips = {name: _limit(name, limit) for name, limit in clips.items()}
    seconds = check_number("fit: checkpoint_seconds", checkpoint_seconds, ends="[]")
    called = check_callbacks(check_callable("fit: callback", callback, or_none=True), callbacks)
    accumulate = check_integer("fit: accumulate", accumulate, 1, words.MOST_RATES // 2)
    sharded = check_flag("fit: shard_update", shard_update)
    if sharded and comm is None:
        raise ValueError("fit: shard_update=True is for several ranks; pass comm, such as MPI.COMM_WORLD")
    check_progress("fit", progress)
    values = hyperparameters("fit", optimizer, lr, weight_decay, others)
    average_start = min(check_integer("fit: average_start", average_start, 0), epochs)
    averages = check_average(average, average_start, optimizer)
    if resume and checkpoint is None:
        raise ValueError("fit: resume=True needs checkpoint=, the path of the file to resume from")

    place = _place_of(params)
    params = place.check_vector("fit: params", params, net.n_params, (np.float32, np.float64), True)
    check_transport("fit", transport, comm, place is not on_host)
    samples, offset = place.count(x), 0
    if comm is not None:
        samples, offset = total_samples(comm, samples, batch)
    if loss is None:
        raise ValueError("fit: loss must be a loss or its name, got None")
    plan = make_plan(
        net,
        loss,
        max(1, min(batch, samples)),
        params.dtype,
        threads,
        target=place.TARGET,
        l2=l2,
        l1=l1,
        penalized=penalized,
    )
    plan = _with_proximal_steps(plan, optimizer)
    columns = place.check_data("fit", plan, x, target, weights, lengths)
    if class_weight is not None:
        columns = place.with_class_weights("fit", plan, columns, class_weight)
    measured = check_metrics(metrics, plan.loss)
    held_out = None if validation is None else _check_validation(place, plan, validation)
    masks = [_check_mask(place, net, *named) for named in (("decay_mask", decay_mask), ("trainable", trainable))]
    masks[1] = place.trained_of(net, masks[1])
    layers = place.check_state(plan, state, samples)
    remembered = _check_optimizer_state(place, optimizer, optimizer_state, params)
    first_step = _check_steps(place, optimizer, remembered, first_step, epochs * -(-samples // plan.batch))
    for name, written in (("params", params), ("state", layers), ("optimizer_state", remembered)):
        place.check_finite("fit", name, written)
    read = [*columns, *masks, *(held_out or ())]
    place.check_separate("params", params, [*read, layers, remembered])
    place.check_separate("state", layers, [*read, remembered])
    place.check_separate("optimizer_state", remembered, read)

    make = place.Job
    if comm is not None:
        _check_for_ranks(comm, plan, layers, class_weight, measured, accumulate)
        if sharded:
            _check_for_shards(optimizer, remembered)
        agreed = _settings_of(plan, params, epochs, seed, shuffle, optimizer, values, first_step, patience, clips)
        agreed |= {"shard_update": sharded, "average": (average, average_start), "max_norm": max_norm}
        agreed |= {"resume": resume, "whether there is a checkpoint": checkpoint is not None}
        agreed |= {"schedule": schedule if isinstance(schedule, str) else type(schedule).__name__}
        given = {"weights": columns[2], "lengths": columns[3], "validation data": held_out}
        agreed |= {f"whether there are {name}": value is not None for name, value in given.items()}
        named = {"decay_mask": masks[0], "trainable": masks[1], "lr_scale": lr_scale, "optimizer_state": remembered}
        comm.agree(agreed | {name: _comparable(value) for name, value in named.items()})
        make = functools.partial(JobOnRanks, comm, samples, offset, sharded)
        if place is not on_host:
            on_device = backends.get(place.TARGET).job_on_ranks
            make = functools.partial(on_device, comm, transport, samples, offset, sharded)
        progress = progress if comm.rank == 0 else False
    job = make(plan, params, columns, plan.batch, optimizer, values, *masks, remembered)
    if layers is not None:
        job.layer_state(layers)
    if accumulate > 1:
        if counts_apart(plan, columns[3]):
            raise ValueError(
                "fit: accumulate weighs batches by their samples, so it does not go with lengths of positions in the "
                "mean, nor with a loss that leaves targets out"
            )
        job.accumulate(accumulate)
    if lr_scale is not None:
        if optimizer == "schedule_free_adamw":
            raise ValueError("fit: lr_scale does not go with schedule_free_adamw, whose state depends on lr")
        job.scale_rates(rate_factors(net, params.dtype, lr_scale), optimizer)
    if max_norm is not None:
        if optimizer == "schedule_free_adamw":
            raise ValueError("fit: max_norm does not go with schedule_free_adamw, which averages what is not projected")
        job.project(check_number("fit: max_norm", max_norm, ends="()"))
    if shuffle:
        job.shuffle(seed)
    _clip(job, clips)
    path = checkpoints.file_to_write("fit", "checkpoint", checkpoint, job.writes)
    if comm is not None and path is not None:
        comm.heed(*warnings_of_the_end())
    settings = Settings(
        epochs, first_step, held_out, patience, called, path, seconds, averages, average_start, measured
    )
    trainer = Trainer(job, settings)
    trainer.schedule(schedule, values["lr"])
    if path is not None:
        fixed = {name: value for name, value in values.items() if name != "lr"}  # the rates are compared themselves
        known = {"optimizer": optimizer, "shuffle": shuffle, "seed": seed, "patience": patience} | clips | fixed
        if average is not None:
            known |= {"average": average, "average_start": average_start}
        if accumulate > 1:
            known["accumulate"] = accumulate
        if max_norm is not None:
            known["max_norm"] = max_norm
        if lr_scale is not None:
            known["lr_scale"] = identities.digest_of(job, job.factors)
        trainer.identify(_identity(job, known, held_out, masks))
    allowed = identities.check_allowed(allow_changed, trainer.identity if resume else None)
    if resume:
        trainer.resume(allowed)
    return trainer.train(progress)


# -- several ranks ---------------------------------------------------------------------------------------------


def _check_for_ranks(ranks, plan, layers, class_weight, metrics, accumulate):
    """Refuse what would depend on the ranks, or needs all data."""
    if plan.min_samples > 0:
        raise ValueError(
            f"fit: layer {plan.coupling} computes statistics over a batch, which pieces do not have; use layernorm or "
            "groupnorm with comm"
        )
    if layers is not None:
        raise ValueError("fit: a network with layer state cannot be trained with comm")
    if accumulate > 1:
        raise ValueError("fit: accumulate does not go with comm, where pieces= cuts a batch")
    if ranks.split and (metrics or class_weight is not None):
        name = "metrics" if metrics else "class_weight"
        raise ValueError(f"fit: {name} need all samples on each rank; pass data='whole'")


def _check_for_shards(optimizer, state):
    """Refuse what needs the optimizer's whole state on each rank."""
    if optimizer == "schedule_free_adamw":
        raise ValueError("fit: shard_update does not go with schedule_free_adamw, whose mean needs the whole state")
    if state is not None:
        raise ValueError("fit: shard_update does not go with optimizer_state; resume from a checkpoint instead")


def _comparable(value):
    """A setting as ranks compare it: an array, on the host or the device, by its digest."""
    value = value.to_host() if hasattr(value, "to_host") else value
    return digest({"array": value}) if isinstance(value, np.ndarray) else repr(value)


def _settings_of(plan, params, epochs, seed, shuffle, optimizer, values, first_step, patience, clips):
    """What must be the same on all ranks, by the names that an error uses."""
    return processor() | {
        "where it runs": plan.target,
        "the network": repr(plan.net),
        "the loss": f"{plan.loss!r}, {plan.penalty!r}",
        "dtype": str(plan.dtype),
        "batch": plan.batch,
        "epochs": epochs,
        "seed": seed,
        "shuffle": shuffle,
        "optimizer": (optimizer, sorted(values.items())),
        "first_step": first_step,
        "patience": patience,
        "clipping": sorted(clips.items()),
        "params (start all ranks from the same seed)": digest(
            {"params": params if isinstance(params, np.ndarray) else params.to_host()}
        ),
    }


# -- arguments -----------------------------------------------------------------------------------------------


def _with_proximal_steps(plan, optimizer):
    """A plan whose gradients leave l1 to the optimizer's proximal steps; the plan itself without l1."""
    if plan.penalty is None or plan.penalty.l1 == 0:
        return plan
    if optimizer not in PROXIMAL:
        able = ", ".join(PROXIMAL)
        raise ValueError(
            f"fit: l1 does not go with {optimizer}, which returns a mean of its steps, so that no parameter would be "
            f"exactly 0; use one of {able}"
        )
    return plan_like(plan, penalty=replace(plan.penalty, smooth=True))


def _place_of(params):
    """The module that checks arguments and trains, by where params are: job.py, or its counterpart for the device."""
    return backends.get("cuda").training if backends.is_elsewhere(params) else on_host


def _check_validation(place, plan, validation):
    if not isinstance(validation, (tuple, list)) or len(validation) not in (2, 3, 4):
        raise TypeError(
            "fit: validation must be (x, target), (x, target, weights) or (x, target, weights, lengths), got "
            f"{type(validation).__name__}"
        )
    return place.check_data("fit", plan, *validation, prefix="validation ")


def _check_mask(place, net, name, mask):
    return None if mask is None else place.check_vector(f"fit: {name}", mask, net.n_params, (bool, np.uint8), False)


def _check_optimizer_state(place, optimizer, state, params):
    if state is None:
        return None
    size = RULES[optimizer].slots * params.size
    return place.check_vector("fit: optimizer_state", state, size, (params.dtype,), True)


def _check_steps(place, optimizer, remembered, first_step, steps):
    """The number of the first step, which must match the state of the optimizer."""
    first_step = check_integer("fit: first_step", first_step, 0, math.inf)
    if first_step + steps >= arg.STEPS:
        raise ValueError(f"fit: epochs ask for steps up to number {first_step + steps}, which must be below 2**40")
    if first_step > 0 and remembered is None and RULES[optimizer].slots > 0:
        raise TypeError(
            "fit: first_step needs optimizer_state, the state after the earlier steps: history.optimizer_state"
        )
    if first_step == 0 and remembered is not None and place.any_set(remembered):
        raise ValueError("fit: optimizer_state is that of earlier steps; pass first_step=history.next_step with it")
    return first_step


def _identity(job, known, held_out, masks):
    """What the result depends on, except the rates: numbers and names, and digests of arrays."""
    plan, data = job.plan, dict(zip(("x", "target", "weights", "lengths"), job.data, strict=True))
    arrays = dict(zip(("decay_mask", "trainable"), masks, strict=True))
    return {
        "network": plan.net.to_config(),
        "code": identities.code_of(plan),
        "loss": repr(plan.loss) if plan.penalty is None else f"{plan.loss!r}, {plan.penalty!r}",
        "dtype": str(plan.dtype),
        "samples": int(job.words[words.N]),
        "batch": plan.batch,
        **known,
        **{name: job.digest_of_samples(array) for name, array in data.items()},
        **{name: identities.digest_of(job, array) for name, array in arrays.items()},
        "validation": job.digest_of_samples(*(held_out or ())),
    }


def _limit(name, limit):
    return None if limit is None else check_number(f"fit: {name}", limit, ends="()")


def _clip(job, clips):
    for name, native, word, row in (
        ("clip_value", clipping.CLIP_VALUE, words.CLIP_VALUE, words.CLIP_VALUE_ROW),
        ("clip_norm", clipping.CLIP_NORM, words.CLIP_NORM, words.CLIP_NORM_ROW),
    ):
        if clips[name] is not None:
            job.clip(native, word, row, clips[name])
