"""Sphinx's configuration; build.py writes the sources beside it and runs Sphinx. Nothing is fetched from a network."""

import sys
from pathlib import Path

import nbprop

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from stage import run_example  # noqa: E402

project, author, release = "nbprop", "The nbprop authors", nbprop.__version__
copyright = author
extensions = [
    "docstrings",
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx_gallery.gen_gallery",
]
# Galleries are read as .rst; sphinx-gallery writes each script as a notebook, too.
exclude_patterns = ["gallery_sources/**", "extra/**", "gallery/*.ipynb", "history/*.ipynb"]
templates_path = []

# -- Markdown and notebooks: notebooks are jupytext's, and are run ----------------------------------------------
source_suffix = {".md": "myst-nb", ".rst": "restructuredtext"}
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["mystnb.unknown_mime_type"]

# -- the reference, from docstrings -----------------------------------------------------------------------------
autodoc_typehints = "none"  # numpydoc's sections say shapes, which types do not
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

# -- the galleries ----------------------------------------------------------------------------------------------
sphinx_gallery_conf = {
    "examples_dirs": ["gallery_sources/history", "gallery_sources/examples"],
    "gallery_dirs": ["history", "gallery"],
    "filename_pattern": run_example,
    "ignore_pattern": r"__init__",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "min_reported_time": 10_000,
    "remove_config_comments": True,
    "default_thumb_file": str(HERE / "pictures" / "trace.png"),
    "abort_on_example_error": True,
    "reset_argv": "stage.arguments_of",
}

# -- the pages --------------------------------------------------------------------------------------------------
highlight_language = "none"  # a block without a language is output
html_theme = "pydata_sphinx_theme"
html_title = "nbprop"
html_static_path = ["static"]
html_extra_path = ["extra"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_context = {"default_mode": "auto"}
html_show_sourcelink = False
html_sidebars = {page: [] for page in ("start", "install", "tasks", "performance", "search")}  # no section to list
html_copy_source = False
html_show_search_summary = False  # by a request, which a browser refuses for files
html_theme_options = {
    "show_prev_next": False,
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
