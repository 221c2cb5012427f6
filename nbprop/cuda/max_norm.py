"""Max norm on the device, after an update; see nbprop/optimizers/max_norm.py."""

from nbprop.cuda import functions as f
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import cuda, grid_size
from nbprop.numerics.scalars import like
from nbprop.program.elements import integer_at

_WORD = 8  # the code of an int64


@on_device(blocks=lambda columns: grid_size(columns))
def project(p, n, columns, matrices, trainable, limit_bits):
    """w_j *= limit / |w_j| where |w_j| > limit, for each of the columns of all matrices, if all of it is trained.

    p INOUT (n,); matrices: address of rows (offset, rows, units), int64; trainable: address of n bytes, 0 for all;
    limit_bits: the bits of the limit.
    """
    limit = f.real_of_word(p[0], limit_bits)
    for column in range(cuda.grid(1), columns, cuda.gridsize(1)):
        row, j = 0, column
        while j >= integer_at(matrices, _WORD, row + 2):
            j -= integer_at(matrices, _WORD, row + 2)
            row += 3
        units = integer_at(matrices, _WORD, row + 2)
        first = integer_at(matrices, _WORD, row) + j
        stop = first + integer_at(matrices, _WORD, row + 1) * units
        total, whole = like(limit, 0.0), True
        for k in range(first, stop, units):
            total += p[k] * p[k]
            whole = whole and (trainable == 0 or integer_at(trainable, 1, k) != 0)
        # False for NaN: what has diverged stays as it is.
        if whole and total > limit * limit:
            factor = limit / f.sqrt(total)
            for k in range(first, stop, units):
                p[k] *= factor
