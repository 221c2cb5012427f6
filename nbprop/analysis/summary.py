"""A network or a plan as a table of text: the layers, their sizes, arithmetic and memory."""

from nbprop.lowering.plan import Plan
from nbprop.lowering.programs import state_pieces
from nbprop.networks.network import Network
from nbprop.program import frame, table

_PROGRAMS = {
    table.FORWARD: "forward",
    table.VALUE_AND_GRAD: "value_and_grad",
    table.BACKWARD_INPUT: "backward",
}
_SPACE_NAMES = {number: name for name, number in frame.SPACES.items()}


def summary(net_or_plan: Network | Plan) -> str:
    """Describe a network or a plan in a table.

    Parameters
    ----------
    net_or_plan : Network or Plan

    Returns
    -------
    str
        One row per layer: its name in `views`, op, output shape of one sample, parameters, FLOPs of one sample
        (forward, and forward with gradient), and bytes of its parameters (in the plan's dtype; float64 for a network).
        FLOPs count the multiply-adds of matrix products, each as 2, without biases, activations and losses. If layers
        have state, one row per piece of it, with its elements (at full batch; for a network, at batch 1). For a plan
        also the program of value_and_grad (without a loss, of forward and backward) row by row, with the bytes that
        each touches at full batch, and the workspace with its lower bound, the maximum of bytes live at once; with a
        precision, which layers it applies to.

    Raises
    ------
    TypeError
        For anything else.

    Examples
    --------
    >>> import nbprop
    >>> print(nbprop.summary(nbprop.network((64,), nbprop.dense(32, activation="tanh"), nbprop.dense(10))))
    layer    op                            output  parameters  FLOPs  with gradient   bytes
    0.dense  dense(32, activation='tanh')  (32,)        2,080  4,096          8,192  16,640
    1.dense  dense(10)                     (10,)          330    640          1,920   2,640
    total                                               2,410  4,736         10,112  19,280
    """
    if isinstance(net_or_plan, Network):
        return "\n\n".join([layer_table(net_or_plan, 8), *state_table(state_pieces(net_or_plan))])
    if not isinstance(net_or_plan, Plan):
        raise TypeError(
            "summary: net_or_plan must be what nbprop.network(...) or nbprop.plan(...) returns, "
            f"got {type(net_or_plan).__name__}"
        )
    plan = net_or_plan
    loss = plan.loss.kind if plan.loss else "none"
    precision = f", products in {plan.precision}" if plan.precision else ""
    threads = f"{plan.threads} thread{'s' * (plan.threads > 1)}"
    parts = [
        f"loss {loss}, batch {plan.batch:,}, {plan.dtype.name}{precision}, {threads}",
        layer_table(plan.net, plan.dtype.itemsize),
        *state_table(plan.state_parts),
        *plan.notes(),
    ]
    shown = [table.VALUE_AND_GRAD] if plan.loss else [table.FORWARD, table.BACKWARD_INPUT]
    parts += [program_table(plan, program) for program in shown]
    work, bound = plan.work_size * plan.dtype.itemsize, plan.liveness_bound * plan.dtype.itemsize
    parts.append(f"workspace {work:,} bytes; the most that lives at once is {bound:,} bytes")
    return "\n\n".join(parts)


# -- layers --------------------------------------------------------------------------------------------------


def layer_table(net, itemsize):
    """The table of a network's layers; layers within layers follow theirs."""
    rows: list[tuple] = []
    learned = False
    for index, (layer, shape) in enumerate(zip(net.layers, net.shapes, strict=False)):
        learned = _layer_rows(rows, f"{index}.{layer.kind}", layer, shape, learned)
    totals = [sum(row[column] for row in rows) for column in (3, 4, 5)]
    rows.append(("total", "", "", *totals))
    cells = [(*row[:3], *(f"{number:,}" for number in row[3:]), f"{row[3] * itemsize:,}") for row in rows]
    return _align(("layer", "op", "output", "parameters", "FLOPs", "with gradient", "bytes"), cells, left=3)


def _layer_rows(rows, path, layer, shape, learned):
    """Append the rows of a layer; returns whether its output depends on parameters, given whether its input does.

    The gradient of a product costs two more products of its size, one for each factor; that of the input is omitted if
    the input does not depend on parameters.
    """
    children = layer.children(shape)
    op = f"{layer.kind} of {len(children)}" if children else repr(layer)
    own = sum(parameter.size for parameter in layer.parameters(shape))
    has_parameters = own > 0 or bool(layer.shared(shape))
    forward = layer.flops(shape)
    both = forward * (1 + learned + has_parameters)
    rows.append((path, op, str(tuple(layer.output_shape(shape))), own, forward, both))
    # Names end in the position within a sequence and the kind; what precedes them identifies the branch of a layer.
    branches: dict[str, bool] = {}
    for name, child, child_shape in children:
        branch = name.rsplit(".", 2)[0] if name.count(".") > 1 else ""
        before = branches.get(branch, learned)
        branches[branch] = _layer_rows(rows, f"{path}.{name}", child, child_shape, before)
    return learned or has_parameters or any(branches.values())


def state_table(pieces):
    """The table of the layer state's pieces, in their order; none where there are none."""
    names = [(buffer.name or f"{label}, of each sample", f"{buffer.size:,}") for label, buffer, _ in pieces]
    return [_align(("layer state", "elements"), names, left=1)] if names else []


# -- programs ------------------------------------------------------------------------------------------------


def program_table(plan, program):
    """The table of a program's rows: kernels, and where their arrays lie."""
    cells = []
    for number, op in enumerate(plan.ops(program)):
        named = zip(op.kernel.arrays, op.operands, strict=True)
        arrays = [f"{name}={_place(buffer)}" for name, buffer in named if buffer is not None]
        touched = sum(buffer.size for buffer in op.operands if buffer is not None) * plan.dtype.itemsize
        kernel = op.kernel.name
        kernel = kernel.rpartition(".")[2] if kernel.startswith("nbprop.") else kernel
        cells.append((str(number), op.label, kernel, " ".join(arrays), f"{touched:,}"))
    return _align((_PROGRAMS[program], "layer", "kernel", "arrays", "bytes"), cells, left=4)


def _place(buffer):
    """A buffer as a slice of the caller's array that contains it."""
    return f"{_SPACE_NAMES[buffer.space]}[{buffer.offset}:{buffer.offset + buffer.size}]"


def _align(heads, cells, left):
    """Columns of equal width; the first `left` of them flush left, the others flush right."""
    lines = [heads, *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column < left else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
