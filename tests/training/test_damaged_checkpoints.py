"""Checkpoints of `fit` with a word, a bit, a type or an end that is not theirs: refused by a ValueError."""

import json
import struct

import numpy as np
import pytest

import nbprop
from nbprop.io.networks import digest
from nbprop.training import checkpoint as checkpoints
from support.cases import same_bits
from support.runs import NET, X, Y, start, train

HELD_OUT = X[:50], Y[:50]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The bytes of a checkpoint in the middle of a run, three epochs of six done."""
    path = tmp_path_factory.mktemp("written") / "run"
    train(epochs=3, validation=HELD_OUT, checkpoint=path)
    return path.read_bytes()


def header_of(content):
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(header, tensors):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def changed(content, change):
    """A checkpoint with its description changed and its checksum right."""
    header, tensors = header_of(content)
    told = json.loads(header["__metadata__"]["nbprop_checkpoint"])
    change(told)
    kinds = {"F32": np.float32, "F64": np.float64}
    arrays = {
        key: np.frombuffer(tensors[slice(*entry["data_offsets"])], kinds[entry["dtype"]]).reshape(entry["shape"])
        for key, entry in header.items()
        if key != "__metadata__"
    }
    told.pop("digest")
    told["digest"] = digest(arrays, told)
    header["__metadata__"]["nbprop_checkpoint"] = json.dumps(told)
    return with_header(header, tensors)


def refused(path, content, message="fit", **options):
    """A resumed run refuses the file by a ValueError that names it, and writes nothing."""
    path.write_bytes(content)
    params = start()
    with pytest.raises(ValueError, match=message) as caught:
        train(epochs=6, validation=HELD_OUT, checkpoint=path, resume=True, params=params, **options)
    assert str(path) in str(caught.value)
    same_bits("params", params, start())
    assert path.read_bytes() == content


def test_an_unchanged_description_is_accepted(tmp_path, written):
    path = tmp_path / "run"
    path.write_bytes(changed(written, lambda told: None))
    resumed, _ = train(epochs=6, validation=HELD_OUT, checkpoint=path, resume=True)
    same_bits("params", resumed, train(epochs=6, validation=HELD_OUT)[0])


HOSTILE = (-1_000_000_000, 10**9, 2**62, 10**30, 3, -1, True, 1.5, float("nan"), "5", None, [1], {})
PLACES = [*((("progress", word), word) for word in (*checkpoints.PLACE, *checkpoints.SUMS, "PENDING"))]
PLACES += [(("history", name), name) for name in ("loss", "validation_loss", "training_loss", "lr", "seconds")]
PLACES += [(("history", name), name) for name in ("best_epoch", "best_loss", "before")]
# Values that are right, or harmless, in this place.
FINE = {
    "EPOCH": (3,),
    "LOWEST_EPOCH": (-1,),
    "LOWEST": (-1_000_000_000, 10**9, 2**62, 3, -1, 1.5),
    "best_epoch": (None,),
    "best_loss": (-1_000_000_000, 10**9, 2**62, 3, -1, 1.5),
    "before": (10**9, 2**62, 3, 1.5),
}


@pytest.mark.parametrize(("place", "name"), PLACES)
def test_every_word_is_checked(tmp_path, written, place, name):
    """Each word in turn is given what it cannot be; the checksum is right, so that is not what refuses it."""
    for value in HOSTILE:
        if value in FINE.get(name, ()) and not isinstance(value, bool):
            continue

        def change(told, value=value):
            told[place[0]][place[1]] = value

        # Lengths that do not follow from PENDING, or from EPOCH, may be said of either.
        message = "" if value is True or value == [1] else f"damaged: {name} must be"
        refused(tmp_path / "run", changed(written, change), message or "damaged: .* must be")


def test_words_that_are_missing(tmp_path, written):
    for place, name in PLACES:
        refused(tmp_path / "run", changed(written, lambda told, p=place: told[p[0]].pop(p[1])), f"{name} must be")
    for part in ("identity", "progress", "history", "added"):
        refused(tmp_path / "run", changed(written, lambda told, part=part: told.pop(part)), f"{part} must be")
    for key in ("lr", "seed", "x", "network"):
        refused(
            tmp_path / "run", changed(written, lambda told, key=key: told["identity"].pop(key)), f"contain its {key}"
        )
    for rates in (None, 5, {}, {"steps": 10**30, "rates": []}, {"steps": 9, "rates": [[0]]}, {"steps": 9, "rates": 5}):
        refused(
            tmp_path / "run",
            changed(written, lambda told, rates=rates: told["identity"].update(lr=rates)),
            "does not contain its lr",
        )


@pytest.mark.scaled
def test_flipped_bits_and_cut_files(tmp_path, written, rounds):
    """Every flipped bit is found, or changes nothing."""
    rng, path = np.random.default_rng(1), tmp_path / "run"
    whole = train(epochs=6, validation=HELD_OUT)[0]
    for _ in range(rounds(150, 5000)):
        content = bytearray(written)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        params = start()
        try:
            train(epochs=6, validation=HELD_OUT, checkpoint=path, resume=True, params=params)
            message = ""
        except ValueError as error:
            message = str(error)
        assert message == "" or str(path) in message
        same_bits("params", params, start() if message else whole)
    for size in (0, 7, 8, 9, 200, len(written) - 10):
        refused(path, written[:size])
    refused(path, written + b"more")


def test_files_that_are_something_else(tmp_path, written):
    path = tmp_path / "run"
    header, tensors = header_of(written)

    def edited(**more):
        return with_header(header | more, tensors)

    params = header["params"]
    refused(path, edited(params=params | {"dtype": "I32"}), "params must be of F32 or F64, got I32")
    refused(path, edited(params=params | {"dtype": "BF16", "shape": [2, NET.n_params]}), "params must be of F32 or F64")
    refused(path, edited(params=params | {"shape": [10, NET.n_params // 10]}), "checksum")
    refused(path, edited(__metadata__={"nbprop_checkpoint": "[" * 100_000}), r"not a checkpoint of nbprop\.fit")
    refused(path, edited(__metadata__={"nbprop_checkpoint": "5"}), r"not a checkpoint of nbprop\.fit")
    refused(path, edited(__metadata__={"nbprop_checkpoint": '{"format": ' + "9" * 5000 + "}"}), "not a checkpoint")
    refused(path, edited(__metadata__={}), r"not a checkpoint of nbprop\.fit")
    refused(path, changed(written, lambda told: told.update(format=True)), "has format True")
    refused(path, changed(written, lambda told: told.update(format=99)), "has format 99")
    nbprop.save(path, NET, start())
    refused(path, path.read_bytes(), r"not a checkpoint of nbprop\.fit")
    train(epochs=1, checkpoint=path)
    refused(path, path.read_bytes(), "its watched is None")
