"""Every layer, activation and loss on the device against the CPU: in the simulator, or on a GPU where there is one.

The same cases as test_contract.py. Workspaces and outputs are poisoned with NaN, inputs and outputs lie between guard
values, and everything runs twice.
"""

import re

import numpy as np
import pytest

import nbprop
import nbprop.cuda
from nbprop.cuda import oneblock
from nbprop.cuda.kernels import all_kernels
from support.cases import CASES, close, data, kinked, same_bits

MARGIN = 64
# Sums over the batch run in another order than the CPU's.
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}
# Tiles of every shape, k in several pieces, loops that stride by the grid.
_LARGE = nbprop.network((9,), nbprop.dense(17), nbprop.dense(12, activation="gelu"), nbprop.dense(3))
LARGE = {"large": (_LARGE, None)}
# Strides and dilations with common divisors and without: pixels that no tap meets.
_STRIDES = nbprop.network(
    (11, 2), nbprop.conv1d(4, 3, stride=2, dilation=2), nbprop.conv1d(2, 2, stride=3, dilation=2, groups=2)
)
# Large for the sake of the CPU's kernels; test_device_modes.py has attention that is not causal.
_LARGE_FOR_THE_CPU = {"dense_many_positions", "attention_not_causal"}
CASES = {name: case for name, case in CASES.items() if name not in _LARGE_FOR_THE_CPU}
# Behind parameters, whose second derivatives need the layer's.
_NORM = nbprop.network((2, 3), nbprop.dense(7), nbprop.local_response_norm(4, alpha=0.5, k=1), nbprop.dense(3))
CASES |= LARGE | {"conv1d_strides": (_STRIDES, None), "local_response_norm_inside": (_NORM, None)}
if not nbprop.cuda.simulated():  # whose tiles are small enough for the cases above
    _WIDE = nbprop.network((40, 40, 20), nbprop.conv2d(80, 3, padding=1), nbprop.conv2d(33, 3, stride=2))
    CASES["conv2d_large"] = (_WIDE, None)
# Cases whose sums are so long that the CPU's are in float64: in float32 they would be further off than what they judge.
LONG_SUMS = {"large", "conv2d_large"}


def missing_kernel(case):
    """What the refusal says when a layer of a case has no CUDA kernels; None when all have."""
    try:
        nbprop.plan(*CASES[case], batch=3, dtype=np.float32, target="cuda")
    except ValueError as error:
        return str(error)
    return None


REFUSED = {case: text for case in CASES if (text := missing_kernel(case)) is not None}
ON_DEVICE = [name for name in CASES if name not in REFUSED]
# Cases without these kinds of layers have kernels for all of theirs.
WITHOUT_KERNELS = {"bumpy", "ascending"}
LOSSES_WITHOUT_KERNELS = {
    *("cosine", "kl_divergence", "mse_weighted", "quantile", "quantile_four", "soft_cross_entropy"),
    *("softmax_cross_entropy_smoothed", "student_t_nll"),
}


# Cases that run in `make test-more`: their kernels are those of another case, or the simulator takes long.
MORE = {
    *("bidirectional", "glu_silu", "groupnorm_plain", "fourier_features_trained", "conv2d_reflect", "conv2d_replicate"),
    *("conv_transpose2d", "weight_norm_images", "spectral_norm_images", "spectral_norm", "conv1d_circular"),
    *(f"fused_{name}" for name in ("mish", "selu", "hard_sigmoid", "hard_tanh", "hard_swish", "softsign", "sine")),
}


# Cases that run in one block, too: each kernel's loops must do the whole work then.
SMALL = {
    *("dense_wide", "dense_no_bias", "dense_positions", "tied", "concat", "fused_softmax", "layernorm", "embedding"),
    *("loss_mse", "loss_softmax_cross_entropy_positions", "loss_gaussian_nll", "max_pool2d", "dropout", "batchnorm"),
}


