"""Optimizers, clipping and schedules against PyTorch's trajectories, from Python and from @njit."""

import inspect

import numba
import numpy as np
import pytest

import nbprop
from nbprop import schedules
from nbprop.optimizers import api as optimizers
from nbprop.optimizers import clipping
from nbprop.optimizers import update_rules as rules
from nbprop.optimizers.api import OPTIMIZERS
from nbprop.optimizers.proximal import PROXIMAL
from nbprop.runtime import workers
from support import naive, stored

TRAJECTORIES = stored.load("optimizers")
START = TRAJECTORIES.pop("problem")[1]
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}


def function_and_options(description):
    """The nbprop function of a stored case, and its keyword arguments."""
    options = dict(description["hyperparameters"])
    name = description["optimizer"]
    if name == "momentum_rumelhart":
        return optimizers.momentum, options | {"rumelhart": True}
    return OPTIMIZERS[name], options


def clip(description, grads):
    if description.get("clip") == "clip_value":
        clipping.clip_value(grads, description["limit"])
    if description.get("clip") == "clip_global_norm":
        norm = clipping.clip_norm(grads, description["limit"])
        assert norm == pytest.approx(np.linalg.norm(grads), rel=1e-5) or norm > description["limit"]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", list(TRAJECTORIES))
def test_trajectory(case, dtype):
    """Ten steps along PyTorch's gradients end where PyTorch ended."""
    description, arrays = TRAJECTORIES[case]
    function, options = function_and_options(description)
    params = START["params"].astype(dtype)
    state = optimizers.optimizer_state(function.__name__, params.size, dtype)
    for step, gradient in enumerate(arrays["grads"]):
        grads = gradient.astype(dtype)
        clip(description, grads)
        if "lr" in arrays:
            options["lr"] = arrays["lr"][step]
        function(params, grads, state, step, decay_mask=arrays.get("mask"), **options)
        wanted = arrays["params"][step + 1]
        assert np.abs(params - wanted).max() <= TOLERANCE[dtype] * np.abs(wanted).max()


@pytest.mark.parametrize("case", list(TRAJECTORIES))
def test_losses_of_a_real_training(case):
    """With nbprop's own gradients, the ten losses are PyTorch's."""
    description, arrays = TRAJECTORIES[case]
    function, options = function_and_options(description)
    net = nbprop.network((3,), nbprop.dense(4, activation="tanh"), nbprop.dense(2))
    plan = nbprop.plan(net, loss="mse", batch=7)
    params, grads, work = START["params"].copy(), np.empty(26), nbprop.workspace(plan)
    state = optimizers.optimizer_state(function.__name__, 26)
    for step in range(10):
        loss = nbprop.value_and_grad(plan, params, START["x"], START["target"], grads, work)
        assert loss == pytest.approx(arrays["losses"][step], rel=1e-10)
        clip(description, grads)
        if "lr" in arrays:
            options["lr"] = arrays["lr"][step]
        function(params, grads, state, step, decay_mask=arrays.get("mask"), **options)


def sample(n, dtype, name):
    rng = np.random.default_rng(n)
    params, grads = (rng.normal(size=n).astype(dtype) for _ in range(2))
    grads[::7] = 0.0
    return params, grads, optimizers.optimizer_state(name, n, dtype)


def three_steps(function, params, grads, state, **options):
    """Gradients that change sign and size; gives the bits of params and state."""
    for step in range(3):
        function(params, grads if step != 1 else -grads / 2, state, step, weight_decay=0.01, **options)
    return params.tobytes(), state.tobytes()


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_threads_give_the_same_bits(name, monkeypatch):
    monkeypatch.setattr(workers, "processor_share", lambda: 4)
    n, function = 1003, OPTIMIZERS[name]
    whole = three_steps(function, *sample(n, np.float32, name))
    for count in (2, 3, 4):
        assert whole == three_steps(function, *sample(n, np.float32, name), threads=count)


