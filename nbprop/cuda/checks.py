"""Whether integers and targets in device memory are in range: a launch whose result is the number that are not."""

from nbprop.cuda import functions as f
from nbprop.cuda.groups import block_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import THREADS, cuda, device_function
from nbprop.numerics.scalars import like
from nbprop.program.elements import integer_at, length_at
from nbprop.runtime import arguments as arg


@device_function
def _count_wrong(result, count, least, below, address, code):
    """result = how many of `count` integers at an address are not in least..below - 1. result OUT (1,)."""
    wrong = like(result[0], 0.0)
    for i in range(cuda.threadIdx.x, count, THREADS):
        value = integer_at(address, code, i)
        wrong += like(wrong, 1.0) if value < least or value >= below else like(wrong, 0.0)
    wrong = block_sum(cuda.shared.array(THREADS, result.dtype), wrong)
    if cuda.threadIdx.x == 0:
        result[0] = wrong


@on_device(blocks=lambda: 1)
def x_range(result, n, each, least, below, x_address, x_code):
    """result = how many integers of x are not in least..below - 1.

    result OUT (1,). Dimensions: n samples of `each` integers.
    """
    _count_wrong(result, n * each, least, below, x_address, x_code)


@on_device(blocks=lambda: 1)
def target_range(result, n, each, least, below, target_address, target_code):
    """result = how many classes of target are not in least..below - 1.

    result OUT (1,). Dimensions: n samples of `each` integers.
    """
    _count_wrong(result, n * each, least, below, target_address, target_code)


@on_device(blocks=lambda: 1)
def lengths_range(result, n, each, least, below, lengths_address, lengths_code):
    """result = how many lengths are not in least..below - 1.

    result OUT (1,). Dimensions: n samples of `each` integers.
    """
    _count_wrong(result, n * each, least, below, lengths_address, lengths_code)


@on_device(blocks=lambda: 1)
def target_interval(result, target, n, each, low_bits, high_bits, positions, lengths_address, lengths_code):
    """result = how many numbers of target, within lengths, lie outside low..high; NaN does not, it shows in the loss.

    result OUT (1,), target IN (n, each), of which each / positions numbers are a position; low_bits, high_bits: the
    bits of low and high.
    """
    low, high = f.real_of_word(target[0], low_bits), f.real_of_word(target[0], high_bits)
    wrong, size = like(result[0], 0.0), each // positions
    for i in range(cuda.threadIdx.x, n * each, THREADS):
        row = i // size
        counts = row % positions < length_at(lengths_address, lengths_code, row // positions, positions)
        wrong += like(wrong, 1.0) if counts and (target[i] < low or target[i] > high) else like(wrong, 0.0)
    wrong = block_sum(cuda.shared.array(THREADS, result.dtype), wrong)
    if cuda.threadIdx.x == 0:
        result[0] = wrong


RANGE_CHECKS = {arg.X: x_range, arg.TARGET: target_range, arg.LENGTHS: lengths_range}
