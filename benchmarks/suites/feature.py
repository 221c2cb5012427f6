"""What a suite does where a commit lacks what it measures: skip, and only then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needed() -> Iterator[None]:
    """Inside, a name that this commit does not have makes asv skip the benchmark.

    A public name that is missing is an AttributeError of the module or an ImportError; one that exists but
    refuses the arguments, or computes something wrong, is a failure and stays one.
    """
    try:
        yield
    except ImportError as error:
        raise NotImplementedError(str(error)) from error
    except AttributeError as error:
        if "module 'nbprop" not in str(error):
            raise
        raise NotImplementedError(str(error)) from error
