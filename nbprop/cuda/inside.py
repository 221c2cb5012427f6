"""Networks inside a user's own kernels: device functions made for one network, with its sizes as constants.

    forward, vjp = nbprop.cuda.forward_thread(net), nbprop.cuda.vjp_thread(net)
    TRACE = nbprop.cuda.trace_size(net)

    @cuda.jit
    def kernel(...):
        trace = cuda.local.array(TRACE, float32)
        forward(y, x, params, first, stride, trace)

evaluates one network in each thread. Parameter k is params[first + k * stride], so that threads can share one network
(0, 1), or each have its own, with neighbouring threads reading neighbouring words (i, threads). The `_block` variants
share the work of one evaluation among the threads of a block, with the trace in shared memory.

The trace holds the input and the output of every layer (for gelu, gelu_tanh and silu also the pre-activation), which is
all that `vjp` needs. Networks of dense, activation (not softmax) and flatten layers are supported.
"""

import math
from typing import NamedTuple

from nbprop.cuda.toolkit import cuda, device_function
from nbprop.layers.activation import Activation
from nbprop.layers.dense.layer import Dense
from nbprop.layers.reshape import Flatten
from nbprop.networks.network import Network
from nbprop.numerics.activations import ACTIVATIONS, IDENTITY, NEEDS_INPUT, SOFTMAX, derivative_of, value_of
from nbprop.numerics.scalars import like


class _Layer(NamedTuple):
    """Offsets of a layer: in the trace, of its input, pre-activation and output; of its parameters, -1 for none."""

    n_in: int
    n_out: int
    x: int
    z: int
    y: int
    weight: int
    bias: int
    code: int


def _layers(function, net):
    """The layers of a network for one sample, as `_Layer`s, and the size of the trace."""
    if not isinstance(net, Network):
        raise TypeError(f"{function}: net must be what nbprop.network(...) returns, got {type(net).__name__}")
    found, x, size = [], 0, math.prod(net.input_shape)
    for (path, layer), shape in zip(net.nodes, net.shapes, strict=False):
        if isinstance(layer, Flatten):
            continue
        n_in = n_out = math.prod(shape)
        dense, several = isinstance(layer, Dense), False
        if isinstance(layer, Dense):
            code, n_out, several = (
                ACTIVATIONS[layer.activation],
                layer.units,
                len(shape) != 1 or layer.share is not None,
            )
        elif isinstance(layer, Activation):
            code = ACTIVATIONS[layer.name]
        else:
            raise ValueError(f"{function}: layer {path} does not run inside a kernel; dense, activation and flatten do")
        if code == SOFTMAX or several:
            what = "softmax" if code == SOFTMAX else "dense over several positions, or with share,"
            raise ValueError(f"{function}: layer {path}: {what} does not run inside a kernel")
        z = size
        y = z + n_out if code in NEEDS_INPUT and dense else z
        names = [f"{path}.{name}" for name in ("weight", "bias")]
        weight, bias = (net.slots[name].offset if name in net.slots else -1 for name in names)
        found.append(_Layer(n_in, n_out, x, z if dense else x, y, weight, bias, code))
        x, size = y, y + n_out
    return found, size


def trace_size(net):
    """Elements of the trace that `forward_thread` and the others fill."""
    return _layers("trace_size", net)[1]


def _chain(functions):
    """One device function that calls all, in order, with the same arguments."""
    first, *rest = functions
    if not rest:
        return first
    rest = _chain(rest)

    @device_function
    def both(a, b, c, d, e, f):
        first(a, b, c, d, e, f)
        rest(a, b, c, d, e, f)

    return both


# -- a network in each thread --------------------------------------------------------------------------------


def _forward(layer):
    n_in, n_out, x, z, y, weight, bias, code = layer
    dense = weight >= 0

    @device_function
    def run(trace, params, first, stride, me, threads):
        for j in range(me, n_out, threads):
            if dense:
                total = params[first + (bias + j) * stride] if bias >= 0 else like(trace[0], 0.0)
                for k in range(n_in):
                    total += trace[x + k] * params[first + (weight + k * n_out + j) * stride]
                trace[z + j] = total
            if code != IDENTITY or not dense:
                trace[y + j] = value_of(trace[z + j], code)

    return run


def forward_thread(net):
    """A device function forward(y, x, params, first, stride, trace): y = net(x) for one sample, in one thread.

    y OUT (outputs,), x IN (inputs,), params IN (flat; parameter k at first + k * stride), trace OUT (trace_size(net),),
    which `vjp_thread`'s function reads. Raises ValueError for a network with layers other than dense, activation and
    flatten.
    """
    layers, _ = _layers("forward_thread", net)
    run, (n_in, out, n_out) = _chain([_forward(layer) for layer in layers]), _ends(net, layers)

    @device_function
    def forward(y, x, params, first, stride, trace):
        for k in range(n_in):
            trace[k] = x[k]
        run(trace, params, first, stride, 0, 1)
        for j in range(n_out):
            y[j] = trace[out + j]

    return forward


def _ends(net, layers):
    return math.prod(net.input_shape), layers[-1].y if layers else 0, math.prod(net.output_shape)


