"""The first half hour on a GPU: `python tests/cuda/smoke.py --here --json results.json`.

Steps from the copy of an array to a training, each in a process of its own, side by side: PASS, or its traceback.
Their float64 references are stored in smoke.npz (`--references` writes it on any machine), so that no kernel of the
CPU's is compiled on the device's time. Then, most telling first, until the minutes are spent: the suite in shards, the
benchmark, the sanitizer, and the limits that are guesses.
"""

import concurrent.futures
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import here

if "--here" in sys.argv:
    here.prepare()

import numpy as np

import nbprop
import nbprop.cuda

REFERENCES = Path(__file__).resolve().parent / "smoke.npz"
# What the sanitizer looks at in four cases; each is slowed down a hundredfold.
SANITIZED = "fused_softmax or lstm_last or attention_with_lengths or (test_a_fused_plan and sigmoid)"
_TINY = nbprop.cuda.simulated()


def regression(widths):
    """A network with tanh between its layers."""
    *hidden, out = widths[1:]
    return nbprop.network((widths[0],), *(nbprop.dense(n, activation="tanh") for n in hidden), nbprop.dense(out))


# name -> (network, samples), on a GPU; and in the simulator, in whose hands time is long.
SIZES = {
    "one block": (regression((4, 32, 32, 1)), 64),
    "fused": (regression((32, 64, 64, 4)), 20000),
    "training": (regression((4, 32, 32, 1)), 500),
}
TINY = {
    "one block": (regression((2, 3, 1)), 5),
    "fused": (regression((3, 5, 4, 2)), 19),
    "training": (regression((2, 3, 1)), 9),
}


def given(name, sizes=TINY if _TINY else SIZES):
    """(network, params, x, target) of a size, drawn from its seed, in float32."""
    net, samples = sizes[name]
    rng = np.random.default_rng(len(name))
    params = nbprop.init(net, seed=1, dtype=np.float32)
    x, target = (
        rng.standard_normal((samples, *shape)).astype(np.float32) for shape in (net.input_shape, net.output_shape)
    )
    return net, params, x, target


def computed(name, sizes):
    """(loss, gradient) in float64 on the CPU."""
    net, *arrays = given(name, sizes)
    plan, grads = nbprop.plan(net, "mse", len(arrays[1])), np.empty(net.n_params)
    loss = nbprop.value_and_grad(plan, *(a.astype(np.float64) for a in arrays), grads, nbprop.workspace(plan))
    return np.array([loss]), grads


def write_references(path=REFERENCES):
    """Store those of SIZES."""
    found = {}
    for name in ("one block", "fused"):
        found[f"{name}, loss"], found[f"{name}, gradient"] = computed(name, SIZES)
    np.savez_compressed(path, **found)


def reference(name):
    """(loss, gradient) in float64: as stored; in the simulator, which has sizes of its own, computed."""
    if _TINY:
        return computed(name, TINY)
    with np.load(REFERENCES) as stored:
        return stored[f"{name}, loss"], stored[f"{name}, gradient"]


def close(what, found, wanted, tolerance=1e-5):
    """Differences relative to the largest number."""
    error = np.abs(np.asarray(found) - wanted).max() / max(np.abs(wanted).max(), 1e-3)
    assert error <= tolerance, f"{what}: relative error {error:.2g}, allowed {tolerance:.2g}"
    print(f"{what}: relative error {error:.2g}")


def same(what, found, wanted):
    """The same bits."""
    differ = int((np.asarray(found) != np.asarray(wanted)).sum())
    assert np.asarray(found).tobytes() == np.asarray(wanted).tobytes(), f"{what}: {differ} numbers differ"


# -- the steps -----------------------------------------------------------------------------------------------


