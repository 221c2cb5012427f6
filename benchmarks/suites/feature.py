"""How a suite skips what a commit lacks, and how it keeps stored results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def needed() -> Iterator[None]:
    """Inside this context, a name that the commit does not have makes asv skip the benchmark.

    A missing public name raises an AttributeError of the module or an ImportError. One that exists but refuses the
    arguments, or computes something wrong, remains a failure.
    """
    try:
        yield
    except ImportError as error:
        raise NotImplementedError(str(error)) from error
    except AttributeError as error:
        if "module 'nbprop" not in str(error):
            raise
        raise NotImplementedError(str(error)) from error


def same_as(version: str) -> Callable[[Callable], Callable]:
    """Mark a benchmark whose source has changed, but not what it measures, so that asv keeps its stored results.

    `version` is the hash that those results carry (results/benchmarks.json). asv compares hashes of a benchmark's
    source and of its `setup`; it drops results under another hash.
    """

    def mark(benchmark: Callable) -> Callable:
        benchmark.version = version
        return benchmark

    return mark
