"""The libraries that the pages load, copied with their licences from the npm packages that package-lock.json pins."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODULES = HERE / "node_modules"

CHARTS = {"uplot": ("dist/uPlot.iife.min.js", "dist/uPlot.min.css", "LICENSE")}

# What asv's page loads from public servers, and the same files in the packages; if a package has no minified file, the
# plain one.
ASV = {
    "jquery": ("dist/jquery.min.js", "LICENSE.txt"),
    "flot": (
        "jquery.flot.js",
        "jquery.flot.time.js",
        "jquery.flot.selection.js",
        "jquery.flot.categories.js",
        "LICENSE.txt",
    ),
    "flot-orderbars": ("js/jquery.flot.orderBars.js", "README.md"),  # the licence is at the top of the file
    "stupid-table-plugin": ("stupidtable.min.js", "LICENSE"),
    "blueimp-md5": ("js/md5.min.js", "LICENSE.txt"),
    "bootstrap": (
        "dist/js/bootstrap.min.js",
        "dist/css/bootstrap.min.css",
        *(f"dist/fonts/glyphicons-halflings-regular.{kind}" for kind in ("eot", "svg", "ttf", "woff")),
        "LICENSE",
    ),
}


class VendorError(Exception):
    """The packages are not available; the message says what to do."""


def install(folder: Path = HERE) -> None:
    """Have npm install the packages that a folder's lock file pins into its node_modules, unless they are there."""
    if (folder / "node_modules" / ".package-lock.json").exists():
        return
    npm = shutil.which("npm")
    if npm is None:
        raise VendorError("npm, which provides the dashboard's libraries, is not installed: install Node.js with npm")
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise VendorError(f"`{' '.join(command)}` in {folder} failed:\n{done.stderr.strip()}")


def copy(packages: dict[str, tuple[str, ...]], destination: Path) -> None:
    """Copy the named files of each package to destination/package/..., keeping their paths."""
    install()
    for package, files in packages.items():
        for name in files:
            target = destination / package / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(MODULES / package / name, target)
