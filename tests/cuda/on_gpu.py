"""`make test-gpu`: the device tests on this machine's GPU, then under compute-sanitizer; without a GPU it says so.

Most of the time goes into compiling kernels, in every process anew: the tests are dealt to processes that run side by
side. `--here` needs nothing installed but what the GPU needs and pytest.
"""

import concurrent.futures
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import here

if "--here" in sys.argv:
    here.prepare()

TESTS = here.ROOT / "tests" / "cuda"
# The sanitizer slows kernels down a hundredfold: values have been compared by then, it looks at one case of each kind.
_LAYERS = ("large", "fused_softmax", "conv2d_options", "attention_with_lengths", "blocks_of_rows", "lstm_last")
FEW = " or ".join((*_LAYERS, "loss_softmax_cross_entropy", "inside", "fit_is_the_cpus", "fused_plan"))
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")


def pytest(*arguments, before=(), timeout=None):
    """Run pytest on the device tests in a process of its own; (exit status, output). -1: it ran out of time."""
    # Warnings of versions that nbprop was not tested with are no errors here.
    command = [*before, *here.command("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=here.ROOT, timeout=timeout)
    except subprocess.TimeoutExpired:
        return -1, f"still running after {timeout:.0f} s"
    return done.returncode, done.stdout + done.stderr


def collected():
    """The tests' names."""
    status, output = pytest("--collect-only", TESTS)
    names = [line for line in output.splitlines() if "::" in line and " " not in line.split("::")[0]]
    if status or not names:
        raise RuntimeError(f"the tests could not be collected:\n{output}")
    return names


def deal(names, shards):
    """The names in as many lists, none empty: each file's tests go round, since its kernels take the time."""
    return [dealt for dealt in (names[k::shards] for k in range(shards)) if dealt]


def outcomes(report):
    """({test: "passed", "failed" or "skipped"}, {test: why}) of a JUnit file."""
    found, why = {}, {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        found[name] = "passed"
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                found[name] = "skipped" if child.tag == "skipped" else "failed"
                why[name] = child.text or child.get("message") or ""
    return found, why


def run(shards, timeout=None):
    """Run the suite in `shards` processes; what happened, as JSON has it."""
    began, found, why, crashed = time.monotonic(), {}, {}, []
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(shards) as pool:
        parts = deal(collected(), shards)
        reports = [Path(folder) / f"{k}.xml" for k in range(len(parts))]
        given = zip(parts, reports, strict=True)
        runs = [pool.submit(pytest, f"--junitxml={report}", *names, timeout=timeout) for names, report in given]
        for names, report, (status, output) in zip(parts, reports, (run.result() for run in runs), strict=True):
            if report.exists():
                outcome, reasons = outcomes(report)
                found |= outcome
                why |= reasons
            if not report.exists() or status not in (0, 1):
                crashed.append({"status": status, "tests": names, "output": output[-4000:]})
    count = {kind: sum(value == kind for value in found.values()) for kind in ("passed", "failed", "skipped")}
    failures = {name: why[name] for name, value in found.items() if value == "failed"}
    return {"seconds": time.monotonic() - began, **count, "failures": failures, "crashed": crashed}


def sanitized(expression, timeout=None):
    """{tool: exit status} of compute-sanitizer on some tests; None where there is no sanitizer."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        return None
    found = {}
    for tool in TOOLS:
        before = [sanitizer, "--tool", tool, "--error-exitcode", "1"]
        found[tool], output = pytest(TESTS, "-k", expression, before=before, timeout=timeout)
        if found[tool]:
            print(output)
    return found


def main():
    """0 when everything has run and passed, 2 without a GPU."""
    shards = {"type": int, "default": min(8, here.cores()), "help": "processes side by side"}
    given = here.begin(__doc__.split("\n", 1)[0], "Nothing was tested", shards=shards)
    suite = run(given.shards)
    for name, text in suite["failures"].items():
        print(f"FAILED {name}\n{text}")
    for part in suite["crashed"]:
        print(f"a process of {len(part['tests'])} tests ended with {part['status']}:\n{part['output']}")
    print(
        ", ".join(f"{suite[kind]} {kind}" for kind in ("passed", "failed", "skipped")), f"in {suite['seconds']:.0f} s"
    )
    tools = sanitized(FEW)
    if tools is None:
        print("compute-sanitizer was not found (it comes with NVIDIA's CUDA toolkit); races were not looked for")
    here.store(given.json, {"tests": suite, "sanitizer": tools})
    wrong = suite["failed"] or suite["crashed"] or not suite["passed"] or tools is None or any(tools.values())
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
