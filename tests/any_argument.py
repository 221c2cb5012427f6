"""Every public function with wrong arguments, one at a time, from a valid call; runs in a process of its own.

`python any_argument.py LOG EXAMPLES [NAMES TO LEAVE OUT]` writes each call to LOG before it makes it, so that a crash
is told with its example, and prints what was accepted in silence, raised without the argument's name, or raised as
another error. "layers" leaves out their constructors.
See test_any_argument.py.
"""

import faulthandler
import math
import sys
import tempfile
import warnings
from pathlib import Path

import cases
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import nbprop
from nbprop import schedules

N, NET, PLAN = 4, cases.CLASSIFIER, nbprop.plan(cases.CLASSIFIER, "softmax_cross_entropy", batch=6)
REGRESSION = nbprop.plan(cases.REGRESSOR, "mse", batch=6)
BINARY = nbprop.plan(cases.REGRESSOR, "binary_cross_entropy", batch=6)
SEQUENCES = nbprop.network((5, 2), nbprop.rnn(3), nbprop.dense(2))
TALKER = nbprop.network((6,), nbprop.embedding(5, 4), nbprop.positions(), nbprop.attention(2), nbprop.dense(5))
FOLDER = Path(tempfile.mkdtemp())


class WithUnit(np.ndarray):
    """A subclass with a meaning of its own."""


# -- kinds of arguments: what is wrong, and what of anything drawn at random is right -------------------------

NOTHING_LIKE_IT = (object(), ..., {1: 2}, b"bytes", 1j, np.ma.masked, float)
HUGE = (10**400, -(10**400), 2**63, -(2**63) - 1)


class Kind:
    """What an argument may be. wrong(): examples that must be refused; right(value): whether a value is documented."""

    def __init__(self, *, optional=False):
        self.optional = optional

    def examples(self, valid):
        return [value for value in self.wrong(valid) if not (value is None and self.optional)]


class Integer(Kind):
    """An integer in least..most."""

    def __init__(self, least=1, most=2**31 - 1, **more):
        super().__init__(**more)
        self.least, self.most = least, most

    def wrong(self, valid):
        below = () if self.least <= -(2**62) else (self.least - 1, np.int64(self.least - 1))
        return [None, "1", 1.5, math.nan, math.inf, [1], True, np.array([1, 2]), *HUGE, *below, *NOTHING_LIKE_IT]


class AnySize(Integer):
    """An integer, however large: more than there is counts as all."""

    def wrong(self, valid):
        large = (int, np.integer)
        return [value for value in super().wrong(valid) if not (isinstance(value, large) and value > 2**31)]


class Index(Integer):
    """An integer, or an array of one for each sample."""

    def wrong(self, valid):
        return [value for value in super().wrong(valid) if not isinstance(value, np.ndarray)] + [np.array([0, 9])]


class Window(Integer):
    """An integer, or one for each axis."""

    def wrong(self, valid):
        return [[1.5] if value == [1] else value for value in super().wrong(valid) if not isinstance(value, np.ndarray)]


class Number(Kind):
    """A finite number, at least 0, or above it."""

    def __init__(self, *, above=False, below=math.inf, infinite=False, **more):
        super().__init__(**more)
        self.above, self.below, self.infinite = above, below, infinite

    def wrong(self, valid):
        found = [None, "1", math.nan, -1.0, -math.inf, [1.0], True, np.array([1.0, 2.0]), -(10**400), *NOTHING_LIKE_IT]
        found += [0.0] if self.above else []
        found += [self.below] if self.below < math.inf else []
        return found + ([] if self.infinite else [math.inf, 10**400])


class Flag(Kind):
    """True or False."""

    def wrong(self, valid):
        return [None, "no", "", 2, 0.5, [], np.array([True, False]), *NOTHING_LIKE_IT]


class Choice(Kind):
    """One of several names, or what stands for one."""

    def wrong(self, valid):
        return [None, "nonsense", "", 3, 1.5, ["mse"], np.zeros(2), *NOTHING_LIKE_IT]


class Named(Choice):
    """One of several names, or a function."""

    def wrong(self, valid):
        return [value for value in super().wrong(valid) if not callable(value)]


class Shape(Kind):
    """A tuple of sizes, or a size."""

    def wrong(self, valid):
        return [None, "", "3", (1.5,), (0,), (-1,), (True,), (2**63,), (10**400,), [None], *NOTHING_LIKE_IT, *HUGE]


