"""Descriptions and plans: memory, pickles, JSON, tying, and errors that name the layer and the nearest right name."""

import multiprocessing
import pickle

import numpy as np
import pytest

import nbprop
from nbprop.program import frame
from support import cases

dense, network = nbprop.dense, nbprop.network

LOWERED = {
    "mlp": (network((784,), dense(128, "relu"), dense(10)), "softmax_cross_entropy", 128),
    "tiny": (network((4,), dense(32, "tanh"), dense(32, "tanh"), dense(1)), "mse", 64),
    "deep": (network((64,), *[dense(64, "gelu") for _ in range(20)], dense(3)), "softmax_cross_entropy", 32),
    "funnel": (network((1000,), dense(500, "relu"), dense(50, "relu"), dense(1)), "mse", 100),
    "residual": (network((96,), *[nbprop.residual(dense(96, "silu"), dense(96)) for _ in range(6)]), "mse", 33),
    "concat": (network((40,), nbprop.concat(dense(30), [dense(50, "tanh"), dense(20)], []), dense(9)), "huber", 70),
    "large": (network((784,), dense(1024, "relu"), dense(1024, "relu"), dense(10)), "softmax_cross_entropy", 256),
}


STORIES = {
    "gradient": ("forward", "loss", "backward_input"),
    "jvp": ("jvp",),
    "hvp": ("hvp",),
    "gauss_newton": ("gauss_newton",),
}


def lifetimes(plan, story):
    """{buffer: (first op, last op)} of a story, each buffer's size, and the ops' count.

    What forward leaves for backward lives to the end: one forward serves several backwards.
    """
    first, last, sizes = {}, {}, {}
    order = [op for part in STORIES[story] for op in plan.parts.get(part, ())]
    forward = len(plan.parts["forward"]) if story == "gradient" else 0
    for time, op in enumerate(order):
        for buffer in op.operands:
            if buffer is not None and buffer.space == frame.WORK:
                first.setdefault(buffer, time)
                last[buffer], sizes[buffer] = time, buffer.size
                if first[buffer] < forward <= time:
                    last[buffer] = len(order)
    return first, last, sizes, len(order)


