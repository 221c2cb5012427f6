"""Learning rates per part of a network: the factor of each parameter's step."""

import numpy as np

from nbprop.arrays import check_vector
from nbprop.validation import check_number, nearest, shown


def rate_factors(net, dtype, given):
    """(n,) factors of the parameters' learning rates, of a dtype; None for none.

    given: such an array, or a dict of factors by the beginning of names in `views`: "0.dense", "2.dense.bias". The
    longest name counts; what has none has 1.
    """
    if given is None:
        return None
    if not isinstance(given, dict):
        factors = check_vector("fit: lr_scale", given, net.n_params, (dtype,), False)
        if not (np.isfinite(factors).all() and (factors >= 0).all()):
            raise ValueError("fit: lr_scale must be finite and not negative")
        return factors
    factors = np.ones(net.n_params, dtype)
    for name in sorted(given, key=lambda name: len(str(name))):
        factor = check_number(f"fit: lr_scale[{shown(name)}]", given[name])
        inside = [slot for path, slot in net.slots.items() if path == name or path.startswith(f"{name}.")]
        if not inside:
            raise ValueError(f"fit: lr_scale: no parameters are called {shown(name)}; {nearest(name, net.slots)}")
        for slot in inside:
            factors[slot.offset : slot.stop] = factor
    return factors
