"""Work and memory grow with what is used, never with its square. Calls are counted: times prove nothing in tests."""

import cProfile
import gc
import tracemalloc

import numpy as np
import pytest

import nbprop
from nbprop.losses import loss_named
from nbprop.lowering import memory as placing
from nbprop.lowering import programs as lowering
from support.cases import CASES

DENSE = nbprop.dense(3, "tanh")


def dense_layers(n):
    return nbprop.network((3,), *[DENSE] * n)


SHAPES = {
    "dense": dense_layers,
    "normed": lambda n: nbprop.network((3,), *[nbprop.batchnorm()] * n),
    "shared": lambda n: nbprop.network((3,), DENSE, *[nbprop.dense(3, "tanh", share="0.dense")] * n),
    "residual": lambda n: nbprop.network((3,), nbprop.residual(*[DENSE] * n)),
    "concat": lambda n: nbprop.network((3,), nbprop.concat(*[DENSE] * n)),
}


def calls(function, *arguments):
    """How many calls a call makes, of Python's functions and of those in C."""
    profile = cProfile.Profile()
    profile.runcall(function, *arguments)
    return sum(entry.callcount for entry in profile.getstats())


def lowered(net):
    dtype = np.dtype(np.float64)
    lowering.lower(net, loss_named("mse"), 2, dtype, 1, "training")
    if all(layer.tangents for _, layer in net.nodes):
        lowering.lower_along("hvp", net, loss_named("mse"), 2, dtype, 1, "training")


def roundtrip(net):
    return nbprop.Network.from_json(net.to_json()) == net, repr(net), nbprop.summary(net)


def initial(net):
    return nbprop.views(net, nbprop.init(net))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("what", [lowered, roundtrip, initial])
def test_twice_the_layers_twice_the_calls(shape, what):
    few, many = (calls(lambda n=n: what(SHAPES[shape](n))) for n in (60, 120))
    assert many < 2.5 * few, f"{few} calls for 60 layers, {many} for 120"


def test_plans_and_files_of_many_layers(tmp_path):
    """The plan itself, whose kernels other tests compile as well, and its network in a file."""
    nets = dense_layers(100), dense_layers(200)
    nbprop.plan(dense_layers(2), "mse")
    few, many = (calls(nbprop.plan, net, "mse") for net in nets)
    assert many < 2.5 * few
    assert many < 1200 * 200, "calls for each layer; 5,090 took 2.8 s for a thousand layers"
    for k, net in enumerate(nets):
        nbprop.save(tmp_path / f"{k}", net, nbprop.init(net))
    few, many = (calls(nbprop.load, tmp_path / f"{k}") for k in range(2))
    assert many < 2.5 * few
    assert many < 180 * 200


def test_load_makes_no_second_copy(tmp_path):
    net = nbprop.network((1500,), nbprop.dense(1500))
    params = nbprop.init(nbprop.network((3,), DENSE)).repeat(-(-net.n_params // 12))[: net.n_params].copy()
    nbprop.save(tmp_path / "net", net, params)
    tracemalloc.start()
    try:
        _, found = nbprop.load(tmp_path / "net")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found == params).all()
    assert peak < 1.4 * params.nbytes


# -- where buffers lie: as the slow and obvious way has it


def placed_slowly(lives, sizes):
    """The offsets of buffers, the largest first, each at the lowest place that all who live with it leave free."""
    offsets = {}
    for k in sorted(range(len(lives)), key=lambda k: (-sizes[k], lives[k][0])):
        together = [j for j in offsets if lives[j][0] <= lives[k][1] and lives[k][0] <= lives[j][1]]
        offset = 0
        for j in sorted(together, key=offsets.get):
            if offsets[j] < offset + sizes[k] and offset < offsets[j] + sizes[j]:
                offset = offsets[j] + sizes[j]
        offsets[k] = offset
    return offsets


@pytest.mark.scaled
def test_buffers_lie_where_the_obvious_way_puts_them(rounds):
    rng = np.random.default_rng(0)
    for _ in range(rounds(200, 5000)):
        times, count = rng.integers(1, 40), rng.integers(1, 40)
        lives = [tuple(sorted(rng.integers(0, times, 2).tolist())) for _ in range(count)]
        sizes = rng.choice([0, 1, 2, 3, 8, 8, 20], count).tolist()
        order = sorted(range(count), key=lambda k: (-sizes[k], lives[k][0]))
        columns = [np.array([row[k] for k in order]) for row in (*zip(*lives, strict=True), sizes)]
        wanted = placed_slowly(lives, sizes)
        assert placing.assign_offsets(*columns, int(times)).tolist() == [wanted[k] for k in order], (lives, sizes)


def test_a_workspace_beyond_64_bits_is_refused():
    net = nbprop.network((2**31 - 1,), nbprop.activation("gelu"), nbprop.activation("gelu"))
    with pytest.raises(ValueError, match=r"plan: arrays of a batch of 2,147,483,647 .* make batch smaller"):
        nbprop.plan(net, batch=2**31 - 1, threads=1, dtype=np.float64)
    assert gc.isenabled()


def test_no_two_buffers_that_live_together_overlap():
    """Over the networks of the contract tests; and the bound is what lives at once."""
    for name, (net, loss) in CASES.items():
        found = lowering.lower(net, None if loss is None else loss_named(loss), 3, np.dtype(np.float32), 2, "training")
        order = ("forward", "copy_y", "value", "copy_dy", "loss", "backward_input")
        alive, time = {}, 0
        for op in (op for part in order for op in found.parts.get(part, ())):
            for buffer in op.operands:
                if buffer is not None and buffer.space == lowering.frame.WORK:
                    first, _ = alive.get(buffer, (time, time))
                    alive[buffer] = first, time
            time += 1
        pieces = list(alive.items())
        for k, (a, (first, last)) in enumerate(pieces):
            assert a.offset + a.size <= found.work_size, name
            for b, (other_first, other_last) in pieces[:k]:
                apart = a.offset + a.size <= b.offset or b.offset + b.size <= a.offset or not a.size * b.size
                assert apart or last < other_first or other_last < first, name
        most = max(sum(b.size for b, (f, to) in pieces if f <= t <= to) for t in range(time))
        assert most <= found.bound <= found.work_size, name
