"""Files of data: nothing about them is settled in silence, and every reader gives the same."""

import csv
import functools
import io
import os
import random
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbprop
from nbprop.cli.main import main
from nbprop.io import number_readers
from nbprop.io.csv_files import TextFormat, TextTable
from nbprop.io.data_files import Choices, open_data
from nbprop.io.table_source import Columns

FLOAT64 = np.dtype(np.float64)


def found(path, with_target=True, features=None, **choices):
    """(x, y, labels, names of the features, all that is told) of a file."""
    form = TextFormat(**{name: choices.pop(name) for name in list(choices) if hasattr(TextFormat, name)})
    known = None if features is None else Columns(features)
    source = open_data(path, Choices(form=form, **choices), with_target, known)
    told = list(source.lines())
    if not with_target:
        x = np.concatenate([piece.x for piece in source.pieces(FLOAT64, 0)])
        return x, None, None, source.features, [*told, *source.lines_after()]
    data = source.read(FLOAT64, 0)
    return data.x, data.y, data.labels, source.features, [*told, *source.lines_after()]


@pytest.fixture
def file(tmp_path):
    def file(content, name="d.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return file


# -- what pandas and R write ---------------------------------------------------------------------------------

TABLE = np.array([[0.1, -2.5, 0], [1 / 3, 4e-300, 1], [7, 12345678901234.5, 1], [-0.0, 5, 0]])


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("columns", [["a", "b", "kind"], [0, 1, 2], ["2019", "2020", "kind"], ["NA", "x,y", 'q"t']])
def test_what_pandas_writes_by_default(tmp_path, columns, index):
    """The same numbers as pandas reads back; the index is told and left out, the names are found or asked for."""
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(TABLE, columns=columns).to_csv(tmp_path / "d.csv", index=index)
    unclear = not index and columns in ([0, 1, 2], ["2019", "2020", "kind"])
    if unclear:
        with pytest.raises(ValueError, match=r"names or a sample.* say --header yes or --header no"):
            found(tmp_path / "d.csv")
    x, y, _, names, told = found(tmp_path / "d.csv", header=True if unclear else None)
    assert (x.tolist(), y.tolist()) == (TABLE[:, :2].tolist(), TABLE[:, 2].tolist())
    assert names == [str(name) for name in columns[:2]]
    assert "names: line 1" in told
    assert f"features: 2: {', '.join(names)}" in told
    assert any(line.startswith("left out: column 1, which has no name and counts the rows") for line in told) is index


def test_the_index_is_left_out_however_often_it_was_written(tmp_path):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(TABLE, columns=["a", "b", "c"]).to_csv(tmp_path / "d.csv")
    pandas.read_csv(tmp_path / "d.csv").to_csv(tmp_path / "again.csv")
    assert found(tmp_path / "again.csv")[3] == ["a", "b"]
    assert found(tmp_path / "again.csv", index="keep")[3] == ["column 1", "Unnamed: 0", "a", "b"]
    pandas.DataFrame(TABLE, columns=["a", "b", "c"]).sample(frac=1, random_state=1).to_csv(tmp_path / "mixed.csv")
    with pytest.raises(ValueError, match="has no name and does not count the rows: an index or a feature"):
        found(tmp_path / "mixed.csv")
    assert found(tmp_path / "mixed.csv", index="drop")[3] == ["a", "b"]


def test_an_index_that_stops_counting_is_told(file):
    rows = [f"{k if k < 70 else 0},{k},1" for k in range(100)]
    with pytest.raises(ValueError, match="counts the rows up to line 72, then no longer"):
        found(file(",a,b\n" + "\n".join(rows) + "\n"))


def test_a_named_column_that_counts_is_noted(file):
    told = found(file("id,a,b\n0,5,1\n1,3,0\n2,9,1\n"))[4]
    assert "note: column 1 'id' counts the rows and is a feature (--drop 1 leaves it out)" in told
    assert found(file("id,a,b\n0,5,1\n1,3,0\n2,9,1\n"), drop=("id",))[3] == ["a"]


# -- the first line ------------------------------------------------------------------------------------------

NAMES, VALUES, UNCLEAR = "names", "values", "unclear"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a,b\n1,2\n", NAMES),
        ('"a","b"\n1,2\n', NAMES),
        ("NA,b\n1,2\n", NAMES),
        ("# a,b\n1,2\n", NAMES),
        ("\n\na,b\n1,2\n", NAMES),
        ("\ufeffa,b\n1,2\n", NAMES),
        (",0,1\n0,4,2\n1,5,3\n", NAMES),
        ("5,6\n1,2\n", VALUES),
        ('"5","6"\n"1","2"\n', VALUES),
        ("5,setosa\n1,virginica\n", VALUES),
        ("1e5,-.5\n1,2\n", VALUES),
        ("0,1\n5,2\n", UNCLEAR),
        ("1,2,3\n5,2,3\n", UNCLEAR),
        ('"7","6"\n1,2\n', UNCLEAR),
        ("2019,price\n1,2\n", UNCLEAR),
        ("NA,setosa\n1,virginica\n", UNCLEAR),
    ],
)
def test_the_first_line_is_names_values_or_asked_about(file, text, kind):
    path = file(text)
    if kind == UNCLEAR:
        with pytest.raises(ValueError, match=r"names or a sample.* say --header yes or --header no"):
            TextTable(path)
        assert TextTable(path, TextFormat(header=True)).names is not None
        assert TextTable(path, TextFormat(header=False)).names is None
    else:
        assert (TextTable(path).names is not None) is (kind == NAMES)


