"""Training on chunks: windows, the order in them, resumed runs."""

import itertools
import sys
import threading
import time

import numpy as np
import pytest

import nbprop
from nbprop.training.chunks import windows_of
from nbprop.training.read_ahead import read_ahead
from support.cases import same_bits
from support.runs import LOSS, NET, Stopped, X, Y, start

WEIGHTS = np.random.default_rng(4).random(len(X)).astype(np.float32)


def cut(sizes, *arrays):
    """A function of an iterator of chunks of these sizes, which fills the same arrays again and again."""
    places = np.cumsum([0, *sizes])
    assert places[-1] == len(X)

    def chunks():
        for first, last in itertools.pairwise(places):
            parts = tuple(array[first:last].copy() for array in arrays)
            yield parts
            for part in parts:
                part[...] = 9

    return chunks


SIZES = [100, 1, 0, 99, 60, 40]


def run(chunks, params=None, **options):
    params = start() if params is None else params
    options = {"window": 128, "batch": 32, "epochs": 2, "seed": 3, "lr": 0.01} | options
    return params, nbprop.fit_chunks(NET, params, chunks, LOSS, **options)


def test_windows_are_the_samples_in_order():
    for sizes in ([300], SIZES, [30] * 10):
        windows = list(windows_of(cut(sizes, X, Y, WEIGHTS), 128))
        assert [len(x) for x, _, _ in windows] == [128, 128, 44]
        for k, array in enumerate((X, Y, WEIGHTS)):
            same_bits("samples", np.concatenate([window[k] for window in windows]), array)


def test_the_sizes_of_chunks_do_not_matter():
    whole, history = run([(X, Y)])
    for sizes in (SIZES, [30] * 10):
        again, other = run(cut(sizes, X, Y))
        same_bits("params", again, whole)
        assert other.loss == history.loss
    assert (history.stopped, history.epochs, history.steps) == ("epochs", 2, 2 * (4 + 4 + 2))
    assert history.loss[1] < history.loss[0]
    assert not np.array_equal(run([(X, Y)], seed=4)[0], whole)


