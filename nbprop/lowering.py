"""Lowering: how a network becomes ops with their buffers placed.

Each layer emits its forward ops through a `Builder` and leaves a rule for the way back; the backward program is made by
taking those rules in reverse. Buffers get their offsets in the workspace from their lifetimes, so that two that never
live together share memory. The ops that only serve the input's gradient are dropped from the programs that do not
ask for it.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from nbprop import frame
from nbprop.network import Network
from nbprop.placing import place_buffers


def positions_that_count(longest, shape):
    """How many positions of a value a call's lengths may cut; 1 where lengths are none of its business."""
    return longest if len(shape) > 1 and shape[0] == longest else 1


@dataclass(eq=False)
class Buffer:
    """A piece of memory that ops read and write; its place in the workspace is fixed by liveness."""

    size: int
    space: int = frame.WORK
    offset: int = -1
    name: str = ""


@dataclass(eq=False)
class Value:
    """An array (n, *shape) that flows through the network: its buffer and, on the way back, its gradient's."""

    shape: tuple[int, ...]
    buffer: Buffer
    gradient: Buffer | None = None
    pending: str = "identity"  # an activation that the layer which takes the value is to apply
    taken: tuple | None = None  # the gradient in few numbers, where only a max pool gives one: see pool.py

    @property
    def size(self):
        return math.prod(self.shape)


@dataclass(frozen=True)
class Watched:
    """Where a walk with gradients leaves a value and its gradient, (batch, *shape) each; the terms that it sums up."""

    shape: tuple[int, ...]
    output: Buffer
    gradient: Buffer
    terms: int = 0


