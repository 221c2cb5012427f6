"""`make test-gpu`: the device tests on this machine's GPU, then under compute-sanitizer; without a GPU it says so."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbprop.cuda

ROOT = Path(__file__).resolve().parents[2]
TESTS = [str(ROOT / "tests" / "cuda")]
# The sanitizer slows kernels down a hundredfold: values have been compared by then, it looks at one case of each kind.
_LAYERS = ("large", "fused_softmax", "conv2d_options", "attention_with_lengths", "blocks_of_rows", "lstm_last")
FEW = ["-k", " or ".join((*_LAYERS, "loss_softmax_cross_entropy", "inside", "fit_is_the_cpus", "fused_plan"))]


def main():
    """0 when everything has run and passed, 2 without a GPU."""
    problem = nbprop.cuda.missing()
    if problem or nbprop.cuda.simulated():
        print(f"Nothing was tested: {problem or 'NUMBA_ENABLE_CUDASIM is set'}")
        return 2
    pytest = [sys.executable, "-m", "pytest", "-q"]
    failed = subprocess.run([*pytest, *TESTS]).returncode != 0
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("compute-sanitizer was not found (it comes with NVIDIA's CUDA toolkit); races were not looked for")
        return 1
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "1", *pytest, *TESTS, *FEW]
        failed = subprocess.run(command).returncode != 0 or failed
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
