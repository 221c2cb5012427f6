"""Symbols of compiled functions, which no two processes may share.

Numba names the machine code of a function by the function's qualified name and a number, counted in each process from
1. Closures of one factory share the qualified name, so two processes that compile different ones first give them the
same symbol. A third process that loads both from the disk cache links every call to the one it loaded first. So each
process counts from a random number of its own.
"""

import itertools
import secrets

from numba.core.bytecode import FunctionIdentity

from nbprop import system


def _count_apart():
    FunctionIdentity._unique_ids = itertools.count(secrets.randbits(60))


def number_apart():
    """Number the functions that this process compiles from now on as no other process does, nor a child of it."""
    _count_apart()
    system.in_forked_children(_count_apart)
