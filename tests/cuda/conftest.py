"""The simulator's threads take turns (see turns.py)."""

import nbprop.cuda

if nbprop.cuda.simulated():
    import turns
    from numba.cuda.simulator.kernel import BlockManager

    BlockManager.run = turns.run
