"""Lowering: how a network becomes ops with their buffers placed.

Each layer emits its forward ops through a `Builder` and leaves a rule for the backward pass; the backward program is
made by taking those rules in reverse. Buffers get their offsets in the workspace from their lifetimes, so that two that
never live together share memory. The ops that only serve the input's gradient are dropped from the programs that do not
ask for it.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from nbprop.layers.dense.sample_gradients import repeat_row, times_samples
from nbprop.lowering.builder import Builder
from nbprop.lowering.fusion import fuse
from nbprop.lowering.memory import place_buffers
from nbprop.lowering.penalties import insert_gradients, insert_products, lower_value, without_penalties
from nbprop.numerics.copies import copy, copy_or_zero, copy_within
from nbprop.program import frame
from nbprop.program.ops import Buffer, Value


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
    if build.with_tangents:
        build.tangents[id(x.buffer)] = build.outside("dx", x.buffer.size)
    if build.positions_of(shape) > 1 and not net.layers[0].index_limit:
        y = _within_lengths(build, x)
    for index, layer in enumerate(net.layers):
        y = build.layer(f"{index}.{layer.kind}", layer, y)
        if build.mode == "decoding" and y.shape != (1, *net.shapes[index + 1][1:]):
            raise ValueError(
                f"plan: layer {index}.{layer.kind} makes of one position {y.shape} and of all {net.shapes[index + 1]}; "
                'mode="decoding" needs layers that keep the axis of positions'
            )
    return x, y


def _within_lengths(build, x):
    """Emit a copy of x with zeros beyond lengths, so that nothing which lies there is multiplied in any layer."""

    build.label, y, sizes = "input", build.value(x.shape), (x.shape[0], x.size // x.shape[0])
    build.emit(copy_within, (y.buffer,), (x.buffer,), sizes)
    if build.with_tangents:
        build.emit(copy_within, (build.new_tangent(y.buffer),), (build.tangent(x.buffer),), sizes)

    def rule(dy):
        dx = build.buffer(build.batch * x.size)
        build.linear(copy_within, (dx,), (dy,), sizes)
        build.accumulate_gradient(x, dx)

    build.on_backward(y, rule)
    return y


def lower(net, loss, batch, dtype, threads_wanted, mode, watch="", target="cpu", penalty=None):
    """Lower a network; see `Lowered`. watch: "layers" or "values", which backward passes keep, with gradients."""

    build = Builder(net, batch, dtype, threads_wanted, mode=mode, watch=watch, target=target)
    x, y = _lower_layers(build, net)
    parts = {"forward": drain_ops(build)}
    build.label = "output"
    build.copy(build.outside("y", batch * y.size), y.buffer, y.shape)
    parts["copy_y"] = drain_ops(build)
    dy = build.buffer(batch * y.size)
    build.copy(dy, build.outside("dy", batch * y.size), y.shape)
    parts["copy_dy"] = drain_ops(build)
    if loss is not None:
        build.label = "loss"
        loss.lower(build, y, None)
        parts["value"] = drain_ops(build)
        loss.lower(build, y, dy)
        parts["loss"] = drain_ops(build)
    y.gradient = dy
    build.reverse()
    if x.gradient is not None and x.gradient.space == frame.WORK:
        build.label = "input"
        build.emit(copy, (build.outside("dx", batch * x.size),), (x.gradient,), (x.size,))
    parts["backward_input"] = drain_ops(build)
    # One timeline serves all programs: forward, the output's copy, the loss (or the caller's dy), backward.
    order: list[str] = [
        part for part in ("forward", "copy_y", "value", "copy_dy", "loss", "backward_input") if part in parts
    ]
    if target == "cpu":  # on the device an activation is part of the product before it
        parts |= dict(zip(order, fuse(build, *(parts[part] for part in order)), strict=True))
    if penalty is not None:
        parts["penalty_value"] = lower_value(build, penalty)
        parts["backward_input"], parts["penalty_sum"] = insert_gradients(build, penalty, parts["backward_input"])
        order = [*order, "penalty_sum", "penalty_value"]
    timeline = [op for part in order for op in parts[part]]
    if penalty is not None:
        whole, parts["backward_input"] = parts["backward_input"], without_penalties(parts["backward_input"])
        parts["loss_backward"] = whole if watch else prune_dead_ops(frame.GRADS, whole)[0]
    parts["backward"] = parts["backward_input"]
    if not watch:
        (parts["backward"],) = prune_dead_ops(frame.GRADS, parts["backward_input"])
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


def lower_along(program, net, loss, batch, dtype, threads_wanted, mode, penalty=None, target="cpu"):
    """Lower a program that takes derivatives along a direction: "jvp", "hvp", "gauss_newton" or "fisher".

    Every op is followed by its derivative along (v, x'); for Hv in the backward pass too, forward over reverse
    (Pearlmutter 1994). The Gauss-Newton product is the plain gradient for dy = H_L y', H_L being the loss's Hessian by
    the output; the Fisher product takes its expectation in its place.
    """
    # Only jvp may be asked for a derivative along x alone, and not where x holds integers.
    along_x_alone = program == "jvp" and not net.layers[0].index_limit
    absent = frozenset({frame.DX, frame.TANGENT} if along_x_alone else {frame.DX})
    build = Builder(net, batch, dtype, threads_wanted, mode=mode, with_tangents=True, absent=absent, target=target)
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
            build.with_tangents = False
            loss.lower_curvature(build, y, y_dot, y.gradient, expected=program == "fisher")
        build.reverse()
    build.rules.clear()
    build.place_state()
    ops = drain_ops(build)
    if target == "cpu":
        (ops,) = fuse(build, ops)
    lands_in = frame.GRADS if program in ("gauss_newton", "fisher") else frame.OUT
    if penalty is not None and program != "jvp":
        ops = insert_products(build, penalty, ops, lands_in)
    (ops,) = prune_dead_ops(lands_in, ops)
    return Lowered({program: ops}, *place_buffers(ops, dtype.itemsize))


def lower_input_hessian(net, batch, dtype, mode):
    """Lower "hvp_x": the derivative of dx, the gradient of sum(dy y) by x, along a direction of x, into "y".

    For the export alone. It is the way back of `lower_along`, from a dy that does not change, and with the directions
    of all parameters absent; what it writes of parameters' gradients is of no use.
    """
    build = Builder(net, batch, dtype, 1, mode=mode, with_tangents=True, absent=frozenset({frame.TANGENT}))
    x, y = _lower_layers(build, net)
    build.label, y.gradient = "output", build.buffer(batch * y.size)
    build.copy(y.gradient, build.outside("dy", batch * y.size), y.shape)
    unchanged = build.new_tangent(y.gradient)
    build.emit(copy_or_zero, (unchanged,), (Buffer(unchanged.size, frame.TANGENT, net.n_params),), (y.size,))
    build.reverse()
    build.label = "input"
    build.copy(build.outside("y", batch * x.size), build.whole_tangent(x.gradient), x.shape)
    build.rules.clear()
    build.place_state()
    (ops,) = prune_dead_ops(frame.Y, *fuse(build, drain_ops(build)))
    return Lowered({"hvp_x": ops}, *place_buffers(ops, dtype.itemsize))


def lower_samples(program, net, loss, batch, dtype, threads_wanted, mode, target="cpu"):
    """Lower a program that leaves each sample's gradients in a row of its own: "jacobian" or "per_sample".

    A Jacobian's forward part is apart, since it serves the backward passes from all outputs.
    """

    build = Builder(net, batch, dtype, threads_wanted, mode=mode, target=target)
    _, y = _lower_layers(build, net)
    forward, y.gradient = drain_ops(build), build.buffer(batch * y.size)
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
    backward = drain_ops(build)
    if target == "cpu":
        forward, backward = fuse(build, forward, backward)
    forward, backward = prune_dead_ops(frame.OUT, forward, backward)
    parts = {program: backward, f"{program}_forward": forward}
    return Lowered(parts, *place_buffers(forward + backward, dtype.itemsize, forward))


def drain_ops(build):
    """The ops that have been emitted since the last time."""
    ops, build.ops = build.ops, []
    return ops


def prune_dead_ops(space, *parts):
    """The ops of parts of a program, which follow each other, that what lands in `space` depends on; a list a part."""
    wanted, found, follower, following = set(), [], None, None
    for part in reversed(parts):
        kept = []
        for op in reversed(part):
            for buffer in op.writes:
                if buffer.space == space or buffer in wanted:
                    # An op may go without a barrier only before the very op that it was emitted before.
                    alone = op.barrier or following is follower
                    kept.append(op if alone else replace(op, barrier=True))
                    wanted.update(op.operands)
                    follower = op
                    break
            following = op
        found.append(kept[::-1])
    return found[::-1]
