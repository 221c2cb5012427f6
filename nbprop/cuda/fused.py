"""Small networks on large batches in one launch: forward pass, loss and backward pass, with activations on the chip.

After tiny-cuda-nn (Mueller, Rousselle, Novak and Keller 2021, "Real-time neural radiance caching for path tracing",
section 4.2), in float32. A thread block takes a tile of samples through the whole network, forward and backward, with
the outputs of all layers in shared memory (tile.py): it reads the samples from global memory, and writes no activations
there. It accumulates the weight gradients of its tiles in a slice of its own, which stays in the L2 cache. A second
launch adds up the slices in order; a recorded training step updates the parameters in that same launch (optimizers.py).

A plan runs value and value_and_grad this way if its network is a chain of dense layers, activations after them, flatten
and reshape, in float32, with widths up to `tile.WIDEST`, one of the losses of tile_losses.py, a batch of at least
`FEWEST_SAMPLES`, and activations that fit in shared memory.
"""

import math
from typing import NamedTuple

import numpy as np

from nbprop.cuda import fused_kernels, tensor_fused, tile, toolkit
from nbprop.cuda.fused_kernels import SAMPLES, blocks_of, stride_of
from nbprop.cuda.kernels import PLANES, kernels_of
from nbprop.cuda.tile import BIAS, CODE, KEEP, LAYER_WORDS, MOST_LAYERS, N_IN, N_OUT, WEIGHT, WIDEST, X, Y, Z
from nbprop.cuda.tile_losses import NUMBERS
from nbprop.cuda.toolkit import SIMULATED
from nbprop.layers.activation import Activation
from nbprop.layers.dense.layer import Dense
from nbprop.layers.reshape import Flatten, Reshape
from nbprop.numerics.activations import ACTIVATIONS, IDENTITY, NEEDS_INPUT
from nbprop.program import frame
from nbprop.program.ops import Buffer
from nbprop.program.table import VALUE, VALUE_AND_GRAD

# The smallest batch that is fused: one tile per multiprocessor of an H100. Not measured.
FEWEST_SAMPLES = 1 << 40 if SIMULATED else 132 * 128
# Shared memory of a block: two fit in a multiprocessor of an H100 (228 KiB, of which each block reserves 1).
MOST_SHARED = 8 * 1024 if SIMULATED else 113 * 1024

# The label of the launch that sums the slices into the gradient; an update of the parameters can replace it.
SUM = "sum of slices"


class Chain(NamedTuple):
    """A network that qualifies: the words of its layers, the samples of a tile, elements of shared memory."""

    words: tuple
    samples: int
    elements: int

    @property
    def kernel(self):
        """That of its tiles."""
        return kernels_of(fused_kernels)[1:][SAMPLES.index(self.samples)]

    @property
    def numbers(self):
        """Sizes of its launches, by name."""
        return {"samples": self.samples, "elements": self.elements}


def chain_of(net, precision=None):
    """The network as a `Chain`, with a precision as a `tensor_fused.Chain`; None if it does not qualify."""
    layers = _dense_layers(net)
    if not layers or len(layers) > MOST_LAYERS or max(max(n_in, n_out) for n_in, n_out, *_ in layers) > WIDEST:
        return None
    if precision is not None:
        return tensor_fused.chain_of(layers, PLANES[precision])
    widths = [layers[0][0]]
    for number, (_, n_out, _, _, code) in enumerate(layers, 1):
        widths += [n_out] * (2 if _apart(code, number == len(layers)) else 1)
    limit = min(MOST_SHARED, toolkit.shared_memory_of_a_block())
    for samples in SAMPLES:
        if tile.shared_bytes(samples, widths) <= limit:
            return Chain(tuple(_placed(layers, samples)), samples, tile.shared_floats(samples, widths))
    return None


