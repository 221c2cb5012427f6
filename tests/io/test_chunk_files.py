"""file_chunks: what files hold, in order, in every format; files that are cut, missing or wrong are named."""

import numpy as np
import pytest

import nbprop

ROWS = 100
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((ROWS, 3)), RNG.standard_normal((ROWS, 2))
WEIGHTS, LABELS = RNG.random(ROWS), RNG.integers(0, 5, ROWS)


def write_npy(folder, **arrays):
    paths = []
    for name, array in arrays.items():
        paths.append(folder / f"{name}.npy")
        np.save(paths[-1], array)
    return tuple(paths)


def write_hdf5(folder, **arrays):
    with pytest.importorskip("h5py").File(folder / "data.h5", "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=(16, *array.shape[1:]), compression="gzip")
    return folder / "data.h5"


def write_zarr(folder, **arrays):
    group = pytest.importorskip("zarr").open_group(folder / "data.zarr", mode="w")
    for name, array in arrays.items():
        group.create_array(name, shape=array.shape, dtype=array.dtype, chunks=(16, *array.shape[1:]))[:] = array
    return folder / "data.zarr"


def write_parquet(folder, **arrays):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {}
    for name, array in arrays.items():
        columns |= {f"{name}{k}": array[:, k] for k in range(array.shape[1])} if array.ndim == 2 else {name: array}
    parquet.write_table(arrow.table(columns), folder / "data.parquet", row_group_size=40)
    return folder / "data.parquet"


WRITERS = {"npy": write_npy, "hdf5": write_hdf5, "zarr": write_zarr, "parquet": write_parquet}


def opened(name, folder, rows=ROWS, dtype=None, **arrays):
    path = WRITERS[name](folder, **arrays)
    names = {key: f"{key}" for key in arrays}
    if name == "parquet":
        names |= {k: [f"{k}{j}" for j in range(a.shape[1])] for k, a in arrays.items() if a.ndim == 2}
    return path, nbprop.file_chunks(path, rows=rows, dtype=dtype, **names)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    "arrays", [{"x": X, "target": Y, "weights": WEIGHTS}, {"x": X.astype(np.float32), "target": LABELS}]
)
def test_chunks_are_the_file_in_order(name, arrays, tmp_path):
    for rows in (1, 7, 16, 1000):
        _, chunks = opened(name, tmp_path, rows, **arrays)
        assert chunks.samples == ROWS
        for _ in range(2):  # an epoch, and another
            found = list(chunks())
            assert all(len(chunk[0]) <= rows for chunk in found)
            for k, array in enumerate(arrays.values()):
                joined = np.concatenate([chunk[k] for chunk in found])
                assert joined.dtype == array.dtype
                assert np.array_equal(joined, array)
    assert all(type(array) is np.ndarray and array.flags.c_contiguous for chunk in found for array in chunk)


@pytest.mark.parametrize("name", WRITERS)
def test_several_files_and_dtypes(name, tmp_path):
    """Integers in big-endian order become float32; labels stay integers."""
    kind = np.int16 if name == "parquet" else ">i2"
    paths = []
    for part, where in enumerate((slice(0, 60), slice(60, ROWS))):
        (tmp_path / str(part)).mkdir()
        x = np.round(100 * X[where]).astype(kind)
        path, _ = opened(name, tmp_path / str(part), x=x, target=LABELS[where])
        paths.append(path)
    x = ["x0", "x1", "x2"] if name == "parquet" else "x"
    chunks = nbprop.file_chunks(paths, x=x, dtype=np.float32, rows=50)
    found = list(chunks())
    assert chunks.samples == ROWS
    assert {(x.dtype.str, y.dtype.str) for x, y in found} == {("<f4", "<i8")}
    assert np.array_equal(np.concatenate([x for x, _ in found]), np.round(100 * X))
    assert np.array_equal(np.concatenate([y for _, y in found]), LABELS)


def files_of(path):
    """The files that hold a data set's bytes."""
    listed = path if isinstance(path, tuple) else (path,)
    return [file for one in listed for file in (sorted(one.rglob("*")) if one.is_dir() else [one]) if file.is_file()]


@pytest.mark.parametrize("name", WRITERS)
def test_a_cut_file_is_an_error_with_its_name(name, tmp_path):
    """Cut before it is opened, and while it is read; at any place."""
    for cut in (0.0, 0.3, 0.9):
        path, chunks = opened(name, tmp_path, 10, x=X, target=Y)
        largest = max(files_of(path), key=lambda file: file.stat().st_size)
        iterator = chunks()
        next(iterator)
        with open(largest, "r+b") as file:
            file.truncate(int(cut * largest.stat().st_size))
        word = f"{'x' if name == 'npy' else 'data'}."
        with pytest.raises((ValueError, OSError), match=word):
            list(chunks())
        if name == "npy":  # others may have read ahead
            with pytest.raises(ValueError, match=r"x.npy: damaged: it ends \d+ bytes early"):
                list(iterator)
        iterator.close()
        names = {"x": ["x0"], "target": "target0"} if name == "parquet" else {}
        if name != "zarr":  # whose arrays' headers are files of their own
            with pytest.raises((ValueError, OSError), match=word):
                nbprop.file_chunks(path, **names)


