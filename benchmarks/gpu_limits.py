"""The four limits of nbprop/cuda that are guesses, measured from both sides on this machine's GPU.

Up to which size one block walks a program, from which batch on a network is fused, how many blocks share a fused batch,
from which size on cuBLASLt makes a product. Prints a line for each size and stores all by `--json FILE`.
"""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import gpu
import here
import numpy as np

import nbprop
import nbprop.cuda
from nbprop.cuda import blas, fused, fused_kernels, oneblock
from nbprop.cuda.plan import DevicePlan
from nbprop.losses import loss_named

ALWAYS, NEVER = 1, 1 << 60


@contextlib.contextmanager
def limits(**values):
    """Other limits for the plans made and the steps recorded within; by the names in _WHERE."""
    before = {name: getattr(*_WHERE[name]) for name in values}
    for name, value in values.items():
        setattr(*_WHERE[name], value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(*_WHERE[name], value)


_WHERE = {
    "one_block": (oneblock, "MOST_ELEMENTS"),
    "fused_from": (fused, "FEWEST_SAMPLES"),
    "fused_blocks": (fused_kernels, "MOST_BLOCKS"),
}


def step_seconds(widths, batch):
    """Seconds of a recorded Adam step of a plan made now."""
    net, rng = gpu.layers(widths), np.random.default_rng(0)
    plan = DevicePlan(net, loss_named("mse"), batch, np.dtype(np.float32), 1, "training")
    x, target = (
        nbprop.cuda.to_device(rng.standard_normal((batch, n)).astype(np.float32)) for n in (widths[0], widths[-1])
    )
    step = nbprop.cuda.TrainingStep(plan, nbprop.cuda.to_device(nbprop.init(net, dtype=np.float32)), x, target)
    return gpu.seconds(step, lambda: nbprop.cuda.synchronize(step.stream))


def measure(simulated):
    """[(limit, its value, size, {way: microseconds})]."""
    rows = []

    def row(name, value, size, seconds):
        rows.append((name, value, size, {way: 1e6 * found for way, found in seconds.items() if found is not None}))

    for width in (3,) if simulated else (8, 16, 32, 64, 128, 256):
        batch, found = 5 if simulated else 64, {}
        for way, most in (("one block", NEVER), ("launches", 0)):
            with limits(one_block=most, fused_from=NEVER):
                found[way] = step_seconds((4, width, width, 1), batch)
        row("oneblock.MOST_ELEMENTS", oneblock.MOST_ELEMENTS, width * batch, found)
    for batch in (9,) if simulated else [1 << k for k in range(10, 18)]:
        widths, found = (3, 4, 2) if simulated else (32, 64, 64, 64, 4), {}
        for way, fewest in (("fused", ALWAYS), ("launches", NEVER)):
            with limits(one_block=0, fused_from=fewest):
                found[way] = step_seconds(widths, batch)
        row("fused.FEWEST_SAMPLES", fused.FEWEST_SAMPLES, batch, found)
    for blocks in (1, 2) if simulated else (66, 132, 264, 396, 528):
        widths, batch = ((3, 4, 2), 40) if simulated else ((32, 64, 64, 64, 4), 1 << 18)
        with limits(one_block=0, fused_from=ALWAYS, fused_blocks=blocks):
            found = {"fused": step_seconds(widths, batch)}
        row("fused_kernels.MOST_BLOCKS", fused_kernels.MOST_BLOCKS, blocks, found)
    for size, ours, theirs in gpu.products((4,), 2) if simulated else gpu.products((64, 128, 256, 512, 1024), 4096):
        row("blas.CROSSOVER", blas.CROSSOVER, size, {"nbprop": ours, "cuBLASLt": theirs})
    return rows


def main():
    """Print and store the sweep; 2 without a GPU."""
    given = here.begin(__doc__.split("\n", 1)[0], "Nothing was measured")
    rows = measure(simulated=False)
    for name, value, size, found in rows:
        print(f"{name} = {value}, at {size}: " + ", ".join(f"{way} {us:.1f} us" for way, us in found.items()))
    names = ("limit", "value", "size", "microseconds")
    here.store(given.json, {"rows": [dict(zip(names, row, strict=True)) for row in rows]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
