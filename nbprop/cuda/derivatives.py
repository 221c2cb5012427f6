"""The functions beyond gradients on a device plan: which plans have them, and their walks of several programs.

As in nbprop/runtime/derivative_entries.py: the products that end as a gradient does, the rows of a Jacobian, and
samples' own gradients. The host writes a frame before each walk and waits until it is there, so a Jacobian takes as
many waits as there are outputs.
"""

import numpy as np

from nbprop import messages as said
from nbprop.cuda import toolkit
from nbprop.program import frame, table
from nbprop.runtime import arguments as arg

# Programs without which a function's rows are made one by one.
_OF_ALL_SAMPLES = (table.JACOBIAN, table.NEXT_OUTPUT, table.PER_SAMPLE)


def check_programs(bound, refuse):
    """Refuse a call of a function whose programs the plan has not, as the CPU does, or has no kernels for."""
    plan, signature = bound.plan, bound.signature
    if not signature.beyond_gradients:
        return
    if signature.one_by_one:
        if plan.min_samples > 0:
            refuse(arg.PLAN, said.COUPLED)
        return
    for program in signature.programs:
        if program in plan.missing:
            raise ValueError(f"{bound.function}: {plan.missing[program]}; make a plan without target for it")
    if plan.without_tangents is not None:
        refuse(arg.PLAN, said.NO_TANGENT)
    if signature.program not in plan.programs:
        refuse(arg.PLAN, said.NO_LIKELIHOOD)


def _into_out(bound, stream):
    """A program that ends as a gradient does, and so writes to grads."""
    bound.walk(bound.program, stream, GRADS=bound.words[frame.OUT])


def _sample(bound, i):
    """The words of the frame for sample i alone."""
    words = {"N": 1, "FIRST_SAMPLE": i}
    for argument, name in ((arg.X, "X"), (arg.TARGET, "TARGET"), (arg.LENGTHS, "LENGTHS")):
        array = bound.arrays[argument]
        if array is not None:
            words[name] = array.address + i * (array.nbytes // len(array))
    return words


def _per_sample_grads(bound, stream):
    """Row i of out = the gradient of sample i's own loss."""
    plan, first = bound.plan, int(bound.words[frame.OUT])
    # With lengths a batch's loss is no mean of the samples' own.
    if table.PER_SAMPLE in plan.programs and bound.arrays[arg.LENGTHS] is None:
        bound.walk(table.PER_SAMPLE, stream)
        return
    for i in range(bound.n):
        row = first + i * plan.n_params * plan.dtype.itemsize
        bound.walk(table.VALUE_AND_GRAD, stream, **_sample(bound, i), GRADS=row)


def _jacobian(bound, stream):
    """Row i * outputs + k of out = the gradient of sample i's output k."""
    plan, itemsize, first = bound.plan, bound.plan.dtype.itemsize, int(bound.words[frame.OUT])
    row, unit = plan.n_params * itemsize, int(bound.words[frame.WORK]) + plan.unit_offset * itemsize
    of_all = table.JACOBIAN in plan.programs
    for i in range(1 if of_all else bound.n):
        for k in range(plan.unit_size):
            toolkit.write(unit, np.eye(1, plan.unit_size, k, plan.dtype), stream)
            if of_all:
                program = table.JACOBIAN if k == 0 else table.NEXT_OUTPUT
                bound.walk(program, stream, DY=unit, OUT=first + k * row)
            else:
                place = first + (i * plan.unit_size + k) * row
                program = table.VJP if k == 0 else table.BACKWARD
                bound.walk(program, stream, **_sample(bound, i), DY=unit, GRADS=place)


# Functions that are more than one walk with the call's own frame.
WALKS = {
    "gauss_newton_product": _into_out,
    "fisher_product": _into_out,
    "jacobian": _jacobian,
    "per_sample_grads": _per_sample_grads,
}
