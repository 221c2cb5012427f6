"""A digest of all results over the contract tests' networks: what changes no result leaves it as it is.

    PYTHONPATH=.:tests python -m support.bits

writes recorded/bits.json for this machine's vector width; do so only for a change that is meant to change results.
Sums are cut into lanes, so another width has other digests; a width that has none stored is not checked.
"""

import hashlib
import json

import numpy as np

import nbprop
from nbprop.compiler.simd import VECTOR_BYTES
from support import TESTS
from support.cases import CASES, data, state_of
from support.contract import parameters

STORED = TESTS / "recorded" / "bits.json"


def digest(case):
    """The hexadecimal digest of outputs, gradients and loss of one case, in float64 and float32, at batch 5."""
    net, loss = CASES[case]
    found = hashlib.blake2b(digest_size=8)
    for dtype in (np.float64, np.float32):
        plan, rng = nbprop.plan(net, loss, batch=5, dtype=dtype), np.random.default_rng(1)
        params, work = parameters(plan, rng), nbprop.workspace(plan)
        x, target, weights = data(plan, 5, rng, ties=False)
        y, grads = np.empty((5, *plan.output_shape), dtype), np.empty_like(params)
        dy, dx = rng.standard_normal(y.shape).astype(dtype), None if plan.x_classes else np.empty_like(x)
        nbprop.forward(plan, params, x, y, work, state_of(plan))
        nbprop.backward(plan, params, x, dy, grads, dx, work, False, state_of(plan))
        results = [y, grads] if dx is None else [y, grads, dx]
        for array in results:
            found.update(array.tobytes())
        if loss is not None:
            value = nbprop.value_and_grad(
                plan, params, x, target, grads, work, weights.astype(dtype), state=state_of(plan)
            )
            found.update(np.float64(value).tobytes() + grads.tobytes())
    return found.hexdigest()


def stored():
    """{case: digest} for this machine's vector width; None where there is none."""
    return json.loads(STORED.read_text(encoding="utf-8")).get(str(VECTOR_BYTES))


if __name__ == "__main__":
    known = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    known[str(VECTOR_BYTES)] = {case: digest(case) for case in sorted(CASES)}
    STORED.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