class DeviceBuffers:
    """Device arrays between guard values."""

    def __init__(self):
        self._wholes = []

    def array(self, host):
        """A device copy of a host array (None: None)."""
        if host is None:
            return None
        flat = np.ascontiguousarray(host).reshape(-1)
        guard = np.full(MARGIN, 1234, flat.dtype)
        whole = nbprop.cuda.to_device(np.concatenate([guard, flat, guard]))
        self._wholes.append((whole, flat.size))
        return whole[MARGIN : MARGIN + flat.size].reshape(np.shape(host))

    def poisoned(self, shape, dtype):
        return self.array(np.full(shape, np.nan, dtype))

    def check(self):
        for whole, size in self._wholes:
            host = whole.to_host()
            assert (host[:MARGIN] == 1234).all(), "written before an array"
            assert (host[MARGIN + size :] == 1234).all(), "written behind an array"


def on_device(plan, params, x, target, weights, dy):
    """All that the functions write."""
    buffers, dtype, n = DeviceBuffers(), plan.dtype, len(x)
    params, x, target, weights, dy = (buffers.array(a) for a in (params, x, target, weights, dy))
    work, y = buffers.poisoned(plan.work_size, dtype), buffers.poisoned((n, *plan.output_shape), dtype)
    grads, dx = buffers.poisoned(plan.n_params, dtype), buffers.poisoned(x.shape, dtype)
    state = nbprop.layer_state(plan) if plan.state_size else None
    nbprop.forward(plan, params, x, y, work, state)
    if plan.x_classes:
        dx = None
    nbprop.backward(plan, params, x, dy, grads, dx, work, state=state)
    found = {"y": y.to_host(), "grads of dy": grads.to_host()} | ({} if dx is None else {"dx": dx.to_host()})
    if plan.loss is not None:
        work.copy_from(np.full(work.shape, np.nan, dtype))
        for name, w in (("", None), (", weighted", weights)):
            grads.copy_from(np.full(grads.shape, np.nan, dtype))
            loss = nbprop.value_and_grad(plan, params, x, target, grads, work, w, state=state)
            found |= {f"loss{name}": np.float64(loss), f"grads{name}": grads.to_host()}
        nbprop.value_and_grad(plan, params, x, target, grads, work, weights, accumulate=True, state=state)
        found["accumulated"] = grads.to_host()
    if state is not None:
        found["state"] = state.to_host()
    buffers.check()
    return found


def on_host(plan, params, x, target, weights, dy):
    """The same on the CPU."""
    work, y, grads = nbprop.workspace(plan), np.empty((len(x), *plan.output_shape), plan.dtype), np.empty_like(params)
    dx = None if plan.x_classes else np.empty_like(x)
    state = nbprop.layer_state(plan) if plan.state_size else None
    nbprop.forward(plan, params, x, y, work, state)
    nbprop.backward(plan, params, x, dy, grads, dx, work, state=state)
    found = {"y": y, "grads of dy": grads.copy()} | ({} if dx is None else {"dx": dx})
    if plan.loss is not None:
        for name, w in (("", None), (", weighted", weights)):
            loss = nbprop.value_and_grad(plan, params, x, target, grads, work, w, state=state)
            found |= {f"loss{name}": np.float64(loss), f"grads{name}": grads.copy()}
        found["accumulated"] = 2 * grads
    if state is not None:
        found["state"] = state
    return found


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.more] if case in MORE else []) for case in ON_DEVICE]
)
def test_the_device_agrees_with_the_cpu(case, monkeypatch):
    monkeypatch.setattr(oneblock, "MOST_ELEMENTS", 0)
    agrees(case)


@pytest.mark.parametrize("case", [case for case in ON_DEVICE if case in SMALL])
def test_one_block_agrees_with_the_cpu(case):
    """Programs so small that one launch walks all their rows."""
    agrees(case)


