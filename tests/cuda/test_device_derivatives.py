"""hvp, jvp, the other products, Jacobians and samples' gradients on the device against the CPU."""

import numpy as np
import pytest
from test_device_contract import CASES, ON_DEVICE, TOLERANCE, DeviceBuffers

import nbprop
import nbprop.cuda
from nbprop.cuda import kernels
from nbprop.cuda.layers.activation import curvature
from nbprop.cuda.toolkit import cuda, device_function
from nbprop.numerics.activations import ACTIVATIONS, NEEDS_INPUT, derivative_of, value_of
from nbprop.runtime.signatures import OUTPUTS, SIGNATURES
from support.cases import close, data, kinked

FUNCTIONS = [name for name, signature in SIGNATURES.items() if signature.beyond_gradients]
# Each loss with all of them, biases left out, shared weights, a convolution, a norm.
IN_TEST = {f"loss_{name}": FUNCTIONS for name in ("mse", "gaussian_nll", "softmax_cross_entropy")}
IN_TEST |= {
    "loss_huber": ("hvp", "fisher_product"),
    "loss_binary_cross_entropy": ("hvp",),
    "dense_no_bias": ("hvp", "jacobian"),
    "tied": ("jvp", "jacobian"),
    "conv2d_pointwise": ("hvp",),
    "layernorm": ("hvp",),
    "dense_softmax": ("hvp",),
}


def arguments(plan, n, rng):
    """Host arrays by name that any of the functions may take."""
    params = (nbprop.init(plan.net, seed=3) + 0.1 * rng.standard_normal(plan.n_params)).astype(plan.dtype)
    x, target, weights = data(plan, n, rng, ties=not kinked(plan.net))
    found = {"params": params, "x": x, "target": target, "weights": weights.astype(plan.dtype)}
    found["v"] = rng.standard_normal(plan.n_params).astype(plan.dtype)
    found["dx"] = None if plan.x_classes else rng.standard_normal(x.shape).astype(plan.dtype)
    return found


def shape_of_out(plan, name, n):
    return OUTPUTS[SIGNATURES[name].out][0](plan, n)


def call(plan, name, given, out, work, state):
    """out of a function, with those of the given arrays that it takes."""
    takes = SIGNATURES[name].parameters
    chosen = {key: value for key, value in given.items() if key in takes}
    more = {} if state is None else {"state": state}
    getattr(nbprop, name)(plan, **chosen, out=out, work=work, **more)
    return out


def both(case, name, dtype, n, **leave_out):
    """(the device's, the CPU's) result."""
    return both_of(*case_of(case, name), name, dtype, n, **leave_out)


def both_of(net, loss, name, dtype, n, **changes):
    """The same of a network; `changes`: arrays by name, in place of those of `arguments`."""
    plan, device = (nbprop.plan(net, loss, n + 1, dtype, target=target) for target in ("cpu", "cuda"))
    given = arguments(plan, n, np.random.default_rng(5)) | changes
    buffers, shape = DeviceBuffers(), shape_of_out(plan, name, n)
    state = nbprop.layer_state(plan) if plan.state_size else None
    wanted = call(plan, name, given, np.full(shape, np.nan, dtype), nbprop.workspace(plan), state)
    on_device = {key: buffers.array(value) for key, value in given.items()}
    out, work = buffers.poisoned(shape, dtype), buffers.poisoned(device.work_size, dtype)
    state = nbprop.layer_state(device) if plan.state_size else None
    found = call(device, name, on_device, out, work, state).to_host()
    buffers.check()
    return found, wanted


def case_of(case, name):
    """(network, loss) of a case; where a function needs a loss and the case has none, the mean squared error."""
    net, loss = CASES[case]
    return net, "mse" if loss is None and "target" in SIGNATURES[name].parameters else loss


def takes_part(case, name):
    """Whether a function is for a case's network and loss, on the CPU."""
    plan, signature = nbprop.plan(*case_of(case, name), 2), SIGNATURES[name]
    if plan.n_params == 0 or (name == "fisher_product" and plan.loss.fisher is None):
        return False
    return plan.min_samples == 0 if signature.one_by_one else plan.without_tangents is None


def mark(case, name):
    """`more` for what takes too long together, `long` for what takes longest.

    That is Jacobians of images, a minute and more each; and the products with a loss's curvature of each layer, which
    are a jvp and an ordinary backward pass.
    """
    if name in IN_TEST.get(case, ()):
        return ()
    if name in ("gauss_newton_product", "fisher_product") and not case.startswith("loss_"):
        return pytest.mark.long
    large = ("conv2d", "conv_transpose2d", "images", "tied_embedding", "groupnorm", "max_pool2d_overlap")
    return pytest.mark.long if name == "jacobian" and any(part in case for part in large) else pytest.mark.more


