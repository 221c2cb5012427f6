"""Large float32 products by NVIDIA's cuBLASLt, if nvmath-python is installed: pip install "nbprop[cuda-blas]".

cuBLASLt stores matrices column by column. Read that way, a row-major C (m, n) is C^T (n, m), and C = A B is C^T = B^T
A^T: the library's first operand is our second, and nothing is moved. Compute type and scale are float32, without TF32.
Its workspace is the plan's `partials`; sums that are cut into pieces are added up there in order, never by atomics.
Bias and ReLU are part of the product's epilogue, and so is the bias gradient, the sum of the rows of dz.
"""

import functools
import importlib.util
import threading
import warnings
from typing import Any, NamedTuple

import numpy as np

from nbprop.cuda import toolkit
from nbprop.cuda.kernels import PARTIALS
from nbprop.layers.activation import activation_inplace
from nbprop.layers.dense.kernels import dense_backward_input, dense_backward_parameters, dense_forward
from nbprop.numerics.activations import IDENTITY, RELU
from nbprop.program import frame

# Products of at least this many multiply-adds go to cuBLASLt. A guess until `make bench-gpu` has measured it.
CROSSOVER = 1 << 24
# What NVIDIA recommends for Hopper, in bytes; and elements of `partials`, with room to begin at a multiple of _ALIGNED.
WORKSPACE, _ALIGNED = 32 << 20, 256
SCRATCH = (WORKSPACE + _ALIGNED) // 4

_ONE, _ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)


class Library(NamedTuple):
    """nvmath's bindings with a handle for one device, and the values of its enumerations."""

    lt: Any
    handle: int
    compute: int  # cublasComputeType_t of true float32
    real: int  # cudaDataType of float32
    turned: int  # cublasOperation_t of a transpose


