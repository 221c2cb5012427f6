"""Where the ops of penalties go: behind the op that completes a parameter's gradient, while that is in the cache."""

from nbprop.losses.penalty import BLOCK, add_penalty, penalty_gradient, penalty_product, penalty_value
from nbprop.program import frame
from nbprop.program.ops import Buffer

_KERNELS = (penalty_value, penalty_gradient)


def lower_value(build, penalty):
    """The ops that add a penalty to the result of those before."""
    build.label, first = "penalty", 0
    sums, bits = _sums(build, penalty), (penalty.l2_bits, penalty.l1_bits)
    ops = []
    for begin, stop in penalty.runs:
        w = Buffer(stop - begin, frame.PARAMS, begin)
        ops.append(build.op(penalty_value, (), (w,), (first, stop - begin, *bits), inplace=(sums,)))
        first += _blocks(begin, stop)
    return [*ops, build.op(add_penalty, (), (sums,))]


def insert_gradients(build, penalty, ops):
    """(a backward pass with the penalty's gradients in it, the op that adds the penalty to the result)."""
    build.label, first, sums = "penalty", 0, _sums(build, penalty)
    behind: dict[int, list] = {}
    for begin, stop in penalty.runs:
        grad, w = Buffer(stop - begin, frame.GRADS, begin), Buffer(stop - begin, frame.PARAMS, begin)
        sizes = (first, stop - begin, penalty.l2_bits, penalty.l1_bits, penalty.smooth)
        op = build.op(penalty_gradient, (), (w,), sizes, inplace=(grad, sums))
        behind.setdefault(_complete(ops, frame.GRADS, begin, stop), []).append(op)
        first += _blocks(begin, stop)
    return _inserted(ops, behind), [build.op(add_penalty, (), (sums,))]


def insert_products(build, penalty, ops, space):
    """A program that ends as a gradient does, in `space`, with l2 v added to the parameters' parts of a product."""
    build.label = "penalty"
    behind: dict[int, list] = {}
    if penalty.l2 == 0:
        return ops
    for begin, stop in penalty.runs:
        out, v = Buffer(stop - begin, space, begin), Buffer(stop - begin, frame.TANGENT, begin)
        op = build.op(penalty_product, (), (v,), (stop - begin, penalty.l2_bits), inplace=(out,))
        behind.setdefault(_complete(ops, space, begin, stop), []).append(op)
    return _inserted(ops, behind)


def without_penalties(ops):
    """The ops of a backward pass that are not a penalty's."""
    return [op for op in ops if op.kernel not in _KERNELS]


def _sums(build, penalty):
    """A buffer for the sums of all blocks."""
    return build.buffer(sum(_blocks(*run) for run in penalty.runs))


def _blocks(begin, stop):
    return -(-(stop - begin) // BLOCK)


def _complete(ops, space, begin, stop):
    """The number of the op behind which parameters begin..stop of a gradient are complete, for all threads."""

    def writes(op):
        return any(b.space == space and b.offset < stop and begin < b.offset + b.size for b in op.writes)

    last = max(k for k, op in enumerate(ops) if writes(op))
    while not ops[last].barrier:
        last += 1
    return last


def _inserted(ops, behind):
    found = []
    for k, op in enumerate(ops):
        found += [op, *behind.get(k, ())]
    return found
