"""AlexNet as published: its size, and ten steps that follow PyTorch's."""

import importlib.util
import sys

import numpy as np
import pytest

import nbprop
from support import ROOT, stored

HISTORY = ROOT / "examples" / "history"
spec = importlib.util.spec_from_file_location("alexnet", HISTORY / "alexnet.py")
alexnet = importlib.util.module_from_spec(spec)
sys.path.insert(0, str(HISTORY))  # scripts there import each other
try:
    spec.loader.exec_module(alexnet)
finally:
    sys.path.remove(str(HISTORY))


def test_the_published_network():
    net = alexnet.alexnet()
    assert net.n_params == 60_965_224
    assert net.shapes[1:10:3] == [(55, 55, 96), (27, 27, 256), (13, 13, 384)]
    assert nbprop.Network.from_json(net.to_json()) == net


@pytest.mark.more
def test_ten_steps_follow_pytorch():
    """In float32, an eighth as wide; examples/history/alexnet.py --width 1 --trajectory prints the published one's."""
    description, arrays = stored.load("alexnet")["narrow"]
    losses = alexnet.trajectory(**description)
    assert losses[-1] < 0.7 * losses[0]
    # Rounding: 4e-7 of the loss. Without weight decay, the finest point, it is 3e-6.
    assert np.abs(losses - arrays["losses"]).max() < 1.5e-6 * losses[0]
