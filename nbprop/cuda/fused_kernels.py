"""The launches of a fused plan (see fused.py): sum(w); all tiles, forward and backward; the sums over the slices.

A slice holds the gradients of all parameters, then the sum of the losses, over all tiles of its thread block.
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
from nbprop.cuda.toolkit import SIMULATED, THREADS, cuda, device_function, grid_size
from nbprop.numerics.activations import IDENTITY
from nbprop.numerics.scalars import like

# Samples of a tile: a plan uses the largest tile that fits in shared memory.
SAMPLES = (16, 8) if SIMULATED else (128, 64, 32)
# Blocks, each with its slice: two for each of an H100's 132 multiprocessors. Not measured.
MOST_BLOCKS = 2 if SIMULATED else 264
# Offset of the slices in `partials`; sum(w) comes before them.
SLICES = 32

# Words of a task: what a tile needs to know to compute its loss.
LOSS, DELTA_BITS, TARGET_ADDRESS, TARGET_CODE = range(4)
TASK_WORDS = 4


@njit
def blocks_of(n, samples):
    """Blocks, and slices, for n samples in tiles of `samples`."""
    return min((n + samples - 1) // samples, MOST_BLOCKS)


def stride_of(n_params):
    """Elements between the starts of consecutive slices."""
    return -(-(n_params + 1) // 32) * 32


def cuda_kernels(cuda):
    """In launch order; a plan uses one of the tile kernels."""
    return cuda_weight_sum(cuda, None), *map(_tiles, SAMPLES), reduced, mean


# -- tiles ---------------------------------------------------------------------------------------------------


def _forward_pass(samples):
    """A device function: the forward pass of a tile, with a barrier after each layer."""
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
    """A device function: the sum of w l over a thread's samples; with `gradient`, dL/dy overwrites the output."""
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


def _backward_pass(samples):
    """A device function: the backward pass of a tile, into the slice; added to what it holds when `adds`."""
    wide, narrow = (tile.backward_product(samples, shape) for shape in (tile.WIDE_BACK, tile.NARROW))
    wide_weight, narrow_weight = (tile.weight_gradient(samples, each) for each in tile.SQUARES)
    bias, (_, derivative), down = tile.bias_gradient(samples), tile.activation(samples), samples // tile.WIDE[0]

    @device_function
    def backward(slices, space, params, layers, last, base, adds):
        if layers[last + CODE] != IDENTITY:
            derivative(space, layers, last, True)
            cuda.syncthreads()
        for step in range(0, last + LAYER_WORDS, LAYER_WORDS):
            layer = last - step
            n_in, n_out = layers[layer + N_IN], layers[layer + N_OUT]
            if layers[layer + BIAS] >= 0:
                bias(slices, space, layers, layer, base, adds)
            if ((n_in + 3) // 4) * ((n_out + 3) // 4) >= FEWEST_PARTS:
                wide_weight(slices, space, layers, layer, base, adds)
            else:
                narrow_weight(slices, space, layers, layer, base, adds)
            cuda.syncthreads()
            if layer > 0:
                derivative(space, layers, layer - LAYER_WORDS, False)
                if down * ((n_in + 3) // 4) >= FEWEST_PARTS:
                    wide(space, params, layers, layer)
                else:
                    narrow(space, params, layers, layer)

    return backward


def _tiles(samples):
    """The kernel for tiles of `samples` samples: a thread block runs one after another, into its slice."""
    load, forward, losses = tile.load_samples(samples), _forward_pass(samples), _losses(samples)
    backward = _backward_pass(samples)

    @device_function
    def run_tile(partials, space, params, x, target, weights, layers, last, n, first, base, adds, task, gradient):
        load(space, x, layers[X], first, n, layers[N_IN])
        cuda.syncthreads()
        forward(space, params, layers, last // LAYER_WORDS + 1)
        total = losses(space, target, weights, partials, layers, last, n, first, task, gradient)
        cuda.syncthreads()
        if gradient:
            backward(partials, space, params, layers, last, base, adds)
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
        """Loss and, with `gradient`, gradients of all tiles of a thread block, to its slice.

        params IN (n_params,), x IN (n, inputs), target IN (n, outputs) or empty, weights IN (n,) or empty; partials OUT
        (SLICES + blocks * stride,): from SLICES on, one slice per thread block; before that IN: sum(w). layers: the
        number of layers, described in the table from layers_at on; elements: of shared memory.
        """
        space = cuda.shared.array(0, float32)
        words = cuda.shared.array(MOST_WORDS, int64)
        task = cuda.shared.array(TASK_WORDS, int64)
        for i in range(cuda.threadIdx.x, layers * LAYER_WORDS, THREADS):
            words[i] = word_at(table_address, layers_at + i)
        # Needed once a tile, so kept in shared memory: in registers, it would cause spills.
        if cuda.threadIdx.x == 0:
            task[LOSS], task[DELTA_BITS] = loss, delta_bits
            task[TARGET_ADDRESS], task[TARGET_CODE] = target_address, target_code
        for i in range(cuda.threadIdx.x, elements, THREADS):
            space[i] = like(params[0], 0.0)
        cuda.syncthreads()
        base, last, total = SLICES + cuda.blockIdx.x * stride, (layers - 1) * LAYER_WORDS, like(params[0], 0.0)
        begin = cuda.blockIdx.x * samples
        for first in range(begin, n, cuda.gridDim.x * samples):
            adds = first > begin
            total += run_tile(
                partials,
                space,
                params,
                x,
                target,
                weights,
                words,
                last,
                n,
                first,
                base,
                adds,
                task,
                gradient != 0,
            )
        total = block_sum(space, total)
        if cuda.threadIdx.x == 0:
            partials[base + n_params] = total

    return tiles


# -- sums over slices ----------------------------------------------------------------------------------------


@on_device(blocks=lambda n_params: grid_size(n_params), dtypes=(np.float32,))
def reduced(grads, partials, n, samples, stride, n_params, accumulate):
    """grads = the sum of the slices, in order; accumulated with `accumulate`.

    grads OUT (n_params,), partials IN (SLICES + blocks * stride,).
    """
    for i in range(cuda.grid(1), n_params, cuda.gridsize(1)):
        total = sum_of_slices(partials, SLICES + i, stride, blocks_of(n, samples))
        grads[i] = total + grads[i] if accumulate > 0 else total


@on_device(blocks=lambda: 1, dtypes=(np.float32,))
def mean(result, weights, partials, n, samples, stride, n_params):
    """result = the sum of the losses of all slices / sum(w).

    result OUT (1,), weights IN (n,) or empty, partials IN (SLICES + blocks * stride,).
    """
    total = like(result[0], 0.0)
    for number in range(cuda.threadIdx.x, blocks_of(n, samples), THREADS):
        total += partials[SLICES + number * stride + n_params]
    total = block_sum(cuda.shared.array(THREADS, result.dtype), total)
    if cuda.threadIdx.x == 0:
        result[0] = total / (partials[0] if weights.size > 0 else like(total, n))
