"""nbprop's docstrings as reStructuredText: they are plain text that contains *, | and equations, and no markup.

numpydoc reads the sections. What is around them, and all names and types, is escaped here; an indented paragraph is an
equation or code, and lines of the form "name : what it is" are a list.
"""

import itertools
import re

_HEADING = re.compile(r"^(Parameters|Returns|Raises|Yields|Examples|Notes|See Also|References|Attributes)$")
_WIDTH = 95  # a line of a docstring that is longer was wrapped at the margin
_ENTRY = re.compile(r"^([\w, *]+) : (.*)$")


def escaped(text):
    """Plain text as reStructuredText: nothing in it is markup, but `quoted` code is code."""
    parts = re.split(r"(``?[^`]+``?)", text)
    return "".join(
        f"``{part.strip('`')}``" if k % 2 else re.sub(r"([*|\\]|(?<=\w)_(?=\W|$))", r"\\\1", part).replace("`", "\\`")
        for k, part in enumerate(parts)
    )


def paragraphs(lines):
    """Lists of lines without the blank lines between them."""
    found = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [paragraph for paragraph in found if paragraph]


def free_text(lines):
    """Text outside the sections."""
    out = []
    for paragraph in paragraphs(lines):
        if paragraph[0].startswith(">>>"):
            out += [*paragraph, ""]
        elif all(line.startswith("  ") for line in paragraph):
            out += ["::", "", *("    " + line.lstrip() for line in paragraph), ""]
        elif _ENTRY.match(paragraph[0]):
            for line in paragraph:
                entry = _ENTRY.match(line)
                out += [f"- **{escaped(entry[1])}**: {escaped(entry[2])}"] if entry else ["  " + escaped(line.strip())]
            out.append("")
        else:
            first = next((k for k, line in enumerate(paragraph) if line.startswith("  ")), len(paragraph))
            out += [*map(escaped, paragraph[:first]), ""]
            if first < len(paragraph):
                out += free_text(paragraph[first:])
    return out


def unwrapped(section):
    """A section's entries with what was only wrapped at the margin on one line, since it is no description."""
    out, last = section[:2], ""
    for line in section[2:]:
        name = bool(last) and len(out) > 2 and not out[-1].startswith(" ")
        if name and line.startswith(" ") and len(last) + 1 + len(line.split()[0]) > _WIDTH:
            out[-1] += " " + line.strip()
        else:
            out.append(line)
        last = line
    return out


def divided(section):
    """(a section's list of entries, the text that follows it), which numpydoc would take for entries."""
    for k in range(3, len(section)):
        line = section[k]
        if line.strip() and not section[k - 1].strip() and not line.startswith(" ") and not _ENTRY.match(line):
            return section[:k], section[k:]
    return section, []


def rest_of(lines):
    """A docstring's lines as numpydoc and Sphinx read them."""
    notes = []
    starts = [
        k for k in range(len(lines) - 1) if _HEADING.match(lines[k]) and re.fullmatch("-{3,}", lines[k + 1].strip())
    ]
    out = free_text(lines[: starts[0] if starts else len(lines)])
    for start, end in itertools.pairwise([*starts, len(lines)]):
        section = lines[start:end]
        if section[0] == "Examples":
            text = section[2:]
            out += [*section[:2], *text]
        elif section[0] == "References":
            out += [*section[:2], *free_text(section[2:])]
        elif section[0] == "Notes":
            notes += free_text(section[2:])
        else:
            section, text = divided(section)
            notes += free_text(text)
            section = unwrapped(section)
            out += [*section[:2], *(line if line.lstrip().startswith("**") else escaped(line) for line in section[2:])]
        out.append("")
    return [*out, "Notes", "-----", *notes] if notes else out


def setup(app):
    """As a Sphinx extension; it comes before numpydoc."""

    def process(app, what, name, thing, options, lines):
        lines[:] = rest_of(list(lines))

    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", process, priority=100)
    return {"parallel_read_safe": True}
