"""Device code without a GPU: kernels to PTX, PTX to machine code, and what the assembler says of it."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

HOPPER = (9, 0, "a")


class Assembled(NamedTuple):
    """A kernel in machine code: its registers, its memory that is not as it should be, and the cubin's bytes."""

    registers: int
    wrong: list
    cubin: bytes


def assemble(ptxas, ptx, architecture):
    """A PTX with one kernel, through ptxas."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cubin"
        done = subprocess.run(
            [ptxas, f"-arch={architecture}", "-v", "-", "-o", str(path)], input=ptx, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return Assembled(*_account(done.stderr), path.read_bytes())


def link(nvjitlink, code, architecture):
    """A kernel's LTO-IR, through nvJitLink."""
    handle = nvjitlink.create(3, [f"-arch={architecture}", "-lto", "-verbose"])
    nvjitlink.add_data(handle, nvjitlink.InputType.LTOIR, code, len(code), "kernel")
    nvjitlink.complete(handle)
    log, cubin = (
        bytearray(nvjitlink.get_info_log_size(handle)),
        bytearray(nvjitlink.get_linked_cubin_size(handle)),
    )
    nvjitlink.get_info_log(handle, log)
    nvjitlink.get_linked_cubin(handle, cubin)
    return Assembled(*_account(log.decode()), bytes(cubin))


def _account(log):
    """(registers, what is not as it should be) of a kernel, as the assembler tells."""
    (registers,) = re.findall(r"Used (\d+) registers", log)
    memory = re.findall(r"(\d+) bytes (stack frame|spill stores|spill loads)", log)
    assert memory, log
    return int(registers), [f"{size} bytes {kind}" for size, kind in memory if size != "0"]


def to_ptx(kernel, dtype, cc=(8, 0)):
    """The PTX of a device kernel of nbprop's."""
    from numba import cuda

    from nbprop.cuda.kernels import SIGNATURE

    ptx, _ = cuda.compile_ptx(kernel.entry(dtype), SIGNATURE, cc=cc, launch_bounds=kernel.bounds)
    return ptx


def to_ltoir(function, signature, bounds=None):
    """A kernel's LTO-IR for an H100."""
    from numba import cuda

    kind = {"device": False, "abi": "numba", "output": "ltoir"}
    code, _ = cuda.compile(function, signature, cc=HOPPER, launch_bounds=bounds, **kind)
    return code
