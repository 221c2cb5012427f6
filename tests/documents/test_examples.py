"""Each example runs as a user runs it, and what it prints is right."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from support import ROOT

FOLDER = ROOT / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
DRAWING = [
    path
    for path in sorted([*EXAMPLES, *FOLDER.glob("history/*.py")])
    if "__main__" in (text := path.read_text(encoding="utf-8"))
    and re.search(r"(picture_option|options|command)\(__doc__", text)
]


def number(pattern, text):
    """The number that a pattern's group catches in what was printed."""
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in\n{text}"
    return float(found[1])


def xor(text):
    assert re.findall(r"\d xor \d = \d", text) == ["0 xor 0 = 0", "0 xor 1 = 1", "1 xor 0 = 1", "1 xor 1 = 0"]
    assert number(r"-> (\S+) nats", text) < 0.01


def digits(text):
    assert number(r"held-out accuracy: (\S+) %", text) >= 96.5


def simulation(text):
    exact, tried = number(r"backward (\S+),", text), number(r"central difference (\S+)", text)
    assert abs(exact - tried) < 1e-6 * abs(tried)
    assert number(r"episode  1000: cost +(\S+)", text) < 0.1 * number(r"episode     0: cost +(\S+)", text)
    assert abs(number(r"the angle is (\S+) rad", text)) < 0.01


def own_layer(text):
    assert all(float(error) < 1e-7 for error in re.findall(r" (\d+e-\d+)", text))
    assert number(r"mse (\S+) after", text) < 1e-4
    assert number(r"the error is (\S+) \(", text) < 0.5


def curve_fit_bounds(text):
    assert text


def neural_ode(text):
    exact, tried = number(r"adjoint (\S+),", text), number(r"central difference (\S+)", text)
    assert abs(exact - tried) < 1e-6 * abs(tried)
    assert number(r"-> (\S+) in", text) < 0.002
    assert number(r"largest error (\S+) within", text) < 0.1


def curve_fit_lm(text):
    losses = {name: number(rf"{name} +loss (\S+) after", text) for name in ("Levenberg-Marquardt", "L-BFGS-B", "Adam")}
    assert all(loss < 0.0125 for loss in losses.values())
    assert losses["Levenberg-Marquardt"] == min(losses.values())


def explain(text):
    told = re.findall(r"answer (\d): the image raised its logit by (\S+), pixels sum to (\S+), units to (\S+);", text)
    assert [answer for answer, *_ in told] == ["3", "0", "7"]
    for _, *numbers in told:
        made, pixels, units = map(float, numbers)
        assert abs(pixels - made) + abs(units - made) < 2e-3 * made


def cuda_pendulums(text):
    """Without a GPU it says what is missing; tests/cuda runs it in the simulator."""
    assert text.startswith("CUDA needs") or text.startswith("CUDA found") or "mean cost" in text


def spacecraft_landing(text):
    coasts, burns = re.findall(r"coasts (\S+) s", text), re.findall(r"burns (\S+) kg", text)
    assert abs(float(coasts[0]) - float(coasts[1])) < 0.1  # a tenth of a step
    assert abs(float(burns[0]) - float(burns[1])) < 0.001 * float(burns[1])
    assert number(r"switches: (\d+)", text) == 1
    right, steps = re.search(r"right at (\d+) of (\d+) steps", text).groups()
    assert right == steps
    assert int(steps) > 30
    assert number(r"within (\S+) degrees", text) < 3
    assert number(r"touchdown speed (\S+) m/s", text) < 1
    assert number(r"mean fuel (\S+) kg", text) < 65
    assert number(r"success rate: (\S+) %", text) > 97


def pinn(text):
    exact, tried = number(r"exact (\S+),", text), number(r"central difference (\S+)", text)
    assert abs(exact - tried) < 1e-6 * abs(tried)
    assert number(r"error of u (\S+),", text) < 1e-4


CHECKS = {
    check.__name__: check
    for check in (
        *(xor, digits, simulation, own_layer, curve_fit_bounds, curve_fit_lm, neural_ode, explain),
        *(cuda_pendulums, spacecraft_landing, pinn),
    )
}


def test_every_example_has_a_check():
    assert {path.stem for path in EXAMPLES} == set(CHECKS)


# They compile functions of their own for most of a minute.
SLOW = ("neural_ode", "spacecraft_landing", "simulation", "curve_fit_lm")


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=pytest.mark.more if p.stem in SLOW else (), id=p.stem) for p in EXAMPLES]
)
def test_example(path, tmp_path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 100
    draws = "picture_option(" in path.read_text(encoding="utf-8") and importlib.util.find_spec("matplotlib")
    picture = [tmp_path / "picture.png"] if draws else []
    options = ["--picture", *picture] if draws else []
    done = subprocess.run(
        [sys.executable, "-W", "error", path, *options], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    CHECKS[path.stem](done.stdout)
    assert list(tmp_path.iterdir()) == picture, "an example leaves no file behind but the one that it was asked for"
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in picture)


# -- the commands of examples/README.md ----------------------------------------------------------------------

PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(make example .*)$", PAGE, re.M)
NAMED = re.findall(r"\]\((history/\w+)\.py\) `(\w+)`", PAGE)
QUICK = 'ARGS="xor"'  # xor.py itself runs above


def run_as_make_does(command, folder):
    """What make would run in a clone, run in another folder."""
    dry = subprocess.run(
        ["make", "--no-print-directory", "-n", *shlex.split(command)[1:]],
        cwd=FOLDER.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    program, script, *arguments = shlex.split(dry.stdout.splitlines()[-1])
    assert program == ".venv/bin/python"
    return subprocess.run(
        [sys.executable, "-W", "error", FOLDER.parent / script, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=() if c.endswith(QUICK) else pytest.mark.more, id=c[13:]) for c in COMMANDS]
)
def test_each_command_of_the_page_runs(command, tmp_path):
    done = run_as_make_does(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "NOT REPRODUCED" not in done.stdout
    picture = re.findall(r"--picture ([\w.]+)", command)
    assert [path.name for path in tmp_path.iterdir()] == picture


@pytest.mark.more
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("script", "name"), NAMED, ids=[name for _, name in NAMED])
def test_each_name_of_the_table_is_an_argument(script, name, tmp_path):
    done = run_as_make_does(f'make example NAME={script} ARGS="{name}"', tmp_path)
    assert done.returncode == 0, done.stderr
    assert "NOT REPRODUCED" not in done.stdout


def test_the_names_of_the_table_are_those_that_scripts_know():
    """What the test above runs at length, by what the scripts say to a wrong name."""
    assert len(NAMED) == 9
    script = "history/rumelhart_1986"
    done = subprocess.run(
        [sys.executable, FOLDER / f"{script}.py", "nonsense"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    known = done.stderr.rpartition("known: ")[2].strip().split(", ")
    assert [name for where, name in NAMED if where == script] == known
    assert [name for where, name in NAMED if where != script] == ["digits"]


@pytest.mark.more
@pytest.mark.parametrize("script", DRAWING, ids=lambda path: path.stem)
def test_a_place_for_the_picture_that_is_none_is_told_before_the_work(script, tmp_path):
    done = subprocess.run(
        [sys.executable, script, "--picture", tmp_path / "no" / "p.png"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "argument --picture: there is no folder" in done.stderr
