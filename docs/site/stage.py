"""The sources that Sphinx reads, made from the repository: pages, the reference, galleries, notebooks.

Documents of the repository link to each other and to source files, so that they can be read there. Here these links
lead to the pages made of them, by their titles where the text is a file's name; a link to a file that has no page
becomes its name.
"""

import ast
import importlib
import inspect
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from docstrings import escaped

import nbprop
from nbprop.runtime.signatures import OUTPUTS, SIGNATURES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXAMPLES = ROOT / "examples"

# A document of the repository: the page that it becomes.
PAGES = {
    **{path.relative_to(ROOT).as_posix(): path.stem for path in sorted((ROOT / "docs").glob("*.md"))},
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
    "examples/README.md": "examples",
    "benchmarks/README.md": "benchmarks",
    **{path.relative_to(ROOT).as_posix(): f"gallery/{path.stem}" for path in sorted(EXAMPLES.glob("*.py"))},
    **{
        path.relative_to(ROOT).as_posix(): f"history/{path.stem}"
        for path in sorted((EXAMPLES / "history").glob("*.py"))
        if "__main__" in path.read_text(encoding="utf-8") and path.stem != "results"
    },
    "examples/history": "history/index",
}

# Examples that the build runs, each some seconds; the others take longer, and have a stored picture.
RUN = ("xor", "explain", "pinn", "digits", "own_layer", "curve_fit_bounds")
run_example = rf"/examples/({'|'.join(RUN)})\.py$"

# The stored picture of a script, if its name is another.
PICTURES = {"rumelhart_1986": ["rumelhart_1986", "family_trees"]}


def stage(folder):
    """Write everything into a folder."""
    for name in ("conf.py", "docstrings.py", "stage.py"):
        shutil.copy(HERE / name, folder / name)
    shutil.copytree(HERE / "static", folder / "static")
    shutil.copytree(EXAMPLES / "pictures", folder / "pictures")
    shutil.copy(ROOT / "docs" / "trace.png", folder / "pictures")
    for source, page in PAGES.items():
        if source.endswith(".md"):
            text = (ROOT / source).read_text(encoding="utf-8")
            text = with_links_to_pages(text, source, folder)
            (folder / f"{page}.md").write_text(with_links_to_names(text) if page == "tasks" else text, encoding="utf-8")
    for page in HERE.glob("*.md"):
        shutil.copy(page, folder)
    list_the_rest(folder)
    stage_reference(folder / "api")
    stage_gallery(folder / "gallery_sources" / "history", EXAMPLES / "history", "History", HISTORY)
    stage_gallery(folder / "gallery_sources" / "examples", EXAMPLES, "Examples", SHORT)
    stage_notebooks(folder / "notebooks")
    stage_extra(folder / "extra", folder)


def list_the_rest(folder):
    """Documents that no page lists are under the guides."""
    listed = {line.strip() for page in HERE.glob("*.md") for line in page.read_text(encoding="utf-8").splitlines()}
    rest = [page for source, page in PAGES.items() if source.endswith(".md") and page not in listed]
    guides = (folder / "guides.md").read_text(encoding="utf-8")
    (folder / "guides.md").write_text(
        guides.rstrip().removesuffix("```") + "\n".join([*rest, "```", ""]), encoding="utf-8"
    )


# -- documents -----------------------------------------------------------------------------------------------


def with_links_to_pages(text, source, folder):
    """A document's text with its links changed; pictures that it shows are copied."""

    def changed(match):
        mark, label, target = match.groups()
        if target.startswith(("http:", "https:", "#")):
            return match[0]
        name, _, anchor = target.partition("#")
        path = Path(os.path.normpath((ROOT / source).parent / name)).relative_to(ROOT).as_posix()
        if mark:
            (folder / "pictures").mkdir(exist_ok=True)
            shutil.copy(ROOT / path, folder / "pictures")
            return f"![{label}](pictures/{Path(path).name})"
        if path.startswith("examples/pictures/"):
            return f"[{label}](pictures/{Path(path).name})"
        if path in PAGES:
            if label.endswith(".md"):
                label = (ROOT / path).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
            suffix = ".md" if path.endswith(".md") else ".rst"
            return f"[{label}]({PAGES[path]}{suffix}{'#' + anchor if anchor else ''})"
        return f"`{label}`" if re.fullmatch(r"[\w./-]+", label) else label

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", changed, text)


def with_links_to_names(text):
    """A table's names of functions, in the second column, as links to their pages of the reference."""
    known = {page_of(*name) for names in public_names().values() for name in names}

    def linked(match):
        name = re.match(r"(?:nbprop\.)?([\w.]+)", match[1])[1]
        candidates = [name, f"estimators.{name}"]
        page = next((page for page in candidates if page in known), None)
        return f"[{match[0]}](api/{page}.rst)" if page else match[0]

    rows = []
    for row in text.splitlines():
        cells = row.split("|")
        if len(cells) == 5:
            cells[2] = re.sub(r"`([^`]+)`", linked, cells[2])
        rows.append("|".join(cells))
    return "\n".join(rows) + "\n"


