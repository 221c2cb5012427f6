"""What every contender builds from a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """`run(n)` makes n calls, each worth `units` of the row's work.

    `check` is a number on which all contenders must agree, or None if there is none.
    """

    run: Callable[[int], None]
    units: int = 1
    check: float | None = None
