"""The ranks of a communicator as nbprop uses them: every call in step, and no rank left waiting for another's error.

All ranks run the same program. They meet before each common sum, in one small reduction: it tells whether a rank has
failed, wants to stop, or is about to do something else than the others. A rank whose own code raises goes to the next
such meeting with its error, so that all ranks end, each with the message, and none waits for ever.
"""

import contextlib
import signal
import threading
import zlib

import numpy as np

from nbprop.compiler.simd import VECTOR_BYTES
from nbprop.validation import shown

# What the ranks are about to do when they meet; two ranks that differ are told so.
GRADIENT, LOSS, PRODUCT, DECISION, END, ROWS, SETTINGS = range(1, 8)
_NAMES = dict(
    zip(range(1, 8), ("a gradient", "a loss", "a product", "a decision", "its end", "rows", "settings"), strict=True)
)

_FAILED, _SIGNAL, _KIND, _NOT_KIND, _SEEN, _NOT_SEEN = range(6)
_MARKED = 1024  # elements of a vector that its mark is made of


class RankError(RuntimeError):
    """Another rank failed: the message is the error of that rank.

    Attributes
    ----------
    ranks : dict of int to str; the error of each rank that failed
    """

    def __init__(self, message, ranks=None):
        super().__init__(message)
        self.ranks = ranks or {}


class Interrupted(KeyboardInterrupt):
    """A signal to one of the ranks, raised by all of them where they met; number: of the signal."""

    def __init__(self, number):
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


def check_comm(function, comm):
    """An intra-communicator of mpi4py."""
    mpi = _mpi(function, comm)
    if comm == mpi.COMM_NULL:
        raise ValueError(f"{function}: comm is MPI.COMM_NULL: this process is not one of its ranks")
    if comm.Is_inter():
        raise TypeError(f"{function}: comm must be an intra-communicator, such as MPI.COMM_WORLD")
    return comm


def _mpi(function, comm):
    module = type(comm).__module__
    if not module.startswith("mpi4py"):
        raise TypeError(
            f"{function}: comm must be a communicator of mpi4py, such as MPI.COMM_WORLD (`pip install nbprop[mpi]`), "
            f"got {shown(comm)}"
        )
    from mpi4py import MPI

    if not isinstance(comm, MPI.Comm):
        raise TypeError(f"{function}: comm must be a communicator of mpi4py, such as MPI.COMM_WORLD, got {shown(comm)}")
    if not MPI.Is_initialized() or MPI.Is_finalized():
        raise RuntimeError(
            f"{function}: MPI is not running in this process: call MPI.Init() first, and Finalize() last"
        )
    return MPI


_KEYVAL: list[int] = []


def _duplicate(comm):
    """(the communicator that nbprop's messages travel on, apart from the user's; a dict), kept with the user's.

    Both are made once, and the communicator is freed with the user's.
    """
    from mpi4py import MPI

    if not _KEYVAL:
        _KEYVAL.append(MPI.Comm.Create_keyval(delete_fn=lambda comm, keyval, own: own[0].Free()))
    own = comm.Get_attr(_KEYVAL[0])
    if own is None:
        own = comm.Dup(), {}
        comm.Set_attr(_KEYVAL[0], own)
    return own


