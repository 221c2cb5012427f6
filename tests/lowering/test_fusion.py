"""The fusion pass: patterns that it finds, wherever they stand, what blocks them, and that the numbers stay.

Most of these only lower and compile nothing: they look at the names of kernels.
"""

import numpy as np
import pytest

import nbprop
from nbprop.layers.conv.pooled import conv_backward_argmax
from nbprop.losses import loss_named
from nbprop.lowering import fusion, programs
from nbprop.lowering.builder import Builder
from nbprop.lowering.plan import Plan
from nbprop.program import patterns
from nbprop.program.kernel import kernel

conv, dense, pool = nbprop.conv2d, nbprop.dense, nbprop.max_pool2d
TANH = conv(4, 3, padding=1, activation="tanh")
SHAPE = (6, 6, 4)


def network(*layers, shape=SHAPE):
    return nbprop.network(shape, *layers, nbprop.flatten(), dense(3))


# The function runs after the pool, on the quarter of the numbers that it leaves.
FOUND = {
    "conv": network(TANH, pool(2)),
    "pointwise": network(conv(4, 1, activation="relu"), pool(2)),
    "sequence": network(nbprop.conv1d(4, 3, activation="sigmoid"), nbprop.max_pool1d(2), shape=(9, 2)),
    "dense": network(dense(4, activation="elu"), nbprop.max_pool1d(2), shape=(9, 2)),
    "global": network(TANH, nbprop.global_max_pool()),
    "overlapping windows": network(TANH, pool(3, stride=1, padding=1)),
    "in a branch": network(nbprop.concat([TANH, pool(2)], [pool(2)])),
    "in a residual block": network(nbprop.residual(TANH, pool(3, stride=1, padding=1))),
    "nothing between in use": network(TANH, nbprop.dropout(0.5), pool(2)),
}
# What stands in the way; nothing is moved.
BLOCKED = {
    "a second consumer": network(TANH, nbprop.concat([], pool(3, stride=1, padding=1))),
    "a second consumer, in a residual block": network(TANH, nbprop.residual(pool(3, stride=1, padding=1))),
    "another pool": network(TANH, nbprop.concat(pool(2), pool(2))),
    "a layer between": network(TANH, nbprop.local_response_norm(3), pool(2)),
    "a sum between": network(nbprop.residual(TANH), pool(2)),
    "a mean": network(TANH, nbprop.avg_pool2d(2)),
    "a function that falls": network(conv(4, 3, activation="gelu"), pool(2)),
    "a function of the whole row": network(conv(4, 3, activation="softmax"), pool(2)),
    "a function with an output of its own": network(conv(4, 3), nbprop.activation("tanh"), pool(2)),
}


def lower(net, batch=2, mode="inference", watch=""):
    return programs.lower(net, loss_named("mse"), batch, np.dtype(np.float64), 1, mode, watch)


def lower_along(program, net):
    return programs.lower_along(program, net, loss_named("mse"), 2, np.dtype(np.float64), 1, "inference")


def names(ops):
    return [op.kernel.name.rpartition(".")[2] for op in ops]


def plainly(monkeypatch, function, *arguments):
    """What a function returns where nothing is fused."""
    with monkeypatch.context() as patched:
        patched.setattr(programs, "fuse", lambda build, *parts: parts)
        return function(*arguments)


def only(ops, name):
    (found,) = (op for op in ops if op.kernel.name.endswith(f".{name}"))
    return found