def agrees(case):
    net, loss = CASES[case]
    for dtype, n in ((np.float32, 9 if case in LARGE else 5), (np.float64, 1)):
        plan, device = (nbprop.plan(net, loss, n + 1, dtype, target=target) for target in ("cpu", "cuda"))
        rng = np.random.default_rng(7)
        params = (nbprop.init(net, seed=3) + 0.1 * rng.standard_normal(plan.n_params)).astype(dtype)
        x, target, weights = data(plan, n, rng, ties=not kinked(net))
        dy = rng.standard_normal((n, *net.output_shape)).astype(dtype)
        given = params, x, target, weights.astype(dtype), dy
        found = on_device(device, *given)
        if case in LONG_SUMS and dtype == np.float32:
            plan = nbprop.plan(net, loss, n + 1)
            exact = [a.astype(np.float64) if a is not None and a.dtype == dtype else a for a in given]
        else:
            exact = given
        wanted = on_host(plan, *exact)
        for name, value in found.items():
            close(f"{name}, {np.dtype(dtype)}", value, wanted[name], TOLERANCE[dtype])
        if dtype == np.float32 and loss is not None:
            for name, value in on_device(device, *given).items():
                same_bits(f"{name}, the second time", value, found[name])


@pytest.mark.more
def test_every_kernel_is_reached():
    """These cases and those of other files here launch every kernel that a layer or loss defines, at least once."""
    reached = set()
    sequences = nbprop.network((3, 2), nbprop.gru(3, carry=True), nbprop.dense(2)), "mse", {}
    penalties = nbprop.network((3,), nbprop.dense(2)), "mse", {"l2": 0.1, "l1": 0.1}  # test_device_training.py
    for net, loss, more in (*((*CASES[name], {}) for name in ON_DEVICE), sequences, penalties):
        for dtype, n in ((np.float32, 5), (np.float32, 9), (np.float64, 1)):
            plan = nbprop.plan(
                net, loss or "mse", n + 1, dtype, target="cuda", **more
            )  # second derivatives need a loss
            words = np.ones(64, np.int64)
            launches = [launch for program in plan.programs.values() for launch in program]
            reached |= {
                launch.kernel.name
                for launch in launches
                if launch.blocks(n, words, False) or launch.blocks(n, words, True)
            }
    missed = {kernel.name for kernel in all_kernels() if kernel.name not in reached}
    # Dense layers leave whole sums; the others run in test_device_modes.py.
    in_use = {"nbprop.cuda.layers.batchnorm.running", "nbprop.cuda.layers.attention_decoding.decode"}
    assert missed <= {"nbprop.cuda.layers.dense_pieces.summed_already"} | in_use


def test_a_small_program_is_one_launch():
    net = nbprop.network((4,), nbprop.dense(32, activation="tanh"), nbprop.dense(1))
    plan = nbprop.plan(net, "mse", 64, np.float32, target="cuda")
    assert plan.in_one_block(64)
    assert not nbprop.plan(net, "mse", 2**20, np.float32, target="cuda").in_one_block(2**20)


def test_a_layer_and_its_activation_are_one_launch():
    net = nbprop.network((3,), nbprop.dense(5, activation="tanh"))
    plan = nbprop.plan(net, batch=2, dtype=np.float32, target="cuda")
    launched = [launch for launch in plan.programs[0] if launch.blocks(2, np.ones(64, np.int64), False)]
    assert [launch.kernel.name.rsplit(".", 1)[-1] for launch in launched] == ["forward_activated", "copied"]


@pytest.mark.parametrize("case", list(REFUSED))
def test_layers_without_kernels_are_refused_by_name(case):
    kinds = {layer.kind for _, layer in CASES[case][0].nodes}
    loss = case.removeprefix("loss_").removesuffix("_positions")
    assert kinds & WITHOUT_KERNELS or loss in LOSSES_WITHOUT_KERNELS, REFUSED[case]
    assert re.match(r"plan: (layer \S+|the loss) has no CUDA kernel for \w+; leave target out", REFUSED[case])
