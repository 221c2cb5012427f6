"""Results are the same, to the last bit, as when the digests were stored."""

import pytest

from support import bits
from support.cases import CASES


@pytest.mark.skipif(bits.stored() is None, reason="no digests are stored for this machine's vector width")
@pytest.mark.parametrize("case", sorted(CASES))
def test_bits_are_the_stored_ones(case):
    assert bits.digest(case) == bits.stored()[case], "if results are meant to change: python -m support.bits"
