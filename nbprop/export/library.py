"""The C functions that stand for kernels: one of a kernel's name in a file of c/, found by its prototype.

Sources are C99 but for words that emission replaces: `real` is the element type, ``R(0.5)`` a constant of it, ``SQRT``,
``LOG``, ``POW``, ``SIN`` and ``COS`` are libm's functions of it; ``ACTIVATION`` stands for an activation's name,
``PLAIN_LOSS`` and ``OBSERVED_LOSS`` for that of an elementwise loss without and with kernels of its own for the plain
form.
"""

import functools
import re
from dataclasses import dataclass
from importlib import resources

from nbprop.numerics.activations import ACTIVATIONS

_FUNCTION = re.compile(
    r"/\*(?:(?!\*/).)*\*/\n"  # its comment
    r"static (?P<result>[^\n(]*?)(?P<name>\w+)\((?P<parameters>[^{]*?)\)\n\{\n.*?\n\}\n",
    re.DOTALL,
)
_CALL = re.compile(r"\b(\w+)\(")
_PLAIN_LOSSES = ("focal", "hinge", "log_cosh", "mae", "poisson_nll")
# A word that a function's name begins with: the names that it stands for.
_TEMPLATES = {
    "ACTIVATION": tuple(sorted(set(ACTIVATIONS) - {"softmax"})),
    "PLAIN_LOSS": _PLAIN_LOSSES,
    "OBSERVED_LOSS": (*_PLAIN_LOSSES, "binary_cross_entropy", "huber", "mse"),
}
_FLOAT_WORDS = {"SQRT": "sqrtf", "LOG": "logf", "POW": "powf", "SIN": "sinf", "COS": "cosf"}
_DOUBLE_WORDS = {"SQRT": "sqrt", "LOG": "log", "POW": "pow", "SIN": "sin", "COS": "cos"}


@dataclass(frozen=True)
class Function:
    """A C function: its text with the comment in front, its parameters' names in order, whether it gives a number."""

    name: str
    text: str
    parameters: tuple[str, ...]
    returns: bool
    calls: tuple[str, ...]


def functions_of(source):
    """The functions of a C source, in order."""
    found = []
    for match in _FUNCTION.finditer(source):
        parameters = tuple(re.findall(r"\w+", part)[-1] for part in match["parameters"].split(","))
        returns, body = not match["result"].startswith("void"), match[0][match.end("name") - match.start() :]
        found.append(Function(match["name"], match[0], parameters, returns, tuple(_CALL.findall(body))))
    return found


def sources(dtype):
    """{file name: text} of the C sources for a dtype ("float32" or "float64")."""
    other = "elementary_double.c" if dtype == "float32" else "elementary_float.c"
    folder = resources.files("nbprop.export") / "c"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".c")), key=lambda file: file.name)
    return {file.name: file.read_text(encoding="utf-8") for file in files if file.name != other}


@functools.cache
def library(dtype):
    """{name: Function} for a dtype, written in its type; each name of a template has functions of its own."""
    found = {}
    for text in sources(dtype).values():
        for function in functions_of(_in_type(text, dtype)):
            word = next((word for word in _TEMPLATES if function.name.startswith(word)), None)
            for name in _TEMPLATES.get(word or "", ("",)):
                (own,) = functions_of(function.text.replace(word, name)) if word else (function,)
                found[own.name] = own
    return found


def functions_for(net, dtype):
    """The same, and the functions of a network's own layers.

    Raises ValueError where such a layer's C is not what the reader takes, or its names are taken.
    """
    found = dict(library(dtype))
    for layer in {type(layer): layer for _, layer in net.nodes if layer.c_source}.values():
        own = functions_of(_in_type(layer.c_source, dtype))
        text = "".join(function.text for function in own)
        if "".join(text.split()) != "".join(_in_type(layer.c_source, dtype).split()):
            raise ValueError(
                f"export_c: the C of layer {layer.kind} must be static functions and nothing else, each with a comment "
                "in front, and { and } on lines of their own at its beginning and its end"
            )
        for function in own:
            if function.name in found:
                raise ValueError(
                    f"export_c: the C of layer {layer.kind} defines {function.name}, which is taken; rename it"
                )
            found[function.name] = function
    return found


def needed(names, functions):
    """The functions of these names and those that they call, callees first."""
    ordered = {}

    def take(name):
        if name in functions and name not in ordered:
            for callee in functions[name].calls:
                take(callee)
            ordered[name] = functions[name]

    for name in names:
        take(name)
    return list(ordered.values())


def _in_type(text, dtype):
    single = dtype == "float32"
    text = re.sub(r"\breal\b", "float" if single else "double", text)
    text = re.sub(r"\bR\(([^()]*)\)", r"\1f" if single else r"\1", text)
    for word, name in (_FLOAT_WORDS if single else _DOUBLE_WORDS).items():
        text = re.sub(rf"\b{word}\(", f"{name}(", text)
    return text