class Made(Kind):
    """What a function of nbprop returns: a network, a plan."""

    def wrong(self, valid):
        others = [NET, PLAN]
        return [None, "x", 3, np.zeros(3), *(o for o in others if type(o) is not type(valid)), *NOTHING_LIKE_IT]


class Function(Kind):
    """A function."""

    def wrong(self, valid):
        return [None, "f", 3, np.zeros(3), object(), [len]]


class Anywhere(Kind):
    """A path."""

    def wrong(self, valid):
        return [None, 3.5, [], {}, 1j, np.zeros(2), object()]


class Dtype(Kind):
    """float32 or float64."""

    def wrong(self, valid):
        return [None, "f2", np.int64, complex, "nonsense", 3, object(), np.longdouble]


class Array(Kind):
    """An array of the valid one's dtype and shape; see `fits`."""

    def __init__(self, *, finite=False, longer=False, integers=False, written=False, samples=False, kinds=(), **more):
        super().__init__(**more)
        self.finite, self.longer, self.integers, self.written = finite, longer, integers, written
        self.samples, self.kinds = samples, kinds

    def wrong(self, valid):
        others = [None, valid.tolist(), 1.5, "x", np.float64(1.0), np.ndarray, memoryview(valid.copy()), object()]
        subclasses = [np.ma.array(valid, mask=np.arange(valid.size).reshape(valid.shape) == 0), valid.view(WithUnit)]
        subclasses += [
            np.rec.array(valid),
            valid.view(np.char.chararray) if valid.dtype.kind == "U" else valid.view(WithUnit),
        ]
        if valid.ndim == 2:
            subclasses.append(valid.view(np.matrix))
        found = [*others, *subclasses, valid[..., None], np.zeros((), valid.dtype), valid.astype(object)]
        found += [valid.astype(complex), valid.astype("U4"), valid.astype(valid.dtype.newbyteorder("S"))]
        found += [valid.astype(np.float16), np.stack([valid, valid], -1)[..., 0] if valid.size > 1 else None]
        shifted = np.zeros(valid.nbytes + 1, np.uint8)[1:].view(valid.dtype).reshape(valid.shape)
        shifted[...] = valid
        found += [shifted] if valid.itemsize > 1 else []
        if self.written:
            found.append(valid.copy())
            found[-1].flags.writeable = False
        if self.finite and not self.integers:
            for value in (math.nan, math.inf, -math.inf):
                found.append(valid.copy())
                found[-1].flat[-1] = value
        if self.integers:
            for value in (np.iinfo(valid.dtype).max, -1):
                found.append(valid.copy())
                found[-1].flat[-1] = value
        return [value for value in found if not (isinstance(value, np.ndarray) and self.fits(value, valid))]

    def fits(self, array, valid):
        """Whether it is as documented, apart from values."""
        if type(array) is not np.ndarray or not (array.flags.c_contiguous and array.flags.aligned):
            return False
        if self.integers:
            right = array.dtype.kind in "iu" and array.dtype.isnative
            right = right and array.size > 0 and array.min() >= 0 and array.max() <= valid.max()
        else:
            right = array.dtype in [np.dtype(kind) for kind in self.kinds or [valid.dtype]]
            right = right and (not self.finite or bool(np.isfinite(array).all()))
        if self.longer:
            shape = array.ndim == 1 and array.size >= valid.size
        else:
            shape = array.shape == valid.shape or (
                self.samples and array.shape[1:] == valid.shape[1:] and len(array) > 0
            )
        return right and shape and (array.flags.writeable or not self.written)


def arrays(valid):
    """Random arrays, often of the valid dtype or shape: strides, byte orders, subclasses, values."""
    shapes = st.one_of(st.just(valid.shape), st.lists(st.integers(0, 5), max_size=4).map(tuple))
    dtypes = st.sampled_from(
        [valid.dtype.str] * 3 + ["f8", "f4", ">f8", "i8", "u1", ">i4", "?", "c16", "f2", "O", "S3"]
    )
    views = st.sampled_from(["plain", "plain", "reversed", "transposed", "every second", "read-only", "broadcast"])
    types = st.sampled_from([np.ndarray] * 4 + [WithUnit, np.ma.MaskedArray])
    values = st.sampled_from([0, 0, 1, math.nan, math.inf, -1])

    def make(shape, dtype, view, kind, value):
        dtype = np.dtype(dtype)
        value = value if dtype.kind in "fc" or math.isfinite(value) else 0
        value = abs(value) if dtype.kind == "u" else value
        array = np.full(shape, value, dtype)
        if view == "every second" and shape:
            array = np.full((*shape[:-1], 2 * shape[-1]), value, dtype)[..., ::2]
        elif view == "broadcast" and shape:
            array = np.broadcast_to(np.full(shape[-1:], value, dtype), shape)
        elif view == "reversed" and shape:
            array = array[::-1]
        elif view == "transposed":
            array = array.T
        elif view == "read-only":
            array.flags.writeable = False
        return array if kind is np.ndarray else array.view(kind)

    return st.builds(make, shapes, dtypes, views, types, values)


