"""The release script, on clones of this repository; and that the conda recipe says what pyproject.toml says."""

import datetime
import hashlib
import re
import subprocess
import tomllib

import pytest

import nbprop
from support import ROOT, release_script

release = release_script("release")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RECIPE = (ROOT / release.RECIPE).read_text(encoding="utf-8")
DAY = datetime.date(2031, 5, 7)


@pytest.fixture
def clone(tmp_path):
    """A clone with a change that is not released; build/ and dist/ are ignored, as in this repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    root = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, root], check=True)
    release.git(root, "config", "user.name", "A maintainer")
    release.git(root, "config", "user.email", "maintainer@example.org")
    for tag in release.git(root, "tag").split():
        release.git(root, "tag", "--delete", tag)
    changes = root / "CHANGELOG.md"
    text = changes.read_text(encoding="utf-8")
    changes.write_text(re.sub(r"^## \[", "## [3.0.0] - unreleased\n\n- A change.\n\n## [", text, count=1, flags=re.M))
    changes.write_text(changes.read_text(encoding="utf-8").replace("[0.1.0] - unreleased", "[0.1.0] - 2030-01-01"))
    release.git(root, "commit", "--all", "--message", "Change something")
    return root


def pass_all(root):
    pass


def archive(root, output):
    """In place of a build: one file whose content tells what it was made from."""
    output.mkdir()
    source = output / "nbprop-source.tar.gz"
    source.write_text((root / release.SOURCE).read_text(encoding="utf-8"), encoding="utf-8")
    return source, source


def test_a_release_is_marked_tagged_and_built_from_the_tag(clone):
    output = release.release(clone, "3.1.0", DAY, test=pass_all, build=archive)
    assert release.git(clone, "status", "--porcelain") == ""
    assert release.git(clone, "describe") == "v3.1.0"
    assert release.git(clone, "cat-file", "-t", "v3.1.0") == "tag"
    assert release.git(clone, "log", "-1", "--format=%s") == "Release 3.1.0"
    changed = set(release.git(clone, "diff", "--name-only", "HEAD~1").split())
    assert changed == {"CHANGELOG.md", release.SOURCE, release.RECIPE}
    assert "\n## [3.1.0] - 2031-05-07\n" in (clone / "CHANGELOG.md").read_text(encoding="utf-8")
    built = (output / "nbprop-source.tar.gz").read_bytes()
    assert b'__version__ = "3.1.0"' in built
    assert f'sha256: "{hashlib.sha256(built).hexdigest()}"' in (output / "recipe.yaml").read_text(encoding="utf-8")
    with pytest.raises(release.Refused, match="no section"):
        release.release(clone, "3.2.0", DAY, test=pass_all, build=archive)


def state(root):
    return [release.git(root, *command) for command in (["tag"], ["rev-parse", "HEAD"], ["status", "--porcelain"])]


def fail(root, *_):
    raise release.Refused("tests fail")


@pytest.mark.parametrize(
    ("version", "prepare", "steps", "words"),
    [
        ("3.1", "true", {}, "three numbers"),
        ("3.1.0", "echo >> README.md", {}, "not committed"),
        ("3.1.0", "git tag v3.1.0", {}, "there is a tag"),
        ("3.1.0", "git tag v3.10.0", {}, "not after 3.10.0"),
        ("3.1.0", "sed -i 's/__version__ =/version =/' nbprop/__init__.py; git commit -qam x", {}, "0 times"),
        ("3.1.0", "true", {"test": fail}, "tests fail"),
        ("3.1.0", "true", {"build": fail}, "tests fail"),
    ],
)
def test_what_is_refused_changes_nothing(clone, version, prepare, steps, words):
    subprocess.run(prepare, shell=True, cwd=clone, check=True)
    before = state(clone)
    with pytest.raises(release.Refused, match=words):
        release.release(clone, version, DAY, **{"test": pass_all, "build": archive} | steps)
    assert state(clone) == before
    assert not (clone / "dist").exists()


def section(name):
    """The lines of a list of the recipe's requirements."""
    (block,) = re.findall(rf"^  {name}:\n((?:    - .*\n)+)", RECIPE, re.M)
    return [line.removeprefix("    - ") for line in block.splitlines()]


def spaced(requirements):
    """As conda writes them: a space between a name and its versions."""
    return [re.sub(r"(?=[<>=])", " ", text, count=1) for text in requirements]


def test_the_recipe_agrees_with_the_project():
    project = PROJECT["project"]
    needed = spaced(project["dependencies"])
    assert section("run") == [f"python {project['requires-python']}", *needed]
    assert section("host") == [section("run")[0], "pip", *spaced(PROJECT["build-system"]["requires"]), *needed]
    assert re.findall(r"^      - (nbprop = .*)$", RECIPE, re.M) == [
        f"{name} = {place}" for name, place in project["scripts"].items()
    ]
    for name, value in (("summary", project["description"]), ("license", project["license"])):
        assert re.findall(rf'^  {name}: "?(.*?)"?$', RECIPE, re.M) == [value]
    assert re.findall(r"^  license_file: (.*)$", RECIPE, re.M) == project["license-files"]
    assert re.findall(r'^  version: "(.*)"$', RECIPE, re.M) == [nbprop.__version__]