# -- the reference -------------------------------------------------------------------------------------------

# A part of the reference, and where its names are defined; a name that fits none is under the last.
GROUPS = {
    "Networks and plans": ("nbprop.networks", "nbprop.lowering"),
    "Layers": ("nbprop.layers",),
    "Losses": ("nbprop.losses",),
    "Gradients and derivatives": ("nbprop.autodiff",),
    "Optimizers": ("nbprop.optimizers",),
    "Training and prediction": ("nbprop.training", "nbprop.prediction"),
    "Solvers": ("nbprop.solvers",),
    "Simulations and sequences": ("nbprop.rollouts", "nbprop.generation"),
    "Analysis": ("nbprop.analysis",),
    "Files, export and other libraries": ("nbprop.io", "nbprop.export", "nbprop.interchange"),
    "Other": ("",),
}
# Modules with public names of their own; of nbprop.cuda, those that need no CUDA.
MODULES = {
    "nbprop.callbacks": None,
    "nbprop.schedules": None,
    "nbprop.plot": None,
    "nbprop.estimators": None,
    "nbprop.data": None,
    "nbprop.cuda": ("available", "missing", "simulated", "versions"),
}


def public_names():
    """{part of the reference: [(module, name)]} of all public functions and classes."""
    stub = ast.parse((ROOT / "nbprop" / "__init__.pyi").read_text(encoding="utf-8"))
    found = {group: [] for group in GROUPS}
    for node in stub.body:
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            if node.module != "nbprop":
                group = next(g for g, places in GROUPS.items() if node.module.startswith(places))
                found[group].append(("nbprop", alias.name))
    for module, names in MODULES.items():
        loaded = importlib.import_module(module)
        names = (
            names
            or getattr(loaded, "__all__", None)
            or [
                n
                for n, o in vars(loaded).items()
                if callable(o) and not n.startswith("_") and inspect.unwrap(o).__module__ == module
            ]
        )
        found[module] = [(module, name) for name in names if callable(getattr(loaded, name))]
    return {group: sorted(names) for group, names in found.items() if names}


def page_of(module, name):
    """The page of a name in the reference."""
    return name if module == "nbprop" else f"{module.removeprefix('nbprop.')}.{name}"


def stage_reference(folder):
    """A page for each public name, and one that lists them."""
    folder.mkdir()
    index = ["Reference", "=========", "", "Every public name, each with a page of its own.", ""]
    for group, names in public_names().items():
        index += [group, "-" * len(group), "", ".. list-table::", "   :widths: 30 70", ""]
        for module, name in names:
            page = page_of(module, name)
            (folder / f"{page}.rst").write_text(reference_page(module, name), encoding="utf-8")
            index += [
                f"   * - :doc:`{page} <{page}>`",
                f"     - {first_line(getattr(importlib.import_module(module), name))}",
            ]
        index += ["", ".. toctree::", "   :hidden:", ""]
        index += [f"   {page_of(*name)}" for name in names]
        index.append("")
    (folder / "index.rst").write_text("\n".join(index) + "\n", encoding="utf-8")


