"""`make bench-gpu`: each row compared with a peer or with the machine's limit, stored with device and date.

Times include the completion of the work: the stream is synchronized before and after. PyTorch, if installed, runs the
same work in true float32 (TF32 off), or beside bfloat16 with autocast to it, captured as a CUDA graph. Compilation and
warm-up are not counted. `--here` takes this checkout and what the interpreter has installed; `--json FILE` stores the
table there.
"""

import datetime
import functools
import itertools
import math
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "cuda"))
import here

if "--here" in sys.argv:
    here.prepare()

import numpy as np
from numba import cuda, float32

import nbprop
import nbprop.cuda
from harness.places import BENCHMARKS, RESULTS

REPEATS = 1 if nbprop.cuda.simulated() else 20


def seconds(run, wait, repeats=REPEATS):
    """The median time of run() and of what it enqueues."""
    run()
    wait()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        wait()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def layers(widths):
    """A regression network with tanh between its layers."""
    *hidden, out = widths[1:]
    return nbprop.network((widths[0],), *(nbprop.dense(n, activation="tanh") for n in hidden), nbprop.dense(out))


def our_step(widths, batch, precision=None):
    """Seconds of one recorded Adam step."""
    # The step's own workspace, not the plan's: a fused plan needs no room for the layers' values.
    net, rng = layers(widths), np.random.default_rng(0)
    plan = nbprop.plan(net, "mse", batch, np.float32, target="cuda", precision=precision)
    params = nbprop.cuda.to_device(nbprop.init(net, dtype=np.float32))
    x, target = (rng.standard_normal((batch, n)).astype(np.float32) for n in (widths[0], widths[-1]))
    step = nbprop.cuda.TrainingStep(plan, params, nbprop.cuda.to_device(x), nbprop.cuda.to_device(target))
    return seconds(step, lambda: nbprop.cuda.synchronize(step.stream))


