"""The disk cache of machine code: one file per function, signature and processor, which names its owner."""

import contextlib
import functools
import os
import pickle
import re
import stat
import tempfile
import warnings
from pathlib import Path

import llvmlite.binding as llvm
import numba
from numba.core.compiler import CompileResult

from nbprop import system
from nbprop.compiler import prebuilt
from nbprop.compiler.fingerprint import digest_of, hashed
from nbprop.compiler.simd import config


@functools.cache
def _warn_once(message):
    warnings.warn(message, RuntimeWarning, stacklevel=3)


# -- the folder ---------------------------------------------------------------------------------------------------


def cache_root():
    """The folder of compiled code: NUMBA_CACHE_DIR if it is set, else the cache folder of the user.

    Without a home directory (for example in a container, with a user id that the system does not know) it is a private
    folder among the temporary files, with a warning.
    """
    if config.CACHE_DIR:
        return Path(config.CACHE_DIR) / "nbprop"
    try:
        return system.cache_folder()
    except RuntimeError:
        return _temporary_root()


@functools.cache
def _temporary_root():
    """A folder that only this user can write to: anyone who can, can make this process run arbitrary code."""
    user = system.user_id()
    root = Path(tempfile.gettempdir()) / f"nbprop-{user}"
    with contextlib.suppress(OSError):  # the first attempt to write reports what is wrong
        with contextlib.suppress(FileExistsError):
            root.mkdir(mode=0o700)
        found = root.lstat()
        shared = user is not None and (found.st_uid != user or found.st_mode & 0o022)
        if shared or not stat.S_ISDIR(found.st_mode):
            root = Path(tempfile.mkdtemp(prefix=f"nbprop-{user}-"))
    _warn_once(
        f"nbprop finds no home directory (user id {user}), so its compiled code is kept in {root}; set "
        "NUMBA_CACHE_DIR to choose another folder"
    )
    return root


# -- files ---------------------------------------------------------------------------------------------------

_MAGIC = b"nbprop machine code 2\n"


def _seal(key, content):
    """The beginning of a file: its owner's key, and a hash of key and content."""
    return _MAGIC + key + hashed(key, content)


def _opened(key, payload):
    """The content of a file, or None if it is incomplete or belongs to another function."""
    size = len(_seal(key, b""))
    content = payload[size:]
    return content if payload[:size] == _seal(key, content) else None


def slimmed(path, inlined):
    """(key, payload) of a file of the cache, as a pack holds it.

    Numba's text about types is left out, and unless `inlined` the bitcode, which only callers that inline the function
    take: a native is jumped to. Numba reads from it what the object code defines, so that one name stays.
    """
    payload = Path(path).read_bytes()
    key = payload[len(_MAGIC) : len(_MAGIC) + len(hashed())]
    (name, kind, (code, bitcode)), *others = pickle.loads(_opened(key, payload))
    if kind != "object" or not isinstance(others[5], str):
        raise RuntimeError(f"nbprop does not know how Numba {numba.__version__} keeps its code")
    others[5] = ""
    if not inlined:
        bitcode = llvm.parse_assembly(f'define void @"{others[0].llvm_func_name}"() {{ ret void }}').as_bitcode()
    content = pickle.dumps(((name, kind, (code, bitcode)), *others), protocol=pickle.HIGHEST_PROTOCOL)
    return key, _seal(key, content) + content


class DiskCache:
    """Numba's cache protocol.

    The name of a file is a hash of everything that its content depends on, so there is no index for processes to race
    on; a file is written to a temporary name, then renamed. A file counts as absent, and is written again, unless it is
    complete and belongs to this key; nothing is unpickled before that is known.
    """

    def __init__(self, function, label=None):
        self._function = function
        self._label = label or function.__qualname__

    @property
    def cache_path(self):
        return str(cache_root())

    def source_digest(self):
        return digest_of(self._function)

    def _key(self, signature, target):
        """Identifies the code of this function for a signature and a target, Numba's `magic_tuple` of a processor."""
        key = repr((str(signature), target, prebuilt.versions(), self._label))
        return hashed(key.encode(), self.source_digest())

    def _path(self, key):
        label = re.sub(r"\W+", "_", self._label)[-60:]
        return cache_root() / key.hex()[:2] / f"{label}-{key.hex()}.nbc"

    def file(self, signature, target):
        """The file of the code for a signature and a target."""
        return self._path(self._key(signature, target))

    def load_overload(self, signature, target_context):
        content = self._own(signature, target_context) or self._shipped(signature)
        if content is None:
            return None
        target_context.refresh()
        try:
            return CompileResult._rebuild(target_context, *pickle.loads(content))
        except (ImportError, AttributeError):
            return None  # a function made by exec, or in a module that this process cannot import by its name

    def _own(self, signature, target_context):
        """What an earlier process compiled for this processor, or None."""
        key = self._key(signature, target_context.codegen().magic_tuple())
        try:
            return _opened(key, self._path(key).read_bytes())
        except OSError:
            return None

    def _shipped(self, signature):
        """What the package brought, or None."""
        pack = prebuilt.pack()
        if pack is None:
            return None
        key = self._key(signature, pack.magic)
        payload = pack.read(key)
        return None if payload is None else _opened(key, payload)

    def save_overload(self, signature, compiled):
        if compiled.library.has_dynamic_globals:
            return  # addresses of this process (a C function, a large global array), which mean nothing in the next
        key = self._key(signature, compiled.target_context.codegen().magic_tuple())
        path = self._path(key)
        try:
            content = pickle.dumps(compiled._reduce(), protocol=pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, AttributeError):
            return  # it refers to a function without an importable name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_seal(key, content) + content)
                os.replace(name, path)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            _warn_once(
                f"nbprop cannot keep its compiled code in {cache_root()} ({error.strerror}), so every process will "
                "compile it again; set NUMBA_CACHE_DIR to a folder that can be written"
            )

    def enable(self):
        """Part of Numba's protocol; this cache is always on."""

    def disable(self):
        """Part of Numba's protocol; this cache is always on."""

    def flush(self):
        """Part of Numba's protocol; files are never stale, since their names hash their sources."""
