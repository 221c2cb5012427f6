"""What a plan needs before it runs on the CPU: the compiled entries, and threads that walk."""

from nbprop.runtime.entries import ENTRIES
from nbprop.runtime.workers import ensure


def prepare(plan):
    """Compile, or fetch from the disk cache, the entries of first derivatives, and start the plan's threads."""
    for function in ("forward", "value", "value_and_grad", "backward"):
        ENTRIES[function].load()
    ensure(plan.threads)
