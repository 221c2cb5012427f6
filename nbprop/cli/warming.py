"""`nbprop cache --warm`, `--native` and `--pack`: compile ahead of time, several functions at once.

Natives (kernels, entries) have one signature for each dtype, so they can be compiled without being called. The
functions that Python calls directly are compiled for the types they are called with: a pack learns those by making the
calls of `_use`, on the natives that it has just packed. Each worker is a process of its own, whose target Numba learns
from its environment.
"""

import concurrent.futures
import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import pickle
import pkgutil
import sys
import tempfile
import zipfile
from pathlib import Path

from nbprop.compiler import prebuilt
from nbprop.compiler.cache import slimmed
from nbprop.compiler.simd import VECTOR_BYTES
from nbprop.system import architecture


def targets():
    """The generic targets of this machine's architecture, the one whose pack it loads first.

    With that pack there, finding what Python calls (`_faces`) compiles no native.
    """
    names = [name for name in prebuilt.TARGETS if (name == "generic") == (architecture() == "arm")]
    return names if VECTOR_BYTES == 64 else names[::-1]


# -- in a worker ---------------------------------------------------------------------------------------------


@functools.cache
def _natives():
    """{name: native} of the package, all of whose CPU modules are imported for that."""
    import nbprop
    from nbprop.compiler.registry import known_natives

    for module in pkgutil.walk_packages(nbprop.__path__, "nbprop."):
        if not module.name.startswith(("nbprop.cuda", "nbprop.cli", "nbprop.estimators", "nbprop.__main__")):
            importlib.import_module(module.name)
    return {native.name: native for native in known_natives}


def _magic():
    from numba.core.registry import cpu_target

    return cpu_target.target_context.codegen().magic_tuple()


def _target():
    return {"magic": _magic(), "vector_bytes": VECTOR_BYTES}


def _compile(name, dtype):
    """Compile one native, or find it in the cache; returns the file that holds it."""
    native = _natives()[name]
    kind = {str(kind): kind for kind in native.dtypes}[dtype]
    native.load(kind)
    return native.cache_file(kind, _magic())


def _compile_face(module, name, signature):
    """Compile one function that Python calls, for the types of one call; returns the file that holds it."""
    function = getattr(importlib.import_module(module), name)
    signature = pickle.loads(signature)
    function.compile(signature)
    return function._cache.file(signature, _magic())


def _faces(everything):
    """[(module, name, pickled signature)] of what Python called and no native is, when `_use` made its calls."""
    from numba.core import event

    found = []

    class Compiled(event.Listener):
        depth = 0

        def on_start(self, event):
            self.depth += 1
            dispatcher = event.data["dispatcher"]
            function = dispatcher.py_func
            # A native that no usable pack has is compiled, too; its name is that of the plain function.
            if self.depth == 1 and vars(sys.modules[function.__module__]).get(function.__qualname__) is dispatcher:
                found.append((function.__module__, function.__qualname__, pickle.dumps(event.data["args"])))

        def on_end(self, event):
            self.depth -= 1

    with event.install_listener("numba:compile", Compiled()):
        _use(everything)
    return list(dict.fromkeys(found))


def _use(everything):
    """A call of each of the functions that most people call first, in both precisions; or of a gradient alone."""
    import numpy as np

    import nbprop
    from nbprop.optimizers.api import OPTIMIZERS

    net = nbprop.network((3,), nbprop.dense(4, "tanh"), nbprop.dense(2))
    for dtype in (np.float32, np.float64):
        params = nbprop.init(net, seed=0).astype(dtype)
        x, y = np.ones((8, 3), dtype), np.ones((8, 2), dtype)
        grads, out = np.empty_like(params), np.empty_like(y)
        plan = nbprop.plan(net, "mse", batch=8, dtype=dtype)
        work = nbprop.workspace(plan)
        nbprop.forward(plan, params, x, out, work)
        nbprop.backward(plan, params, x, out, grads, np.empty_like(x), work)
        nbprop.value(plan, params, x, y, work)
        nbprop.value_and_grad(plan, params, x, y, grads, work)
        if not everything:
            continue
        for name in OPTIMIZERS:
            state = nbprop.optimizer_state(name, params.size, dtype)
            getattr(nbprop, name)(params.copy(), grads, state, 0)
        nbprop.fit(net, params, x, y, "mse", epochs=2, batch=4, progress=False)
        nbprop.minimize(plan, params, x, y, "L-BFGS", maxiter=2)
        nbprop.least_squares(plan, params, x, y, method="marquardt", max_nfev=2)
        classes = nbprop.network((3,), nbprop.dense(4, "relu"), nbprop.dense(3))
        params = nbprop.init(classes, seed=0).astype(dtype)
        for labels in (np.int64, np.int32):
            target = np.zeros(8, labels)
            nbprop.fit(classes, params, x, target, "softmax_cross_entropy", epochs=1, batch=4, progress=False)


