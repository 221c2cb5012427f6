"""stem_casadi.c: what `casadi.external` looks for: the network as a CasADi function, with its derivatives.

A CasADi function takes pointers to dense columns and sizes of work arrays; derivatives are functions whose names begin
with fwd1_, adj1_ and jac_. Their derivatives begin with these once more: the Hessian of a Lagrangian is the Jacobian of
adj1_. See "external" in CasADi's documentation.
"""

import re

FUNCTIONS = ("forward", "vjp", "jvp", "hvp_x")  # what the file calls

# name: (inputs, outputs), each (name, rows, columns) in sizes: I inputs, O outputs, - where nothing is stored.
_TABLE = {
    "": ((("x", "I", "1"),), (("y", "O", "1"),)),
    "fwd1_": ((("x", "I", "1"), ("out_y", "O", "1"), ("fwd_x", "I", "1")), (("fwd_y", "O", "1"),)),
    "adj1_": ((("x", "I", "1"), ("out_y", "O", "1"), ("adj_y", "O", "1")), (("adj_x", "I", "1"),)),
    "jac_": ((("x", "I", "1"), ("out_y", "O", "1")), (("jac_y_x", "O", "I"),)),
    "fwd1_adj1_": (
        (
            *(("x", "I", "1"), ("out_y", "O", "1"), ("adj_y", "O", "1"), ("out_adj_x", "I", "1")),
            *(("fwd_x", "I", "1"), ("fwd_out_y", "O", "1"), ("fwd_adj_y", "O", "1")),
        ),
        (("fwd_adj_x", "I", "1"),),
    ),
    "jac_adj1_": (
        (("x", "I", "1"), ("out_y", "O", "1"), ("adj_y", "O", "1"), ("out_adj_x", "I", "1")),
        (("jac_adj_x_x", "I", "I"), ("jac_adj_x_out_y", "I", "-O"), ("jac_adj_x_adj_y", "I", "O")),
    ),
}
_BODIES = {
    "": """
    const casadi_real *x = given(arg[0], w, I);
    if (res[0] != NULL) {
        S_forward(S_params, 1, x, res[0], w + SPARE);
    }
""",
    "fwd1_": """
    const casadi_real *x = given(arg[0], w, I);
    if (res[0] != NULL) {
        S_jvp(S_params, 1, x, given(arg[2], w + I, I), res[0], w + SPARE);
    }
""",
    "adj1_": """
    const casadi_real *x = given(arg[0], w, I);
    if (res[0] != NULL) {
        S_vjp(S_params, 1, x, given(arg[2], w + I, O), res[0], NULL, w + SPARE);
    }
""",
    "jac_": """
    const casadi_real *x = given(arg[0], w, I);
    if (res[0] != NULL) {
        for (int j = 0; j < I; j++) {
            S_jvp(S_params, 1, x, unit(w + I, I, j), res[0] + j * O, w + SPARE);
        }
    }
""",
    "fwd1_adj1_": """
    const casadi_real *x = given(arg[0], w, I);
    casadi_real *part = w + 2 * I + O;
    if (res[0] != NULL) {
        const casadi_real *dy = given(arg[2], w + I, O);
        S_hvp_x(S_params, 1, x, dy, given(arg[4], w + I + O, I), part, w + SPARE);
        S_vjp(S_params, 1, x, given(arg[6], w + I, O), res[0], NULL, w + SPARE);
        for (int j = 0; j < I; j++) {
            res[0][j] += part[j];
        }
    }
""",
    "jac_adj1_": """
    const casadi_real *x = given(arg[0], w, I);
    if (res[0] != NULL) {
        const casadi_real *dy = given(arg[2], w + I, O);
        for (int j = 0; j < I; j++) {
            S_hvp_x(S_params, 1, x, dy, unit(w + I + O, I, j), res[0] + j * I, w + SPARE);
        }
    }
    if (res[2] != NULL) {
        for (int i = 0; i < O; i++) {
            S_vjp(S_params, 1, x, unit(w + I, O, i), res[2] + i * I, NULL, w + SPARE);
        }
    }
""",
}