# -- the table of valid calls --------------------------------------------------------------------------------


class Call:
    """A valid call: make() gives fresh arguments by name; kinds: what each may be (those left out are not tried).

    renamed: for an argument that sets a size, the others that an error may name instead.
    """

    def __init__(self, function, make, kinds, renamed=None):
        self.function, self.make, self.kinds, self.renamed = function, make, kinds, renamed or {}


PARAMS = Array()
WRITTEN = Array(written=True)
PLAIN_PLAN = Made()


def walk_arguments(plan, n=N):
    """What the functions that walk a plan take, by name."""
    rng, shape = np.random.default_rng(0), (n, *plan.target_shape)
    return {
        "plan": plan,
        "params": nbprop.init(plan.net),
        "x": rng.standard_normal((n, *plan.input_shape)),
        "target": rng.integers(0, plan.classes, shape) if plan.classes else rng.uniform(0, 1, shape),
        "grads": np.zeros(plan.n_params),
        "work": np.zeros(plan.work_size),
        "weights": np.ones(n),
        "y": np.zeros((n, *plan.output_shape)),
        "dy": np.ones((n, *plan.output_shape)),
        "dx": np.zeros((n, *plan.input_shape)),
        "v": np.ones(plan.n_params),
        "out": np.zeros(plan.n_params),
        "step": 0,
        "accumulate": False,
    }


WALKS = {
    "forward": "plan params x y work step",
    "value": "plan params x target work weights step",
    "value_and_grad": "plan params x target grads work weights accumulate step",
    "backward": "plan params x dy grads dx work accumulate step",
    "jvp": "plan params v x dx out work step",
    "vjp": "plan params x dy grads dx work accumulate step",
    "hvp": "plan params v x target out work weights step",
    "gauss_newton_product": "plan params v x target out work weights step",
    "fisher_product": "plan params v x target out work weights step",
    "jacobian": "plan params x out work step",
    "per_sample_grads": "plan params x target out work step",
    "hessian": "plan params x target out work weights step threads",
}
OUTPUTS = {
    "jvp": lambda plan: (N, *plan.output_shape),
    "jacobian": lambda plan: (N * plan.unit_size, plan.n_params),
    "per_sample_grads": lambda plan: (N, plan.n_params),
    "hessian": lambda plan: (plan.n_params, plan.n_params),
}
WALK_KINDS = {
    "plan": Made(),
    "params": Array(),
    "x": Array(),
    "grads": Array(written=True),
    "work": Array(written=True, longer=True),
    "weights": Array(optional=True),
    "y": Array(written=True),
    "dy": Array(),
    "dx": Array(written=True, optional=True),
    "v": Array(),
    "out": Array(written=True),
    "step": Integer(0, 2**40 - 1),
    "accumulate": Flag(),
    "threads": Integer(1, 1024),
}


def walk_call(name):
    plan, names = REGRESSION if name in ("jvp", "hvp", "jacobian", "hessian") else PLAN, WALKS[name].split()

    def make():
        found = {k: v for k, v in (walk_arguments(plan) | {"threads": 1}).items() if k in names}
        if name in OUTPUTS:
            found["out"] = np.zeros(OUTPUTS[name](plan))
        return found

    kinds = {k: WALK_KINDS[k] for k in names if k in WALK_KINDS} | {"target": Array(integers=plan.classes > 0)}
    if name == "jvp":
        kinds |= {"v": Array(optional=True), "dx": Array(optional=True)}
    return Call(getattr(nbprop, name), make, {k: kinds[k] for k in names})


def optimizer_call(name):
    def make():
        state = nbprop.optimizer_state(name, 7)
        masks = {"decay_mask": np.ones(7, bool), "trainable": np.ones(7, bool)}
        numbers = {k: v for k, v in OPTIMIZER_DEFAULTS[name].items()}
        return {"params": np.ones(7), "grads": np.ones(7), "state": state, "step": 0, **numbers, **masks, "threads": 1}

    mask = Array(optional=True, kinds=(bool, np.uint8))
    kinds = {"params": WRITTEN, "grads": PARAMS, "state": WRITTEN, "step": Integer(0), "threads": Integer()}
    kinds |= {k: NUMBER_KINDS[k] for k in OPTIMIZER_DEFAULTS[name]} | {"decay_mask": mask, "trainable": mask}
    return Call(getattr(nbprop, name), make, kinds)