def _dense_layers(net):
    """[(n_in, n_out, offset of the weight, of the bias or -1, activation)]; None if the network has other layers."""
    found = []
    for (path, layer), shape in zip(net.nodes, net.shapes, strict=False):
        if isinstance(layer, (Flatten, Reshape)):
            continue
        if isinstance(layer, Dense) and len(shape) == 1 and layer.share is None and layer.activation != "softmax":
            names = f"{path}.weight", f"{path}.bias"
            places = [net.slots[name].offset if name in net.slots else -1 for name in names]
            found.append((shape[0], layer.units, *places, ACTIVATIONS[layer.activation]))
        elif isinstance(layer, Activation) and found and found[-1][-1] == IDENTITY and layer.name != "softmax":
            found[-1] = (*found[-1][:-1], ACTIVATIONS[layer.name])
        else:
            return None
    return found if len(net.output_shape) == 1 else None


def _apart(code, last):
    """Whether the z of a layer is stored apart from its y (see tile.py)."""
    return code in NEEDS_INPUT or (last and code != IDENTITY)


def _placed(layers, samples):
    """The layers' words, with the offsets of their activations in shared memory."""
    end, words = tile.STAGE, []

    def room(width):
        nonlocal end
        begin, end = end, end + -(-width // 4) * 4 * (samples + 4)
        return begin

    x = room(layers[0][0])
    for number, (n_in, n_out, weight, bias, code) in enumerate(layers, 1):
        y = room(n_out)
        z = room(n_out) if _apart(code, number == len(layers)) else y
        row = {N_IN: n_in, N_OUT: n_out, X: x, Z: z, Y: y, WEIGHT: weight, BIAS: bias, CODE: code}
        row[KEEP] = z != y and code not in NEEDS_INPUT
        words += [int(row[k]) for k in range(LAYER_WORDS)]
        x = y
    return words


class Fused:
    """The launches of a plan that qualifies, by program."""

    def __init__(self, plan, chain, append, words_at):
        weight_sum, *_, reduced, mean = kernels_of(fused_kernels)
        self.chain, self.samples, self.stride = chain, chain.samples, stride_of(plan.n_params)
        work = chain.kernel
        buffers = {
            "params": Buffer(plan.n_params, frame.PARAMS, 0),
            "grads": Buffer(plan.n_params, frame.GRADS, 0),
            "x": Buffer(plan.batch * math.prod(plan.input_shape), frame.X, 0),
            "target": None if plan.classes else Buffer(plan.batch * math.prod(plan.target_shape), frame.TARGET, 0),
            "weights": Buffer(plan.batch, frame.WEIGHTS, 0),
        }
        sizes = dict(zip(plan.loss.kernel.words, (1, *plan.loss.sizes(plan.output_shape)), strict=True))
        numbers = {
            "layers": len(chain.words) // LAYER_WORDS,
            "layers_at": words_at,
            "loss": NUMBERS[type(plan.loss)],
            "delta_bits": sizes.get("delta_bits", 0),
            "n_params": plan.n_params,
            "stride": self.stride,
            **chain.numbers,
        }

        def launches(kernels, gradient):
            given = buffers, numbers | {"gradient": gradient}
            return [append(kernel, *given, SUM if kernel is reduced else "fused") for kernel in kernels]

        self.programs = {
            VALUE: launches((weight_sum, work, mean), 0),
            VALUE_AND_GRAD: launches((weight_sum, work, reduced, mean), 1),
        }

    def slices(self, n):
        """The number of slices that a call on n samples leaves."""
        return int(blocks_of(n, self.samples))


def fused(plan, append, append_words):
    """`Fused` for a plan that qualifies, else None.

    append, append_words: functions that add a launch, or words, to the plan's table.
    """
    if plan.dtype != np.float32 or type(plan.loss) not in NUMBERS or plan.watch or plan.batch < FEWEST_SAMPLES:
        return None
    if plan.penalty is not None:
        return None
    chain = chain_of(plan.net, plan.precision)
    return None if chain is None else Fused(plan, chain, append, append_words(chain.words))
