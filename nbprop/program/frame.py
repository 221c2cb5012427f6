"""The frame: the block of 64-bit words that holds the addresses of the buffers of a walk.

An operand in an op table is (space, offset, length); the frame holds the base address of each space, so that one table
serves any buffers. A base of 0 means that the caller gave none: the operand is then an empty array.
"""

# Spaces: the memory that an operand is in.
NONE = 0
PARAMS = 1
GRADS = 2
X = 3
TARGET = 4
WORK = 5
Y = 6
DY = 7
DX = 8
WEIGHTS = 9
STATE = 10
TANGENT = 11  # v, a direction in parameter space
X_TANGENT = 12  # a direction in input space
OUT = 13  # a product with a derivative: Hv, Jv
LENGTHS = 14  # integers: the length of each sample

SPACES = {
    "params": PARAMS,
    "grads": GRADS,
    "x": X,
    "target": TARGET,
    "work": WORK,
    "y": Y,
    "dy": DY,
    "dx": DX,
    "weights": WEIGHTS,
    "state": STATE,
    "tangent": TANGENT,
    "x_tangent": X_TANGENT,
    "out": OUT,
    "lengths": LENGTHS,
}

# Scalars.
N = 16  # samples in this call
ACCUMULATE = 17  # 1: gradients are added to what grads holds
STEP = 18  # keys the random numbers of dropout; the position of a decoding plan
X_CODE = 19  # element code of x (see arguments.py)
TARGET_CODE = 20
RESULT = 21  # a float64, returned by the last kernel that returns a number (the loss)
LENGTHS_CODE = 22  # element code of lengths
FIRST_SAMPLE = 23  # index in the caller's batch of sample 0 of this walk, for functions that walk sample by sample

WORDS = 24