_NUMBER, _FRACTION = Number(), Number(below=1.0)
NUMBER_KINDS = {
    "lr": _NUMBER,
    "weight_decay": _NUMBER,
    "eps": _NUMBER,
    "momentum": _FRACTION,
    "beta1": _FRACTION,
    "beta2": _FRACTION,
    "decay": _FRACTION,
    "shrink": _FRACTION,
    "grow": Number(),
    "smallest": Number(above=True),
    "largest": Number(above=True),
    "rumelhart": Flag(),
}
_OPTIMIZERS = ("sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adam", "adamw", "rprop", "lion")


def _defaults(name):
    import inspect

    parameters = inspect.signature(getattr(nbprop, name)).parameters.values()
    return {p.name: p.default for p in parameters if p.name in NUMBER_KINDS}


OPTIMIZER_DEFAULTS = {name: _defaults(name) for name in _OPTIMIZERS}


def data(plan=REGRESSION, n=9):
    rng = np.random.default_rng(1)
    x, shape = rng.standard_normal((n, *plan.input_shape)), (n, *plan.target_shape)
    return {"x": x, "target": rng.integers(0, plan.classes, shape) if plan.classes else rng.uniform(0.1, 0.9, shape)}


SAMPLES = Array(finite=True)
DATA = {"x": SAMPLES, "target": SAMPLES, "weights": Array(finite=True, optional=True)}


def _problem(**more):
    """make() of what functions over whole data take."""
    return lambda: {
        "plan": REGRESSION,
        "params": nbprop.init(REGRESSION.net, seed=3),
        **data(),
        "weights": np.ones(9),
        **{name: value() if callable(value) else value for name, value in more.items()},
    }


def fit_arguments():
    return {
        "net": cases.REGRESSOR,
        "params": nbprop.init(cases.REGRESSOR),
        **data(),
        "loss": "mse",
        "optimizer": "adam",
        "lr": 0.01,
        "batch": 4,
        "epochs": 1,
        "shuffle": True,
        "seed": 0,
        "weights": np.ones(9),
        "validation": None,
        "schedule": None,
        "clip_norm": 1.0,
        "clip_value": 1.0,
        "weight_decay": 0.0,
        "decay_mask": np.ones(REGRESSION.n_params, bool),
        "trainable": np.ones(REGRESSION.n_params, bool),
        "threads": 1,
        "patience": 3,
        "callback": None,
        "checkpoint": None,
        "checkpoint_seconds": 10.0,
        "resume": False,
        "progress": False,
    }


_MASK = Array(optional=True, kinds=(bool, np.uint8))
FIT_KINDS = {
    "net": Made(),
    "params": Array(written=True, kinds=(np.float64,)),
    **DATA,
    "loss": Choice(),
    "optimizer": Choice(),
    "lr": Number(optional=True),
    "batch": AnySize(),
    "epochs": Integer(),
    "shuffle": Flag(),
    "seed": Integer(0),
    "validation": Choice(optional=True),
    "schedule": Named(optional=True),
    "clip_norm": Number(above=True, infinite=True, optional=True),
    "clip_value": Number(above=True, infinite=True, optional=True),
    "weight_decay": Number(optional=True),
    "decay_mask": _MASK,
    "trainable": _MASK,
    "threads": Integer(),
    "patience": AnySize(optional=True),
    "callback": Function(optional=True),
    "checkpoint": Anywhere(optional=True),
    "checkpoint_seconds": Number(infinite=True),
    "resume": Flag(),
    "progress": Flag(optional=True),
}


def _rollout(adjoint):
    import numba

    @numba.njit
    def step(x_next, x, t, force):
        x_next[0] = 0.5 * x[0] + force

    @numba.njit
    def back(lam_x, lam_next, x, t, force):
        lam_x[0] = 0.5 * lam_next[0]

    @numba.njit
    def gradient(lam, x, t, force):
        lam[0] += x[0]

    def make():
        kept, segment, lam = nbprop.rollout_buffers(5, 1, every=2)
        if adjoint:
            functions = {"step": step, "adjoint": back, "loss_gradient": gradient}
            return functions | {"steps": 5, "kept": kept, "segment": segment, "lam": lam, "data": 0.1}
        return {"step": step, "start": np.ones(1), "steps": 5, "kept": kept, "segment": segment, "data": 0.1}

    return make


