"""Entries of jvp, vjp, the products with the Hessian and the Gauss-Newton matrix, the Jacobian, samples' gradients.

As the entries in walker.py: they check a call's block, then walk the plan's programs.
"""

from nbprop.compiler.intrinsics import load, stack_words, store, store_double, store_float
from nbprop.compiler.jit import njit
from nbprop.compiler.registry import find
from nbprop.program import elements, frame, table
from nbprop.runtime import arguments as arg
from nbprop.runtime.arguments import check_array, check_flat, check_samples, check_written
from nbprop.runtime.entries import ENTRIES, check_backward, check_inputs, check_target, entry, given
from nbprop.runtime.walker import fill_frame, run_program, walk_alone

_FRAME_WORDS = frame.WORDS
_OUT = arg.WRITTEN["jvp"]


@njit
def load_kernels(plan, program):
    """Find every kernel of a program before threads set off: a first find may compile, which needs the interpreter.

    A status: 0, or that a layer has no tangents.
    """
    if load(plan, table.POSITIONS) > 0:
        return arg.PLAN * 64 + arg.FORWARD_ONLY
    row = plan + 8 * load(plan, table.PROGRAMS + 2 * program)
    end = plan + 8 * load(plan, table.PROGRAMS + 2 * program + 1)
    if row == end:
        return arg.PLAN * 64 + arg.NO_TANGENT
    while row < end:
        find(load(row, table.KERNEL))
        row += 8 * load(row, table.LENGTH)
    return 0


@njit
def _check_input_direction(plan, block):
    """dx, a direction in input space, where it is given."""
    if not given(block, arg.DX):
        return 0
    if load(plan, table.X_CODE) == elements.ANY_INTEGER:
        return arg.DX * 64 + arg.NO_DERIVATIVE
    return check_samples(plan, block, arg.DX, load(plan, table.DTYPE), table.X_SHAPE, False)


@njit
def jvp_entry(plan, block):
    """out = the derivative of the output along v in parameter space and dx in input space."""
    status = check_inputs(plan, block)
    if status == 0 and (given(block, arg.V) or not given(block, arg.DX)):
        status = check_flat(plan, block, arg.V, load(plan, table.N_PARAMS), False, False)
    if status == 0:
        status = _check_input_direction(plan, block)
    if status == 0:
        status = check_samples(plan, block, arg.OUT, load(plan, table.DTYPE), table.Y_SHAPE, True)
    if status == 0:
        status = check_written(block, _OUT)
    if status == 0:
        status = load_kernels(plan, table.JVP)
    return run_program(plan, block, table.JVP) if status == 0 else status


@njit
def _check_product(plan, block, program):
    """What a matrix-free product with a second derivative takes."""
    status = check_inputs(plan, block)
    if status == 0:
        status = check_target(plan, block)
    if status == 0:
        status = check_flat(plan, block, arg.V, load(plan, table.N_PARAMS), False, False)
    if status == 0:
        status = check_flat(plan, block, arg.OUT, load(plan, table.N_PARAMS), False, True)
    if status == 0:
        status = _check_input_direction(plan, block)
    if status == 0:
        status = check_written(block, _OUT)
    return load_kernels(plan, program) if status == 0 else status


@njit
def hvp_entry(plan, block):
    """out = H v, H the Hessian of the loss by the parameters; and the gradient's change along dx, where it is given."""
    status = _check_product(plan, block, table.HVP)
    return run_program(plan, block, table.HVP) if status == 0 else status


@njit
def gauss_newton_product_entry(plan, block):
    """out = J^T H_L J v."""
    status = _check_product(plan, block, table.GAUSS_NEWTON)
    if status != 0:
        return status
    # The program ends as a gradient does, and so writes to grads.
    store(block, arg.GRADS * arg.DESCRIPTION + arg.DATA, load(block, arg.OUT * arg.DESCRIPTION + arg.DATA))
    return run_program(plan, block, table.GAUSS_NEWTON)


