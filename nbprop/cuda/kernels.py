"""Device kernels: which ones stand for the kernels of a plan, and how a launch passes their arguments.

A module of nbprop/cuda/layers, or a user's, defines `cuda_kernels(cuda)`, which returns functions decorated by
`on_device`:

    @on_device(activation_forward, blocks=lambda n, size: grid_size(n * size))
    def forward(y, x, n, size, code):
        # y = f(x). y OUT, x IN (n, size).
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            y[i] = value_of(x[i], code)

Parameters are matched by name: arrays are operands of the op's row, numbers are its sizes (or words of the frame, as
for the CPU's kernels), NamedTuples several of its sizes; a kernel takes those that it needs. Two more arrays exist on
the device: `partials`, scratch between the launches of one op, and `result`, of one element. Several launches that
stand for one op run in the order of the list.

Kernels of the device alone (fused steps, checks of data, optimizers) keep plain numbers: their rows are written from
names, and nothing passes a number by its position.

Every launch passes two addresses, that of the frame and that of the row in the device's copy of the table; the kernel
reads its operands from there with the same intrinsic as the CPU.
"""

import copy
import functools
import importlib
import inspect
import sys

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from nbprop.compiler.fingerprint import digest_of, is_ours
from nbprop.compiler.intrinsics import as_frame, load
from nbprop.compiler.jit import intrinsic, njit
from nbprop.cuda import toolkit
from nbprop.cuda.toolkit import SIMULATED, THREADS, host_array
from nbprop.program import frame
from nbprop.program.binding import kernel_arguments
from nbprop.program.contract import Contract
from nbprop.program.kernel import FRAME_WORDS as HOST_WORDS

# Words of a device's frame after those of the host's: two spaces, and the address of the plan's table.
PARTIALS, RESULT, TABLE = frame.WORDS, frame.WORDS + 1, frame.WORDS + 2
NAMED_WORDS = HOST_WORDS | {"table_address": TABLE}
DEVICE_SPACES = {"partials": PARTIALS, "result": RESULT}
FRAME_WORDS = 32

SIGNATURE = types.void(types.int64, types.int64)  # frame, row

# The precisions of products on tensor cores, and how many bfloat16 a factor is the sum of.
PLANES = {"bfloat16": 1, "bfloat16x3": 2}

_GLOBAL = 1  # the address space of global memory in NVVM's IR


@intrinsic
def in_global_memory(typingctx, arguments):
    """A kernel's arguments, with its arrays known to lie in global memory.

    An address from a word could be of any memory: its loads (LD) may not be moved across stores to shared memory, and
    wait for one another. Made a global pointer first, and a generic one of that, all of them become LDG.
    """

    def codegen(context, builder, signature, values):
        found = []
        for value, typed in zip(cgutils.unpack_tuple(builder, values[0]), arguments, strict=True):
            if isinstance(typed, types.Array):
                array = cgutils.create_struct_proxy(typed)(context, builder, value)
                generic = array.data.type
                address = builder.ptrtoint(array.data, ir.IntType(64))
                array.data = builder.addrspacecast(
                    builder.inttoptr(address, ir.PointerType(generic.pointee, _GLOBAL)), generic
                )
                value = array._getvalue()
            found.append(value)
        return context.make_tuple(builder, signature.return_type, found)

    return arguments(arguments), codegen