def alive_at_once(plan, story):
    first, last, sizes, count = lifetimes(plan, story)
    return max(
        sum(size for buffer, size in sizes.items() if first[buffer] <= time <= last[buffer]) for time in range(count)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", list(LOWERED))
def test_workspace_is_near_the_liveness_bound(name, dtype):
    """At most 10% above what the hungriest call must have alive at once, counted here anew (and never below it)."""
    net, loss, batch = LOWERED[name]
    plan = nbprop.plan(net, loss, batch, dtype)
    bound = max(alive_at_once(plan, story) for story in STORIES)
    assert bound <= plan.work_size <= 1.1 * bound
    assert plan.work_size <= 1.1 * plan.liveness_bound


@pytest.mark.parametrize("story", list(STORIES))
@pytest.mark.parametrize("name", list(LOWERED))
def test_buffers_that_live_together_lie_apart(name, story):
    net, loss, batch = LOWERED[name]
    plan = nbprop.plan(net, loss, batch, np.float32)
    first, last, sizes, _ = lifetimes(plan, story)
    buffers = list(sizes)
    for i, one in enumerate(buffers):
        assert 0 <= one.offset <= one.offset + one.size <= plan.work_size
        for other in buffers[:i]:
            together = first[one] <= last[other] and first[other] <= last[one]
            apart = one.offset + one.size <= other.offset or other.offset + other.size <= one.offset
            assert apart or not together


def test_a_plan_is_immutable_and_made_once():
    """Equal descriptions share a plan; its table cannot be written."""
    net = network((3,), dense(2))
    plan = nbprop.plan(net, "mse", 4)
    assert nbprop.plan(network((3,), dense(2)), "mse", 4) is plan
    with pytest.raises(ValueError, match="read-only"):
        plan.table[0] = 1


def loss_in_another_process(plan):
    params, x = nbprop.init(plan.net, seed=3), np.ones((2, 3))
    grads = np.empty_like(params)
    loss = nbprop.value_and_grad(plan, params, x, np.zeros((2, 2)), grads, nbprop.workspace(plan))
    return loss, grads.tobytes(), plan.threads, plan.batch


def test_plans_pickle():
    """By their description: a fresh process (spawn) makes the same table, and computes the same bits."""
    plan = nbprop.plan(cases.REGRESSOR, nbprop.huber(delta=0.5), 6, threads=2)
    copy = pickle.loads(pickle.dumps(plan))
    assert np.array_equal(copy.table, plan.table)
    assert (copy.net, copy.loss) == (plan.net, plan.loss)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(loss_in_another_process, (plan,)) == loss_in_another_process(plan)


@pytest.mark.parametrize("name", list(cases.NETWORKS))
def test_json_both_ways(name):
    net = cases.NETWORKS[name]
    again = nbprop.Network.from_json(net.to_json())
    assert again == net
    assert hash(again) == hash(net)
    assert again.to_json() == net.to_json()
    assert repr(again) == repr(net)
    assert eval(repr(net), vars(nbprop)) == net
    assert {path: view.shape for path, view in nbprop.views(again, np.empty(net.n_params)).items()} == {
        path: view.shape for path, view in nbprop.views(net, np.empty(net.n_params)).items()
    }


BROKEN_JSON = {
    "": "not the JSON",
    "{": "not the JSON",
    "[]": "not the JSON",
    "null": "not the JSON",
    "{}": "not the JSON",
    '{"input_shape": [3]}': "not the JSON",
    '{"input_shape": [3], "layers": []}': "at least one layer",
    '{"input_shape": [3], "layers": 3}': "layers",
    '{"input_shape": [3], "layers": {"kind": "dense"}}': "layer",
    '{"input_shape": 3.5, "layers": [{"kind": "dense", "units": 1}]}': "input_shape",
    '{"input_shape": ["a"], "layers": [{"kind": "dense", "units": 1}]}': "input_shape",
    '{"input_shape": [3], "layers": [3]}': "layer's JSON must be an object with a kind",
    '{"input_shape": [3], "layers": [{"kind": "dence", "units": 1}]}': "did you mean 'dense'",
    '{"input_shape": [3], "layers": [{"kind": ["dense"], "units": 1}]}': "layer kind",
    '{"input_shape": [3], "layers": [{"kind": "dense"}]}': "dense: its JSON does not fit",
    '{"input_shape": [3], "layers": [{"kind": "dense", "units": 1, "colour": 2}]}': "dense: its JSON does not fit",
    '{"input_shape": [3], "layers": [{"kind": "dense", "units": "1"}]}': "units must be a positive integer",
    '{"input_shape": [3], "layers": [{"kind": "dense", "units": 1, "share": 3}]}': "share",
    '{"input_shape": [3], "layers": [{"kind": "residual", "layers": 3}]}': "residual",
    '{"input_shape": [3], "layers": [{"kind": "concat", "branches": [3, 4]}]}': "concat",
}


@pytest.mark.parametrize("text", list(BROKEN_JSON))
def test_broken_json(text):
    """Whatever a file holds: a ValueError."""
    with pytest.raises(ValueError, match=BROKEN_JSON[text]):
        nbprop.Network.from_json(text)


DESCRIPTIONS = {
    "residual that changes the shape": (
        lambda: network((4,), dense(6), nbprop.residual(dense(5))),
        r"layer 1.residual on an input of shape \(6,\): its layers turn shape \(6,\) into \(5,\)",
    ),
    "concat of unequal positions": (
        lambda: network((2, 3), nbprop.concat([nbprop.flatten()], dense(3))),
        r"layer 0.concat on an input of shape \(2, 3\): branches give shapes .* all axes but the last must agree",
    ),
    "inside a residual": (
        lambda: network((3,), nbprop.residual(dense(3), nbprop.residual(dense(2)), dense(3))),
        r"layer 0.residual on an input of shape \(3,\): its layers turn shape \(3,\) into \(2,\)",
    ),
    "share of nothing": (
        lambda: network((3,), dense(3), dense(3, share="0.dence")),
        r"layer 1.dense: share='0.dence' finds no 0.dence.weight; did you mean '0.dense.weight'",
    ),
    "share of a later layer": (
        lambda: network((3,), dense(3, share="1.dense"), dense(3)),
        r"layer 0.dense: share='1.dense' finds no",
    ),
    "share of another shape": (
        lambda: network((3,), dense(4), dense(4, share="0.dense")),
        r"layer 1.dense: share='0.dense' needs shape \(4, 4\), but 0.dense.weight has \(3, 4\)",
    ),
    "slice beyond the axis": (
        lambda: network((4,), nbprop.slicing(2, 5)),
        r"layer 0.slicing on an input of shape \(4,\): slicing up to 5 needs a last axis of at least 5",
    ),
    "slice from the back": (lambda: nbprop.slicing(-2, 3), "needs 0 <= start < stop, got start -2, stop 3"),
    "empty slice": (lambda: nbprop.slicing(2, 2), "needs 0 <= start < stop, got start 2, stop 2"),
    "slice to the end": (lambda: nbprop.slicing(2, None), "slicing: stop must be an integer, got None"),
    "reshape to another size": (
        lambda: network((4, 3), nbprop.reshape((5, 2))),
        r"reshape to \(5, 2\) holds 10 numbers a sample, but \(4, 3\) holds 12",
    ),
    "reshape without extents": (lambda: nbprop.reshape(()), r"reshape: shape must be a tuple of positive integers"),
    "reshape, -1": (lambda: nbprop.reshape((3, -1)), "reshape: shape must be a positive integer, got -1"),
    "activation": (lambda: dense(3, "rleu"), r"activation: unknown name 'rleu'; did you mean 'relu'"),
    "activation layer": (
        lambda: nbprop.activation("sigmiod"),
        r"activation: unknown name 'sigmiod'; did you mean 'sigmoid'",
    ),
    "no name": (lambda: nbprop.activation(None), r"activation: unknown name None"),
    "init": (lambda: dense(3, init="he_norml"), r"init: unknown name 'he_norml'; did you mean 'he_normal'"),
    "far from all": (lambda: dense(3, "qqq"), r"known: .*identity.*relu"),
    "units": (lambda: dense(0), "units must be a positive integer, got 0"),
    "units, a float": (lambda: dense(2.0), "units must be a positive integer, got 2.0"),
    "units, a bool": (lambda: dense(True), "units must be a positive integer, got True"),
    "input": (lambda: network((0,), dense(1)), "input_shape must be a positive integer, got 0"),
    "no layers": (lambda: network((3,)), "at least one layer"),
    "one branch": (lambda: nbprop.concat(dense(2)), "concat needs at least two branches"),
    "delta": (lambda: nbprop.huber(-1), "delta must be a finite number above 0, got -1"),
    "delta, NaN": (lambda: nbprop.huber(float("nan")), "delta must be a finite number above 0"),
    "loss": (lambda: nbprop.plan(network((3,), dense(1)), "mes"), "loss: unknown name 'mes'; did you mean 'mse'"),
    "loss that does not fit": (
        lambda: nbprop.plan(network((3,), dense(3)), "gaussian_nll"),
        r"gaussian_nll: .* must be even; got \(3,\)",
    ),
    "batch": (lambda: nbprop.plan(network((3,), dense(1)), "mse", 0), "batch must be a positive integer, got 0"),
    "dtype": (
        lambda: nbprop.plan(network((3,), dense(1)), "mse", 1, np.float16),
        "dtype must be float32 or float64, got <class 'numpy.float16'>",
    ),
    "threads": (lambda: nbprop.plan(network((3,), dense(1)), threads=0), "threads must be a positive integer, got 0"),
    "axes": (lambda: nbprop.plan(network((1,) * 9, dense(1))), "up to 8 axes"),
    "views": (lambda: nbprop.views(network((3,), dense(1)), np.empty(5)), r"params must have shape \(4,\), got \(5,\)"),
}


@pytest.mark.parametrize("what", list(DESCRIPTIONS))
def test_descriptions_are_validated_where_they_are_written(what):
    make, message = DESCRIPTIONS[what]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: network((3,), "dense"), "layer 0 must be a layer such as nbprop.dense"),
        (lambda: network((3,), dense), "layer 0 must be a layer"),
        (lambda: network(None, dense(1)), "input_shape must be a tuple of integers"),
        (lambda: nbprop.residual(3), "residual takes layers, got int"),
        (lambda: nbprop.concat([3], dense(1)), "concat takes layers, got int"),
        (lambda: nbprop.plan("net"), "plan: net must be what nbprop.network"),
        (lambda: nbprop.workspace("plan"), "workspace: plan must be what nbprop.plan"),
        (lambda: nbprop.init("net"), "init: net must be what nbprop.network"),
        (lambda: nbprop.views(network((3,), dense(1)), [1.0] * 4), "params must be a NumPy array, got list"),
        (lambda: nbprop.views("net", np.zeros(4)), "views: net must be what nbprop.network"),
    ],
)
def test_wrong_types(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_weight_tying():
    """Tied arrays are stored once; their gradient is the sum over the uses (as two copies' gradients add up)."""
    rng = np.random.default_rng(6)
    tied = network((3,), dense(3, "tanh"), dense(3, "tanh", share="0.dense"), dense(3, share="0.dense.weight"))
    free = network((3,), dense(3, "tanh"), dense(3, "tanh"), dense(3))
    assert list(nbprop.views(tied, np.empty(tied.n_params))) == ["0.dense.weight", "0.dense.bias", "2.dense.bias"]
    weight, bias, last = rng.standard_normal(9), rng.standard_normal(3), rng.standard_normal(3)
    x, target = rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
    out = []
    for net, params in ((tied, [weight, bias, last]), (free, [weight, bias, weight, bias, weight, last])):
        plan, grads = nbprop.plan(net, "mse", 5), np.full(net.n_params, np.nan)
        nbprop.value_and_grad(plan, np.concatenate(params), x, target, grads, nbprop.workspace(plan))
        out.append(nbprop.views(net, grads))
    one, two = out
    weights = sum(two[f"{k}.dense.weight"] for k in range(3))
    cases.close("weight", one["0.dense.weight"], weights, 1e-14)
    cases.close("bias", one["0.dense.bias"], two["0.dense.bias"] + two["1.dense.bias"], 1e-14)
    cases.close("last bias", one["2.dense.bias"], two["2.dense.bias"], 1e-14)


def test_parameters_lie_in_network_order():
    """Each weight (in, out) row-major, then its bias, with no padding; views write through."""
    net = network((2,), dense(3), nbprop.residual(dense(3, bias=False)), nbprop.concat(dense(1), []))
    params = np.arange(net.n_params, dtype=np.float64)
    found = nbprop.views(net, params)
    assert list(found) == [
        "0.dense.weight",
        "0.dense.bias",
        "1.residual.0.dense.weight",
        "2.concat.0.0.dense.weight",
        "2.concat.0.0.dense.bias",
    ]
    assert np.array_equal(np.concatenate([view.reshape(-1) for view in found.values()]), params)
    assert np.array_equal(found["0.dense.weight"], [[0, 1, 2], [3, 4, 5]])
    found["0.dense.bias"][:] = -1
    assert (params[6:9] == -1).all()
