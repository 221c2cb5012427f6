"""The site: built without a warning and without a network, and read in a real browser, on a phone and on a desktop."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nbprop
import nbprop.estimators
from support import ROOT, chromium

pytest.importorskip("pydata_sphinx_theme")
pytestmark = pytest.mark.more

# Reads the pages that differ most; every page is loaded by the test of errors.
PAGES = (
    *("index", "start", "tasks", "simulation", "performance", "examples", "design", "api/index", "api/value_and_grad"),
    *("api/fit", "api/plot.losses", "history/index", "history/elastic", "gallery/xor", "notebooks/xor", "search"),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built pages. Sphinx's warnings are errors, and so are those of notebooks and examples.

    NBPROP_SITE names a folder that `make docs` has just written, while one works on the pages' looks.
    """
    if "NBPROP_SITE" in os.environ:
        return Path(os.environ["NBPROP_SITE"])
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "site" / "build.py", "--output", folder / "docs"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return folder / "docs" / "html"


@pytest.fixture(scope="module")
def browser():
    if chromium.find() is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with chromium.page() as page:
        yield page


@pytest.fixture
def page(browser):
    """A tab that may leave no problem behind, and must ask no network for anything."""
    browser.problems.clear()
    browser.requests.clear()
    yield browser
    assert browser.problems == []
    assert [address for address in browser.requests if not address.startswith(("file:", "data:", "blob:"))] == []


def test_every_public_name_has_a_page_with_an_example(site):
    for name in nbprop.__all__:
        thing = getattr(nbprop, name)
        if inspect.ismodule(thing):  # a page for each of its names
            continue
        text = (site / "api" / f"{name}.html").read_text(encoding="utf-8")
        assert f'id="nbprop.{name}"' in text, name
        if not (inspect.isclass(thing) and issubclass(thing, Exception)):
            assert "&gt;&gt;&gt; " in text, f"{name} has no example"


def test_what_docstrings_say_is_no_name_of_an_argument(site):
    """Text after a list of parameters is text, and what is quoted is code."""
    for path in (site / "api").glob("*.html"):
        (article,) = re.findall(r"<article.*?</article>", path.read_text(encoding="utf-8"), re.S)
        assert "``" not in re.sub(r"<pre.*?</pre>", "", article, flags=re.S), path.name
        for term in re.findall(r"<dt>(.*?)</dt>", article, re.S):
            name = re.sub("<[^>]+>", "", term.partition('<span class="classifier">')[0])
            assert not re.search(r"\. |\.$", name), (path.name, name)


def test_tasks_name_functions_that_exist():
    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1:4] for row in text.splitlines() if row.startswith("| ") and "I want" not in row]
    assert len(rows) >= 20
    for task, names, where in rows:
        assert "](" in where, task
        for name in re.findall(r"`(?:nbprop\.)?(\w+)[`.(]", names.partition(" with ")[0]):
            assert name in nbprop.__all__ or hasattr(nbprop, name) or hasattr(nbprop.estimators, name), (task, name)


def test_every_link_leads_to_a_page_and_a_place(site):
    """Of all pages, in the HTML that a reader gets."""
    others = {"_static", "dashboard"}
    texts = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html") if not others & {*path.parts}}
    places = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in texts.items()}
    assert len(texts) > 120
    wrong = []
    for path, text in texts.items():
        for target in re.findall(r'<a [^>]*href="([^"]+)"', text):
            if target.startswith(("http:", "https:", "mailto:")):
                continue
            name, _, anchor = target.partition("#")
            there = Path(path.parent / name).resolve() if name else path
            if not there.exists() or (anchor and there in places and anchor not in places[there]):
                wrong.append(f"{path.relative_to(site)}: {target}")
    assert not wrong, "\n".join(wrong[:20])


def test_no_page_has_an_error_in_the_console(site, page):
    page.size(1400, 900)
    for path in sorted(site.rglob("*.html")):
        if "_static" not in path.parts:
            page.open(path.as_uri())
            assert page.problems == [], path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_pages_fit_and_are_readable(site, page, width, scheme):
    """No page scrolls sideways; contrast, headings, names of links and the rest of axe-core's rules."""
    page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.size(width, 900, mobile=width < 500)
    wrong = []
    for name in PAGES:
        page.open((site / f"{name}.html").as_uri())
        page.wait(f"document.documentElement.dataset.theme === '{scheme}'")
        if page.js("document.documentElement.scrollWidth") > width:
            wrong.append(f"{name} is {page.js('document.documentElement.scrollWidth')} wide")
        # Colours are judged as they will be, not on their way there.
        page.js("document.head.insertAdjacentHTML('beforeend', '<style>* { transition: none !important }</style>')")
        wrong += [f"{name}: {text}" for text in chromium.violations(page)]
        if page.js("document.querySelectorAll('h1').length") != 1:
            wrong.append(f"{name} has not one title")
    page.command("Emulation.setEmulatedMedia", features=[])
    assert not wrong, "\n".join(wrong)


def test_search_works_from_a_file(site, page):
    page.size(1400, 900)
    page.open((site / "search.html").as_uri() + "?q=rollout_adjoint")
    page.wait("document.querySelectorAll('#search-results li').length > 0")
    found = page.js("[...document.querySelectorAll('#search-results li a')].map(link => link.getAttribute('href'))")
    assert any("api/rollout_adjoint.html" in link for link in found)


def test_keyboard(site, page):
    """Tab reaches a way past the navigation first, and the choice of dark is kept from page to page."""
    page.size(1400, 900)
    page.open((site / "start.html").as_uri())
    page.key("Tab", 9)
    assert "Skip to main content" in page.js("document.activeElement.innerText")
    page.js("document.querySelector('.theme-change-button[data-mode=dark]').click()")
    page.wait("document.documentElement.dataset.theme === 'dark' && localStorage.getItem('mode') === 'dark'")
    page.open((site / "tasks.html").as_uri())
    page.wait("document.documentElement.dataset.theme === 'dark'")
    page.js("document.querySelector('.theme-change-button[data-mode=auto]').click()")