@pytest.mark.parametrize("name", FOUND)
def test_a_function_moves_behind_a_max_pool(name, monkeypatch):
    found, plain = lower(FOUND[name]), plainly(monkeypatch, lower, FOUND[name])
    forward, backward = found.parts["forward"], found.parts["backward_input"]
    before = plain.parts["forward"]
    assert sorted(names(forward)) == sorted(names(before))
    function, chosen = only(forward, "activation_inplace"), forward[names(forward).index("max_pool_forward")]
    assert names(before).index("activation_inplace") < names(before).index("max_pool_forward")
    assert forward.index(function) == forward.index(chosen) + 1
    assert function.operands == chosen.operands[:1]
    assert function.sizes[0] * 2 == chosen.operands[0].size
    derivative = only(backward, "activation_backward")
    spread = next(
        op for op in backward if op.kernel.name.endswith("max_pool_backward") and op.operands[2] in chosen.operands
    )
    assert backward.index(derivative) == backward.index(spread) - 1
    assert derivative.operands == (spread.operands[1], chosen.operands[0])
    assert found.work_size <= plain.work_size


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("program", ["jvp", "hvp", "gauss_newton"])
def test_so_do_its_tangents(name, program, monkeypatch):
    (ops,), (plain,) = (
        found.parts.values()
        for found in (lower_along(program, FOUND[name]), plainly(monkeypatch, lower_along, program, FOUND[name]))
    )
    assert [name for name in names(ops) if "activation" in name] == [
        name for name in names(plain) if "activation" in name
    ]
    pooled = {buffer for op in ops if "max_pool_" in op.kernel.name for buffer in op.operands[:2]}
    pooled |= {buffer for op in ops if op.kernel is conv_backward_argmax for buffer in op.operands[5:6]}
    functions = [op for op in ops if ".activation_" in op.kernel.name]
    assert len(functions) > 1
    for op in functions:
        assert pooled.issuperset(op.operands)


@pytest.mark.parametrize("name", BLOCKED)
@pytest.mark.parametrize("program", ["gradient", "jvp", "hvp"])
def test_what_blocks_it(name, program, monkeypatch):
    make = (lower, BLOCKED[name]) if program == "gradient" else (lower_along, program, BLOCKED[name])
    found, plain = make[0](*make[1:]), plainly(monkeypatch, *make)
    for part, ops in found.parts.items():
        moved = [(op.kernel, op.sizes) for op in ops if "activation" in op.kernel.name]
        assert moved == [(op.kernel, op.sizes) for op in plain.parts[part] if "activation" in op.kernel.name]


@pytest.mark.parametrize("watch", ["layers", "values"])
def test_a_watched_value_is_a_second_consumer(watch):
    forward = names(lower(FOUND["conv"], watch=watch).parts["forward"])
    assert forward.index("activation_inplace") < forward.index("max_pool_forward")


def weight_gradients(net, **options):
    backward = names(lower(net, **options).parts["backward_input"])
    return [name for name in backward if name.startswith("conv_backward_") and name != "conv_backward_input"]


def test_a_convolution_takes_the_gradient_of_a_max_pool():
    plain, fused = ["conv_backward_parameters"], ["conv_backward_argmax"]
    bare = conv(4, 3, padding=1)
    assert weight_gradients(network(bare, pool(2))) == fused
    assert weight_gradients(FOUND["conv"]) == fused, "after the function has moved"
    assert weight_gradients(network(nbprop.residual(bare, pool(3, stride=1, padding=1)))) == fused
    # Something else has a part in the gradient, or it is not that of the pool's own image.
    assert weight_gradients(network(bare, nbprop.concat([], pool(3, stride=1, padding=1)))) == plain
    assert weight_gradients(BLOCKED["a function that falls"]) == plain
    assert weight_gradients(network(bare, nbprop.reshape((3, 12, 4)), pool(2))) == plain
    assert weight_gradients(network(bare, nbprop.reshape((6, 6, 4)), pool(2))) == fused
    (ops,) = lower_along("hvp", FOUND["conv"]).parts.values()
    assert "conv_backward_argmax" not in names(ops)


# -- the pass by itself, which knows no layer


@kernel
def make(y, n, size):
    """y OUT (n, size)."""


@kernel
def double(y, x, n, size):
    """y = 2 x. y OUT, x IN (n, size)."""


@kernel
def take(z, y, n, size):
    """z OUT, y IN (n, size)."""


@kernel
def take_twice(z, x, n, size):
    """z OUT, x IN (n, size): `take` of what `double` makes."""


