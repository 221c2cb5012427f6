"""NCCL as nccl4py's `nccl.core` offers it, played over MPI in the simulator, whose device memory is the host's.

A call outside a group is carried out at once, and a send then waits for its receiver, as NCCL's may: ranks that send to
each other so wait for ever. The calls of a group are carried out together, at its end. Messages between two ranks are
matched by their order, and their sizes must agree.
"""

import contextlib
import ctypes
import sys
import types

import numpy as np
from mpi4py import MPI


class Communicator:
    """What `Communicator.init` of the stand-in makes."""

    def __init__(self, played, size, rank, name):
        assert (size, rank) == (played.over.size, played.over.rank)
        assert played.over.bcast(name) == name, "the ranks have different ids"
        self._played, self._sent, self._received = played, [0] * size, [0] * size

    def send(self, array, peer, *, stream):
        self._played.take("send", (_memory(array), peer, self._next(self._sent, peer)), stream)

    def recv(self, array, peer, *, stream):
        self._played.take("recv", (_memory(array), peer, self._next(self._received, peer)), stream)

    def broadcast(self, source, array, root, *, stream):
        assert source is array, "in place alone"
        self._played.take("broadcast", (_memory(array), root, 0), stream)

    @staticmethod
    def _next(counts, peer):
        counts[peer] += 1
        return counts[peer]


def _memory(array):
    """The bytes of an array on the device, as its interface describes them."""
    found = array.__cuda_array_interface__
    assert (found["typestr"], found["strides"], len(found["shape"])) == ("|u1", None, 1)
    assert found["shape"][0] > 0
    return np.frombuffer((ctypes.c_char * found["shape"][0]).from_address(found["data"][0]), np.uint8)


class Played:
    """The module. fails: a call that raises; groups: the calls of each, [(call, peer or root, bytes), ...]."""

    def __init__(self, over, fails=None, library="2.32.3"):
        self.over, self.groups, self.fails, self._open = over, [], fails, None
        played = self
        self.module = types.ModuleType("nccl.core")
        found = None if library is None else types.SimpleNamespace(version=library)
        self.module.get_version = lambda: types.SimpleNamespace(libnccl=found)
        self.module.get_unique_id = lambda: f"made by {over.rank}"
        self.module.group = self._group

        class Init(Communicator):
            made = 0

            @classmethod
            def init(cls, nranks, rank, unique_id):
                Init.made += 1
                return Communicator(played, nranks, rank, unique_id)

        self.module.Communicator = Init

    def take(self, name, given, stream):
        assert stream == 0, "the simulator's handle of a stream"
        if name == self.fails:
            raise RuntimeError("ncclSystemError: unhandled system error")
        if self._open is None:
            self.groups.append([(name, given[1], given[0].size)])
            self._carry_out([(name, *given)], alone=True)
        else:
            self._open.append((name, *given))

    @contextlib.contextmanager
    def _group(self):
        assert self._open is None
        self._open = []
        try:
            yield
        finally:
            calls, self._open = self._open, None
        self.groups.append([(name, peer, memory.size) for name, memory, peer, _ in calls])
        self._carry_out(calls, alone=False)

    def _carry_out(self, calls, alone):
        comm, waiting = self.over, []
        for name, memory, peer, number in calls:
            if name == "broadcast":
                comm.Bcast(memory, peer)
            elif name == "recv":
                waiting.append((comm.Irecv(memory, peer, number), memory.size))
        for name, memory, peer, number in calls:
            if name == "send" and alone:
                comm.Ssend(memory, peer, number)
            elif name == "send":
                waiting.append((comm.Issend(memory, peer, number), None))
        for request, size in waiting:
            status = MPI.Status()
            request.Wait(status)
            assert size is None or status.Get_count(MPI.BYTE) == size


@contextlib.contextmanager
def nccl(comm, **options):
    """Let `import nccl.core` find a stand-in between the ranks of a communicator."""
    played = Played(comm.Dup(), **options)
    before = {name: sys.modules.pop(name, None) for name in ("nccl", "nccl.core")}
    sys.modules["nccl"], sys.modules["nccl.core"] = types.ModuleType("nccl"), played.module
    try:
        yield played
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
