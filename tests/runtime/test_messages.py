"""One table of messages and one module of value checks: nothing else in the package words or tests the same again."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

import nbprop
from nbprop import messages, validation
from nbprop.validation import MOST, check_flag, check_integer, check_number, check_seed, interval

PACKAGE = Path(nbprop.__file__).parent
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def test_every_problem_has_a_message():
    """Those that the compiled checks return are all in the table, each said in compiled code and in Python."""
    codes = {n: v for n, v in vars(messages).items() if n.isupper() and isinstance(v, int) and n != "HYPERPARAMETER"}
    assert set(codes.values()) == set(messages.MESSAGES)
    assert len(codes) == len(set(codes.values()))
    for problem, message in messages.MESSAGES.items():
        assert message.brief == messages.BRIEF[problem]
        assert issubclass(message.error, (TypeError, ValueError, RuntimeError))


def test_no_message_of_the_table_is_written_elsewhere():
    """What is said of a problem is said in one place: no other file has the same words."""
    words = {message.brief for message in messages.MESSAGES.values()}
    words |= {re.split(r"[{;(]", message.text)[0].strip() for message in messages.MESSAGES.values()}
    found = {name: [text for text in words if len(text) > 20 and text in source] for name, source in SOURCES.items()}
    assert {name: texts for name, texts in found.items() if texts and name != "messages.py"} == {}


def test_no_file_has_its_own_check_of_a_value():
    """A bool is told from a number in validation.py alone; the others may take one where a bool is an answer."""
    switches = {"validation.py", "optimizers/step.py", "callbacks.py"}
    assert {name for name, source in SOURCES.items() if "np.bool_)" in source} == switches


WRONG = [True, np.True_, "1", None, [1], 1j, np.ones(2), math.nan]


@pytest.mark.parametrize("value", [*WRONG, 2.0, -1, 10**30, 10**5000], ids=validation.shown)
def test_integers(value):
    for check in (check_integer, check_seed):
        with pytest.raises(ValueError, match=r"^f: n must be an? .*integer.*, got") as caught:
            check("f: n", value)
        assert len(str(caught.value)) < 200
        for right in (1, np.int8(1), MOST):
            assert type(check("f: n", right)) is int


@pytest.mark.parametrize("value", [*WRONG, -1, math.inf, -math.inf, 10**400], ids=validation.shown)
def test_numbers(value):
    for low, high, ends in ((0.0, math.inf, "[)"), (0.0, math.inf, "()"), (0.0, 1.0, "[]"), (0.5, 1.0, "()")):
        with pytest.raises((TypeError, ValueError)) as caught:
            check_number("f: a", value, low, high, ends)
        assert str(caught.value).startswith(f"f: a must be {interval(low, high, ends)}, got ")
        assert isinstance(caught.value, ValueError) == (isinstance(value, (int, float)) and value is not True)


def test_the_ends_of_an_interval():
    assert check_number("f: a", 0) == 0.0
    assert check_number("f: a", np.float32(0.5), 0, 1) == 0.5
    assert check_number("f: a", math.inf, ends="[]") == math.inf
    assert check_number("f: a", -3, -math.inf) == -3.0
    for value, bounds in ((0, (0, 1, "(]")), (1, (0, 1, "[)")), (0, (0, math.inf, "()"))):
        with pytest.raises(ValueError, match=r"f: a must be a .*number"):
            check_number("f: a", value, *bounds)


def test_switches():
    for value in (0, 1, 1.0, "yes", None, [], np.ones(1)):
        with pytest.raises(TypeError, match="f: b must be True or False, got"):
            check_flag("f: b", value)
    assert check_flag("f: b", np.True_) is True
    assert validation.shown("x" * 1000).endswith("...")
