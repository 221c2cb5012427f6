"""The data that ships inside the package: real handwritten digits, small enough to learn from in seconds."""

from importlib.resources import files

import numpy as np

from nbprop.validation import shown

__all__ = ["digits"]


def digits(dtype=np.float32):
    """Load the 1,797 handwritten digits of 8x8 pixels that ship with the package.

    Parameters
    ----------
    dtype : float32 or float64
        Type of the images, float32 unless given.

    Returns
    -------
    images : array of `dtype`, shape (1797, 64), C-contiguous
        One image a row, its pixels row by row; 0 is white and 1 is black, in exact sixteenths.
        `images.reshape(-1, 8, 8, 1)` makes them images for convolution (NHWC).
    labels : int64 array, shape (1797,)
        The digit, 0 to 9.

    Both are fresh arrays that the caller may overwrite. They come in the order of the source, in which
    images of one writer stand together: shuffle before splitting.

    Raises
    ------
    TypeError
        If `dtype` is neither float32 nor float64.

    Examples
    --------
    >>> import nbprop.data
    >>> images, labels = nbprop.data.digits()
    >>> images.shape, images.dtype.name, labels[:5].tolist()
    ((1797, 64), 'float32', [0, 1, 2, 3, 4])

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0; see ATTRIBUTION.md beside the file.
    """
    try:
        kind = None if dtype is None else np.dtype(dtype)  # NumPy takes None for float64
    except Exception:  # of many kinds, for what is no dtype
        kind = None
    if kind is None or kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"dtype must be float32 or float64, got {shown(dtype if kind is None else kind.name)}")
    with files(__name__).joinpath("digits.npz").open("rb") as file, np.load(file) as stored:
        images = stored["images"].reshape(-1, 64).astype(kind)
        labels = stored["labels"].astype(np.int64)
    images /= 16
    return images, labels
