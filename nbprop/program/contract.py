"""What the parameters of a kernel say: which arrays it takes, and which numbers.

The names are the contract between a kernel and the ops of a plan: arrays first, then `n` (samples in this call), then
sizes. Names of words of the frame (`n`, `step`, ...), `part` and `parts` are reserved; all other numbers are words of
the op's row. A size may be a NamedTuple of integers, by its annotation:

    class DenseSizes(NamedTuple):
        rows: int  # rows of a sample
        n_in: int  # inputs
        n_out: int  # outputs

    @kernel
    def dense_forward(y, scratch, x, w, b, n, sizes: DenseSizes, part, parts):

The kernel reads `sizes.n_in`, lowering passes `DenseSizes(rows=..., n_in=..., n_out=...)`, and a row holds the fields
as words, in their order. The names of the words, here rows, n_in and n_out, are what device kernels and C functions go
by, so they are distinct within a kernel.
"""

import inspect
from typing import Any

RESERVED = ("part", "parts")


class Contract:
    """The parameters of a kernel.

    arrays : the names of its arrays
    scalars : the names of its other parameters, in order
    sizes : those of `scalars` that come from the op's row
    tuples : the class of each of `sizes` that is a NamedTuple, by name
    types : the class of each of `sizes`, or int; whole : the class if there is but one, a NamedTuple
    words : the names of the words of a row that hold the sizes
    """

    def __init__(self, function, frame_words):
        parameters = inspect.signature(function).parameters
        names, self._name = list(parameters), function.__qualname__
        if "n" not in names:
            raise TypeError(
                f"kernel {self._name}: its parameters must be arrays, then n, then sizes; got ({', '.join(names)})"
            )
        self.frame_words = frame_words
        self.arrays, self.scalars = names[: names.index("n")], names[names.index("n") :]
        self.sizes = [name for name in self.scalars if name not in frame_words and name not in RESERVED]
        self.tuples: dict[str, Any] = {}
        for name in self.sizes:
            annotation = self._annotation(function, parameters[name])
            if isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
                self.tuples[name] = annotation
        self.types = tuple(self.tuples.get(name, int) for name in self.sizes)
        self.whole = self.types[0] if len(self.types) == 1 and self.tuples else None
        self.words = [word for name in self.sizes for word in self.words_of(name)]
        taken = [word for word in self.words if word in frame_words or word in RESERVED or self.words.count(word) > 1]
        if taken:
            raise TypeError(
                f"kernel {self._name}: a size is named {taken[0]}, as another one or as a word that the walk fills in; "
                "rename it"
            )

    def _annotation(self, function, parameter):
        """The annotation of a parameter; with ``from __future__ import annotations`` it is a string."""
        if not isinstance(parameter.annotation, str):
            return parameter.annotation
        try:
            return eval(parameter.annotation, function.__globals__)
        except NameError as error:
            raise TypeError(f"kernel {self._name}: the annotation of {parameter.name} is not known: {error}") from None

    def words_of(self, name):
        """The names of the words that one of `sizes` takes."""
        return self.tuples[name]._fields if name in self.tuples else (name,)

    def checked(self, sizes):
        """The sizes of an op as a kernel takes them, integers as int; None if they are others.

        One NamedTuple stands for itself. Lowering calls this only where `types` differ, since it is slow.
        """
        if hasattr(sizes, "_fields"):
            sizes = (sizes,)
        if len(sizes) != len(self.types):
            return None
        found = []
        for wanted, size in zip(self.types, sizes, strict=True):
            if wanted is int and not isinstance(size, tuple):
                found.append(int(size))
            elif type(size) is wanted:
                found.append(size)
            else:
                return None
        return tuple(found)

    def __str__(self):
        sizes = [f"{name}: {self.tuples[name].__name__}" if name in self.tuples else name for name in self.sizes]
        return f"arrays ({', '.join(self.arrays)}) and sizes ({', '.join(sizes)})"