class Ranks:
    """The ranks of a communicator, as one call uses them.

    function: the name in messages; rank, size: of this process; pieces: in how many every sum is cut; split: whether
    each rank holds its part of the data, rather than all of it; kept: what later calls with the communicator use again.
    """

    def __init__(self, function, comm, pieces, split):
        self.function = function
        self.comm, self.kept = _duplicate(check_comm(function, comm))
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        self.pieces, self.split = pieces, split
        self._words = np.zeros(6, np.int64)
        self._signals, self._depth = [], 0
        self._told: BaseException | None = None  # the error of this rank that the others know
        self._restore = contextlib.ExitStack()

    # -- meetings

    def meet(self, kind, seen=None, failed=False):
        """Wait for all ranks before something common, `kind`; `seen` is a vector that must be the same on all.

        Raises RankError if another rank has failed or does something else, Interrupted if any got a signal.
        """
        signalled = 0 if failed else max(self._signals, default=0)
        if self.size > 1:
            mark = 0 if seen is None else mark_of(seen)
            self._words[:] = failed, signalled, kind, -kind, mark, -mark
            self._reduce(self._words)
            words = self._words.tolist()
            if words[_FAILED]:
                if not failed:
                    self.tell(None)
                return
            self._check_same(words)
            signalled = words[_SIGNAL]
        if signalled:
            self._signals.clear()
            raise Interrupted(signalled)

    def _check_same(self, words):
        if words[_KIND] != -words[_NOT_KIND]:
            raise RankError(
                f"{self.function}: the ranks do different things: one comes to {_NAMES[words[_KIND]]}, another to "
                f"{_NAMES[-words[_NOT_KIND]]}; all must make the same calls with the same arguments"
            )
        if words[_SEEN] != -words[_NOT_SEEN]:
            raise RankError(
                f"{self.function}: the parameters differ between ranks; start all from the same (with the same seed), "
                "on processors of one kind, with the same versions of NumPy and SciPy"
            )

    def _reduce(self, words):
        """The largest of each word over all ranks."""
        from mpi4py import MPI

        self.comm.Allreduce(MPI.IN_PLACE, words, MPI.MAX)

    def tell(self, error):
        """Tell the others of this rank's error, or None; all ranks come here once one has failed. Raises RankError."""
        self._told = error
        said = self.comm.allgather(None if error is None else _one_line(error))
        failed = {rank: text for rank, text in enumerate(said) if text is not None}
        if error is None:
            first = min(failed)
            more = f" (and {len(failed) - 1} more ranks)" if len(failed) > 1 else ""
            raise RankError(f"{self.function}: rank {first} failed{more}: {failed[first]}", failed)

    @contextlib.contextmanager
    def together(self):
        """Run the body on all ranks: an error in one ends all of them, and Ctrl-C takes effect where they meet."""
        self._depth += 1
        try:
            with self._restore, self._deferred():
                yield self
                if self._depth == 1:
                    self.meet(END)
        except (RankError, Interrupted):
            raise  # all ranks raise it
        except BaseException as error:
            if self._depth == 1 and self.size > 1 and error is not self._told:
                self.meet(END, failed=True)
                self.tell(error)
            raise
        finally:
            self._depth -= 1

    @contextlib.contextmanager
    def round(self, kind, seen):
        """A meeting, and the common sum that follows it."""
        with self._deferred():
            self.meet(kind, seen)
            yield

    def any(self, decision):
        """Whether any rank decides so."""
        if self.size == 1:
            return bool(decision)
        self.meet(DECISION)
        word = np.array([bool(decision)], np.int64)
        self._reduce(word)
        return bool(word[0])

    def agree(self, settings):
        """Check that all ranks have the same settings, {name: text or number}; the error names those that differ."""
        if self.size == 1:
            return
        self.meet(SETTINGS)
        others = self.comm.allgather(settings)
        for name, mine in others[0].items():
            differing = [rank for rank, other in enumerate(others) if other.get(name) != mine]
            if differing:
                rank = differing[0]
                raise RankError(
                    f"{self.function}: {name} differs between ranks: {_short(mine)} on rank 0, "
                    f"{_short(others[rank].get(name))} on rank {rank}"
                )

    def gather(self, value):
        """The Python objects of all ranks, in order."""
        if self.size == 1:
            return [value]
        self.meet(SETTINGS)
        return self.comm.allgather(value)

    def rows(self, whole, counts):
        """Fill `whole` with the rows of all ranks: rank r has written its counts[r] rows, in order of rank."""
        if self.size > 1:
            self.spread(whole.reshape(-1).view(np.uint8), [int(count) * whole[:1].nbytes for count in counts])
        return whole

    def spread(self, raw, sizes):
        """Fill an array of bytes on all ranks: rank r has written its sizes[r] bytes, in order of rank."""
        from mpi4py import MPI

        self.comm.Allgatherv(MPI.IN_PLACE, [raw, (sizes, _starts(sizes)), MPI.BYTE])

    def collect(self, part, sizes):
        """On rank 0, the bytes of all ranks, sizes[r] of rank r, in order of rank; None on the others."""
        from mpi4py import MPI

        whole = np.empty(sum(sizes), np.uint8) if self.rank == 0 else None
        into = None if whole is None else [whole, (sizes, _starts(sizes)), MPI.BYTE]
        self.comm.Gatherv(part.view(np.uint8), into)
        return whole

    # -- Ctrl-C and the scheduler's signals

    def heed(self, *numbers):
        """Let these signals interrupt all ranks where they meet, until the end of `together`."""
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                before = signal.signal(number, lambda number, frame: self._signals.append(number))
                self._restore.callback(signal.signal, number, before)

    @contextlib.contextmanager
    def _deferred(self):
        """Hold Ctrl-C until the ranks meet: between two halves of a message it would leave the others waiting."""
        before = signal.getsignal(signal.SIGINT)
        ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
        if ours:
            signal.signal(signal.SIGINT, lambda number, frame: self._signals.append(number))
        try:
            yield
        finally:
            if ours:
                signal.signal(signal.SIGINT, before)


def _starts(sizes):
    return [sum(sizes[:rank]) for rank in range(len(sizes))]


def _one_line(error):
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")


def _short(value):
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def mark_of(vector):
    """A number that two different vectors rarely share, from some of their elements."""
    part = np.ascontiguousarray(vector[:: max(1, vector.size // _MARKED)])
    return zlib.crc32(part.tobytes())


def processor():
    """What the bits of a result depend on, beside the program: versions, and the width of vectors."""
    import numba
    import scipy

    from nbprop import __version__

    return {
        "the version of nbprop": __version__,
        "the version of Numba": numba.__version__,
        "the version of NumPy": np.__version__,
        "the version of SciPy": scipy.__version__,
        "the width of vectors": f"{VECTOR_BYTES} bytes",
    }
