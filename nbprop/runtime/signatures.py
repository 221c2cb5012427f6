"""The one table of the public functions of a plan: what each takes, writes and walks.

From it come the compiled entry of a function (entries.py), its Python and its `@njit` face (autodiff/faces.py), which
arguments may share memory, what errors say, the calls on a device (cuda/calls.py) and the table in docs/functions.md.
A new function is a row here, its program in lowering/programs.py, and a `def` with a docstring in autodiff/.
"""

from dataclasses import dataclass

from nbprop.program import elements, table
from nbprop.runtime import arguments as arg

# What an argument is in a call: `Signature.role`.
ABSENT, NEEDED, OPTIONAL = range(3)

# Scalars, which every face checks alike.
_SCALARS = ("accumulate", "step")


@dataclass(frozen=True)
class Signature:
    """A public function of a plan."""

    name: str
    takes: str  # its arguments behind `plan`, in order; a question mark behind one that may be None
    writes: str  # the arrays it writes beside work and state, which every function does
    program: int  # of program/table.py
    program_with_dx: int | None = None  # where it is another if dx is given
    others: tuple = ()  # further programs that it may walk; derivative_entries.py says when
    out: str = ""  # the shape of `out`, a name in OUTPUTS
    returns: str = ""  # what it returns, if anything

    @property
    def parameters(self):
        """The names behind `plan`, in order."""
        return tuple(self.takes.replace("?", "").split())

    @property
    def arrays(self):
        """The places (of arguments.py) of the arrays it takes, in the order of its parameters."""
        return tuple(arg.NAMES.index(name) for name in self.parameters if name not in _SCALARS)

    @property
    def written(self):
        """The places of what it writes, which must share memory with no other argument of the call."""
        return tuple(arg.NAMES.index(name) for name in ("state", "work", *self.writes.split()))

    @property
    def accumulates(self):
        """Whether it takes `accumulate`."""
        return "accumulate" in self.parameters

    @property
    def programs(self):
        """All programs it may walk."""
        return tuple(p for p in (self.program, self.program_with_dx, *self.others) if p is not None)

    @property
    def beyond_gradients(self):
        """Whether its programs have kernels that a plan does not load when it is made, and no device runs."""
        return self.program > table.VJP_INPUT

    @property
    def one_by_one(self):
        """Whether it gives each sample derivatives of its own, which a layer with statistics over a batch has not."""
        return self.out in ("sample rows", "output rows")

    def role(self, argument):
        """ABSENT, NEEDED or OPTIONAL."""
        name = arg.NAMES[argument]
        return OPTIONAL if f"{name}?" in self.takes.split() else NEEDED if name in self.parameters else ABSENT


_FORWARD = "params x y work state? step lengths?"
_VALUE = "params x target work weights? state? step lengths?"
_GRADIENT = "params x target grads work weights? accumulate state? step lengths?"
_BACKWARD = "params x dy grads dx? work accumulate state? step lengths?"
_PRODUCT = "params v x target out work weights? state? step lengths?"

SIGNATURES = {
    signature.name: signature
    for signature in (
        Signature("forward", _FORWARD, "y", table.FORWARD),
        Signature("value", _VALUE, "", table.VALUE, returns="loss"),
        Signature("value_and_grad", _GRADIENT, "grads", table.VALUE_AND_GRAD, returns="loss"),
        Signature("backward", _BACKWARD, "grads dx", table.BACKWARD, table.BACKWARD_INPUT),
        Signature("vjp", _BACKWARD, "grads dx", table.VJP, table.VJP_INPUT),
        Signature("jvp", "params v? x dx? out work state? step lengths?", "out", table.JVP, out="outputs"),
        Signature("hvp", f"{_PRODUCT} dx?", "out", table.HVP, out="params"),
        Signature("gauss_newton_product", _PRODUCT, "out", table.GAUSS_NEWTON, out="params"),
        Signature("fisher_product", _PRODUCT, "out", table.FISHER, others=(table.GAUSS_NEWTON,), out="params"),
        Signature(
            "jacobian",
            "params x out work state? step lengths?",
            "out",
            table.JACOBIAN,
            others=(table.NEXT_OUTPUT, table.VJP, table.BACKWARD),
            out="output rows",
        ),
        Signature(
            "per_sample_grads",
            "params x target out work state? step lengths?",
            "out",
            table.PER_SAMPLE,
            others=(table.SAMPLE_GRAD,),
            out="sample rows",
        ),
    )
}


# -- what arrays hold ------------------------------------------------------------------------------------------

# The shape of `out` for a plan and n samples, and how documentation writes it.
OUTPUTS = {
    "params": (lambda plan, n: (plan.n_params,), "(n_params,)"),
    "outputs": (lambda plan, n: (n, *plan.output_shape), "(n, *output_shape)"),
    "output rows": (lambda plan, n: (n * plan.unit_size, plan.n_params), "(n * outputs, n_params)"),
    "sample rows": (lambda plan, n: (n, plan.n_params), "(n, n_params)"),
}
INTEGERS = (arg.X, arg.TARGET, arg.LENGTHS)  # what may hold integers, lengths nothing else


def sample_shapes(plan):
    """{argument: (the shape of one sample's part, element code)} of the arrays whose first axis is the samples'."""
    real = plan.element_code
    return {
        arg.X: (plan.input_shape, plan.x_code),
        arg.TARGET: (plan.target_shape, plan.target_code),
        arg.Y: (plan.output_shape, real),
        arg.DY: (plan.output_shape, real),
        arg.DX: (plan.input_shape, real),
        arg.WEIGHTS: ((), real),
        arg.LENGTHS: ((), elements.ANY_INTEGER),
    }


def flat_sizes(plan):
    """{argument: elements} of the 1-D arrays of the plan's dtype; of work the fewest."""
    sizes = dict.fromkeys((arg.PARAMS, arg.GRADS, arg.V), plan.n_params)
    return sizes | {arg.WORK: plan.work_size, arg.STATE: plan.state_size}


# -- documentation ---------------------------------------------------------------------------------------------


def reference():
    """The table as Markdown, as docs/functions.md has it."""
    rows = ["| function | takes | writes | out | returns |", "|---|---|---|---|---|"]
    for signature in SIGNATURES.values():
        takes = ", ".join(f"`{name}`" for name in ("plan", *signature.takes.split()))
        writes = ", ".join(f"`{arg.NAMES[argument]}`" for argument in signature.written)
        out = f"`{OUTPUTS[signature.out][1]}`" if signature.out else ""
        rows.append(f"| `{signature.name}` | {takes} | {writes} | {out} | {signature.returns} |")
    return "\n".join(rows) + "\n"