@functools.cache
def library(device):
    """cuBLASLt for a device; None if nvmath-python is not installed or, with a warning, finds no cuBLAS."""
    if toolkit.SIMULATED or importlib.util.find_spec("nvmath") is None:
        return None
    from nvmath import CudaDataType
    from nvmath.bindings import cublas, cublasLt

    try:
        handle = cublasLt.create()
    except Exception as error:
        warnings.warn(
            f"nvmath-python is installed, but cuBLASLt does not load ({error}); large products go without it. "
            'Install it with: pip install "nbprop[cuda-blas]"',
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    numbers = cublas.ComputeType.COMPUTE_32F, CudaDataType.CUDA_R_32F, cublas.Operation.T
    return Library(cublasLt, handle, *map(int, numbers))


# -- which ops -----------------------------------------------------------------------------------------------


class Operands(NamedTuple):
    """The operands of an op that are C (m, n) = A (m, k) B (k, n), row-major, by name; turned: A is (k, m)."""

    c: str
    a: str
    b: str
    vector: str  # a bias, or its gradient; "" for none
    turned: bool
    sizes: Any  # (m, n, k) of (samples, n_in, n_out)


_FORWARD = Operands("y", "x", "w", "b", False, lambda samples, n_in, n_out: (samples, n_out, n_in))
_INPUT = Operands("dx", "dz", "wt", "", False, lambda samples, n_in, n_out: (samples, n_in, n_out))
_GRADIENT = Operands("dw", "x", "dz", "db", True, lambda samples, n_in, n_out: (n_in, n_out, samples))
_OPERANDS = {
    (dense_forward,): _FORWARD,
    (dense_forward, activation_inplace): _FORWARD,
    (dense_backward_input,): _INPUT,
    (dense_backward_parameters,): _GRADIENT,
}


def product_launch(plan, kernels, buffers, numbers, label):
    """The `ProductLaunch` that can replace a plan's own launches for these kernels; None for others."""
    operands, found = _OPERANDS.get(tuple(kernels)), library(plan.device)
    if operands is None or found is None or plan.dtype != np.float32:
        return None
    launch = ProductLaunch(found, operands, buffers, numbers, label)
    return launch if launch.is_large(plan.batch) else None


class ProductLaunch:
    """A product by cuBLASLt among the launches of a plan; it replaces an op's own kernels where it `takes` the call."""

    def __init__(self, library, operands, buffers, numbers, label):
        self.library, self.operands, self.buffers, self.numbers, self.label = (
            library,
            operands,
            buffers,
            numbers,
            label,
        )
        self.vector = buffers[operands.vector] if operands.vector else None
        self.code = numbers.get("code", IDENTITY)
        self.accumulates = numbers.get("w_accumulate", 0) + numbers.get("b_accumulate", 0) > 0

    @property
    def activates(self):
        """Whether the product includes the activation."""
        return self.code in (IDENTITY, RELU)

    def _epilogue(self):
        names = self.library.lt.Epilogue
        if self.operands is _GRADIENT:
            return names.DEFAULT if self.vector is None else names.BGRADA
        if self.code == RELU:
            return names.RELU if self.vector is None else names.RELU_BIAS
        return names.DEFAULT if self.vector is None else names.BIAS

    def _sizes(self, n):
        return self.operands.sizes(n * self.numbers["rows"], self.numbers["n_in"], self.numbers["n_out"])

    def is_large(self, n):
        """Whether a call on n samples reaches the crossover."""
        m, columns, k = self._sizes(n)
        return m * columns * k >= CROSSOVER

    def _addresses(self, words):
        """The addresses of C, A, B and the vector (0: none), with the arrays of a frame."""
        operands = self.operands
        found = [self.buffers[name] for name in (operands.c, operands.a, operands.b)]
        return [0 if b is None else int(words[b.space]) + 4 * b.offset for b in (*found, self.vector)]

    def _product(self, n, words):
        addresses = self._addresses(words)
        alignments = tuple(min(_ALIGNED, address & -address) for address in addresses)
        given = self.library, *self._sizes(n), self.operands.turned, int(self._epilogue())
        return product(*given, *alignments), addresses

    def takes(self, n, words):
        """Whether cuBLASLt computes the product of a call: it is large, and does not accumulate."""
        adds = self.operands is _GRADIENT and (self.accumulates or words[frame.ACCUMULATE])
        return self.is_large(n) and not adds and self._product(n, words)[0] is not None

    def blocks(self, n, words, one_block):
        """1 if it is launched, else 0."""
        return int(not one_block and self.takes(n, words))

    def enqueue(self, bound, blocks, stream):
        """Enqueue the product of a bound call."""
        found, addresses = self._product(bound.n, bound.words)
        begin = -(-int(bound.words[PARTIALS]) // _ALIGNED) * _ALIGNED
        toolkit.call_library(functools.partial(found.enqueue, *addresses, begin), stream)


# -- cuBLASLt ------------------------------------------------------------------------------------------------


@functools.cache
def product(library, m, n, k, turned, epilogue, *alignments):
    """The `Product` of these sizes, made once; None if cuBLASLt has no algorithm for it.

    alignments: of the addresses of C, A, B and the vector (0: none), in bytes.
    """
    found = Product(library, m, n, k, turned, epilogue)
    return found if found.choose_algorithm(*alignments) else None


class Product:
    """Descriptors of C (m, n) = A (m, k) B (k, n), row-major, and the algorithm. Threads may share one."""

    def __init__(self, library, m, n, k, turned, epilogue):
        self.lt, self.handle, self.library = library.lt, library.handle, library
        attributes = self.lt.MatmulDescAttribute
        self.descriptor = self.lt.matmul_desc_create(library.compute, library.real)
        self._set(attributes.EPILOGUE, np.uint32(epilogue))
        # Column by column, ours are (n, k) times (k, m); a turned A is (m, k).
        self.first = self.lt.matrix_layout_create(library.real, n, k, n)
        if turned:
            self._set(attributes.TRANSB, np.int32(library.turned))
            self.second = self.lt.matrix_layout_create(library.real, m, k, m)
        else:
            self.second = self.lt.matrix_layout_create(library.real, k, m, k)
        self.result = self.lt.matrix_layout_create(library.real, n, m, n)
        self._found = np.zeros(1, self.lt.matmul_heuristic_result_dtype)
        self._one_call = threading.Lock()  # of those that set the vector's address and have it read

    def _set(self, attribute, value):
        value = np.array([value])
        self.lt.matmul_desc_set_attribute(self.descriptor, attribute, value.ctypes.data, value.nbytes)

    def choose_algorithm(self, c, a, b, vector):
        """Ask the library for its best; whether there is one. All are alignments in bytes; vector: 0 for none."""
        if vector:
            # It looks at the address's alignment, and refuses an epilogue without one.
            self._set(self.lt.MatmulDescAttribute.BIAS_POINTER, np.int64(vector))
        names, preference = self.lt.MatmulPreferenceAttribute, self.lt.matmul_preference_create()
        wanted = {
            names.MAX_WORKSPACE_BYTES: np.uint64(WORKSPACE),
            names.REDUCTION_SCHEME_MASK: np.uint32(self.lt.ReductionScheme.COMPUTE_TYPE),
            names.MIN_ALIGNMENT_A_BYTES: np.uint32(b),
            names.MIN_ALIGNMENT_B_BYTES: np.uint32(a),
            names.MIN_ALIGNMENT_C_BYTES: np.uint32(c),
            names.MIN_ALIGNMENT_D_BYTES: np.uint32(c),
        }
        for name, value in wanted.items():
            value = np.array([value])
            self.lt.matmul_preference_set_attribute(preference, name, value.ctypes.data, value.nbytes)
        count, layouts = np.zeros(1, np.int32), (self.first, self.second, self.result, self.result)
        results, answered = self._found.ctypes.data, count.ctypes.data
        try:
            self.lt.matmul_algo_get_heuristic(self.handle, self.descriptor, *layouts, preference, 1, results, answered)
        except self.lt.cuBLASLtError:
            return False  # its answer to what it does not support
        finally:
            self.lt.matmul_preference_destroy(preference)
        return count[0] == 1

    def enqueue(self, c, a, b, vector, workspace, stream):
        """Enqueue it. vector: the address of the bias or of its gradient; 0 for an epilogue without."""
        one, zero, algorithm = _ONE.ctypes.data, _ZERO.ctypes.data, self._found.ctypes.data
        operands = one, b, self.first, a, self.second, zero, c, self.result, c, self.result
        with self._one_call:
            if vector:
                self._set(self.lt.MatmulDescAttribute.BIAS_POINTER, np.int64(vector))
            self.lt.matmul(self.handle, self.descriptor, *operands, algorithm, workspace, WORKSPACE, stream)
