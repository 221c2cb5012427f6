"""Whether integers in device memory lie in their range: a launch whose result is how many do not."""

from nbprop import arguments as arg
from nbprop.arguments import integer_at
from nbprop.cuda.groups import block_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import THREADS, cuda, device_function
from nbprop.numerics.scalars import like


@device_function
def _count_wrong(result, count, least, below, address, code):
    wrong = like(result[0], 0.0)
    for i in range(cuda.threadIdx.x, count, THREADS):
        value = integer_at(address, code, i)
        wrong += like(wrong, 1.0) if value < least or value >= below else like(wrong, 0.0)
    wrong = block_sum(cuda.shared.array(THREADS, result.dtype), wrong)
    if cuda.threadIdx.x == 0:
        result[0] = wrong


@on_device(blocks=lambda: 1)
def x_range(result, n, each, least, below, x_address, x_code):
    _count_wrong(result, n * each, least, below, x_address, x_code)


@on_device(blocks=lambda: 1)
def target_range(result, n, each, least, below, target_address, target_code):
    _count_wrong(result, n * each, least, below, target_address, target_code)


@on_device(blocks=lambda: 1)
def lengths_range(result, n, each, least, below, lengths_address, lengths_code):
    _count_wrong(result, n * each, least, below, lengths_address, lengths_code)


RANGE_CHECKS = {arg.X: x_range, arg.TARGET: target_range, arg.LENGTHS: lengths_range}