def _saved():
    path = FOLDER / "saved.safetensors"
    nbprop.save(path, NET, nbprop.init(NET))
    return path


def schedule_call(name, **valid):
    kinds = {k: Number(above=k in ("steps", "every", "start_divisor", "final_divisor")) for k in valid}
    return Call(getattr(schedules, name), lambda: dict(valid), kinds)


SQUARE = np.array([[0.5], [1.5]])
CALLS = {name: walk_call(name) for name in WALKS}
CALLS |= {name: optimizer_call(name) for name in _OPTIMIZERS}
CALLS |= {
    "plan": Call(
        nbprop.plan,
        lambda: {
            "net": NET,
            "loss": "mse",
            "batch": 2,
            "dtype": np.float64,
            "threads": 1,
            "mode": "training",
            "target": "cpu",
        },
        {
            "net": Made(),
            "loss": Choice(optional=True),
            "batch": Integer(),
            "dtype": Dtype(),
            "threads": Integer(),
            "mode": Choice(),
            "target": Choice(),
        },
    ),
    "workspace": Call(nbprop.workspace, lambda: {"plan": PLAN}, {"plan": Made()}),
    "layer_state": Call(nbprop.layer_state, lambda: {"plan": PLAN}, {"plan": Made()}),
    "init": Call(
        nbprop.init,
        lambda: {"net": NET, "seed": 0, "dtype": np.float64},
        {"net": Made(), "seed": Integer(0), "dtype": Dtype()},
    ),
    "views": Call(
        nbprop.views,
        lambda: {"net": NET, "params": nbprop.init(NET)},
        {
            "net": Made(),
            "params": Array(kinds=("f8", "f4", "f2", "c16", ">f8", "i8", "O", "U4", "u1", "?", "S3", ">i4")),
        },
    ),
    "summary": Call(nbprop.summary, lambda: {"net_or_plan": NET}, {"net_or_plan": Choice()}),
    "optimizer_state": Call(
        nbprop.optimizer_state,
        lambda: {"optimizer": "adam", "n_params": 3, "dtype": np.float64},
        {"optimizer": Choice(), "n_params": Integer(0), "dtype": Dtype()},
    ),
    "clip_value": Call(
        nbprop.clip_value,
        lambda: {"grads": np.ones(5), "limit": 1.0},
        {"grads": WRITTEN, "limit": Number(above=True, infinite=True)},
    ),
    "clip_norm": Call(
        nbprop.clip_norm,
        lambda: {"grads": np.ones(5), "limit": 1.0, "trainable": np.ones(5, bool)},
        {"grads": WRITTEN, "limit": Number(above=True, infinite=True), "trainable": _MASK},
    ),
    "lbfgs_state": Call(
        nbprop.lbfgs_state,
        lambda: {"n_params": 3, "memory": 4, "gtol": 1e-8, "ftol": 0.0},
        {"n_params": Integer(), "memory": Integer(), "gtol": Number(), "ftol": Number()},
    ),
    "lm_state": Call(
        nbprop.lm_state,
        lambda: {"n_params": 3, "gtol": 1e-8, "xtol": 1e-8, "ftol": 1e-8},
        {"n_params": Integer(), "gtol": Number(), "xtol": Number(), "ftol": Number()},
    ),
    "lbfgs_step": Call(
        nbprop.lbfgs_step,
        lambda: {"state": nbprop.lbfgs_state(3), "theta": np.ones(3), "loss": 3.0, "grad": 2 * np.ones(3)},
        {"state": WRITTEN, "theta": WRITTEN, "grad": Array(written=True)},
        renamed={"theta": ("grad",)},
    ),
    "lm_step": Call(
        nbprop.lm_step,
        lambda: {
            "state": nbprop.lm_state(1),
            "theta": np.ones(1),
            "residuals": np.ones(2),
            "jacobian": np.ones((2, 1)),
        },
        {"state": WRITTEN, "theta": WRITTEN, "residuals": PARAMS, "jacobian": PARAMS},
        renamed={"theta": ("jacobian", "state"), "residuals": ("jacobian",)},
    ),
    "explain": Call(
        nbprop.explain,
        lambda: {
            "plan": PLAN,
            "params": nbprop.init(NET),
            "x": np.ones((2, 3)),
            "output": 0,
            "baseline": np.zeros((2, 3)),
            "steps": 2,
        },
        {
            "plan": Made(),
            "params": PARAMS,
            "x": SAMPLES,
            "output": Index(0, 3, optional=True),
            "baseline": Array(finite=True, optional=True),
            "steps": Integer(1, 1 << 20),
        },
    ),
    "rounding_error": Call(
        nbprop.rounding_error,
        _problem(dtype="f4", step=0),
        {"plan": Made(), "params": PARAMS, **DATA, "dtype": Dtype(), "step": Integer(0, 2**40)},
    ),
    "gradcheck": Call(
        nbprop.gradcheck,
        lambda: {"net": NET, "loss": "mse", "batch": 2, "seed": 0, "tolerance": 1e-5, "weights": True},
        {
            "net": Made(),
            "loss": Choice(optional=True),
            "batch": Integer(),
            "seed": Integer(0),
            "tolerance": Number(),
            "weights": Flag(),
        },
    ),
    "objective": Call(
        nbprop.objective,
        lambda: {k: v for k, v in _problem()().items() if k != "params"},
        {"plan": Made(), **DATA},
    ),
    "hessian_operator": Call(nbprop.hessian_operator, _problem(), {"plan": Made(), "params": PARAMS, **DATA}),
    "gauss_newton_operator": Call(nbprop.gauss_newton_operator, _problem(), {"plan": Made(), "params": PARAMS, **DATA}),
    "jacobian_operator": Call(
        nbprop.jacobian_operator,
        lambda: {k: v for k, v in _problem()().items() if k in ("plan", "params", "x")},
        {"plan": Made(), "params": PARAMS, "x": SAMPLES},
    ),
    "fit": Call(nbprop.fit, fit_arguments, FIT_KINDS),
    "minimize": Call(
        nbprop.minimize,
        _problem(method="L-BFGS", maxiter=1),
        {
            "plan": Made(),
            "params": Array(written=True, finite=True),
            **DATA,
            "method": Choice(),
            "maxiter": Integer(0, optional=True),
        },
    ),
    "least_squares": Call(
        nbprop.least_squares,
        _problem(method="trf", jac="dense", loss="linear", f_scale=1.0, ftol=1e-8, max_nfev=1),
        {
            "plan": Made(),
            "params": Array(written=True, finite=True),
            **DATA,
            "method": Choice(),
            "jac": Choice(),
            "loss": Choice(),
            "f_scale": Number(above=True),
            "ftol": Number(optional=True),
            "max_nfev": Integer(optional=True),
        },
        renamed={"params": ("at the start",)},
    ),
    "fit_many": Call(
        nbprop.fit_many,
        lambda: {
            "net": cases.REGRESSOR,
            "thetas": nbprop.init(cases.REGRESSOR)[None].copy(),
            "xs": data()["x"][None],
            "ys": data()["target"][None],
            "loss": "mse",
            "method": "L-BFGS",
            "maxiter": 1,
            "gtol": 1e-8,
            "ftol": 1e-8,
            "lr": 0.01,
            "threads": 1,
        },
        {
            "net": Made(),
            "thetas": Array(written=True, finite=True),
            "xs": SAMPLES,
            "ys": SAMPLES,
            "loss": Choice(),
            "method": Choice(),
            "maxiter": Integer(),
            "gtol": Number(),
            "ftol": Number(),
            "threads": Integer(),
        },
    ),
    "generate": Call(
        nbprop.generate,
        lambda: {
            "net": TALKER,
            "params": nbprop.init(TALKER),
            "prompt": np.array([[0, 4]]),
            "count": 2,
            "temperature": 1.0,
            "top_k": 2,
            "seed": 0,
            "window": 3,
            "threads": 1,
        },
        {
            "net": Made(),
            "params": PARAMS,
            "prompt": Array(integers=True),
            "count": Integer(),
            "temperature": Number(),
            "top_k": Integer(optional=True),
            "seed": Integer(0),
            "window": Integer(1, 6, optional=True),
            "threads": Integer(),
        },
    ),
    "rollout_buffers": Call(
        nbprop.rollout_buffers,
        lambda: {"steps": 5, "n_states": 2, "every": 1},
        {"steps": Integer(), "n_states": Integer(), "every": Integer()},
    ),
    "save": Call(
        nbprop.save,
        lambda: {"path": FOLDER / "x.safetensors", "net": NET, "params": nbprop.init(NET)},
        {"path": Anywhere(), "net": Made(), "params": Array(kinds=("f8", "f4"))},
    ),
    "load": Call(nbprop.load, lambda: {"path": _saved()}, {"path": Anywhere()}),
    "huber": Call(nbprop.huber, lambda: {"delta": 1.0}, {"delta": Number(above=True)}),
    "schedules.constant": schedule_call("constant", step=1, lr=0.1),
    "schedules.step": schedule_call("step", step=1, lr=0.1, every=2, factor=0.5),
    "schedules.cosine": schedule_call("cosine", step=1, lr=0.1, steps=5, lowest=0.0),
    "schedules.one_cycle": schedule_call(
        "one_cycle", step=1, highest=0.1, steps=5, rise=0.3, start_divisor=25.0, final_divisor=1e4
    ),
    "schedules.warm_up": schedule_call("warm_up", step=1, lr=0.1, steps=5, start=0.1),
    "network": Call(
        lambda input_shape: nbprop.network(input_shape, nbprop.dense(2)),
        lambda: {"input_shape": (3,)},
        {"input_shape": Shape()},
    ),
}