@pytest.fixture
def pair(monkeypatch):
    """(builder, fused(): the ops once a pair `double`, `take` has been fused, by name and barrier)."""
    monkeypatch.setattr(patterns, "PAIRS", {})
    monkeypatch.setattr(fusion, "PAIRS", patterns.PAIRS)

    @patterns.fused_pair(double, take)
    def rewrite(build, write, read):
        return build.op(take_twice, read.writes, write.operands[1:], read.sizes, barrier=read.barrier)

    build = Builder(nbprop.network((3,), dense(2)), 2, np.dtype(np.float64), 1)

    def fused():
        (ops,) = fusion.fuse(build, build.ops)
        return [(op.kernel.function.__name__, op.operands, op.barrier) for op in ops]

    return build, fused


def test_a_pair_is_fused_and_keeps_its_place(pair):
    build, fused = pair
    x, y, z, last = (build.buffer(6) for _ in range(4))
    build.label = "a layer"
    build.emit(make, (x,), (), (3,), barrier=False)
    build.emit(double, (y,), (x,), (3,), barrier=False)
    build.emit(take, (z,), (y,), (3,), barrier=False)
    build.emit(make, (last,), (), (3,))
    wanted = [
        ("make", (x,), False),
        ("double", (y, x), True),  # what follows is not what it was emitted before
        ("take_twice", (z, x), False),
        ("make", (last,), True),
    ]
    assert fused() == wanted


def test_no_pair_where_what_it_reads_has_changed(pair):
    build, fused = pair
    x, y, z = (build.buffer(6) for _ in range(3))
    for op, writes, reads in ((make, x, ()), (double, y, (x,)), (make, x, ()), (take, z, (y,))):
        build.emit(op, (writes,), reads, (3,))
    assert [name for name, _, _ in fused()] == ["make", "double", "make", "take"]


def test_no_pair_where_another_op_has_written_too(pair):
    build, fused = pair
    x, y, z = (build.buffer(6) for _ in range(3))
    for op, writes, reads in ((make, x, ()), (double, y, (x,)), (make, y, ()), (take, z, (y,))):
        build.emit(op, (writes,), reads, (3,))
    assert [name for name, _, _ in fused()] == ["make", "double", "make", "take"]


@kernel
def bend(x, n, size, code):
    """x = f(x). x INOUT (n, size)."""


@kernel
def bend_backward(d, x, n, size, code):
    """d = d f'. d INOUT, x IN (n, size)."""


@kernel
def choose(y, index, x, n, size):
    """y, index OUT, x IN."""


@kernel
def choose_tangent(y, index, x, n, size):
    """y OUT, index, x IN."""


@kernel
def choose_backward(x, y, index, n, size):
    """x OUT, y, index IN."""


# (kernel, its operands by name; those before ":" are written), in order; `choose` leaves one number of two.
FORWARD = ["make x :", "bend x :", "make u :", "bend_backward u : x", "choose y i : x", "choose_tangent v : i u"]
USE = ["take z : y", "take w : v", "make e :"]
BACKWARD = ["choose_backward d : e i", "bend_backward d : x", "take g : d"]
MOVED = [
    *["make x :", "make u :", "choose y i : x", "choose_tangent v : i u", "bend y :", "bend_backward v : y", *USE],
    *["bend_backward e : y", "choose_backward d : e i", "take g : d"],
]
STORY = [*FORWARD, *USE, *BACKWARD]


