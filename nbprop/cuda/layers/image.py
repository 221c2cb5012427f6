"""The device kernels of padding and cropping of images; the equations and arrays are those of nbprop/layers/image.py.

Dimensions: n images (height, width, channels); padded_h and padded_w with the border.
"""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.image import crop_image, pad_image
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device kernels: one thread per element of y."""

    @on_device(pad_image, blocks=lambda n, channels, padded_h, padded_w: grid_size(n * padded_h * padded_w * channels))
    def pad(y, x, n, height, width, channels, top, left, padded_h, padded_w):
        """y = x with a border of zeros: `top` rows above it, `left` columns to its left.

        y OUT (n, padded_h, padded_w, channels), x IN (n, height, width, channels).
        """
        length = padded_w * channels
        for i in range(cuda.grid(1), n * padded_h * length, cuda.gridsize(1)):
            line, j = i // length, i % length - left * channels
            row, inside = line % padded_h - top, j >= 0 and j < width * channels
            inside = inside and row >= 0 and row < height
            y[i] = x[(line // padded_h * height + row) * width * channels + j] if inside else like(y[i], 0.0)

    @on_device(crop_image, blocks=lambda n, height, width, channels: grid_size(n * height * width * channels))
    def crop(y, x, n, height, width, channels, top, left, padded_h, padded_w):
        """y = x without its border, the transpose of `pad`.

        y OUT (n, height, width, channels), x IN (n, padded_h, padded_w, channels).
        """
        size = width * channels
        for i in range(cuda.grid(1), n * height * size, cuda.gridsize(1)):
            line = i // size
            row = line // height * padded_h + line % height + top
            y[i] = x[(row * padded_w + left) * channels + i % size]

    return pad, crop
