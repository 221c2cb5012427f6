"""The launches of a fused plan (see fused.py): sum(w); all tiles, forward and back; sums over the blocks' slices.

A slice holds the gradients of all parameters, then the sum of the losses, both of its block's tiles.
"""

import numpy as np
from numba import float32, int64

from nbprop.compiler.jit import njit
from nbprop.cuda import tile
from nbprop.cuda.functions import real_of_word
from nbprop.cuda.groups import block_sum, row_factor, sum_of_slices
from nbprop.cuda.kernels import on_device, word_at
from nbprop.cuda.losses.base import cuda_weight_sum
from nbprop.cuda.tile import BIAS, CODE, FEWEST_PARTS, LAYER_WORDS, MOST_WORDS, N_IN, N_OUT, X, Y
from nbprop.cuda.tile_losses import loss_of_sample
from nbprop.cuda.toolkit import SIMULATED, THREADS, cover, cuda, device_function
from nbprop.numerics.activations import IDENTITY
from nbprop.numerics.scalars import like

# Samples of a tile: a plan takes the most that fit in shared memory.
SAMPLES = (16, 8) if SIMULATED else (128, 64, 32)
# Blocks, each with its slice: two for each of an H100's 132 multiprocessors. Not measured.
MOST_BLOCKS = 2 if SIMULATED else 264
# Where the slices begin in `partials`; sum(w) stands in front of them.
SLICES = 32

# Words of a task, which say what a tile's loss is.
LOSS, DELTA_BITS, TARGET_ADDRESS, TARGET_CODE = range(4)
TASK_WORDS = 4


