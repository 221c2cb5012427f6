"""Functions compiled once per dtype for one signature, and called by address."""

import hashlib

import numpy as np
from numba import types
from numba.extending import overload

from nbprop.compiler.cache import DiskCache
from nbprop.compiler.fingerprint import digest_of, hashed, is_ours, options_of, python_function, renewed
from nbprop.compiler.intrinsics import indirect_call
from nbprop.compiler.jit import FLAGS, _dispatcher
from nbprop.compiler.registry import find, known_natives, publish


class Native:
    """A function compiled once per dtype for one signature, and called by address.

    `signature` maps a dtype (Numba float32 or float64) to a Numba signature. `uses` are the natives that this one
    calls: they are loaded with it, so that nothing is compiled in a step.
    """

    dtypes: tuple = (types.float32, types.float64)

    def __init__(self, function, signature, name=None, uses=()):
        self._given, self.function = function, python_function(function)
        self.name = name or f"{self.function.__module__}.{self.function.__qualname__}"
        self.signature = signature
        self.uses = tuple(uses)
        self._fingerprints = {}
        self._loaded = {}
        known_natives.append(self)

    def __repr__(self):
        return f"<nbprop native {self.name}>"

    def source_digest(self):
        """A digest of what this is compiled from; of a user's function, as it is now."""
        return hashed(self.name.encode(), digest_of(self.function), repr(options_of(self._given)).encode())

    def fingerprint(self, dtype):
        """The number that identifies this native in the rows of a table; of a user's function, as it is now."""
        if dtype in self._fingerprints:
            return self._fingerprints[dtype]
        text = f"{self.name}:{dtype}:".encode() + self.source_digest()
        value = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        value = (value & 0x7FFFFFFFFFFFFFFF) or 1
        if is_ours(self.function):
            self._fingerprints[dtype] = value
        return value

    def compiled(self):
        """The function to compile."""
        return renewed(self.function)

    def load(self, dtype):
        """Compile, or load from the disk cache, and publish; returns the address."""
        fingerprint = self.fingerprint(dtype)
        if fingerprint not in self._loaded:
            for native in self.uses:
                native.load(dtype)
            signature = self.signature(dtype)
            dispatcher = _dispatcher(self.compiled())
            dispatcher._cache = _NativeCache(self)
            dispatcher.compile(signature.args)
            (result,) = dispatcher.overloads.values()
            address = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
            if not address:
                raise RuntimeError(f"nbprop: {self.name} has been compiled, and its code defines no such function")
            self._loaded[fingerprint] = (address, dispatcher)
            publish(fingerprint, address)
        return self._loaded[fingerprint][0]

    def cache_file(self, dtype, target):
        """The file that keeps the code for a dtype, compiled for a target (Numba's `magic_tuple`)."""
        return _NativeCache(self).file(self.signature(dtype).args, target)

    def callable(self):
        """A function for kernels, ``call((arguments, ...))``, that jumps to this native's address.

        The dtype of the first argument selects the version. This way, large kernels that many others call are compiled
        once; inlined, they would be compiled again for each caller.
        """

        def call(arguments):
            raise TypeError("runs in compiled code only")

        @overload(call, jit_options=FLAGS)
        def compiled(arguments):
            dtype = arguments[0].dtype
            fingerprint, invoke = np.int64(self.fingerprint(dtype)), indirect_call(self.signature(dtype))

            def jump(arguments):
                return invoke(find(fingerprint), arguments)[1]

            return jump

        return call


class _NativeCache(DiskCache):
    """Keyed by the digest of the native: what is compiled may be an adapter around its function."""

    def __init__(self, native):
        super().__init__(native.function, native.name)
        self._native = native

    def source_digest(self):
        return self._native.source_digest()


class CompiledEntry(Native):
    """A native whose code is the same for every dtype; `address` is 0 until it is loaded."""

    dtypes = (types.none,)
    address = 0

    def fingerprint(self, dtype=types.none):
        return super().fingerprint(types.none)

    def load(self, dtype=types.none):
        self.address = super().load(types.none)
        return self.address
