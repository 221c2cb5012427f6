"""The op table: one flat int64 array, a header of fixed words and then the programs, an op a row.

A row is: kernel fingerprint, length of the row in words, barrier (1: threads synchronise after it), the operands (three
words each: space, offset, length; see frame.py), then the kernel's sizes. The rows of a program are consecutive, so a
program is a pair of word offsets in the header.
"""

from nbprop.compiler.jit import source_hash

# Header words.
VERSION = 0  # a hash of the sources that define this layout: a table from other code is refused
DTYPE = 1  # element code, see arguments.py
BATCH = 2  # capacity: the maximum number of samples of a call
THREADS = 3
N_PARAMS = 4
WORK = 5  # elements of workspace
X_CODE = 6  # element code of x, or ANY_INTEGER
CLASSES = 7  # x: the number of valid indices when x is integer
STATE = 8  # elements of layer state (running statistics, carried hidden states, caches)
LOSS_POSITIONS = 9  # positions of a sample with a loss of their own, which lengths may cut; 1 for none
TARGET_IGNORED = 19  # an integer target that is no class and allowed; 0 for none
X_SHAPE = 10  # rank, then up to MAX_RANK extents of one sample
Y_SHAPE = 20
TARGET_SHAPE = 30
TARGET_CODE = 40  # element code, ANY_INTEGER for classes, 0 without a loss
TARGET_CLASSES = 41
UNIT = 42  # offset in the workspace of one row of the output, for unit vectors
LENGTHS = 43  # maximum length, if a layer takes lengths, else 0
POSITIONS = 44  # of a decoding plan: the number of positions of its caches, else 0
MIN_SAMPLES = 45  # minimum number of samples of a call if they affect each other's outputs, else 0
TARGET_LEAST = 46  # float64: the range of targets, -infinity and infinity if unbounded
TARGET_MOST = 47
PROGRAMS = 48  # begin, end of each program, in words from the start of the table
HEADER = 80

MAX_RANK = 8

# Programs, in the order of their pairs in the header.
FORWARD = 0  # params, x -> y
VALUE = 1  # params, x, target -> loss
VALUE_AND_GRAD = 2  # params, x, target -> loss, grads
BACKWARD = 3  # params, x, dy, work as forward left it -> grads
BACKWARD_INPUT = 4  # the same, and dx
VJP = 5  # forward and backward in one: params, x, dy -> grads
VJP_INPUT = 6  # the same, and dx
JVP = 7  # params, x, v or dx -> y'
HVP = 8  # params, x, target, v -> Hv
GAUSS_NEWTON = 9  # params, x, target, v -> J^T H_L J v, in grads
FISHER = 10  # params, x, target, v -> J^T E[H_L] J v, in grads
JACOBIAN = 11  # params, x, dy (one row of the output) -> out, one row per sample
NEXT_OUTPUT = 12  # the same for another dy, with work as forward left it
PER_SAMPLE = 13  # params, x, target -> out, one row per sample
SAMPLE_GRAD = 14  # as VALUE_AND_GRAD, without penalties: for samples one by one
N_PROGRAMS = 15

# Row words.
KERNEL = 0
LENGTH = 1
BARRIER = 2
OPERANDS = 3

TABLE_VERSION = source_hash("nbprop.program.table")