def test_a_models_names_are_a_header(file):
    path = file("0,1,2\n5,6,1\n")
    assert found(path, False, ["1", "0"])[0].tolist() == [[6, 5]]
    with pytest.raises(ValueError, match="names or a sample"):
        found(path, False, ["a", "b"])


def test_lines_between_are_never_lost(file):
    """Whatever begins with # is data, an error that names the line, or left out as asked and told."""
    path = file("a,b\n1,2\n#3,4\n5,6\n")
    with pytest.raises(ValueError, match="line 3, column 1 'a': '#3' is not a number"):
        found(path)
    x, _, _, _, told = found(path, comment="#")
    assert x.tolist() == [[1], [5]]
    assert "left out as comments: 3" in "\n".join(told).replace("lines ", "")


# -- columns -------------------------------------------------------------------------------------------------


def test_delimiters_are_found_or_given(file):
    for delimiter in ",;\t|":
        x, y, _, _, told = found(file(delimiter.join("abc") + "\n" + delimiter.join("123") + "\n"))
        assert (x.tolist(), y.tolist()) == ([[1, 2]], [3])
        assert f"columns separated by {delimiter!r}" in told[0]
    assert found(file("a:b\n1:2\n"), delimiter=":")[3] == ["a"]
    assert found(file("a\tb,c\n1\t2\n", "d.tsv"), delimiter="\t")[3] == ["a"]


def test_decimal_commas_are_found_given_or_asked_about(file):
    for text, form in (
        ("a;b;c\n1,5;-2,25e3;1\n,5;7,;0\n", {}),
        ("1,5;-2,25e3;1\n,5;7,;0\n", {}),
        ('a,b,c\n"1,5","-2,25e3",1\n",5","7,",0\n', {}),
        ("a;b;c\n1,500;-2250;1\n0,500;7;0\n", {"decimal": ","}),
    ):
        x, y, _, _, told = found(file(text), **form)
        assert (x.tolist(), y.tolist()) == ([[1.5, -2250], [0.5, 7]], [1, 0])
        assert "decimal comma" in told[0]
    assert found(file("a;b\n1,5;x\n2.5;y\n"), decimal=".", category=("1",))[0].tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="is 1,234 a number with a decimal comma, or are these thousands"):
        found(file("a;b\n1,234;0\n"))
    with pytest.raises(ValueError, match=r"line 3, column 1 'a': '1\.5' is not a number"):
        found(file("a;b\n2,5;1\n1.5;2\n"), decimal=",")