def test_one_window_is_fit():
    """With the key that the seed, the epoch and the window's number make."""
    params = start()
    key = np.random.SeedSequence([3, 0, 0]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    history = nbprop.fit(NET, params, X, Y, LOSS, lr=0.01, batch=32, epochs=1, seed=int(key), weights=WEIGHTS)
    found, other = run([(X, Y, WEIGHTS)], window=300, epochs=1)
    same_bits("params", found, params)
    assert other.loss == pytest.approx(history.loss, rel=1e-12)


@pytest.mark.parametrize("fails", [2, 4, 7])
def test_a_resumed_run_has_the_bits_of_the_whole_one(tmp_path, fails):
    """Cut when the chunks fail at any place, in the first or the second epoch."""
    options = {"validation": (X[:50], Y[:50]), "metrics": ["accuracy"], "optimizer": "momentum", "epochs": 3}
    whole, history = run(cut(SIZES, X, Y), **options)
    calls = iter(range(100))

    def failing():
        for chunk in cut(SIZES, X, Y)():
            if next(calls) == fails:
                raise Stopped
            yield chunk

    path = tmp_path / "run"
    with pytest.raises(Stopped):
        run(failing, **options, checkpoint=path, checkpoint_seconds=0)
    resumed, again = run(cut(SIZES, X, Y), **options, checkpoint=path, resume=True)
    same_bits("params", resumed, whole)
    for name in ("loss", "validation_loss", "metrics", "steps", "lr"):
        assert getattr(again, name) == getattr(history, name)
    with pytest.raises(ValueError, match="of another run: its window differs"):
        run([(X, Y)], **options, checkpoint=path, resume=True, window=64)
    with pytest.raises(ValueError, match="begin with other samples than before"):
        run([(X[::-1], Y[::-1])], **options | {"epochs": 4}, checkpoint=path, resume=True)


def test_a_callback_stops():
    seen = []
    _, history = run([(X, Y)], epochs=9, callback=lambda history: seen.append(history.epochs) or len(seen) == 2)
    assert (history.stopped, history.epochs, seen) == ("callback", 2, [1, 2])


class _Count(nbprop.callbacks.Callback):
    """Notes what is called; asks to stop at a step."""

    every = 3

    def __init__(self, last=99):
        self.seen, self.last = [], last

    def begin(self, history):
        self.seen.append(("begin", history.epochs))

    def step(self, step, loss, lr):
        self.seen.append(("step", step))
        return step >= self.last

    def epoch(self, history):
        self.seen.append(("epoch", history.epochs))

    def end(self, history):
        self.seen.append(("end", history.epochs))


def test_callbacks_see_one_run():
    """Its steps are numbered on across windows; epochs are passes over the chunks."""
    called = _Count()
    run([(X, Y)], callbacks=[called])
    steps = [("step", step) for step in range(3, 20, 3)]
    assert called.seen == [("begin", 0), *steps[:3], ("epoch", 1), *steps[3:], ("epoch", 2), ("end", 2)]
    called = _Count(last=6)
    _, history = run([(X, Y)], callbacks=[called])
    assert (history.stopped, history.steps, called.seen[-2:]) == ("callback", 6, [("step", 6), ("end", 0)])


def test_patience_ends_with_the_best_epoch(tmp_path):
    """Also of a run that was resumed after it."""
    options = {"validation": (X[:50], Y[50:100]), "patience": 2, "epochs": 30}  # of wrong classes
    params, history = run([(X, Y)], **options)
    losses = history.validation_loss
    assert history.stopped == "patience"
    assert history.best_epoch == int(np.argmin(losses)) == len(losses) - 3
    assert history.best_loss == min(losses)
    best, _ = run([(X, Y)], **options | {"patience": None, "epochs": history.best_epoch + 1})
    same_bits("params", params, best)
    path = tmp_path / "run"
    run([(X, Y)], **options | {"epochs": history.best_epoch + 2}, checkpoint=path)
    resumed, again = run([(X, Y)], **options, checkpoint=path, resume=True)
    same_bits("resumed", resumed, best)
    assert (again.stopped, again.best_epoch, again.validation_loss) == ("patience", history.best_epoch, losses)


@pytest.mark.parametrize(
    ("chunks", "options", "words"),
    [
        (5, {}, "chunks must be a list, or a function"),
        ([], {}, "chunks gave no samples"),
        ([X], {}, "a chunk must be"),
        ([(X, Y[:9])], {}, "as many samples"),
        ([(X, Y), (X.astype(float), Y)], {"window": 400}, "one dtype"),
        ([(X.tolist(), Y)], {}, "chunks: x must be a NumPy array"),
        ([(X, Y)], {"average": 0.9}, "there is no average"),
        ([(X, Y)], {"patience": 2}, "patience needs validation="),
        ([(X, Y)], {"callbacks": [3]}, "callbacks must be Callbacks or functions, got int"),
        ([(X, Y)], {"schedule": "cosine"}, "schedule must be a function"),
        ([(X, Y)], {"window": 0}, "window must be a positive integer"),
        ([(X, Y)], {"optimizer": "schedule_free_adamw"}, "schedule_free_adamw is for fit"),
        ([(X, Y)], {"resume": True}, "resume=True needs checkpoint="),
    ],
)
def test_what_is_refused(chunks, options, words):
    params = start()
    with pytest.raises((TypeError, ValueError), match=words):
        run(chunks, params, **options)
    same_bits("params", params, start())


# -- reading ahead -------------------------------------------------------------------------------------------


def reading():
    return [thread for thread in threading.enumerate() if thread.name == "read ahead"]


def test_reading_ahead_changes_no_bit(tmp_path):
    """From lists and functions, and from a file; also resumed, where windows are passed over."""
    whole, history = run([(X, Y)], epochs=3)
    paths = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(paths[0], X), np.save(paths[1], Y)
    path = tmp_path / "run"
    for chunks in ([(X, Y)], cut(SIZES, X, Y), nbprop.file_chunks(paths, rows=50)):
        again, other = run(chunks, epochs=3, read_ahead=True)
        same_bits("params", again, whole)
        assert other.loss == history.loss
    part, _ = run(cut(SIZES, X, Y), epochs=3, checkpoint=path, callback=lambda history: True, read_ahead=True)
    same_bits("params", run(cut(SIZES, X, Y), part, epochs=3, checkpoint=path, resume=True, read_ahead=True)[0], whole)
    assert not reading()


def test_an_error_of_the_reading_thread_is_the_callers(tmp_path):
    """After as many windows as without the thread; of a file, with its name."""
    seen = []

    def failing():
        yield from itertools.islice(cut([30] * 10, X, Y)(), 9)
        raise Stopped

    for ahead in (False, True):
        params = start()
        with pytest.raises(Stopped):
            run(failing, params, read_ahead=ahead)
        seen.append(params)
    same_bits("params", *seen)
    paths = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(paths[0], X), np.save(paths[1], Y)
    chunks = nbprop.file_chunks(paths, rows=50)
    with open(paths[0], "r+b") as file:
        file.truncate(paths[0].stat().st_size // 2)
    with pytest.raises(ValueError, match=r"x\.npy: damaged: it ends \d+ bytes early"):
        run(chunks, read_ahead=True)
    assert not reading()


def test_one_window_is_read_ahead_and_no_more():
    taken, at_most = [], []

    def chunks():
        for k in range(10):
            taken.append(k)
            yield X[:30], Y[:30]

    for _ in read_ahead(chunks()):
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            time.sleep(0.01)
        at_most.append(len(taken))
        if len(at_most) == 3:
            break
    assert at_most == [2, 3, 4]
    assert not reading()


def test_an_interrupt_ends_the_thread():
    calls = []

    def interrupted(history):
        calls.append(reading())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([(X, Y)] * 9, callback=interrupted, read_ahead=True, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        run([(X, Y)] * 9, schedule=interrupted, read_ahead=True)
    assert calls[1], "the second interrupt came while the thread was there"
    assert not reading()


# A limit of 90 MB above what the process has before it trains on 200 MB: four windows of 4.5, and the thread's stack.
LIMITED = """
import pathlib, resource
import numpy as np, nbprop

net = nbprop.network((16,), nbprop.dense(1))
params = nbprop.init(net, dtype=np.float32)
paths = "x.npy", "y.npy"
for path, width in zip(paths, (16, 1)):
    np.lib.format.open_memmap(path, "w+", np.float32, (10_000, width))
options = {"lr": 0.01, "batch": 4096, "window": 65536, "read_ahead": True}
nbprop.fit_chunks(net, params, nbprop.file_chunks(paths), "mse", **options)
samples = 3_000_000
for path, width in zip(paths, (16, 1)):
    np.lib.format.open_memmap(path, "w+", np.float32, (samples, width))
status = pathlib.Path("/proc/self/status").read_text()
held = 1024 * int(status.partition("VmData:")[2].split()[0])
resource.setrlimit(resource.RLIMIT_DATA, (held + 90_000_000, resource.RLIM_INFINITY))
chunks = nbprop.file_chunks(paths)
history = nbprop.fit_chunks(net, params, chunks, "mse", **options)
assert history.steps == 45 * 16 + 13, history.steps
try:
    np.ones(samples * 16, np.float32)
except MemoryError:
    print("limited")
"""


@pytest.mark.more
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded(script):
    assert "limited" in script(LIMITED)
