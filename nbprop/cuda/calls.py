"""The public functions on a device plan: check the arguments, fill the frame, launch the program's kernels."""

from typing import Any

import numpy as np

from nbprop import messages as said
from nbprop.cuda import memory, toolkit
from nbprop.cuda.blas import ProductLaunch
from nbprop.cuda.derivatives import WALKS, check_programs
from nbprop.cuda.kernels import FRAME_WORDS, PARTIALS, RESULT, TABLE
from nbprop.messages import failure
from nbprop.program import elements, frame
from nbprop.runtime import arguments as arg
from nbprop.runtime.errors import refusal
from nbprop.runtime.signatures import NEEDED, OUTPUTS, SIGNATURES, flat_sizes, sample_shapes
from nbprop.runtime.walker import SPACE_OF_ARGUMENT

_CODES = {arg.X: frame.X_CODE, arg.TARGET: frame.TARGET_CODE, arg.LENGTHS: frame.LENGTHS_CODE}


def call(function, plan, values, accumulate, step):
    """A public function of a device plan; `values` in the order of arguments.py. Returns its result."""
    bound = Bound(function, plan, values, accumulate, step)
    stream = memory.current_stream()
    bound.write_frame(stream)
    bound.check_ranges(stream)
    WALKS.get(function, Bound.enqueue)(bound, stream)
    return bound.result(stream) if SIGNATURES[function].returns else None


