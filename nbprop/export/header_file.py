"""stem.h: sizes, prototypes, and how to use them."""

from nbprop.export.signatures import described
from nbprop.export.source_file import prototype
from nbprop.export.steps import step_prototype


def header_file(export):
    """The text of stem.h. export: an api.Export."""
    stem, upper, real = export.stem, export.stem.upper(), export.real
    guard = f"{upper}_H"
    prototypes = [
        f"/* {described(program.name, export.net)} */\n{prototype(export, program.name, ';')}"
        for program in export.programs
    ]
    prototypes += [step_prototype(export, name) for name in export.steps]
    declared = "\n\n".join([*prototypes, export.selftest_prototype])
    sizes = "".join(f"#define {upper}_{name} {value} /* {text} */\n" for name, value, text in export.sizes)
    size = f"{upper}_N_PARAMS" if export.params.size else "1"
    order = "row-major, layer by layer, each weight before its bias"
    weights = f"/* The weights: {order}. */\nextern const {real} {stem}_params[{size}];\n\n"
    if export.weights_apart:
        weights = (
            f"/* The weights are {upper}_N_PARAMS numbers in {stem}.params, little-endian: {order}. Read them into an\n"
            " * array, which is params. */\n\n"
        )
    return (
        f"{_comment(export)}\n"
        f"#ifndef {guard}\n#define {guard}\n\n"
        "#ifdef __cplusplus\n"
        'extern "C" {\n'
        "#endif\n\n"
        f"{sizes}\n"
        f"{weights}"
        f"{declared}\n"
        "#ifdef __cplusplus\n"
        "}\n"
        "#endif\n\n"
        f"#endif /* {guard} */\n"
    )


def _comment(export):
    stem, upper = export.stem, export.stem.upper()
    x = "int" if export.integer_input else export.real
    loss = f", loss {export.loss.kind}" if export.loss else ""
    lines = [
        f"{stem}.h: a neural network with its derivatives, written by nbprop {export.version}.",
        "",
        *_folded(f"{export.net!r}{loss}, in use (dropout passes through, statistics are fixed)."),
        "",
        *_folded(
            f"Arrays hold the samples one after another, row-major: x is {_shape(export.net.input_shape)}, y "
            f"{_shape(export.net.output_shape)}, with n from 1 to {upper}_BATCH. Gradients are overwritten, not added "
            f"to. Nothing is allocated, and no state is kept: scratch is {upper}_SCRATCH elements of the caller's, one "
            "array for each thread; what it holds before and after a call has no meaning. Arrays of a call must not "
            "overlap, and nothing checks what is in them: integers must lie in their range."
        ),
        "",
        "Example:",
        "",
        f"    {export.real} scratch[{upper}_SCRATCH], y[{upper}_OUTPUT];",
        f"    {x} x[{upper}_INPUT] = {{{export.example}}};",
        f"    {stem}_forward({'params' if export.weights_apart else f'{stem}_params'}, 1, x, y, scratch);",
        "",
        *_folded(export.vector),
    ]
    if export.certificate:
        lines += ["", *(part for line in export.certificate for part in _folded(line))]
    return "/* " + "\n".join(f" * {line}".rstrip() if k else line for k, line in enumerate(lines)) + "\n */"


def _shape(of_one):
    return f"({', '.join(map(str, ('n', *of_one)))})"


def _folded(text, width=112):
    """Lines of a text, broken at spaces; what would end the comment is taken apart."""
    lines, line = [], ""
    for word in text.replace("*/", "* /").replace("/*", "/ *").split(" "):
        if line and len(line) + len(word) + 1 > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]