# -- with workers --------------------------------------------------------------------------------------------


def _workers(count, native=False):
    """Processes that import nbprop anew, with the environment of now."""
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(count or os.cpu_count(), context, _leave_out if native else None)


def _leave_out():
    prebuilt.pack = functools.cache(lambda: None)


def _run(pool, function, tasks, tell, done, total):
    """Run `function(*task)` for each task, and tell as each is done; returns what they return."""
    futures = {pool.submit(function, *task): task for task in tasks}
    for future in concurrent.futures.as_completed(futures):
        future.result()
        done += 1
        if tell is not None:
            tell(done, total, *futures[future][:2])
    return [future.result() for future in futures]


def _compile_all(pool, names, tell):
    """Compile the natives of these names, all by default; returns their files."""
    natives = _natives()
    used = {native.name for each in natives.values() for native in each.uses}
    tasks = [(name, str(dtype)) for name in names or natives for dtype in natives[name].dtypes]
    first = [task for task in tasks if task[0] in used]  # a kernel loads what it jumps to
    rest = [task for task in tasks if task[0] not in used]
    files = _run(pool, _compile, first, tell, 0, len(tasks))
    return files + _run(pool, _compile, rest, tell, len(first), len(tasks))


def warm(names=None, workers=None, native=False, tell=None):
    """Compile natives into the disk cache, with several processes.

    Parameters
    ----------
    names : list of str, optional
        Of natives; all of them if left out.
    workers : int, optional
        Processes; as many as there are cores if left out.
    native : bool
        Compile what the package has prebuilt, too.
    tell : function (done, total, name, dtype), optional
        Called as each is done.

    Returns
    -------
    int : how many there are
    """
    with _workers(workers, native) as pool:
        return len(_compile_all(pool, names, tell))


@contextlib.contextmanager
def _environment(**changes):
    before = dict(os.environ)
    os.environ |= changes
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _write(path, mode, manifest, members):
    with zipfile.ZipFile(path, mode, zipfile.ZIP_DEFLATED) as file:
        if manifest is not None:
            file.writestr(prebuilt.MANIFEST, json.dumps(manifest, indent=1))
        for key, payload in members:
            file.writestr(key.hex(), payload)


def pack(folder, target, names=None, workers=None, tell=None):
    """Write the pack of a target into `folder`, which is nbprop/prebuilt of the package that will carry it.

    Parameters
    ----------
    folder : path
    target : str
        One of `targets()`. Nothing of its code runs here.
    names, workers, tell : as in `warm`
        With names, of what Python calls the pack holds what a gradient takes.

    Returns
    -------
    Path : the pack's file
    """
    path = Path(folder) / prebuilt.file_name(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    for_target = {"NUMBA_CPU_NAME": target, "NUMBA_CPU_FEATURES": prebuilt.features(target)}
    with tempfile.TemporaryDirectory() as cache, _environment(NUMBA_CACHE_DIR=cache, **for_target):
        with _workers(workers) as pool:
            described = pool.submit(_target).result()
            natives = _compile_all(pool, names, tell)
        manifest = described | {
            "target": target,
            "needs": prebuilt.TARGETS[target][0],
            "versions": prebuilt.versions(),
        }
        _write(path, "w", manifest, [slimmed(name, inlined=False) for name in natives])
    with tempfile.TemporaryDirectory() as cache, _environment(NUMBA_CACHE_DIR=cache), _workers(1) as pool:
        faces = pool.submit(_faces, names is None).result()
    with tempfile.TemporaryDirectory() as cache, _environment(NUMBA_CACHE_DIR=cache, **for_target):
        with _workers(workers) as pool:
            files = _run(pool, _compile_face, faces, None, 0, len(faces))
        _write(path, "a", None, [slimmed(name, inlined=True) for name in files])
    return path