# Layers: (the input's shape, a valid constructor's arguments, their kinds); network puts them to use.
_WINDOW = {"kernel": Window(), "stride": Window(optional=True), "padding": Window(0)}
_POOL = {"kernel": 2, "stride": 1, "padding": 0}
_CONV = {
    "filters": 2,
    "kernel": 2,
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
    "activation": None,
    "bias": True,
}
_CONV_KINDS = _WINDOW | {"filters": Integer(), "stride": Window(), "dilation": Window(), "groups": Integer()}
_CONV_KINDS |= {"activation": Choice(optional=True), "bias": Flag(), "init": Choice(optional=True)}
_STEPS = {"units": Integer(), "output": Choice(), "carry": Flag()}
LAYERS = {
    "activation": ((3,), {"name": "tanh"}, {"name": Choice()}),
    "attention": (
        (4, 6),
        {"heads": 2, "causal": True, "bias": True, "init": None},
        {"heads": Integer(), "causal": Flag(), "bias": Flag(), "init": Choice(optional=True)},
    ),
    "avg_pool1d": ((7, 2), _POOL, _WINDOW),
    "avg_pool2d": ((7, 7, 2), _POOL, _WINDOW),
    "batchnorm": ((3,), {"momentum": 0.1, "epsilon": 1e-5}, {"momentum": Number(), "epsilon": Number(above=True)}),
    "conv1d": ((7, 2), _CONV | {"init": None}, _CONV_KINDS),
    "conv2d": ((7, 7, 2), _CONV | {"init": None}, _CONV_KINDS),
    "dense": (
        (3,),
        {"units": 3, "activation": None, "bias": True, "init": None, "share": None},
        {
            "units": Integer(),
            "activation": Choice(optional=True),
            "bias": Flag(),
            "init": Choice(optional=True),
            "share": Choice(optional=True),
        },
    ),
    "dropout": ((3,), {"rate": 0.5, "seed": 0}, {"rate": Number(below=1.0), "seed": Integer(0)}),
    "embedding": (
        (3,),
        {"vocabulary": 5, "units": 3, "init": "normal"},
        {"vocabulary": Integer(), "units": Integer(), "init": Choice()},
    ),
    "gru": ((4, 2), {"units": 3, "output": "last", "carry": False}, _STEPS),
    "layernorm": (
        (3,),
        {"epsilon": 1e-5, "scale": True, "shift": True},
        {"epsilon": Number(), "scale": Flag(), "shift": Flag()},
    ),
    "local_response_norm": (
        (3, 7),
        {"size": 3, "alpha": 1e-4, "beta": 0.75, "k": 2.0},
        {"size": Integer(), "alpha": Number(), "beta": Number(), "k": Number(above=True)},
    ),
    "lstm": (
        (4, 2),
        {"units": 3, "output": "last", "carry": False, "unit_forget_bias": True},
        _STEPS | {"unit_forget_bias": Flag()},
    ),
    "max_pool1d": ((7, 2), _POOL, _WINDOW),
    "max_pool2d": ((7, 7, 2), _POOL, _WINDOW),
    "positions": ((4, 2), {"init": "small_normal"}, {"init": Choice()}),
    "reshape": ((6,), {"shape": (2, 3)}, {"shape": Choice()}),
    "rmsnorm": ((3,), {"epsilon": 1e-5, "scale": True}, {"epsilon": Number(), "scale": Flag()}),
    "rnn": (
        (4, 2),
        {"units": 3, "activation": "tanh", "output": "last", "carry": False},
        _STEPS | {"activation": Choice()},
    ),
    "slicing": ((7,), {"start": 1, "stop": 3}, {"start": Integer(0), "stop": Integer()}),
}