@njit
def fisher_product_entry(plan, block):
    """out = J^T E[H_L] J v."""
    status = _check_product(plan, block, table.GAUSS_NEWTON)
    if status != 0:
        return status
    if load_kernels(plan, table.FISHER) != 0:
        return arg.PLAN * 64 + arg.NO_LIKELIHOOD
    store(block, arg.GRADS * arg.DESCRIPTION + arg.DATA, load(block, arg.OUT * arg.DESCRIPTION + arg.DATA))
    return run_program(plan, block, table.FISHER)


@njit
def vjp_entry(plan, block):
    """grads (and dx, when given) = the transposed Jacobian times dy, with forward in the same call."""
    status = check_backward(plan, block)
    if status != 0:
        return status
    return run_program(plan, block, table.VJP_INPUT if given(block, arg.DX) else table.VJP)


# -- rows: gradients of each sample ---------------------------------------------------------------------------


@njit
def _check_rows(plan, block, outputs):
    """out is (samples * outputs, n_params)."""
    status = check_array(block, arg.OUT, load(plan, table.DTYPE), True)
    words = arg.OUT * arg.DESCRIPTION
    if status != 0:
        return status
    shape = load(block, words + arg.SHAPE)
    if load(block, words + arg.RANK) != 2:
        return arg.OUT * 64 + arg.SHAPE_DIFFERS
    if load(shape, 0) != load(block, arg.SAMPLES) * outputs or load(shape, 1) != load(plan, table.N_PARAMS):
        return arg.OUT * 64 + arg.SHAPE_DIFFERS
    return check_written(block, _OUT)


@njit
def _check_one_by_one(plan, block):
    """What a function takes that walks one sample at a time."""
    status = check_inputs(plan, block)
    if status == 0 and load(plan, table.POSITIONS) > 0:
        return arg.PLAN * 64 + arg.FORWARD_ONLY
    if status == 0 and load(plan, table.LEAST) > 0:
        return arg.PLAN * 64 + arg.COUPLED
    return status


@njit
def _take_sample(here, block, argument, space, i):
    """Point a space at sample i of an argument, where it was given."""
    base = load(block, argument * arg.DESCRIPTION + arg.DATA)
    if base != 0:
        store(here, space, base + i * _bytes_of_sample(block, argument))


@njit
def _bytes_of_sample(block, argument):
    words = argument * arg.DESCRIPTION
    width = elements.element_bytes(load(block, words + arg.CODE))
    return load(block, words + arg.ELEMENTS) // load(block, arg.SAMPLES) * width


@njit
def _walk_sample(plan, here, program):
    begin = plan + 8 * load(plan, table.PROGRAMS + 2 * program)
    end = plan + 8 * load(plan, table.PROGRAMS + 2 * program + 1)
    failed = walk_alone(here, begin, end)
    return arg.FAILED + (failed - plan) // 8 if failed != 0 else 0


@njit
def _exists(plan, program):
    """Whether the plan has a program."""
    return load(plan, table.PROGRAMS + 2 * program) < load(plan, table.PROGRAMS + 2 * program + 1)


@njit
def per_sample_grads_entry(plan, block):
    """Row i of out = the gradient of sample i's own loss."""
    status = _check_one_by_one(plan, block)
    if status == 0:
        status = check_target(plan, block)
    if status == 0:
        status = _check_rows(plan, block, 1)
    if status != 0:
        return status
    # With lengths a batch's loss is no mean of the samples' own.
    if _exists(plan, table.PER_SAMPLE) and not given(block, arg.LENGTHS):
        load_kernels(plan, table.PER_SAMPLE)
        return run_program(plan, block, table.PER_SAMPLE)
    return _per_sample_grads_one_by_one(plan, block)


