"""A plan on the device: the ops of the same table, launch by launch.

The lowering for the CPU provides the ops and the offsets of their buffers; here each op becomes the launches of the
kernels that stand for it (kernels.py); a dense layer and its activation are one launch. A row of the device's table has
the form of the host's: operands (space, offset, length), then sizes, in the order of the device kernel's parameters.

The workspace holds the frame, the result and `partials` (scratch within an op), then what the CPU's plan has there. So
everything that a walk writes belongs to the caller, and walks with separate workspaces may overlap.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba.extending import typeof_impl

from nbprop.cuda import blas, memory, oneblock, toolkit
from nbprop.cuda.fused import fused
from nbprop.cuda.fused_kernels import SLICES
from nbprop.cuda.kernels import FRAME_WORDS, PARTIALS, RESULT, DeviceKernel, launches_of
from nbprop.lowering.plan import Plan
from nbprop.program import frame, table
from nbprop.program.ops import Buffer
from nbprop.runtime import arguments as arg


@dataclass(eq=False)
class Launch:
    """A kernel with its row: the offset of the row in the table; sizes, and lengths of arrays, by name."""

    kernel: DeviceKernel
    row: int
    values: dict
    spaces: dict  # array name -> space, of arrays that the caller may leave out
    label: str
    when: Callable | None = None  # (n, words) -> whether to launch it

    def blocks(self, n, words, one_block):
        """Blocks for n samples with the arrays of a frame; 0: not launched. one_block: see oneblock.py.

        The `blocks` function of a kernel may also ask for `lengths`: whether the call was given some.
        """
        if self.when is not None and not self.when(n, words):
            return 0
        given = {name: self.values[name] if words[space] else 0 for name, space in self.spaces.items()}
        lengths = bool(words[frame.LENGTHS])
        return self.kernel.blocks(self.values | given | {"n": n, "one_block": one_block, "lengths": lengths})

    def enqueue(self, bound, blocks, stream):
        """Enqueue the kernel for a bound call."""
        plan, row = bound.plan, bound.plan.table_address() + 8 * self.row
        self.kernel.launch(plan.dtype, blocks, stream, bound.frame_address, row, self.kernel.shared(self.values))


class DevicePlan(Plan):
    """A plan whose walks run on the device; made by `nbprop.plan(..., target="cuda")`."""

    target = "cuda"

    def __init__(self, net, loss, batch, dtype, threads, mode="training", watch="", penalty=None, precision=None):
        self.precision = precision
        if precision is not None:
            toolkit.require_tensor_cores(precision)
        super().__init__(net, loss, batch, dtype, threads, mode, watch, penalty)

    def _emit(self):
        self.device = toolkit.current_device()
        self._rows: list[tuple] = []
        self._length, self._scratch, self._words = 0, Buffer(1, PARTIALS, 0), []
        self.programs, self._on_device, self._walks = {}, None, {}
        programs = range(table.VJP_INPUT + 1) if self.mode != "decoding" else (table.FORWARD,)
        for program in programs:
            if program not in (table.VALUE, table.VALUE_AND_GRAD) or self.loss is not None:
                self.programs[program] = self._launches(self.ops(program))
        operands = (b for _, _, buffers, _ in self._rows for name, b in buffers.items() if b and name != "partials")
        self._widest = max((buffer.size for buffer in operands), default=0)
        self._apart = any(kernel.apart for _, kernel, _, _ in self._rows)
        self._beyond_gradients()
        self.fused = None if self.in_one_block(self.batch) else fused(self, self._append, self._append_words)
        self._place_extras()
        self.range_checks = self._range_checks()
        return self._written()

    def _beyond_gradients(self):
        """The programs of the other functions; where a layer has no kernel for one, the function says so when called.

        They are never in one block.
        """
        self.missing = {}
        for program in range(table.VJP_INPUT + 1, table.N_PROGRAMS):
            try:
                if ops := self.ops(program):
                    self.programs[program] = self._launches(ops)
            except NoKernelError as error:
                self.missing[program] = error.what

    def _prepare(self):
        """Nothing to do: launches are compiled at their first use."""

    def _load(self):
        """Device kernels compile at their first launch."""

    def _launches(self, ops):
        """The launches of some ops; two consecutive ops may be one launch."""
        found, position = [], 0
        while position < len(ops):
            pair = ops[position : position + 2]
            fused = len(pair) == 2 and pair[1].operands[0] is pair[0].operands[0] and self._kernels_of(pair)
            group = pair if fused else pair[:1]
            launches = self._kernels_of(group)
            if launches is None:
                raise NoKernelError(group[0])
            found += self._with_library(group, [self._launch(kernel, group) for kernel in launches])
            position += len(group)
        return found

    def _kernels_of(self, ops):
        """The device kernels that stand for some ops, of this plan's precision where there are such; None for none."""
        return launches_of(*_kernels(ops), precision=self.precision)

    def _launch(self, kernel, ops):
        """The launch of a kernel for the ops that it stands for."""
        buffers, numbers = _operands(ops)
        return self._append(kernel, buffers, numbers, ops[0].label)

    def _with_library(self, ops, launches):
        """The launches of ops, and beside them cuBLASLt's, which replaces them for large products (see blas.py)."""
        if self.precision is not None and any(launch.kernel.precision for launch in launches):
            return launches
        buffers, numbers = _operands(ops)
        product = blas.product_launch(self, _kernels(ops), buffers, numbers, ops[0].label)
        if product is None:
            return launches
        self._scratch.size = max(self._scratch.size, blas.SCRATCH)
        for launch in launches:
            launch.when = lambda n, words: not product.takes(n, words)
        behind = (
            [] if product.activates else [self._launch(kernel, ops[1:]) for kernel in launches_of(*_kernels(ops[1:]))]
        )
        for launch in behind:
            launch.when = product.takes
        return [*launches, product, *behind]

    def _append(self, kernel, buffers, numbers, label):
        """Append a row with those of these operands and sizes that the kernel takes."""
        values = numbers | {name: buffer.size if buffer else 0 for name, buffer in buffers.items()}
        values["itemsize"] = self.dtype.itemsize
        spaces = {name: buffer.space for name, buffer in buffers.items() if buffer and buffer.space != frame.WORK}
        self._scratch.size = max(self._scratch.size, kernel.scratch(values | {"n": self.batch}))
        row = self._length
        self._rows.append((row, kernel, buffers | {"partials": self._scratch, "result": Buffer(1, RESULT, 0)}, numbers))
        self._length += 3 * len(kernel.arrays) + len(kernel.words)
        return Launch(kernel, row, values, spaces, label)

    def _append_words(self, words):
        """Append words that are not a row; returns their offset in the table."""
        self._words.append((self._length, words))
        self._length += len(words)
        return self._length - len(words)

    def _written(self):
        """The words of the table, once all rows, and so the length of `partials`, are known."""
        found = np.zeros(self._length, np.int64)
        for begin, kernel, buffers, numbers in self._rows:
            row = []
            for name in kernel.arrays:
                buffer = buffers[name]
                row += [frame.NONE, 0, 0] if buffer is None else [buffer.space, buffer.offset, buffer.size]
            row += [_device_number(name, numbers[name], self.dtype) for name in kernel.words]
            found[begin : begin + len(row)] = row
        for begin, words in self._words:
            found[begin : begin + len(words)] = words
        return found

    def _place_extras(self):
        """The offsets of result, partials and the CPU plan's buffers in the workspace, in elements."""
        unit = 32
        self.result_offset = 8 * FRAME_WORDS // self.dtype.itemsize
        self.partials_offset = self.result_offset + unit
        self.buffers_offset = self.partials_offset + -(-self._scratch.size // unit) * unit
        self.work_size += self.buffers_offset

    def work_for(self, function):
        """Elements of workspace that a function needs.

        A fused one (see fused.py) uses none of the CPU plan's buffers.
        """
        fused = self.fused is not None and function in ("value", "value_and_grad")
        return self.buffers_offset if fused else self.work_size

    def slices_in(self, work):
        """(array, stride) of the slices that a fused value_and_grad leaves in its workspace; None without one."""
        if self.fused is None:
            return None
        return work[self.partials_offset + SLICES : self.buffers_offset], self.fused.stride

    def _range_checks(self):
        """{argument: launch} for the arguments whose range is checked before a walk."""
        from nbprop.cuda.checks import RANGE_CHECKS, target_interval

        found = {}
        for argument, shape, least, below in (
            (arg.X, self.input_shape, 0, self.x_classes),
            (arg.TARGET, self.target_shape, 0, self.classes),
            (arg.LENGTHS, (), 1, self.max_length + 1 if self.max_length else 0),
        ):
            if below:
                numbers = {"each": math.prod(shape), "least": least, "below": below}
                found[argument] = self._append(RANGE_CHECKS[argument], {}, numbers, arg.NAMES[argument])
        if self.loss is not None and self.target_range != (-math.inf, math.inf):
            each = math.prod(self.target_shape)
            low, high = np.array(self.target_range).view(np.int64).tolist()
            numbers = {"each": each, "low_bits": low, "high_bits": high, "positions": self.positions_of_loss}
            target = {"target": Buffer(self.batch * each, frame.TARGET, 0)}
            found[arg.TARGET] = self._append(target_interval, target, numbers, "target")
        return found

    def in_one_block(self, n):
        """Whether a program on n samples is small enough to run in one block (see oneblock.py), without a precision."""
        if self.precision is not None:
            return False
        return not self._apart and self._widest * n <= oneblock.MOST_ELEMENTS * self.batch

    def walk(self, program, launches):
        """The launches of a program as a single one; kept, since its steps are on the device."""
        if (program, launches) not in self._walks:
            self._walks[program, launches] = oneblock.OneBlockLaunch(launches, self.dtype)
        return self._walks[program, launches]

    def table_address(self):
        """The table's address on the device; copied there at the first use."""
        if self._on_device is None:
            self._on_device = memory.to_device(self.table)
        return self._on_device.address

    def call(self, function, values, accumulate, step):
        """Run a public function with its arguments in the order of arguments.py."""
        from nbprop.cuda.calls import call

        return call(function, self, values, accumulate, step)

    def notes(self):
        """Which layers have products in the plan's precision, and what runs in float32."""
        if self.precision is None:
            return []
        launches = [launch for program in self.programs.values() for launch in program]
        labels = dict.fromkeys(launch.label for launch in launches)
        with_products = dict.fromkeys(launch.label for launch in launches if launch.kernel.precision is not None)
        others = [label for label in labels if label not in with_products]
        lines = [
            f"products in {self.precision}: {', '.join(with_products) or 'none'}",
            f"all in float32: {', '.join(others) or 'none'}",
        ]
        if self.fused is not None:
            lines.append(f"value and value_and_grad in one launch, with all products in {self.precision}")
        return ["\n".join(lines)]

    def new_workspace(self):
        return memory.empty(self.work_size, self.dtype)

    def new_state(self, state):
        return memory.to_device(state)

    def __reduce__(self):
        given = self.net, self.loss, self.batch, self.dtype, self.threads, self.mode, self.watch
        return DevicePlan, (*given, self.penalty, self.precision)

    def __repr__(self):
        precision = "" if self.precision is None else f', precision="{self.precision}"'
        return f'{super().__repr__()[:-1]}, target="cuda"{precision})'


def _kernels(ops):
    return [op.kernel for op in ops]


def _operands(ops):
    """({name: buffer}, {name: size}) of ops in one launch."""
    buffers: dict[str, Buffer | None] = {}
    numbers: dict[str, int] = {}
    for op in reversed(ops):
        buffers |= dict(zip(op.kernel.arrays, op.operands, strict=True))
        numbers |= op.numbers
    return buffers, numbers


class NoKernelError(ValueError):
    """An op that has no CUDA kernel; `what` says which."""

    def __init__(self, op):
        of = "the loss" if op.label == "loss" else f"layer {op.label}"
        self.what = f"{of} has no CUDA kernel for {op.kernel.name.rsplit('.', 1)[-1]}"
        super().__init__(
            f"plan: {self.what}; leave target out to run it on the CPU, or see docs/cuda.md for the layers that run on "
            "the device"
        )


def _device_number(name, number, dtype):
    """A size as a row of the device holds it: the bits of a real number, float64 on the host, in the plan's dtype."""
    if name.endswith("_bits") and dtype == np.float32:
        return int(np.float32(np.int64(number).view(np.float64)).view(np.int32))
    return number


@typeof_impl.register(DevicePlan)
def _no_type(plan, context):
    raise TypeError("a plan for the device cannot be used inside @njit code; call it from Python, or see nbprop.cuda")
