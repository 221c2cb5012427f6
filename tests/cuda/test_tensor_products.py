"""Products of dense layers with tensor cores (nbprop/cuda/tensor_products.py), and what `precision` applies to."""

import pickle

import numpy as np
import pytest
from bfloat16 import split, times

import nbprop
import nbprop.cuda
from nbprop.cuda import tensor_products
from nbprop.cuda.kernels import PLANES
from support.cases import close, same_bits

# Several tiles each way, with rests, and in the simulator two pieces of the batch; rows of fours, and others.
SIZES = {False: (35, 19, 18), True: (35, 20, 24)}
if not nbprop.cuda.simulated():
    SIZES = {False: (1000, 301, 198), True: (1000, 300, 200)}
LIMITS = {"bfloat16": 1e-2, "bfloat16x3": 3e-5}


def plan_of(net, batch, precision, loss=None):
    return nbprop.plan(net, loss, batch, np.float32, target="cuda", precision=precision)


@pytest.fixture
def loads_of_four(monkeypatch):
    """In the simulator, a list that gets an element for each load of four numbers."""
    found, read4_if = [], tensor_products.read4_if

    def counted(*given):
        found.append(1)
        read4_if(*given)

    if nbprop.cuda.simulated():
        monkeypatch.setattr(tensor_products, "read4_if", counted)
    return found


@pytest.mark.parametrize(
    ("precision", "in_fours"),
    [
        ("bfloat16", True),
        ("bfloat16x3", False),
        pytest.param("bfloat16", False, marks=pytest.mark.more),
        pytest.param("bfloat16x3", True, marks=pytest.mark.more),
    ],
)
def test_products_of_a_dense_layer_agree_with_their_model(precision, in_fours, loads_of_four):
    """Forward with the activation, both gradients; sums of dz are float32's. Accumulated, and the same bits twice."""
    samples, n_in, n_out = SIZES[in_fours]
    net = nbprop.network((n_in,), nbprop.dense(n_out, activation="tanh"))
    rng, planes = np.random.default_rng(7), PLANES[precision]
    params = (0.3 * rng.standard_normal(net.n_params)).astype(np.float32)
    x, dy = (rng.standard_normal((samples, size)).astype(np.float32) for size in (n_in, n_out))
    plan = plan_of(net, samples, precision)
    there = [nbprop.cuda.to_device(a) for a in (params, x, dy)]
    y, dx, grads = (nbprop.cuda.empty(shape) for shape in ((samples, n_out), (samples, n_in), net.n_params))
    work = nbprop.cuda.to_device(np.full(plan.work_size, np.nan, np.float32))
    nbprop.forward(plan, *there[:2], y, work)
    nbprop.vjp(plan, *there, grads, dx, work)
    assert bool(loads_of_four) == (in_fours and nbprop.cuda.simulated())

    weight, bias = nbprop.views(net, params).values()
    x_parts, w_parts = split(x, planes), split(weight, planes)
    wanted = np.tanh(times(x_parts, w_parts) + bias)
    close("y", y.to_host(), wanted, 1e-6)
    dz = (dy * (1 - y.to_host().astype(np.float32) ** 2)).astype(np.float32)
    dz_parts = split(dz, planes)
    wanted_dx, wanted_dw = times(dz_parts, [part.T for part in w_parts]), times([part.T for part in x_parts], dz_parts)
    near = 1e-6 if planes == 1 else 1e-5
    close("dx", dx.to_host(), wanted_dx, near)
    found = nbprop.views(net, grads.to_host())
    close("dw", found["0.dense.weight"], wanted_dw, near)
    close("db", found["0.dense.bias"], dz.astype(np.float64).sum(0), 1e-6)

    exact = [a.astype(np.float64) for a in (params, x, dy)]
    host, dx64, grads64 = nbprop.plan(net, batch=samples), np.empty((samples, n_in)), np.empty(net.n_params)
    nbprop.vjp(host, *exact, grads64, dx64, nbprop.workspace(host))
    close("dx, float64", dx.to_host(), dx64, LIMITS[precision])
    close("grads, float64", grads.to_host(), grads64, LIMITS[precision])
    if precision == "bfloat16":
        first = grads.to_host()
        nbprop.vjp(plan, *there, grads, dx, work, accumulate=True)
        close("accumulated", grads.to_host(), 2 * first.astype(np.float64), 1e-6)
        nbprop.vjp(plan, *there, grads, dx, work)
        same_bits("again", grads.to_host(), first)


