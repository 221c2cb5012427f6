"""What the commands share: where they write, and what they say on the way."""

import os
import sys
from pathlib import Path


class Failed(Exception):
    """The training failed."""


def say(text):
    """Write to standard error: progress and reports, since the output may be piped."""
    sys.stderr.write(text)
    sys.stderr.flush()


def check_place(output, *read):
    """Check, before the work, that the folder of the output can be written, and that the output is not an input."""
    path = Path(output)
    if path.is_dir():
        raise IsADirectoryError(f"{output}: it is a folder; name a file")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{output}: there is no folder {folder}")
    if (not path.exists() or path.is_file()) and not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{output}: the folder {folder} may not be written")
    for other in read:
        if path.exists() and Path(other).exists() and path.samefile(other):
            raise ValueError(f"{output} is the file that is read; name another one to write")