def layer_call(name):
    shape, valid, kinds = LAYERS[name]
    return Call(lambda **given: nbprop.network(shape, getattr(nbprop, name)(**given)), lambda: dict(valid), kinds)


CALLS |= {name: layer_call(name) for name in LAYERS}

# Public names that take nothing to check here, each with the reason.
LEFT_OUT = {
    **dict.fromkeys(
        ("Contributions", "Explanation", "History", "Network", "Plan", "RoundingError"), "made by functions"
    ),
    **dict.fromkeys(("mse", "binary_cross_entropy", "gaussian_nll", "softmax_cross_entropy"), "takes no arguments"),
    "schedules": "a module; its functions are in the table",
    "share": "for kernels, in compiled code",
    **dict.fromkeys(("rollout", "rollout_adjoint"), "compiled functions: test_rollouts.py"),
    "load_state": "test_storage.py",
    **dict.fromkeys(("custom", "elementwise"), "they compile what they get: test_custom.py"),
    **dict.fromkeys(("concat", "residual"), "any number of layers: test_plan.py"),
    **dict.fromkeys(("flatten", "global_avg_pool", "global_max_pool"), "takes no arguments"),
}


# -- trying --------------------------------------------------------------------------------------------------

SHOWN = 200  # faults printed


def shown(value):
    """A value in a line."""
    if isinstance(value, np.ndarray):
        flags = [name for name in ("C_CONTIGUOUS", "ALIGNED", "WRITEABLE") if not value.flags[name]]
        return f"{type(value).__name__} {value.dtype} {value.shape} {value.ravel()[:6].tolist()} not {flags}"
    if isinstance(value, int) and abs(value) > 2**200:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)[:80]


