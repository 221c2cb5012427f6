"""The builder: what a layer talks to while it is lowered to ops."""

import math
from dataclasses import dataclass, field

import numpy as np

from nbprop.networks.network import Network, positions_that_count
from nbprop.numerics.copies import add_into, copy, copy_columns, copy_or_zero, copy_within, parameters_or_zero
from nbprop.program import frame
from nbprop.program.ops import Buffer, Op, Value, Watched


@dataclass
class Builder:
    """What a layer's `lower` talks to."""

    net: Network
    batch: int
    dtype: np.dtype
    threads: int
    ops: list = field(default_factory=list)
    rules: list = field(default_factory=list)
    label: str = ""
    mode: str = "training"  # or "inference", or "decoding": one position a call, after those of the calls before
    fixed_state: list = field(default_factory=list)  # (label, buffer, initial values) of states that layers have
    sample_state: list = field(default_factory=list)  # the same, of states that each sample of the batch has
    state_names: dict = field(default_factory=dict)  # how many pieces of state bear a name
    numbered: int = 0
    coupling: tuple = ("", 0)  # a layer through which samples change each other's outputs, the fewest samples it takes
    over_positions: str = ""  # a layer whose statistics run over several rows of each sample
    written: set = field(default_factory=set)
    with_tangents: bool = False  # also emit the tangents of every op: second derivatives
    tangents: dict = field(default_factory=dict)
    absent: frozenset = frozenset()  # spaces of directions that a call may leave out
    zeros: dict = field(default_factory=dict)  # (space, offset, size) of such a direction: its copy, never absent
    stride: int = 0  # above 0: each sample's gradients go to a row of their own in "out", so many elements apart
    watch: str = ""  # "layers": also keep every layer's output and its gradient; "values": every value's
    watched: dict = field(default_factory=dict)  # a layer's path, or path and number of a value: Watched
    unwatched: int = 0  # ops before this one have their values watched
    flops: int = 0  # of the layer being lowered, a sample, where values are watched
    derived: dict = field(default_factory=dict)  # a parameter that layers see as computed from it: see `derive`
    target: str = "cpu"  # what the ops will run on; or "cuda", or "c": what they are exported to

    def value(self, shape):
        """A new value of a shape (per sample)."""
        return Value(tuple(shape), self.buffer(self.batch * math.prod(shape)))

    def buffer(self, size):
        """A new buffer of `size` elements (count the batch in)."""
        return Buffer(int(size))

    def parameter(self, path):
        """The operand of a parameter, by its name in `views`, or of what `derive` has put in its place."""
        if path in self.derived:
            return self.derived[path].buffer
        slot = self.net.slots[path]
        return Buffer(slot.size, frame.PARAMS, slot.offset, path)

    def parameter_gradient(self, path):
        """(operand of a parameter's gradient, 1 when it must be added to because an op before has written it).

        Where `stride` is above 0, that of the first sample; the others' follow at this distance.
        """
        if path in self.derived:
            return self._derived_gradient(path), 1
        slot = self.net.slots[path]
        seen = path in self.written
        self.written.add(path)
        size, space = slot.size, frame.OUT if self.stride else frame.GRADS
        return Buffer(size + (self.batch - 1) * self.stride, space, slot.offset, path), int(seen)

    def direction(self, path):
        """The operand of a parameter's part of the direction v; absent in a `jvp` that gives none (see `emit`)."""
        if path in self.derived:
            return self.tangents[id(self.derived[path].buffer)]
        slot = self.net.slots[path]
        return Buffer(slot.size, frame.TANGENT, slot.offset, path)

    def parameter_tangent(self, path):
        """As `parameter_gradient`, for the derivative of that gradient along v."""
        if path in self.derived:
            return self.tangents[id(self._derived_gradient(path))], 1
        slot, key = self.net.slots[path], f"{path}'"
        seen = key in self.written
        self.written.add(key)
        return Buffer(slot.size, frame.OUT, slot.offset, path), int(seen)

    def derive(self, path, buffer, rule):
        """Let layers take `buffer`, which ops have computed from a parameter, in the parameter's place.

        ``rule(gradient)`` is called in the backward pass, once all of them have added to the gradient of `buffer`. With
        tangents, `buffer` has one.
        """
        value = self.derived[path] = Value((buffer.size,), buffer)

        def pass_on(gradient):
            del self.derived[path]
            rule(gradient)

        self.rules.append((self.label, value, pass_on))

    def _derived_gradient(self, path):
        """The gradient of what stands in a parameter's place, from zeros, and so its tangent."""
        value = self.derived[path]
        if value.gradient is None:
            value.gradient = self.buffer(value.size)
            self.emit(parameters_or_zero, (value.gradient,), (None,))
            if self.with_tangents:
                self.emit(parameters_or_zero, (self.new_tangent(value.gradient),), (None,))
        return value.gradient

    def new_tangent(self, buffer):
        """A new buffer for the derivative of a buffer along the direction."""
        self.tangents[id(buffer)] = self.buffer(buffer.size)
        return self.tangents[id(buffer)]

    def tangent(self, buffer):
        """The derivative of a buffer along the direction; x's is absent in a call that gives no dx (see `emit`)."""
        return self.tangents[id(buffer)]

    def whole_tangent(self, buffer):
        """The same, never absent: where x's is, it is filled with zeros."""
        self.tangents[id(buffer)] = self._present(self.tangents[id(buffer)])
        return self.tangents[id(buffer)]

    def _present(self, direction):
        """A direction that a call may leave out, as a buffer that then holds zeros; any other operand as it is."""

        if direction is None or direction.space not in self.absent:
            return direction
        key = direction.space, direction.offset, direction.size
        if key not in self.zeros:
            self.zeros[key] = self.buffer(direction.size)
            if direction.space == frame.TANGENT:
                self.emit(parameters_or_zero, (self.zeros[key],), (direction,))
            else:
                self.emit(copy_or_zero, (self.zeros[key],), (direction,), (direction.size // self.batch,))
        return self.zeros[key]

    def linear(self, kernel, writes, reads, sizes, inplace=()):
        """Emit an op that is linear in all its operands; its tangent is the same op on tangents."""
        self.emit(kernel, writes, reads, sizes, inplace)
        if self.with_tangents:
            reads = tuple(self.whole_tangent(buffer) for buffer in reads)
            inplace = tuple(self.tangents.get(id(buffer)) or self.new_tangent(buffer) for buffer in inplace)
            self.emit(kernel, tuple(self.new_tangent(buffer) for buffer in writes), reads, sizes, inplace)

    def outside(self, space, size):
        """The operand of a caller's array."""
        return Buffer(int(size), frame.SPACES[space], 0, space)

    def state(self, size, initial=0.0, *, each_sample=False, name="state"):
        """The operand of a piece of the caller's layer state, which calls carry on.

        initial: a number or `size` numbers, what `nbprop.layer_state` puts there. each_sample: the piece is
        (batch, size). name: what `nbprop.save` stores the piece under, behind the layer's path, unless it is each
        sample's. A layer asks for its pieces in the same order in every mode. Offsets are fixed at the end.
        """
        if each_sample:
            found, buffer = self.sample_state, Buffer(self.batch * size, frame.STATE)
        else:
            found, path = self.fixed_state, f"{self.label}.{name}"
            same = self.state_names[path] = self.state_names.get(path, 0) + 1
            buffer = Buffer(size, frame.STATE, name=f"{path}_{same}" if same > 1 else path)
        found.append((self.label, buffer, initial))
        return buffer

    def mark_batch_coupled(self, rows):
        """Say that the samples of a call change each other's outputs, by statistics over `rows` rows of each."""
        self.over_positions = self.label if rows > 1 else self.over_positions
        self.coupling = max(self.coupling, (self.label, 2 if rows == 1 else 1), key=lambda found: found[1])

    def place_state(self):
        """Fix the offsets of all state, what does not depend on the batch first; its (label, buffer, initial)."""
        size, pieces = 0, [*self.fixed_state, *self.sample_state]
        for _, buffer, _ in pieces:
            buffer.offset = size
            size += buffer.size
        return pieces

    def positions_of(self, shape):
        """How many positions of a value a call's lengths may cut; 1 for a value without positions."""
        return positions_that_count(0 if self.mode == "decoding" else self.net.max_length, shape)

    def copy(self, y, x, shape):
        """Emit a copy of a caller's array, or to one, of values of a shape: 0 beyond lengths, whatever lies there."""

        positions, size = self.positions_of(shape), math.prod(shape)
        if positions == 1:
            self.emit(copy, (y,), (x,), (size,))
        else:
            self.emit(copy_within, (y,), (x,), (positions, size // positions))

    def number(self):
        """A number of the layer's own, the same in every program: it keys the layer's random numbers."""
        self.numbered += 1
        return self.numbered - 1

    def emit(self, kernel, writes, reads, sizes=(), inplace=(), barrier=True):
        """Append an op. Operands are `writes`, then `inplace` (read and written), then `reads`; None is absent.

        A direction that a call may leave out goes as it is to kernels that name it as optional, else as a copy that
        then holds zeros: no kernel meets an array that is not there unless it says that it can.

        sizes: what the kernel takes after n, each an integer or the NamedTuple that it declares; one NamedTuple may
        stand for itself.

        barrier=False: the op after it may start on another thread before this one ends, because it touches nothing
        that this one writes.
        """
        self.ops.append(self.op(kernel, writes, reads, sizes, inplace, barrier))

    def op(self, kernel, writes, reads, sizes=(), inplace=(), barrier=True):
        """The op that `emit` appends."""
        written = (*writes, *inplace)
        operands = (*written, *reads)
        contract = kernel.contract
        if type(sizes) is contract.whole:
            given = (sizes,)
        else:
            given = tuple(sizes) if tuple(map(type, sizes)) == contract.types else contract.checked(sizes)
        if len(operands) != len(kernel.arrays) or given is None:
            raise TypeError(
                f"{self.label}: kernel {kernel.name} takes {contract}, got {len(operands)} operands and sizes {sizes}"
            )
        if self.absent:
            operands = self._without_absent(kernel, operands)
        if None in written:
            written = tuple(buffer for buffer in written if buffer is not None)
        return Op(kernel, operands, given, written, self.label, barrier)

    def _without_absent(self, kernel, operands):
        """Operands of which none may be absent but where the kernel says so."""
        for operand in operands:
            if operand is not None and operand.space in self.absent:
                return tuple(
                    operand if name in kernel.optional else self._present(operand)
                    for name, operand in zip(kernel.arrays, operands, strict=True)
                )
        return operands

    def layer(self, path, layer, x):
        """Emit a layer's ops; its output. Layers with layers inside call this for each."""
        outer = self.label, self.flops
        self.label, self.flops = path, layer.flops(x.shape) if self.watch else 0
        y = layer.lower(self, x, path, self.net.parameter_names[path])
        if self.watch == "layers":
            self.keep(path, y)
        self.label, self.flops = outer
        return y

    def on_backward(self, y, rule):
        """Call ``rule(dy)`` in the backward pass, with the buffer of y's gradient, which the rule may overwrite.

        It emits ops, and calls `accumulate_gradient` for each value that y was computed from.
        """
        self.rules.append((self.label, y, rule))
        if self.watch == "values":
            self._keep_computed(y)

    def accumulate_gradient(self, x, dx):
        """Say that `dx` (a buffer of x's size) holds a part of x's gradient; several add up."""
        if x.gradient is None:
            x.gradient = dx
        else:
            self.linear(add_into, (), (dx,), (x.size,), inplace=(x.gradient,))

    def _keep_computed(self, y):
        """Keep a value that has just been computed, unless it is only a copy of others."""

        ops, self.unwatched = self.ops[self.unwatched :], len(self.ops)
        if any(op.kernel not in (copy, copy_columns, copy_within) for op in ops):
            # The natives that kernels call are matrix products, which is what a layer's operations are counted in.
            product = any(op.kernel.uses for op in ops)
            self.keep(f"{self.label}#{len(self.watched)}", y, self.flops // (2 * y.size) if product else 0)

    def keep(self, path, y, terms=0):
        """Emit copies of a value and, in the backward pass, of its whole gradient; nothing overwrites them."""

        output, gradient = self.buffer(self.batch * y.size), self.buffer(self.batch * y.size)
        self.emit(copy, (output,), (y.buffer,), (y.size,))
        # Rules run in reverse: when this one's turn comes, all that read y have contributed.
        self.rules.append((self.label, y, lambda dy: self.emit(copy, (gradient,), (dy,), (y.size,))))
        self.watched[path] = Watched(y.shape, output, gradient, terms)
        self.unwatched = len(self.ops)

    def reverse(self):
        """Emit the backward ops."""
        for label, y, rule in reversed(self.rules):
            self.label = label
            if y.gradient is not None:
                rule(y.gradient)
        self.rules.clear()  # they hold the builder, as it holds them
