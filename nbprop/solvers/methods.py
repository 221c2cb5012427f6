"""What each method of `minimize` takes: a table of SciPy's methods, and checks of their options."""

from dataclasses import dataclass

import numpy as np

from nbprop.arrays import refuse_subclass
from nbprop.validation import check_flag, check_integer, check_number, choose, nearest


@dataclass(frozen=True)
class Method:
    """A method: its options, what else it takes, and the fields of its result beside those of every result."""

    options: tuple
    bounds: bool = False
    constraints: bool = False
    hessp: bool = False
    fields: tuple = ()


_TRUST = ("initial_trust_radius", "max_trust_radius", "eta", "gtol", "maxiter", "disp", "return_all")
_CONSTR = ("gtol", "xtol", "barrier_tol", "maxiter", "verbose", "initial_tr_radius", "initial_constr_penalty")
_BARRIER = ("initial_barrier_parameter", "initial_barrier_tolerance", "factorization_method", "disp")
_TNC = (
    "scale",
    "offset",
    "maxCGit",
    "eta",
    "stepmx",
    "accuracy",
    "minfev",
    "ftol",
    "xtol",
    "gtol",
    "rescale",
    "maxfun",
    "maxiter",
)
METHODS = {
    "L-BFGS": Method(("memory", "gtol", "ftol", "maxiter")),  # nbprop's own, see lbfgs.py
    "L-BFGS-B": Method(("maxcor", "ftol", "gtol", "maxfun", "maxiter", "maxls"), bounds=True, fields=("hess_inv",)),
    "BFGS": Method(
        ("gtol", "norm", "maxiter", "disp", "return_all", "xrtol", "c1", "c2", "hess_inv0"),
        fields=("hess_inv", "allvecs"),
    ),
    "CG": Method(("gtol", "norm", "maxiter", "disp", "return_all", "c1", "c2"), fields=("allvecs",)),
    "TNC": Method(_TNC, bounds=True),
    "SLSQP": Method(("ftol", "maxiter", "disp"), bounds=True, constraints=True),
    "Newton-CG": Method(("xtol", "maxiter", "disp", "return_all", "c1", "c2"), hessp=True, fields=("allvecs",)),
    "trust-ncg": Method(_TRUST, hessp=True, fields=("allvecs",)),
    "trust-krylov": Method((*_TRUST, "inexact"), hessp=True, fields=("allvecs",)),
    "trust-constr": Method(
        (*_CONSTR, *_BARRIER),
        bounds=True,
        constraints=True,
        hessp=True,
        fields=("constr", "constr_violation", "optimality", "v", "cg_niter", "tr_radius"),
    ),
}

# The ranges of the options. Integers: minimum; numbers: an interval, as `validation.interval` takes it.
_INTEGERS = {"maxiter": 0, "maxfun": 1, "maxls": 1, "maxcor": 1, "memory": 1, "minfev": 0, "maxCGit": -1, "verbose": 0}
_FLAGS = ("disp", "return_all", "inexact")
_POSITIVE, _NOT_NEGATIVE = (0.0, np.inf, "()"), (0.0, np.inf, "[)")
_NUMBERS = {
    "c1": (0.0, 1.0, "(]"),
    "c2": (0.0, 1.0, "(]"),
    "eta": (-1.0, 1.0, "[]"),
    "rescale": (-np.inf, np.inf, "[)"),
    **dict.fromkeys(("initial_trust_radius", "max_trust_radius", "initial_tr_radius"), _POSITIVE),
    **dict.fromkeys(
        ("initial_constr_penalty", "initial_barrier_parameter", "initial_barrier_tolerance"),
        _POSITIVE,
    ),
    **dict.fromkeys(("gtol", "ftol", "xtol", "xrtol", "barrier_tol", "stepmx", "accuracy"), _NOT_NEGATIVE),
}
_NEGATIVE_MEANS_DEFAULT = ("ftol", "xtol", "gtol")  # TNC's
_FACTORIZATIONS = (None, "NormalEquation", "AugmentedSystem", "QRFactorization", "SVDFactorization")


