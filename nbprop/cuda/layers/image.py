"""The device kernels of padding and cropping of images; the equations and arrays are those of nbprop/layers/image.py.

Dimensions: n images (height, width, channels); padded_h and padded_w with the border.
"""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.image import Border, crop_image, pad_by_pixels, pad_by_pixels_backward, pad_image, pixel_behind
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device kernels: one thread per element of y."""

    @on_device(pad_image, blocks=lambda n, channels, padded_h, padded_w: grid_size(n * padded_h * padded_w * channels))
    def pad(y, x, n, g: Border):
        """y = x with a border of zeros: `top` rows above it, `left` columns to its left.

        y OUT (n, padded_h, padded_w, channels), x IN (n, height, width, channels).
        """
        length = g.padded_w * g.channels
        for i in range(cuda.grid(1), n * g.padded_h * length, cuda.gridsize(1)):
            line, j = i // length, i % length - g.left * g.channels
            row, inside = line % g.padded_h - g.top, j >= 0 and j < g.width * g.channels
            inside = inside and row >= 0 and row < g.height
            y[i] = x[(line // g.padded_h * g.height + row) * g.width * g.channels + j] if inside else like(y[i], 0.0)

    @on_device(crop_image, blocks=lambda n, height, width, channels: grid_size(n * height * width * channels))
    def crop(y, x, n, g: Border):
        """y = x without its border, the transpose of `pad`.

        y OUT (n, height, width, channels), x IN (n, padded_h, padded_w, channels).
        """
        size = g.width * g.channels
        for i in range(cuda.grid(1), n * g.height * size, cuda.gridsize(1)):
            line = i // size
            row = line // g.height * g.padded_h + line % g.height + g.top
            y[i] = x[(row * g.padded_w + g.left) * g.channels + i % size]

    @on_device(
        pad_by_pixels, blocks=lambda n, channels, padded_h, padded_w: grid_size(n * padded_h * padded_w * channels)
    )
    def pad_by(y, x, n, g: Border, mode):
        """y = x with a border of its own pixels.

        y OUT (n, padded_h, padded_w, channels), x IN (n, height, width, channels).
        """
        for k in range(cuda.grid(1), n * g.padded_h * g.padded_w * g.channels, cuda.gridsize(1)):
            i, q = k // (g.padded_w * g.channels), k // g.channels % g.padded_w
            row = i // g.padded_h * g.height + pixel_behind(i % g.padded_h, g.top, g.height, mode)
            y[k] = x[(row * g.width + pixel_behind(q, g.left, g.width, mode)) * g.channels + k % g.channels]

    @on_device(
        pad_by_pixels_backward, blocks=lambda n, height, width, channels: grid_size(n * height * width * channels)
    )
    def pad_by_backward(dx, dy, n, g: Border, mode):
        """dx = the sum of dy over the places that each pixel went to.

        dx OUT (n, height, width, channels), dy IN (n, padded_h, padded_w, channels).
        """
        for k in range(cuda.grid(1), n * g.height * g.width * g.channels, cuda.gridsize(1)):
            i, column, total = k // (g.width * g.channels), k // g.channels % g.width, like(dy[0], 0.0)
            for p in range(g.padded_h):
                if pixel_behind(p, g.top, g.height, mode) == i % g.height:
                    for q in range(g.padded_w):
                        if pixel_behind(q, g.left, g.width, mode) == column:
                            place = (i // g.height * g.padded_h + p) * g.padded_w + q
                            total += dy[place * g.channels + k % g.channels]
            dx[k] = total

    return pad, crop, pad_by, pad_by_backward