class DeviceKernel:
    """One launch of an op, or of several ops at once; made by `on_device`."""

    def __init__(self, function, replaces, blocks, scratch, dtypes, resident, apart, shared, threads, precision, casts):
        self.function, self.replaces, self.resident, self.apart = function, replaces, resident, apart
        self.threads, self.precision, self.casts = threads, precision, casts
        self.dtypes = tuple(np.dtype(dtype) for dtype in dtypes)
        self.contract = Contract(function, NAMED_WORDS)
        self.arrays, self.words = self.contract.arrays, self.contract.words
        self.name = f"{function.__module__}.{function.__qualname__.rsplit('.', 1)[-1]}"
        self._blocks, self._scratch = _by_names(blocks), _by_names(scratch or (lambda: 0))
        self._shared = None if shared is None else _by_names(shared)

    def __repr__(self):
        return f"<nbprop device kernel {self.name}>"

    def with_precision(self, precision):
        """This kernel, for plans with a precision, too."""
        other = copy.copy(self)
        other.precision = precision
        return other

    @property
    def bounds(self):
        """Launch bounds: threads per block, and how many blocks are to be resident on a multiprocessor.

        Without the second number, ptxas chooses an occupancy itself, and spilled registers to reach it.
        """
        return self.threads, self.resident

    def blocks(self, values):
        """Blocks of a launch, 0 for none; `values`: numbers by name, lengths of arrays by theirs."""
        return self._blocks(values)

    def scratch(self, values):
        """Elements of `partials` that the launch needs."""
        return self._scratch(values)

    def shared(self, values):
        """Bytes of dynamic shared memory."""
        return 0 if self._shared is None else self._shared(values)

    def entry(self, dtype):
        """The function (frame, row) that a launch runs: reads its arguments and calls the kernel."""
        bind = kernel_arguments(self.contract, null_absent=False)
        body, real = toolkit.device_function(self.function), np.dtype(dtype).type

        def entry(frame, row):
            body(*in_global_memory(bind(as_frame(frame, real), row, 0, 1)))

        def entry_without_casts(frame, row):
            body(*bind(as_frame(frame, real), row, 0, 1))

        return entry if self.casts else entry_without_casts

    @functools.cache  # noqa: B019 - kernels live as long as the process
    def compiled(self, dtype):
        """The entry, compiled for the current device (for its simulator: the function itself)."""
        return toolkit.compile(self.function if SIMULATED else self.entry(dtype), SIGNATURE, self.bounds)

    def launch(self, dtype, blocks, stream, frame_address, row_address, shared=0):
        """Enqueue the kernel."""

        def arguments():
            if SIMULATED:
                return simulated_arguments(self, dtype, frame_address, row_address)
            return frame_address, row_address

        toolkit.launch(self.compiled(dtype), blocks, stream, arguments, shared, self.threads)


def _by_names(function):
    """A function of a dict that passes on the entries that `function` names."""
    wanted = tuple(inspect.signature(function).parameters)
    return lambda values: function(*(values[name] for name in wanted))


def on_device(
    *replaces,
    blocks,
    scratch=None,
    dtypes=(np.float32, np.float64),
    resident=3,
    apart=False,
    shared=None,
    threads=THREADS,
    precision=None,
    casts=True,
):
    """Decorate a function as a device kernel that stands for a kernel of a plan, or for several consecutive ones.

    blocks(...) : blocks of a launch; its parameters name sizes, or arrays, whose lengths it gets
    scratch(...) : elements of `partials` that the launch needs
    dtypes : dtypes that it is launched for
    resident : blocks to be resident on a multiprocessor, which limits the registers of each
    apart : whether it needs so much shared memory that programs with it never run in one block (see oneblock.py)
    shared(...) : bytes of dynamic shared memory, cuda.shared.array(0, ...)
    threads : of a block
    precision : of the plans that it is for, instead of kernels without one
    casts : whether its arrays are cast to global memory as it begins; kernels with tensor cores say at each access
        instead which memory it is in (see mma.py), and are never called by the one block of oneblock.py
    """
    return lambda function: DeviceKernel(
        function, replaces, blocks, scratch, dtypes, resident, apart, shared, threads, precision, casts
    )


@njit
def _word_at_host(address, index):
    return load(address, index)


@intrinsic
def _word_in_global_memory(typingctx, address, index):
    def codegen(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.PointerType(ir.IntType(64), addrspace=_GLOBAL))
        return builder.load(builder.gep(pointer, [arguments[1]]))

    return types.int64(types.int64, types.int64), codegen


# word_at(address, index): word number `index` at an address, for example that of the plan's table.
word_at = _word_at_host if SIMULATED else _word_in_global_memory


def simulated_arguments(kernel, dtype, frame_address, row_address):
    """What the entry reads from the frame and the row; in the simulator, both are in host memory."""
    words, contract = host_array(frame_address, FRAME_WORDS, np.int64), kernel.contract
    count = 3 * len(kernel.arrays) + len(kernel.words)
    row, found = host_array(row_address, count, np.int64).tolist(), []
    for k in range(len(kernel.arrays)):
        space, offset, size = row[3 * k : 3 * k + 3]
        base = int(words[space])
        found.append(toolkit.simulated(host_array(base and base + offset * np.dtype(dtype).itemsize, size, dtype)))
    sizes = iter(row[3 * len(kernel.arrays) :])
    for name in contract.scalars:
        if name in NAMED_WORDS:
            found.append(int(words[NAMED_WORDS[name]]))
        else:
            fields = [next(sizes) for _ in contract.words_of(name)]
            found.append(contract.tuples[name](*fields) if name in contract.tuples else fields[0])
    return tuple(found)


