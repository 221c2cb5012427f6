"""Small networks on large batches in one launch with tensor cores: which networks, and the kernel of each shape.

As fused.py in bfloat16, or bfloat16x3, with what differs in tensor_tile.py. The weights of all layers are rounded into
shared memory once a launch, and stay there. Where registers allow it, each warp also keeps its tiles of all weight
gradients through all tiles of samples; else they are added to the block's slice after each. Parameters, gradients and
sums are float32; the outputs of the last layer and the loss are, too, and what a loss gives back is then rounded.

Unlike nbprop's other kernels, this one is compiled for the shape of a network: widths in units of 16, activations.
Consecutive layers of one kind share their code, so that its size does not grow with the depth.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np
from numba import float32, int64, uint32

from nbprop.cuda import tensor_tile as tile
from nbprop.cuda import toolkit
from nbprop.cuda.functions import real_of_word
from nbprop.cuda.fused_kernels import SLICES, blocks_of
from nbprop.cuda.groups import row_factor
from nbprop.cuda.kernels import on_device, word_at
from nbprop.cuda.mma import high_of, low_of, pack, read_if, write
from nbprop.cuda.tensor_tile import ONES, UNIT, lead_of
from nbprop.cuda.tile import MOST_LAYERS
from nbprop.cuda.tile_losses import loss_of_sample
from nbprop.cuda.toolkit import SIMULATED, cuda, device_function
from nbprop.cuda.warps import LANES, sync_warp, thread_again
from nbprop.numerics.activations import NEEDS_INPUT
from nbprop.numerics.scalars import like

# Warps of a block; a plan uses the most whose samples fit in shared memory.
WARPS = (2, 1) if SIMULATED else (8, 4, 2)
# Shared memory of a block, for all but the layers' words: one block to a multiprocessor of an H100.
MOST_SHARED = (22 if SIMULATED else 224) * 1024
# Registers of a thread for weight gradients that stay in them: what leaves no spills, by number of planes.
MOST_SUMS = {1: 48, 2: 8} if SIMULATED else {1: 96, 2: 64}

# Words of a layer: widths; offsets in params of weight and bias (-1: none); places in shared memory of the weight, the
# bias, its gradient, and the layer's input; the number of layers in its run, from it on. Behind the last layer: VALUE
# of its output, and as COUNT the warps.
N_IN, N_OUT, WEIGHT, BIAS, PLACE, BIAS_PLACE, SUM_PLACE, VALUE, COUNT = range(9)
LAYER_WORDS = 9
MOST_WORDS = (MOST_LAYERS + 1) * LAYER_WORDS


class Shape(NamedTuple):
    """What a kernel is compiled for: (inputs, outputs, activation) of each layer, widths in units; planes; warps."""

    layers: tuple
    planes: int
    warps: int

    @property
    def samples(self):
        """Of a tile."""
        return self.warps * UNIT

    @property
    def most(self):
        """Units of the widest layer."""
        return max(max(down, across) for down, across, _ in self.layers)

    def sums(self, layer):
        """Registers for a warp's tiles of a layer's weight gradient."""
        down, across, _ = self.layers[layer]
        rows, columns = tile.tiles_of_warp(down, across, self.warps)
        return 8 * rows * columns

    @property
    def keeps(self):
        """Whether weight gradients stay in registers."""
        return sum(map(self.sums, range(len(self.layers)))) <= MOST_SUMS[self.planes]

    def runs(self):
        """[(inputs, outputs, activation, activation below or None, first layer, layers)] of all layers but the last."""
        below = [None, *(code for _, _, code in self.layers)]
        kinds = [(*layer, before) for layer, before in zip(self.layers[:-1], below, strict=False)]
        found, first = [], 0
        for kind, same in itertools.groupby(kinds):
            count = len(list(same))
            found.append((*kind, first, count))
            first += count
        return found


class Chain(NamedTuple):
    """A network that qualifies: the words of its layers, its shape, words of shared memory, where the outputs lie."""

    words: tuple
    shape: Shape
    elements: int
    out: int

    @property
    def samples(self):
        """Of a tile."""
        return self.shape.samples

    @property
    def kernel(self):
        """That of its tiles."""
        return kernel_of(self.shape)

    @property
    def numbers(self):
        """Sizes of its launches, by name."""
        return {"samples": self.samples, "elements": self.elements, "out": self.out}


def chain_of(layers, planes):
    """The `Chain` of dense layers (n_in, n_out, weight, bias, code), or None if no kernel takes them."""
    if len(layers) > MOST_LAYERS or any(code in NEEDS_INPUT for *_, code in layers):
        return None
    limit = min(MOST_SHARED, toolkit.shared_memory_of_a_block() - 8 * MOST_WORDS)
    units = [(-(-n_in // UNIT), -(-n_out // UNIT), code) for n_in, n_out, _, _, code in layers]
    for warps in WARPS:
        shape = Shape(tuple(units), planes, warps)
        words, elements, out = _placed(layers, shape)
        if 4 * elements <= limit:
            return Chain(tuple(words), shape, elements, out)
    return None


def _placed(layers, shape):
    """(the layers' words, words of shared memory, the place of the outputs)."""
    end, found = 0, []

    def room(size):
        nonlocal end
        begin, end = end, end + -(-size // 4) * 4
        return begin

    counts = [count - k for *_, count in shape.runs() for k in range(count)] + [1]
    for (n_in, n_out, weight, bias, _), (down, across, _), count in zip(layers, shape.layers, counts, strict=True):
        value = room(shape.planes * shape.samples * lead_of(down))
        row = {N_IN: n_in, N_OUT: n_out, WEIGHT: weight, BIAS: bias, VALUE: value, COUNT: count}
        row[PLACE] = room(shape.planes * UNIT * down * lead_of(across))
        row[BIAS_PLACE], row[SUM_PLACE] = room(UNIT * across), room(UNIT * across)
        found += [int(row[k]) for k in range(LAYER_WORDS)]
    across = shape.layers[-1][1]
    last = [0] * LAYER_WORDS
    last[COUNT] = shape.warps
    last[VALUE] = room(shape.planes * shape.samples * lead_of(across))
    # Later also a number of each thread.
    out = room(max(UNIT * across * (shape.samples + 4), LANES * shape.warps))
    return found + last, end, out


# -- what a block does ---------------------------------------------------------------------------------------


def _chained(functions):
    """One device function of a tuple that calls all, in order."""
    if not functions:
        return device_function(lambda given: None)
    first, rest = functions[0], functions[1:]
    if not rest:
        return first
    rest = _chained(rest)

    @device_function
    def both(given):
        first(given)
        rest(given)

    return both


def _chosen(functions):
    """A device function run(number, layer, given) that calls one of some with the others' arguments."""
    first, rest = functions[0], functions[1:]
    if not rest:

        @device_function
        def only(number, layer, given):
            first(layer, given)

        return only

    rest = _chosen(rest)

    @device_function
    def run(number, layer, given):
        if number == 0:
            first(layer, given)
        else:
            rest(number - 1, layer, given)

    return run


def _staging(planes, warps):
    """A device function: the weights, rounded, and the biases of all layers to shared memory; bias gradients to 0."""
    threads = LANES * warps

    @device_function
    def stage(space, reals, params, layers, count):
        zero = like(params[0], 0.0)
        for layer in range(0, count * LAYER_WORDS, LAYER_WORDS):
            n_in, n_out, weight, bias = (
                layers[layer + N_IN],
                layers[layer + N_OUT],
                layers[layer + WEIGHT],
                layers[layer + BIAS],
            )
            wide, rows = (n_out + 15) // 16 * 8, (n_in + 15) // 16 * 16
            for at in range(cuda.threadIdx.x, rows * wide, threads):
                row, col = at // wide, at % wide * 2
                here = weight + row * n_out + col
                left = read_if(row < n_in and col < n_out, params, here)
                right = read_if(row < n_in and col + 1 < n_out, params, here + 1)
                word, place = pack(left, right), layers[layer + PLACE] + row * (wide + 4) + at % wide
                space[place] = word
                if planes == 2:
                    space[place + rows * (wide + 4)] = pack(left - low_of(word), right - high_of(word))
            for at in range(cuda.threadIdx.x, 2 * wide, threads):
                reals[layers[layer + BIAS_PLACE] + at] = read_if(bias >= 0 and at < n_out, params, bias + at)
                reals[layers[layer + SUM_PLACE] + at] = zero

    return stage


def _forward_run(shape, down, across, code):
    """A device function forward(layer, given): the layers of a run."""
    start, most = tile.start_sums(across), shape.most
    times = tile.product(down, across, shape.planes, most, False)
    activate = tile.activate(across, shape.planes, most, code)
    lead, w_plane, y_plane = lead_of(across), UNIT * down * lead_of(across), shape.samples * lead_of(across)

    @device_function
    def forward(first, given):
        words, acc, b, space, reals, layers = given
        begin = first * LAYER_WORDS
        # A number that the compiler cannot see, so that it does not repeat the code for each layer.
        for layer in range(begin, begin + layers[begin + COUNT] * LAYER_WORDS, LAYER_WORDS):
            warp, lane = thread_again() // 32, thread_again() % 32
            start(acc, reals, layers[layer + BIAS_PLACE], lane)
            times(acc, words, b, space, layers[layer + PLACE] + lane % 16 * lead + lane // 16 * 4, w_plane)
            y = layers[layer + LAYER_WORDS + VALUE] + (16 * warp + lane // 4) * lead + lane % 4
            activate(words, acc, space, y, y_plane)

    return forward


def _forward_pass(shape):
    """A device function: the forward pass of a warp's samples, to the outputs z of the last layer in acc."""
    runs = []
    for down, across, code, _, first, _ in shape.runs():
        runs.append(_at(_forward_run(shape, down, across, code), first))
    hidden, last = _chained(runs), (len(shape.layers) - 1) * LAYER_WORDS
    down, across, _ = shape.layers[-1]
    load, start = tile.load_samples(shape.layers[0][0], shape.planes, shape.most), tile.start_sums(across)
    times = tile.product(down, across, shape.planes, shape.most, False)
    lead, w_plane = lead_of(across), UNIT * down * lead_of(across)
    x_lead, x_plane = lead_of(shape.layers[0][0]), shape.samples * lead_of(shape.layers[0][0])

    @device_function
    def forward(words, acc, b, space, reals, layers, x, first, n):
        warp, lane = thread_again() // 32, thread_again() % 32
        place = layers[VALUE] + (16 * warp + lane // 4) * x_lead + lane % 4
        load(words, x, first + 16 * warp, n, layers[N_IN], space, place, x_plane, lane)
        hidden((words, acc, b, space, reals, layers))
        lane = thread_again() % 32
        start(acc, reals, layers[last + BIAS_PLACE], lane)
        times(acc, words, b, space, layers[last + PLACE] + lane % 16 * lead + lane // 16 * 4, w_plane)

    return forward


def _at(function, number):
    """The device function of `given` alone."""

    @device_function
    def run(given):
        function(number, given)

    return run


def _weight_part(shape, down, across, offset):
    """A device function of (layer, given): dW of a layer into registers from `offset` on, or into the slice."""
    samples, warps, keeps = shape.samples, shape.warps, shape.keeps
    x_lead, dz_lead = lead_of(down), lead_of(across)
    x_plane, dz_plane = samples * x_lead, samples * dz_lead
    weight, store = tile.weight_product(down, across, warps, shape.planes), tile.weight_store(down, across, warps)
    rows, columns = tile.tiles_of_warp(down, across, warps)
    clear, end = tile.clear(8 * rows * columns), len(shape.layers) * LAYER_WORDS + COUNT

    @device_function
    def run(layer, given):
        _, _, b, x, _, sums, space, _, layers, slices, base, adds = given
        warp, lane = thread_again() // 32, thread_again() % 32
        # Rows in memory are samples: those of x are the columns of A, those of dz the rows of B.
        x_here = layers[layer + VALUE] + (lane // 16 * 8 + lane % 8) * x_lead + lane // 8 % 2 * 4
        dz_here = layers[layer + LAYER_WORDS + VALUE] + lane % 16 * dz_lead + lane // 16 * 4
        if not keeps:
            clear(sums)
        weight(sums, offset, x, b, space, x_here, dz_here, x_plane, dz_plane, warp, layers, end)
        if not keeps:
            place = base + layers[layer + WEIGHT]
            store(slices, sums, offset, place, layers[layer + N_IN], layers[layer + N_OUT], adds, warp, lane)

    return run


def _backward_run(shape, run, offset):
    """A device function of `given`: dW and db of the layers of a run, the last one first, and the dz below each.

    Begins when all warps have their rows of dz in shared memory, and as A; ends so for the layer below.
    """
    down, across, _, below, first, count = run
    planes, most, begin = shape.planes, shape.most, first * LAYER_WORDS
    x_lead, dz_lead = lead_of(down), lead_of(across)
    x_plane, dz_plane, w_plane = shape.samples * x_lead, shape.samples * dz_lead, UNIT * down * dz_lead
    # Registers have constant numbers: each layer has its own code for them, and for nothing else.
    apart = count if shape.keeps else 1
    weights = _chosen([_weight_part(shape, down, across, offset + k * shape.sums(first)) for k in range(apart)])
    bias, last_one = tile.bias_product(across, shape.warps, planes), apart - 1
    times, clear = tile.product(across, down, planes, most, True), tile.clear(8 * down)
    differentiate = tile.differentiate(down, planes, most, 0 if below is None else below)
    goes_on, end = below is not None, len(shape.layers) * LAYER_WORDS + COUNT

    @device_function
    def backward(given):
        words, acc, b, _, ones, _, space, reals, layers, _, _, _ = given
        layer = begin + (layers[begin + COUNT] - 1) * LAYER_WORDS
        while layer >= begin:
            weights(min((layer - begin) // LAYER_WORDS, last_one), layer, given)
            warp, lane = thread_again() // 32, thread_again() % 32
            if layers[layer + BIAS] >= 0:
                dz = layers[layer + LAYER_WORDS + VALUE] + lane % 16 * dz_lead + lane // 16 * 4
                place = layers[layer + SUM_PLACE]
                bias(reals, place, acc, ones, b, space, dz, dz_plane, warp, lane, layers, end)
            if goes_on:
                clear(acc)
                w = layers[layer + PLACE] + (lane // 16 * 8 + lane % 8) * dz_lead + lane // 8 % 2 * 4
                times(acc, words, b, space, w, w_plane)
            cuda.syncthreads()
            if goes_on:
                warp, lane = thread_again() // 32, thread_again() % 32
                x = layers[layer + VALUE] + (16 * warp + lane // 4) * x_lead + lane % 4
                differentiate(words, acc, space, x, x_plane)
                cuda.syncthreads()
            layer -= LAYER_WORDS

    return backward


def _stored(shape, offsets):
    """A device function of `given`: the weight gradients in registers, and those of the biases, to the slice."""
    parts = []
    for number, (down, across, _) in enumerate(shape.layers if shape.keeps else ()):
        parts.append(_at(_stored_layer(tile.weight_store(down, across, shape.warps), offsets[number]), number))
    weights, count, threads = _chained(parts), len(shape.layers), LANES * shape.warps

    @device_function
    def store(given):
        _, _, _, _, _, _, _, reals, layers, slices, base, _ = given
        weights(given)
        for layer in range(0, count * LAYER_WORDS, LAYER_WORDS):
            if layers[layer + BIAS] >= 0:
                for at in range(cuda.threadIdx.x, layers[layer + N_OUT], threads):
                    write(slices, base + layers[layer + BIAS] + at, reals[layers[layer + SUM_PLACE] + at])

    return store


def _stored_layer(store, offset):
    @device_function
    def run(number, given):
        _, _, _, _, _, sums, _, _, layers, slices, base, _ = given
        warp, lane = thread_again() // 32, thread_again() % 32
        layer = number * LAYER_WORDS
        place = base + layers[layer + WEIGHT]
        store(slices, sums, offset, place, layers[layer + N_IN], layers[layer + N_OUT], False, warp, lane)

    return run


def _backward_pass(shape, offsets):
    """A device function of `given`: the backward pass of a tile, from dL/dy in memory on."""
    runs = [*shape.runs(), _last_run(shape)]
    return _chained([_backward_run(shape, run, offsets[run[4]]) for run in reversed(runs)])


def _last_run(shape):
    below = shape.layers[-2][2] if len(shape.layers) > 1 else None
    return (*shape.layers[-1], below, len(shape.layers) - 1, 1)


# Words of a task: what a tile needs to know to compute its loss (as in fused_kernels.py), and where the outputs lie.
LOSS, DELTA_BITS, TARGET_ADDRESS, TARGET_CODE, OUT = range(5)
TASK_WORDS = 5


def _losses(shape):
    """A device function: w l of a lane's sample; with `gradient`, dL/dy overwrites the output."""
    lead, last = shape.samples + 4, (len(shape.layers) - 1) * LAYER_WORDS

    @device_function
    def losses(reals, target, weights, sums, layers, n, first, task, gradient, warp, lane):
        total, s = like(sums[0], 0.0), 16 * warp + lane
        width, y, i = layers[last + N_OUT], task[OUT] + s, first + s
        if lane < 16:
            if i < n:
                delta, factor = real_of_word(total, task[DELTA_BITS]), row_factor(weights, sums, n, 1, i)
                outputs, wanted = (y, lead, width), (task[TARGET_ADDRESS], task[TARGET_CODE], i)
                found = loss_of_sample(task[LOSS], reals, outputs, target, wanted, factor, delta, gradient)
                total = found * weights[i] if weights.size > 0 else found
            elif gradient:
                for j in range(width):
                    reals[y + j * lead] = like(total, 0.0)
        return total

    return losses


# -- the kernel ----------------------------------------------------------------------------------------------


@functools.cache
def kernel_of(shape):
    """The kernel for a shape: a thread block runs tile after tile, into its slice (see fused_kernels.py)."""
    samples, threads, count = shape.samples, LANES * shape.warps, len(shape.layers)
    each = [shape.sums(layer) for layer in range(count)]
    offsets = [0, *itertools.accumulate(each)] if shape.keeps else [0] * count
    all_sums = sum(each) if shape.keeps else max(each)
    size, words_size = 8 * shape.most, 4 * shape.most * shape.planes
    lead, (_, across, code) = samples + 4, shape.layers[-1]
    show, take = tile.outputs(across, lead, code)
    round_dz = tile.activate(across, shape.planes, shape.most, 0)
    forward, losses, backward = _forward_pass(shape), _losses(shape), _backward_pass(shape, offsets)
    stage, store, clear = _staging(shape.planes, shape.warps), _stored(shape, offsets), tile.clear(all_sums)
    y_lead, y_plane, last = lead_of(across), samples * lead_of(across), (count - 1) * LAYER_WORDS
    x_words = 4 * shape.planes

    @device_function
    def run_tile(given, x, target, weights, n, first, task, gradient):
        words, acc, b, _, _, _, space, reals, layers, slices, _, _ = given
        forward(words, acc, b, space, reals, layers, x, first, n)
        warp, lane = thread_again() // 32, thread_again() % 32
        here = task[OUT] + 16 * warp
        show(acc, reals, here, lane)
        sync_warp()
        total = losses(reals, target, weights, slices, layers, n, first, task, gradient, warp, lane)
        sync_warp()
        if gradient:
            warp, lane = thread_again() // 32, thread_again() % 32
            take(acc, reals, here, lane, layers[last + N_OUT])
            place = layers[last + LAYER_WORDS + VALUE] + (16 * warp + lane // 4) * y_lead + lane % 4
            round_dz(words, acc, space, place, y_plane)
            cuda.syncthreads()
            backward(given)
        return total

    def blocks(n):
        return int(blocks_of(n, samples))

    def scratch(n, stride):
        return SLICES + int(blocks_of(n, samples)) * stride

    def shared(elements):
        return 4 * elements

    @on_device(
        blocks=blocks,
        scratch=scratch,
        shared=shared,
        dtypes=(np.float32,),
        resident=1,
        apart=True,
        threads=threads,
        casts=False,
    )
    def tensor_tiles(
        params,
        x,
        target,
        weights,
        partials,
        n,
        layers_at,
        out,
        loss,
        delta_bits,
        n_params,
        stride,
        elements,
        gradient,
        table_address,
        target_address,
        target_code,
    ):
        """Loss and, with `gradient`, gradients of all tiles of a thread block, to its slice.

        params IN (n_params,), x IN (n, inputs), target IN (n, outputs) or empty, weights IN (n,) or empty; partials OUT
        (SLICES + blocks * stride,): from SLICES on, one slice per thread block; before that IN: sum(w). layers_at:
        where the table describes the layers; elements: words of shared memory, out: of the outputs there.
        """
        space = cuda.shared.array(0, uint32)
        reals = cuda.shared.array(0, float32)
        layers = cuda.shared.array(MOST_WORDS, int64)
        task = cuda.shared.array(TASK_WORDS, int64)
        words = cuda.local.array(words_size, uint32)
        acc = cuda.local.array(size, float32)
        sums = cuda.local.array(all_sums, float32)
        left = cuda.local.array(x_words, uint32)
        right = cuda.local.array(4, uint32)
        ones = cuda.local.array(4, uint32)
        for i in range(cuda.threadIdx.x, (count + 1) * LAYER_WORDS, threads):
            layers[i] = word_at(table_address, layers_at + i)
        if cuda.threadIdx.x == 0:
            task[LOSS], task[DELTA_BITS], task[OUT] = loss, delta_bits, out
            task[TARGET_ADDRESS], task[TARGET_CODE] = target_address, target_code
        for i in range(4):
            ones[i] = ONES
        cuda.syncthreads()
        stage(space, reals, params, layers, count)
        clear(sums)
        cuda.syncthreads()
        base, total = SLICES + cuda.blockIdx.x * stride, like(params[0], 0.0)
        begin = cuda.blockIdx.x * samples
        for first in range(begin, n, cuda.gridDim.x * samples):
            given = words, acc, right, left, ones, sums, space, reals, layers, partials, base, first > begin
            total += run_tile(given, x, target, weights, n, first, task, gradient != 0)
        cuda.syncthreads()
        if gradient != 0:
            store((words, acc, right, left, ones, sums, space, reals, layers, partials, base, False))
        reals[out + cuda.threadIdx.x] = total
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            total = like(params[0], 0.0)
            for i in range(threads):
                total += reals[out + i]
            write(partials, base + n_params, total)

    return tensor_tiles