def _backward(layer):
    """The backward pass of a layer in one thread; adjoint holds the gradient by each number of the trace."""
    n_in, n_out, x, z, y, weight, bias, code = layer
    dense, saved = weight >= 0, z if code in NEEDS_INPUT else y

    @device_function
    def run(trace, adjoint, params, dparams, places, strides):
        (first, dfirst), (stride, dstride) = places, strides
        for k in range(n_in):
            adjoint[x + k] = like(adjoint[0], 0.0)
        # A bound that the compiler cannot see: unrolled, it would keep all offsets in registers, and spill them.
        for j in range(n_out if stride != 0 else 0):
            dz = adjoint[y + j]
            if code != IDENTITY:
                dz *= derivative_of(trace[saved + j], code)
            if dense:
                if bias >= 0:
                    dparams[dfirst + (bias + j) * dstride] += dz
                for k in range(n_in):
                    at = weight + k * n_out + j
                    dparams[dfirst + at * dstride] += trace[x + k] * dz
                    adjoint[x + k] += params[first + at * stride] * dz
            else:
                adjoint[x + j] = dz

    return run


def vjp_thread(net):
    """A device function vjp(dparams, dfirst, dstride, dx, dy, params, first, stride, trace), after forward's.

    dparams INOUT: dy^T J_params is added, parameter k at dfirst + k * dstride; dx OUT (inputs,): dy^T J_x; dy IN
    (outputs,); params and trace as forward had and left them.
    """
    layers, size = _layers("vjp_thread", net)
    run, (n_in, out, n_out) = _chain([_backward(layer) for layer in reversed(layers)]), _ends(net, layers)

    @device_function
    def vjp(dparams, dfirst, dstride, dx, dy, params, first, stride, trace):
        adjoint = cuda.local.array(size, trace.dtype)
        for j in range(n_out):
            adjoint[out + j] = dy[j]
        run(trace, adjoint, params, dparams, (first, dfirst), (stride, dstride))
        for k in range(n_in):
            dx[k] = adjoint[k]

    return vjp


# -- one network for a block ---------------------------------------------------------------------------------


def _with_barrier(function):
    """A device function followed by a barrier of the block."""

    @device_function
    def run(a, b, c, d, e, f):
        function(a, b, c, d, e, f)
        cuda.syncthreads()

    return run


def forward_block(net):
    """A device function forward(y, x, params, first, stride, trace), as `forward_thread`'s, by all threads of a block.

    Every thread must call it; y, x and trace lie in shared or global memory, and y is complete when it returns.
    """
    layers, _ = _layers("forward_block", net)
    run, (n_in, out, n_out) = _chain([_with_barrier(_forward(layer)) for layer in layers]), _ends(net, layers)

    @device_function
    def forward(y, x, params, first, stride, trace):
        me, threads = cuda.threadIdx.x, cuda.blockDim.x
        for k in range(me, n_in, threads):
            trace[k] = x[k]
        cuda.syncthreads()
        run(trace, params, first, stride, me, threads)
        for j in range(me, n_out, threads):
            y[j] = trace[out + j]
        cuda.syncthreads()

    return forward


def _backward_block(layer):
    """As `_backward`: the threads divide first the outputs, then the inputs; each sum runs in one thread, in order."""
    n_in, n_out, x, z, y, weight, bias, code = layer
    dense, saved = weight >= 0, z if code in NEEDS_INPUT else y

    @device_function
    def run(trace, adjoint, params, dparams, places, strides):
        (first, dfirst), (stride, dstride) = places, strides
        me, threads = cuda.threadIdx.x, cuda.blockDim.x
        for j in range(me, n_out, threads):
            dz = adjoint[y + j]
            if code != IDENTITY:
                dz *= derivative_of(trace[saved + j], code)
            adjoint[y + j] = dz
            if dense and bias >= 0:
                dparams[dfirst + (bias + j) * dstride] += dz
        cuda.syncthreads()
        for k in range(me, n_in, threads):
            total = like(adjoint[0], 0.0) if dense else adjoint[y + k]
            if dense:
                for j in range(n_out):
                    at = weight + k * n_out + j
                    dparams[dfirst + at * dstride] += trace[x + k] * adjoint[y + j]
                    total += params[first + at * stride] * adjoint[y + j]
            adjoint[x + k] = total
        cuda.syncthreads()

    return run


def vjp_block(net):
    """A device function vjp(dparams, dfirst, dstride, dx, dy, params, first, stride, trace, adjoint) by a block.

    As `vjp_thread`'s; adjoint OUT (trace_size(net),) lies in shared or global memory. Every thread must call it.
    """
    layers, _ = _layers("vjp_block", net)
    run, (n_in, out, n_out) = _chain([_backward_block(layer) for layer in reversed(layers)]), _ends(net, layers)

    @device_function
    def vjp(dparams, dfirst, dstride, dx, dy, params, first, stride, trace, adjoint):
        me, threads = cuda.threadIdx.x, cuda.blockDim.x
        for j in range(me, n_out, threads):
            adjoint[out + j] = dy[j]
        cuda.syncthreads()
        run(trace, adjoint, params, dparams, (first, dfirst), (stride, dstride))
        for k in range(me, n_in, threads):
            dx[k] = adjoint[k]
        cuda.syncthreads()

    return vjp
