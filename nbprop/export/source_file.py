"""stem.c: the weights, the kernels that are used, and a function for each program."""

import re
from itertools import groupby

from nbprop.export.library import needed
from nbprop.export.literals import initializer, wrapped
from nbprop.export.selftest import SELFTEST
from nbprop.export.signatures import arrays_of, parameters, result
from nbprop.export.steps import step_function

_MATH = ("sqrt", "log", "pow", "exp", "sin", "cos", "tan", "atan", "atan2", "fabs", "floor", "hypot", "cbrt", "tanh")
_HEADERS = (
    ("<math.h>", rf"\b({'|'.join(_MATH)})f?\(|\bINFINITY\b"),
    ("<stddef.h>", r"\bNULL\b"),
    ("<stdint.h>", r"\buint(32|64)_t\b"),
    ("<string.h>", r"\bmemcpy\("),
)


def source_file(export):
    """The text of stem.c. export: an api.Export."""
    stem, upper, real = export.stem, export.stem.upper(), export.real
    called = [call.function for program in export.programs for call in program.calls]
    called += [f"{name}_step" for name in export.steps]
    called += [name for name in SELFTEST if f"{name}(" in export.selftest]
    kernels = "\n".join(function.text for function in needed(called, export.known))
    functions = [_function(export, program) for program in export.programs]
    functions += [step_function(export, name) for name in export.steps]
    body = "\n".join([kernels, *functions, export.selftest])
    includes = "".join(f"#include {name}\n" for name, words in _HEADERS if re.search(words, body))
    state = ""
    if export.state.size:
        values = initializer(export.state, export.dtype)
        state = "/* What the layers have learned beside the weights. */\n"
        state += f"static const {real} state[] = {{\n{values}\n}};\n\n"
    weights = initializer(export.params if export.params.size else [0.0], export.dtype)
    size = f"{upper}_N_PARAMS" if export.params.size else "1"
    weights = "" if export.weights_apart else f"const {real} {stem}_params[{size}] = {{\n{weights}\n}};\n\n"
    return (
        f"/* {stem}.c: written by nbprop {export.version}; {stem}.h says how to use it. */\n\n"
        f'#include "{stem}.h"\n\n{includes}\n'
        "#ifdef __FAST_MATH__\n"
        f'#error "{stem}.c: compile without -ffast-math: exp, tanh and their kin round by adding large numbers"\n'
        "#endif\n\n"
        f"{weights}{state}{body}"
    )


def prototype(export, function, suffix):
    """The text in front of a function's body, or its declaration."""
    real = export.real
    texts = parameters(function, export.net, export.loss, real)
    return wrapped(f"{result(function, real)} {export.stem}_{function}", texts, suffix)


def _function(export, program):
    """An exported function: the program's calls, layer by layer, each where its output is wanted."""
    outputs = {served for call in program.calls for served in call.serves}
    optional = outputs & {"dx", "grads"} if program.name in ("vjp", "value_and_grad") else set()
    lines, asked = _start(export, program, optional)
    label = None
    for serves, group in groupby(program.calls, key=lambda call: call.serves):
        # What serves all outputs of which one must be there, or the loss, is always done.
        guard = _condition(serves, outputs, optional, asked)
        indent = "        " if guard else "    "
        if guard:
            lines.append(f"    if ({guard}) {{")
            label = None
        for call in group:
            if call.label != label:
                label = call.label
                lines.append(f"{indent}/* {label or 'output'} */")
            result_of = f"const {export.real} loss = " if call.returns else ""
            lines.append(wrapped(f"{indent}{result_of}{call.function}", call.arguments, ";"))
        if guard:
            lines.append("    }")
            label = None
    if program.name == "value_and_grad":
        lines.append("    return loss;")
    lines += _unused(export, program, optional)
    return f"{prototype(export, program.name, '')}\n{{\n" + "\n".join(lines) + "\n}\n"


def _start(export, program, optional):
    """(the first lines, {output: the C condition that its caller wants it})."""
    asked = {output: f"{output} != NULL" for output in optional}
    if program.name == "hvp_x":
        spare = f"    {export.real} *spare = scratch + {program.scratch}; /* gradients by parameters, of no use here */"
        return ([spare] if program.grads_always else []), asked
    if not (program.grads_always and "grads" in optional and "dx" in optional):
        return [], asked
    asked["grads"] = "with_grads"
    lines = [
        "    /* Some of the kernels that dx needs write gradients, too; without grads these go to scratch. */",
        "    const int with_grads = grads != NULL;",
        "    if (!with_grads) {",
        f"        grads = scratch + {program.scratch};",
        "    }",
    ]
    return lines, asked


def _condition(serves, outputs, optional, asked):
    if not optional or not serves <= optional or (serves == outputs and len(outputs) > 1):
        return ""
    return " || ".join(asked[output] for output in sorted(serves))


def _unused(export, program, optional):
    """Casts that keep a compiler from warning of parameters that the calls have no use for."""
    names = ["params", "n", *(array.name for array in arrays_of(program.name, export.net, export.loss, "")), "scratch"]
    used = {argument.partition(" ")[0] for call in program.calls for argument in call.arguments} | optional
    return [f"    (void){name};" for name in names if name not in used]
