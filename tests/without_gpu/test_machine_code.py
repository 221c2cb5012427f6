"""The reader of machine code (support/sass.py), on a kernel written by hand; test_cuda_gate.py uses it on nbprop's."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support import sass
from support.cubins import assemble

# One loop with a 128-bit load, a multiply-add, and a store to shared memory; behind it a generic load and store.
PTX = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry walk(.param .u64 x, .param .u64 anywhere, .param .u32 count)
{
    .reg .pred %p; .reg .b32 %n, %k; .reg .b64 %rd<4>; .reg .f32 %f<6>;
    .shared .align 16 .b8 space[1024];
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [anywhere];
    ld.param.u32 %n, [count];
    cvta.to.global.u64 %rd1, %rd1;
    mov.u32 %k, 0;
    mov.f32 %f5, 0f00000000;
again:
    ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1];
    fma.rn.f32 %f5, %f1, %f2, %f5;
    st.shared.f32 [space], %f3;
    bar.sync 0;
    add.u64 %rd1, %rd1, 16;
    add.u32 %k, %k, 1;
    setp.lt.u32 %p, %k, %n;
    @%p bra again;
    ld.f32 %f1, [%rd2];
    add.f32 %f1, %f1, %f5;
    st.f32 [%rd2], %f1;
    ret;
}
"""
ARCHITECTURES = {"sm_80": 80, "sm_90a": 90, "sm_100": 100}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_instructions_are_counted(ptxas, name):
    cubin = assemble(ptxas, PTX, name).cubin
    (kernel,) = sass.kernels(cubin).items()
    counts = sass.counts(kernel[1])
    assert kernel[0] == "walk"
    assert sass.architecture(cubin) == ARCHITECTURES[name]
    assert counts["LD.32"] == counts["ST.32"] == 1
    assert counts["LDG.128"] == counts["FFMA"] == counts["STS.32"] == counts["BAR"]
    assert counts["LDG.32"] == counts["HMMA"] == counts["LDL.32"] == 0


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_loops_are_found(ptxas, name):
    (code,) = sass.kernels(assemble(ptxas, PTX, name).cubin).values()
    inner = sass.busiest(code)
    assert inner["FFMA"] == inner["LDG.128"] == inner["STS.32"] > 0
    assert inner["LD.32"] == inner["ST.32"] == inner["EXIT"] == 0
    assert inner["all"] < len(code)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_reader_agrees_with_nvdisasm(ptxas, name, tmp_path):
    """Names, widths and targets of branches."""
    import nvidia

    found = [shutil.which("nvdisasm"), *(p for folder in nvidia.__path__ for p in Path(folder).glob("*/bin/nvdisasm"))]
    found = [path for path in found if path]
    if not found:
        pytest.skip("needs NVIDIA's disassembler: pip install nvidia-cuda-nvdisasm")
    path = tmp_path / "cubin"
    path.write_bytes(assemble(ptxas, PTX, name).cubin)
    lines = subprocess.run([found[0], "-c", path], capture_output=True, text=True, check=True).stdout.splitlines()
    labels, texts = {}, []
    for line in lines:
        if label := re.match(r"(\.L\S+):", line):
            labels[label[1]] = len(texts)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@\S+\s+)?([^;]+);", line):
            texts.append(instruction[1])
    (code,) = sass.kernels(path.read_bytes()).values()
    assert len(code) == len(texts)
    for text, (said, target) in zip(texts, code, strict=True):
        name, *suffixes = text.split()[0].split(".")
        assert said.split(".")[0] == (name if name in sass.NAMES.values() else "")
        if name in sass.MEMORY:
            width = next((s for s in suffixes if s.strip("US") in ("8", "16", "64", "128")), "32").strip("US")
            assert said == f"{name}.{width}", text
        if name == "BRA":
            assert target == labels[re.search(r"`\((\S+)\)", text)[1]]
