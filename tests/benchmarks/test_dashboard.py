"""The dashboard in a real browser: offline, without a console error, with points in its charts."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.places import peers_python
from support import bench_history, chromium

PLANTED = "gemm_64x64x64/nbprop-njit/blas/1"
PLANTED_AT = 8
COMMITS = 12

pytestmark = [
    pytest.mark.skipif(chromium.find() is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The front page over twelve commits with a 30 % slowdown planted at the ninth; (folder, commits)."""
    import build_dashboard

    from dashboard import vendor

    try:
        vendor.install()
    except vendor.VendorError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("dashboard")
    repository = folder / "repository"
    repository.mkdir()
    commits = bench_history.real_commits(repository, COMMITS)
    results = bench_history.write_results(folder, commits, planted={PLANTED: (PLANTED_AT, 1.3)})
    bench_history.write_growth(results)
    output = folder / "pages"
    build_dashboard.build(results, output, repository)
    return output, commits


@pytest.fixture(scope="module")
def browser():
    with chromium.page() as page:
        yield page


@pytest.fixture
def page(built, browser):
    """The front page, freshly opened at a desktop's size; a test may leave no problem behind."""
    browser.problems.clear()
    browser.requests.clear()
    browser.size(1280, 900)
    browser.open((built[0] / "index.html").as_uri())
    yield browser
    assert browser.problems == []
    assert [address for address in browser.requests if not address.startswith(("file:", "data:"))] == []


def ids(page, selector="#ratio-table tbody tr"):
    return page.js(f"[...document.querySelectorAll('{selector}')].map(row => row.dataset.key)")


def test_every_chart_has_points(page):
    counts = page.js("[...document.querySelectorAll('.chart')].map(chart => Number(chart.dataset.points || 0))")
    assert len(counts) > 8
    assert min(counts) >= 1
    history = page.js("Number(document.querySelector('#ratio-chart').dataset.points)")
    assert history == COMMITS


def test_growth_names_exponents_and_knees(page):
    """A knee that torch has at the same place is nobody's; a curve for each library, with all of its points."""
    captions = page.js("[...document.querySelectorAll('#growth-charts figcaption')].map(cell => cell.innerText)")
    assert len(captions) == 2
    assert captions[0].startswith("batch: exponents nbprop 1.4")
    assert captions[0].endswith("a knee that no peer has: 4 to 16")
    assert captions[1].endswith("no knee that a peer has not")
    points = page.js(
        "[...document.querySelectorAll('#growth-charts .chart')].map(chart => Number(chart.dataset.points))"
    )
    assert points == [15, 3]


def test_charts_are_painted(page):
    """Not only counted: every canvas holds pixels of more than one colour."""
    blank = page.js(
        """[...document.querySelectorAll('canvas')].filter(canvas => {
             const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
             const colours = new Set();
             for (let i = 0; i < data.length; i += 4) colours.add(data[i] << 16 | data[i + 1] << 8 | data[i + 2]);
             return colours.size < 3;
           }).length"""
    )
    assert blank == 0


def test_the_planted_regression_is_listed(page, built):
    commit, before = built[1][PLANTED_AT][0], built[1][PLANTED_AT - 1][0]
    text = page.js("document.querySelector('#regression-list').innerText")
    assert "product 64 x 64 x 64: nbprop from @njit compared with OpenBLAS, 1 thread" in text
    assert "track_ratio" not in text
    assert commit[:8] in text
    assert before[:8] in text
    assert f"Change {PLANTED_AT + 1}" in text
    assert "2026-01-09" in text
    assert page.js("document.querySelectorAll('.regression').length") == 1
    page.js("document.querySelector('.regression a').click()")
    assert page.js(f"document.querySelector('tr[data-key=\"{PLANTED}\"]').getAttribute('aria-selected')") == "true"


