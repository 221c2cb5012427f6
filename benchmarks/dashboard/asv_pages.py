"""asv's own pages, made to work from a file: with local libraries, and with the data in a script.

asv's page loads its libraries from public servers, and its figures by requests that browsers refuse for files. Here the
libraries come from npm packages; the figures are also written as one script, from which a small transport for jQuery
(offline.js) answers the requests. On a web server, the pages work in the same way.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from dashboard import vendor

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "asv.conf.json"

# The last part of an address in asv's page -> the local file.
LOCAL = {
    "jquery-3.3.1.min.js": "jquery/dist/jquery.min.js",
    "jquery.flot.min.js": "flot/jquery.flot.js",
    "jquery.flot.time.min.js": "flot/jquery.flot.time.js",
    "jquery.flot.selection.min.js": "flot/jquery.flot.selection.js",
    "jquery.flot.categories.min.js": "flot/jquery.flot.categories.js",
    "jquery.flot.orderBars.js": "flot-orderbars/js/jquery.flot.orderBars.js",
    "stupidtable.min.js": "stupid-table-plugin/stupidtable.min.js",
    "md5.min.js": "blueimp-md5/js/md5.min.js",
    "bootstrap.min.js": "bootstrap/dist/js/bootstrap.min.js",
    "bootstrap.min.css": "bootstrap/dist/css/bootstrap.min.css",
}


def publish(output: Path, config: Path = CONFIG) -> None:
    """Run `asv publish` into the folder and make the result work offline."""
    command = [sys.executable, "-m", "asv", "publish", "--config", str(config), "--html-dir", str(output)]
    done = subprocess.run(command, cwd=config.parent, capture_output=True, text=True)
    if done.returncode != 0 or not (output / "index.html").exists():
        raise RuntimeError(f"`asv publish` failed:\n{done.stdout}{done.stderr}")
    vendor.copy(vendor.ASV, output / "vendor")
    make_local(output)


def make_local(folder: Path) -> None:
    """Rewrite the page's addresses and write the data next to it as a script."""
    page = folder / "index.html"
    html = localised(page.read_text())
    scripts = '<script src="offline-data.js"></script>\n    <script src="offline.js"></script>\n    '
    first = re.search(r'<script[^>]*src="asv\.js"', html)
    if first is None:
        raise RuntimeError("asv's page no longer loads asv.js: this version of asv is not known to the dashboard")
    page.write_text(html[: first.start()] + scripts + html[first.start() :])
    shutil.copyfile(HERE / "page" / "offline.js", folder / "offline.js")
    files = {p.relative_to(folder).as_posix(): json.loads(p.read_text()) for p in sorted(folder.rglob("*.json"))}
    (folder / "offline-data.js").write_text(f"window.asvFiles = {json.dumps(files)};\n")


def localised(html: str) -> str:
    """The page with local scripts and stylesheets; raises RuntimeError for one without a local copy."""

    def local(match: re.Match[str]) -> str:
        name = match["address"].rsplit("/", 1)[1]
        if name not in LOCAL:
            raise RuntimeError(f"asv's page loads {match['address']}, for which the dashboard has no local copy")
        return f'{match["attribute"]}="vendor/{LOCAL[name]}"'

    tag = re.compile(r"<(?:script|link)\b[^>]*>")
    address = re.compile(r'(?P<attribute>src|href)="(?P<address>https?://[^"]+)"')
    remote_only = re.compile(r'\s(?:integrity|crossorigin|referrerpolicy)="[^"]*"')
    return tag.sub(lambda t: remote_only.sub("", address.sub(local, t[0])), html)
