"""Numbers and arrays as C text."""

import numpy as np

_LINE = 116


def literal(value, dtype):
    """A number as a C constant of the element type, in the fewest digits that read back as the same number."""
    text = repr(float(value)) if dtype == np.float64 else str(np.float32(value))
    if not any(mark in text for mark in ".e"):
        text += ".0"
    return text if dtype == np.float64 else text + "f"


def initializer(values, dtype):
    """The lines between the braces of an array's definition."""
    lines, line = [], "   "
    for value in values:
        text = f" {literal(value, dtype)},"
        if len(line) + len(text) > _LINE:
            lines.append(line)
            line = "   "
        line += text
    return "\n".join([*lines, line]) if line.strip() else "\n".join(lines)


def wrapped(prefix, arguments, suffix):
    """A call or a prototype, broken between its arguments behind the opening parenthesis."""
    lines, line, indent = [], f"{prefix}(", " " * (len(prefix) + 1)
    for position, argument in enumerate(arguments):
        text = argument + (", " if position + 1 < len(arguments) else f"){suffix}")
        if len(line) + len(text.rstrip()) > _LINE and line.strip() and position:
            lines.append(line.rstrip())
            line = indent
        line += text
    return "\n".join([*lines, line])