class Bound:
    """A call with its arguments checked and its frame filled: what can be launched, also again and again."""

    def __init__(self, function, plan, values, accumulate=False, step=0):
        self.signature = SIGNATURES[function]
        self.function, self.plan = function, plan
        if toolkit.current_device() != plan.device:
            raise ValueError(
                f"{function}: the plan was made for device {plan.device}, but device {toolkit.current_device()} is the "
                "current one; select its device, or make a plan on this one"
            )
        self.arrays: list[Any] = [
            None if v is None else memory.as_array(f"{function}: {name}", v) for name, v in _named(values)
        ]
        self.n = self._check(step)
        self.program = self.signature.program
        if self.signature.program_with_dx is not None and self.arrays[arg.DX] is not None:
            self.program = self.signature.program_with_dx
        self.words = self._frame(accumulate, step)
        fused = plan.fused.programs.get(self.program) if plan.fused else None
        small = fused is None and plan.in_one_block(self.n)
        small = small and not self.signature.beyond_gradients
        self._launches = self._blocks(fused or plan.programs.get(self.program, ()), small)
        self._walk = None
        if small:
            self._walk = plan.walk(self.program, tuple(launch for launch, _ in self._launches))

    def _blocks(self, launches, small):
        """(launch, its blocks) for those of some launches that have any; small: in one block."""
        n = int(self.words[frame.N])
        launches = [(launch, launch.blocks(n, self.words, small)) for launch in launches]
        return [(launch, blocks) for launch, blocks in launches if blocks]

    def walk(self, program, stream, **words):
        """Write the frame, with other words by their names in frame.py, and enqueue the launches of a program."""
        for name, word in words.items():
            self.words[getattr(frame, name)] = word
        self.write_frame(stream)
        self._launches = self._blocks(self.plan.programs[program], False)
        self.enqueue(stream)

    def _refuse(self, argument, problem):
        raise refusal(self.function, self.plan, self.arrays, argument * 64 + problem)

    # -- checks

    def _check(self, step):
        """Dtypes, shapes, aliasing, the position of a decoding plan; the number of samples."""
        plan, given, signature = self.plan, self.arrays, self.signature
        if plan.mode == "decoding" and self.function != "forward":
            self._refuse(arg.PLAN, said.FORWARD_ONLY)
        if plan.loss is None and arg.TARGET in signature.arrays:
            self._refuse(arg.TARGET, said.NO_LOSS)
        check_programs(self, self._refuse)
        for argument in signature.arrays:
            needed = signature.role(argument) == NEEDED or (argument == arg.STATE and plan.state_size > 0)
            # Of two directions that may be left out, one is needed.
            needed |= argument == arg.V and given[arg.DX] is None
            if needed and given[argument] is None:
                self._refuse(argument, said.MISSING)
        sizes = flat_sizes(plan) | {arg.WORK: plan.work_for(self.function)}
        for argument, size in sizes.items():
            if given[argument] is not None:
                self._check_flat(argument, size, at_least=argument == arg.WORK)
        shapes = sample_shapes(plan)
        shape, code = shapes.pop(arg.X)
        n = self._check_samples(arg.X, shape, code, None)
        if n < plan.min_samples:
            self._refuse(arg.X, said.TOO_FEW)
        for argument, (shape, code) in shapes.items():
            if given[argument] is not None:
                self._check_samples(argument, shape, code, n)
        if signature.out:
            self._check_out(OUTPUTS[signature.out][0](plan, n))
        if given[arg.LENGTHS] is not None and (plan.positions or not plan.max_length):
            self._refuse(arg.LENGTHS, said.NO_LENGTHS)
        if plan.positions and step >= plan.positions:
            self._refuse(arg.CALL_STEP, said.POSITION_RANGE)
        if given[arg.DX] is not None and plan.x_code == elements.ANY_INTEGER:
            self._refuse(arg.DX, said.NO_DERIVATIVE)
        for argument in signature.written:
            self._check_alone(argument)
        return n

    def _check_flat(self, argument, size, at_least=False):
        array = self.arrays[argument]
        if array.dtype != self.plan.dtype:
            self._refuse(argument, said.DTYPE)
        if array.ndim != 1 or array.size < size or (array.size > size and not at_least):
            self._refuse(argument, said.LENGTH)
        # The frame, of 8-byte words, lies in the workspace.
        if array.address % (8 if argument == arg.WORK else array.dtype.itemsize):
            self._refuse(argument, said.MISALIGNED)

    def _check_samples(self, argument, shape, code, n):
        array = self.arrays[argument]
        seen = elements.element_code(array.dtype)
        if seen != code if code != elements.ANY_INTEGER else seen == 0 or seen > elements.FLOAT:
            self._refuse(argument, said.DTYPE)
        if array.shape[1:] != shape or array.ndim != len(shape) + 1:
            self._refuse(argument, said.SHAPE_DIFFERS)
        if len(array) == 0:
            self._refuse(argument, said.EMPTY)
        if len(array) > self.plan.batch:
            self._refuse(argument, said.CAPACITY)
        if n is not None and len(array) != n:
            self._refuse(argument, said.SAMPLES_DIFFER)
        return len(array)

    def _check_out(self, shape):
        if self.arrays[arg.OUT].dtype != self.plan.dtype:
            self._refuse(arg.OUT, said.DTYPE)
        if self.arrays[arg.OUT].shape != shape:
            self._refuse(arg.OUT, said.LENGTH if len(shape) == 1 else said.SHAPE_DIFFERS)

    def _check_alone(self, argument):
        """What is written shares no byte with another argument, and may be written."""
        mine = self.arrays[argument]
        if mine is None:
            return
        if not mine.writable:
            self._refuse(argument, said.READ_ONLY)
        for other, array in enumerate(self.arrays):
            if other == argument or array is None:
                continue
            if array.address < mine.address + mine.nbytes and mine.address < array.address + array.nbytes:
                raise failure(said.ALIASED, f"{self.function}: {arg.NAMES[argument]}", detail=arg.NAMES[other])

    def check_ranges(self, stream):
        """Classes, indices and lengths, by a launch each; waits for the answer. The frame must have been written."""
        for argument, launch in self.plan.range_checks.items():
            if self.arrays[argument] is None:
                continue
            launch.enqueue(self, 1, stream)
            if self.result(stream) != 0:
                problem = said.LENGTH_RANGE if argument == arg.LENGTHS else said.CLASS_RANGE
                if argument == arg.TARGET and self.plan.classes == 0:
                    problem = said.TARGET_RANGE
                self.arrays[argument] = self.arrays[argument].to_host()
                self._refuse(argument, problem)

    # -- launching

    def _frame(self, accumulate, step):
        """The frame's words: base addresses by space, then scalars (see frame.py)."""
        words, plan = np.zeros(FRAME_WORDS, np.int64), self.plan
        for argument, space in SPACE_OF_ARGUMENT:
            if self.arrays[argument] is not None:
                words[space] = self.arrays[argument].address
        work, itemsize = self.arrays[arg.WORK].address, plan.dtype.itemsize
        words[frame.WORK] = work + plan.buffers_offset * itemsize
        words[PARTIALS], words[RESULT] = work + plan.partials_offset * itemsize, work + plan.result_offset * itemsize
        words[TABLE] = plan.table_address()
        words[frame.N], words[frame.ACCUMULATE], words[frame.STEP] = self.n, bool(accumulate), step
        for argument, word in _CODES.items():
            if self.arrays[argument] is not None:
                words[word] = elements.element_code(self.arrays[argument].dtype)
        self.frame_address = work
        return words

    @property
    def result_array(self):
        """The place of the result, in the workspace."""
        return memory.Array((1,), self.plan.dtype, self.words[RESULT], self.arrays[arg.WORK])

    def write_frame(self, stream):
        """Copy the frame to its place in the workspace."""
        toolkit.write(self.frame_address, self.words, stream)

    def enqueue(self, stream, skip=None):
        """Enqueue the program's launches, or the one that does them all.

        skip: a label whose launches are left out: "output", the copy to y; fused.SUM, a gradient from its slices.
        """
        if self._walk is not None:
            self._walk.launch(stream, self.frame_address, self.plan.table_address())
            return
        for launch, blocks in self._launches:
            if launch.label != skip:
                launch.enqueue(self, blocks, stream)

    def warm_library(self, stream):
        """Run cuBLASLt's products once, into their own results: a graph's recording is no time to load its kernels."""
        for launch, blocks in self._launches:
            if isinstance(launch, ProductLaunch):
                launch.enqueue(self, blocks, stream)

    def result(self, stream):
        """The number that the last launch left, once it is there."""
        host = np.empty(1, self.plan.dtype)
        toolkit.read(int(self.words[RESULT]), host, stream)
        return float(host[0])


def _named(values):
    return zip(arg.NAMES, values, strict=True)
