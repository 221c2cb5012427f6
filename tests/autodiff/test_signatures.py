"""The table of signatures: each row is a public function, whose faces and documentation are the row's."""

import inspect
from pathlib import Path

import numpy as np
import pytest

import nbprop
from nbprop.autodiff import derivatives, gradients
from nbprop.autodiff.faces import plan_function
from nbprop.lowering.plan import Plan
from nbprop.runtime import arguments as arg
from nbprop.runtime.derivative_entries import ENTRIES
from nbprop.runtime.signatures import ABSENT, OPTIONAL, OUTPUTS, SIGNATURES, reference

FUNCTIONS = Path(__file__).resolve().parents[2] / "docs" / "functions.md"
DECODER = nbprop.network((4, 2), nbprop.attention(1), nbprop.dense(2))


def test_every_row_is_a_public_function_and_every_function_a_row():
    written = {name for module in (gradients, derivatives) for name, f in vars(module).items() if inspect.isfunction(f)}
    assert written - {"plan_function"} == set(SIGNATURES) == set(ENTRIES)
    for name, signature in SIGNATURES.items():
        function = getattr(nbprop, name)
        parameters = inspect.signature(function).parameters
        assert tuple(parameters) == ("plan", *signature.parameters)
        assert function.__doc__
        # What has no default must be told, even where None will do.
        absent = {p for p in signature.parameters if f"{p}?" in signature.takes.split()}
        assert {p for p in parameters if parameters[p].default is None} <= absent
        assert signature.role(arg.OUT) == ABSENT or signature.out in OUTPUTS


def test_a_def_that_names_other_arguments_than_its_row_is_refused():
    def hvp(plan, params, x):
        """Not as the table has it."""

    with pytest.raises(TypeError, match="hvp: its def and its row"):
        plan_function(hvp)


def test_the_documented_table_is_the_one_that_runs():
    assert FUNCTIONS.read_text(encoding="utf-8").endswith(reference())


@pytest.mark.parametrize("name", [name for name in SIGNATURES if name != "forward"])
def test_a_decoding_plan_only_runs_forward(name):
    plan = nbprop.plan(DECODER, mode="decoding")
    state, x = nbprop.layer_state(plan), np.ones((1, 1, 2))
    given = {"params": nbprop.init(DECODER), "x": x, "state": state, "work": nbprop.workspace(plan), "step": 0}
    arrays = {p: given.get(p, np.ones(1)) for p in SIGNATURES[name].parameters if p not in ("accumulate", "lengths")}
    with pytest.raises(ValueError, match=f"{name}: a decoding plan only runs forward"):
        getattr(nbprop, name)(plan, **arrays)


def test_needed_arguments_are_missed_by_name():
    net = nbprop.network((3,), nbprop.dense(2))
    plan = nbprop.plan(net, "mse", batch=2)
    assert type(plan) is Plan
    for name, signature in SIGNATURES.items():
        needed = [place for place in signature.arrays if signature.role(place) != OPTIONAL]
        work, x = nbprop.workspace(plan), np.ones((2, 3))
        out = np.ones(OUTPUTS[signature.out][0](plan, 2)) if signature.out else None
        made = {"params": nbprop.init(net), "x": x, "work": work, "out": out, "v": np.ones(8), "grads": np.ones(8)}
        made |= {key: np.ones((2, 2)) for key in ("target", "y", "dy")}
        given = {arg.NAMES[place]: made[arg.NAMES[place]] for place in needed} | (
            {"v": made["v"]} if name == "jvp" else {}
        )
        given |= {"dx": None} if "dx" in signature.parameters else {}
        getattr(nbprop, name)(plan, **given)
        for place in needed:
            with pytest.raises(TypeError, match=f"{name}: {arg.NAMES[place]} is needed and got None"):
                getattr(nbprop, name)(plan, **given | {arg.NAMES[place]: None})
