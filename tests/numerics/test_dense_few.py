"""The input gradient of a large dense layer for few samples, beside NumPy's product."""

import numpy as np
import pytest

import nbprop
from nbprop.layers.dense.few_rows import dense_backward_few
from nbprop.program import table
from support.cases import close, same_bits
from support.contract import everything

pytestmark = pytest.mark.usefixtures("four_cores")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_few_samples_of_a_large_layer(dtype):
    """Blocks, strips and columns that are cut; fewer samples than the plan holds, down to one."""
    net, batch = nbprop.network((1037,), nbprop.dense(519, bias=False)), 19
    rng = np.random.default_rng(0)
    params = rng.standard_normal(net.n_params).astype(dtype)
    plans = [nbprop.plan(net, batch=batch, dtype=dtype, threads=threads) for threads in (1, 3)]
    assert any(op.kernel is dense_backward_few for op in plans[0].ops(table.BACKWARD_INPUT))
    for n in (batch, 2, 1):
        x, dy = (rng.standard_normal((n, size)).astype(dtype) for size in (1037, 519))
        dx, other = (everything(plan, params, x, None, None, dy)["dx"] for plan in plans)
        same_bits("dx", dx, other)
        exact = dy.astype(np.float64) @ params.astype(np.float64).reshape(1037, 519).T
        close("dx", dx, exact, 1e-14 if dtype == np.float64 else 1e-6)
