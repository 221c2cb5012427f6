"""`make dashboard`: write the pages.

python benchmarks/build_dashboard.py              results -> build/dashboard/index.html
python benchmarks/build_dashboard.py --no-asv     the front page alone, if asv is not installed
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path

from dashboard import asv_pages, vendor
from dashboard.figures import figures
from harness import machine
from harness.history import read
from harness.places import REPOSITORY, RESULTS

PAGE = Path(__file__).resolve().parent / "dashboard" / "page"
OUTPUT = REPOSITORY / "build" / "dashboard"
FILES = ("index.html", "style.css", "charts.js", "page.js")


def build(results: Path, output: Path, repository: Path = REPOSITORY, asv_config: Path | None = None) -> Path:
    """Rewrite the folder and return its first page. Without asv's configuration, asv's pages are omitted."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    vendor.copy(vendor.CHARTS, output / "vendor")
    for name in FILES:
        shutil.copyfile(PAGE / name, output / name)
    data = figures(read(results, repository), results)
    data |= {"generated": machine.now(), "asv": asv_config is not None}
    (output / "data.js").write_text(f"window.DASHBOARD = {json.dumps(data, allow_nan=False)};\n")
    if asv_config is not None:
        asv_pages.publish(output / "asv", asv_config)
    return output / "index.html"


def draw(page: Path, picture: Path) -> bool:
    """A picture of the page as a browser shows it; False if there is no Chromium."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return False
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1000"]
    subprocess.run([*command, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True, timeout=120)
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="asv's results folder")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"the folder to write (default: {OUTPUT})")
    parser.add_argument("--picture", type=Path, help="also draw the front page into this file")
    parser.add_argument("--no-asv", action="store_true", help="omit asv's own pages")
    options = parser.parse_args(arguments)
    config = None if options.no_asv else asv_pages.CONFIG
    try:
        page = build(options.results, options.output, asv_config=config)
    except (vendor.VendorError, RuntimeError) as error:
        print(f"error: {error}")
        return 1
    if options.picture and not draw(page, options.picture.resolve()):
        print(f"no picture: Chromium is not installed; {options.picture} is left as it was")
    print(f"open {page.as_uri()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
