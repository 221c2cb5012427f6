"""save and load: the same bits back, other readers, and every way in which a file can be wrong."""

import errno
import json
import os
import pathlib
import resource
import signal
import stat
import struct
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nbprop
from nbprop.io import networks as storage

NET = nbprop.network(
    (6,),
    nbprop.dense(4, activation="gelu", init="orthogonal"),
    nbprop.residual(nbprop.dense(3, activation="tanh"), nbprop.dense(4)),
    nbprop.concat([nbprop.dense(2)], []),
    nbprop.dense(6, bias=False),
    nbprop.dense(4, share="0.dense.weight"),
)


def stored(tmp_path, dtype=np.float64, net=NET):
    path, params = tmp_path / "net.safetensors", nbprop.init(net, seed=5, dtype=dtype)
    nbprop.save(path, net, params)
    return path, params


def rewritten(path, change):
    """The file again after change(tensors, description), which may return other metadata."""
    tensors = load_file(path)
    description = {"format": 1, "network": NET.to_config()}
    metadata = change(tensors, description)
    save_file(tensors, path, {"nbprop": json.dumps(description)} if metadata is None else metadata)
    return path


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_same_bits_back(tmp_path, dtype):
    path, params = stored(tmp_path, dtype)
    params[:4] = np.nan, np.inf, -0.0, np.finfo(dtype).smallest_subnormal
    nbprop.save(str(path), NET, params)
    net, loaded = nbprop.load(str(path))
    assert net == NET
    assert loaded.dtype == dtype
    assert loaded.tobytes() == params.tobytes()
    assert loaded.flags.writeable
    assert os.listdir(tmp_path) == ["net.safetensors"]


def test_other_tools_read_the_names_of_views(tmp_path):
    path, params = stored(tmp_path, np.float32)
    found = load_file(path)
    assert list(found) == sorted(nbprop.views(NET, params))
    for name, view in nbprop.views(NET, params).items():
        assert (found[name] == view).all()
        assert found[name].dtype == np.float32


def test_the_bytes_depend_on_the_contents_alone(tmp_path):
    path, params = stored(tmp_path)
    first = path.read_bytes()
    nbprop.save(path, NET, params)
    assert path.read_bytes() == first


def test_params_may_be_a_read_only_view_or_a_memory_map(tmp_path):
    path, params = stored(tmp_path)
    first = path.read_bytes()
    whole = np.memmap(tmp_path / "params", np.float64, "w+", shape=params.size + 6)
    whole[3:-3] = params
    view = whole[3:-3]
    view.flags.writeable = False
    nbprop.save(path, NET, view)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("net", "params", "error", "said"),
    [
        ("net", np.zeros(3), TypeError, "save: net must be what nbprop"),
        (NET, [0.0], TypeError, "save: params must be a NumPy array, got list"),
        (NET, np.zeros(3), ValueError, r"save: params must have shape \(\d+,\), got \(3,\)"),
        (NET, np.zeros(2 * NET.n_params)[::2], ValueError, "save: params must be C-contiguous"),
        (NET, np.zeros(NET.n_params, np.float16), TypeError, "save: params must hold float32 or float64, got float16"),
        (NET, np.zeros(NET.n_params, ">f8"), TypeError, "save: params must hold float32 or float64, got >f8"),
    ],
)
def test_refused_arguments(tmp_path, net, params, error, said):
    with pytest.raises(error, match=said):
        nbprop.save(tmp_path / "new", net, params)
    assert os.listdir(tmp_path) == []


# -- writing: whole or not at all ----------------------------------------------------------------------------


def fails_to_save(path, net=NET):
    """save raises an OSError that names the path; neither the old file nor its folder have changed."""
    folder = path.parent
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    with pytest.raises(OSError, match=f"{path} could not be written and is unchanged") as caught:
        nbprop.save(path, net, np.ones(net.n_params))
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before
    return caught.value


@pytest.mark.parametrize("function", ["fsync", "replace", "chmod"])
def test_a_failure_at_each_step_leaves_the_old_file(tmp_path, monkeypatch, function):
    path, _ = stored(tmp_path)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, function, full)
    error = fails_to_save(path)
    assert error.errno == errno.ENOSPC
    assert "No space left on device" in str(error)


