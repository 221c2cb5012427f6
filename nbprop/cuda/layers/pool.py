"""The device kernels of pooling; the equations and arrays are those of nbprop/layers/pool.py.

Dimensions: n images (height, width, channels) to (out_h, out_w, channels).
"""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import device_function, grid_size
from nbprop.layers.pool import (
    Pools,
    _inside,
    _windows_over,
    avg_pool_backward,
    avg_pool_forward,
    max_pool_backward,
    max_pool_forward,
    max_pool_tangent,
)
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device kernels: one thread per element of y; in the backward pass one per element of dx, over its windows."""

    @device_function
    def place(k, height, width, channels):
        """(image, row, column, channel) of element k; three divisions, which are slow: no remainders."""
        pixel = k // channels
        line = pixel // width
        image = line // height
        return image, line - image * height, pixel - line * width, k - pixel * channels

    def outputs(n, out_h, out_w, channels):
        return grid_size(n * out_h * out_w * channels)

    def inputs(n, height, width, channels):
        return grid_size(n * height * width * channels)

    @on_device(max_pool_forward, blocks=outputs, resident=2)
    def max_forward(y, argmax, x, n, g: Pools):
        """y = the maximum of each window, argmax = the index of its pixel within the window.

        y and argmax OUT (n, out_h, out_w, channels), x IN (n, height, width, channels).
        """
        for k in range(cuda.grid(1), n * g.out_h * g.out_w * g.channels, cuda.gridsize(1)):
            image, p, q, c = place(k, g.out_h, g.out_w, g.channels)
            y_first, i_first, i_stop = _inside(p, g.stride_h, g.top, g.kernel_h, g.height)
            x_first, j_first, j_stop = _inside(q, g.stride_w, g.left, g.kernel_w, g.width)
            corner, tap = (image * g.height + y_first) * g.width + x_first, i_first * g.kernel_w + j_first
            best = x[(corner + i_first * g.width + j_first) * g.channels + c]
            for i in range(i_first, i_stop):
                for j in range(j_first, j_stop):
                    value = x[(corner + i * g.width + j) * g.channels + c]
                    if value > best or value != value:
                        best, tap = value, i * g.kernel_w + j
            y[k] = best
            argmax[k] = like(best, tap)

    @on_device(max_pool_backward, blocks=inputs, resident=2)
    def max_backward(dx, dy, argmax, n, g: Pools):
        """dx = the sum of dy over the windows whose maximum the pixel is.

        dx OUT (n, height, width, channels), dy and argmax IN (n, out_h, out_w, channels).
        """
        for k in range(cuda.grid(1), n * g.height * g.width * g.channels, cuda.gridsize(1)):
            image, row, col, c = place(k, g.height, g.width, g.channels)
            total = like(dy[0], 0.0)
            p_first, p_stop = _windows_over(row, g.stride_h, g.top, g.kernel_h, g.out_h)
            q_first, q_stop = _windows_over(col, g.stride_w, g.left, g.kernel_w, g.out_w)
            for p in range(p_first, p_stop):
                for q in range(q_first, q_stop):
                    tap = (row - p * g.stride_h + g.top) * g.kernel_w + col - q * g.stride_w + g.left
                    here = ((image * g.out_h + p) * g.out_w + q) * g.channels + c
                    if argmax[here] == like(total, tap):
                        total += dy[here]
            dx[k] = total

    @on_device(avg_pool_forward, blocks=outputs)
    def avg_forward(y, x, n, g: Pools):
        """y = the mean of each window. y OUT (n, out_h, out_w, channels), x IN (n, height, width, channels)."""
        scale = like(x[0], 1.0) / like(x[0], g.kernel_h * g.kernel_w)
        for k in range(cuda.grid(1), n * g.out_h * g.out_w * g.channels, cuda.gridsize(1)):
            image, p, q, c = place(k, g.out_h, g.out_w, g.channels)
            y_first, i_first, i_stop = _inside(p, g.stride_h, g.top, g.kernel_h, g.height)
            x_first, j_first, j_stop = _inside(q, g.stride_w, g.left, g.kernel_w, g.width)
            corner, total = (image * g.height + y_first) * g.width + x_first, like(x[0], 0.0)
            for i in range(i_first, i_stop):
                for j in range(j_first, j_stop):
                    total += x[(corner + i * g.width + j) * g.channels + c]
            y[k] = total * scale

    @on_device(avg_pool_backward, blocks=inputs)
    def avg_backward(dx, dy, n, g: Pools):
        """dx = the sum over the windows of a pixel of dy / window size, the transpose of `avg_forward`.

        dx OUT (n, height, width, channels), dy IN (n, out_h, out_w, channels).
        """
        scale = like(dy[0], 1.0) / like(dy[0], g.kernel_h * g.kernel_w)
        for k in range(cuda.grid(1), n * g.height * g.width * g.channels, cuda.gridsize(1)):
            image, row, col, c = place(k, g.height, g.width, g.channels)
            total = like(dy[0], 0.0)
            p_first, p_stop = _windows_over(row, g.stride_h, g.top, g.kernel_h, g.out_h)
            q_first, q_stop = _windows_over(col, g.stride_w, g.left, g.kernel_w, g.out_w)
            for p in range(p_first, p_stop):
                for q in range(q_first, q_stop):
                    total += dy[((image * g.out_h + p) * g.out_w + q) * g.channels + c]
            dx[k] = total * scale

    @on_device(max_pool_tangent, blocks=outputs)
    def max_tangent(y, argmax, x, n, g: Pools):
        """y = the element of x at the argmax of each window.

        y OUT, argmax IN (n, out_h, out_w, channels), x IN (n, height, width, channels).
        """
        for k in range(cuda.grid(1), n * g.out_h * g.out_w * g.channels, cuda.gridsize(1)):
            image, p, q, c = place(k, g.out_h, g.out_w, g.channels)
            tap = int(argmax[k])
            row = p * g.stride_h - g.top + tap // g.kernel_w
            column = q * g.stride_w - g.left + tap % g.kernel_w
            y[k] = x[((image * g.height + row) * g.width + column) * g.channels + c]

    return max_forward, max_backward, avg_forward, avg_backward, max_tangent
