"""The device kernels of local response normalization; the equations and arrays are those of nbprop/layers.

Dimensions: n images of pixels pixels and channels channels; size channels make a neighbourhood.
"""

from nbprop.compiler.jit import njit
from nbprop.cuda.functions import real_of_word
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.local_response_norm import NormSizes, norm_backward, norm_forward, norm_second, norm_tangent
from nbprop.numerics.elementary import exp, log
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device kernels: one thread per element, which reads its neighbourhood."""

    power = njit(lambda d, beta: exp(beta * log(d)))

    def elements(n, pixels, channels):
        return grid_size(n * pixels * channels)

    @on_device(norm_forward, blocks=elements)
    def forward(y, d, x, n, sizes: NormSizes):
        """d = k + alpha sum(x^2) over the neighbourhood, y = x / d^beta. y and d OUT, x IN (n, pixels, channels)."""
        pixels, channels, size = sizes.pixels, sizes.channels, sizes.size
        alpha, beta = real_of_word(x[0], sizes.alpha_bits), real_of_word(x[0], sizes.beta_bits)
        for i in range(cuda.grid(1), n * pixels * channels, cuda.gridsize(1)):
            c, total = i % channels, like(x[0], 0.0)
            for offset in range(max(-(size // 2), -c), min((size - 1) // 2, channels - 1 - c) + 1):
                total += x[i + offset] * x[i + offset]
            d[i] = real_of_word(x[0], sizes.k_bits) + alpha * total
            y[i] = x[i] * power(d[i], -beta)

    @on_device(norm_backward, blocks=elements)
    def backward(dx, dy, x, y, d, n, sizes: NormSizes):
        """dx = dy / d^beta - 2 alpha beta x sum(dy y / d), the sum over the neighbourhood.

        dx OUT, dy, x, y and d IN (n, pixels, channels).
        """
        pixels, channels, size = sizes.pixels, sizes.channels, sizes.size
        alpha, beta = real_of_word(x[0], sizes.alpha_bits), real_of_word(x[0], sizes.beta_bits)
        for i in range(cuda.grid(1), n * pixels * channels, cuda.gridsize(1)):
            c, total = i % channels, like(x[0], 0.0)
            for offset in range(max(-((size - 1) // 2), -c), min(size // 2, channels - 1 - c) + 1):
                total += dy[i + offset] * y[i + offset] / d[i + offset]
            dx[i] = dy[i] * power(d[i], -beta) - like(total, 2.0) * alpha * beta * x[i] * total

    @on_device(norm_tangent, blocks=elements)
    def tangent(y_dot, d_dot, x, x_dot, d, n, sizes: NormSizes):
        """d' = 2 alpha sum(x x') over the neighbourhood, y' = (x' - beta x d' / d) / d^beta.

        y_dot and d_dot OUT, x, x_dot and d IN (n, pixels, channels).
        """
        pixels, channels, size = sizes.pixels, sizes.channels, sizes.size
        alpha, beta = real_of_word(x[0], sizes.alpha_bits), real_of_word(x[0], sizes.beta_bits)
        for i in range(cuda.grid(1), n * pixels * channels, cuda.gridsize(1)):
            c, total = i % channels, like(x[0], 0.0)
            for offset in range(max(-(size // 2), -c), min((size - 1) // 2, channels - 1 - c) + 1):
                total += x[i + offset] * x_dot[i + offset]
            d_dot[i] = like(total, 2.0) * alpha * total
            y_dot[i] = (x_dot[i] - beta * x[i] * d_dot[i] / d[i]) * power(d[i], -beta)

    @on_device(norm_second, blocks=elements, resident=2)  # with three, as LTO-IR it spills in float64
    def second(dx_dot, dy, dy_dot, x, x_dot, y, y_dot, d, d_dot, n, sizes: NormSizes):
        """The tangent of `backward`: with q = y / d, q' = (y' - q d') / d, and sums over the neighbourhood,
        dx' = (dy' - beta dy d' / d) / d^beta - 2 alpha beta (x' sum(dy q) + x sum(dy' q + dy q')).

        dx_dot OUT, dy, dy_dot, x, x_dot, y, y_dot, d and d_dot IN (n, pixels, channels).
        """
        pixels, channels, size = sizes.pixels, sizes.channels, sizes.size
        alpha, beta = real_of_word(x[0], sizes.alpha_bits), real_of_word(x[0], sizes.beta_bits)
        for i in range(cuda.grid(1), n * pixels * channels, cuda.gridsize(1)):
            c, total, change = i % channels, like(x[0], 0.0), like(x[0], 0.0)
            for offset in range(max(-((size - 1) // 2), -c), min(size // 2, channels - 1 - c) + 1):
                j = i + offset
                q = y[j] / d[j]
                total += dy[j] * q
                change += dy_dot[j] * q + dy[j] * (y_dot[j] - q * d_dot[j]) / d[j]
            straight = (dy_dot[i] - beta * dy[i] * d_dot[i] / d[i]) * power(d[i], -beta)
            dx_dot[i] = straight - like(total, 2.0) * alpha * beta * (x_dot[i] * total + x[i] * change)

    return forward, backward, tangent, second