def test_categories_in_the_order_of_the_alphabet(file):
    x, _, _, names, told = found(file("town,size,y\nb,1,5\na,2,6\n,3,7\nb,2,8\n"))
    assert x.tolist() == [[0, 0, 1, 1], [0, 1, 0, 2], [1, 0, 0, 3], [0, 0, 1, 2]]
    assert names == ["town", "size"]
    assert "categories: column 1 'town', 3: (missing), a, b" in told
    x = found(file("town,size,y\nb,1,5\na,2,6\n"), category=("size",))[0]
    assert x.tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]
    rows = [f"name {k},{k % 7}.5,{k}" for k in range(60)]
    x, _, _, names, told = found(file("\n".join(["id,size,y", *rows])))
    assert (x.shape, names) == ((60, 1), ["size"])
    assert any("text with 60 different values in 60 lines (--category 1 takes them" in line for line in told)
    assert found(file("\n".join(["id,size,y", *rows])), category=("id",))[0].shape == (60, 61)
    with pytest.raises(ValueError, match="--category names column 3 'y', which is no feature"):
        found(file("a,b,y\n1,2,3\n"), category=("y",))


def test_text_that_comes_late_is_told_with_its_line(file):
    text = "a,y\n" + "1,0\n" * 60 + "many,1\n"
    with pytest.raises(ValueError, match=r"line 62, column 1 'a': 'many' is not a number; .* say --category 1 if"):
        found(file(text))
    assert found(file(text), category=("a",))[0].shape == (61, 2)


def test_targets_are_found_by_name_or_number(file):
    path = file("a,2,c,d\n1,2,3,4\n5,6,7,8\n")
    assert found(path, header=True, target=("a",))[1].tolist() == [1, 5]
    assert found(path, header=True, target=("2",))[1].tolist() == [2, 6]  # its name, before its number
    assert found(path, header=True, target=("3",))[1].tolist() == [3, 7]
    assert found(path, header=True, target=("d", "a"))[1].tolist() == [[4, 1], [8, 5]]
    assert found(path, header=True, targets=2)[1].tolist() == [[3, 4], [7, 8]]
    with pytest.raises(ValueError, match="2 columns are named 'a'; give the number"):
        found(file("a,a,b\n1,2,3\n"), target=("a",))


def test_text_becomes_classes(file):
    """Also where the first text stands thousands of lines down, beyond what was read as numbers."""
    _, y, labels, _, _ = found(file("a,kind\n1,no\n2, yes\n3,no\n"))
    assert (y.tolist(), labels) == ([0, 1, 0], ["no", "yes"])
    late = "a,kind\n" + "1,0\n" * 9000 + "1,other\n"
    _, y, labels, _, _ = found(file(late))
    assert (labels, y[[0, -1]].tolist(), len(y)) == (["0", "other"], [0, 1], 9001)


def test_large_whole_numbers_keep_their_value(file):
    _, y, labels, _, _ = found(file(f"a,b\n1,{2**63 + 2**12}\n1,{10**25}\n1,-1\n"))
    assert (y.tolist(), labels) == ([2.0**63 + 2**12, 1e25, -1], None)


# -- missing values ------------------------------------------------------------------------------------------


def test_missing_values_are_refused_dropped_or_filled_as_told(file):
    path = file("a,b,c\n1,,3\nNA,5,6\n7,8,9\n1,2,n/a\n")
    with pytest.raises(ValueError, match=r"line 2, column 2 'b' is missing; .* say --on-missing drop or a number"):
        found(path)
    x, y, _, _, told = found(path, on_missing="drop", missing=("", "NA", "n/a"))
    assert (x.tolist(), y.tolist()) == ([[7, 8]], [9])
    assert "left out for a missing value: 2, 3, 5 (lines)" in told
    assert "missing values: '' 1, 'NA' 1, 'n/a' 1" in told
    x, y, _, _, told = found(file("a,b,c\n1,,3\nNA,5,6\n", "two.csv"), on_missing=0.5)
    assert x.tolist() == [[1, 0.5], [0.5, 5]]
    assert "missing values: '' 1, 'NA' 1, taken as 0.5" in told
    with pytest.raises(ValueError, match=r"line 5, target 'c' is missing; fill it in, or say --on-missing drop$"):
        found(path, on_missing=0.0, missing=("", "NA", "n/a"))
    with pytest.raises(ValueError, match="line 2, column 1 'a': 'NA' is not a number"):
        found(file("a,b\nNA,1\n2,3\n"), missing=("", "-"))