def test_sorting(page):
    """By the ratio's heading, up and then down; the order is told to assistive software."""
    heading = "[...document.querySelectorAll('#ratio-table th')].find(cell => cell.innerText.startsWith('Ratio'))"
    ratios = (
        "[...document.querySelectorAll('#ratio-table tbody tr')].map(row => Number(row.querySelector('b').innerText))"
    )
    before = page.js(ratios)
    page.js(f"{heading}.querySelector('button').click()")
    rising = page.js(ratios)
    assert rising == sorted(before)
    assert rising != before
    assert page.js(f"{heading}.getAttribute('aria-sort')") == "ascending"
    page.js(f"{heading}.querySelector('button').click()")
    assert page.js(ratios) == sorted(before, reverse=True)
    assert page.js(f"{heading}.getAttribute('aria-sort')") == "descending"


def test_filtering(page):
    everything = ids(page)
    page.js(
        """(() => { const peer = document.querySelector('#filter-peer'); peer.value = 'blas';
             peer.dispatchEvent(new Event('input')); })()"""
    )
    assert ids(page) == [key for key in everything if "/blas/" in key]
    page.js(
        """(() => { const text = document.querySelector('#filter-text'); text.value = '64 x 64 X 64';
             text.dispatchEvent(new Event('input')); })()"""
    )
    assert ids(page) == ["gemm_64x64x64/nbprop-njit/blas/1"]
    assert page.js("document.querySelector('#filter-count').innerText") == f"1 of {len(everything)}"


def test_keyboard(page):
    """Tab reaches the skip link first, and Enter on a heading's button sorts."""
    page.key("Tab", 9)
    assert page.js("document.activeElement.className") == "skip"
    page.js("document.querySelector('#ratio-table th button').focus()")
    page.command(
        "Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
    )
    page.command("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter", windowsVirtualKeyCode=13)
    assert page.js("document.querySelector('#ratio-table th').getAttribute('aria-sort')") == "ascending"


def test_rows_of_one_work_are_a_group(page):
    """Its name spans its rows; sorted by a figure, every row has its name again."""
    spans = page.js("[...document.querySelectorAll('#ratio-table tbody th')].map(cell => cell.rowSpan)")
    rows = len(ids(page))
    assert sum(spans) == rows > len(spans)
    names = page.js("[...document.querySelectorAll('#ratio-table tbody th')].map(cell => cell.innerText)")
    assert len(set(names)) == len(names)
    page.js("document.querySelectorAll('#ratio-table thead button')[6].click()")
    assert page.js("document.querySelectorAll('#ratio-table tbody th').length") == rows


@pytest.mark.parametrize("width", [360, 390])
def test_phone(page, width):
    """On a narrow screen nothing scrolls sideways: each row is a card, whose ratio is to be seen."""
    page.size(width, 740, mobile=True)
    page.wait(f"document.documentElement.scrollWidth <= {width}")  # charts are drawn anew a moment after the change
    edges = page.js(
        """[...document.querySelectorAll('#ratio-table td.ratio b')].map(cell => {
             const box = cell.getBoundingClientRect();
             return [box.left, box.right, box.height];
           })"""
    )
    assert len(edges) == len(ids(page))
    assert all(0 <= left < right <= width and height > 0 for left, right, height in edges)
    page.js("document.querySelectorAll('#ratio-table thead button')[6].click()")
    assert page.js("document.querySelectorAll('#ratio-table thead th')[6].getAttribute('aria-sort')") == "ascending"


def test_labels_of_axes_are_whole(page):
    """Every label that a chart draws lies inside its canvas."""
    cut = page.js(
        """(() => {
             let cut = 0;
             const draw = CanvasRenderingContext2D.prototype.fillText;
             CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
               const m = this.measureText(text), t = this.getTransform();
               const ends = [[-m.actualBoundingBoxLeft, 0], [m.actualBoundingBoxRight, 0]].map(([dx]) =>
                 t.transformPoint(new DOMPoint(x + dx, y)).x);
               if (Math.min(...ends) < -1 || Math.max(...ends) > this.canvas.width + 1) cut++;
               return draw.apply(this, arguments);
             };
             Charts.redrawAll();
             return new Promise(done => setTimeout(() => {
               CanvasRenderingContext2D.prototype.fillText = draw;
               done(cut);
             }, 300));
           })()"""
    )
    assert cut == 0