CONVOLUTIONS = {
    "bfloat16": (nbprop.conv2d(18, 3, stride=2, padding="same"), (2, 5, 4, 3)),
    "bfloat16x3": (nbprop.conv2d(4, (2, 3), groups=2, dilation=2), (2, 5, 7, 4)),
}


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("bfloat16x3", marks=pytest.mark.more)])
def test_convolutions_are_those_of_rounded_factors(precision):
    """In float64, of factors that are rounded first: exactly those in bfloat16, but for the sums."""
    layer, (samples, *shape) = CONVOLUTIONS[precision]
    net, rng = nbprop.network(tuple(shape), layer), np.random.default_rng(8)
    plan, host = plan_of(net, samples, precision), nbprop.plan(net, batch=samples)
    sizes = net.n_params, (samples, *shape), (samples, *net.output_shape)
    arrays = params, x, dy = [rng.standard_normal(size).astype(np.float32) for size in sizes]
    there = [nbprop.cuda.to_device(a) for a in arrays]
    y, dx, grads = (nbprop.cuda.empty(a.shape) for a in (dy, x, params))
    work = nbprop.cuda.to_device(np.full(plan.work_size, np.nan, np.float32))
    nbprop.forward(plan, *there[:2], y, work)
    nbprop.vjp(plan, *there, grads, dx, work)
    assert "products in " + precision + ": 0.conv2d" in nbprop.summary(plan)

    rounded = params, x, dy = [sum(split(a, PLANES[precision])) for a in arrays]
    bias = nbprop.views(net, params)["0.conv2d.bias"]
    bias[:] = nbprop.views(net, arrays[0])["0.conv2d.bias"]
    wanted_y, wanted_dx, wanted = np.empty(dy.shape), np.empty(x.shape), np.empty(net.n_params)
    nbprop.forward(host, *rounded[:2], wanted_y, nbprop.workspace(host))
    nbprop.vjp(host, *rounded, wanted, wanted_dx, nbprop.workspace(host))
    nbprop.views(net, wanted)["0.conv2d.bias"][:] = arrays[2].astype(np.float64).sum((0, 1, 2))
    limit = {"bfloat16": 1e-6, "bfloat16x3": 3e-5}[precision]
    for name, found, right in (("y", y, wanted_y), ("dx", dx, wanted_dx), ("grads", grads, wanted)):
        close(name, found.to_host(), right, limit)


# (positions, features, heads, causal): in the simulator blocks of 32 rows and 16 columns, 16 features at a time.
ATTENTION = {"bfloat16": (17, 8, 1, True), "bfloat16x3": (33, 18, 1, True)}


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("bfloat16x3", marks=pytest.mark.more)])
def test_attention_agrees_with_float64(precision):
    """Two samples, the second one shorter; with features of a head in two parts, and not."""
    positions, width, heads, causal = ATTENTION[precision]
    net, rng = nbprop.network((positions, width), nbprop.attention(heads, causal=causal)), np.random.default_rng(9)
    plan, host = plan_of(net, 2, precision), nbprop.plan(net, batch=2)
    params = (0.3 * rng.standard_normal(net.n_params)).astype(np.float32)
    x, dy = (rng.standard_normal((2, positions, width)).astype(np.float32) for _ in range(2))
    lengths = np.array([positions, positions // 2])
    there = [nbprop.cuda.to_device(a) for a in (params, x, dy)]
    y, dx, grads = (nbprop.cuda.empty(a.shape) for a in (dy, x, params))
    work = nbprop.cuda.to_device(np.full(plan.work_size, np.nan, np.float32))
    nbprop.forward(plan, *there[:2], y, work, lengths=nbprop.cuda.to_device(lengths))
    nbprop.vjp(plan, *there, grads, dx, work, lengths=nbprop.cuda.to_device(lengths))
    exact = [a.astype(np.float64) for a in (params, x, dy)]
    wanted_y, wanted_dx, wanted = np.empty(dy.shape), np.empty(x.shape), np.empty(net.n_params)
    nbprop.forward(host, *exact[:2], wanted_y, nbprop.workspace(host), lengths=lengths)
    nbprop.vjp(host, *exact, wanted, wanted_dx, nbprop.workspace(host), lengths=lengths)
    for name, found, right in (("y", y, wanted_y), ("dx", dx, wanted_dx), ("grads", grads, wanted)):
        close(name, found.to_host(), right, LIMITS[precision])


MIXED = nbprop.network((2, 3), nbprop.dense(4), nbprop.layernorm(), nbprop.flatten(), nbprop.dense(2, "gelu"))


def test_a_summary_names_what_runs_in_float32():
    text = nbprop.summary(plan_of(MIXED, 3, "bfloat16", "mse"))
    assert "float32, products in bfloat16, 1 thread" in text
    assert "products in bfloat16: 0.dense, 3.dense" in text
    (line,) = [line for line in text.splitlines() if line.startswith("all in float32: ")]
    assert "1.layernorm" in line
    assert "dense" not in line
    assert "bfloat16" not in nbprop.summary(nbprop.plan(MIXED, "mse", 3, np.float32, target="cuda"))


def test_a_plan_keeps_its_precision():
    plan = plan_of(MIXED, 3, "bfloat16x3")
    assert plan.precision == "bfloat16x3"
    assert repr(plan).endswith('target="cuda", precision="bfloat16x3")')
    assert pickle.loads(pickle.dumps(plan)).precision == "bfloat16x3"
    assert plan_of(MIXED, 3, "bfloat16x3") is plan is not plan_of(MIXED, 3, "bfloat16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bfloat16"}, "plan: precision='bfloat16' needs target=\"cuda\", got target='cpu'"),
        ({"precision": "bfloat16x3", "target": "cuda"}, "needs dtype=float32, got float64"),
        (
            {"precision": "float16", "target": "cuda"},
            "precision: unknown name 'float16'; did you mean 'bfloat16'?",
        ),
        ({"precision": 1, "target": "cuda"}, "plan: precision"),
    ],
)
def test_a_precision_that_does_not_apply_is_refused(options, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        nbprop.plan(MIXED, **options)
    assert message in str(caught.value)
