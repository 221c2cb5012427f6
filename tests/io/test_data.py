"""The digits that ship with the package: what the loader promises, and the values are the published ones."""

import hashlib
from importlib.resources import files

import numpy as np
import pytest

import nbprop.data

# SHA-256 of the uint8 arrays, taken when the file was made from scikit-learn 1.9.1's copy.
IMAGES_SHA256 = "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
LABELS_SHA256 = "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, "float64", np.dtype("f4")])
def test_shapes_types_and_range(dtype):
    images, labels = nbprop.data.digits(dtype=dtype)
    assert images.shape == (1797, 64)
    assert images.dtype == np.dtype(dtype)
    assert images.flags.c_contiguous
    assert images.flags.writeable
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert labels.shape == (1797,)
    assert labels.dtype == np.int64
    assert labels.flags.writeable


def test_default_is_float32_and_the_scale_is_exact():
    images, _ = nbprop.data.digits()
    wide, _ = nbprop.data.digits(np.float64)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, wide)
    np.testing.assert_array_equal(wide * 16, np.rint(wide * 16))


def test_the_values_are_the_published_ones():
    images, labels = nbprop.data.digits()
    pixels = (images * 16).astype(np.uint8)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == IMAGES_SHA256
    assert hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest() == LABELS_SHA256
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # The second row of pixels of the first image, a zero with its hole: two strokes apart, rows not columns.
    assert pixels[0, 8:16].tolist() == [0, 0, 13, 15, 10, 15, 5, 0]


def test_the_values_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    expected = datasets.load_digits()
    images, labels = nbprop.data.digits(np.float64)
    np.testing.assert_array_equal(images * 16, expected.data)
    np.testing.assert_array_equal(labels, expected.target)


def test_every_call_returns_fresh_arrays():
    images, labels = nbprop.data.digits()
    images[:] = -1
    labels[:] = -1
    again, again_labels = nbprop.data.digits()
    assert again.min() == 0
    assert again_labels.min() == 0


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float16, "no such type", np.complex128])
def test_another_dtype_is_refused_by_name(dtype):
    with pytest.raises(TypeError, match="dtype must be float32 or float64, got"):
        nbprop.data.digits(dtype)


def test_the_attribution_ships_beside_the_data():
    text = files("nbprop.data").joinpath("ATTRIBUTION.md").read_text()
    for part in ("Alpaydin", "Kaynak", "10.24432/C50P49", "CC BY 4.0"):
        assert part in text
