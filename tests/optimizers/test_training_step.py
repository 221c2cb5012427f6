"""`train_step`: the bits of value_and_grad and the optimizer's own call, from Python and from @njit."""

import inspect
import itertools

import numba
import numpy as np
import pytest
from numba.core.errors import TypingError

import nbprop
from nbprop.optimizers import training_step
from nbprop.optimizers.api import OPTIMIZERS
from nbprop.runtime import workers
from nbprop.runtime.pool import RATE
from support import cases

# Values other than the defaults, so that one in another's place is seen.
NUMBERS = {"lr": 0.02, "weight_decay": 0.01, "momentum": 0.8, "rumelhart": True, "decay": 0.7, "eps": 0.001}
NUMBERS |= {"beta1": 0.6, "beta2": 0.9, "shrink": 0.4, "grow": 1.3, "smallest": 0.003, "largest": 0.1}
NUMBERS |= {"momentum_decay": 0.02, "warm_up": 2.0}
STEPS = 3


def arrays_of(plan, optimizer="adam", n=5):
    rng = np.random.default_rng(6)
    x, target, weights = cases.data(plan, n, rng, ties=False)
    params = nbprop.init(plan.net, seed=1).astype(plan.dtype)
    made = {"params": params, "x": x, "target": target, "grads": np.full_like(params, np.nan)}
    made["optimizer_state"] = nbprop.optimizer_state(optimizer, params.size, plan.dtype)
    return made | {"work": nbprop.workspace(plan)}, weights


def hyperparameters_of(optimizer):
    return [name for name in inspect.signature(OPTIMIZERS[optimizer]).parameters if name in NUMBERS]


def in_two_calls(plan, optimizer, given, numbers, masks, **more):
    """(losses, params, grads, optimizer state) of some steps, each a gradient and the optimizer's function."""
    params, state = given["params"].copy(), given["optimizer_state"].copy()
    grads, losses = given["grads"].copy(), []
    for step in range(STEPS):
        arguments = plan, params, given["x"], given["target"], grads, given["work"]
        losses.append(nbprop.value_and_grad(*arguments, step=step, **more))
        OPTIMIZERS[optimizer](params, grads, state, step, **numbers, **masks)
    return losses, params, grads, state


def check(plan, optimizer, numbers, masks, weights=None, layer_state=None):
    """One call a step has the bits of two."""
    given, _ = arrays_of(plan, optimizer)
    more = {} if weights is None else {"weights": weights}
    states = [None if layer_state is None else {"state": layer_state.copy()} for _ in range(2)]
    wanted = in_two_calls(plan, optimizer, given, numbers, masks, **more, **(states[0] or {}))
    losses = [
        nbprop.train_step(
            plan, **given, step=step, optimizer=optimizer, **numbers, **masks, **more, **(states[1] or {})
        )
        for step in range(STEPS)
    ]
    assert losses == wanted[0]
    for name, array in zip(("params", "grads", "optimizer_state"), wanted[1:], strict=True):
        cases.same_bits(name, given[name], array)
    if layer_state is not None:
        cases.same_bits("state", states[1]["state"], states[0]["state"])
        assert states[1]["state"].tobytes() != layer_state.tobytes()


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_the_bits_of_the_two_calls(classifier, optimizer):
    """Every rule, with its defaults, with all of its hyperparameters, and with masks and weights."""
    check(classifier, optimizer, {}, {})
    numbers = {name: NUMBERS[name] for name in hyperparameters_of(optimizer)}
    mask = np.arange(classifier.n_params) % 3 > 0
    _, weights = arrays_of(classifier)
    check(classifier, optimizer, numbers, {"trainable": mask, "decay_mask": ~mask}, weights)


def test_layers_with_state_and_random_numbers_and_threads():
    net = nbprop.network((3,), nbprop.dense(4), nbprop.batchnorm(), nbprop.dropout(0.5), nbprop.dense(2))
    for threads in (1, 2):
        plan = nbprop.plan(net, "mse", batch=6, threads=threads)
        check(plan, "adam", {}, {}, layer_state=nbprop.layer_state(plan))


