"""`make bench-gpu`: the GPU's table, each work beside a peer or the machine's limit, stored with device and date.

Times are of work that is done: a stream is synchronized before and after. PyTorch, where it is installed, runs the same
work in the same float32 (TF32 off), captured as a CUDA graph. Compilation and warm-up are not counted.
"""

import datetime
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from numba import cuda, float32

import nbprop
import nbprop.cuda

RESULTS = Path(__file__).resolve().parent / "results"
REPEATS = 1 if nbprop.cuda.simulated() else 20


def seconds(run, wait, repeats=REPEATS):
    """The median time of run(), with what it enqueued."""
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


def our_step(widths, batch):
    """Seconds of one recorded Adam step."""
    net, rng = layers(widths), np.random.default_rng(0)
    plan = nbprop.plan(net, "mse", batch, np.float32, target="cuda")
    params = nbprop.cuda.to_device(nbprop.init(net, dtype=np.float32))
    x, target = (rng.standard_normal((batch, n)).astype(np.float32) for n in (widths[0], widths[-1]))
    step = nbprop.cuda.TrainingStep(plan, params, nbprop.cuda.to_device(x), nbprop.cuda.to_device(target))
    return seconds(step, lambda: nbprop.cuda.synchronize(step.stream))


def torch_step(widths, batch):
    """The same in PyTorch, captured as a CUDA graph; None without it."""
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
        torch.nn.functional.mse_loss(model(x), target).backward()
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
    """(bytes a second of an Adam step over n parameters, those of a copy); 28 bytes a parameter go to and fro."""
    from nbprop.cuda import memory, toolkit
    from nbprop.cuda.optimizers import Update

    params, grads = nbprop.cuda.zeros(n), nbprop.cuda.zeros(n)
    update = Update("adam", params, grads, nbprop.cuda.optimizer_state("adam", n))
    update.prepare(0, [[1e-3, 0.9, 0.999, 1e-8, 0.0]], 0)
    step = seconds(lambda: update.enqueue(0), lambda: nbprop.cuda.synchronize(0))
    other = memory.empty(n, np.float32)
    copy = seconds(lambda: toolkit.copy(other.address, params.address, 4 * n), lambda: nbprop.cuda.synchronize(0))
    return 28 * n / step, 8 * n / copy


def threads_with_networks(threads):
    """Evaluations a second of one 4-16-1 network in each thread."""
    net = layers((4, 16, 1))
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

    shapes = threads, n_in * threads, net.n_params * threads
    arrays = [nbprop.cuda.as_numba(nbprop.cuda.zeros(size)) for size in shapes]
    block = min(128, threads)
    run = evaluate[-(-threads // block), block]
    return threads / seconds(lambda: run(*arrays, threads), lambda: nbprop.cuda.synchronize(0))


WORKS = {
    "64 wide, 5 hidden layers, batch 2^20": ((32, *[64] * 5, 4), 1 << 20),
    "4-32-32-1, batch 64": ((4, 32, 32, 1), 64),
    "784-1024-1024-10, batch 4096": ((784, 1024, 1024, 10), 4096),
}
SMALL = {"3-4-2, batch 5": ((3, 4, 2), 5)}


def measure(simulated):
    """The rows of the table: name, figure, unit, the same of a peer or limit (None: there is none), its name."""
    rows = []
    for name, (widths, batch) in (SMALL if simulated else WORKS).items():
        ours, theirs = our_step(widths, batch), torch_step(widths, batch)
        rows.append((f"{name}, Adam step", ours * 1e6, "us", theirs and theirs * 1e6, "PyTorch, CUDA graph"))
    ours, copy = adam_bandwidth(20 if simulated else 10**8)
    rows.append(("Adam over 1e8 parameters", ours / 1e9, "GB/s", copy / 1e9, "device copy"))
    count = threads_with_networks(3 if simulated else 10**6)
    rows.append(("1,000,000 threads, a 4-16-1 network each", count / 1e6, "million/s", None, ""))
    return rows


def main():
    """Print and store the table; 2 without a GPU."""
    problem = nbprop.cuda.missing()
    if problem or nbprop.cuda.simulated():
        print(f"Nothing was measured: {problem or 'NUMBA_ENABLE_CUDASIM is set'}")
        return 2
    device = cuda.get_current_device().name
    device = device.decode() if isinstance(device, bytes) else str(device)
    rows = measure(simulated=False)
    for name, figure, unit, peer, label in rows:
        beside = f"   {label}: {peer:,.1f}" if peer else "   no peer installed" if label else ""
        print(f"{name:45} {figure:12,.1f} {unit}{beside}")
    date = datetime.date.today().isoformat()
    path = RESULTS / f"gpu-{'-'.join(device.lower().split())}-{date}.json"
    names = ("work", "figure", "unit", "peer", "peer_name")
    content = {"device": device, "date": date, "rows": [dict(zip(names, row, strict=True)) for row in rows]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"stored in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
