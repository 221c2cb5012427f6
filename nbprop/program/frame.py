"""The frame: the block of 64-bit words that tells a walk where its buffers are.

An operand in an op table is (space, offset, length); the frame holds each space's base address, so that one
table serves any buffers. A base of 0 means that the caller gave none: the operand is then an empty array.
"""

# Spaces: whose memory an operand lies in.
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
LENGTHS = 14  # integers: how many positions of each sample count

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
RESULT = 21  # a float64: what the last kernel that returns a number returned (the loss)
LENGTHS_CODE = 22  # element code of lengths
FIRST_SAMPLE = 23  # the place in the caller's batch of sample 0 of this walk: functions that take rows one by one

WORDS = 24
