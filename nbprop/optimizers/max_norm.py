"""Max norm: the projection of weights after an update, by each unit (Srivastava et al. 2014, section 5.1).

    w_j *= limit / |w_j|  where |w_j| > limit

for the incoming weights w_j of each unit j: a column of its layer's weight, seen as a matrix (rows, units).
"""

from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload
from numpy.typing import NDArray

from nbprop.arrays import as_array, check_array, check_kinds, check_memory, without_memmap
from nbprop.compiler.argument_types import check_array_type
from nbprop.compiler.intrinsics import (
    array_at,
    as_frame,
    indirect_call,
    load,
    load_double,
    stack_words,
    store,
    store_double,
)
from nbprop.compiler.jit import FLAGS, njit
from nbprop.compiler.native import Native
from nbprop.compiler.registry import find
from nbprop.layers.conv.layer import Convolution
from nbprop.layers.dense.layer import Dense
from nbprop.layers.recurrent import Recurrent
from nbprop.messages import LENGTH, NO_KERNEL, failure
from nbprop.networks.network import Network
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.optimizers.step import check_status
from nbprop.optimizers.update_rules import kernel_signature
from nbprop.validation import check_number, shown

# The row of the kernel: addresses of the parameters, of the matrices and of a mask (0: all are trained); how many
# matrices; the limit (float64).
ROW_PARAMS, ROW_MATRICES, ROW_TRAINABLE, ROW_COUNT, ROW_LIMIT = range(5)
ROW = 5

_LANES = 128  # columns whose sums of squares, in float64, are added up side by side
_call_kernel = indirect_call(types.int64(types.int64, types.int64, types.int64, types.int64))


@njit
def _project(w, trainable, masked, rows, units, first, last, limit):
    """Project columns first..last, at most 128. w INOUT, trainable IN (rows, units)."""
    sums = array_at(as_frame(0, np.float64), stack_words(_LANES), _LANES)[: last - first]
    for r in range(rows):
        row = w[r * units + first : r * units + last]
        for j in range(sums.size):
            sums[j] += np.float64(row[j]) * np.float64(row[j])
    for j in range(sums.size):
        # False for NaN: what has diverged stays as it is.
        if sums[j] > limit * limit:
            factor, whole = like(w[0], limit / np.sqrt(sums[j])), True
            for k in range(first + j, rows * units, units):
                whole = whole and not (masked and trainable[k] == 0)
            if whole:
                for k in range(first + j, rows * units, units):
                    w[k] *= factor