@pytest.mark.parametrize("mask_type", [bool, np.uint8])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_masks(name, mask_type):
    """Frozen parameters and their state keep their bits (a NaN's too); the others move as without a mask."""
    n, function = 203, OPTIMIZERS[name]
    trains = np.arange(n) % 3 != 0
    free = sample(n, np.float32, name)
    three_steps(function, *free)
    params, grads, state = sample(n, np.float32, name)
    params[0] = np.array(0x7FC01234, np.uint32).view(np.float32)
    grads[3] = np.nan
    before = params.copy()
    three_steps(function, params, grads, state, trainable=trains.astype(mask_type))
    assert params[~trains].tobytes() == before[~trains].tobytes()
    assert params[trains].tobytes() == free[0][trains].tobytes()
    for slot, free_slot in zip(state.reshape(-1, n), free[2].reshape(-1, n), strict=True):
        assert not slot[~trains].any()
        assert slot[trains].tobytes() == free_slot[trains].tobytes()
    # Decay on some: those go as with decay, the others as without.
    without = sample(n, np.float32, name)
    for step in range(3):
        function(without[0], without[1] if step != 1 else -without[1] / 2, without[2], step, weight_decay=0.0)
    masked = sample(n, np.float32, name)
    three_steps(function, *masked, decay_mask=trains.astype(mask_type))
    assert masked[0][trains].tobytes() == free[0][trains].tobytes()
    assert masked[0][~trains].tobytes() == without[0][~trains].tobytes()


@numba.njit
def every_optimizer(which, params, grads, state, step, lr, mask):
    if which == 0:
        nbprop.sgd(params, grads, state, step, lr, weight_decay=0.01, trainable=mask)
    elif which == 1:
        nbprop.momentum(params, grads, state, step, lr, rumelhart=True, trainable=mask)
    elif which == 2:
        nbprop.nesterov(params, grads, state, step, lr, 0.8, trainable=mask)
    elif which == 3:
        nbprop.rmsprop(params, grads, state, step, lr, trainable=mask)
    elif which == 4:
        nbprop.adagrad(params, grads, state, step, lr, trainable=mask)
    elif which == 5:
        nbprop.adam(params, grads, state, step, lr=lr, beta2=0.99, trainable=mask)
    elif which == 6:
        nbprop.adamw(params, grads, state, step, lr, decay_mask=mask)
    elif which == 7:
        nbprop.rprop(params, grads, state, step, lr, trainable=mask)
    elif which == 8:
        nbprop.lion(params, grads, state, step, lr, trainable=mask)
    elif which == 9:
        nbprop.amsgrad(params, grads, state, step, lr, 0.8, 0.9, trainable=mask)
    elif which == 10:
        nbprop.radam(params, grads, state, step, lr, trainable=mask)
    elif which == 11:
        nbprop.nadam(params, grads, state, step, lr, trainable=mask)
    elif which == 12:
        nbprop.adadelta(params, grads, state, step, lr, trainable=mask)
    else:
        nbprop.schedule_free_adamw(params, grads, state, step, lr, warm_up=2, trainable=mask)


def test_compiled_gives_the_same_bits():
    """Every optimizer inside a plain njit function, against the same call from Python."""
    n = 77
    mask = np.arange(n) % 2 == 0
    for which, name in enumerate(OPTIMIZERS):
        inside, outside = sample(n, np.float32, name), sample(n, np.float32, name)
        for step in range(3):
            every_optimizer(which, *inside, step, 0.02, mask)
            every_optimizer.py_func(which, *outside, step, 0.02, mask)
        assert inside[0].tobytes() == outside[0].tobytes(), name
        assert inside[2].tobytes() == outside[2].tobytes(), name
        assert not np.array_equal(inside[0], sample(n, np.float32, name)[0]), name
    params, grads, state = sample(n, np.float32, "adam")
    with pytest.raises(ValueError, match="state has a length"):
        every_optimizer(5, params, grads, state[:-1], 0, 0.02, mask)
    with pytest.raises(ValueError, match="lr must be a finite"):
        every_optimizer(5, params, grads, state, 0, -1.0, mask)
    with pytest.raises(ValueError, match="params is written and shares memory"):
        every_optimizer(5, state[:n], grads, state, 0, 0.02, mask)
    with pytest.raises(numba.TypingError, match="grads must hold float32 as params does"):
        every_optimizer(5, params, grads.astype(np.float64), state, 0, 0.02, mask)


def test_schedule_free_parameters_to_use():
    """params + state[2 * n:] are the algorithm's x; those of parameters that are not trained are these themselves."""
    rng, n, options = np.random.default_rng(5), 7, {"lr": 0.05, "weight_decay": 0.1, "warm_up": 3}
    params = rng.normal(size=n)
    start, trained = params.copy(), np.arange(n) != 2
    state, others = nbprop.optimizer_state("schedule_free_adamw", n), (np.zeros(n),) * 3
    y = params.copy()
    for step in range(9):
        grads = rng.normal(size=n)
        nbprop.schedule_free_adamw(params, grads, state, step, **options, trainable=trained)
        y, *others = naive.schedule_free_adamw(y, grads, *others, step, **options)
        np.testing.assert_allclose((params + state[2 * n :])[trained], others[2][trained], rtol=1e-13, atol=1e-15)
    assert (params + state[2 * n :])[2] == start[2]


