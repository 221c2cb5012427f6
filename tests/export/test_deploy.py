"""The examples of deployment: one trained controller in C, Fortran, CasADi and a web page, which all balance alike."""

import re
import subprocess
import sys

import pytest

from support import ROOT, chromium

pytestmark = pytest.mark.more


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """(folder, what the script has printed)."""
    folder = tmp_path_factory.mktemp("deploy")
    script = ROOT / "examples" / "deploy" / "deploy.py"
    done = subprocess.run([sys.executable, script, folder], cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.parametrize("place", ["C", "Fortran", "CasADi"])
def test_the_loop_ends_where_pythons_does(deployed, place):
    angles = dict(re.findall(r"^(\w+): .*?after 5 s the angle is\s+(\S+) rad", deployed[1], re.M))
    assert abs(float(angles["Python"])) < 0.01
    if f"{place}: there is no" in deployed[1]:
        pytest.skip(re.search(rf"{place}: (there is no .*)", deployed[1])[1])
    assert abs(float(angles[place]) - float(angles["Python"])) < 2e-6
    if place == "CasADi":
        assert 0 < float(re.search(r"shrinks errors by (\S+) a step", deployed[1])[1]) < 0.95


def test_the_header_has_a_certificate(deployed):
    text = (deployed[0] / "controller.h").read_text(encoding="utf-8")
    least, most, rounding = re.search(r"(\S+) <= y\[0\] <= (\S+), of which rounding is at most (\S+)", text).groups()
    assert -100 < float(least) < 0 < float(most) < 100
    assert float(rounding) < 1e-12


@pytest.mark.skipif(chromium.find() is None, reason="Chromium is not installed (Debian: apt-get install chromium)")
def test_a_pendulum_is_balanced_in_the_browser(deployed):
    folder, printed = deployed
    if not (folder / "pendulum.html").exists():
        pytest.skip(re.search("WebAssembly: (.*)", printed)[1])
    with chromium.page() as page:
        page.open(f"file://{folder}/pendulum.html")
        assert page.js("document.getElementById('said').textContent").startswith("angle")
        # A hundred steps by hand are Python's, but for how the browser rounds sin.
        page.js("state[0] = 0.5; state[1] = 0; for (let t = 0; t < 100; t++) step(); kept = state[0]")
        angle = float(re.search(r"Python: .* is (\S+) rad", printed)[1])
        assert abs(page.js("kept") - angle) < 2e-6
        page.js("document.getElementById('right').click()")
        assert page.js("state[1]") > 0.5
        page.wait("Math.abs(state[0]) < 0.02 && Math.abs(state[1]) < 0.02")
        assert page.problems == []
        assert [address for address in page.requests if not address.startswith(("file:", "data:"))] == []