def test_a_file_that_may_not_grow(tmp_path):
    """The library's own writer meets the limit half way, as on a full disk."""
    path, _ = stored(tmp_path)
    large = nbprop.network((100,), nbprop.dense(1000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        fails_to_save(path, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert nbprop.load(path)[0] == NET


def test_a_kill_while_writing(tmp_path):
    """A process that dies before the rename leaves the old file; what stays beside it is not taken for it."""
    path, params = stored(tmp_path)
    script = f"""
import os, nbprop
net, params = nbprop.load({str(path)!r})
os.replace = lambda *paths: os._exit(9)
nbprop.save({str(path)!r}, net, params + 1)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert (nbprop.load(path)[1] == params).all()
    nbprop.save(path, NET, params + 1)
    assert (nbprop.load(path)[1] == params + 1).all()


def test_folders_that_cannot_be_written(tmp_path):
    with pytest.raises(OSError, match="could not be written"):
        nbprop.save(tmp_path / "missing" / "net", NET, np.ones(NET.n_params))
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        nbprop.save(tmp_path / "folder", NET, np.ones(NET.n_params))
    with pytest.raises(OSError, match="could not be written"):
        nbprop.save("/proc/net.safetensors", NET, np.ones(NET.n_params))


def test_links_and_modes_are_kept(tmp_path):
    path, params = stored(tmp_path)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    nbprop.save(link, NET, params + 1)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert (nbprop.load(path)[1] == params + 1).all()


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nbprop.save("net", NET, np.ones(NET.n_params))
    assert nbprop.load(pathlib.Path("net"))[1].sum() == NET.n_params


# -- reading: every kind of damage ---------------------------------------------------------------------------


def test_every_cut_is_refused(tmp_path):
    path, _ = stored(tmp_path)
    whole = path.read_bytes()
    for length in [*range(0, 40), 200, len(whole) // 2, len(whole) - 8, len(whole) - 1]:
        path.write_bytes(whole[:length])
        said = "file is empty" if length == 0 else "not a safetensors file" if length < 9 else "the file is truncated"
        with pytest.raises(ValueError, match=f"load: {path}: .*{said}"):
            nbprop.load(path)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"PK\x03\x04" + bytes(300), "not a safetensors file"),
        (bytes(1000), "not a safetensors file"),
        (b'{"json": "but no safetensors file at all"}', "not a safetensors file"),
        (struct.pack("<Q", 20) + b'{"a": [1, 2, 3], "b"' + bytes(50), "header is damaged"),
        (struct.pack("<Q", 2**62) + b"{" + bytes(50), "truncated, or not safetensors"),
        (struct.pack("<Q", 12) + b'{"tensor":1}' + bytes(50), "header is damaged"),
    ],
)
def test_something_else_is_refused(tmp_path, contents, said):
    path = tmp_path / "else"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=f"load: {path}: .*{said}"):
        nbprop.load(path)


def test_a_file_with_bytes_added_is_refused(tmp_path):
    path, _ = stored(tmp_path)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(bytes(7))
    with pytest.raises(ValueError, match=f"too large: {size + 7} bytes, where its header promises {size}"):
        nbprop.load(path)


def test_random_damage_is_refused_or_harmless(tmp_path):
    """Any byte of the header changed: a ValueError, or a file that still reads as a network of that size."""
    path, params = stored(tmp_path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    refused = []
    for position in rng.integers(0, header, 300):
        path.write_bytes(whole[:position] + bytes([rng.integers(256)]) + whole[position + 1 :])
        try:
            assert nbprop.load(path)[1].size == params.size
        except ValueError as error:
            refused.append(str(error))
    assert all(said.startswith(f"load: {path}") for said in refused)
    assert len(refused) > 150


def header_and_tensors(path):
    """The header of a file as Python's objects, and the bytes behind it."""
    whole = path.read_bytes()
    stop = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:stop]), whole[stop:]


def write_raw(path, header, tensors):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + tensors)


def test_any_bit_flipped_in_the_tensors_is_refused(tmp_path):
    """In parameters and in layer state, by both functions that read them."""
    path, plan = tmp_path / "net.safetensors", nbprop.plan(NORMED, mode="inference")
    nbprop.save(path, NORMED, nbprop.init(NORMED), nbprop.layer_state(plan))
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in range(start, len(whole), 5):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=f"load: {path} is damaged: .* checksum"):
            nbprop.load(path)
        with pytest.raises(ValueError, match=f"load_state: {path} is damaged: .* checksum"):
            nbprop.load_state(path, plan)
    path.write_bytes(whole)
    assert nbprop.load(path)[0] == NORMED