# -- which kernels stand for which ---------------------------------------------------------------------------


def kernels_of(module):
    """The device kernels of a module of layers, losses or rules, in the order of their launches.

    A user's module defines `cuda_kernels(cuda)` itself; those of the package lie in nbprop/cuda/layers, losses and
    update_rules.py.
    """
    make = getattr(module, "cuda_kernels", None)
    if make is not None:
        return _made(make, None if is_ours(make) else digest_of(make))
    name = getattr(module, "__name__", "")
    if name in _MODULES:
        return kernels_of(importlib.import_module(_MODULES[name]))
    return getattr(module, "CUDA_KERNELS", ())


# CPU module: the module with its device kernels
_MODULES = {
    f"nbprop.{place}": f"nbprop.cuda.{there}"
    for place, there in {
        "numerics.copies": "layers.combine",
        "layers.attention.kernels": "layers.attention",
        "layers.attention.tangents": "layers.attention_tangents",
        "layers.attention.decoding": "layers.attention_decoding",
        "layers.conv.kernels": "layers.conv",
        "layers.conv.transposed": "layers.conv_transposed",
        "layers.dense.kernels": "layers.dense",
        "layers.dense.pieces": "layers.dense_pieces",
        "layers.dense.sample_gradients": "layers.sample_gradients",
        "layers.dense.tied": "layers.tied",
        "losses.penalty": "losses.penalty",
        "optimizers.proximal": "proximal",
        "optimizers.update_rules": "update_rules",
        **{
            f"layers.{name}": f"layers.{name}"
            for name in (
                "activation", "batchnorm", "bidirectional", "dropout", "embedding", "fourier", "glu", "groupnorm",
                "gru", "image", "layernorm", "local_response_norm", "lstm", "pool", "positions", "prelu", "recurrent",
                "rnn", "scaling", "slicing", "spectral_norm", "weight_norm",
            )
        },
        **{
            f"losses.{name}": f"losses.{name}"
            for name in (
                "base", "binary_cross_entropy", "elementwise", "gaussian_nll", "huber", "mse", "softmax_cross_entropy",
            )
        },
    }.items()
}  # fmt: skip


# CPU module: the module with its kernels for plans with a precision.
_WITH_PRECISION = {
    "nbprop.layers.attention.kernels": "nbprop.cuda.layers.tensor_attention",
    "nbprop.layers.conv.kernels": "nbprop.cuda.layers.tensor_conv",
    "nbprop.layers.dense.kernels": "nbprop.cuda.layers.tensor_dense",
}


@functools.cache
def _made(make, digest):
    """Made once per function; again when a user's function has changed."""
    return tuple(make(toolkit.cuda))


def all_kernels():
    """The device kernels of every layer and loss of the package."""
    names = [name for name in _MODULES if not name.startswith("nbprop.optimizers.")]
    return [kernel for name in sorted(names) for kernel in kernels_of(importlib.import_module(name))]


def launches_of(*kernels, precision=None):
    """The launches that stand for the kernel of an op, or of several consecutive ops; None if there are none.

    For a precision that no kernel of theirs has, those without one.
    """
    name = kernels[0].function.__module__
    if precision is not None and name in _WITH_PRECISION:
        precise = kernels_of(importlib.import_module(_WITH_PRECISION[name]))
        found = [k for k in precise if k.precision == precision and _are(k.replaces, kernels)]
        if found:
            return found
    return [kernel for kernel in kernels_of(sys.modules.get(name)) if _are(kernel.replaces, kernels)] or None


def _are(some, others):
    """Whether two tuples hold the same kernels; a user's kernel equals one defined again with the same code."""
    return len(some) == len(others) and all(
        a is b or (a.name == b.name and not is_ours(b.function) and a.source_digest() == b.source_digest())
        for a, b in zip(some, others, strict=True)
    )