def test_the_names_are_those_of_the_rules():
    known = {name for optimizer in OPTIMIZERS for name in hyperparameters_of(optimizer)}
    assert set(training_step.HYPERPARAMETERS) == set(NUMBERS) == known
    parameters = list(inspect.signature(nbprop.train_step).parameters)
    start = parameters.index("optimizer") + 1
    assert tuple(parameters[start : start + len(known)]) == training_step.HYPERPARAMETERS


@numba.njit
def compiled(plan, params, x, target, grads, optimizer_state, work, step, mask, weights):
    return nbprop.train_step(
        plan, params, x, target, grads, optimizer_state, work, step, "adamw", 0.02, beta2=0.9, trainable=mask,
        weights=weights,
    )  # fmt: skip


def test_in_njit(classifier):
    """The same bits as from Python, and values that are wrong are named, before anything is written."""
    given, weights = arrays_of(classifier)
    mask = np.arange(classifier.n_params) % 3 > 0
    masks, numbers = {"trainable": mask}, {"lr": 0.02, "beta2": 0.9}
    losses, *wanted = in_two_calls(classifier, "adamw", given, numbers, masks, weights=weights)
    arrays = list(given.values())
    assert [compiled(classifier, *arrays, step, mask, weights) for step in range(STEPS)] == losses
    for name, array in zip(("params", "grads", "optimizer_state"), wanted, strict=True):
        cases.same_bits(name, given[name], array)
    before = {name: array.tobytes() for name, array in given.items()}
    for name, place, wrong in (
        ("optimizer_state", 4, given["optimizer_state"][:-1].copy()),
        ("optimizer_state", 4, given["work"][: 2 * classifier.n_params]),
        ("params", 0, given["params"][:-1].copy()),
        ("target", 2, given["target"] + 99),
    ):
        changed = [*arrays[:place], wrong, *arrays[place + 1 :]]
        with pytest.raises(ValueError, match=f"^{name} "):
            compiled(classifier, *changed, 0, mask, weights)
    with pytest.raises(ValueError, match="step must be"):
        compiled(classifier, *arrays, -1, mask, weights)
    with pytest.raises(ValueError, match="trainable has a length"):
        compiled(classifier, *arrays, 0, mask[1:], weights)
    assert before == {name: array.tobytes() for name, array in given.items()}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ('nbprop.train_step(plan, p, x, t, g, s, w, 0, "sgd", beta1=0.5)', "beta1 is no hyperparameter of sgd"),
        ('nbprop.train_step(plan, p, x, t, g, s, w, 0, "adan")', "optimizer: unknown name 'adan'"),
        ("nbprop.train_step(plan, p, x, t, g, s, w, 0, lr='a')", "lr must be a number"),
        ("nbprop.train_step(plan, p, x, t, g, x, w, 0)", "optimizer_state must be a 1-D array"),
        ("nbprop.train_step(plan, p, x, t, g, s, w, 0.5)", "step must be an integer"),
        ("nbprop.train_step(plan, p, x, t, g, s, w, 0, trainable=x)", "trainable must"),
    ],
)
def test_types_are_refused_in_njit(classifier, call, said):
    space = {"nbprop": nbprop}
    exec(f"def f(plan, p, x, t, g, s, w): return {call}", space)
    given, _ = arrays_of(classifier)
    with pytest.raises(TypingError, match=said):
        numba.njit(space["f"])(classifier, *given.values())


def refused(plan, given, match, error=ValueError, **changed):
    before = {name: array.tobytes() for name, array in given.items() if isinstance(array, np.ndarray)}
    with pytest.raises(error, match=match):
        nbprop.train_step(**({"plan": plan, **given, "step": 0} | changed))
    assert before == {name: array.tobytes() for name, array in given.items() if isinstance(array, np.ndarray)}


