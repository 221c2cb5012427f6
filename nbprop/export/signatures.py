"""The prototypes of exported functions: which arrays each takes, in order, and what the header says of them."""

from dataclasses import dataclass

from nbprop.export.programs import integer_input


@dataclass(frozen=True)
class Array:
    """A pointer parameter of an exported function."""

    name: str
    c_type: str
    constant: bool = True

    @property
    def text(self):
        return f"{'const ' if self.constant else ''}{self.c_type} *{self.name}"


def arrays_of(function, net, loss, real):
    """The arrays that an exported function takes behind `params, n`, without scratch."""
    whole = integer_input(net)
    x = Array("x", "int" if whole else real)
    if function == "forward":
        return (x, Array("y", real, False))
    if function == "vjp":
        dx = () if whole else (Array("dx", real, False),)
        return (x, Array("dy", real), *dx, Array("grads", real, False))
    if function == "jvp":
        return (x, Array("dx", real), Array("dy", real, False))
    if function == "hvp_x":
        return (x, Array("dy", real), Array("v", real), Array("hv", real, False))
    target = Array("target", "int" if loss.target(net.output_shape)[1] else real)
    if function == "hvp":
        return (x, target, Array("v", real), Array("hv", real, False))
    return (x, target, Array("grads", real, False))


def parameters(function, net, loss, real):
    """The text of all its parameters, in order."""
    arrays = arrays_of(function, net, loss, real)
    return (f"const {real} *params", "int n", *(array.text for array in arrays), f"{real} *scratch")


def result(function, real):
    """What it returns."""
    return real if function == "value_and_grad" else "void"


def described(function, net):
    """What the header says of it."""
    if function == "forward":
        return "y = the network's outputs for n samples x."
    if function == "vjp":
        either = "" if integer_input(net) else "dx, by the input, and "
        absent = "grads may be NULL." if integer_input(net) else "dx or grads may be NULL."
        return f"Of sum(dy * y): the derivatives {either}grads, by the parameters. {absent}"
    if function == "jvp":
        return "dy = the derivative of y along the direction dx of x."
    if function == "hvp_x":
        return "Of sum(dy * y): hv = H v, H being its Hessian by x; the derivative of vjp's dx along v."
    if function == "hvp":
        return "hv = H v, H being the Hessian of the mean loss by the parameters."
    return "The mean loss of n samples, returned, and grads, its derivatives by the parameters; grads may be NULL."