def torch_step(widths, batch, bfloat16=False):
    """The same in PyTorch, captured as a CUDA graph; None if PyTorch or its GPU is missing."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.backends.cuda.matmul.allow_tf32 = False
    stack = []
    for n_in, n_out in itertools.pairwise(widths):
        stack += [torch.nn.Linear(n_in, n_out), torch.nn.Tanh()]
    model = torch.nn.Sequential(*stack[:-1]).cuda()
    optimizer = torch.optim.Adam(model.parameters(), capturable=True, fused=True)
    x, target = (torch.randn(batch, n, device="cuda") for n in (widths[0], widths[-1]))

    def step():
        optimizer.zero_grad(set_to_none=True)
        # Without its cache, which would outlive the recording.
        with torch.autocast("cuda", torch.bfloat16, enabled=bfloat16, cache_enabled=False):
            loss = torch.nn.functional.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return seconds(graph.replay, torch.cuda.synchronize)


def adam_bandwidth(n):
    """(bytes per second of an Adam step over n parameters, those of a copy); a step moves 28 bytes per parameter."""
    from nbprop.cuda import memory, toolkit
    from nbprop.cuda.optimizers import Update

    params, grads = nbprop.cuda.zeros(n), nbprop.cuda.zeros(n)
    update = Update("adam", params, grads, nbprop.cuda.optimizer_state("adam", n))
    update.prepare(0, [[1e-3, 0.9, 0.999, 1e-8, 0.0]], 0)
    step = seconds(lambda: update.enqueue(0), lambda: nbprop.cuda.synchronize(0))
    other = memory.empty(n, np.float32)
    copy = seconds(lambda: toolkit.copy(other.address, params.address, 4 * n), lambda: nbprop.cuda.synchronize(0))
    return 28 * n / step, 8 * n / copy


def layer_bandwidth(layer, rows, size):
    """(bytes per second of a layer that reads and writes each number once, those of a copy)."""
    from nbprop.cuda import memory, toolkit
    from nbprop.cuda.calls import Bound

    net = nbprop.network((size,), layer)
    plan = nbprop.plan(net, batch=rows, dtype=np.float32, target="cuda")
    params = nbprop.cuda.to_device(nbprop.init(net, dtype=np.float32)) if net.n_params else nbprop.cuda.zeros(0)
    x, y = nbprop.cuda.zeros((rows, size)), nbprop.cuda.empty((rows, size))
    bound = Bound("forward", plan, (params, x, None, None, nbprop.workspace(plan), None, None, y, *[None] * 5))
    bound.write_frame(0)
    wait = functools.partial(nbprop.cuda.synchronize, 0)
    # Without the copy of the layer's output to y.
    ours = seconds(lambda: bound.enqueue(0, skip="output"), wait)
    other = memory.empty(x.size, np.float32)
    copy = seconds(lambda: toolkit.copy(other.address, x.address, x.nbytes), wait)
    return 2 * x.nbytes / ours, 2 * x.nbytes / copy


THREADS_OF_A_BLOCK = 128


def thread_arrays(threads):
    """(y, x, params) of a 4-16-1 network in each thread, zeros, and the network."""
    net = layers((4, 16, 1))
    return [nbprop.cuda.zeros(size) for size in (threads, 4 * threads, net.n_params * threads)], net


def threads_with_networks(threads):
    """Evaluations per second of one 4-16-1 network in each thread."""
    arrays, net = thread_arrays(threads)
    forward, size, n_in = nbprop.cuda.forward_thread(net), nbprop.cuda.trace_size(net), 4

    @cuda.jit
    def evaluate(y, x, params, n):
        i = cuda.grid(1)
        if i < n:
            trace, inputs = cuda.local.array(size, float32), cuda.local.array(n_in, float32)
            output = cuda.local.array(1, float32)
            for k in range(n_in):
                inputs[k] = x[k * n + i]
            forward(output, inputs, params, i, n, trace)
            y[i] = output[0]

    arrays, block = [nbprop.cuda.as_numba(array) for array in arrays], min(THREADS_OF_A_BLOCK, threads)
    run = evaluate[-(-threads // block), block]
    return threads / seconds(lambda: run(*arrays, threads), lambda: nbprop.cuda.synchronize(0))


def threads_by_hand(threads):
    """The same for thread_network.cu, compiled by NVRTC; None in the simulator."""
    if nbprop.cuda.simulated():
        return None
    from cuda.core import Device, LaunchConfig, Program, ProgramOptions, launch

    device, source = Device(), (BENCHMARKS / "workloads" / "thread_network.cu").read_text(encoding="utf-8")
    device.set_current()
    options = ProgramOptions(std="c++17", arch=f"sm_{device.arch}")
    kernel = Program(source, code_type="c++", options=options).compile("cubin").get_kernel("evaluate")
    arrays, _ = thread_arrays(threads)
    stream, addresses = device.create_stream(), [array.address for array in arrays]
    grid = LaunchConfig(grid=-(-threads // THREADS_OF_A_BLOCK), block=THREADS_OF_A_BLOCK)
    return threads / seconds(lambda: launch(stream, grid, kernel, *addresses, threads), stream.sync)


def products(widths, rows):
    """[(multiply-adds, our seconds, cuBLASLt's or None)] of the product of a dense layer, by width."""
    from nbprop.cuda import blas, toolkit
    from nbprop.cuda.calls import Bound
    from nbprop.cuda.plan import DevicePlan

    found, crossover = [], blas.CROSSOVER
    installed = blas.library(toolkit.current_device()) is not None
    for width in widths:
        net, times = nbprop.network((width,), nbprop.dense(width)), []
        params = nbprop.cuda.zeros(net.n_params)
        x, y = nbprop.cuda.zeros((rows, width)), nbprop.cuda.empty((rows, width))
        for least in (sys.maxsize, 0) if installed else (sys.maxsize,):
            blas.CROSSOVER = least
            plan = DevicePlan(net, None, rows, np.dtype(np.float32), 1, "training")
            bound = Bound("forward", plan, (params, x, None, None, nbprop.workspace(plan), None, None, y, *[None] * 5))
            bound.write_frame(0)
            run = functools.partial(bound.enqueue, 0, skip="output")
            times.append(seconds(run, lambda: nbprop.cuda.synchronize(0)))
        blas.CROSSOVER = crossover
        found.append((rows * width * width, *times, *[None] * (2 - len(times))))
    return found


WORKS = {
    "64 wide, 5 hidden layers, batch 2^20": ((32, *[64] * 5, 4), 1 << 20),
    "4-32-32-1, batch 64": ((4, 32, 32, 1), 64),
    "784-1024-1024-10, batch 4096": ((784, 1024, 1024, 10), 4096),
}
SMALL = {"3-4-2, batch 5": ((3, 4, 2), 5)}
# precision -> what PyTorch runs beside it, of the first work: what comes nearest to its error.
PRECISIONS = {"bfloat16": "PyTorch, autocast to bfloat16, CUDA graph", "bfloat16x3": "PyTorch, float32, CUDA graph"}


def measure(simulated):
    """The rows of the table: name, figure, unit, the figure of a peer or limit (None if there is none), its name."""
    rows = []
    for name, (widths, batch) in (SMALL if simulated else WORKS).items():
        ours, theirs = our_step(widths, batch), torch_step(widths, batch)
        rows.append((f"{name}, Adam step", ours * 1e6, "us", theirs and theirs * 1e6, "PyTorch, CUDA graph"))
        samples = batch / ours / 1e6, theirs and batch / theirs / 1e6
        rows.append((f"{name}, samples trained", samples[0], "million/s", samples[1], "PyTorch, CUDA graph"))
    name, (widths, batch) = next(iter((SMALL if simulated else WORKS).items()))
    for precision, label in PRECISIONS.items():
        ours, theirs = our_step(widths, batch, precision), torch_step(widths, batch, precision == "bfloat16")
        samples = batch / ours / 1e6, theirs and batch / theirs / 1e6
        rows.append((f"{name}, {precision}", samples[0], "million/s", samples[1], label))
    ours, copy = adam_bandwidth(20 if simulated else 10**8)
    rows.append(("Adam over 1e8 parameters", ours / 1e9, "GB/s", copy / 1e9, "device copy"))
    for name, layer in (("layernorm", nbprop.layernorm()), ("softmax", nbprop.activation("softmax"))):
        ours, copy = layer_bandwidth(layer, *((2, 3) if simulated else (1 << 16, 1024)))
        rows.append((f"{name}, 65,536 rows of 1,024", ours / 1e9, "GB/s", copy / 1e9, "device copy"))
    count = 3 if simulated else 10**6
    ours, by_hand = threads_with_networks(count), threads_by_hand(count)
    label = "CUDA C by hand"
    rows.append(("1,000,000 threads, a 4-16-1 network each", ours / 1e6, "million/s", by_hand and by_hand / 1e6, label))
    for size, ours, theirs in products((4,), 2) if simulated else products((64, 128, 256, 512, 1024), 4096):
        name = f"dense product of 2^{math.log2(size):.0f} multiply-adds"
        rows.append((name, ours * 1e6, "us", theirs and theirs * 1e6, "cuBLASLt, blas.CROSSOVER"))
    return rows


def main():
    """Print and store the table; returns 2 without a GPU."""
    given = here.begin(__doc__.split("\n", 1)[0], "Nothing was measured")
    device = nbprop.cuda.versions()["device"].split(",")[0]
    rows = measure(simulated=False)
    for name, figure, unit, peer, label in rows:
        beside = f"   {label}: {peer:,.1f}" if peer else "   no peer installed" if label else ""
        print(f"{name:45} {figure:12,.1f} {unit}{beside}")
    date = datetime.date.today().isoformat()
    path = given.json or RESULTS / f"gpu-{'-'.join(device.lower().split())}-{date}.json"
    names = ("work", "figure", "unit", "peer", "peer_name")
    here.store(path, {"device": device, "rows": [dict(zip(names, row, strict=True)) for row in rows]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