def test_an_edited_header_is_refused(tmp_path):
    """What leaves every shape as it is: dtypes, two tensors exchanged, a number or a name in the description."""
    elu = nbprop.network((4,), nbprop.dense(4, activation="tanh"), nbprop.dense(4), nbprop.dropout(0.25))
    path, params = tmp_path / "net.safetensors", nbprop.init(elu, dtype=np.float32)

    def edit(change):
        nbprop.save(path, elu, params)
        header, tensors = header_and_tensors(path)
        change(header)
        write_raw(path, header, tensors)
        with pytest.raises(ValueError, match=f"load: {path}"):
            nbprop.load(path)

    def reread(header):
        for name, tensor in header.items():
            if name != "__metadata__":
                tensor["dtype"] = "I32"

    def exchange(header):
        first, second = header["0.dense.weight"], header["1.dense.weight"]
        first["data_offsets"], second["data_offsets"] = second["data_offsets"], first["data_offsets"]

    def replace(old, new):
        def change(header):
            assert old in header["__metadata__"]["nbprop"]
            header["__metadata__"]["nbprop"] = header["__metadata__"]["nbprop"].replace(old, new)

        return change

    for change in (reread, exchange, replace("0.25", "0.35"), replace("tanh", "gelu"), replace('"digest"', '"dogest"')):
        edit(change)


def test_files_without_a_checksum_are_read(tmp_path):
    """Those of other programs, and of nbprop before it wrote one."""
    path, params = stored(tmp_path)
    assert "digest" in json.loads(header_and_tensors(path)[0]["__metadata__"]["nbprop"])
    net, found = nbprop.load(rewritten(path, lambda *_: None))
    assert (net, found.tobytes()) == (NET, params.tobytes())


def test_the_digest_covers_names_dtypes_shapes_and_bytes():
    one = np.arange(6.0)
    same = storage.digest({"a": one, "b": one[:2]})
    assert storage.digest({"b": one[:2].copy(), "a": one.copy()}) == same
    assert len(same) == 32
    int(same, 16)
    others = [
        storage.digest({"a": one}),
        storage.digest({"a": one, "c": one[:2]}),
        storage.digest({"a": one.reshape(2, 3), "b": one[:2]}),
        storage.digest({"a": one.view(np.int64), "b": one[:2]}),
        storage.digest({"a": one[::-1].copy(), "b": one[:2]}),
        storage.digest({"a": one, "b": one[:2]}, "more"),
        storage.digest({"a": one, "b": one[:2]}, {"more": 1}),
    ]
    assert len({same, *others}) == 8


def test_wrong_contents_are_refused(tmp_path):
    def refused(change, said):
        path, _ = stored(tmp_path)
        with pytest.raises(ValueError, match=f"load: {path}.*{said}"):
            nbprop.load(rewritten(path, change))

    def misshape(tensors, description):
        tensors["0.dense.weight"] = tensors["0.dense.weight"].T.copy()

    def mix(tensors, description):
        tensors["0.dense.bias"] = tensors["0.dense.bias"].astype(np.float32)

    def integers(tensors, description):
        tensors.update({name: tensor.astype(np.int32) for name, tensor in tensors.items()})

    def put(key, value):
        def change(tensors, description):
            description[key] = value

        return change

    refused(lambda tensors, _: tensors.clear(), r"lacks the tensor 0\.dense\.bias, 0\.dense\.weight")
    refused(lambda tensors, _: tensors.__delitem__("3.dense.weight"), r"lacks the tensor 3\.dense\.weight")
    refused(lambda tensors, _: tensors.update(more=np.ones(2)), "has, besides the network's, the tensor more")
    refused(misshape, r"0\.dense\.weight must have shape \(6, 4\), got \(4, 6\)")
    refused(mix, "must all be F32 or all F64, got F32, F64")
    refused(integers, "must all be F32 or all F64, got I32")
    refused(lambda *_: {}, "but its metadata describes no nbprop network")
    refused(lambda *_: {"format": "pt"}, "its metadata describes no nbprop network")
    refused(lambda *_: {"nbprop": "{"}, "description of the network is damaged")
    refused(lambda *_: {"nbprop": "[]"}, "description of the network is damaged")
    refused(lambda _, description: description.__delitem__("network"), "description of the network is damaged")
    refused(put("format", 2), "format 2 and this nbprop reads up to 1; install a newer nbprop")
    refused(put("format", "1"), "format must be a positive integer, got '1'")
    refused(put("network", {"layers": []}), "not the JSON of an nbprop network")
    refused(
        put("network", {"input_shape": [6], "layers": [{"kind": "dence", "units": 3}]}),
        "unknown name 'dence'; did you mean 'dense'.*import the module that defines it first",
    )
    refused(put("network", {"input_shape": [6], "layers": [{"kind": "dense", "size": 3}]}), "its JSON does not fit")


