"""The twins of the warp's instructions (nbprop/cuda/mma.py) against the layouts and rounding that NVIDIA documents."""

import numpy as np
import pytest
from bfloat16 import bfloat16
from numba import uint32

import nbprop.cuda
from nbprop.cuda import mma, toolkit, warps

if not nbprop.cuda.simulated():
    pytest.skip("twins of the simulator's; smoke.py runs the instructions", allow_module_level=True)


def of_bits(halves):
    return (np.asarray(halves, np.uint32) << np.uint32(16)).view(np.float32)


def test_every_bfloat16_and_its_neighbours_are_rounded_to_the_nearest():
    """The numbers themselves, the midpoints, and one float32 to either side of both."""
    halves = np.arange(1 << 16, dtype=np.uint32)
    for offset in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = ((halves << np.uint32(16)) + np.uint32(offset)).view(np.float32)
        found = of_bits(mma.rounded(values))
        nan = np.isnan(values)
        assert np.isnan(found[nan]).all()
        assert (mma.rounded(values)[nan] == 0x7FFF).all()
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(found[~nan].astype(np.float64), bfloat16(values[~nan]))
        np.testing.assert_array_equal(np.signbit(found[~nan]), np.signbit(values[~nan]))


def test_a_word_holds_two():
    word = mma._pack_simulated(np.float32(1.5), np.float32(-(2.0**-130)))
    assert word.dtype == np.uint32
    assert word == 0x3FC0 | 0x8008 << 16
    assert mma._low_of_simulated(word) == np.float32(1.5)
    assert mma._high_of_simulated(word) == np.float32(-(2.0**-130))
    assert mma._pack_simulated(np.float32(np.nan), np.float32(3.4028e38)) == 0x7FFF | 0x7F80 << 16


def in_lanes(function, arrays, blocks=1):
    """Run function(lane, *arrays) in 64 threads, two warps."""
    cuda = toolkit.cuda

    def kernel(*given):
        function(cuda.threadIdx.x, *given)

    compiled = toolkit.compile(kernel)
    toolkit.launch(compiled, blocks, 0, lambda: tuple(map(toolkit.simulated, arrays)), 4096, threads=64)


def test_products_have_the_documented_layout():
    """Each element by the formulas of the PTX ISA, "Matrix fragments for mma.m16n8k16", for two warps at once."""
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-8, 9, (2, *shape)).astype(np.float32) for shape in ((16, 16), (16, 8), (16, 8)))
    found = np.zeros((2, 16, 8), np.float32)

    def run(thread, found, a, b, c):
        warp, lane = thread // 32, thread % 32
        group, member = lane >> 2, lane % 4
        a_at = [
            (group + (8 if i in (2, 3, 6, 7) else 0), 2 * member + (i & 1) + (8 if i >= 4 else 0)) for i in range(8)
        ]
        b_at = [(2 * member + (i & 1) + (8 if i >= 2 else 0), group) for i in range(4)]
        c_at = [(group + (8 if i >= 2 else 0), 2 * member + (i & 1)) for i in range(4)]
        left = np.array([mma.pack(a[warp][a_at[2 * k]], a[warp][a_at[2 * k + 1]]) for k in range(4)])
        right = np.array([mma.pack(b[warp][b_at[2 * k]], b[warp][b_at[2 * k + 1]]) for k in range(2)])
        sums = np.array([0, *(c[warp][at] for at in c_at)], np.float32)
        mma.mma(sums, 1, left, 0, right, 0)
        for at, value in zip(c_at, sums[1:], strict=True):
            found[warp][at] = value

    in_lanes(run, (found, a, b, c))
    np.testing.assert_array_equal(found, a @ b + c)


@pytest.mark.parametrize("turned", [False, True])
def test_matrices_are_loaded_as_documented(turned):
    """Row r of matrix q from where lane 8 q + r says; thread 4 g + t gets elements (g, 2 t) and (g, 2 t + 1)."""
    halves = np.random.default_rng(1).permutation(4 * 64).astype(np.uint16)
    places = np.random.default_rng(2).permutation(32)  # of the rows, anywhere
    found = np.zeros((2, 32, 4), np.uint32)

    def run(thread, found):
        space = toolkit.cuda.shared.array(0, uint32)
        space[:128] = halves.view(np.uint32)
        toolkit.cuda.syncthreads()
        load = mma.ldmatrix_turned if turned else mma.ldmatrix
        load(found[thread // 32, thread % 32], 0, space, int(4 * places[thread % 32]))

    in_lanes(run, (found,))
    for q in range(4):
        matrix = np.array([halves.reshape(32, 8)[places[8 * q + r]] for r in range(8)])
        matrix = matrix.T if turned else matrix
        for lane in range(32):
            wanted = np.ascontiguousarray(matrix[lane // 4, 2 * (lane % 4) :][:2]).view(np.uint32)[0]
            assert found[0, lane, q] == found[1, lane, q] == wanted


def test_what_is_not_finite_shows():
    found = np.zeros((2, 32, 4), np.float32)

    def run(thread, found):
        one, left = mma.pack(np.float32(1), np.float32(1)), np.float32(np.inf if thread % 32 == 0 else 1)
        a, b = np.array([mma.pack(left, left), one, one, one]), np.array([one, one])
        mma.mma(found[thread // 32, thread % 32], 0, a, 0, b, 0)

    in_lanes(run, (found,))
    assert np.isinf(found[:, :4, :2]).all()
    assert (found[:, 4:] == 16).all()
    assert (found[:, :4, 2:] == 16).all()


def test_warps_meet_without_the_turns_of_the_tests():
    """In Numba's own simulator lanes are threads that run at once."""
    from threading import Thread
    from types import SimpleNamespace

    class Lane(Thread):
        def __init__(self, number, manager):
            super().__init__(daemon=True)
            self.thread_id, self._manager, self.found = number, manager, []

        def run(self):
            for k in range(20):
                self.found.append(warps.exchange(100 * k + self.thread_id, sum))

    manager = SimpleNamespace(_block_dim=(64, 1, 1))
    lanes = [Lane(number, manager) for number in range(64)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join(timeout=60)
    for lane in lanes:
        first = lane.thread_id // 32 * 32
        wanted = [sum(100 * k + first + i for i in range(32)) for k in range(20)]
        assert lane.found == [(lane.thread_id % 32, total) for total in wanted]


def test_a_loop_is_unrolled_in_order():
    seen = []
    mma.unrolled(3, lambda number, given: seen.append((number, given)))((1, 2))
    assert seen == [(k, (1, 2)) for k in range(3)]