def test_wrong_values_are_named(classifier):
    given, _ = arrays_of(classifier)
    refused(classifier, given, "train_step: beta1 is no hyperparameter of sgd", TypeError, optimizer="sgd", beta1=0.5)
    refused(classifier, given, "unknown name 'adan'; did you mean 'adam'", optimizer="adan")
    refused(classifier, given, "train_step: beta1 must be a number in", beta1=1.0)
    refused(classifier, given, "train_step: lr must be", lr=float("nan"))
    refused(classifier, given, "train_step: lr must be", TypeError, lr="0.1")
    refused(classifier, given, r"train_step: optimizer_state must have shape \(88,\).*optimizer_state\('adam', 44",
            optimizer_state=np.zeros(44))  # fmt: skip
    refused(classifier, given, r"optimizer_state must have shape \(132,\)", optimizer="amsgrad")
    refused(classifier, given, "train_step: params is written and must not be read-only", params=read_only(given))
    refused(classifier, given, "train_step: work must have shape", work=given["work"][:-1])
    refused(classifier, given, "train_step: step must be", step=2**40)
    refused(None, given, "train_step: plan must be", TypeError)
    plain = nbprop.plan(classifier.net, batch=6)
    refused(plain, given, "train_step: this plan has no loss")
    # Numbers of other types are taken.
    assert np.isfinite(nbprop.train_step(classifier, **given, step=np.int64(0), lr=np.float32(0.5), eps=1))


def read_only(given):
    params = given["params"].copy()
    params.flags.writeable = False
    return params


def test_what_is_written_shares_memory_with_nothing(classifier):
    """Every pair in which one is written, of arguments that could lie in one buffer."""
    n, size = classifier.n_params, classifier.work_size
    sizes = {"params": n, "grads": n, "optimizer_state": 2 * n, "work": size, "x": 15, "weights": 5}
    written = ("params", "grads", "optimizer_state", "work")
    given, weights = arrays_of(classifier)
    for one, two in itertools.combinations(sizes, 2):
        if one not in written and two not in written:
            continue
        room = np.zeros(sizes[one] + sizes[two] - 1)  # they share one element
        parts = {one: room[: sizes[one]], two: room[sizes[one] - 1 :]}
        parts = {name: part.reshape(5, 3) if name == "x" else part for name, part in parts.items()}
        refused(classifier, given, f"train_step: ({one}|{two}) is written and shares", **{"weights": weights} | parts)
    for name in written:
        mask = given[name][:n].view(np.uint8)[:n]
        for which in ("trainable", "decay_mask"):
            refused(classifier, given, f"train_step: ({name}|{which}) is written and shares", **{which: mask})


def test_memory_maps_are_taken(classifier, tmp_path):
    given, _ = arrays_of(classifier)
    wanted = in_two_calls(classifier, "adam", given, {}, {})
    mapped = np.memmap(tmp_path / "params", np.float64, "w+", shape=given["params"].shape)
    mapped[:] = given["params"]
    given["params"] = mapped
    assert [nbprop.train_step(classifier, **given, step=step) for step in range(STEPS)] == wanted[0]
    assert (np.asarray(mapped) == wanted[1]).all()


def test_a_walk_that_pauses_takes_one_step(monkeypatch):
    """A large plan, whose walk returns to Python after each op while the clock's rate is unknown."""
    plan = nbprop.plan(nbprop.network((300,), nbprop.dense(300, activation="tanh"), nbprop.dense(2)), "mse", batch=256)
    given, _ = arrays_of(plan, n=256)
    workers.know_clock()
    wanted = in_two_calls(plan, "adam", given, {}, {})
    load, resumed = training_step._RESUME.load(), []
    monkeypatch.setattr(training_step._RESUME, "load", lambda: lambda *a: resumed.append(0) or load(*a))
    monkeypatch.setattr(training_step, "know_clock", lambda: None)
    workers._words[RATE] = 0
    losses = [nbprop.train_step(plan, **given, step=step) for step in range(STEPS)]
    workers.know_clock()
    assert losses == wanted[0]
    assert len(resumed) > 4 * STEPS
    for name, array in zip(("params", "grads", "optimizer_state"), wanted[1:], strict=True):
        cases.same_bits(name, given[name], array)