def test_paths_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        nbprop.load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        nbprop.load(tmp_path)


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match=f"load: {path} is a device or a pipe"):
            nbprop.load(path)


def test_what_is_no_path_is_refused_by_name():
    plan = nbprop.plan(NORMED, mode="inference")
    for function in (lambda path: nbprop.save(path, NET, np.ones(NET.n_params)), nbprop.load):
        with pytest.raises(TypeError, match=r"(save|load): path must be a str or a path, got int"):
            function(3)
    with pytest.raises(ValueError, match="load_state: path must name a file"):
        nbprop.load_state("a\0b", plan)


# -- layer state

NORMED = nbprop.network((3,), nbprop.batchnorm(), nbprop.residual(nbprop.dense(3), nbprop.batchnorm()))


def test_layer_state_goes_with_the_parameters(tmp_path):
    path, params = tmp_path / "net.safetensors", nbprop.init(NORMED, dtype=np.float32)
    state = np.arange(12, dtype=np.float32)
    nbprop.save(path, NORMED, params, state)
    assert set(load_file(path)) - set(nbprop.views(NORMED, params)) == {
        f"{layer}.{name}"
        for layer in ("0.batchnorm", "1.residual.1.batchnorm")
        for name in ("running_mean", "running_variance")
    }
    net, loaded = nbprop.load(path)
    assert (net, loaded.tobytes()) == (NORMED, params.tobytes())
    for mode, batch in (("inference", 1), ("training", 9)):
        found = nbprop.load_state(path, nbprop.plan(NORMED, batch=batch, dtype=np.float32, mode=mode))
        assert found.tobytes() == state.tobytes()


def test_what_is_no_state_of_the_network_is_refused(tmp_path):
    path, params = tmp_path / "net.safetensors", nbprop.init(NORMED)
    for state, error, said in (
        (np.zeros(11), ValueError, r"save: state must have shape \(12,\), got \(11,\)"),
        (
            np.zeros(12, np.float32),
            TypeError,
            "save: state must hold float64, got float32",
        ),
        ([0.0] * 12, TypeError, "got list"),
    ):
        with pytest.raises(error, match=said):
            nbprop.save(path, NORMED, params, state)
    assert os.listdir(tmp_path) == []
    plan = nbprop.plan(NORMED, mode="inference")
    nbprop.save(path, NORMED, params)
    with pytest.raises(ValueError, match=r"load_state: .* has no layer state"):
        nbprop.load_state(path, plan)
    nbprop.save(path, NORMED, params, np.zeros(12))
    with pytest.raises(ValueError, match="holds float64, the plan is of float32"):
        nbprop.load_state(path, nbprop.plan(NORMED, dtype=np.float32))
    with pytest.raises(ValueError, match=r"load_state: .* holds network.*, the plan is of network"):
        nbprop.load_state(path, nbprop.plan(nbprop.network((3,), nbprop.batchnorm())))
    with pytest.raises(TypeError, match="load_state: plan must be"):
        nbprop.load_state(path, NORMED)
    tensors = load_file(path)
    del tensors["0.batchnorm.running_mean"]
    save_file(tensors, path, {"nbprop": json.dumps({"format": 1, "network": NORMED.to_config()})})
    for read in (lambda: nbprop.load(path), lambda: nbprop.load_state(path, plan)):
        with pytest.raises(ValueError, match=r"lacks the tensor 0\.batchnorm\.running_mean"):
            read()


def test_notes_come_back_and_others_are_refused(tmp_path):
    net = nbprop.network((2,), nbprop.dense(1))
    path, notes = tmp_path / "m.safetensors", {"labels": ["a", "ü"], "loss": None, "deep": {"n": [1, 2.5]}}
    nbprop.save(path, net, nbprop.init(net), notes=notes)
    assert storage.load_notes(path) == notes
    before = path.read_bytes()
    for wrong in ([1], {"x": float("nan")}, {"x": np.arange(2)}, {1: "a"}, {"x": (1, 2)}, "text", 3):
        with pytest.raises(TypeError, match=r"save: notes must be a dict of what JSON can hold"):
            nbprop.save(path, net, nbprop.init(net), notes=wrong)
    assert path.read_bytes() == before
    path.write_bytes(before.replace(b"[1, 2.5]", b"[1, 3.5]").replace(b"[1,2.5]", b"[1,3.5]"))
    for read in (storage.load_notes, nbprop.load):
        with pytest.raises(ValueError, match="its contents do not match its checksum"):
            read(path)
    nbprop.save(path, net, nbprop.init(net))
    assert storage.load_notes(path) == {}
