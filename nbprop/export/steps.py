"""Exported optimizer steps: sgd and adam, with the hyperparameters that nbprop's own have by default."""

from nbprop.export.literals import wrapped

_SGD = ("{real} *params", "const {real} *grads", "{real} lr")
_ADAM = ("{real} *params", "const {real} *grads", "{real} *state", "int step", "{real} lr")
# name: (parameters, arguments behind the kernel's arrays, what the header says of it)
STEPS = {
    "sgd": (_SGD, "params, grads, {n}, lr", "A step of gradient descent: params -= lr * grads."),
    "adam": (
        _ADAM,
        "params, grads, state, {n}, step, lr, 0.9, 0.999, {eps}",
        "A step of Adam with beta1 = 0.9, beta2 = 0.999, eps = 1e-8. state: {upper}_ADAM_STATE elements, 0 before the\n"
        " * first step; step counts from 0.",
    ),
}


def step_prototype(export, name):
    """The declaration of a step, with what it does in front."""
    comment = STEPS[name][2].format(upper=export.stem.upper())
    return f"/* {comment} */\n{_head(export, name, ';')}"


def step_function(export, name):
    """The text of a step."""
    eps = "1e-08f" if export.real == "float" else "1e-08"
    arguments = STEPS[name][1].format(n=export.net.n_params, eps=eps)
    return f"{_head(export, name, '')}\n{{\n    {name}_step({arguments});\n}}\n"


def _head(export, name, suffix):
    parameters = [text.format(real=export.real) for text in STEPS[name][0]]
    return wrapped(f"void {export.stem}_{name}", parameters, suffix)
