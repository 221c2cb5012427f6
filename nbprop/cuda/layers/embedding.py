"""The device kernels of embeddings; the equations and arrays are those of nbprop/layers/embedding.py.

In the backward pass, the positions of a word form a chain in the order of the positions, from which the word's row of
dW is summed without atomics: in the CPU's order. To find the next position of its word, a thread reads those behind it,
at most all of them; so the work grows with the square of the positions, by some integers each, and not with the
vocabulary.

Dimensions: n samples; rows indices a sample; size features an index.
"""

from nbprop.compiler.intrinsics import load, store
from nbprop.compiler.jit import njit
from nbprop.cuda.groups import team_of
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.cuda.vectors import address
from nbprop.layers.embedding import embedding_backward, embedding_forward
from nbprop.numerics.scalars import like
from nbprop.program.elements import integer_at


@njit
def note(place, index, word):
    """Write a word of the scratch space."""
    store(place, index, word)


@njit
def noted(place, index):
    """Read a word of the scratch space."""
    return load(place, index)


def _words(n, rows, itemsize):
    """Elements of scratch that hold two words of eight bytes for each position."""
    return 2 * n * rows * (8 // itemsize)


def cuda_kernels(cuda):
    """The device kernels, in the order of their launches."""

    @on_device(embedding_forward, blocks=lambda n, rows, size: grid_size(n * rows * size))
    def forward(y, w, n, rows, size, x_address, x_code):
        """y = W[x]. y OUT (n * rows, size), w IN (vocabulary, size); x: n * rows integers at x_address."""
        for i in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            y[i] = w[integer_at(x_address, x_code, i // size) * size + i % size]

    @on_device(embedding_backward, blocks=lambda dw, n, rows: grid_size(max(dw, n * rows)), scratch=_words)
    def cleared(dw, partials, n, rows, w_accumulate, accumulate, x_address, x_code):
        """dW = 0 unless `w_accumulate` or `accumulate`, and the indices as words.

        dw OUT (vocabulary, size); partials OUT: words (2, n * rows), of which this writes the first row; x: n * rows
        integers at x_address.
        """
        place = address(partials)
        if w_accumulate + accumulate == 0:
            for k in range(cuda.grid(1), dw.size, cuda.gridsize(1)):
                dw[k] = like(dw[0], 0.0)
        for i in range(cuda.grid(1), n * rows, cuda.gridsize(1)):
            note(place, i, integer_at(x_address, x_code, i))

    @on_device(embedding_backward, blocks=lambda n, rows: grid_size(n * rows))
    def linked(partials, n, rows):
        """The next position of the same index, or n * rows; -1 minus that where an earlier position has it, too.

        partials INOUT: words (2, n * rows): the indices, and what this writes. One thread per position.
        """
        place, total = address(partials), n * rows
        for i in range(cuda.grid(1), total, cuda.gridsize(1)):
            index, before, behind = noted(place, i), i - 1, i + 1
            while behind < total and noted(place, behind) != index:
                behind += 1
            while before >= 0 and noted(place, before) != index:
                before -= 1
            note(place, total + i, behind if before < 0 else -1 - behind)

    @on_device(embedding_backward, blocks=lambda n, rows, size: grid_size(n * rows * int(team_of(size))))
    def summed(dw, dy, partials, n, rows, size):
        """dW[x] += dy, by a team of threads for each index, at its first position.

        dw INOUT (vocabulary, size), dy IN (n * rows, size); partials IN: words (2, n * rows), from `linked`.
        """
        place, total, team = address(partials), n * rows, team_of(size)
        for item in range(cuda.grid(1), total * team, cuda.gridsize(1)):
            first, lane = item // team, item % team
            if noted(place, total + first) >= 0:
                row = noted(place, first) * size
                for j in range(lane, size, team):
                    found, i = dw[row + j], first
                    while i < total:
                        found += dy[i * size + j]
                        link = noted(place, total + i)
                        i = link if link >= 0 else -1 - link
                    dw[row + j] = found

    return forward, cleared, linked, summed
