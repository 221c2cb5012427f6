"""How arrays in device memory travel between ranks: through host memory, by a CUDA-aware MPI, or by NCCL.

A transport moves bytes and adds nothing, so that no result depends on it:

    exchange(sends, receives, stream)   messages (array, peer, tag) of one node of the tree, all at once
    finish()                            wait until what was sent may be overwritten
    broadcast(array, root, stream)      an array of one rank to all
    spread(array, sizes, stream)        of an array, rank r has sizes[r] bytes, in order of rank; all get all

Arrays are of uint8. What is enqueued on the stream before a call is seen by it, and what is enqueued afterwards sees
what has arrived. NCCL's calls are work of the stream; for MPI, which knows no streams, the host waits for it first.
"""

import contextlib
import ctypes
import importlib
import sys
import traceback

import numpy as np

from nbprop.cluster.ranks import RankError, check_comm
from nbprop.cuda import toolkit
from nbprop.validation import choose

TRANSPORTS = ("host", "mpi", "nccl")
_KEPT = "NCCL's communicator"


def open_transport(ranks, name):
    """The transport of a call's ranks, once all have chosen the same one, and each a device of its own.

    name: one of TRANSPORTS; None: "mpi" where the MPI says that it takes device memory, else "host".
    """
    if name is not None:
        choose(f"{ranks.function}: transport", name, TRANSPORTS)
    chosen = ("mpi" if mpi_takes_device_memory() else "host") if name is None else name
    transport = {"host": ThroughHost, "mpi": ByMpi, "nccl": ByNccl}[chosen](ranks)
    ranks.agree({"transport": chosen} | toolkit.kind_of_device() | transport.versions)
    _check_devices(ranks)
    with unbroken(ranks):
        transport.connect()
    return transport


def mpi_takes_device_memory():
    """Whether the MPI says that it is CUDA-aware; None where it does not say."""
    from mpi4py import MPI

    # Of Open MPI and MPICH: mpi-ext.h, mpi.h. The extension module is linked to the library, and finds its symbols.
    query = getattr(ctypes.CDLL(MPI.__file__), "MPIX_Query_cuda_support", None)
    return None if query is None else bool(query())


def _check_devices(ranks):
    """Refuse ranks that share a device: NCCL would, and the others would wait for each other's kernels."""
    devices = ranks.gather(toolkit.identity_of_device())
    for rank, device in enumerate(devices):
        first = devices.index(device)
        if first != rank:
            raise RankError(
                f"{ranks.function}: ranks {first} and {rank} use the same device, {device}; call "
                "nbprop.cuda.use_device_of_rank(comm) before anything is put on a device, and start no more ranks on a "
                "machine than it has devices"
            )


def use_device_of_rank(comm):
    """Give each rank of a communicator a device of its own, which becomes the current one; call it first.

    The ranks of a machine (MPI's shared-memory split) take the devices that they see in order of rank, and none that an
    earlier one has: rank k of a machine takes number k where all see all, and number 0 where the scheduler shows each
    its own.

    Parameters
    ----------
    comm : communicator of mpi4py; all of its ranks make the call

    Returns
    -------
    int
        The number of the device, as this process counts.

    Raises
    ------
    RuntimeError
        On all ranks, if a machine has more of them than devices.
    """
    from mpi4py import MPI

    comm = check_comm("use_device_of_rank", comm)
    try:
        seen, problem = toolkit.visible_devices(), ""
    except Exception as error:  # the others wait for an answer
        seen, problem = [], f" ({' '.join(str(error).split())})"
    machine = comm.Split_type(MPI.COMM_TYPE_SHARED)
    choices, taken = machine.allgather((seen, problem)), []
    for devices, _ in choices:
        taken.append(next((device for device in devices if device not in taken), None))
    mine, lacking = taken[machine.rank], None
    if None in taken:
        there = len({device for devices, _ in choices for device in devices})
        said = next((text for _, text in choices if text), "")
        lacking = f"{MPI.Get_processor_name()} has {machine.size} ranks and {there} devices{said}"
    machine.Free()
    found = next((text for text in comm.allgather(lacking) if text), None)
    if found is not None:
        raise RuntimeError(f"use_device_of_rank: {found}; start at most one rank for each device of a machine")
    number = seen.index(mine)
    toolkit.select_device(number)
    return number


@contextlib.contextmanager
def unbroken(ranks):
    """End all ranks if one fails between two halves of a message: the others wait within a library, and hear nothing.

    The error is printed, since no rank is left to raise it.
    """
    try:
        yield
    except BaseException as error:
        if ranks.size == 1:
            raise
        traceback.print_exc()
        print(
            f"{ranks.function}: rank {ranks.rank} failed amid messages, which ends all ranks: {error}", file=sys.stderr
        )
        sys.stderr.flush()
        ranks.comm.Abort(1)
        raise


class _Bytes:
    """An array as MPI and NCCL take it. It names no stream: the order is kept by the transport."""

    def __init__(self, array):
        self.array = array  # kept alive
        self.__cuda_array_interface__ = {
            "shape": (array.nbytes,),
            "typestr": "|u1",
            "data": (array.address, False),
            "strides": None,
            "version": 3,
        }


