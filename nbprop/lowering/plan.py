"""A plan: a network with a loss, a batch capacity and a dtype, as one flat op table."""

import functools
import math
import warnings
from typing import Any, Literal

import numpy as np
from numba import types
from numba.extending import typeof_impl
from numpy.typing import DTypeLike, NDArray

from nbprop import backends
from nbprop.backends import TARGETS
from nbprop.collector import collector_paused
from nbprop.compiler.fingerprint import is_ours
from nbprop.compiler.intrinsics import register_address_type
from nbprop.losses import Loss, loss_named
from nbprop.losses.penalty import penalty_of
from nbprop.lowering.programs import lower, lower_along, lower_samples
from nbprop.networks.network import Network, positions_that_count
from nbprop.program import elements, frame, table
from nbprop.validation import as_dtype, named, positive

_PROGRAM_PARTS = {
    table.FORWARD: ("forward", "copy_y"),
    table.VALUE: ("forward", "value"),
    table.VALUE_AND_GRAD: ("forward", "loss", "backward"),
    table.BACKWARD: ("copy_dy", "backward"),
    table.BACKWARD_INPUT: ("copy_dy", "backward_input"),
    table.VJP: ("forward", "copy_dy", "backward"),
    table.VJP_INPUT: ("forward", "copy_dy", "backward_input"),
    table.JVP: ("jvp",),
    table.HVP: ("hvp",),
    table.GAUSS_NEWTON: ("gauss_newton",),
    table.FISHER: ("fisher",),
    table.JACOBIAN: ("jacobian_forward", "jacobian"),
    table.NEXT_OUTPUT: ("jacobian",),
    table.PER_SAMPLE: ("per_sample_forward", "per_sample"),
    table.SAMPLE_GRAD: ("forward", "loss", "backward"),
}
_WITH_PENALTY = {
    table.VALUE: ("forward", "value", "penalty_value"),
    table.VALUE_AND_GRAD: ("forward", "loss", "loss_backward", "penalty_sum"),
}


def _programs_along(loss):
    """The programs that take derivatives along a direction."""
    if loss is None or loss.curvature is None:
        return ("jvp",)
    own_fisher = loss.fisher is not None and loss.fisher is not loss.curvature
    return ("jvp", "hvp", "gauss_newton", *(("fisher",) if own_fisher else ()))


def _leaves_samples_apart(net):
    """Whether every layer with parameters can leave each sample's gradients apart."""
    owners = {path.rpartition(".")[0] for path in net.slots}
    return all(layer.sample_gradients for path, layer in net.nodes if path in owners or layer.kind == "dense")


def _rows(ops, fingerprints):
    """The rows of some ops, one after the other."""
    words: list[int] = []
    for op in ops:
        operands, sizes = op.operands, op.words
        words += fingerprints[op.kernel], table.OPERANDS + 3 * len(operands) + len(sizes), int(op.barrier)
        for buffer in operands:
            words += (frame.NONE, 0, 0) if buffer is None else (buffer.space, buffer.offset, buffer.size)
        words += sizes
    return np.array(words, np.int64)


