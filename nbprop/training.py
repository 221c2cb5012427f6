"""`fit`: train a network on data, in place.

Here arguments are checked; job.py lays out what compiled code works on, running.py drives it.
"""

import numpy as np

from nbprop import clipping
from nbprop import epochs as words
from nbprop import job as on_host
from nbprop.job import hyperparameters
from nbprop.network import Network, positive
from nbprop.plan import plan as make_plan
from nbprop.running import Run


def fit(
    net,
    params,
    x,
    target,
    loss,
    optimizer="adam",
    lr=None,
    batch=128,
    epochs=10,
    shuffle=True,
    seed=0,
    weights=None,
    validation=None,
    schedule=None,
    clip_norm=None,
    clip_value=None,
    weight_decay=None,
    decay_mask=None,
    trainable=None,
    threads=1,
    patience=None,
    callback=None,
    checkpoint=None,
    checkpoint_seconds=10.0,
    resume=False,
    progress=None,
    state=None,
    lengths=None,
    **others,
):
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
        "adam", "adamw", "sgd", "momentum", "nesterov", "rmsprop", "adagrad", "rprop" or "lion".
    lr : float
        Learning rate; the optimizer's own default when None.
    batch : int
        Samples a step; the last batch of an epoch may be smaller.
    epochs : int
    shuffle : bool
        Take the samples in a new order each epoch, by a generator keyed by (seed, epoch).
    seed : int
    weights : (n,) array or None
        Sample weights; a batch's loss is sum(w l) / sum(w).
    validation : (x, target), (x, target, weights), (x, target, weights, lengths) or None
        Data to compute a loss on after each epoch, as in use: without dropout, with running statistics.
    schedule : str, function or None
        "constant", "step", "cosine", "one_cycle" or "warm_up" for the whole run (see `schedules.named`), or a function
        of the step, from 0, that returns the learning rate.
    clip_norm, clip_value : float or None
        Clip the gradient by its Euclidean norm, or each element, before the update.
    weight_decay : float or None
        The optimizer's own default when None.
    decay_mask, trainable : (net.n_params,) bool or uint8 arrays, or None
        Which parameters decay, and which are trained at all; all when None.
    threads : int
        The bits do not depend on it.
    patience : int or None
        Stop after so many epochs without a lower loss, and go back to the best parameters.
    callback : function or None
        Called as callback(history) after each epoch; training stops when it returns True.
    checkpoint : path or None
        A file to write everything to, every `checkpoint_seconds` and at the end, in one step each time.
    resume : bool
        Go on from the file `checkpoint` where it exists: a run that was killed repeats the uninterrupted one bit for
        bit.
    progress : bool or None
        Show a bar with tqdm; None: when it is installed and the output is a terminal.
    state : array or None
        Layer state, updated, for a network that has some: `layer_state(plan)` of a plan with the same batch. It goes
        with the parameters: where these are the best epoch's, it is the best epoch's too.
    lengths : (n,) integers or None
        How many positions of each sample count, for networks over sequences.
    **others
        The optimizer's own arguments, such as beta1=0.8.

    Returns
    -------
    History
        Losses, learning rates and times for each epoch, and why training stopped. `params` then hold the last step's
        result; with `patience`, the best epoch's. A loss (or clipped norm) that is not finite stops the training at
        once, with the best epoch's parameters (the initial ones before the first epoch's end).

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, NaN in the data, a checkpoint of another run; nothing has been written then.
    KeyboardInterrupt
        On Ctrl-C. `params` then hold the best epoch's parameters with `validation`, else the last step's; a
        checkpoint has been written where asked for; the exception's `history` is the history so far.

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
    place = _place_of(params)
    params = place.check_vector("fit", "params", params, net.n_params, (np.float32, np.float64), True)
    batch, epochs = positive("batch", batch), positive("epochs", epochs)
    patience = None if patience is None else positive("patience", patience)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise ValueError(f"fit: seed must be an integer in 0..2**63 - 1, got {seed!r}")
    samples = place.count(x)
    plan = make_plan(net, loss, max(1, min(batch, samples)), params.dtype, threads, target=place.TARGET)
    data = place.check_data("fit", plan, x, target, weights, lengths)
    held_out = None if validation is None else _check_validation(place, plan, validation)
    values = hyperparameters(optimizer, lr, weight_decay, others)
    masks = [_check_mask(place, net, *named) for named in (("decay_mask", decay_mask), ("trainable", trainable))]
    layers = place.check_state(plan, state, samples)
    place.check_separate("params", params, [*data, *masks, layers, *(held_out or ())])
    place.check_separate("state", layers, [*data, *masks, *(held_out or ())])
    job = place.Job(plan, params, data, plan.batch, optimizer, values, *masks)
    if layers is not None:
        job.layer_state(layers)
    if shuffle:
        job.shuffle(int(seed))
    _clip(job, clip_value, clip_norm)
    identity = {
        "network": net.to_config(),
        "loss": repr(plan.loss),
        "optimizer": optimizer,
        "dtype": str(params.dtype),
        "samples": samples,
        "batch": plan.batch,
        "shuffle": bool(shuffle),
        "seed": int(seed),
    }
    run = Run(job, epochs, held_out, patience, callback, checkpoint, checkpoint_seconds, identity)
    run.schedule(schedule, float(values["lr"]))
    if resume:
        run.resume()
    return run.train(progress)


# -- arguments -----------------------------------------------------------------------------------------------


def _place_of(params):
    """Where params lie decides what checks arguments and trains: job.py, or its counterpart for the device."""
    if isinstance(params, np.ndarray) or not (
        hasattr(params, "__cuda_array_interface__") or hasattr(params, "__dlpack__")
    ):
        return on_host
    from nbprop import cuda

    cuda.require()
    from nbprop.cuda import fitting

    return fitting


def _check_validation(place, plan, validation):
    if not isinstance(validation, (tuple, list)) or len(validation) not in (2, 3, 4):
        raise TypeError(
            "fit: validation must be (x, target), (x, target, weights) or (x, target, weights, lengths), got "
            f"{type(validation).__name__}"
        )
    return place.check_data("fit", plan, *validation, prefix="validation ")


def _check_mask(place, net, name, mask):
    return None if mask is None else place.check_vector("fit", name, mask, net.n_params, (bool, np.uint8), False)


def _clip(job, clip_value, clip_norm):
    for name, limit, native, word, row in (
        ("clip_value", clip_value, clipping.CLIP_VALUE, words.CLIP_VALUE, words.CLIP_VALUE_ROW),
        ("clip_norm", clip_norm, clipping.CLIP_NORM, words.CLIP_NORM, words.CLIP_NORM_ROW),
    ):
        if limit is not None:
            if not isinstance(limit, (int, float, np.integer, np.floating)) or not limit > 0:
                raise ValueError(f"fit: {name} must be a number above 0, got {limit!r}")
            job.clip(native, word, row, float(limit))