@njit
def _per_sample_grads_one_by_one(plan, block):
    """The same, by a gradient of each sample."""
    here = stack_words(_FRAME_WORDS)
    fill_frame(here, block)
    store(here, frame.N, 1)
    width = elements.element_bytes(load(plan, table.DTYPE))
    for i in range(load(block, arg.SAMPLES)):
        store(here, frame.FIRST_SAMPLE, i)
        _take_sample(here, block, arg.X, frame.X, i)
        _take_sample(here, block, arg.TARGET, frame.TARGET, i)
        _take_sample(here, block, arg.LENGTHS, frame.LENGTHS, i)
        row = i * load(plan, table.N_PARAMS) * width
        store(here, frame.GRADS, load(block, arg.OUT * arg.DESCRIPTION + arg.DATA) + row)
        status = _walk_sample(plan, here, table.VALUE_AND_GRAD)
        if status != 0:
            return status
    return 0


@njit
def _store_unit(address, code, index, number):
    """Write a number of the plan's dtype at an address."""
    if code == elements.FLOAT64:
        store_double(address, index, number)
    else:
        store_float(address, index, number)


@njit
def jacobian_entry(plan, block):
    """Row i * outputs + k of out = the gradient of sample i's output k."""
    status = _check_one_by_one(plan, block)
    outputs = 1
    for axis in range(load(plan, table.Y_SHAPE)):
        outputs *= load(plan, table.Y_SHAPE + 1 + axis)
    if status == 0:
        status = _check_rows(plan, block, outputs)
    if status != 0:
        return status
    code, width = load(plan, table.DTYPE), elements.element_bytes(load(plan, table.DTYPE))
    unit = load(block, arg.WORK * arg.DESCRIPTION + arg.DATA) + load(plan, table.UNIT) * width
    store(block, arg.DY * arg.DESCRIPTION + arg.DATA, unit)
    for k in range(outputs):
        _store_unit(unit, code, k, 0.0)
    if _exists(plan, table.JACOBIAN):
        return _jacobian_of_all(plan, block, outputs, unit)
    return _jacobian_one_by_one(plan, block, outputs, unit)


@njit
def _jacobian_of_all(plan, block, outputs, unit):
    """The same, by a way back of the whole batch for each output, into every so manyth row."""
    load_kernels(plan, table.JACOBIAN)
    code, width = load(plan, table.DTYPE), elements.element_bytes(load(plan, table.DTYPE))
    out = arg.OUT * arg.DESCRIPTION + arg.DATA
    first = load(block, out)
    for k in range(outputs):
        store(block, out, first + k * load(plan, table.N_PARAMS) * width)
        _store_unit(unit, code, k, 1.0)
        status = run_program(plan, block, table.JACOBIAN if k == 0 else table.NEXT_OUTPUT)
        _store_unit(unit, code, k, 0.0)
        if status != 0:
            return status
    return 0


@njit
def _jacobian_one_by_one(plan, block, outputs, unit):
    """The same, by a way back of each sample for each output."""
    here = stack_words(_FRAME_WORDS)
    fill_frame(here, block)
    store(here, frame.N, 1)
    code, width = load(plan, table.DTYPE), elements.element_bytes(load(plan, table.DTYPE))
    for i in range(load(block, arg.SAMPLES)):
        store(here, frame.FIRST_SAMPLE, i)
        _take_sample(here, block, arg.X, frame.X, i)
        _take_sample(here, block, arg.LENGTHS, frame.LENGTHS, i)
        for k in range(outputs):
            row = (i * outputs + k) * load(plan, table.N_PARAMS) * width
            store(here, frame.GRADS, load(block, arg.OUT * arg.DESCRIPTION + arg.DATA) + row)
            _store_unit(unit, code, k, 1.0)
            status = _walk_sample(plan, here, table.VJP if k == 0 else table.BACKWARD)
            _store_unit(unit, code, k, 0.0)
            if status != 0:
                return status
    return 0


ENTRIES |= {
    "jvp": entry(jvp_entry),
    "vjp": entry(vjp_entry),
    "hvp": entry(hvp_entry),
    "gauss_newton_product": entry(gauss_newton_product_entry),
    "fisher_product": entry(fisher_product_entry),
    "jacobian": entry(jacobian_entry),
    "per_sample_grads": entry(per_sample_grads_entry),
}
