"""The simulator's threads and blocks take turns (see turns.py)."""

import nbprop.cuda

if nbprop.cuda.simulated():
    import turns
    from numba.cuda.simulator import kernel

    kernel.BlockManager.run, kernel.np = turns.run, turns.ShuffledBlocks()