def test_missing_values_of_arrays(tmp_path):
    x = np.array([[1, 2], [np.nan, 4], [5, 6]])
    np.savez(tmp_path / "d.npz", x=x, y=np.array([1.5, 2.5, np.nan]))
    with pytest.raises(ValueError, match=r"x\[1, 0\] is missing"):
        found(tmp_path / "d.npz")
    x, y, _, _, told = found(tmp_path / "d.npz", on_missing="drop")
    assert (x.tolist(), y.tolist()) == ([[1, 2]], [1.5])
    assert "left out for a missing value: 1, 2 (rows)" in told


# -- readers -------------------------------------------------------------------------------------------------

fields = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.text("0123456789.eE+-_ xnaif#\t\x0b\u0661", max_size=6),
    st.sampled_from(["", "NA", "nan", "inf", "1e400", "True", "0x10", "1_0", " 7 ", "+.5e-3", '"8"', "9" * 25]),
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(rows=st.lists(st.lists(fields, min_size=2, max_size=2), min_size=1, max_size=4), decimal=st.sampled_from(".,"))
def test_all_readers_give_the_same(tmp_path_factory, rows, decimal):
    """Numbers bit by bit, or the same refusal, from the csv module, NumPy and pyarrow."""
    pytest.importorskip("pyarrow")
    path = tmp_path_factory.mktemp("readers") / "d.csv"
    rows = [[field.replace(".", decimal) for field in row] for row in rows]
    path.write_text("a;b\n" + "".join(";".join(row) + "\n" for row in rows), encoding="utf-8")

    def outcome(reader):
        try:
            table = TextTable(path, TextFormat(header=True, delimiter=";", decimal=decimal))
            table._by_reader = functools.partial(table._by_reader, quick=reader)
            blocks = [(block.lines, block.numbers.tobytes()) for block in table.blocks([0, 1])]
        except ValueError as error:
            return str(error)
        return blocks, table.blank, dict(table.missing)

    expected = outcome(lambda *lines: None)
    assert outcome(number_readers.numpy_numbers) == expected
    assert outcome(number_readers.arrow_numbers) == expected


