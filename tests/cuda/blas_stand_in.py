"""cuBLASLt as nvmath.bindings.cublasLt offers it, played by NumPy: what the library would read and write, and where.

Matrices are found by the layouts alone, column by column, so a wrong extent, leading dimension, transpose or operand
gives other numbers. Attributes must have the sizes that the real ones have (cublasLt.h, and nvmath 1.0's
get_*_attribute_dtype). Enum values are nvmath's. Addresses are read here and now: it plays in the simulator alone.
"""

import ctypes
import enum

import numpy as np

from nbprop.cuda.blas import Library


class MatmulDescAttribute(enum.IntEnum):
    TRANSA, TRANSB, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8


class MatmulPreferenceAttribute(enum.IntEnum):
    MAX_WORKSPACE_BYTES, REDUCTION_SCHEME_MASK = 1, 3
    MIN_ALIGNMENT_A_BYTES, MIN_ALIGNMENT_B_BYTES, MIN_ALIGNMENT_C_BYTES, MIN_ALIGNMENT_D_BYTES = 5, 6, 7, 8


class Epilogue(enum.IntEnum):
    DEFAULT, RELU, BIAS, RELU_BIAS, BGRADA = 1, 2, 4, 6, 256


class ReductionScheme(enum.IntEnum):
    NONE, INPLACE, COMPUTE_TYPE, OUTPUT_TYPE = 0, 1, 2, 4


# Epilogues that read a bias, or write its gradient.
_WITH_VECTOR = {Epilogue.BIAS, Epilogue.RELU_BIAS, Epilogue.BGRADA}
_ATTRIBUTES = {
    MatmulDescAttribute.TRANSA: np.int32,
    MatmulDescAttribute.TRANSB: np.int32,
    MatmulDescAttribute.EPILOGUE: np.uint32,
    MatmulDescAttribute.BIAS_POINTER: np.int64,
}
_PREFERENCES = dict.fromkeys(MatmulPreferenceAttribute, np.uint32)
_PREFERENCES[MatmulPreferenceAttribute.MAX_WORKSPACE_BYTES] = np.uint64
COMPUTE_32F, CUDA_R_32F, TURNED, ALGORITHM = 68, 0, 1, 4711


def _read(address, size, kind):
    assert size == np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), kind)[0]


def _matrix(layout, address):
    """The (rows, columns) at an address, column by column, as a view."""
    rows, columns, lead = layout
    assert lead >= rows
    size = lead * (columns - 1) + rows
    flat = np.frombuffer((ctypes.c_char * (4 * size)).from_address(address), np.float32)
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), (4, 4 * lead))


class CublasLt:
    """The functions of the bindings that blas.py calls; `calls` records the epilogue of each product."""

    MatmulDescAttribute, MatmulPreferenceAttribute = MatmulDescAttribute, MatmulPreferenceAttribute
    Epilogue, ReductionScheme = Epilogue, ReductionScheme
    matmul_heuristic_result_dtype = np.dtype(
        [
            *[("algo", [("data_", "<u8", (8,))]), ("workspace_size", "<u8"), ("state", "<i4"), ("waves_count", "<f4")],
            ("reserved", "<i4", (4,)),
        ]
    )

    class cuBLASLtError(Exception):
        """Raised for a status other than success."""

    def __init__(self, refuses=()):
        self.calls, self._made, self._promised, self.refuses = [], {}, {}, refuses

    def _make(self, thing):
        self._made[len(self._made) + 1] = thing
        return len(self._made)

    def matrix_layout_create(self, kind, rows, cols, ld):
        assert kind == CUDA_R_32F
        return self._make((rows, cols, ld))

    def matmul_desc_create(self, compute, scale):
        assert (compute, scale) == (COMPUTE_32F, CUDA_R_32F)
        return self._make({})

    def matmul_desc_set_attribute(self, descriptor, attribute, address, size):
        self._made[descriptor][attribute] = _read(address, size, _ATTRIBUTES[attribute])

    def matmul_preference_create(self):
        return self._make({})

    def matmul_preference_set_attribute(self, preference, attribute, address, size):
        self._made[preference][attribute] = _read(address, size, _PREFERENCES[attribute])

    def matmul_preference_destroy(self, preference):
        del self._made[preference]
        self._made[preference] = None

    def matmul_algo_get_heuristic(self, handle, descriptor, a, b, c, d, preference, wanted, results, count):
        assert (handle, wanted, c) == (7, 1, d)
        wishes = self._made[preference]
        assert wishes[MatmulPreferenceAttribute.REDUCTION_SCHEME_MASK] == ReductionScheme.COMPUTE_TYPE
        given = self._made[descriptor]
        vector = int(given.get(MatmulDescAttribute.BIAS_POINTER, 0))
        needs_vector = given[MatmulDescAttribute.EPILOGUE] in _WITH_VECTOR
        if given[MatmulDescAttribute.EPILOGUE] in self.refuses or (needs_vector and not vector):
            raise self.cuBLASLtError("CUBLAS_STATUS_NOT_SUPPORTED")
        self._promised[descriptor] = [int(wishes[name]) for name in list(MatmulPreferenceAttribute)[2:]]
        self._promised[descriptor].append(vector & -vector if needs_vector else 1)
        ctypes.c_uint64.from_address(results).value = ALGORITHM
        ctypes.c_int32.from_address(count).value = 1

    def matmul(self, handle, descriptor, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, *rest):
        algorithm, workspace, workspace_size, stream = rest
        assert (handle, workspace % 256, stream) == (7, 0, 0)
        assert (c, c_layout) == (d, d_layout)
        given, promised = self._made[descriptor], self._promised[descriptor]
        pointer = given.get(MatmulDescAttribute.BIAS_POINTER, 0)
        found = [int(address) % bytes for address, bytes in zip((a, b, c, d, pointer), promised, strict=True)]
        assert found == [0] * 5, promised
        assert ctypes.c_uint64.from_address(algorithm).value == ALGORITHM
        np.frombuffer((ctypes.c_char * workspace_size).from_address(workspace), np.uint8)[:] = 255
        result = _matrix(self._made[d_layout], d)
        a, b = _matrix(self._made[a_layout], a), _matrix(self._made[b_layout], b)
        assert [_read(factor, 4, np.float32) for factor in (alpha, beta)] == [1, 0]
        a = a.T if given.get(MatmulDescAttribute.TRANSA) == TURNED else a
        b = b.T if given.get(MatmulDescAttribute.TRANSB) == TURNED else b
        epilogue = Epilogue(given[MatmulDescAttribute.EPILOGUE])
        found = a @ b
        if epilogue in (Epilogue.BIAS, Epilogue.RELU_BIAS):
            found = found + _matrix((len(found), 1, len(found)), int(pointer))
        if epilogue in (Epilogue.RELU, Epilogue.RELU_BIAS):
            found = np.maximum(found, 0)
        if epilogue == Epilogue.BGRADA:
            _matrix((len(found), 1, len(found)), int(pointer))[:] = a.sum(1, keepdims=True)
        assert found.shape == result.shape
        result[:] = found
        self.calls.append(epilogue.name)


def stand_in(refuses=()):
    """(the library that blas.py takes it for, the recording). refuses: epilogues without an algorithm."""
    lt = CublasLt(refuses)
    return Library(lt, 7, COMPUTE_32F, CUDA_R_32F, TURNED), lt