def copies():
    """To the device and back, within it, in slices, on streams; a host array that changes once it is written."""
    for dtype in (np.float32, np.float64, np.int64, np.uint8):
        for size in (0, 1, 1000, 1 << (10 if _TINY else 24)):
            host = np.arange(size).astype(dtype)
            array = nbprop.cuda.to_device(host)
            same(f"{dtype.__name__} {size}", array.copy().to_host(), host)
            same("a slice", array[size // 3 :].to_host(), host[size // 3 :])
            with nbprop.cuda.use_stream(nbprop.cuda.new_stream()):
                kept = host.copy()
                array.copy_from(kept)
                kept[:] = 0
                same("on a stream", array.to_host(), host)


def one_kernel():
    """Adam's, against its formula in float64."""
    rng, n = np.random.default_rng(0), 37 if _TINY else 100_003
    params, grads = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    on_device, state = nbprop.cuda.to_device(params), nbprop.cuda.optimizer_state("adam", n)
    m = v = np.zeros(n)
    wanted = params.astype(np.float64)
    for step in range(3):
        nbprop.adam(on_device, nbprop.cuda.to_device(grads), state, step, lr=0.01)
        m, v = 0.9 * m + 0.1 * grads, 0.999 * v + 0.001 * grads.astype(np.float64) ** 2
        wanted -= 0.01 * (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
    close("adam", on_device.to_host(), wanted, 1e-6)


def gradient(name, plan):
    """(loss, gradient) of a size on the device, from a workspace of NaN."""
    _, *arrays = given(name)
    arrays = [nbprop.cuda.to_device(a) for a in arrays]
    work = nbprop.cuda.to_device(np.full(plan.work_for("value_and_grad"), np.nan, np.float32))
    grads = nbprop.cuda.empty(plan.n_params)
    loss = nbprop.value_and_grad(plan, *arrays, grads, work)
    return loss, grads.to_host()


def one_block_gradient():
    """A small network's, in one launch."""
    net, _, x, _ = given("one block")
    plan = nbprop.plan(net, "mse", len(x), np.float32, target="cuda")
    assert plan.in_one_block(len(x))
    (loss, grads), wanted = gradient("one block", plan), reference("one block")
    close("loss", [loss], wanted[0])
    close("gradient", grads, wanted[1])


def device_plan(net, samples, fused, precision=None):
    """A plan that is fused, or is not, and never one block's."""
    from nbprop.cuda import fused as module
    from nbprop.cuda import oneblock
    from nbprop.cuda.plan import DevicePlan
    from nbprop.losses import loss_named

    before = module.FEWEST_SAMPLES, oneblock.MOST_ELEMENTS
    module.FEWEST_SAMPLES, oneblock.MOST_ELEMENTS = 1 if fused else 1 << 60, 0
    try:
        plan = DevicePlan(net, loss_named("mse"), samples, np.dtype(np.float32), 1, "training", precision=precision)
        assert (plan.fused is not None) == fused
    finally:
        module.FEWEST_SAMPLES, oneblock.MOST_ELEMENTS = before
    return plan


def fused_and_not():
    """A gradient in one launch and in many, at 20,000 samples; each twice the same."""
    net, _, x, _ = given("fused")
    wanted = reference("fused")
    for fused in (True, False):
        plan = device_plan(net, len(x), fused)
        loss, grads = gradient("fused", plan)
        close(f"loss, fused: {fused}", [loss], wanted[0])
        close(f"gradient, fused: {fused}", grads, wanted[1])
        same("the second time", gradient("fused", plan)[1], grads)


def with_tensor_cores(precision, tolerance):
    """A step: a gradient with tensor cores, fused and not, each twice the same; and recorded steps."""

    def step():
        net, params, x, target = given("fused")
        wanted = reference("fused")
        for fused in (True, False):
            plan = device_plan(net, len(x), fused, precision)
            loss, grads = gradient("fused", plan)
            close(f"loss, fused: {fused}", [loss], wanted[0], tolerance)
            close(f"gradient, fused: {fused}", grads, wanted[1], tolerance)
            if fused or not _TINY:
                same("the second time", gradient("fused", plan)[1], grads)
        plan = device_plan(net, len(x), True, precision)
        arrays = [nbprop.cuda.to_device(a) for a in (params, x, target)]
        train, losses = nbprop.cuda.TrainingStep(plan, *arrays, lr=0.01), []
        for _ in range(2 if _TINY else 300):
            train()
            losses.append(train.loss())
        assert losses[-1] < losses[0], losses

    return step


def training_step():
    """Recorded steps, 300 of them, bit for bit those of gradient and update called one by one; fused, too."""
    steps = 20 if _TINY else 300
    for name, fused in (("training", False), ("fused", True)):
        net, params, x, target = given(name)
        plan = device_plan(net, len(x), True) if fused else nbprop.plan(net, "mse", len(x), np.float32, target="cuda")
        ours, other, x, target = (nbprop.cuda.to_device(a) for a in (params, params, x, target))
        step = nbprop.cuda.TrainingStep(plan, ours, x, target, lr=0.01)
        grads, state = nbprop.cuda.empty(net.n_params), nbprop.cuda.optimizer_state("adam", net.n_params)
        work, losses = nbprop.workspace(plan), []
        for number in range(steps):
            losses.append(nbprop.value_and_grad(plan, other, x, target, grads, work))
            nbprop.adam(other, grads, state, number, lr=0.01)
            step()
        same(f"{name}: parameters, read without waiting", ours.to_host(), other.to_host())
        same(f"{name}: the last loss", np.float64(step.loss()), np.float64(losses[-1]))
        assert losses[-1] < losses[0], losses


def fit_with_early_stop():
    """Stops when the validation loss has not fallen for a while, and hands back the parameters of the best epoch."""
    net, params, x, target = given("training")
    ours, x, target = (nbprop.cuda.to_device(a) for a in (params, x, target))
    held_out = x[: len(x) // 3], target[: len(x) // 3]
    # A rate that grows until the loss goes up again.
    options = {"optimizer": "sgd", "schedule": lambda step: 1e-3 * 1.2**step, "patience": 3, "validation": held_out}
    history = nbprop.fit(net, ours, x, target, "mse", batch=len(x) // 2 or 1, epochs=60, **options)
    assert history.best_epoch < len(history.loss) - 1, "it never got worse: nothing was to be put back"
    plan = nbprop.plan(net, "mse", len(held_out[0]), np.float32, target="cuda")
    loss = nbprop.value(plan, ours, *held_out, nbprop.workspace(plan))
    close("validation loss of the parameters handed back", [loss], np.array([min(history.validation_loss)]), 1e-6)


class NotInstalled(Exception):
    """What a step needs is not here."""


def other_arrays():
    """PyTorch's and CuPy's, as they are: the bits of nbprop's own arrays, and what the library then makes of them."""
    net, params, x, target = given("one block")
    plan = nbprop.plan(net, "mse", len(x), np.float32, target="cuda")
    loss, grads = gradient("one block", plan)
    tried = []
    for name in ("torch", "cupy"):
        try:
            library = __import__(name)
        except ImportError:
            print(f"{name} is not installed")
            continue
        if name == "torch":
            arrays = [library.from_numpy(a).cuda() for a in (params, x, target, np.zeros_like(params))]
        else:
            arrays = [library.asarray(a) for a in (params, x, target, np.zeros_like(params))]
        found = nbprop.value_and_grad(plan, *arrays, nbprop.workspace(plan))
        same(f"{name}: the loss", np.float64(found), np.float64(loss))
        theirs = (2 * arrays[3]).cpu().numpy() if name == "torch" else (2 * arrays[3]).get()
        same(f"{name}: twice the gradient", theirs, 2 * grads)
        ours = nbprop.cuda.to_device(params)
        seen = library.from_dlpack(ours)
        same(f"{name}: nbprop's array", seen.cpu().numpy() if name == "torch" else seen.get(), params)
        tried.append(name)
    if not tried:
        raise NotInstalled("neither torch nor cupy")


def cublaslt():
    """A dense layer's products by the library, against float64."""
    from nbprop.cuda import blas, toolkit

    if blas.library(toolkit.current_device()) is None:
        raise NotInstalled("nvmath-python with cuBLAS")
    rng, (rows, n_in, n_out) = np.random.default_rng(2), (512, 384, 256)
    net = nbprop.network((n_in,), nbprop.dense(n_out, activation="relu"))
    plan = nbprop.plan(net, batch=rows, dtype=np.float32, target="cuda")
    launches = [launch for launch in plan.programs[0] if isinstance(launch, blas.ProductLaunch)]
    assert any(launch.is_large(rows) for launch in launches), "the product is not the library's"
    params = rng.standard_normal(net.n_params).astype(np.float32)
    x, dy = (rng.standard_normal((rows, n)).astype(np.float32) for n in (n_in, n_out))
    y, dx, grads = (nbprop.cuda.empty(shape) for shape in ((rows, n_out), (rows, n_in), net.n_params))
    there = [nbprop.cuda.to_device(a) for a in (params, x, dy)]
    nbprop.forward(plan, *there[:2], y, nbprop.workspace(plan))
    nbprop.vjp(plan, *there, grads, dx, nbprop.workspace(plan))
    w, b = params[: n_in * n_out].reshape(n_in, n_out).astype(np.float64), params[n_in * n_out :]
    z = x @ w + b
    dz = np.where(z > 0, dy, 0.0)
    close("forward", y.to_host(), np.maximum(z, 0))
    close("input gradient", dx.to_host(), dz @ w.T)
    close("gradient", grads.to_host(), np.concatenate([(x.T.astype(np.float64) @ dz).ravel(), dz.sum(0)]))


STEPS = {
    "copies": copies,
    "one kernel": one_kernel,
    "one-block gradient": one_block_gradient,
    "fused and not": fused_and_not,
    "bfloat16": with_tensor_cores("bfloat16", 1e-2),
    "bfloat16x3": with_tensor_cores("bfloat16x3", 1e-4),
    "training step": training_step,
    "fit with early stop": fit_with_early_stop,
    "torch and CuPy arrays": other_arrays,
    "cuBLASLt": cublaslt,
}


# -- running them --------------------------------------------------------------------------------------------


def run_step(name, timeout):
    """A step in a process of its own: {"status": "PASS", "FAIL" or "not installed", "seconds", "output"}."""
    began = time.monotonic()
    try:
        command = here.command(__file__, "--step", name)
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=here.ROOT)
        status = {0: "PASS", NOT_INSTALLED: "not installed"}.get(done.returncode, "FAIL")
        output = done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        status, output = "FAIL", f"still running after {timeout:.0f} s"
    return {"status": status, "seconds": round(time.monotonic() - began, 1), "output": output}


NOT_INSTALLED = 77


def one_step(name):
    """The exit status of a step in this process; an exception goes through, for its traceback."""
    try:
        STEPS[name]()
    except NotInstalled as lacking:
        print(f"needs {lacking}")
        return NOT_INSTALLED
    return 0


def run_steps(workers, timeout):
    """All steps; prints each as it ends."""
    found = {}
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        runs = {pool.submit(run_step, name, timeout): name for name in STEPS}
        for run in concurrent.futures.as_completed(runs):
            name, result = runs[run], run.result()
            print(f"{result['status']:13} {name} ({result['seconds']} s)", flush=True)
            if result["status"] == "FAIL":
                print(result["output"], flush=True)
            found[name] = result
    return {name: found[name] for name in STEPS}


def benchmark(timeout):
    """The rows of benchmarks/gpu.py."""
    return measured(here.ROOT / "benchmarks" / "gpu.py", timeout)


def limits(timeout):
    """The sweep of benchmarks/gpu_limits.py."""
    return measured(here.ROOT / "benchmarks" / "gpu_limits.py", timeout)


def measured(script, timeout):
    """What a script stores by --json."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        subprocess.run(here.command(script, "--here", "--json", path), timeout=timeout, cwd=here.ROOT, check=True)
        return json.loads(path.read_text(encoding="utf-8"))


def phases(workers):
    """[(name, function of the seconds that are left)], most telling first."""
    import on_gpu

    return [
        ("suite", lambda seconds: on_gpu.run(workers, seconds)),
        ("benchmark", benchmark),
        ("sanitizer", lambda seconds: on_gpu.sanitized(SANITIZED, seconds / len(on_gpu.TOOLS))),
        ("limits", limits),
    ]


def run_phases(found, later, deadline):
    """Run what there is time for, and add it to `found`; a phase that fails says why, and the next has its turn."""
    for name, phase in later:
        left = deadline - time.monotonic()
        if left < 30:
            found[name] = "not run: the minutes were spent"
        else:
            try:
                found[name] = phase(left)
            except Exception as error:
                found[name] = f"failed: {type(error).__name__}: {error}"
        print(f"{name}: {json.dumps(found[name])[:2000]}", flush=True)
        yield name


def main():
    """0 when every step has passed or lacks what it needs, 1 when one has failed, 2 without a GPU."""
    if "--step" in sys.argv:
        return one_step(sys.argv[sys.argv.index("--step") + 1])
    if "--references" in sys.argv:
        write_references()
        return 0
    options = {
        "minutes": {"type": float, "default": 25.0, "help": "of device time in all"},
        "workers": {"type": int, "default": min(8, here.cores()), "help": "processes side by side"},
        "steps-only": {"action": "store_true", "help": "no suite, benchmark, sanitizer and sweep"},
    }
    began, given = time.monotonic(), here.begin(__doc__.split("\n", 1)[0], "Nothing was tested", **options)
    deadline = began + 60 * given.minutes
    found = {"steps": run_steps(given.workers, deadline - time.monotonic())}
    here.store(given.json, found)
    if not given.steps_only:
        for _ in run_phases(found, phases(given.workers), deadline):
            here.store(given.json, found)
    return int(any(step["status"] == "FAIL" for step in found["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