@pytest.mark.parametrize("name", ["npy", "hdf5", "zarr", "parquet"])
def test_wrong_contents_are_refused(name, tmp_path):
    bad = X.copy()
    bad[57, 1] = np.nan
    _, chunks = opened(name, tmp_path, 16, x=bad, target=Y)
    with pytest.raises(ValueError, match=r"x\[57, 1\] is nan"):
        list(chunks())
    path, _ = opened(name, tmp_path, x=X, target=Y)
    if name != "npy":
        with pytest.raises(ValueError, match="'z'"):
            nbprop.file_chunks(path, x="z", target="target" if name != "parquet" else "target0")
    if name != "parquet":
        with pytest.raises(ValueError, match="target must have 100 samples, got shape"):
            opened(name, tmp_path, x=X, target=Y[:99])
        (tmp_path / "other").mkdir()
        other, _ = opened(name, tmp_path / "other", x=X[:, :2], target=Y)
        path, _ = opened(name, tmp_path, x=X, target=Y)
        with pytest.raises(ValueError, match=r"samples of x must be float64\[3\] as in .*, got float64\[2\]"):
            nbprop.file_chunks([path, other])


def test_what_is_refused(tmp_path):
    (path, other) = write_npy(tmp_path, x=X, target=Y)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(X))
    np.save(tmp_path / "text.npy", np.full(ROWS, "a"))
    np.save(tmp_path / "objects.npy", np.full(ROWS, None), allow_pickle=True)
    (tmp_path / "empty.npy").touch()
    (tmp_path / "noise.parquet").write_bytes(b"PAR1" + bytes(50))
    (tmp_path / "noise.h5").write_bytes(bytes(5000))
    (tmp_path / "data.csv").write_text("1,2\n")
    for files, options, words in (
        ([], {}, "must not be an empty list"),
        (5, {}, "must be paths"),
        (path, {}, "x.npy: must be a tuple of .npy files"),
        (tmp_path / "data.csv", {}, "data.csv: must be a tuple of .npy files, or .parquet"),
        ((path,), {}, r"must be paths \(x, target\)"),
        ((path, tmp_path / "missing.npy"), {}, "missing.npy"),
        ((tmp_path / "fortran.npy", other), {}, "fortran.npy: .*Fortran order; save np.ascontiguousarray"),
        ((tmp_path / "text.npy", other), {}, "x must hold numbers"),
        ((tmp_path / "objects.npy", other), {}, "objects.npy: .*never unpickled"),
        ((tmp_path / "empty.npy", other), {}, "empty.npy: not a readable .npy file"),
        ((tmp_path, other), {}, "not a regular file"),
        (tmp_path / "noise.h5", {}, "noise.h5: not a readable HDF5 file"),
        (tmp_path / "noise.parquet", {}, "noise.parquet: not a readable parquet file"),
        (tmp_path / "missing.h5", {}, "missing.h5"),
        ([(path, other), (path, other, other)], {}, "must both have weights, or neither"),
        ((path, other), {"rows": 0}, "rows must be a positive integer"),
        ((path, other), {"dtype": np.int32}, "dtype must be float32 or float64"),
        ((path, other), {"x": 3}, "x must be a name"),
    ):
        with pytest.raises((TypeError, ValueError, OSError), match=words):
            nbprop.file_chunks(files, **options)


def test_nulls_and_text_in_a_table(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "data.parquet"
    parquet.write_table(arrow.table({"a": [1.0, 2.0, None], "b": ["x", "y", "z"], "t": [0, 1, 0]}), path)
    with pytest.raises(ValueError, match=r"data.parquet: row 2, column 'a' is null"):
        list(nbprop.file_chunks(path, x=["a"], target="t", rows=2)())
    with pytest.raises(TypeError, match=r"data.parquet: column 'b' must hold numbers, got string"):
        nbprop.file_chunks(path, x=["b"], target="t")


@pytest.mark.parametrize(
    ("suffix", "package", "extra"),
    [("h5", "h5py", "hdf5"), ("zarr", "zarr", "zarr"), ("parquet", "pyarrow", "parquet")],
)
def test_a_missing_package_is_named(suffix, package, extra, tmp_path, monkeypatch):
    import sys

    path = tmp_path / f"data.{suffix}"
    path.touch()
    for name in (package, f"{package}.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"needs {package}, .* pip install nbprop\[{extra}\]"):
        nbprop.file_chunks(path)