def first_line(thing):
    """The purpose of a function or class, as reStructuredText."""
    text = (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")
    return escaped(text)


def reference_page(module, name):
    """The page of one name."""
    title = f"{module}.{name}"
    thing = getattr(importlib.import_module(module), name)
    kind = "autoclass" if inspect.isclass(thing) else "autofunction"
    lines = [title, "=" * len(title), "", f".. currentmodule:: {module}", "", f".. {kind}:: {name}"]
    if kind == "autoclass":
        # scikit-learn gives each estimator set_fit_request and its like, with docstrings that refer to its own pages.
        requests = [method for method in dir(thing) if re.fullmatch(r"set_\w+_request", method)]
        lines += ["   :members:", f"   :exclude-members: {', '.join(requests)}"]
    if module == "nbprop" and name in SIGNATURES:
        lines += ["", *call_table(SIGNATURES[name])]
    return "\n".join(lines) + "\n"


def call_table(signature):
    """How a function of a plan is called, from its row in the table of signatures."""
    from nbprop.runtime import arguments as arg

    takes = ", ".join(f"``{name}``" for name in ("plan", *signature.takes.split()))
    rows = [
        ("takes, in this order (``?``: may be None)", takes),
        ("writes", ", ".join(f"``{arg.NAMES[argument]}``" for argument in signature.written)),
        ("returns", signature.returns or "nothing"),
        ("from", "Python and ``@njit`` code" + ("" if signature.beyond_gradients else "; plans on a GPU, too")),
    ]
    if signature.out:
        rows.insert(2, ("shape of ``out``", f"``{OUTPUTS[signature.out][1]}``"))
    lines = [".. list-table:: How it is called", "   :widths: 35 65", ""]
    for left, right in rows:
        lines += [f"   * - {left}", f"     - {right}"]
    return [*lines, ""]


# -- galleries -----------------------------------------------------------------------------------------------

HISTORY = """Experiments that made backpropagation famous, repeated with the original settings.
:doc:`All results, beside the papers' </examples>`. The pictures are stored: most runs take minutes."""
SHORT = """Short programs, each under a hundred lines. Where output is shown, it is from the build of this site."""


def stage_gallery(folder, scripts, title, text):
    """Copies of scripts as sphinx-gallery takes them: a title, their picture, their text, their code."""
    folder.mkdir(parents=True)
    lines = [title, "=" * len(title), "", text, ""]
    (folder / "GALLERY_HEADER.rst").write_text("\n".join(lines), encoding="utf-8")
    for path in sorted(scripts.glob("*.py")):
        if path.relative_to(ROOT).as_posix() in PAGES:
            (folder / path.name).write_text(gallery_script(path), encoding="utf-8")


def gallery_script(path):
    source = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source), clean=True)
    body = source.split('"""', 2)[2].lstrip("\n")
    first, _, rest = docstring.partition("\n\n")
    title = escaped(" ".join(first.split()).rstrip("."))
    pictures = [p for p in PICTURES.get(path.stem, [path.stem]) if (EXAMPLES / "pictures" / f"{p}.png").exists()]
    shown = path.stem not in RUN
    lines = [title, "=" * len(title), ""]
    for picture in pictures if shown else ():
        lines += [f".. image:: /pictures/{picture}.png", f"   :alt: what {path.name} draws", ""]
    for paragraph in rest.split("\n\n"):
        rows = paragraph.splitlines()
        if rows and all(row.startswith("    ") for row in rows):
            lines += ["::", "", *rows, ""]
        else:
            lines += [escaped(" ".join(paragraph.split())), ""]
    head = '"""\n' + "\n".join(lines).replace('"""', "'''") + '"""\n\n'
    if shown and pictures:
        head += f"# sphinx_gallery_thumbnail_path = 'pictures/{pictures[0]}.png'\n"
    return head.replace("\\", "\\\\") + body


def arguments_of(gallery_conf, script_vars):
    """The arguments that an example runs with: a picture, where it draws one."""
    script = Path(script_vars["src_file"])
    if "picture_option(" in script.read_text(encoding="utf-8"):
        return ["--picture", str(script.with_suffix(".png"))]
    return []


# -- notebooks -----------------------------------------------------------------------------------------------


def stage_notebooks(folder):
    """The notebooks of examples/notebooks, as Jupyter's files; Sphinx runs them."""
    import jupytext

    folder.mkdir()
    paths = sorted((EXAMPLES / "notebooks").glob("*.py"))
    for path in paths:
        jupytext.write(jupytext.read(path), folder / f"{path.stem}.ipynb")
    lines = [
        "# Notebooks",
        "",
        "Run by the build of this site. In a clone, `jupytext --to ipynb examples/notebooks/*.py` makes them",
    ]
    lines += ["Jupyter's files.", "", "```{toctree}", ":maxdepth: 1", "", *(path.stem for path in paths), "```", ""]
    (folder / "index.md").write_text("\n".join(lines), encoding="utf-8")


# -- pages that are not Sphinx's -----------------------------------------------------------------------------


def stage_extra(folder, pages):
    """The dashboard, and a trace to step through, each with a link from a page."""
    folder.mkdir()
    net = nbprop.network((3,), nbprop.dense(4, activation="tanh"), nbprop.dense(3, activation="tanh"), nbprop.dense(2))
    plan, params = nbprop.plan(net, loss="mse"), nbprop.init(net, seed=4)
    nbprop.trace(plan, params, np.array([[0.8, -0.4, 0.1]]), np.array([[0.9, -0.6]]), lr=0.3).save(folder / "step.html")
    link(pages / "teaching.md", "step.html", "Step through a training step, in the browser")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import build_dashboard

    from dashboard import vendor

    try:
        build_dashboard.build(build_dashboard.RESULTS, folder / "dashboard")
    except vendor.VendorError as error:
        print(f"the site goes without the dashboard: {error}")
    else:
        link(pages / "performance.md", "dashboard/index.html", "The dashboard: every row, and its history by commit")


def link(page, address, text):
    """Add a line with a link to the end of a page's first section."""
    before, heading, after = page.read_text(encoding="utf-8").partition("\n## ")
    page.write_text(f'{before}\n<p><a href="{address}">{text}</a></p>\n{heading}{after}', encoding="utf-8")
