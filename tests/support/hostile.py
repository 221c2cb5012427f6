"""Changed files of every kind that nbprop reads, in a process of its own: python -m support.hostile FOLDER COUNT SEED.

Each file is refused by one error of a known kind that names it, or gives the right result, within two seconds of the
processor's time and 200 MB. The process prints what it counted; it fails at the first file that does otherwise.
"""

import contextlib
import io
import json
import random
import resource
import signal
import struct
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

import nbprop
from nbprop.cli import main as cli

SECONDS, MEGABYTES = 2, 200
NET = nbprop.network(
    (3,), nbprop.dense(5, activation="elu"), nbprop.residual(nbprop.batchnorm(epsilon=0.01)), nbprop.dense(2)
)
TRAINED = nbprop.network((3,), nbprop.dense(5, activation="tanh"), nbprop.dense(2))
X = np.linspace(-1, 1, 36, dtype=np.float32).reshape(12, 3)
TARGET = np.arange(12) % 2

# What takes the place of a part of a JSON text; None stands for JSON's null.
VALUES = (
    *(None, True, "", "dense", "F16", "x" * 100_000, [], {}, [[]], [0, 0], -1, 0, 1, 2, 7, 2.5, 1e308, 10**9, -(10**9)),
    *(2**31, 2**53, 2**63, 10**30, float("nan"), float("inf"), {"kind": "residual", "layers": []}, ["\ud800", "\0"]),
    *([1] * 1000, {"kind": "attention_heads", "heads": 7}, {"kind": "embedding", "vocabulary": 2**31 - 1, "units": 9}),
)


class Slow(BaseException):
    """Raised by the alarm; no reader catches it."""


# -- changes -------------------------------------------------------------------------------------------------


def bytes_changed(raw, rng):
    """Bits flipped, pieces cut out, doubled, exchanged, filled, put in; the end cut off."""
    raw = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        kind, i = rng.randrange(7), rng.randrange(len(raw) + 1)
        if kind <= 1 and i < len(raw):
            raw[i] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del raw[i : i + rng.choice((1, 3, 8, 100))]
        elif kind == 3:
            raw[i:i] = raw[rng.randrange(len(raw) + 1) :][: rng.randrange(100)]
        elif kind == 4:
            raw[i : i + 8] = struct.pack("<q", rng.choice((0, -1, 2**31, 2**62, 2**40, 77)))
        elif kind == 5:
            raw[i:i] = rng.choice((b"\xff", b"\0" * 9, b'"', b"}", b"[" * 2000, b"9" * 5000, b"e999", b"NaN", b"\n"))
        else:
            del raw[i:]
    return bytes(raw)


def places(found):
    """Every (container, key) of parsed JSON."""
    for key in list(found) if isinstance(found, dict) else range(len(found)):
        yield found, key
        if isinstance(found[key], (dict, list)):
            yield from places(found[key])


def json_changed(found, rng):
    """One part of parsed JSON taken away, exchanged with another, or made something else."""
    holder, key = rng.choice(list(places(found)))
    kind = rng.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        other, there = rng.choice(list(places(found)))
        holder[key] = json.loads(json.dumps(other[there]))
    elif kind == 2 and type(holder[key]) in (int, float):
        holder[key] = rng.choice((holder[key] + 1, holder[key] - 1, -holder[key], holder[key] * 2, holder[key] * 10**9))
    elif kind == 3 and isinstance(holder, dict):
        holder[key + rng.choice(("s", "\0", " "))] = holder.pop(key)
    else:
        holder[key] = rng.choice(VALUES)


def tensors_changed(raw, rng):
    """A safetensors file with its header, or the JSON text inside its header, changed."""
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    ((key, text),) = header["__metadata__"].items()
    inside = json.loads(text)
    changes = rng.choice(((inside,), (inside,), (inside, inside), (header,)))
    for found in changes:
        json_changed(found, rng)
    if inside in changes:
        text = json.dumps(inside)
        if rng.random() < 0.1:
            text = text.replace(rng.choice(("[", "{", "1")), "[" * rng.choice((100, 900, 50_000)), 1)
        header["__metadata__"] = {key: text}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + size :]


