"""Make a release: version, changelog, commit, tag, tests, archives, recipe. Nothing is published.

    python release/release.py 0.2.0

Everything happens in a clone, in build/release. Only when all of it has succeeded does this repository get the commit
and the tag, and dist/ the archives; the last lines say how to publish them.
"""

import argparse
import datetime
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import archives

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "nbprop/__init__.py"
RECIPE = "release/conda/recipe.yaml"


class Refused(Exception):
    """Why there is no release."""


def git(root, *arguments):
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def numbers(version):
    """A version such as 0.2.0 as a tuple, which compares as versions do."""
    if not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", version):
        raise Refused(f"a version is three numbers, such as 0.2.0; got {version}")
    return tuple(map(int, version.split(".")))


def replaced(path, pattern, text):
    """Replace what a pattern matches in a file, which must be one place."""
    before = path.read_text(encoding="utf-8")
    after, count = re.subn(pattern, text, before, flags=re.M)
    if count != 1:
        raise Refused(f"{path.name}: {pattern} is there {count} times, not once")
    path.write_text(after, encoding="utf-8")


def check(root, version):
    """Refuse what cannot be a release."""
    wanted = numbers(version)
    if git(root, "status", "--porcelain"):
        raise Refused("there are changes that are not committed")
    if git(root, "tag", "--list", f"v{version}"):
        raise Refused(f"there is a tag v{version}")
    released = [numbers(tag[1:]) for tag in git(root, "tag", "--list", "v*.*.*").split()]
    if released and wanted <= max(released):
        raise Refused(f"{version} is not after {'.'.join(map(str, max(released)))}")
    unreleased = re.search(
        r"^## \[.*\] - unreleased$(.*?)(?=^## |\Z)", (root / "CHANGELOG.md").read_text("utf-8"), re.M | re.S
    )
    if unreleased is None or "\n- " not in unreleased[1]:
        raise Refused("CHANGELOG.md has no section '## [...] - unreleased' that tells a change")


def mark(root, version, date):
    """Write the version and the date where they stand, commit, and tag."""
    replaced(root / SOURCE, r'^__version__ = "[^"]*"$', f'__version__ = "{version}"')
    replaced(root / "CHANGELOG.md", r"^## \[[^]]*\] - unreleased$", f"## [{version}] - {date.isoformat()}")
    replaced(root / RECIPE, r'^  version: "[^"]*"$', f'  version: "{version}"')
    git(root, "commit", "--all", "--message", f"Release {version}")
    git(root, "tag", "--annotate", f"v{version}", "--message", f"nbprop {version}")


def test(root):
    """Run the tests of `make test` on the clone's sources, in this environment."""
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "2"], cwd=root, env=environment, check=False)
    if done.returncode != 0:
        raise Refused("tests fail")


def build(root, output):
    """Build the archives, test that they install and work, and write the recipe with the source archive's digest."""
    source, wheel = archives.build(output, root / "build" / "wheel", root=root)
    environment = os.environ | {"PYTHONPATH": str(root), "NBPROP_DIST": str(output)}
    tests = ["-m", "more or long", "tests/release/test_wheel.py"]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=root, env=environment, check=False)
    if done.returncode != 0:
        raise Refused("the archives do not work")
    return source, wheel


def write_recipe(root, source, output):
    """The recipe for conda-forge, with the digest of the source archive."""
    shutil.copy(root / RECIPE, output / "recipe.yaml")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    replaced(output / "recipe.yaml", r"^  sha256: .*$", f'  sha256: "{digest}"')


def release(root, version, date, test=test, build=build):
    """Make the release of a repository's current commit; returns the folder with the archives."""
    check(root, version)
    folder, output = root / "build" / "release", root / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    git(root, "clone", "--quiet", str(root), str(folder))
    for name in ("user.name", "user.email"):
        git(folder, "config", name, git(root, "config", name))
    mark(folder, version, date)
    test(folder)
    source, _ = build(folder, folder / "dist")
    write_recipe(folder, source, folder / "dist")
    git(root, "fetch", "--quiet", str(folder), f"refs/tags/v{version}:refs/tags/v{version}")
    git(root, "merge", "--quiet", "--ff-only", f"v{version}")
    shutil.copytree(folder / "dist", output, dirs_exist_ok=True)
    return output


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="such as 0.2.0")
    arguments = parser.parse_args()
    try:
        output = release(ROOT, arguments.version, datetime.datetime.now(datetime.UTC).date())
    except Refused as error:
        sys.exit(f"release: {error}; nothing is changed")
    print(f"v{arguments.version} is tagged, and {output} has its archives. To publish them, by hand:")
    print(f"  git push origin HEAD v{arguments.version}")
    print(f"  python -m twine upload {output}/nbprop-{arguments.version}*")
    print(f"  {output}/recipe.yaml goes into the feedstock")


if __name__ == "__main__":
    main()
