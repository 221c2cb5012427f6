"""Means on the device: of parameters along a training (training/averaging.py), and of several batches' gradients."""

from nbprop.cuda import functions as f
from nbprop.cuda.kernels import on_device
from nbprop.cuda.sequence import Sequence
from nbprop.cuda.toolkit import bits_of, cuda, grid_size
from nbprop.numerics.scalars import like
from nbprop.program import frame


@on_device(blocks=lambda count: grid_size(count))
def move_toward(mean, p, n, count, rate_bits, until, step):
    """mean += rate (p - mean), or mean = p where the rate is 1, or before step `until`; n is not used.

    mean INOUT, p IN (count,); rate_bits: the bits of the rate, in their dtype.
    """
    rate = f.real_of_word(p[0], rate_bits)
    copies = step < until or rate == like(rate, 1.0)
    for i in range(cuda.grid(1), count, cuda.gridsize(1)):
        mean[i] = p[i] if copies else mean[i] + rate * (p[i] - mean[i])


def add_mean(sequence, mean, p, rate, until=0):
    """Append a launch that moves a mean; rate and until: numbers, or functions of none, called at each `write`."""

    def bits():
        return bits_of(rate() if callable(rate) else rate, p.dtype)

    n = int(sequence.words[frame.N])  # one for the whole sequence
    sequence.add(move_toward, p.dtype, {"mean": mean, "p": p}, n, count=p.size, rate_bits=bits, until=until)


class Mean:
    """Moves a mean, once for each call, by launches of their own."""

    def __init__(self, pairs):
        self._rate, self._sequence = 1.0, Sequence()
        for mean, p, averaged in pairs:
            add_mean(self._sequence, mean, p, (lambda: self._rate) if averaged else 1.0)
        self._sequence.place()

    def __call__(self, rate, stream):
        """mean += rate (p - mean)."""
        self._rate = rate
        self._sequence.write(0, stream)
        self._sequence.enqueue(stream)