def casadi_file(export):
    """The text of stem_casadi.c. export: an api.Export in float64."""
    values = {name: value for name, value, _ in export.sizes}
    inputs, outputs, scratch = (values[name] for name in ("INPUT", "OUTPUT", "SCRATCH"))
    spare = 3 * inputs + outputs
    sizes = {"I": inputs, "O": outputs, "1": 1}
    shapes: dict[str, str] = {}

    def shape(rows, columns):
        """The name of a sparsity pattern; its text goes into shapes."""
        stored, rows, columns = not columns.startswith("-"), sizes[rows], sizes[columns.removeprefix("-")]
        name = f"{'dense' if stored else 'empty'}_{rows}_{columns}"
        pattern = [rows, columns, 1] if stored else [rows, columns, *[0] * (columns + 1)]
        shapes[name] = f"static const casadi_int {name}[{len(pattern)}] = {{{', '.join(map(str, pattern))}}};\n"
        return name

    functions = []
    for prefix, (taken, given) in _TABLE.items():
        name = f"{prefix}{export.stem}"
        body = _BODIES[prefix].replace("S_", f"{export.stem}_").replace("SPARE", str(spare))
        body = re.sub(r"\bI\b", str(inputs), re.sub(r"\bO\b", str(outputs), body))
        functions.append(
            f"{_counted(name, 'in', [(n, shape(r, c)) for n, r, c in taken])}"
            f"{_counted(name, 'out', [(n, shape(r, c)) for n, r, c in given])}"
            f"int {name}_work(casadi_int *sz_arg, casadi_int *sz_res, casadi_int *sz_iw, casadi_int *sz_w)\n{{\n"
            f"    *sz_arg = {len(taken)};\n    *sz_res = {len(given)};\n"
            f"    *sz_iw = 0;\n    *sz_w = {spare + scratch};\n"
            "    return 0;\n}\n\n"
            f"int {name}(const casadi_real **arg, casadi_real **res, casadi_int *iw, casadi_real *w, int mem)\n{{"
            f"{body}    (void)iw;\n    (void)mem;\n    return 0;\n}}\n"
        )
    text = "\n".join(functions)
    prototypes = "".join(f"{line};\n" for line in text.splitlines() if line.endswith(")") and not line.startswith(" "))
    units = _UNIT if "unit(" in text else ""
    return (
        f"/* {export.stem}_casadi.c: the network of {export.stem}.h for casadi.external, written by nbprop "
        f"{export.version}.\n"
        " *\n"
        f" *     gcc -O3 -shared -fPIC {export.stem}.c {export.stem}_casadi.c -o {export.stem}.so -lm\n"
        f' *     net = casadi.external("{export.stem}", "./{export.stem}.so")\n'
        " *\n"
        " * x and y are columns of a sample's elements, row-major. First and second derivatives are exact. */\n\n"
        f'#include <stddef.h>\n\n#include "{export.stem}.h"\n\n'
        "#ifndef casadi_real\n#define casadi_real double\n#endif\n"
        "#ifndef casadi_int\n#define casadi_int long long int\n#endif\n\n"
        f"{prototypes}\n{''.join(sorted(shapes.values()))}\n{_GIVEN}{units}\n{text}"
    )


_GIVEN = """/* An argument, or zeros where CasADi gives none. */
static const casadi_real *given(const casadi_real *argument, casadi_real *room, int size)
{
    if (argument != NULL) {
        return argument;
    }
    for (int k = 0; k < size; k++) {
        room[k] = 0.0;
    }
    return room;
}
"""
_UNIT = """
/* A column of the unit matrix. */
static const casadi_real *unit(casadi_real *room, int size, int column)
{
    for (int k = 0; k < size; k++) {
        room[k] = k == column ? 1.0 : 0.0;
    }
    return room;
}
"""


def _counted(name, direction, arrays):
    """The functions that tell of inputs or outputs: how many, their names and their shapes."""
    names, shapes = (
        "".join(f"    case {k}:\n        return {text};\n" for k, text in enumerate(texts))
        for texts in ([f'"{name}"' for name, _ in arrays], [shape for _, shape in arrays])
    )

    def by_number(of, kind, cases):
        return (
            f"{kind} *{name}_{of}_{direction}(casadi_int i)\n{{\n    switch (i) {{\n{cases}    default:\n"
            "        return NULL;\n    }\n}\n\n"
        )

    return (
        f"casadi_int {name}_n_{direction}(void)\n{{\n    return {len(arrays)};\n}}\n\n"
        f"{by_number('name', 'const char', names)}{by_number('sparsity', 'const casadi_int', shapes)}"
    )
