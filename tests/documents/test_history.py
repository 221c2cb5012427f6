"""The history in examples/history: each experiment reproduces its result on one seed here, and on many in its results.

A script takes part with one line in EXPERIMENTS of examples/history/results.py, where the convention is written down:
``run(seed, quick=False)`` returns a dict with "reproduced". `make test-long` runs all seeds and stores the results.
"""

import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from support import ROOT

HISTORY = ROOT / "examples" / "history"
TABLE = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
SEED = 3


def load(name):
    """A module of examples/history, by its file."""
    spec = importlib.util.spec_from_file_location(f"history_{name}", HISTORY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


results = load("results")


# Those that take the longest are left to test-more.
LONGEST = {"gpt", "why_backprop", "alexnet", "lenet.digits"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.more] if name in LONGEST else []) for name in results.EXPERIMENTS]
)
def test_one_seed_reproduces_the_result(name):
    result = results.experiment(name)(SEED, quick=True)
    if "skipped" in result:
        pytest.skip(result["skipped"])
    json.dumps(result)
    assert result["reproduced"] is True, result


def test_every_script_takes_part():
    """A script has a main part; other modules are what scripts share."""
    scripts = {path.stem for path in HISTORY.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    assert scripts - {"results"} == {name.partition(".")[0] for name in results.EXPERIMENTS}


def row_of(name):
    """The row of an experiment in the table of examples/README.md."""
    script, _, function = name.partition(".")
    told = f"[{script}.py](history/{script}.py)" + (f" `{function}`" if function else "")
    (row,) = (row for row in TABLE.splitlines() if f"| {told} |" in row)
    return row


@pytest.mark.parametrize("name", list(results.EXPERIMENTS))
def test_stored_results_reproduce_and_stand_in_the_table(name):
    """A row without stored results says so."""
    if not results.path_of(name).exists():
        assert "to be measured" in row_of(name)
        return
    stored = json.loads(results.path_of(name).read_text(encoding="utf-8"))
    assert stored["seeds"] == results.EXPERIMENTS[name] == len(stored["runs"])
    assert stored["reproduced"] == sum(run["reproduced"] for run in stored["runs"])
    assert stored["reproduced"] >= results.REQUIRED * stored["seeds"]
    assert re.fullmatch(r"[0-9a-f]{12}\+?", stored["commit"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", stored["date"])
    assert f"{stored['reproduced']} of {stored['seeds']} seeds" in row_of(name)


def test_the_family_trees_rate_is_the_one_that_the_table_states():
    runs = json.loads(results.path_of("rumelhart_1986.trees").read_text(encoding="utf-8"))["runs"]
    right, asked = sum(run["held_out_right_of_4"] for run in runs), 4 * len(runs)
    assert f"{right} of {asked} held-out facts" in row_of("rumelhart_1986.trees")
    assert right > asked / 2


def test_the_family_trees_are_those_of_the_letter():
    results.experiment("rumelhart_1986.trees")
    from rumelhart import family_trees

    persons, relations, x, wanted = family_trees.all_facts()
    assert x.shape == (104, 36)
    assert (x.sum(1) == 2).all()
    assert (wanted.sum(1) >= 1).all()
    told = {
        (family_trees.PEOPLE[person], family_trees.RELATIONS[relation]): {family_trees.PEOPLE[k] for k in answers}
        for person, relation, answers in zip(persons, relations, map(np.flatnonzero, wanted), strict=True)
    }
    assert len(told) == 104
    assert told["Colin", "aunt"] == {"Jennifer", "Margaret"}
    assert told["Alfonso", "uncle"] == {"Emilio", "Tomaso"}
    assert told["Victoria", "father"] == {"Christopher"}
    assert told["Gina", "niece"] == {"Sophia"}
    assert ("Christopher", "father") not in told
    # The trees are isomorphic: the second half is the first, twelve people on.
    assert (wanted[:52, :12] == wanted[52:, 12:]).all()
    assert not wanted[:52, 12:].any()


@pytest.mark.more
def test_scripts_run_as_a_user_runs_them(tmp_path):
    """From any folder, with pictures."""
    for script, problems in (("rumelhart_1986", ("encoder", "xor")), ("elastic", ()), ("werbos_bptt", ())):
        folder, made = tmp_path / script, [f"{script}.png"]
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-W", "error", HISTORY / f"{script}.py", *problems, "--picture", folder / made[0]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "NOT REPRODUCED" not in done.stdout
        assert sorted(path.name for path in folder.iterdir()) == made
        assert all(path.stat().st_size > 10_000 for path in folder.iterdir())