def settings(method, bounds, tol, maxiter, options):
    """(the method's name as SciPy writes it, its options), checked."""
    known = {name.lower(): name for name in METHODS}
    name = known.get(method.lower(), "") if isinstance(method, str) else ""
    if name not in METHODS:
        choose("minimize: method", method.upper() if isinstance(method, str) else method, METHODS)
    if bounds is not None and not METHODS[name].bounds:
        able = ", ".join(other for other, row in METHODS.items() if row.bounds)
        raise ValueError(f"minimize: method {name} takes no bounds; use {able}")
    if not isinstance(options, (dict, type(None))):
        raise TypeError(f"minimize: options must be a dict or None, got {type(options).__name__}")
    options = dict(options or {})
    for option in options:
        if option not in METHODS[name].options:
            raise ValueError(
                f"minimize: {name} has no option {option!r}; {nearest(str(option), METHODS[name].options)}"
            )
    if tol is not None:
        check_number("minimize: tol", tol)
    if maxiter is not None:
        maxiter = check_integer("minimize: maxiter", maxiter, 0)
        if options.setdefault("maxiter", maxiter) != maxiter:
            raise ValueError("minimize: maxiter is given twice; leave it out of options")
    _check_options(name, options)
    return name, options


def _check_options(name, options):
    """Check kind and range of each option; `check_arrays` checks those that hold arrays."""
    for option, value in options.items():
        label = f"option {option!r}"
        if option in _INTEGERS:
            options[option] = check_integer(f"minimize: {label}", value, _INTEGERS[option])
        elif option in _FLAGS:
            options[option] = check_flag(f"minimize: {label}", value)
        elif option in _NUMBERS:
            low, high, ends = _NUMBERS[option]
            if name == "TNC" and option in _NEGATIVE_MEANS_DEFAULT:
                low = -1.0
            options[option] = check_number(f"minimize: {label}", value, low, high, ends)
        elif option == "norm":
            if value not in (np.inf, -np.inf):
                options[option] = check_number(f"minimize: {label}", value)
        elif option == "factorization_method" and value not in _FACTORIZATIONS:
            known = ", ".join(map(repr, _FACTORIZATIONS))
            raise ValueError(f"minimize: {label} must be one of {known}, got {value!r}")
    if name.startswith("trust-") and options.get("eta", 0.0) >= 0.25:
        raise ValueError(f"minimize: option 'eta' must be below 0.25, got {options['eta']}")
    if not 0 < options.get("c1", 1e-4) < options.get("c2", 0.9 if name != "CG" else 0.4) < 1:
        raise ValueError(f"minimize: options 'c1' and 'c2' must be 0 < c1 < c2 < 1, got {options}")
    if not options.get("initial_trust_radius", 1.0) < options.get("max_trust_radius", 1000.0):
        raise ValueError("minimize: option 'initial_trust_radius' must be below 'max_trust_radius'")


def check_arrays(options, free):
    """Check the options that hold arrays, in place; those over all parameters are reduced to the free ones."""
    for option in ("scale", "offset"):
        if options.get(option) is not None:
            options[option] = free.part(_finite(option, options[option], (free.start.size,)))
    if options.get("hess_inv0") is not None:
        options["hess_inv0"] = _finite("hess_inv0", options["hess_inv0"], (free.size, free.size))


def _finite(option, array, shape):
    """A float64 array of finite numbers."""
    refuse_subclass(f"minimize: option {option!r}", array)
    try:
        found = np.asarray(array, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"minimize: option {option!r} must be an array of numbers, got {array!r}") from None
    if found.shape != shape or not np.isfinite(found).all():
        raise ValueError(
            f"minimize: option {option!r} must hold finite numbers and have shape {shape}, got shape {found.shape}"
        )
    return found