def test_the_choice_of_dark_is_kept(page, built):
    before = page.js("document.documentElement.dataset.theme")
    page.js("document.querySelector('#theme').click()")
    chosen = page.js("document.documentElement.dataset.theme")
    assert chosen != before
    page.open((built[0] / "index.html").as_uri())
    assert page.js("document.documentElement.dataset.theme") == chosen
    page.js("localStorage.clear()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_that_axe_finds(page, scheme):
    page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.wait(f"document.documentElement.dataset.theme === '{scheme}'")
    assert chromium.violations(page) == []
    page.command("Emulation.setEmulatedMedia", features=[])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_themes(page, scheme):
    """The system's choice is followed, the button changes it, and text stands out from the paper."""
    page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.wait(f"document.documentElement.dataset.theme === '{scheme}'")
    luminance = """(colour => { const [r, g, b] = colour.match(/\\d+/g).map(Number);
                     return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255; })"""
    ink = page.js(f"{luminance}(getComputedStyle(document.body).color)")
    paper = page.js(f"{luminance}(getComputedStyle(document.body).backgroundColor)")
    assert (ink > paper) == (scheme == "dark")
    assert abs(ink - paper) > 0.6
    page.js("document.querySelector('#theme').click()")
    assert page.js("document.documentElement.dataset.theme") != scheme
    page.js("localStorage.clear()")
    page.command("Emulation.setEmulatedMedia", features=[])


def test_screenshot(page, tmp_path):
    """Kept where NBPROP_SCREENSHOTS says, so that a run of the tests leaves the one that docs/performance.md shows."""
    picture = base64.b64decode(page.screenshot())
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
    folder = Path(os.environ.get("NBPROP_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dashboard.png").write_bytes(picture)


def test_empty_results(built, browser, tmp_path):
    """Before anything was measured the page says so, and nothing fails."""
    import build_dashboard

    results = tmp_path / "results"
    results.mkdir()
    build_dashboard.build(results, tmp_path / "pages", tmp_path)
    browser.problems.clear()
    browser.open((tmp_path / "pages" / "index.html").as_uri())
    assert "make bench-quick" in browser.js("document.querySelector('#summary').innerText")
    assert browser.problems == []


def test_asv_pages_offline(built, browser, tmp_path):
    """asv's own pages from a file: the grid, a graph with points, the list sorts, and nothing is asked of a network."""
    if not peers_python().exists():
        pytest.skip(f"asv runs in the peers' environment, and there is none at {peers_python()}")
    output, _ = built
    repository = tmp_path / "repository"
    shutil.copytree(output.parent / "repository", repository)
    shutil.copytree(output.parent / "results", repository / "results")
    config = json.loads((bench_history.BENCHMARKS / "asv.conf.json").read_text())
    config |= {"repo": ".", "results_dir": "results", "benchmark_dir": "suites"}
    (repository / "suites").mkdir()
    (repository / "asv.conf.json").write_text(json.dumps(config))
    program = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from dashboard import asv_pages; "
        "asv_pages.publish(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))"
    )
    command = [peers_python(), "-c", program, bench_history.BENCHMARKS, tmp_path / "asv", repository / "asv.conf.json"]
    subprocess.run(command, check=True, capture_output=True)
    browser.problems.clear()
    browser.requests.clear()
    browser.size(1280, 900)
    address = (tmp_path / "asv" / "index.html").as_uri()
    browser.open(address)
    browser.wait("document.querySelectorAll('#summarygrid-display .benchmark-container').length > 3")
    browser.js("location.hash = '#scaling.Batch.time_gradient'")
    browser.wait("document.querySelectorAll('#main-graph canvas').length > 0")
    browser.wait("$('#main-graph').data('plot').getData().some(series => series.data.length > 3)")
    browser.js("location.hash = '#/summarylist'")
    browser.wait("document.querySelectorAll('#summarylist-body tbody tr').length > 3")
    names = "[...document.querySelectorAll('#summarylist-body tbody tr')].map(row => row.cells[0].innerText)"
    first = browser.js(names)
    browser.js("document.querySelector('#summarylist-body th').click()")
    assert sorted(browser.js(names)) == sorted(first)
    assert browser.problems == []
    assert [a for a in browser.requests if not a.startswith(("file:", "data:"))] == []