def test_nadams_product_of_momenta_after_many_steps():
    """The closed form of the product against the product itself, where it still counts."""
    for beta1, momentum_decay in ((0.999, 4e-3), (0.9999, 0.5), (0.99, 0.0), (0.9, 40.0)):
        product = 1.0
        for t in range(1, 400):
            product *= beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
            _, found = rules.RULES["nadam"].constants(0.0, t - 1.0, (1.0, beta1, 0.9, 0.0, momentum_decay, 0.0))
            mu = beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
            assert found[0] == pytest.approx((1 - mu) / (1 - product), rel=1e-12)


@numba.njit
def compiled_clip(grads, limit):
    nbprop.clip_value(grads, 2.0)
    return nbprop.clip_norm(grads, limit)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_clipping(dtype):
    grads = np.random.default_rng(3).normal(size=1003).astype(dtype)
    grads[5] = -0.0
    inside, outside = grads.copy(), grads.copy()
    assert compiled_clip(inside, 4.0) == compiled_clip.py_func(outside, 4.0)
    assert inside.tobytes() == outside.tobytes()
    clipped = np.clip(grads, -2, 2).astype(np.float64)
    np.testing.assert_allclose(outside, clipped * (4 / (np.linalg.norm(clipped) + 1e-6)), rtol=1e-6)
    mask = np.arange(grads.size) % 2 == 0
    untouched = grads.copy()
    norm = nbprop.clip_norm(untouched, 1e9, mask)
    assert norm == pytest.approx(np.linalg.norm(grads[mask].astype(np.float64)), rel=1e-12)
    assert untouched.tobytes() == grads.tobytes()
    grads[7] = np.nan
    nbprop.clip_value(grads, 1.0)
    assert np.isnan(grads[7])
    assert np.isnan(nbprop.clip_norm(grads, 1.0))
    assert nbprop.clip_norm(grads[:0], 1.0) == 0.0


SCHEDULES = stored.load("schedules")


@numba.njit
def every_schedule(which, at, a, b, c, d):
    if which == 0:
        return schedules.constant(at, a)
    if which == 1:
        return schedules.step(at, a, b, c)
    if which == 2:
        return schedules.cosine(at, a, b, c)
    if which == 3:
        return schedules.one_cycle(at, a, b, c)
    if which == 4:
        return schedules.warm_up(at, a, b, c)
    if which == 5:
        return schedules.polynomial(at, a, b, c)
    return schedules.warm_restarts(at, a, b, c, d)


@pytest.mark.parametrize("case", list(SCHEDULES))
def test_schedule(case):
    description, arrays = SCHEDULES[case]
    options = description["hyperparameters"]
    function = getattr(schedules, description["schedule"])
    which = ["constant", "step", "cosine", "one_cycle", "warm_up", "polynomial", "warm_restarts"].index(case)
    first = [*options.values(), 0.0, 0.0, 0.0][:4]
    for at, wanted in enumerate(arrays["lr"]):
        assert function(at, **options) == pytest.approx(wanted, rel=1e-12)
        inside = every_schedule(which, at, first[0], int(first[1]), float(first[2]), first[3])
        assert inside == pytest.approx(wanted, rel=1e-12)
    named = schedules.named(case, 0.1, 100)
    assert 0 <= named(99) <= 0.1


def test_plateau_is_pytorchs():
    """Rates after each epoch of a run of losses with falls, rests and plateaus, as ReduceLROnPlateau has them."""
    losses = [5.0, 4.0, 4.0, 3.9999, 3.9, 3.9, 3.9, 3.9, 3.9, 3.9, 3.9, 3.0, 3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 3.7]
    plateau = schedules.Plateau(factor=0.5, patience=2, threshold=1e-3, cooldown=1, lowest=0.02)
    rates = [plateau.rate(losses[:k], 0.1) for k in range(1, len(losses) + 1)]
    assert rates == [0.1] * 7 + [0.05] * 7 + [0.025] * 4 + [0.02]
    for name, value in (("factor", 1.0), ("patience", -1), ("threshold", -0.1), ("cooldown", 1.5), ("lowest", -1)):
        with pytest.raises(ValueError, match=f"Plateau: {name}"):
            schedules.Plateau(**{name: value})


