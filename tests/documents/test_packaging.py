"""What the package says about itself: one version, and a citation that agrees with pyproject.toml."""

import ast
import re
import tomllib
from pathlib import Path

import nbprop

ROOT = Path(nbprop.__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CITATION = (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_version_is_written_once():
    """In nbprop/__init__.py, as a literal, so that a build reads it without importing the package."""
    source = ast.parse((ROOT / "nbprop" / "__init__.py").read_text(encoding="utf-8"))
    assigned = [node.value for node in source.body if isinstance(node, ast.Assign) and "__version__" in ast.dump(node)]
    assert [ast.literal_eval(value) for value in assigned] == [nbprop.__version__]
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "nbprop.__version__"}
    assert not re.search(r"^version:", CITATION, re.M)


def test_the_citation_agrees_with_the_project():
    fields = dict(re.findall(r"^([a-z-]+): (\S.*)$", CITATION, re.M))
    assert {"cff-version", "message", "title"} <= fields.keys()
    assert fields["title"].strip('"').startswith(f"{PROJECT['project']['name']}:")
    assert fields["license"] == PROJECT["project"]["license"]
    assert re.findall(r"^  - name: (.*)$", CITATION, re.M) == [
        author["name"] for author in PROJECT["project"]["authors"]
    ]