class _Transport:
    """What the transports share; versions: what all ranks must have, by name."""

    name: str

    def __init__(self, ranks):
        self.ranks, self.comm = ranks, ranks.comm
        self.versions, self._waiting = {}, []

    def connect(self):
        """Do what needs all ranks, before the first message."""

    def finish(self):
        from mpi4py import MPI

        MPI.Request.Waitall([request for request, _ in self._waiting])
        self._waiting.clear()


class ThroughHost(_Transport):
    """Messages copied to host memory, sent by MPI, and copied to the device."""

    name = "host"

    def exchange(self, sends, receives, stream):
        for array, peer, tag in sends:
            host = _read(array, stream)
            self._waiting.append((self.comm.Isend(host, peer, tag), host))
        for array, peer, tag in receives:
            host = np.empty(array.nbytes, np.uint8)
            self.comm.Recv(host, peer, tag)
            toolkit.write(array.address, host, stream)

    def broadcast(self, array, root, stream):
        host = _read(array, stream) if self.ranks.rank == root else np.empty(array.nbytes, np.uint8)
        self.comm.Bcast(host, root)
        if self.ranks.rank != root:
            toolkit.write(array.address, host, stream)

    def spread(self, array, sizes, stream):
        host, first = np.empty(array.nbytes, np.uint8), sum(sizes[: self.ranks.rank])
        own = slice(first, first + sizes[self.ranks.rank])
        host[own] = _read(array[own], stream)
        self.ranks.spread(host, sizes)
        toolkit.write(array.address, host, stream)


class ByMpi(_Transport):
    """Messages between device memories, by an MPI that is CUDA-aware."""

    name = "mpi"

    def __init__(self, ranks):
        super().__init__(ranks)
        if mpi_takes_device_memory() is False and not toolkit.SIMULATED:
            raise RuntimeError(
                f'{ranks.function}: transport="mpi" needs a CUDA-aware MPI, and this one says that it is not '
                "(MPIX_Query_cuda_support); some ask for an option, such as Open MPI's `--mca opal_cuda_support 1`; "
                'transport="host" needs none'
            )

    def exchange(self, sends, receives, stream):
        toolkit.synchronize(stream)
        for array, peer, tag in sends:
            given = _Bytes(array)
            self._waiting.append((self.comm.Isend(_message(given), peer, tag), given))
        for array, peer, tag in receives:
            self.comm.Recv(_message(_Bytes(array)), peer, tag)

    def broadcast(self, array, root, stream):
        toolkit.synchronize(stream)
        self.comm.Bcast(_message(_Bytes(array)), root)

    def spread(self, array, sizes, stream):
        toolkit.synchronize(stream)
        self.ranks.spread(_Bytes(array), sizes)


class ByNccl(_Transport):
    """Messages by NCCL, as work of the stream; through nccl4py."""

    name = "nccl"

    def __init__(self, ranks):
        super().__init__(ranks)
        install = 'install both with: pip install "nbprop[cuda-nccl]"'
        try:
            self._core = importlib.import_module("nccl.core")
        except ImportError as error:
            raise RuntimeError(f'{ranks.function}: transport="nccl" needs nccl4py ({error}); {install}') from error
        found = self._core.get_version().libnccl
        if found is None:
            raise RuntimeError(f'{ranks.function}: transport="nccl" needs the library NCCL; {install}')
        self.versions = {"the version of NCCL": str(found.version)}
        # Before the ranks meet: they hear of an error.
        self._id = self._core.get_unique_id() if ranks.rank == 0 and _KEPT not in ranks.kept else None

    def connect(self):
        """Take the communicator that an earlier call has made, or make one."""
        if _KEPT not in self.ranks.kept:
            toolkit.select_device(toolkit.current_device())
            name = self.comm.bcast(self._id)
            self.ranks.kept[_KEPT] = self._core.Communicator.init(self.ranks.size, self.ranks.rank, name)
        self._nccl = self.ranks.kept[_KEPT]

    def exchange(self, sends, receives, stream):
        # In a group, since a send by itself may wait for its receiver, who may be sending, too. NCCL has no tags: the
        # messages between two ranks keep their order.
        def enqueue(handle):
            with self._core.group():
                for array, peer, _ in sends:
                    self._nccl.send(_Bytes(array), peer, stream=handle)
                for array, peer, _ in receives:
                    self._nccl.recv(_Bytes(array), peer, stream=handle)

        toolkit.call_library(enqueue, stream)

    def broadcast(self, array, root, stream):
        given = _Bytes(array)
        toolkit.call_library(lambda handle: self._nccl.broadcast(given, given, root, stream=handle), stream)

    def spread(self, array, sizes, stream):
        def enqueue(handle):
            first = 0
            with self._core.group():
                for root, size in enumerate(sizes):
                    if size:
                        part = _Bytes(array[first : first + size])
                        self._nccl.broadcast(part, part, root, stream=handle)
                    first += size

        toolkit.call_library(enqueue, stream)

    def finish(self):
        """Nothing: what is enqueued later comes later."""


def _read(array, stream):
    host = np.empty(array.nbytes, np.uint8)
    toolkit.read(array.address, host, stream)
    return host


def _message(given):
    from mpi4py import MPI

    return [given, MPI.BYTE]