@njit
def blocks_of(n, samples):
    """Blocks, and slices, for n samples in tiles of `samples`."""
    return min((n + samples - 1) // samples, MOST_BLOCKS)


def stride_of(n_params):
    """Elements from a slice to the next."""
    return -(-(n_params + 1) // 32) * 32


def cuda_kernels(cuda):
    """In the order of their launches; of the kernels of tiles a plan takes one."""
    return cuda_weight_sum(cuda, None), *map(_tiles, SAMPLES), reduced, mean


# -- tiles ---------------------------------------------------------------------------------------------------


def _way_there(samples):
    """A device function: a tile through all layers, each with a barrier behind it."""
    wide, narrow = (tile.forward_product(samples, shape) for shape in (tile.WIDE, tile.NARROW))
    value, down = tile.activation(samples)[0], samples // tile.WIDE[0]

    @device_function
    def forward(space, params, layers, count):
        for layer in range(0, count * LAYER_WORDS, LAYER_WORDS):
            if down * ((layers[layer + N_OUT] + 3) // 4) >= FEWEST_PARTS:
                wide(space, params, layers, layer)
            else:
                narrow(space, params, layers, layer)
            if layers[layer + CODE] != IDENTITY:
                value(space, layers, layer)
                cuda.syncthreads()

    return forward


def _losses(samples):
    """A device function: the sum of w l over a thread's samples; with `gradient`, dL/dy in the place of the output."""
    lead = samples + 4

    @device_function
    def losses(space, target, weights, sums, layers, last, n, first, task, gradient):
        total, delta = like(space[0], 0.0), real_of_word(space[0], task[DELTA_BITS])
        width, y = layers[last + N_OUT], layers[last + Y]
        for s in range(cuda.threadIdx.x, samples, THREADS):
            i = first + s
            if i < n:
                factor = row_factor(weights, sums, n, 1, i)
                outputs, wanted = (y + s, lead, width), (task[TARGET_ADDRESS], task[TARGET_CODE], i)
                found = loss_of_sample(task[LOSS], space, outputs, target, wanted, factor, delta, gradient)
                total += found * weights[i] if weights.size > 0 else found
            elif gradient:
                for j in range(width):
                    space[y + j * lead + s] = like(total, 0.0)
        return total

    return losses


def _way_back(samples):
    """A device function: the gradients of a tile, added to what the slice holds when `again`."""
    wide, narrow = (tile.backward_product(samples, shape) for shape in (tile.WIDE_BACK, tile.NARROW))
    wide_weight, narrow_weight = (tile.weight_gradient(samples, each) for each in tile.SQUARES)
    bias, (_, slope), down = tile.bias_gradient(samples), tile.activation(samples), samples // tile.WIDE[0]

    @device_function
    def backward(slices, space, params, layers, last, base, again):
        if layers[last + CODE] != IDENTITY:
            slope(space, layers, last, True)
            cuda.syncthreads()
        for step in range(0, last + LAYER_WORDS, LAYER_WORDS):
            layer = last - step
            n_in, n_out = layers[layer + N_IN], layers[layer + N_OUT]
            if layers[layer + BIAS] >= 0:
                bias(slices, space, layers, layer, base, again)
            if ((n_in + 3) // 4) * ((n_out + 3) // 4) >= FEWEST_PARTS:
                wide_weight(slices, space, layers, layer, base, again)
            else:
                narrow_weight(slices, space, layers, layer, base, again)
            cuda.syncthreads()
            if layer > 0:
                slope(space, layers, layer - LAYER_WORDS, False)
                if down * ((n_in + 3) // 4) >= FEWEST_PARTS:
                    wide(space, params, layers, layer)
                else:
                    narrow(space, params, layers, layer)

    return backward


def _tiles(samples):
    """The kernel for tiles of so many samples: a block takes one after another, into its slice."""
    load, forward, losses = tile.load_samples(samples), _way_there(samples), _losses(samples)
    backward = _way_back(samples)

    @device_function
    def take(partials, space, params, x, target, weights, layers, last, n, first, base, again, task, gradient):
        load(space, x, layers[X], first, n, layers[N_IN])
        cuda.syncthreads()
        forward(space, params, layers, last // LAYER_WORDS + 1)
        total = losses(space, target, weights, partials, layers, last, n, first, task, gradient)
        cuda.syncthreads()
        if gradient:
            backward(partials, space, params, layers, last, base, again)
        return total

    def blocks(n):
        return int(blocks_of(n, samples))

    def scratch(n, stride):
        return SLICES + int(blocks_of(n, samples)) * stride

    def shared(elements):
        return 4 * elements

    @on_device(blocks=blocks, scratch=scratch, shared=shared, dtypes=(np.float32,), resident=2)
    def tiles(
        params,
        x,
        target,
        weights,
        partials,
        n,
        layers,
        layers_at,
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
        """partials: from SLICES on, a slice for each block. layers: how many, with words in the table at layers_at."""
        space = cuda.shared.array(0, float32)
        words = cuda.shared.array(MOST_WORDS, int64)
        task = cuda.shared.array(TASK_WORDS, int64)
        for i in range(cuda.threadIdx.x, layers * LAYER_WORDS, THREADS):
            words[i] = word_at(table_address, layers_at + i)
        # What is needed once a tile waits in shared memory: in registers it would push others out to memory.
        if cuda.threadIdx.x == 0:
            task[LOSS], task[DELTA_BITS] = loss, delta_bits
            task[TARGET_ADDRESS], task[TARGET_CODE] = target_address, target_code
        for i in range(cuda.threadIdx.x, elements, THREADS):
            space[i] = like(params[0], 0.0)
        cuda.syncthreads()
        base, last, total = SLICES + cuda.blockIdx.x * stride, (layers - 1) * LAYER_WORDS, like(params[0], 0.0)
        begin = cuda.blockIdx.x * samples
        for first in range(begin, n, cuda.gridDim.x * samples):
            again = first > begin
            total += take(
                partials, space, params, x, target, weights, words, last, n, first, base, again, task, gradient != 0
            )
        total = block_sum(space, total)
        if cuda.threadIdx.x == 0:
            partials[base + n_params] = total

    return tiles


# -- sums over slices ----------------------------------------------------------------------------------------


@on_device(blocks=lambda n_params: cover(n_params), dtypes=(np.float32,))
def reduced(grads, partials, n, samples, stride, n_params, accumulate):
    """grads = the sum of the blocks' slices."""
    for i in range(cuda.grid(1), n_params, cuda.gridsize(1)):
        total = sum_of_slices(partials, SLICES + i, stride, blocks_of(n, samples))
        grads[i] = total + grads[i] if accumulate > 0 else total


@on_device(blocks=lambda: 1, dtypes=(np.float32,))
def mean(result, weights, partials, n, samples, stride, n_params):
    """result = the sum of the slices' losses over sum(w)."""
    total = like(result[0], 0.0)
    for number in range(cuda.threadIdx.x, blocks_of(n, samples), THREADS):
        total += partials[SLICES + number * stride + n_params]
    total = block_sum(cuda.shared.array(THREADS, result.dtype), total)
    if cuda.threadIdx.x == 0:
        result[0] = total / (partials[0] if weights.size > 0 else like(total, n))
