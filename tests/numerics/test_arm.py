"""Products on 64-bit ARM, judged by their assembly: nothing of it runs here, and llvmlite compiles for it anywhere."""

import os
import re
import shutil
import subprocess
import sys

import llvmlite.binding as llvm
import pytest

from support import ROOT

# Emits `block` for vectors of 16 bytes as Numba would on such a processor.
EMIT = """
import sys
import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from nbprop.compiler.simd import VECTOR_BYTES
from nbprop.numerics.gemm import microkernel

assert VECTOR_BYTES == 16
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
triple, processor = "aarch64-unknown-linux-gnu", sys.argv[1]
machine = llvm.Target.from_triple(triple).create_target_machine(cpu=processor, features="-sve,-sve2", opt=3)
for dtype, scalar in ((types.float32, ir.FloatType()), (types.float64, ir.DoubleType())):
    module = ir.Module()
    module.triple, module.data_layout = triple, str(machine.target_data)
    place, number, flag = scalar.as_pointer(), ir.IntType(64), ir.IntType(1)
    operands = [place, number, place, *[number] * 3, place, *[number] * 6, place, number, flag]
    operands += [place, number, number, flag]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), operands), "block")
    builder = ir.IRBuilder(function.append_basic_block())
    microkernel._emit_block(builder, types.CPointer(dtype), *function.args)
    builder.ret_void()
    parsed = llvm.parse_assembly(str(module))
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    print(machine.emit_assembly(parsed))
"""


def has_arm():
    try:
        llvm.initialize_all_targets()
        llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError:
        return False
    return True


pytestmark = pytest.mark.skipif(not has_arm(), reason="llvmlite was built without ARM")


@pytest.fixture(scope="module")
def loops():
    """{(dtype, rows, vectors, bytes of a vector): the lines of the loop over k} of all tiles, for neoverse-v2."""
    environment = os.environ | {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", EMIT, "neoverse-v2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {}
    for name, body in re.findall(r"^nbprop\.tile\.(\S+):\n(.*?)^\.Lfunc_end", done.stdout, re.M | re.S):
        rows, vectors, width, _, dtype = name.split(".")
        found[dtype, int(rows), int(vectors), int(width)] = loop_over_k(body)
    return found


def loop_over_k(body):
    """The lines from the label of the innermost loop to its branch back: the shortest span with multiply-adds."""
    lines = [line.strip() for line in body.splitlines() if not re.match(r"\s*\.p2align", line)]
    labels = {line.rstrip(":"): place for place, line in enumerate(lines) if re.match(r"\.LBB\w+:", line)}
    spans = []
    for place, line in enumerate(lines):
        target = re.match(r"b(?:\.\w+)?\s+(\.LBB\w+)|cbn?z\s+\w+, (\.LBB\w+)", line)
        start = labels.get(target[1] or target[2], place) if target else place
        span = [text for text in lines[start : place + 1] if not text.endswith(":")]
        if start < place and any(is_multiply_add(text) for text in span):
            spans.append(span)
    return min(spans, key=len)


def is_multiply_add(line):
    return line.startswith(("fmla", "fmadd"))


def test_no_tile_branches_or_spills_inside_its_loop(loops):
    """One branch, back; a multiply-add for each vector; and no accumulator on the stack."""
    assert len(loops) == 2 * (7 * 3 + 1)
    for (dtype, rows, vectors, width), loop in loops.items():
        where = dtype, rows, vectors, width
        assert sum(bool(re.match(r"b\.|b\s|cb|tb", line)) for line in loop) == 1, where
        assert sum(map(is_multiply_add, loop)) == rows * vectors, where
        assert not [line for line in loop if "[sp" in line], where


# Multiply-adds of vectors a cycle, in LLVM's model of each processor. That of apple-m1 is of an older core.
PEAKS = {"neoverse-n1": 2, "neoverse-v2": 4}


@pytest.mark.parametrize("processor", PEAKS)
def test_the_large_tile_is_near_the_processors_peak(loops, processor, tmp_path):
    """At least 90 % of the multiply-adds that the processor can begin, by the model of llvm-mca; LLVM 18 or newer."""
    names = [f"llvm-mca-{version}" for version in range(30, 17, -1)]
    program = next(filter(None, map(shutil.which, [os.environ.get("NBPROP_LLVM_MCA", ""), *names])), None)
    if program is None:
        pytest.skip("llvm-mca is not installed (Debian: apt-get install llvm-19)")
    for dtype in ("float32", "float64"):
        path = tmp_path / "loop.s"
        path.write_text("\n".join(loops[dtype, 12, 2, 16]) + "\n")
        command = [program, "-mtriple=aarch64", f"-mcpu={processor}", "-iterations=400", path]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        cycles = int(re.search(r"^Total Cycles: +(\d+)", told, re.M)[1]) / 400
        share = 24 / PEAKS[processor] / cycles
        assert share >= 0.9, (dtype, cycles)