def moved(monkeypatch, story, code=1, outside=""):
    """The story once the pass has been over it; outside: names of arrays that are the caller's."""
    for name in ("SELECTIONS", "ELEMENTWISE", "PAIRS"):
        monkeypatch.setattr(patterns, name, {})
        monkeypatch.setattr(fusion, name, getattr(patterns, name))
    patterns.selection(choose, choose_tangent, choose_backward)
    patterns.elementwise(bend, bend_backward, never_falls=lambda size, code: code == 1)
    build = Builder(nbprop.network((3,), dense(2)), 2, np.dtype(np.float64), 1)
    buffers = {name: build.buffer(6 if name in "yvezw" else 12) for name in "xyiuvzwedgto"}
    buffers |= {name: build.outside("y", buffers[name].size) for name in outside}
    for line in story:
        name, *writes = line.partition(" :")[0].split()
        op, reads = globals()[name], line.partition(" :")[2].split()
        writes, reads = (tuple(buffers[name] for name in names) for names in (writes, reads))
        sizes = {"size": writes[0].size // 2, "code": code}
        build.emit(op, writes, reads, [sizes[size] for size in op.words])
    (ops,) = fusion.fuse(build, build.ops)
    for op in ops:
        assert op.sizes[0] * 2 == op.writes[0].size
    found, known = [], {buffer: name for name, buffer in buffers.items()}
    for op in ops:
        operands = [known[buffer] for buffer in op.operands]
        found.append(
            " ".join([op.kernel.function.__name__, *operands[: len(op.writes)], ":", *operands[len(op.writes) :]])
        )
    return found


def test_a_function_moves_with_its_derivatives(monkeypatch):
    assert moved(monkeypatch, STORY) == MOVED


# What is put in before which line of the story.
IN_THE_WAY = {
    "x is read in between": ("take t : x", "choose y i : x"),
    "x is read later": ("take t : x", "make e :"),
    "x is read in the backward pass": ("take t : x", "take g : d"),
    "the tangent is read in between": ("take t : u", "choose_tangent v : i u"),
    "the gradient is read before the derivative": ("take t : d", "bend_backward d : x"),
    "the gradient is added to": ("bend_backward d : t", "bend_backward d : x"),
    "the pooled numbers are read before the tangent's": ("take t : y", "choose_tangent v : i u"),
    "the pooled numbers are written again": ("make y :", "make e :"),
    "the pooled gradient is read again": ("take t : e", "take g : d"),
    "the places are read": ("take t : i", "take g : d"),
}


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_what_is_in_the_way(name, monkeypatch):
    line, before = IN_THE_WAY[name]
    at = STORY.index(before)
    story = [*STORY[:at], line, *STORY[at:]]
    assert moved(monkeypatch, story) == story


@pytest.mark.parametrize("outside", ["y", "e", "v"])
def test_nothing_moves_into_an_array_of_the_callers(outside, monkeypatch):
    """Nobody knows who else looks at it."""
    assert moved(monkeypatch, STORY, outside=outside) == STORY


def test_a_function_of_two_arrays_stays(monkeypatch):
    """f(x, u) is not the largest where x is."""
    story = ["make x :", "make u :", "bend_backward x : u", *STORY[3:]]
    assert moved(monkeypatch, story) == story


def test_a_tangent_that_is_taken_late_stays(monkeypatch):
    story = [*FORWARD[:3], "choose y i : x", "bend_backward u : x", "choose_tangent v : i u", *USE, *BACKWARD]
    assert moved(monkeypatch, story) == story


def test_a_function_that_falls_stays(monkeypatch):
    assert moved(monkeypatch, STORY, code=2) == STORY


def test_a_function_with_no_derivative_to_move_stays(monkeypatch):
    """A derivative of which only one half could move: the pool has no backward op, or the function none."""
    for gone in ("choose_backward d : e i", "bend_backward d : x", "bend_backward u : x"):
        story = [line for line in STORY if line != gone]
        assert moved(monkeypatch, story) == story


# -- numbers


@pytest.mark.parametrize("name", ["conv", "dense", "in a branch", "in a residual block"])
def test_fused_and_plain_plans_agree(name, monkeypatch):
    """Where no two numbers of a window are alike: the output's bits, and gradients but for the order of sums."""
    net, rng = FOUND[name], np.random.default_rng(0)
    description = net, loss_named("mse"), 3, np.dtype(np.float64), 1
    results = []
    params = nbprop.init(net, seed=1) + 0.1 * rng.standard_normal(net.n_params)
    x, dy, v = (
        rng.standard_normal((3, *net.input_shape)),
        rng.standard_normal((3, 3)),
        rng.standard_normal(net.n_params),
    )
    for plan in (Plan(*description), plainly(monkeypatch, Plan, *description)):
        work, y, grads, dx = nbprop.workspace(plan), np.empty((3, 3)), np.empty(net.n_params), np.empty_like(x)
        nbprop.forward(plan, params, x, y, work)
        nbprop.backward(plan, params, x, dy, grads, dx, work)
        product = np.empty(net.n_params)
        nbprop.hvp(plan, params, v, x, dy, product, work)
        results.append((y, grads, dx, product))
    fused, plain = results
    assert fused[0].tobytes() == plain[0].tobytes()
    for one, other in zip(fused, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)