def of(case):
    """The functions for a case, each a test."""
    return [pytest.param(case, name, marks=mark(case, name)) for name in FUNCTIONS if takes_part(case, name)]


@pytest.mark.parametrize(("case", "name"), [one for case in ON_DEVICE for one in of(case)])
def test_the_device_agrees_with_the_cpu(case, name):
    for dtype, n in ((np.float32, 5), (np.float64, 2)):
        found, wanted = both(case, name, dtype, n)
        close(f"{name}, {np.dtype(dtype)}", found, wanted, 5 * TOLERANCE[dtype])


# rnn is wider than two of a simulated block's groups, a head than a tile; each has several blocks of positions.
SEQUENCES = {
    "rnn": nbprop.rnn(17, "sigmoid"),
    "lstm": nbprop.lstm(9),
    "gru": nbprop.gru(3),
    "last": nbprop.gru(2, output="last"),
    "attention": nbprop.attention(2),
    "attention_not_causal": nbprop.attention(2, causal=False),
}


@pytest.mark.more
@pytest.mark.parametrize("layer", SEQUENCES)
@pytest.mark.parametrize(("name", "left_out"), [("hvp", ()), ("jvp", ("v",)), ("jvp", ("dx",))], ids=str)
def test_sequences_with_lengths(layer, name, left_out):
    """What stands beyond a length may not matter, and a direction left out is zero in the loops, too."""
    rng, lengths = np.random.default_rng(6), np.array([6, 1, 3, 6, 5], np.int32)
    net = nbprop.network((6, 10), SEQUENCES[layer], nbprop.dense(2))
    for dtype in (np.float32, np.float64):
        x = rng.standard_normal((5, 6, 10)).astype(dtype)
        for row, length in zip(x, lengths, strict=True):
            row[length:] = np.nan
        changes = {"x": x, "lengths": lengths} | dict.fromkeys(left_out)
        found, wanted = both_of(net, "mse", name, dtype, 5, **changes)
        close(f"{name}, {np.dtype(dtype)}", found, wanted, 5 * TOLERANCE[dtype])


def test_a_layer_without_kernels_for_tangents_is_refused_by_name(monkeypatch):
    monkeypatch.delitem(kernels._MODULES, "nbprop.layers.attention.tangents")
    net = nbprop.network((7, 2), nbprop.attention(1))  # of no other test: plans are kept
    for name in ("jvp", "hvp"):
        text = rf"{name}: layer \S+ has no CUDA kernel for attention_tangent; make a plan without target"
        with pytest.raises(ValueError, match=text):
            both_of(net, "mse", name, np.float32, 2)


@pytest.mark.parametrize("left_out", ["v", "dx"])
def test_a_direction_that_is_left_out_is_zero(left_out):
    found, wanted = both("loss_mse", "jvp", np.float64, 3, **{left_out: None})
    close("jvp", found, wanted, TOLERANCE[np.float64])


def test_both_directions_left_out_are_refused():
    with pytest.raises(TypeError, match="v"):
        both("loss_mse", "jvp", np.float64, 3, v=None, dx=None)


def test_a_wrong_out_is_refused():
    plan = nbprop.plan(*CASES["loss_mse"], 4, np.float32, target="cuda")
    given = {name: nbprop.cuda.to_device(a) for name, a in arguments(plan, 3, np.random.default_rng(0)).items()}
    with pytest.raises(ValueError, match="out"):
        call(plan, "jacobian", given, nbprop.cuda.zeros((3, plan.n_params + 1)), nbprop.workspace(plan), None)


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"softmax"}))
def test_every_activation_has_its_second_derivative(name):
    """A code that the device's function does not know would have f'' = 0."""
    code, step, x = ACTIVATIONS[name], 1e-6, np.linspace(-4.1, 4.3, 30)
    bend = device_function(curvature)

    def known(x):
        return x if code in NEEDS_INPUT else np.array([value_of(one, code) for one in x])

    def slope(s):
        return np.array([derivative_of(one, code) for one in s])

    def kernel(out, s):
        out[cuda.threadIdx.x] = bend(s[cuda.threadIdx.x], code)

    out, s = nbprop.cuda.to_device(np.full_like(x, np.nan)), known(x)
    cuda.jit(kernel)[1, len(s)](nbprop.cuda.as_numba(out), nbprop.cuda.as_numba(nbprop.cuda.to_device(s)))
    # For a function of y, f'' is the derivative of f' by y, times f'.
    found = out.to_host() * (1 if code in NEEDS_INPUT else slope(s))
    close(name, found, (slope(known(x + step)) - slope(known(x - step))) / (2 * step), 1e-8)
