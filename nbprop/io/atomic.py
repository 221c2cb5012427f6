"""Files written completely or not at all: in a folder beside their destination, synced to the disk, and renamed.

The folder is locked as long as its writer lives. A killed writer leaves it behind unlocked, and the next writer of a
file with the same name removes it. Only regular files are replaced; the bytes are written into a device or a pipe.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile

from nbprop import system

# Characters of the name of a file in that of its temporary folder, so that the latter is never too long.
_NAME_KEPT = 50


def as_path(argument, path):
    """A path as a str. Raises TypeError or ValueError, naming the argument, for what cannot be a path."""
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"{argument} must be a str or a path, got {type(path).__name__}") from None
    if not name or "\0" in name:
        raise ValueError(f"{argument} must name a file, got {name!r}")
    return name


def write_atomically(path, write):
    """Write a file by write(temporary path), and rename it to `path` once it is on the disk.

    The temporary path ends in the file's own name. Where `path` is a character device, a pipe or one of this process's
    descriptors (/dev/stdout), the finished file is copied into it.

    Raises OSError if that fails; then no temporary file is left, and `path` is unchanged.
    """
    from safetensors import SafetensorError

    path = os.fsdecode(path)
    failure = "could not be written and is unchanged"
    try:
        stream = _stream(path)
        if stream is not None:
            failure = "could not be written"
            _copy_into(stream, path, write)
        else:
            _replace(os.path.realpath(path), write)  # through a link, the file that it names
    except OSError as error:
        raise OSError(error.errno, f"{path} {failure}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise OSError(f"{path} {failure}: {error}") from error


# -- regular files -------------------------------------------------------------------------------------------


def _replace(final, write):
    with _folder_beside(final) as folder:
        temporary = os.path.join(folder, os.path.basename(final))
        # Created here, with the mode of open(): the library creates files with access for the owner alone.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = stat.S_IMODE(os.stat(final if os.path.exists(final) else temporary).st_mode)
        write(temporary)
        os.chmod(temporary, mode)
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, final)
        if system.FOLDERS_OPEN:
            _sync(os.path.dirname(final), os.O_RDONLY)


@contextlib.contextmanager
def _folder_beside(final):
    """A new, locked folder beside a file, removed at the end; those of dead writers are removed first."""
    parent, name = os.path.split(final)
    prefix = f".{name[:_NAME_KEPT]}."
    _remove_dead(parent, prefix)
    lock = None
    while lock is None:
        folder = os.path.join(parent, f"{prefix}{secrets.token_hex(6)}.tmp")
        os.mkdir(folder, 0o700)
        lock = _lock(folder)  # None if another writer removed it before it was locked
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def _lock(folder):
    """A descriptor that keeps a new folder locked; None if the folder is gone, -1 without such locks."""
    if not system.LOCKS:
        return -1
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # a file system without locks: nobody can lock it, so nobody removes it
        system.lock(descriptor, wait=True)
    if os.path.isdir(folder):
        return descriptor
    os.close(descriptor)
    return None


def _remove_dead(parent, prefix):
    """Remove the temporary folders, and files of older versions, that no living writer has locked."""
    if not system.LOCKS:
        return
    temporary = re.compile(re.escape(prefix) + r"[0-9a-f]{12}\.tmp")
    with contextlib.suppress(OSError):  # a folder that can be written but not listed
        for name in [name for name in os.listdir(parent) if temporary.fullmatch(name)]:
            with contextlib.suppress(OSError):  # locked, already removed, or of another user
                _remove_if_unlocked(os.path.join(parent, name))


def _remove_if_unlocked(path):
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        system.lock(descriptor, wait=False)
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    finally:
        os.close(descriptor)


def _sync(path, flags):
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- devices and pipes ---------------------------------------------------------------------------------------


def _stream(path):
    """A descriptor to write to if `path` is not a regular file; None if it is one, or does not exist."""
    own = _own_descriptor(path)
    if own is not None:
        return os.dup(own)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
        raise OSError(errno.EINVAL, "it is neither a file, a device nor a pipe")
    return os.open(path, os.O_WRONLY)


def _own_descriptor(path):
    """The number of this process's descriptor that a path leads to (/dev/stdout, /dev/fd/3), or None."""
    for _ in range(8):
        folder, name = os.path.split(os.path.abspath(path))
        folder = os.path.realpath(folder)
        if re.fullmatch(rf"/proc/{os.getpid()}(/task/\d+)?/fd", folder) and name.isdecimal():
            return int(name)
        path = os.path.join(folder, name)
        if not os.path.islink(path):
            return None
        path = os.path.join(folder, os.readlink(path))
    return None


def _copy_into(descriptor, path, write):
    with os.fdopen(descriptor, "wb") as stream, tempfile.TemporaryDirectory() as folder:
        temporary = os.path.join(folder, os.path.basename(path))
        write(temporary)
        if sys.stdout is not None:
            sys.stdout.flush()  # earlier output comes first
        with open(temporary, "rb") as file:
            shutil.copyfileobj(file, stream)