class Plan:
    """A network lowered for a loss, a batch capacity, a dtype and a thread count; made by `plan`.

    Immutable. Pickles by its description. Passes into @njit functions, as an argument or as a global. With watch,
    "layers" or "values", the outputs of all layers, or all values that layers compute, stay in the workspace with
    their gradients, at the places in `watched`.

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan = nbprop.plan(net, loss="mse", batch=64)
    >>> plan.batch, plan.dtype, plan.n_params, plan.input_shape, plan.output_shape
    (64, dtype('float64'), 2, (1,), (1,))
    """

    target = "cpu"
    precision = None  # of products, where it is not that of dtype

    def __init__(self, net, loss, batch, dtype, threads_wanted, mode="training", watch="", penalty=None):
        self.net, self.batch, self.dtype, self.threads, self.mode = net, batch, dtype, threads_wanted, mode
        self.loss, self.penalty = loss, penalty
        lowered = lower(net, loss, batch, dtype, threads_wanted, mode, watch, self.target, penalty)
        self.watch, self.watched = watch, lowered.watched
        self.parts, work, bound = lowered.parts, lowered.work_size, lowered.bound
        self.without_tangents = next((path for path, layer in net.nodes if not layer.tangents), None)
        self.without_second = None if self.without_tangents is None else f"layer {self.without_tangents}"
        if self.without_second is None and loss is not None and loss.curvature is None:
            self.without_second = f"loss {loss.kind}"
        if self.without_tangents is None and mode != "decoding" and not watch:
            for program in _programs_along(loss):
                along = lower_along(program, net, loss, batch, dtype, threads_wanted, mode, penalty, self.target)
                self.parts = self.parts | along.parts
                work, bound = max(work, along.work_size), max(bound, along.bound)
            if loss is not None and loss.curvature is not None and loss.fisher is loss.curvature:
                self.parts["fisher"] = self.parts["gauss_newton"]
        if mode != "decoding" and not watch and not lowered.state and _leaves_samples_apart(net):
            for program in ("jacobian",) if loss is None or loss.couples_samples else ("jacobian", "per_sample"):
                apart = lower_samples(program, net, loss, batch, dtype, threads_wanted, mode, self.target)
                self.parts = self.parts | apart.parts
                work, bound = max(work, apart.work_size), max(bound, apart.bound)
        self.n_params = net.n_params
        self.state_parts = lowered.state  # (label, buffer, initial values)
        self.coupling, self.min_samples = lowered.coupling
        self.state_size = sum(buffer.size for _, buffer, _ in self.state_parts)
        # One row of the output behind the rest: the unit vectors that make a Jacobian.
        self.input_shape, self.output_shape = lowered.input_shape, lowered.output_shape
        self.unit_offset, self.unit_size = work, math.prod(self.output_shape)
        self.work_size, self.liveness_bound = work + self.unit_size, bound + self.unit_size
        self.element_code = elements.element_code(dtype)
        # Statistics over all positions would take in those beyond lengths.
        self.over_positions = lowered.over_positions if net.max_length else ""
        self.max_length = 0 if self.over_positions else net.max_length
        self.positions = net.input_shape[0] if mode == "decoding" else 0
        self.x_classes = net.layers[0].index_limit
        self.x_code = elements.ANY_INTEGER if self.x_classes else self.element_code
        self.target_shape, self.target_code, self.classes = (), 0, 0
        if loss is not None:
            self.target_shape, self.classes = loss.target(net.output_shape)
            self.target_code = elements.ANY_INTEGER if self.classes else self.element_code
        self.target_range = (-np.inf, np.inf) if loss is None else tuple(map(float, loss.target_range))
        positions = positions_that_count(self.max_length, self.output_shape)
        self.positions_of_loss = positions if self.target_shape[:1] == (positions,) else 1
        self.table = self._emit()
        self.table.flags.writeable = False
        self.address = self.table.ctypes.data
        self._load()
        self._prepare()

    def _emit(self):
        header = [0] * table.HEADER
        header[table.VERSION] = table.TABLE_VERSION
        header[table.DTYPE] = self.element_code
        header[table.BATCH] = self.batch
        header[table.THREADS] = self.threads
        header[table.N_PARAMS] = self.n_params
        header[table.WORK] = self.work_size
        header[table.X_CODE] = self.x_code
        header[table.CLASSES] = self.x_classes
        header[table.STATE] = self.state_size
        for start, shape in (
            (table.X_SHAPE, self.input_shape),
            (table.Y_SHAPE, self.output_shape),
            (table.TARGET_SHAPE, self.target_shape),
        ):
            if len(shape) > table.MAX_RANK:
                raise ValueError(f"plan: shapes of up to {table.MAX_RANK} axes are supported, got {shape}")
            header[start : start + 1 + len(shape)] = [len(shape), *shape]
        header[table.TARGET_CODE] = self.target_code
        header[table.TARGET_CLASSES] = self.classes
        header[table.TARGET_IGNORED] = 0 if self.loss is None else self.loss.ignored
        header[table.UNIT] = self.unit_offset
        header[table.LENGTHS] = 0 if self.positions else self.max_length
        header[table.POSITIONS] = self.positions
        header[table.MIN_SAMPLES] = self.min_samples
        header[table.TARGET_LEAST : table.TARGET_MOST + 1] = np.array(self.target_range).view(np.int64).tolist()
        header[table.LOSS_POSITIONS] = self.positions_of_loss
        kernels = dict.fromkeys(op.kernel for ops in self.parts.values() for op in ops)
        fingerprints = {kernel: kernel.fingerprint(self.numba_dtype) for kernel in kernels}
        of_ops = {id(ops): ops for ops in self.parts.values()}  # some parts are one
        of_ops = {number: _rows(ops, fingerprints) for number, ops in of_ops.items()}
        rows = {part: of_ops[id(ops)] for part, ops in self.parts.items()}
        blocks, length = [], table.HEADER
        for program in _PROGRAM_PARTS:
            place = slice(table.PROGRAMS + 2 * program, table.PROGRAMS + 2 * program + 2)
            if program == table.SAMPLE_GRAD and self.penalty is None:
                header[place] = header[table.PROGRAMS + 2 * table.VALUE_AND_GRAD :][:2]
                continue
            found = [rows[part] for part in self._parts_of(program) if part in rows]
            begin, length = length, length + sum(map(len, found))
            header[place] = [begin, length]
            blocks += found
        return np.concatenate([np.array(header, np.int64), *blocks])

    def ops(self, program):
        """The ops of a program (a number of table.py), in order."""
        return [op for part in self._parts_of(program) for op in self.parts.get(part, ())]

    def _parts_of(self, program):
        """The names of a program's parts, in order; not every plan has all of them."""
        return _PROGRAM_PARTS[program] if self.penalty is None else _WITH_PENALTY.get(program, _PROGRAM_PARTS[program])

    def op_at(self, row):
        """The op whose row begins at a word of the table; None where none does."""
        for program in _PROGRAM_PARTS:
            at = self.table[table.PROGRAMS + 2 * program]
            for op in self.ops(program):
                if at == row:
                    return op
                at += self.table[at + table.LENGTH]
        return None

    @property
    def numba_dtype(self):
        return types.float32 if self.dtype == np.float32 else types.float64

    def _prepare(self):
        """Have the backend load and start what a first call needs."""
        backends.get("cpu").prepare(self)

    def _load(self):
        """Compile, or fetch from the disk cache, what first derivatives call; others follow at their first call."""
        kernels = dict.fromkeys(op.kernel for program in range(table.VJP_INPUT + 1) for op in self.ops(program))
        for kernel in kernels:
            kernel.load(self.numba_dtype)

    def notes(self):
        """What a summary says beside its tables, a paragraph each."""
        return []

    def new_workspace(self):
        """What `nbprop.workspace` returns."""
        # On a cache line, as its buffers are: wide loads and stores that cross a line cost convolutions 3 %.
        room = np.empty(self.work_size + 64 // self.dtype.itemsize, self.dtype)
        first = -room.ctypes.data % 64 // self.dtype.itemsize
        return room[first : first + self.work_size]

    def new_state(self, state):
        """What `nbprop.layer_state` returns, given the values as a host array."""
        return state

    def source_digest(self):
        """Identifies what compiled code freezes of a plan that it names (see fingerprint.py)."""
        return self.table.tobytes()

    def __reduce__(self):
        description = self.net, self.loss, self.batch, self.dtype, self.threads, self.mode, self.watch
        return Plan, description if self.penalty is None else (*description, self.penalty)

    def __repr__(self):
        loss = self.loss.kind if self.loss else None
        mode = "" if self.mode == "training" else f", mode={self.mode!r}"
        mode += "" if self.penalty is None else f", {self.penalty}"
        sizes = f"batch={self.batch}, dtype={self.dtype}, threads={self.threads}"
        return f"plan({self.net!r}, loss={loss!r}, {sizes}{mode})"


def no_lengths(plan):
    """Why a plan takes no lengths: what follows the argument's name."""
    if plan.over_positions:
        return (
            f"does not go with layer {plan.over_positions}, whose statistics run over all positions, those beyond "
            'lengths too; use layernorm, or with batchnorm mode="inference"'
        )
    return "is for networks with a layer that takes lengths over x's first axis, which this one has not; leave it out"


class PlanType(types.Type):
    """A plan in compiled code: the address of its table. One type for each dtype, whatever the network."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(f"nbprop.Plan({dtype})")


plan_address = register_address_type(PlanType, "address", lambda plan: plan.table)


@typeof_impl.register(Plan)
def _type_of_plan(plan, context):
    return PlanType(plan.numba_dtype)


MODES = ("training", "inference", "decoding")
PRECISIONS = ("bfloat16", "bfloat16x3")


def plan(
    net: Network,
    loss: str | Loss | None = None,
    batch: int = 1,
    dtype: DTypeLike = np.float64,
    threads: int = 1,
    mode: Literal["training", "inference", "decoding"] = "training",
    target: Literal["cpu", "cuda"] = "cpu",
    l2: float = 0.0,
    l1: float = 0.0,
    penalized: NDArray[np.bool_] | None = None,
    precision: Literal["bfloat16", "bfloat16x3"] | None = None,
) -> Plan:
    """Lower a network to the op table that the other functions walk.

    Parameters
    ----------
    net : Network
    loss : str or None
        "mse", "softmax_cross_entropy", "binary_cross_entropy", "huber" or "gaussian_nll" (or a loss made with
        arguments, such as ``nbprop.huber(delta=2.0)``); None for a plan that only runs forward and backward.
    batch : int
        Capacity: the most samples that one call may bring. Fewer are always fine.
    dtype : float32 or float64
        Of parameters, inputs, gradients and workspace.
    threads : int
        Threads that walk together; capped at the process's cores when it runs. The bits do not depend on it.
    mode : "training", "inference" or "decoding"
        What layers that differ between training and use do in all functions of this plan: dropout draws or passes
        through, batch normalization takes the batch's statistics or the running ones. "decoding" is inference one
        position a call, for networks over a sequence (T, ...): x is (n, 1, ...), `step` the position, from 0, and what
        the positions before left behind (keys and values, hidden states) is in the layer state. It only runs forward.
    target : "cpu" or "cuda"
        Where it runs. On "cuda" every array of a call is a device array, and `threads` has no meaning (docs/cuda.md).
    l2, l1 : float
        Penalties that belong to the loss: l2 / 2 times the sum of squares of the penalized parameters plus l1 times
        that of their magnitudes is added to the mean over the batch, once a call, whatever the samples' weights. So l2
        is what optimizers call weight decay. All functions of the loss see them: `value`, `value_and_grad` (with l1 a
        subgradient, 0 where a parameter is 0), `hvp`, `gauss_newton_product` and `fisher_product` (l2 v is added),
        solvers and operators. `forward`, `jacobian`, `vjp` and `per_sample_grads` are the network's or a sample's own,
        and have none. Not on "cuda".
    penalized : (net.n_params,) bool array, or None
        Which parameters are penalized. None: weights, which are arrays of two axes and more, but not biases and gains.
        Numbers that layers are given (`trainable_mask`) never are.
    precision : None, "bfloat16" or "bfloat16x3"
        Of the factors of products on tensor cores, with target "cuda" and float32: rounded to bfloat16 (8 significant
        bits), or each the sum of two bfloat16 (16 bits). Sums, parameters, gradients and all other arithmetic stay
        float32. `summary` says which layers it applies to. None: that of dtype.

    Returns
    -------
    Plan
        For the same arguments the same one, unless layers or a loss of the user's own take part: then a new one each
        time, with their code as it is now.

    Raises
    ------
    ValueError, TypeError
        For an unknown loss or mode, a loss that does not fit the network's output, a network that cannot decode,
        penalties without a loss, a precision that the target or dtype does not have.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> nbprop.plan(net, loss="mse", batch=64, dtype=np.float32)
    plan(network((1,), dense(1)), loss='mse', batch=64, dtype=float32, threads=1)
    """
    if not isinstance(net, Network):
        raise TypeError(f"plan: net must be what nbprop.network(...) returns, got {type(net).__name__}")
    batch, threads = positive("plan: batch", batch), positive("plan: threads", threads)
    mode, target = named(MODES)("plan: mode", mode), named(TARGETS)("plan: target", target)
    if mode == "decoding" and loss is not None:
        raise ValueError('plan: mode="decoding" only runs forward; leave the loss out')
    penalty = penalty_of("plan", net, l2, l1, penalized)
    if penalty is not None and loss is None:
        raise ValueError("plan: l2 and l1 belong to a loss; pass loss=")
    loss, real = None if loss is None else loss_named(loss), as_dtype(dtype)
    _check_precision(precision, target, real)
    _warn_of_doubled(net, loss)
    return _made(net, loss, batch, real, threads, mode, target, penalty, precision)


def _made(net, loss, *options):
    """A plan, perhaps a remembered one."""
    # A user's code may be another by now, although its names are the same: only what is nbprop's own is remembered.
    code = [type(layer) for _, layer in net.nodes] + ([type(loss)] if loss is not None else [])
    make = _remembered_plan if all(map(is_ours, code)) else _new_plan
    return make(net, loss, *options)


def plan_like(plan, **changes):
    """The plan of the same network and loss with another `mode` or `penalty`."""
    found = {"mode": plan.mode, "penalty": plan.penalty} | changes
    if (found["mode"], found["penalty"]) == (plan.mode, plan.penalty):
        return plan
    options = plan.batch, plan.dtype, plan.threads, found["mode"], plan.target, found["penalty"], plan.precision
    return _made(plan.net, plan.loss, *options)


def _check_precision(precision, target, dtype):
    """Refuse a precision that a plan cannot have."""
    if precision is None:
        return
    named(PRECISIONS)("plan: precision", precision)
    if target != "cuda":
        raise ValueError(
            f'plan: precision={precision!r} needs target="cuda", got target={target!r}; leave precision out'
        )
    if dtype != np.float32:
        raise ValueError(
            f"plan: precision={precision!r} needs dtype=float32, got {dtype}; make the plan in float32, or leave "
            "precision out"
        )


def _warn_of_doubled(net, loss):
    """Warn where the network ends in what its loss does itself: a softmax of a softmax learns badly without a word."""
    shapes_only = ("flatten", "reshape", "dropout")
    last = next((layer for layer in reversed(net.layers) if layer.kind not in shapes_only), None)
    name = getattr(last, "name" if last is not None and last.kind == "activation" else "activation", None)
    if loss is not None and name in loss.applies:
        text = (
            f"plan: the network ends in {name}, but {loss.kind} takes logits and applies its own; leave the activation "
            "out of the last layer, and apply it to what forward gives"
        )
        warnings.warn(text, UserWarning, stacklevel=3)


def _new_plan(net, loss, batch, dtype, threads_wanted, mode, target, penalty, precision):
    plan_class, threads = (Plan, threads_wanted) if target == "cpu" else (backends.get(target).plan_class, 1)
    options = {} if precision is None else {"precision": precision}
    try:
        with collector_paused():
            return plan_class(net, loss, batch, dtype, threads, mode, penalty=penalty, **options)
    except OverflowError:
        raise ValueError(
            f"plan: arrays of a batch of {batch:,} would have more than 2**63 elements; make batch smaller"
        ) from None


_remembered_plan = functools.lru_cache(maxsize=256)(_new_plan)


def workspace(plan: Plan) -> NDArray[Any]:
    """A new workspace for a plan: 1-D, its dtype, uninitialised. Pure scratch; one for each concurrent caller.

    >>> import nbprop
    >>> plan = nbprop.plan(nbprop.network((3,), nbprop.dense(2)), batch=8)
    >>> nbprop.workspace(plan).dtype
    dtype('float64')
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"workspace: plan must be what nbprop.plan(...) returns, got {type(plan).__name__}")
    return plan.new_workspace()


def layer_state(plan: Plan) -> NDArray[Any]:
    """New layer state for a plan: (plan.state_size,), its dtype, as it is before the first step.

    Running statistics of batch normalization, hidden states that a recurrent layer carries from call to call, keys and
    values of a decoding plan. The calls of a plan take it as `state` and change it. Its layout is that of every plan of
    the same network and mode with the same batch; statistics come first, whatever the batch.

    >>> import nbprop
    >>> net = nbprop.network((2,), nbprop.batchnorm())
    >>> nbprop.layer_state(nbprop.plan(net, batch=8))  # running means, running variances
    array([0., 0., 1., 1.])
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"layer_state: plan must be what nbprop.plan(...) returns, got {type(plan).__name__}")
    return plan.new_state(first_state(plan))


def first_state(plan):
    """The values of new layer state, on the host."""
    state = np.empty(plan.state_size, plan.dtype)
    for _, buffer, initial in plan.state_parts:
        state[buffer.offset : buffer.offset + buffer.size] = initial
    return state
