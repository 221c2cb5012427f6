"""The optimizers on device arrays: the rules of update_rules.py, one thread per parameter.

What depends on the step alone (the learning rate, Adam's bias corrections) is computed on the host, in float64 as on
the CPU, for a page of steps at a time; a launch reads the row of its step. So updates can be recorded once and
replayed.
"""

import numpy as np

from nbprop.arrays import check_kinds, check_shape
from nbprop.cuda import memory, toolkit
from nbprop.cuda.kernels import kernels_of
from nbprop.cuda.sequence import Sequence
from nbprop.optimizers import proximal
from nbprop.optimizers import update_rules as rules
from nbprop.optimizers.api import optimizer_state as of_host
from nbprop.optimizers.step import check_hyperparameter
from nbprop.validation import check_integer, check_number


def optimizer_state(optimizer, n_params, dtype=np.float32):
    """A new state for an optimizer in device memory, zeros; see `nbprop.optimizer_state`."""

    return memory.to_device(of_host(optimizer, n_params, dtype))


class Update:
    """An optimizer bound to device arrays: `enqueue` launches the step that its frame names.

    slices: those in the workspace of a fused plan, with their stride (see fused.py). Unless `count` is 0, `count` of
    them are summed into the gradient. factors: of each parameter's learning rate, or None. What `append` adds is
    launched after the update. l1: (l1, the mask of penalized parameters or None), for proximal steps; None without.
    """

    def __init__(
        self,
        name,
        params,
        grads,
        state,
        decay_mask=None,
        trainable=None,
        page=1,
        slices=None,
        factors=None,
        l1=None,
    ):
        self.arrays = check(name, params, grads, state, decay_mask, trainable)
        self.name, self.first, (p, g, state, *masks) = name, 0, self.arrays
        if factors is not None and l1 is None:  # a proximal step that penalizes nothing
            l1 = 0.0, memory.zeros(p.size, np.uint8)
        self.sums = l1 is None  # whether it can sum slices
        place, native = (rules, rules.RULES[name].kernel) if l1 is None else (proximal, proximal.PROXIMAL[name])
        self.dtype, self._rows_of = p.dtype, place.constants_of
        self.constants = memory.empty(page * place.CONSTANTS, p.dtype)
        kernel = next(k for k in kernels_of(place) if k.replaces == (native,))
        decay_mask, trainable = (0 if mask is None else mask.address for mask in masks)
        self._sequence = Sequence()
        slices, stride = (g, 0) if slices is None else slices
        arrays = {"p": p, "g": g, "state": state, "c": self.constants, "slices": slices}
        arrays["factors"] = p if factors is None else factors
        self.count = 0
        numbers = {
            "count": lambda: self.count,
            "stride": stride,
            "decay_mask": decay_mask,
            "trainable": trainable,
            "scaled": int(factors is not None),
            "first_step": lambda: self.first,
        }
        if l1 is not None:
            number, self._penalized = l1  # the mask is kept alive
            numbers["penalized"] = 0 if self._penalized is None else self._penalized.address
            numbers["l1_bits"] = toolkit.bits_of(number, p.dtype)
        self._sequence.add(kernel, p.dtype, arrays, p.size, **numbers)
        self.frame_address = self._sequence.place().frame_address

    def append(self, add):
        """Let `add(sequence)` append launches, before the first step."""
        add(self._sequence)
        self.frame_address = self._sequence.place().frame_address

    def prepare(self, first, values_of_steps, stream):
        """Write the constants of the steps from `first` on; values_of_steps: the hyperparameters of each, in order."""
        rows = [self._rows_of(self.name, self.dtype, first + k, v) for k, v in enumerate(values_of_steps)]
        self.first = first
        toolkit.write(self.constants.address, np.concatenate(rows), stream)
        self._sequence.write(first, stream)

    def enqueue(self, stream):
        """Launch one update."""
        self._sequence.enqueue(stream)


def take_step(name, params, grads, state, step, decay_mask, trainable, hyper, l1=None, penalized=None):
    """One step of an optimizer on device arrays; arguments as those of the public functions in optimizers/api.py."""
    given = list(rules.RULES[name].hyperparameters.items())
    values = [check_hyperparameter(name, *kind, value) for kind, value in zip(given, hyper, strict=False)]
    step, proximal_step = check_integer(f"{name}: step", step, 0), None
    if l1 is not None:
        penalized = _mask(name, "penalized", penalized, memory.as_array(f"{name}: params", params).size)
        proximal_step = check_number(f"{name}: l1", l1), penalized
    update = Update(name, params, grads, state, decay_mask, trainable, l1=proximal_step)
    stream = memory.current_stream()
    update.prepare(step, [values], stream)
    update.enqueue(stream)
    toolkit.synchronize(stream)


def _mask(name, label, mask, n):
    """A mask of n bytes on the device, or None."""
    if mask is None:
        return None
    mask = memory.as_array(f"{name}: {label}", mask)
    check_kinds(f"{name}: {label}", mask, (bool, np.uint8))
    check_shape(f"{name}: {label}", mask, (n,))
    return mask


def check(name, params, grads, state, decay_mask, trainable):
    """The arrays of a step as device arrays that fit each other."""
    params = memory.as_array(f"{name}: params", params)
    check_kinds(f"{name}: params", params, (np.float32, np.float64))
    check_shape(f"{name}: params", params, (params.size,))
    n, found = params.size, [params]
    for label, array, size in (("grads", grads, n), ("state", state, rules.RULES[name].slots * n)):
        array = memory.as_array(f"{name}: {label}", array)
        check_kinds(f"{name}: {label}", array, params.dtype)
        check_shape(f"{name}: {label}", array, (size,))
        found.append(array)
    found += [_mask(name, *named, n) for named in (("decay_mask", decay_mask), ("trainable", trainable))]
    memory.check_separate(name, {"params": params, "state": found[2]}, {"grads": found[1]})
    return found