def test_unknown_names():
    with pytest.raises(ValueError, match="did you mean 'adam'"):
        nbprop.optimizer_state("adm", 3)
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        schedules.named("cosin", 0.1, 100)


# What each wrong argument is, the error, and words of its message.
WRONG = [
    ({"params": [1.0, 2.0]}, TypeError, "params must be a NumPy array, got list"),
    ({"params": None}, TypeError, "params"),
    ({"params": np.zeros(5, int)}, TypeError, "params must hold float32 or float64"),
    ({"params": np.zeros((5, 1))}, ValueError, r"params must have shape \(n,\)"),
    ({"params": np.zeros(10)[::2]}, ValueError, "params must be C-contiguous"),
    ({"params": np.zeros(5, ">f8")}, TypeError, "params must hold"),
    ({"params": np.frombuffer(bytes(40))}, ValueError, "params is written and must not be read-only"),
    ({"grads": np.zeros(5, np.float32)}, TypeError, "grads must hold float64 as params does"),
    ({"grads": np.zeros(4)}, ValueError, r"grads must have shape \(5,\) as params has, got .*\(4,\)"),
    ({"state": np.zeros(5)}, ValueError, r"state must have shape \(10,\), got .*; nbprop.optimizer_state\('adam', 5"),
    ({"step": -1}, ValueError, "step counts from 0"),
    ({"step": 1.5}, TypeError, "step must be an integer"),
    ({"lr": -1}, ValueError, "lr must be a finite number of at least 0, got -1"),
    ({"lr": np.nan}, ValueError, "lr must be a finite"),
    ({"lr": "fast"}, TypeError, "lr must be a finite number of at least 0, got 'fast'"),
    ({"beta1": 1.0}, ValueError, "beta1 must be a number in \\[0, 1\\)"),
    ({"decay_mask": np.ones(5)}, TypeError, "decay_mask must hold bool or uint8"),
    ({"trainable": np.ones(4, bool)}, ValueError, r"trainable must have shape \(5,\)"),
    ({"threads": 0}, ValueError, "threads must be above 0"),
]


@pytest.mark.parametrize(("wrong", "error", "words"), WRONG)
def test_bad_arguments(wrong, error, words):
    """A clear error, and nothing has been written."""
    state = np.zeros(10)
    good = {"params": np.ones(5), "grads": np.ones(5), "state": state, "step": 0}
    with pytest.raises(error, match=words):
        nbprop.adam(**(good | wrong))
    assert not state.any()


def test_aliased_arguments():
    buffer = np.ones(20)
    for params, grads, state in ((buffer[:5], buffer[4:9], buffer[10:]), (buffer[:5], buffer[5:10], buffer[9:19])):
        with pytest.raises(ValueError, match="shares memory with another argument"):
            nbprop.adam(params, grads, state, 0)
    assert (buffer == 1).all()
    with pytest.raises(ValueError, match="limit must be above 0"):
        nbprop.clip_norm(buffer, 0.0)


def test_memory_map(tmp_path):
    """A memory-mapped vector is as good as any."""
    params = np.memmap(tmp_path / "params", np.float64, "w+", shape=(5,))
    nbprop.sgd(params, np.ones(5), np.zeros(0), 0, 0.5)
    assert (params == -0.5).all()


def test_tables_agree():
    """Each public function has the hyperparameters of its rule, in its order."""
    for name, function in OPTIMIZERS.items():
        parameters = list(inspect.signature(function).parameters)
        more = ["l1", "penalized"] if name in PROXIMAL else []
        own = list(rules.RULES[name].hyperparameters)
        assert parameters[4:] == [*own, "decay_mask", "trainable", "threads", *more]
    assert set(OPTIMIZERS) - set(PROXIMAL) == {"schedule_free_adamw"}


def test_number_types_compile_nothing_new():
    """NumPy numbers and integers for hyperparameters give the same step and no new compiled signature."""
    from nbprop.optimizers import step as steps

    params, grads, state = sample(5, np.float64, "adam")
    nbprop.adam(params, grads, state, 0, 0.5)
    known = len(steps._call.signatures)
    again, _, state = sample(5, np.float64, "adam")
    nbprop.adam(again, grads, state, np.int32(0), np.float32(0.5), weight_decay=0)
    assert params.tobytes() == again.tobytes()
    assert len(steps._call.signatures) == known