def archive_changed(raw, rng):
    """An .npz whose members have another header, kind, name, or an object inside."""
    members = {"x.npy": X, "y.npy": TARGET}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, array in members.items():
            member = io.BytesIO()
            np.save(member, array)
            content = member.getvalue()
            kind = rng.randrange(8)
            if kind == 0:
                shape = rng.choice(
                    ((10**12, 3), (2**40,), (-1, 3), (12, 3, 0), (), (3, 12), (2**63, 2**63), (12,) * 40)
                )
                content = npy(shape, array.dtype.str, content[128:])
            elif kind == 1:
                dtype = rng.choice(("|O", "<U5", "<f2", ">f8", "<c16", "|V4", "<M8[s]", "<i1", "|b1", "x", "<f4,<f4"))
                content = npy(array.shape, dtype, content[128:])
            elif kind == 2:
                member = io.BytesIO()
                np.save(member, np.array([print, {}], object), allow_pickle=True)
                content = member.getvalue()
            elif kind == 3:
                content = bytes_changed(content, rng)
            elif kind == 4:
                name = rng.choice(("x", "../x.npy", "X.npy", "z.npy", "x.npy.npy"))
            archive.writestr(name, content)
    return stream.getvalue()


def npy(shape, dtype, data):
    """An .npy file with a header of any shape and dtype."""
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + data


# -- files and their readers ---------------------------------------------------------------------------------


def train(path, params, resume):
    options = {"loss": "softmax_cross_entropy", "epochs": 2, "batch": 5, "lr": 0.1}
    nbprop.fit(TRAINED, params, X, TARGET, **options, checkpoint=path, resume=resume)
    return params


class Model:
    name, changes, longest = "net.safetensors", (bytes_changed, tensors_changed), 3_000

    def __init__(self, path):
        self.params = nbprop.init(NET, seed=1, dtype=np.float32)
        self.plan = nbprop.plan(NET, dtype=np.float32, mode="inference")
        self.state = np.linspace(0.5, 1, self.plan.state_size, dtype=np.float32)
        nbprop.save(path, NET, self.params, self.state)

    def read(self, path):
        net, params = nbprop.load(path)
        state = nbprop.load_state(path, self.plan)
        same = net == NET and params.tobytes() == self.params.tobytes() and state.tobytes() == self.state.tobytes()
        # A file whose checksum has gone is one of another program, and is taken at its word.
        assert same or (b'\\"digest\\"' not in path.read_bytes() and params.shape == (net.n_params,))


class Checkpoint:
    name, changes, longest = "run.checkpoint", (bytes_changed, tensors_changed), 3_000

    def __init__(self, path):
        self.params = train(path, nbprop.init(TRAINED, dtype=np.float32), False)

    def read(self, path):
        assert train(path, nbprop.init(TRAINED, dtype=np.float32), True).tobytes() == self.params.tobytes()


class Data:
    """What the command line predicts from; its errors may quote a line."""

    longest = 300_000

    def __init__(self, path):
        self.model = path.with_name("model.safetensors")
        nbprop.save(self.model, TRAINED, nbprop.init(TRAINED, dtype=np.float32))
        self.write(path)

    def read(self, path):
        out, said = path.with_name("out.npy"), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = cli.main(["predict", str(self.model), str(path), "-o", str(out)])
        if code != 0:
            raise ValueError(said.getvalue())
        rows = np.load(out)
        assert rows.ndim == 2
        assert rows.shape[1] == 2


class Csv(Data):
    name, changes = "data.csv", (bytes_changed,)

    def write(self, path):
        np.savetxt(path, X, "%.9g", delimiter=",", header="a,b,c", comments="")


class Npz(Data):
    name, changes = "data.npz", (bytes_changed, archive_changed, archive_changed)

    def write(self, path):
        np.savez(path, x=X, y=TARGET)


def attempt(reader, path):
    """Read a file: "right", or "refused" where one error of a known kind names it."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        reader.read(path)
    except (ValueError, OSError) as error:
        said = str(error)
    else:
        return "right"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    assert path.name in said, f"the file is not named: {said}"
    assert len(said) < reader.longest, f"{len(said)} characters: {said[:300]}"
    return "refused"


KINDS = (Model, Model, Checkpoint, Csv, Npz)


def main(folder, count, seed):
    def late(number, frame):
        raise Slow(f"more than {SECONDS} s")

    signal.signal(signal.SIGPROF, late)
    rng, found, readers = random.Random(seed), Counter(), []
    for kind in KINDS:
        path = Path(folder, kind.name)
        reader = kind(path)
        reader.read(path)  # right before it is changed; and what has to be compiled is
        readers.append((reader, path, path.read_bytes()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        reader, path, raw = readers[number % len(readers)]
        change = rng.choice(reader.changes)
        path.write_bytes(change(raw, rng))
        kept = path.read_bytes()
        try:
            found[type(reader).__name__, attempt(reader, path)] += 1
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert grown < MEGABYTES * 1000, f"{grown / 1000:.0f} MB more"
        except BaseException:
            Path(folder, "kept").write_bytes(kept)
            print(f"file {number} of seed {seed}: {reader.name}, {change.__name__}", file=sys.stderr)
            raise
    print(json.dumps({f"{kind} {how}": times for (kind, how), times in sorted(found.items())}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