def max_norm_kernel(frame, row, part, parts):
    """w_j *= limit / |w_j| where |w_j| > limit, for each column of each matrix, unless a part of it is not trained.

    ROW_PARAMS INOUT, ROW_TRAINABLE IN: n elements, bytes or 0; ROW_MATRICES IN (ROW_COUNT, 3): offset, rows, units.
    """
    count, masked = load(row, ROW_COUNT), load(row, ROW_TRAINABLE) != 0
    for m in range(count):
        matrix = load(row, ROW_MATRICES) + 24 * m
        offset, rows, units = load(matrix, 0), load(matrix, 1), load(matrix, 2)
        w = array_at(frame, load(row, ROW_PARAMS), offset + rows * units)[offset:]
        trainable = array_at(as_frame(0, np.uint8), load(row, ROW_TRAINABLE), offset + rows * units)[offset:]
        first, last = share((units + _LANES - 1) // _LANES, part, parts)
        for block in range(first, last):
            start, stop = block * _LANES, min((block + 1) * _LANES, units)
            _project(w, trainable, masked, rows, units, start, stop, load_double(row, ROW_LIMIT))
    return 0


MAX_NORM = Native(max_norm_kernel, kernel_signature)


def weight_matrices(net: Network) -> NDArray[np.int64]:
    """Where the weights of a network lie, for `max_norm`: (k, 3) int64, of each the offset, rows and units.

    Those of dense, convolutional (not transposed) and recurrent layers, each a matrix with a column for each unit,
    filter or gate. A layer inside `weight_norm` or `spectral_norm` has none, since its length does not count.

    >>> import nbprop
    >>> nbprop.weight_matrices(nbprop.network((3,), nbprop.dense(5), nbprop.dense(2))).tolist()
    [[0, 3, 5], [20, 5, 2]]
    """
    if not isinstance(net, Network):
        raise TypeError(f"weight_matrices: net must be what nbprop.network(...) returns, got {shown(net)}")
    computed = {path for path, layer in net.nodes if layer.kind in ("weight_norm", "spectral_norm")}
    found = []
    for path, layer in net.nodes:
        if isinstance(layer, (Dense, Convolution, Recurrent)) and path.rpartition(".")[0] not in computed:
            slots = [net.slots[name] for name in net.parameter_names[path]]
            shapes = [(slot.offset, slot.size, slot.parameter.shape) for slot in slots]
            found += [(offset, size // shape[-1], shape[-1]) for offset, size, shape in shapes if len(shape) > 1]
    return np.array(found, np.int64).reshape(-1, 3)


@njit
def _outside(matrices, size):
    """The number of the first matrix that does not lie within `size` elements, -1 where there is none."""
    for m in range(matrices.shape[0]):
        offset, rows, units = matrices[m, 0], matrices[m, 1], matrices[m, 2]
        if offset < 0 or rows < 1 or units < 1 or offset > size or rows > size or units > (size - offset) // rows:
            return m
    return -1


@njit
def _run(kernel, params, matrices, count, limit):
    """Call the kernel at an address; `params` and `matrices` are addresses."""
    row = stack_words(ROW)
    store(row, ROW_PARAMS, params)
    store(row, ROW_MATRICES, matrices)
    store(row, ROW_TRAINABLE, 0)
    store(row, ROW_COUNT, count)
    store_double(row, ROW_LIMIT, limit)
    _call_kernel(kernel, (0, row, 0, 1))


@njit
def _run_known(fingerprint, params, matrices, count, limit):
    _run(find(fingerprint), params, matrices, count, limit)


_WANTED = "must hold the offset, rows and units of weights within params; nbprop.weight_matrices(net) makes them"


def max_norm(params: NDArray[Any], matrices: NDArray[np.int64], limit: float) -> None:
    """Scale the incoming weights of each unit so that their Euclidean norm is at most `limit`, in place.

    To be called after each update, from Python or from @njit code; `fit` has it as max_norm=.

    Parameters
    ----------
    params : (n,) float32 or float64 array, updated
    matrices : (k, 3) int64 array
        Of each weight its offset in params, rows and units: `weight_matrices(net)`.
    limit : float above 0
        Srivastava et al. 2014 (section 5.1, with dropout) use 3 to 4.

    Raises TypeError or ValueError, naming the argument, before anything has been written.

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((2,), nbprop.dense(2))
    >>> params = np.array([3.0, 0.3, 4.0, 0.4, 1.0, 1.0])  # columns of lengths 5 and 0.5, then the bias
    >>> nbprop.max_norm(params, nbprop.weight_matrices(net), 1.0)
    >>> params
    array([0.6, 0.3, 0.8, 0.4, 1. , 1. ])
    """
    params = as_array("max_norm: params", params)
    check_kinds("max_norm: params", params, (np.float32, np.float64))
    if params.ndim != 1:
        raise failure(LENGTH, "max_norm: params", shape="(n,)", got=params.shape, remedy="")
    check_memory("max_norm: params", params, written=True)
    found = without_memmap(matrices)
    rows = len(found) if isinstance(found, np.ndarray) and found.ndim > 0 else 0
    matrices = check_array("max_norm: matrices", matrices, (rows, 3), np.int64)
    limit = check_number("max_norm: limit", limit, ends="()")
    if np.may_share_memory(params, matrices):
        raise ValueError("max_norm: params shares memory with matrices; copy one of them")
    wrong = _outside(matrices, params.size)
    if wrong >= 0:
        raise ValueError(f"max_norm: matrices {_WANTED}; row {wrong} is {matrices[wrong].tolist()}")
    numba_type = types.float32 if params.dtype == np.float32 else types.float64
    MAX_NORM.load(numba_type)
    fingerprint = np.int64(MAX_NORM.fingerprint(numba_type))
    _run_known(fingerprint, params.ctypes.data, matrices.ctypes.data, rows, limit)


@overload(max_norm, jit_options=FLAGS, strict=False)
def _max_norm(params, matrices, limit):
    real = (types.float32, types.float64)
    check_array_type("nbprop.max_norm: params", params, real, "float32 or float64", rank=1, written=True)
    check_array_type("nbprop.max_norm: matrices", matrices, (types.int64,), "int64", rank=2)
    if not isinstance(limit, (types.Float, types.Integer)):
        raise TypingError(f"nbprop.max_norm: limit must be a number, got {limit}")
    MAX_NORM.load(params.dtype)
    fingerprint = np.int64(MAX_NORM.fingerprint(params.dtype))

    def run(params, matrices, limit):
        if matrices.shape[1] != 3 or _outside(matrices, params.size) >= 0:
            raise ValueError("max_norm: matrices " + _WANTED)
        if not 0.0 < limit < np.inf:
            raise ValueError("max_norm: limit must be a finite number above 0")
        kernel = find(fingerprint)
        check_status(NO_KERNEL if kernel == 0 else 0)
        _run(kernel, params.ctypes.data, matrices.ctypes.data, matrices.shape[0], float(limit))

    return run
