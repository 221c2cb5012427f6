"""The machine code in a cubin, counted: which instructions, how wide their memory accesses are, and in which loops.

A cubin is an ELF file with a section `.text.<name>` for each kernel. From Volta on an instruction has 128 bits: its
opcode is in the lowest 12, of which the upper three say where the operands are; the width of a memory access is in bits
73-75; the distance of a branch, in units of 4 bytes from the next instruction, in bits 34-81, and from Hopper on with
another 8 bits below them in bits 16-23. NVIDIA documents none of it: `test_the_reader_agrees_with_nvdisasm` compares
with its disassembler, wherever that is installed.
"""

import struct
from collections import Counter
from typing import NamedTuple

BYTES = 16
# Lowest nine bits of the opcode: the name of the instruction.
NAMES = {
    0x020: "FMUL", 0x021: "FADD", 0x023: "FFMA", 0x028: "DMUL", 0x029: "DADD", 0x02B: "DFMA",
    0x03B: "LDSM", 0x03C: "HMMA", 0x108: "MUFU", 0x11D: "BAR", 0x147: "BRA", 0x14D: "EXIT",
    0x180: "LD", 0x181: "LDG", 0x183: "LDL", 0x184: "LDS", 0x185: "ST", 0x186: "STG", 0x187: "STL", 0x188: "STS",
    0x1AE: "LDGSTS",
}  # fmt: skip
MEMORY = {"LD", "LDG", "LDL", "LDS", "ST", "STG", "STL", "STS"}
WIDTHS = (8, 8, 16, 16, 32, 64, 128, 128)


class Instruction(NamedTuple):
    """Its name ("" if not in NAMES; "LDG.128" and the like for memory) and, of a branch, the index of its target."""

    name: str
    target: int


def kernels(cubin):
    """{name of a kernel: [Instruction, ...]} of a cubin."""
    return {name: _decoded(code, architecture(cubin)) for name, code in _sections(cubin)}


def architecture(cubin):
    """The architecture, 80 for sm_80, as CUDA 13's assembler leaves it in the header's flags."""
    return struct.unpack_from("<I", cubin, 48)[0] >> 8 & 0xFF


def counts(instructions):
    """How many instructions there are of each name; "all" is their number."""
    found = Counter(instruction.name for instruction in instructions)
    found["all"] = len(instructions)
    return found


def loops(instructions):
    """The instructions of each loop, from the target of a backward branch to the branch; innermost ones only."""
    spans = {(one.target, at) for at, one in enumerate(instructions) if one.name == "BRA" and 0 <= one.target < at}
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [instructions[begin : end + 1] for begin, end in sorted(inner)]


def busiest(instructions, name="FFMA"):
    """Counts of the innermost loop with most instructions of a name."""
    return max((counts(loop) for loop in loops(instructions)), key=lambda found: found[name], default=Counter())


def _sections(cubin):
    """(kernel, code) of each section of code."""
    assert cubin[:5] == b"\x7fELF\x02", "not a 64-bit ELF file"
    (start,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, start + k * size) for k in range(count)]
    strings = headers[names][4]
    for name, _, _, _, offset, length, *_ in headers:
        text = cubin[strings + name : cubin.index(b"\0", strings + name)].decode()
        if text.startswith(".text."):
            yield text.removeprefix(".text."), cubin[offset : offset + length]


def _decoded(code, architecture):
    found = []
    for at in range(0, len(code), BYTES):
        low, high = struct.unpack_from("<QQ", code, at)
        name, target = NAMES.get(low & 0x1FF, ""), -1
        if name in MEMORY:
            name += f".{WIDTHS[high >> 9 & 7]}"
        elif name == "BRA":
            distance = (low >> 34 | high << 30) & (1 << 48) - 1
            distance -= distance >> 47 << 48
            if architecture >= 90:
                distance = (distance << 8) + (low >> 16 & 0xFF)
            target = at // BYTES + 1 + distance * 4 // BYTES
        found.append(Instruction(name, target))
    return found