def test_a_large_file_is_read_by_pyarrow(file, monkeypatch):
    """And by NumPy where it is not installed; with the same bits, and the same lines."""
    pytest.importorskip("pyarrow")
    rng, called = np.random.default_rng(0), []
    table = rng.standard_normal((20_000, 3)) * 10.0 ** rng.integers(-300, 300, (20_000, 3))
    rows = [",".join(map(repr, row)) for row in table.tolist()]
    path = file("\n".join(["a,b,y", *rows[:9000], "", "1e3, 2,NA", *rows[9000:]]) + "\n")
    table = np.concatenate([table[:9000], [[1e3, 2, np.nan]], table[9000:]])
    for name in ("arrow_numbers", "numpy_numbers"):
        read = getattr(number_readers, name)
        monkeypatch.setattr(
            number_readers, name, lambda *lines, read=read, name=name: called.append(name) or read(*lines)
        )
    for _ in range(2):
        blocks = list(TextTable(path).blocks([0, 1, 2]))
        assert np.concatenate([block.numbers for block in blocks]).tobytes() == table.tobytes()
        lines = [line for block in blocks for line in block.lines]
        assert lines == [*range(2, 9002), *range(9003, 20_004)]
        monkeypatch.setattr(number_readers, "arrow", lambda: None)
    assert set(called[: len(called) // 2]) == {"arrow_numbers"}
    assert set(called[len(called) // 2 :]) == {"numpy_numbers"}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.lists(st.lists(st.text("ab\"\n\r ,'#1", max_size=4), min_size=2, max_size=2), min_size=1, max_size=5))
def test_lines_are_the_files_own(tmp_path_factory, rows):
    """A record's number is that of its first line as an editor shows it, whatever is quoted."""
    text = io.StringIO()
    starts, writer = [], csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in [["a", "b"], *rows]:
        starts.append(text.getvalue().replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1)
        writer.writerow(row)
    path = tmp_path_factory.mktemp("lines") / "d.csv"
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    table = TextTable(path, TextFormat(header=True, delimiter=","))
    blocks = list(table.blocks([], [0, 1]))
    assert [line for block in blocks for line in block.lines] == starts[1:]
    assert [field for block in blocks for field in block.texts[1]] == [row[1].strip() for row in rows]


def test_encodings(file):
    text = "größe,art\n1,weiß\n2,grün\n"
    for encoding in ("latin-1", "utf-16", "utf-8-sig"):
        _, _, labels, names, _ = found(file(text.encode(encoding)), encoding=encoding)
        assert (names, labels) == (["größe"], ["grün", "weiß"])
    with pytest.raises(ValueError, match="line 1: not text in utf-8"):
        found(file(text.encode("latin-1")))
    with pytest.raises(ValueError, match=r"not text in utf-8.*--encoding, such as latin-1 or utf-16"):
        found(file(text.encode("utf-16-le")))
    late = "a,b\n" + "1,2\n" * 9000
    with pytest.raises(ValueError, match="line 9002: not text in utf-8"):
        found(file(late.encode() + b"1,\xff\n"))


# -- arrays --------------------------------------------------------------------------------------------------


def header_of(shape, descr="<f8", order="False"):
    text = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("shape", ["(10000000000, 100)", "(-1, 8)", "(2, -4)", "(8,)", "(3, 3)", "()", "(True,)", "2"])
def test_an_array_that_is_not_what_its_header_tells_is_refused(tmp_path, shape):
    for name in ("x", "y"):
        stored = {"x": header_of("(2, 1)") + bytes(16), "y": header_of("(2,)") + bytes(16)}
        stored[name] = header_of(shape) + bytes(16)
        with pytest.raises(ValueError, match=r"d\.npz: "):
            found(archive(tmp_path / "d.npz", **stored))
    (tmp_path / "x.npy").write_bytes(header_of(shape) + bytes(16))
    with pytest.raises(ValueError, match=r"x\.npy: "):
        found(tmp_path / "x.npy")


def test_sizes_that_cannot_be_compressed_so_far_are_refused(tmp_path):
    path = archive(tmp_path / "d.npz", x=header_of("(1000000000, 1000)") + bytes(1000), y=header_of("(2,)") + bytes(16))
    size = len(header_of("(1000000000, 1000)"))
    raw = path.read_bytes()
    lie = struct.pack("<I", 0xFFFFFFFF)
    raw = raw.replace(struct.pack("<I", size + 1000), lie)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"d\.npz: "):
        found(path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
def test_damaged_archives_are_refused(tmp_path, keep):
    rng = np.random.default_rng(0)
    np.savez_compressed(tmp_path / "d.npz", x=rng.standard_normal((500, 4)), y=np.arange(500) % 2)
    raw = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(raw[: int(keep * len(raw))])
    with pytest.raises(ValueError, match=r"cut\.npz: not a readable \.npz file"):
        found(tmp_path / "cut.npz")
    flipped = bytearray(raw)
    flipped[int(keep * len(raw) * 0.8)] ^= 0x10
    (tmp_path / "bit.npz").write_bytes(flipped)
    with pytest.raises(ValueError, match=r"bit\.npz: x is damaged"):
        found(tmp_path / "bit.npz")


def test_only_the_arrays_asked_for_are_unpacked(tmp_path):
    """The rest may be damaged or of any size, and is told."""
    good = {"x": header_of("(2, 1)") + bytes(16), "y": header_of("(2,)") + bytes(16)}
    path = archive(tmp_path / "d.npz", **good, huge=b"no array at all", other=header_of("(9, 9)"))
    told = found(path)[4]
    assert "left out: 2 arrays: huge, other" in told


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_any_order_and_dtype(tmp_path, monkeypatch, order, save):
    monkeypatch.setattr("nbprop.io.data_files._PIECE", 128)
    x = np.asarray(np.random.default_rng(0).integers(-50, 50, (33, 2, 3)), order=order)
    for dtype in ("i1", ">i4", "<i8", "<f2", ">f8", "f4"):
        save(tmp_path / "d.npz", x=x.astype(dtype, order="K"), y=np.arange(33, dtype="u1"))
        got, y, labels, _, _ = found(tmp_path / "d.npz")
        assert (got.tolist(), y.tolist(), labels) == (x.tolist(), list(range(33)), None)
        np.save(tmp_path / "x.npy", x.astype(dtype, order="K"))
        assert found(tmp_path / "x.npy", False)[0].tolist() == x.tolist()
    save(tmp_path / "d.npz", x=x, y=np.array(["a", "bc", "a"] * 11))
    _, y, labels, _, _ = found(tmp_path / "d.npz")
    assert (y.tolist(), labels) == ([0, 1, 0] * 11, ["a", "bc"])


def test_a_table_in_an_npy(tmp_path):
    np.save(tmp_path / "t.npy", TABLE)
    x, y, _, _, _ = found(tmp_path / "t.npy")
    assert (x.tolist(), y.tolist()) == (TABLE[:, :2].tolist(), TABLE[:, 2].tolist())


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
def test_pipes_are_refused_and_not_waited_for(tmp_path):
    for suffix in (".csv", ".npz", ".npy"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
        with pytest.raises(ValueError, match="not a regular file"):
            found(tmp_path / f"pipe{suffix}")


def test_memory_follows_the_pieces(tmp_path, monkeypatch):
    """Predicting 40 times as many rows takes no more memory, but for the outputs."""
    monkeypatch.setattr("nbprop.io.data_files._PIECE", 1 << 16)
    net = nbprop.network((8,), nbprop.dense(256, activation="tanh"), nbprop.dense(2))
    nbprop.save(tmp_path / "m.safetensors", net, nbprop.init(net, dtype=np.float32))
    peaks, sizes = [], (10, 2_000, 40_000)
    for rows in sizes:  # the first imports and compiles
        np.savez_compressed(tmp_path / "x.npz", x=np.ones((rows, 8), np.float32))
        tracemalloc.start()
        code = main(
            ["predict", str(tmp_path / "m.safetensors"), str(tmp_path / "x.npz"), "-o", str(tmp_path / "y.npy")]
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert code == 0
        assert np.load(tmp_path / "y.npy").shape == (rows, 2)
    assert peaks[1] < 6_000_000
    assert peaks[2] < peaks[1] + 3 * 8 * sizes[2]  # all rows at once take 40 million bytes for a layer


# -- hostile files -------------------------------------------------------------------------------------------

TEXTS = (
    "a,b,kind\n1,2,x\n3,4,y\n5,,x\n",
    ",a,b\n0,1,2\n1,3,4\n2,5,6\n",
    '"a";"b"\n"1";2\n3;"4"\n',
    "0.5\t1\n2\t3\n",
)
INSERTED = (b'"', b",", b"\n", b"\r", b"\0", b"#", b";", b"\xff", b"9" * 30, b"e308", b"nan", b"\xef\xbb\xbf")


def mutated(raw, rng):
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        kind, i = rng.randrange(4), rng.randrange(len(raw) + 1)
        if kind == 0 and i < len(raw):
            raw[i] = rng.randrange(256)
        elif kind == 1:
            del raw[i : i + rng.choice([1, 3, 50, 10**6])]
        elif kind == 2:
            raw[i:i] = rng.choice(INSERTED)
        else:
            raw[i:i] = raw[rng.randrange(len(raw) + 1) :][: rng.randrange(100)]
    return bytes(raw)


def contents():
    """(name, bytes) of files that are right."""
    found = [("d.csv", text.encode()) for text in TEXTS]
    for save in (np.savez, np.savez_compressed):
        for y in (np.arange(6) % 2, np.array(["a", "b"] * 3)):
            save(stored := io.BytesIO(), x=np.asfortranarray(np.ones((6, 3), np.float32)), y=y)
            found.append(("d.npz", stored.getvalue()))
    np.save(stored := io.BytesIO(), np.ones((6, 3)))
    return [*found, ("d.npy", stored.getvalue())]


@pytest.mark.scaled
def test_hostile_files_are_read_or_refused_by_one_error(tmp_path, rounds):
    """A ValueError that names the file, or data without a gap; within two seconds."""
    rng, right, files = random.Random(0), 0, contents()
    for _ in range(rounds(500, 10_000)):
        name, raw = rng.choice(files)
        path = tmp_path / name
        path.write_bytes(mutated(raw, rng))
        form = {"header": rng.choice([None, True, False]), "encoding": rng.choice(["utf-8", "latin-1", "utf-16"])}
        began, refusal = time.perf_counter(), str(path)
        try:
            x, y, _, _, _ = found(path, **form, on_missing=rng.choice(["refuse", "drop", 0.0]))
        except ValueError as error:
            refusal = str(error)
        else:
            right += 1
            assert np.isfinite(x).all()
            assert np.isfinite(y).all()
            assert len(x) == len(y) > 0
        assert str(path) in refusal
        assert time.perf_counter() - began < 2
    assert right > 10
