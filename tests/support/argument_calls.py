"""A valid call of every public function, with the kinds of its arguments; see any_argument.py."""

import atexit
import functools
import importlib.util
import math
import shutil
import tempfile
from pathlib import Path

import numpy as np

import nbprop
import nbprop.data
from nbprop import schedules
from nbprop.runtime import arguments as arg
from nbprop.runtime.signatures import OPTIONAL, OUTPUTS, SIGNATURES
from support import cases
from support.argument_kinds import (
    AnySize,
    Anywhere,
    Array,
    Choice,
    Dtype,
    Flag,
    Function,
    Index,
    Integer,
    Made,
    Named,
    Number,
    Shape,
    Text,
)
from support.argument_layers import LAYERS

N, NET, PLAN = 4, cases.CLASSIFIER, nbprop.plan(cases.CLASSIFIER, "softmax_cross_entropy", batch=6)
REGRESSION = nbprop.plan(cases.REGRESSOR, "mse", batch=6)
TALKER = nbprop.network((6,), nbprop.embedding(5, 4), nbprop.positions(), nbprop.attention(2), nbprop.dense(5))
NORMED = nbprop.network((3,), nbprop.batchnorm(), nbprop.dense(2))
SCALED = nbprop.network((3,), nbprop.standardize(), nbprop.dense(2), nbprop.rescale())
_TEMPORARY = tempfile.TemporaryDirectory()
atexit.register(_TEMPORARY.cleanup)
FOLDER = Path(_TEMPORARY.name)


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


# function: its arguments that are tried. State and lengths belong to networks that have them.
WALKS = {
    name: ("plan", *(p for p in signature.parameters if p not in ("state", "lengths")))
    for name, signature in SIGNATURES.items()
}
WALKS["hessian"] = ("plan", "params", "x", "target", "out", "work", "weights", "step", "threads")
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
    plan, names = REGRESSION if name in ("jvp", "hvp", "jacobian", "hessian") else PLAN, WALKS[name]

    def make():
        found = {k: v for k, v in (walk_arguments(plan) | {"threads": 1}).items() if k in names}
        if name == "hessian":
            found["out"] = np.zeros((plan.n_params, plan.n_params))
        elif SIGNATURES[name].out:
            found["out"] = np.zeros(OUTPUTS[SIGNATURES[name].out][0](plan, N))
        return found

    kinds = {k: WALK_KINDS[k] for k in names if k in WALK_KINDS} | {"target": Array(integers=plan.classes > 0)}
    if name in SIGNATURES:
        places = {arg.NAMES[place]: place for place in SIGNATURES[name].arrays}
        for direction in ("v", "dx"):
            if direction in places and places[direction] not in SIGNATURES[name].written:
                optional = SIGNATURES[name].role(places[direction]) == OPTIONAL
                kinds[direction] = Array(optional=optional)
    return Call(getattr(nbprop, name), make, {k: kinds[k] for k in names})


def optimizer_call(name):
    def make():
        state = nbprop.optimizer_state(name, 7)
        masks = {"decay_mask": np.ones(7, bool), "trainable": np.ones(7, bool)}
        masks |= {} if name == "schedule_free_adamw" else {"l1": 0.1, "penalized": np.ones(7, bool)}
        numbers = {k: v for k, v in OPTIMIZER_DEFAULTS[name].items()}
        return {"params": np.ones(7), "grads": np.ones(7), "state": state, "step": 0, **numbers, **masks, "threads": 1}

    mask = Array(optional=True, kinds=(bool, np.uint8))
    kinds = {"params": WRITTEN, "grads": PARAMS, "state": WRITTEN, "step": Integer(0), "threads": Integer()}
    kinds |= {k: NUMBER_KINDS[k] for k in OPTIMIZER_DEFAULTS[name]} | {"decay_mask": mask, "trainable": mask}
    kinds |= {} if name == "schedule_free_adamw" else {"l1": Number(optional=True), "penalized": mask}
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
    "momentum_decay": _NUMBER,
    "warm_up": _NUMBER,
}
_OPTIMIZERS = (
    *("sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adam", "adamw", "rprop", "lion"),
    *("amsgrad", "radam", "nadam", "adadelta", "schedule_free_adamw"),
)


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
        "average": 0.5,
        "average_start": 0,
        "metrics": None,
        "accumulate": 1,
        "lr_scale": np.ones(REGRESSION.n_params),
        "max_norm": 1.0,
        "callbacks": None,
    }


