"""The documents are true: every code block runs, every link leads somewhere, every command exists."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import nbprop
from nbprop.cli.main import main
from support import ROOT

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("benchmarks/*.md")]
)


def blocks(path, *languages):
    """The texts of a document's code blocks in any of these languages ("" for blocks without one)."""
    text = path.read_text(encoding="utf-8")
    return [code for found, code in re.findall(r"^```([\w ]*)\n(.*?)^```$", text, re.M | re.S) if found in languages]


def run(code, folder, **options):
    return subprocess.run(
        [sys.executable, "-W", "error", *code], cwd=folder, capture_output=True, text=True, timeout=600, **options
    )


PROGRAMS = [path for path in DOCUMENTS if path != CONTRIBUTING and blocks(path, "python")]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_python_blocks_run_in_order(path, tmp_path):
    """The blocks of a document are one program, those for PyTorch where it is installed. CONTRIBUTING's: below."""
    languages = ["python"] if importlib.util.find_spec("torch") is None else ["python", "python torch"]
    code = "\n".join(blocks(path, *languages))
    script = tmp_path / "blocks.py"
    script.write_text(code, encoding="utf-8")
    done = run([script], tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_on_a_page():
    """In docs/, where somebody reads about it, beside its page in the reference."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/*.md"))
    assert [name for name in nbprop.__all__ if not re.search(rf"\b{name}\b", text)] == []


COMMAND_LINE = ROOT / "docs" / "command_line.md"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A folder with the data that the page on the command line makes."""
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks(COMMAND_LINE, "python")), {})
    return tmp_path


def test_each_command_of_the_command_lines_page_runs(page, capsys):
    """One after another, and the first two print what the page shows, but for numbers, of the second the head."""
    printed = {}
    for line in "".join(blocks(COMMAND_LINE, "")).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "nbprop"
        assert main(arguments) == 0, (line, capsys.readouterr().err)
        printed[line] = capsys.readouterr().out
    first, second = (re.sub(r" *\d+(\.\d+)?", "", text) for text in blocks(COMMAND_LINE, "text"))
    outputs = [re.sub(r" *\d+(\.\d+)?", "", text) for text in printed.values()]
    assert outputs[0] == first
    assert outputs[1].startswith(second)
    assert set((page / "kinds.csv").read_text(encoding="utf-8").split()) == {"ash", "beech", "oak"}


def test_the_command_lines_page_has_every_option(capsys):
    text = COMMAND_LINE.read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    group = capsys.readouterr().out.partition("how the file is read:")[2]
    options = set(re.findall(r"^  (--[a-z-]+)", group, re.M))
    assert len(options) == 12
    table = text.partition("## How a file is read")[2].partition("```")[0]
    assert {option for option in options if f"`{option} " not in table} == set()


GUIDE = ROOT / "docs" / "guide.md"


def test_the_guides_commands_run(tmp_path, monkeypatch, capsys):
    """On data of ten classes."""
    monkeypatch.chdir(tmp_path)
    rows = [",".join(f"{k}" for k in range(4)) + f",{i % 10}" for i in range(60)]
    for name in ("data.csv", "new.csv"):
        Path(name).write_text("a,b,c,d,digit\n" + "\n".join(rows) + "\n", encoding="utf-8")
    lines = [line for block in blocks(GUIDE, "") for line in re.findall("^nbprop .*", block, re.M)]
    assert len(lines) == 3
    for line in lines:
        if line.endswith("--help"):
            with pytest.raises(SystemExit, match=r"^0$"):
                main(shlex.split(line)[1:])
        else:
            assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err


EXTERNAL = re.compile(r"\]\((https?://[^)\s#]+)")


def headings(path):
    """The anchors of a document's headings."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), target
        assert not anchor or anchor in headings(page), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(path):
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = set(re.findall(r"`make ([a-z0-9-]+)", path.read_text(encoding="utf-8")))
    named |= {target for block in blocks(path, "") for target in re.findall(r"^make ([a-z0-9-]+)", block, re.M)}
    assert named <= targets


def test_the_guide_shows_a_real_demo():
    """What the guide shows is laid out as what the demo prints: the same words, other numbers."""
    shown = re.search(r"<!-- demo: begin.*?-->\n```\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    assert shown
    text = shown[1]
    assert float(re.search(r"^held-out accuracy: (\d+\.\d) %$", text, re.M)[1]) >= 96.5
    source = (ROOT / "nbprop" / "cli" / "demo.py").read_text(encoding="utf-8")
    for words in ("1 forward", "2 error", "3 backward", "4 update", "SciPy's L-BFGS-B, all", "epochs of", "time: "):
        assert words in text
        assert words in source
    steps = re.findall(r"^  (\d \w+)  ", text, re.M)
    assert steps == ["1 forward", "2 error", "3 backward", "4 update"]


@pytest.fixture(scope="module")
def copy_with_gain(tmp_path_factory):
    """A copy of the package after the five steps of CONTRIBUTING.md, taken literally."""
    folder = tmp_path_factory.mktemp("five_steps")
    ignored = shutil.ignore_patterns("__pycache__", "reference", "recorded")
    shutil.copytree(ROOT / "nbprop", folder / "nbprop", ignore=ignored)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    steps = blocks(CONTRIBUTING, "python")
    assert len(steps) == 4
    for step in steps:
        first, code = step.split("\n", 1)
        new, name = re.fullmatch(r"# (add to )?(\S+\.pyi?)", first).groups()
        path = folder / name
        assert path.exists() == bool(new)
        before = path.read_text(encoding="utf-8") if new else ""
        path.write_text(before + code, encoding="utf-8")
    return folder


def run_step_five(folder, *more):
    """The command of step five, in a copy."""
    (command,) = (block for block in blocks(CONTRIBUTING, "") if "-k gain" in block)
    arguments = command.splitlines()[0].split()[1:]
    return run(
        [*arguments, "-p", "no:cacheprovider", "-q", *more], folder, env={**_environment(), "PYTHONPATH": str(folder)}
    )


def _environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


def test_a_layer_in_five_steps(copy_with_gain):
    done = run_step_five(copy_with_gain)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 3
    assert "failed" not in done.stdout


def test_the_fault_that_step_five_names_is_seen(copy_with_gain):
    path = copy_with_gain / "nbprop" / "layers" / "gain.py"
    right = path.read_text(encoding="utf-8")
    wrong = right.replace("dx[i * size + j] = s[j] * dy", "dx[i * size + j] = dy")
    assert wrong != right
    path.write_text(wrong, encoding="utf-8")
    done = run_step_five(copy_with_gain)
    path.write_text(right, encoding="utf-8")
    assert done.returncode == 1
    assert re.search(r"\d+ failed", done.stdout)


def test_the_gain_of_five_steps_passes_the_linter(copy_with_gain):
    path = copy_with_gain / "nbprop" / "layers" / "gain.py"
    for check in (["check"], ["format", "--check"]):
        done = run(["-m", "ruff", *check, str(path)], copy_with_gain)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_external_links_answer():
    """Each address in the documents, asked once; skipped where no network is."""
    found = {address for path in DOCUMENTS for address in EXTERNAL.findall(path.read_text(encoding="utf-8"))}
    assert len(found) >= 3
    wrong, silent = [], 0
    for address in sorted(found):
        request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "Mozilla/5.0"})
        try:
            urllib.request.urlopen(request, timeout=20).close()
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):  # others refuse a program, not the address
                wrong.append(f"{address}: {error.code}")
        except OSError:
            silent += 1
    if silent == len(found):
        pytest.skip("there is no network")
    assert wrong == []
