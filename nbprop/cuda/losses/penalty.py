"""The device kernels of penalties; the equations and arrays are those of nbprop/losses/penalty.py.

Dimensions: size parameters of one run, of which a block of 4096 has one sum.
"""

from nbprop.cuda.functions import real_of_word
from nbprop.cuda.groups import block_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import THREADS, device_function, grid_size
from nbprop.losses.penalty import BLOCK, add_penalty, penalty_gradient, penalty_product, penalty_value
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device kernels: a thread block for each block of parameters, whose sums one thread block adds up."""

    def blocks_of(size):
        return -(-size // BLOCK)

    @device_function
    def magnitude(x):
        return x if x > like(x, 0.0) else -x

    @device_function
    def sum_of_block(space, w, k, size, l2, l1):
        """l2 / 2 sum(w^2) + l1 sum(|w|) of block k, to each thread. w IN (size,)."""
        total = like(l2, 0.0)
        for i in range(k * BLOCK + cuda.threadIdx.x, min((k + 1) * BLOCK, size), THREADS):
            total += like(l2, 0.5) * l2 * w[i] * w[i] + l1 * magnitude(w[i])
        return block_sum(space, total)

    @on_device(penalty_value, blocks=blocks_of)
    def value(sums, w, n, first, size, l2_bits, l1_bits):
        """sums[first + k] = l2 / 2 sum(w^2) + l1 sum(|w|) over block k. sums INOUT (all blocks,), w IN (size,)."""
        space, l2, l1 = cuda.shared.array(THREADS, w.dtype), real_of_word(w[0], l2_bits), real_of_word(w[0], l1_bits)
        for k in range(cuda.blockIdx.x, (size + BLOCK - 1) // BLOCK, cuda.gridDim.x):
            total = sum_of_block(space, w, k, size, l2, l1)
            if cuda.threadIdx.x == 0:
                sums[first + k] = total

    @on_device(penalty_gradient, blocks=blocks_of)
    def gradient(grad, sums, w, n, first, size, l2_bits, l1_bits, smooth):
        """grad += l2 w + l1 sign(w), without the latter if `smooth`; sums as in `value`.

        grad INOUT (size,), sums INOUT (all blocks,), w IN (size,).
        """
        space, l2, l1 = cuda.shared.array(THREADS, w.dtype), real_of_word(w[0], l2_bits), real_of_word(w[0], l1_bits)
        zero = like(l2, 0.0)
        step = zero if smooth > 0 else l1
        for k in range(cuda.blockIdx.x, (size + BLOCK - 1) // BLOCK, cuda.gridDim.x):
            for i in range(k * BLOCK + cuda.threadIdx.x, min((k + 1) * BLOCK, size), THREADS):
                grad[i] += l2 * w[i] + (step if w[i] > zero else (-step if w[i] < zero else zero))
            total = sum_of_block(space, w, k, size, l2, l1)
            if cuda.threadIdx.x == 0:
                sums[first + k] = total

    @on_device(penalty_product, blocks=lambda size: grid_size(size))
    def product(out, v, n, size, l2_bits):
        """out += l2 v. out INOUT, v IN (size,)."""
        l2 = real_of_word(v[0], l2_bits)
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            out[i] += l2 * v[i]

    @on_device(add_penalty, blocks=lambda: 1)
    def added(result, sums, n):
        """result += the sum of sums. result INOUT (1,), sums IN (all blocks,)."""
        total = like(result[0], 0.0)
        for k in range(cuda.threadIdx.x, sums.size, THREADS):
            total += sums[k]
        total = block_sum(cuda.shared.array(THREADS, result.dtype), total)
        if cuda.threadIdx.x == 0:
            result[0] += total

    return value, gradient, product, added