@functools.cache
def _files():
    """Two .npy files, which last as long as the process."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    for name, array in zip(("x", "target"), data().values(), strict=True):
        np.save(folder / name, array)
    return folder / "x.npy", folder / "target.npy"


_CHUNKED = ("net", "params", "loss", "optimizer", "batch", "epochs", "seed", "callback", "checkpoint", "resume")
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
    "average": Number(above=True, below=1.0, optional=True),
    "average_start": AnySize(0),
    "metrics": Choice(optional=True),
    "accumulate": Integer(1, 8192),
    "lr_scale": Array(optional=True, finite=True),
    "max_norm": Number(above=True, optional=True),
    "callbacks": Choice(optional=True),
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


def _saved_state():
    path, plan = FOLDER / "state.safetensors", nbprop.plan(NORMED, batch=2)
    nbprop.save(path, NORMED, nbprop.init(NORMED), nbprop.layer_state(plan))
    return {"path": path, "plan": plan}


_WEIGHTS = {
    **{"a.weight": np.ones((5, 3)), "a.bias": np.ones(5)},
    **{"b.weight": np.ones((4, 5)), "b.bias": np.ones(4)},
}


def _saved_tensors():
    from safetensors.numpy import save_file

    path = FOLDER / "weights.safetensors"
    save_file(_WEIGHTS, path)
    return path


def _mlp():
    from sklearn.neural_network import MLPRegressor

    mlp = MLPRegressor(hidden_layer_sizes=())
    mlp.coefs_, mlp.intercepts_, mlp.out_activation_ = [np.ones((3, 2))], [np.ones(2)], "identity"
    return mlp


class Sequential:
    """As much of a model of Keras as is read."""

    layers = ()

    def get_config(self):
        x = {"class_name": "InputLayer", "config": {"name": "x", "batch_shape": [None, 3]}}
        return {"layers": [x, {"class_name": "ReLU", "config": {"name": "relu"}}]}


def _onnx_calls():
    """Of what needs onnx, where there is one."""
    if importlib.util.find_spec("onnx") is None:
        return {}
    path = FOLDER / "net.onnx"
    nbprop.to_onnx(path, NET, nbprop.init(NET))
    arguments = {"path": path, "net": NET, "params": nbprop.init(NET)}
    kinds = {"path": Anywhere(), "net": Made(), "params": Array(kinds=("f8", "f4"), finite=True)}
    return {
        "to_onnx": Call(nbprop.to_onnx, lambda: dict(arguments), kinds),
        "from_onnx": Call(
            nbprop.from_onnx,
            lambda: {"path": path, "output": "y"},
            {"path": Anywhere(), "output": Choice(optional=True)},
        ),
    }


def schedule_call(name, **valid):
    kinds = {k: Number(above=k in ("steps", "every", "start_divisor", "final_divisor", "power")) for k in valid}
    return Call(getattr(schedules, name), lambda: dict(valid), kinds)


def train_step_call():
    """A step of Adam; `state` and `lengths` belong to networks that have them."""
    adam = ("lr", "weight_decay", "eps", "beta1", "beta2")
    walk = ("plan", "params", "x", "target", "grads", "work", "weights", "step")

    def make():
        found = {name: walk_arguments(PLAN)[name] for name in walk}
        found |= {"optimizer_state": nbprop.optimizer_state("adam", PLAN.n_params), "optimizer": "adam"}
        masks = {"decay_mask": np.ones(PLAN.n_params, bool), "trainable": np.ones(PLAN.n_params, bool)}
        return found | {name: OPTIMIZER_DEFAULTS["adam"][name] for name in adam} | masks

    kinds = {name: WALK_KINDS[name] for name in walk if name in WALK_KINDS} | {"target": Array(integers=True)}
    kinds |= {"params": WRITTEN, "optimizer_state": WRITTEN, "optimizer": Choice()}
    kinds |= {name: Number(below=NUMBER_KINDS[name].below, optional=True) for name in adam}
    return Call(nbprop.train_step, make, kinds | {"decay_mask": _MASK, "trainable": _MASK})


def bind_call(lasting):
    """`bind` with wrong lasting arguments, or the function that it returns with wrong ones of a call."""
    names = ("plan", "params", "grads", "work") if lasting else ("x", "target", "step")

    def make():
        return {name: walk_arguments(PLAN)[name] for name in names}

    kinds = {name: WALK_KINDS[name] for name in names if name in WALK_KINDS}
    if lasting:
        return Call(nbprop.bind, make, kinds)
    made = walk_arguments(PLAN)
    gradient = nbprop.bind(PLAN, made["params"], made["grads"], made["work"])
    return Call(gradient, make, kinds | {"target": Array(integers=True)})


SQUARE = np.array([[0.5], [1.5]])
CALLS = {name: walk_call(name) for name in WALKS}
CALLS |= {name: optimizer_call(name) for name in _OPTIMIZERS}
CALLS |= {"train_step": train_step_call(), "bind": bind_call(True), "a bound gradient": bind_call(False)}
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
            "l2": 0.1,
            "l1": 0.0,
            "penalized": np.ones(NET.n_params, bool),
        },
        {
            "net": Made(),
            "loss": Choice(optional=True),
            "batch": Integer(),
            "dtype": Dtype(),
            "threads": Integer(),
            "mode": Choice(),
            "target": Choice(),
            "l2": Number(),
            "l1": Number(),
            "penalized": Array(optional=True),
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
    "trainable_mask": Call(nbprop.trainable_mask, lambda: {"net": SCALED}, {"net": Made()}),
    "fit_scaling": Call(
        nbprop.fit_scaling,
        lambda: {"net": SCALED, "params": nbprop.init(SCALED), **data(), "weights": np.ones(9)},
        {
            "net": Made(),
            "params": Array(written=True, kinds=(np.float64,)),
            "x": Array(),
            "target": Array(),
            "weights": Array(finite=True, optional=True),
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
        {"grads": Array(written=True, free=True, kinds=("f8", "f4")), "limit": Number(above=True, infinite=True)},
    ),
    "clip_norm": Call(
        nbprop.clip_norm,
        lambda: {"grads": np.ones(5), "limit": 1.0, "trainable": np.ones(5, bool)},
        {"grads": WRITTEN, "limit": Number(above=True, infinite=True), "trainable": _MASK},
    ),
    "max_norm": Call(
        nbprop.max_norm,
        lambda: {"params": np.ones(8), "matrices": np.array([[0, 3, 2]]), "limit": 1.0},
        {
            "params": Array(written=True, free=True, kinds=("f8", "f4")),
            "matrices": Array(kinds=("i8",)),
            "limit": Number(above=True),
        },
    ),
    "weight_matrices": Call(nbprop.weight_matrices, lambda: {"net": cases.REGRESSOR}, {"net": Made()}),
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
    "lbfgs": Call(
        nbprop.lbfgs,
        lambda: {
            **{"fun": lambda theta: (float(theta @ theta), 2 * theta), "start": np.ones(3)},
            **{"memory": 4, "gtol": 1e-8, "ftol": 0.0, "maxiter": 9, "callback": None},
        },
        {
            "fun": Function(),
            "start": Array(finite=True, free=True),
            **{"memory": Integer(), "gtol": Number(), "ftol": Number(), "maxiter": Integer()},
            "callback": Function(optional=True),
        },
    ),
    "levenberg_marquardt": Call(
        nbprop.levenberg_marquardt,
        lambda: {
            **{"residuals": np.copy, "jacobian": lambda theta: np.eye(theta.size), "start": np.ones(3)},
            **{"gtol": 1e-8, "xtol": 1e-8, "ftol": 1e-8, "max_nfev": 9},
        },
        {
            **{"residuals": Function(), "jacobian": Function(), "start": Array(finite=True, free=True)},
            **{"gtol": Number(), "xtol": Number(), "ftol": Number(), "max_nfev": Integer(optional=True)},
        },
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
    "trace": Call(
        nbprop.trace,
        lambda: {
            "plan": REGRESSION,
            "params": nbprop.init(REGRESSION.net, seed=3),
            "x": np.ones((2, 3)),
            "target": np.ones((2, 2)),
            "lr": 0.1,
            "step": 0,
        },
        {
            "plan": Made(),
            "params": PARAMS,
            "x": SAMPLES,
            "target": SAMPLES,
            "lr": Number(),
            "step": Integer(0, 2**40 - 1),
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
    "fit": Call(nbprop.fit, fit_arguments, FIT_KINDS, renamed={"params": ("x must hold",)}),
    "fit_chunks": Call(
        nbprop.fit_chunks,
        lambda: {
            **{name: value for name, value in fit_arguments().items() if name in _CHUNKED},
            "chunks": [tuple(data().values())],
            "window": 9,
            "schedule": None,
            "read_ahead": False,
        },
        {**{name: FIT_KINDS[name] for name in _CHUNKED}, "chunks": Choice(), "window": Integer()}
        | {"schedule": Function(optional=True), "read_ahead": Flag()},
    ),
    "file_chunks": Call(
        nbprop.file_chunks,
        lambda: {"files": _files(), "rows": 9, "dtype": np.float32},
        {"rows": Integer(), "dtype": Dtype(optional=True)},
    ),
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
            "weights": np.ones((1, len(data()["x"]))),
            "penalized": np.ones(cases.REGRESSOR.n_params, bool),
            "n_jobs": 1,
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
            "weights": Array(optional=True, finite=True),
            "penalized": Array(optional=True),
            "n_jobs": Integer(1, 1, optional=True),
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
            "prompt": Array(integers=True, free=True),
            "count": Integer(),
            "temperature": Number(),
            "top_k": Integer(optional=True),
            "seed": Integer(0),
            "window": Integer(1, 6, optional=True),
            "threads": Integer(),
        },
    ),
    "rollout": Call(
        nbprop.rollout,
        _rollout(False),
        {"step": Function(), "start": PARAMS, "steps": Integer(), "kept": WRITTEN, "segment": WRITTEN},
        renamed={"steps": ("kept",), "kept": ("segment",), "segment": ("kept",)},
    ),
    "rollout_adjoint": Call(
        nbprop.rollout_adjoint,
        _rollout(True),
        {
            **dict.fromkeys(("step", "adjoint", "loss_gradient"), Function()),
            "steps": Integer(),
            **dict.fromkeys(("kept", "segment", "lam"), WRITTEN),
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
    "export_c": Call(
        nbprop.export_c,
        lambda: {
            **{"stem": FOLDER / "net", "net": NET, "params": nbprop.init(NET), "functions": ["forward"]},
            **{"dtype": "float32", "batch": 2, "loss": "softmax_cross_entropy", "bindings": ["fortran"]},
            "weights": "source",
        },
        {
            **{"stem": Anywhere(), "net": Made(), "params": Array(kinds=("f8", "f4"), finite=True)},
            **{"functions": Choice(optional=True), "dtype": Dtype(), "batch": Integer()},
            **{"loss": Choice(optional=True), "bindings": Choice(), "weights": Choice()},
        },
    ),
    "from_sklearn": Call(
        nbprop.from_sklearn, lambda: {"mlp": _mlp(), "logits": False}, {"mlp": Made(), "logits": Flag()}
    ),
    "from_torch": Call(
        nbprop.from_torch,
        lambda: {"source": _WEIGHTS, "net": cases.CLASSIFIER},
        {"source": Choice(), "net": Made()},
    ),
    "from_keras": Call(nbprop.from_keras, lambda: {"model": Sequential()}, {"model": Anywhere()}),
    "from_safetensors": Call(
        nbprop.from_safetensors,
        lambda: {"path": _saved_tensors(), "net": cases.CLASSIFIER, "layout": "hf"},
        {"path": Anywhere(), "net": Made(), "layout": Choice()},
    ),
    "bounds": Call(
        nbprop.bounds,
        lambda: {"net": NET, "params": nbprop.init(NET), "low": np.zeros(3), "high": np.ones(3)},
        {
            **{"net": Made(), "params": Array(kinds=("f8", "f4"), finite=True)},
            **{name: Array(kinds=("f8", "f4"), finite=True) for name in ("low", "high")},
        },
        renamed={"low": ("high",), "high": ("low",)},
    ),
    "load_state": Call(nbprop.load_state, _saved_state, {"path": Anywhere(), "plan": Made()}),
    "load": Call(nbprop.load, lambda: {"path": _saved()}, {"path": Anywhere()}),
    "huber": Call(nbprop.huber, lambda: {"delta": 1.0}, {"delta": Number(above=True)}),
    "focal": Call(nbprop.focal, lambda: {"gamma": 1.0}, {"gamma": Number()}),
    "student_t_nll": Call(nbprop.student_t_nll, lambda: {"nu": 1.0}, {"nu": Number(above=True)}),
    "beta_nll": Call(nbprop.beta_nll, lambda: {"beta": 0.5}, {"beta": Number()}),
    "quantile": Call(nbprop.quantile, lambda: {"quantiles": 0.5}, {"quantiles": Number(above=True, below=1.0)}),
    "softmax_cross_entropy": Call(
        nbprop.softmax_cross_entropy,
        lambda: {"label_smoothing": 0.1, "ignore_index": -100},
        {"label_smoothing": Number(below=1.0)},
    ),
    **{
        name: Call(
            getattr(nbprop, name),
            lambda: {"missing": "ignore", "output_weights": (1.0, 2.0)},
            {"missing": Choice(optional=True)},
        )
        for name in ("mse", "mae", "log_cosh", "poisson_nll", "hinge", "binary_cross_entropy")
    },
    "schedules.constant": schedule_call("constant", step=1, lr=0.1),
    "schedules.step": schedule_call("step", step=1, lr=0.1, every=2, factor=0.5),
    "schedules.cosine": schedule_call("cosine", step=1, lr=0.1, steps=5, lowest=0.0),
    "schedules.one_cycle": schedule_call(
        "one_cycle", step=1, highest=0.1, steps=5, rise=0.3, start_divisor=25.0, final_divisor=1e4
    ),
    "schedules.polynomial": schedule_call("polynomial", step=1, lr=0.1, steps=5, power=2.0, lowest=0.0),
    "schedules.warm_restarts": schedule_call("warm_restarts", step=1, lr=0.1, steps=5, growth=2.0, lowest=0.0),
    "schedules.warm_up": schedule_call("warm_up", step=1, lr=0.1, steps=5, start=0.1),
    "network": Call(
        lambda input_shape: nbprop.network(input_shape, nbprop.dense(2)),
        lambda: {"input_shape": (3,)},
        {"input_shape": Shape()},
    ),
}


def layer_call(name):
    shape, valid, kinds = LAYERS[name]
    return Call(lambda **given: nbprop.network(shape, getattr(nbprop, name)(**given)), lambda: dict(valid), kinds)


CALLS |= {name: layer_call(name) for name in LAYERS}


def twice(y, x, n, size):
    for i in range(n * size):
        y[i] = 2 * x[i]


def twice_backward(dx, dy, x, y, n, size):
    for i in range(n * size):
        dx[i] = 2 * dy[i]


def no_parameters(shape, **options):
    return {}


def one_size(shape, **options):
    return (math.prod(shape),)


def same_shape(shape, **options):
    return shape


CUSTOM = {
    "kind": "twice",
    "forward": twice,
    "backward": twice_backward,
    "parameters": no_parameters,
    "sizes": one_size,
    "output_shape": same_shape,
}
SQUARE = {"kind": "square_here", "function": lambda x: x * x, "derivative": lambda x, y: 2 * x}
# An argument of each name is one of those that the function takes any number of.
CALLS |= {
    "custom": Call(nbprop.custom, lambda: dict(CUSTOM), {"kind": Text()} | dict.fromkeys(list(CUSTOM)[1:], Function())),
    "elementwise": Call(
        nbprop.elementwise, lambda: dict(SQUARE), {"kind": Text(), "function": Function(), "derivative": Function()}
    ),
    "custom_loss": Call(
        nbprop.custom_loss,
        lambda: {"kind": "square_loss_here", "loss": lambda y, t: (y - t) ** 2, "derivative": lambda y, t: 2 * (y - t)},
        {"kind": Text(), "loss": Function(), "derivative": Function()},
    ),
    "residual": Call(
        lambda layers: nbprop.residual(nbprop.dense(3), layers),
        lambda: {"layers": nbprop.dense(3)},
        {"layers": Made()},
    ),
    "concat": Call(
        lambda branches: nbprop.concat([nbprop.dense(3)], branches),
        lambda: {"branches": [nbprop.dense(3)]},
        {"branches": Made()},
        {"branches": ("concat takes layers",)},
    ),
    "predict": Call(
        nbprop.predict,
        lambda: {
            "net": TALKER,
            "params": nbprop.init(TALKER),
            "x": np.zeros((3, 6), np.int64),
            "batch": 2,
            "kind": "probabilities",
            "loss": "softmax_cross_entropy",
            "lengths": np.array([1, 3, 6]),
            "threads": 1,
            "out": np.empty((3, 6, 5)),
        },
        {
            "net": Made(),
            "params": Array(),
            "x": Array(integers=True),
            "batch": Integer(),
            "kind": Choice(),
            "loss": Choice(),
            "lengths": Array(integers=True, optional=True),
            "threads": Integer(),
            "out": Array(written=True, optional=True),
        },
    ),
    "share": Call(
        nbprop.share,
        lambda: {"total": 10, "part": 1, "parts": 3},
        {"total": Integer(0), "part": Integer(0), "parts": Integer(1)},
    ),
    "data.digits": Call(nbprop.data.digits, lambda: {"dtype": np.float32}, {"dtype": Dtype()}),
}

# Public names that take nothing to check here, each with the reason.
CALLS |= _onnx_calls()
LEFT_OUT = {
    **dict.fromkeys(
        ("rank_rows", "data_on_ranks", "value_and_grad_on_ranks"),
        "needs a communicator; tests/cluster has its arguments",
    ),
    **{name: "needs onnx" for name in ("to_onnx", "from_onnx") if name not in CALLS},
    **dict.fromkeys(
        ("Bounds", "Contributions", "Explanation", "History", "Network", "Plan", "RankError", "RoundingError", "Trace"),
        "made by functions",
    ),
    **dict.fromkeys(("cosine", "gaussian_nll", "kl_divergence", "soft_cross_entropy"), "takes no arguments"),
    "schedules": "a module; its functions are in the table",
    "callbacks": "a module; fit takes its objects",
    **dict.fromkeys(("flatten", "global_avg_pool", "global_max_pool"), "takes no arguments"),
}
