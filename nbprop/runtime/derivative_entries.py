"""Walks of more than one program: the products that end as a gradient does, the Jacobian, samples' gradients."""

from nbprop import messages as said
from nbprop.compiler.intrinsics import load, stack_words, store, store_double, store_float, ticks
from nbprop.compiler.jit import njit
from nbprop.program import elements, frame, table
from nbprop.runtime import arguments as arg
from nbprop.runtime.entries import ENTRIES, entry_of, given, load_kernels, outputs_of
from nbprop.runtime.walker import fill_frame, pause_at, run_program, walk_alone

_FRAME_WORDS = frame.WORDS


@njit
def _run_into_out(plan, block, program):
    """Walk a program that ends as a gradient does, and so writes to grads."""
    store(block, arg.GRADS * arg.DESCRIPTION + arg.DATA, load(block, arg.OUT * arg.DESCRIPTION + arg.DATA))
    return run_program(plan, block, program)


@njit
def gauss_newton_product_walk(plan, block):
    """out = J^T H_L J v."""
    status = load_kernels(plan, table.GAUSS_NEWTON)
    return _run_into_out(plan, block, table.GAUSS_NEWTON) if status == 0 else status


@njit
def fisher_product_walk(plan, block):
    """out = J^T E[H_L] J v."""
    status = load_kernels(plan, table.GAUSS_NEWTON)  # a layer without tangents has neither product
    if status != 0:
        return status
    if load_kernels(plan, table.FISHER) != 0:
        return arg.PLAN * 64 + said.NO_LIKELIHOOD
    return _run_into_out(plan, block, table.FISHER)


# -- rows: gradients of each sample ---------------------------------------------------------------------------


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
    failed = walk_alone(here, begin, end, 0)
    return arg.FAILED + (failed - plan) // 8 if failed != 0 else 0


@njit
def _exists(plan, program):
    """Whether the plan has a program."""
    return load(plan, table.PROGRAMS + 2 * program) < load(plan, table.PROGRAMS + 2 * program + 1)


@njit
def per_sample_grads_walk(plan, block):
    """Row i of out = the gradient of sample i's own loss."""
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
    width, until = elements.element_bytes(load(plan, table.DTYPE)), pause_at(plan, block)
    for i in range(load(block, arg.RESUME) // arg.STAGE, load(block, arg.SAMPLES)):
        store(here, frame.FIRST_SAMPLE, i)
        _take_sample(here, block, arg.X, frame.X, i)
        _take_sample(here, block, arg.TARGET, frame.TARGET, i)
        _take_sample(here, block, arg.LENGTHS, frame.LENGTHS, i)
        row = i * load(plan, table.N_PARAMS) * width
        store(here, frame.GRADS, load(block, arg.OUT * arg.DESCRIPTION + arg.DATA) + row)
        status = _walk_sample(plan, here, table.SAMPLE_GRAD)
        if status != 0:
            return status
        if until != 0 and ticks() >= until:
            return arg.PAUSED + (i + 1) * arg.STAGE
    return 0


@njit
def _store_unit(address, code, index, number):
    """Write a number of the plan's dtype at an address."""
    if code == elements.FLOAT64:
        store_double(address, index, number)
    else:
        store_float(address, index, number)


@njit
def jacobian_walk(plan, block):
    """Row i * outputs + k of out = the gradient of sample i's output k."""
    outputs = outputs_of(plan)
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
    """The same, by one backward pass of the batch per output k, writing every n_outputs-th row."""
    load_kernels(plan, table.JACOBIAN)
    code, width = load(plan, table.DTYPE), elements.element_bytes(load(plan, table.DTYPE))
    out = arg.OUT * arg.DESCRIPTION + arg.DATA
    first = load(block, out)
    for k in range(load(block, arg.RESUME) // arg.STAGE, outputs):
        store(block, out, first + k * load(plan, table.N_PARAMS) * width)
        _store_unit(unit, code, k, 1.0)
        status = run_program(plan, block, table.JACOBIAN if k == 0 else table.NEXT_OUTPUT)
        _store_unit(unit, code, k, 0.0)
        if status != 0:
            return status + k * arg.STAGE if status >= arg.PAUSED else status
        store(block, arg.RESUME, 0)
    return 0


@njit
def _jacobian_one_by_one(plan, block, outputs, unit):
    """The same, by one backward pass per sample and output."""
    here = stack_words(_FRAME_WORDS)
    fill_frame(here, block)
    store(here, frame.N, 1)
    code, width = load(plan, table.DTYPE), elements.element_bytes(load(plan, table.DTYPE))
    until = pause_at(plan, block)
    for i in range(load(block, arg.RESUME) // arg.STAGE, load(block, arg.SAMPLES)):
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
        if until != 0 and ticks() >= until:
            return arg.PAUSED + (i + 1) * arg.STAGE
    return 0


ENTRIES |= {
    "gauss_newton_product": entry_of("gauss_newton_product", gauss_newton_product_walk),
    "fisher_product": entry_of("fisher_product", fisher_product_walk),
    "jacobian": entry_of("jacobian", jacobian_walk),
    "per_sample_grads": entry_of("per_sample_grads", per_sample_grads_walk),
}
