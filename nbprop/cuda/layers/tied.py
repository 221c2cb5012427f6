"""The device kernel of tied dense layers; the equation and arrays are those of nbprop/layers/dense/tied.py.

Dimensions: n samples; rows rows a sample; n_out outputs.
"""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.dense.tied import tied_backward_bias


def cuda_kernels(cuda):
    """The device kernels beside dense's: one thread per column of dz."""

    @on_device(tied_backward_bias, blocks=lambda n_out: grid_size(n_out))
    def bias(db, dz, n, rows, n_out, b_accumulate, accumulate):
        """db = the sum of the rows of dz; accumulated with `b_accumulate` or `accumulate`.

        db OUT (n_out,), dz IN (n * rows, n_out).
        """
        for j in range(cuda.grid(1), n_out, cuda.gridsize(1)):
            total = dz[j]
            for i in range(1, n * rows):
                total += dz[i * n_out + j]
            db[j] = total + db[j] if b_accumulate + accumulate > 0 else total

    return (bias,)