class Trial:
    """Makes calls with one argument changed, and gathers what is wrong with how they end."""

    def __init__(self, log):
        self.log, self.faults, self.made = log, [], 0

    def refused(self, name, argument, value):
        """The call must raise an error that names the argument."""
        self._call(name, argument, value, "accepted in silence")

    def taken(self, name, argument, value):
        """The call must be made, as the argument is right."""
        self._call(name, argument, value, None)

    def _call(self, name, argument, value, accepted):
        call = CALLS[name]
        arguments = call.make()
        arguments[argument] = value
        what = f"{name}: {argument} = {shown(value)}"
        self.log.seek(0)
        self.log.write(what.ljust(300)[:300] + "\n")
        self.log.flush()
        self.made += 1
        try:
            call.function(**arguments)
        except (TypeError, ValueError, OSError) as error:
            if not any(word in str(error) for word in (argument, *call.renamed.get(argument, ()))):
                self.faults.append(f"{what}: no name in {type(error).__name__}: {str(error)[:160]}")
            elif accepted is None:
                self.faults.append(f"{what}: refused, {error}")
        except Exception as error:
            self.faults.append(f"{what}: {type(error).__name__}: {str(error)[:160]}")
        else:
            if accepted:
                self.faults.append(f"{what}: {accepted}")


def sweep(trial):
    """Every example of every argument."""
    for name, call in CALLS.items():
        call.function(**call.make())
        for argument, kind in call.kinds.items():
            for value in kind.examples(call.make()[argument]):
                trial.refused(name, argument, value)


def random_arrays(trial, name, examples):
    """Random arrays for the array arguments of a function."""
    call = CALLS[name]
    places = [argument for argument, kind in call.kinds.items() if isinstance(kind, Array)]

    @settings(
        derandomize=True,
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def tried(drawn):
        argument = drawn.draw(st.sampled_from(places))
        valid, kind = call.make()[argument], call.kinds[argument]
        value = drawn.draw(arrays(valid))
        if not kind.fits(value, valid):
            trial.refused(name, argument, value)
        elif name in WALKS:
            trial.taken(name, argument, value)

    if places:
        tried()


def main():
    faulthandler.enable()
    warnings.simplefilter("error")
    unknown = set(nbprop.__all__) - set(CALLS) - set(LEFT_OUT)
    assert not unknown, f"public names without an entry in the table of valid calls: {sorted(unknown)}"
    for word in sys.argv[3:]:
        for name in LAYERS if word == "layers" else [word]:
            CALLS.pop(name)
    with open(sys.argv[1], "w", encoding="utf-8") as log:
        trial = Trial(log)
        sweep(trial)
        for name in CALLS:
            random_arrays(trial, name, int(sys.argv[2]))
    print(f"{trial.made} calls, {len(trial.faults)} faults")
    print("\n".join(trial.faults[:SHOWN]))


if __name__ == "__main__":
    main()
