"""Every public function with wrong arguments, one at a time, from a valid call; runs in a process of its own.

`python any_argument.py LOG EXAMPLES [NAMES TO LEAVE OUT]` writes each call to LOG before it makes it, so that a crash
is told with its example, and prints what was accepted in silence, raised without the argument's name, or raised as
another error. "layers" leaves out their constructors.
See test_any_argument.py.
"""

import faulthandler
import sys
import warnings

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import nbprop
from support.argument_calls import CALLS, LAYERS, LEFT_OUT, WALKS
from support.argument_kinds import Array, arrays

SHOWN = 200  # faults printed


def shown(value):
    """A value in a line."""
    if isinstance(value, np.ndarray):
        flags = [name for name in ("C_CONTIGUOUS", "ALIGNED", "WRITEABLE") if not value.flags[name]]
        return f"{type(value).__name__} {value.dtype} {value.shape} {value.ravel()[:6].tolist()} not {flags}"
    if isinstance(value, int) and abs(value) > 2**200:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)[:80]


class Trial:
    """Makes calls with one argument changed, and gathers what is wrong with how they end."""

    def __init__(self, log):
        self.log, self.faults, self.made = log, [], 0

    def refused(self, name, argument, value):
        """The call must raise an error that names the argument."""
        self._call(name, argument, value, "accepted in silence")

    def taken(self, name, argument, value):
        """The call must be made, as the argument is right."""
        self._call(name, argument, value, None)

    def _call(self, name, argument, value, accepted):
        call = CALLS[name]
        arguments = call.make()
        arguments[argument] = value
        what = f"{name}: {argument} = {shown(value)}"
        self.log.seek(0)
        self.log.write(what.ljust(300)[:300] + "\n")
        self.log.flush()
        self.made += 1
        try:
            call.function(**arguments)
        except (TypeError, ValueError, OSError) as error:
            if not any(word in str(error) for word in (argument, *call.renamed.get(argument, ()))):
                self.faults.append(f"{what}: no name in {type(error).__name__}: {str(error)[:160]}")
            elif accepted is None:
                self.faults.append(f"{what}: refused, {error}")
        except Exception as error:
            self.faults.append(f"{what}: {type(error).__name__}: {str(error)[:160]}")
        else:
            if accepted:
                self.faults.append(f"{what}: {accepted}")


def sweep(trial):
    """Every example of every argument."""
    for name, call in CALLS.items():
        call.function(**call.make())
        for argument, kind in call.kinds.items():
            for value in kind.examples(call.make()[argument]):
                trial.refused(name, argument, value)


def random_arrays(trial, name, examples):
    """Random arrays for the array arguments of a function."""
    call = CALLS[name]
    places = [argument for argument, kind in call.kinds.items() if isinstance(kind, Array)]

    @settings(
        derandomize=True,
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def tried(drawn):
        argument = drawn.draw(st.sampled_from(places))
        valid, kind = call.make()[argument], call.kinds[argument]
        value = drawn.draw(arrays(valid))
        if not kind.fits(value, valid):
            trial.refused(name, argument, value)
        elif name in WALKS:
            trial.taken(name, argument, value)

    if places:
        tried()


def main():
    faulthandler.enable()
    warnings.simplefilter("error")
    unknown = set(nbprop.__all__) - set(CALLS) - set(LEFT_OUT)
    assert not unknown, f"public names without an entry in the table of valid calls: {sorted(unknown)}"
    for word in sys.argv[3:]:
        for name in LAYERS if word == "layers" else [word]:
            CALLS.pop(name)
    with open(sys.argv[1], "w", encoding="utf-8") as log:
        trial = Trial(log)
        sweep(trial)
        for name in CALLS:
            random_arrays(trial, name, int(sys.argv[2]))
    print(f"{trial.made} calls, {len(trial.faults)} faults")
    print("\n".join(trial.faults[:SHOWN]))


if __name__ == "__main__":
    main()
