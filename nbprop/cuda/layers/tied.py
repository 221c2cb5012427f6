"""The device kernels of dense layers with a tied weight; equations and arrays are those of the CPU's kernels."""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import cover
from nbprop.layers.dense.tied import tied_backward_bias


def cuda_kernels(cuda):
    """The device's, beside dense's: a thread a column of dz."""

    @on_device(tied_backward_bias, blocks=lambda n_out: cover(n_out))
    def bias(db, dz, n, rows, n_out, again, accumulate):
        for j in range(cuda.grid(1), n_out, cuda.gridsize(1)):
            total = dz[j]
            for i in range(1, n * rows):
                total += dz[i * n_out + j]
            db[j] = total + db[j] if again + accumulate > 0 else total

    return (bias,)