@dataclass(eq=False)
class Op:
    """A row of the table: a kernel with its operands and sizes."""

    kernel: object
    operands: tuple
    sizes: tuple
    writes: tuple
    label: str
    barrier: bool = True


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
    second: bool = False  # also emit the tangents of every op: second derivatives
    tangents: dict = field(default_factory=dict)
    absent: frozenset = frozenset()  # spaces of directions that a call may leave out
    zeros: dict = field(default_factory=dict)  # (space, offset, size) of such a direction: its copy, never absent
    stride: int = 0  # above 0: each sample's gradients go to a row of their own in "out", so many elements apart
    watch: str = ""  # "layers": also keep every layer's output and its gradient; "values": every value's
    watched: dict = field(default_factory=dict)  # a layer's path, or path and number of a value: Watched
    following: object = None  # the layer that takes the output of the one being lowered, and alone takes it
    unwatched: int = 0  # ops before this one have their values watched
    flops: int = 0  # of the layer being lowered, a sample
    target: str = "cpu"  # or "cuda": what the ops will run on

    def value(self, shape):
        """A new value of a shape (per sample)."""
        return Value(tuple(shape), self.buffer(self.batch * math.prod(shape)))

    def buffer(self, size):
        """A new buffer of `size` elements (count the batch in)."""
        return Buffer(int(size))

    def parameter(self, path):
        """The operand of a parameter, by its name in `views`."""
        slot = self.net.slots[path]
        return Buffer(slot.parameter.size, frame.PARAMS, slot.offset, path)

    def parameter_gradient(self, path):
        """(operand of a parameter's gradient, 1 when it must be added to because an op before has written it).

        Where `stride` is above 0, that of the first sample; the others' follow at this distance.
        """
        slot = self.net.slots[path]
        seen = path in self.written
        self.written.add(path)
        size, space = slot.parameter.size, frame.OUT if self.stride else frame.GRADS
        return Buffer(size + (self.batch - 1) * self.stride, space, slot.offset, path), int(seen)

    def direction(self, path):
        """The operand of a parameter's part of the direction v; absent in a `jvp` that gives none (see `emit`)."""
        slot = self.net.slots[path]
        return Buffer(slot.parameter.size, frame.TANGENT, slot.offset, path)

    def parameter_tangent(self, path):
        """As `parameter_gradient`, for the derivative of that gradient along v."""
        slot, key = self.net.slots[path], f"{path}'"
        seen = key in self.written
        self.written.add(key)
        return Buffer(slot.parameter.size, frame.OUT, slot.offset, path), int(seen)

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
        from nbprop.layers.combine import copy_or_zero, parameters_or_zero

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
        if self.second:
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

    def couple(self, rows):
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
        """How many positions of a value a call's lengths may cut; 1 where lengths are none of its business."""
        return positions_that_count(0 if self.mode == "decoding" else self.net.longest, shape)

    def copy(self, y, x, shape):
        """Emit a copy of a caller's array, or to one, of values of a shape: 0 beyond lengths, whatever lies there."""
        from nbprop.layers.combine import copy, copy_within

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

        barrier=False: the op after it may start on another thread before this one ends, because it touches nothing
        that this one writes.
        """
        operands = (*writes, *inplace, *reads)
        if len(operands) != len(kernel.arrays) or len(sizes) != len(kernel.sizes):
            raise TypeError(
                f"{self.label}: kernel {kernel.name} takes arrays {kernel.arrays} and sizes {kernel.sizes}, "
                f"got {len(operands)} operands and {len(sizes)} sizes"
            )
        if self.absent:
            operands = tuple(
                operand if name in kernel.optional else self._present(operand)
                for name, operand in zip(kernel.arrays, operands, strict=True)
            )
        written = tuple(buffer for buffer in (*writes, *inplace) if buffer is not None)
        sizes = tuple(int(size) for size in sizes)
        self.ops.append(Op(kernel, operands, sizes, written, self.label, barrier))

    def on_backward(self, y, rule):
        """Call ``rule(dy)`` on the way back, with the buffer of y's gradient; it emits ops and calls `contribute`."""
        self.rules.append((self.label, y, rule))
        if self.watch == "values":
            self._keep_computed(y)

    def contribute(self, x, dx):
        """Say that `dx` (a buffer of x's size) holds a contribution to x's gradient; several add up."""
        if x.gradient is None:
            x.gradient = dx
        else:
            from nbprop.layers.combine import add_into

            x.taken = None
            self.linear(add_into, (), (dx,), (x.size,), inplace=(x.gradient,))

    def _keep_computed(self, y):
        """Keep a value that has just been computed, unless it is only a copy of others."""
        from nbprop.layers.combine import copy, copy_columns, copy_within

        ops, self.unwatched = self.ops[self.unwatched :], len(self.ops)
        if any(op.kernel not in (copy, copy_columns, copy_within) for op in ops):
            # The natives that kernels call are matrix products, which is what a layer's operations are counted in.
            product = any(op.kernel.uses for op in ops)
            self.keep(f"{self.label}#{len(self.watched)}", y, self.flops // (2 * y.size) if product else 0)

    def keep(self, path, y, terms=0):
        """Emit copies of a value and, on the way back, of its whole gradient; nothing overwrites them."""
        from nbprop.layers.combine import copy

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


@dataclass
class Lowered:
    """The ops of the parts that programs are made of, with every buffer placed."""

    parts: dict
    work_size: int
    bound: int
    input_shape: tuple = ()
    output_shape: tuple = ()
    state: tuple = ()  # (label, buffer, initial values) of each piece of layer state
    watched: dict = field(default_factory=dict)  # as in Builder
    coupling: tuple = ("", 0)  # as the builder's
    over_positions: str = ""


def _lower_layers(build, net):
    """Emit every layer; (x, y)."""
    shape = (1, *net.input_shape[1:]) if build.mode == "decoding" else net.input_shape
    x = y = Value(shape, build.outside("x", build.batch * math.prod(shape)))
    if build.second:
        build.tangents[id(x.buffer)] = build.outside("dx", x.buffer.size)
    if build.positions_of(shape) > 1 and not net.layers[0].index_limit:
        y = _within_lengths(build, x)
    # On the device an activation is part of the product before it.
    alone = build.target == "cpu" and not build.watch
    for index, layer in enumerate(net.layers):
        following = net.layers[index + 1] if alone and index + 1 < len(net.layers) else None
        y = lower_layer(build, f"{index}.{layer.kind}", layer, y, following)
        if build.mode == "decoding" and y.shape != (1, *net.shapes[index + 1][1:]):
            raise ValueError(
                f"plan: layer {index}.{layer.kind} makes of one position {y.shape} and of all {net.shapes[index + 1]}; "
                'mode="decoding" needs layers that keep the axis of positions'
            )
    return x, y


def _within_lengths(build, x):
    """Emit a copy of x with zeros beyond lengths, so that nothing which lies there is multiplied in any layer."""
    from nbprop.layers.combine import copy_within

    build.label, y, sizes = "input", build.value(x.shape), (x.shape[0], x.size // x.shape[0])
    build.emit(copy_within, (y.buffer,), (x.buffer,), sizes)
    if build.second:
        build.emit(copy_within, (build.new_tangent(y.buffer),), (build.tangent(x.buffer),), sizes)

    def rule(dy):
        dx = build.buffer(build.batch * x.size)
        build.linear(copy_within, (dx,), (dy,), sizes)
        build.contribute(x, dx)

    build.on_backward(y, rule)
    return y


def lower(net, loss, batch, dtype, threads_wanted, mode, watch="", target="cpu"):
    """Lower a network; see `Lowered`. watch: "layers" or "values", what ways back also keep, with its gradient."""
    from nbprop.layers.combine import copy

    build = Builder(net, batch, dtype, threads_wanted, mode=mode, watch=watch, target=target)
    x, y = _lower_layers(build, net)
    parts = {"forward": _take(build)}
    build.label = "output"
    build.copy(build.outside("y", batch * y.size), y.buffer, y.shape)
    parts["copy_y"] = _take(build)
    dy = build.buffer(batch * y.size)
    build.copy(dy, build.outside("dy", batch * y.size), y.shape)
    parts["copy_dy"] = _take(build)
    if loss is not None:
        build.label = "loss"
        loss.lower(build, y, None)
        parts["value"] = _take(build)
        loss.lower(build, y, dy)
        parts["loss"] = _take(build)
    y.gradient = dy
    build.reverse()
    if x.gradient is not None and x.gradient.space == frame.WORK:
        build.label = "input"
        build.emit(copy, (build.outside("dx", batch * x.size),), (x.gradient,), (x.size,))
    parts["backward_input"] = _take(build)
    parts["backward"] = parts["backward_input"] if watch else _needed(parts["backward_input"], frame.GRADS)
    # One timeline serves all programs: forward, the output's copy, the loss (or the caller's dy), backward.
    order = ("forward", "copy_y", "value", "copy_dy", "loss", "backward_input")
    timeline = [op for part in order for op in parts.get(part, ())]
    # What forward leaves survives backward, so that one forward serves several: a Jacobian's rows, another dy.
    watched = [buffer for kept in build.watched.values() for buffer in (kept.output, kept.gradient)]
    work_size, bound = place_buffers(timeline, dtype.itemsize, parts["forward"], watched)
    shapes, state = (x.shape, y.shape), tuple(build.place_state())
    return Lowered(parts, work_size, bound, *shapes, state, build.watched, build.coupling, build.over_positions)


def state_layout(net):
    """({name: (offset, size)} of the layer state that belongs to no sample, whether samples have some of their own)."""
    pieces = state_pieces(net)
    layout = {buffer.name: (buffer.offset, buffer.size) for _, buffer, _ in pieces if buffer.name}
    return layout, len(layout) < len(pieces)


def state_pieces(net):
    """(label, buffer, initial values) of each piece of a network's layer state, at batch 1."""
    build = Builder(net, 1, np.dtype(np.float64), 1, mode="inference")
    _lower_layers(build, net)
    return build.place_state()


def lower_along(program, net, loss, batch, dtype, threads_wanted, mode):
    """Lower a program that takes derivatives along a direction: "jvp", "hvp", "gauss_newton" or "fisher".

    Every op is followed by its derivative along (v, x'); for Hv on the way back too, forward over reverse (Pearlmutter
    1994). The Gauss-Newton product is the plain gradient for dy = H_L y', H_L being the loss's Hessian by the output;
    the Fisher product takes its expectation in its place.
    """
    # Only jvp may be asked for a derivative along x alone, and not where x holds integers.
    along_x_alone = program == "jvp" and not net.layers[0].index_limit
    absent = frozenset({frame.DX, frame.TANGENT} if along_x_alone else {frame.DX})
    build = Builder(net, batch, dtype, threads_wanted, mode=mode, second=True, absent=absent)
    _, y = _lower_layers(build, net)
    y_dot = build.whole_tangent(y.buffer)
    if program == "jvp":
        build.copy(build.outside("out", batch * y.size), y_dot, y.shape)
    else:
        build.label = "loss"
        y.gradient = build.buffer(batch * y.size)
        if program == "hvp":
            loss.lower(build, y, y.gradient)
            loss.lower_curvature(build, y, y_dot, build.new_tangent(y.gradient))
        else:
            build.second = False
            loss.lower_curvature(build, y, y_dot, y.gradient, expected=program == "fisher")
        build.reverse()
    build.place_state()
    ops = _needed(_take(build), frame.GRADS if program in ("gauss_newton", "fisher") else frame.OUT)
    return Lowered({program: ops}, *place_buffers(ops, dtype.itemsize))


def lower_samples(program, net, loss, batch, dtype, threads_wanted, mode):
    """Lower a program that leaves each sample's gradients in a row of its own: "jacobian" or "per_sample".

    A Jacobian's forward part is apart, since it serves the ways back from all outputs.
    """
    from nbprop.layers.samples import repeat_row, times_samples

    build = Builder(net, batch, dtype, threads_wanted, mode=mode)
    _, y = _lower_layers(build, net)
    forward, y.gradient = _take(build), build.buffer(batch * y.size)
    if program == "jacobian":
        build.label, build.stride = "output", y.size * net.n_params
        build.emit(repeat_row, (y.gradient,), (build.outside("dy", y.size),), (y.size,))
        if build.positions_of(y.shape) > 1:
            whole, y.gradient = y.gradient, build.buffer(batch * y.size)
            build.copy(y.gradient, whole, y.shape)
    else:
        build.label, build.stride = "loss", net.n_params
        loss.lower(build, y, y.gradient)
        build.emit(times_samples, (), (), (y.size,), inplace=(y.gradient,))
    build.reverse()
    backward = _take(build)
    ops = _needed(forward + backward, frame.OUT)
    first = len(ops) - len(_needed(backward, frame.OUT))
    parts = {program: ops[first:], f"{program}_forward": ops[:first]}
    return Lowered(parts, *place_buffers(ops, dtype.itemsize, ops[:first]))


def lower_layer(build, path, layer, x, following=None):
    """Emit one layer's ops; layers with layers inside call this for each of those. following: see Builder."""
    outer = build.label, build.flops, build.following
    build.label, build.flops, build.following = path, layer.flops(x.shape), following
    names = [f"{path}.{parameter.name}" for parameter in layer.parameters(x.shape)]
    y = layer.lower(build, x, path, names)
    if build.watch == "layers":
        build.keep(path, y)
    build.label, build.flops, build.following = outer
    return y


def _take(build):
    ops, build.ops = build.ops, []
    return ops


def _needed(ops, space):
    """The ops that what lands in `space` depends on."""
    wanted, kept, follower = set(), [], None
    for op, following in zip(reversed(ops), [None, *reversed(ops)], strict=False):
        if any(buffer.space == space or id(buffer) in wanted for buffer in op.writes):
            # An op may go without a barrier only before the very op that it was emitted before.
            barrier = op.barrier or following is not follower
            follower = op
            kept.append(op if barrier == op.barrier else replace(op, barrier=barrier))
            wanted.update(id(buffer) for buffer in op.operands if buffer is not None)
    return kept[::-1]
