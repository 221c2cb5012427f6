"""Outputs and gradients of torch.nn.RNN, LSTM and GRU, in float64: the cases of recurrent.npz."""

import zlib

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

MODULES = {
    "rnn": lambda c, h: torch.nn.RNN(c, h, batch_first=True),
    "rnn_relu": lambda c, h: torch.nn.RNN(c, h, nonlinearity="relu", batch_first=True),
    "lstm": lambda c, h: torch.nn.LSTM(c, h, batch_first=True),
    "gru": lambda c, h: torch.nn.GRU(c, h, batch_first=True),
}
# (n, positions, features, units): (lengths or None, whether the state begins at something else than 0)
SIZES = {
    (1, 1, 1, 1): (None, False),
    (1, 7, 3, 5): (None, False),
    (5, 4, 2, 3): ([4, 1, 3, 2, 4], False),
    (3, 9, 5, 17): ([2, 9, 5], True),
}


def flat(kind, module, part):
    """Parameters, or their gradients, in nbprop's layout: W (C, gates H), U (H, gates H), b, and gru's recurrent bias.

    nbprop has one bias where PyTorch's two are added. The gradient of a sum is that of either.
    """
    w, u = (part(weight).T for weight in (module.weight_ih_l0, module.weight_hh_l0))
    b, a = part(module.bias_ih_l0), part(module.bias_hh_l0)
    whole = b + a if part is value else b
    if kind == "gru":
        inner = 2 * module.hidden_size
        whole = np.concatenate([whole[:inner], b[inner:]])
        return np.concatenate([w.ravel(), u.ravel(), whole, a[inner:]])
    return np.concatenate([w.ravel(), u.ravel(), whole])


def value(tensor):
    return tensor.detach().numpy()


def gradient(tensor):
    return tensor.grad.numpy()


def solve(kind, size, lengths, begun, output):
    """A case: its description and its arrays; the loss is sum(dy y)."""
    n, positions, features, units = size
    seed = zlib.crc32(f"{kind}{size}".encode())
    torch.manual_seed(seed)
    module = MODULES[kind](features, units).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1.0, 1.0).mul_(64).round_().div_(64)
    rng = np.random.default_rng(seed)
    x = torch.tensor(np.rint(rng.normal(size=(n, positions, features)) * 8) / 8, requires_grad=True)
    states = [torch.tensor(rng.uniform(-1, 1, (1, n, units)) * begun) for _ in range(2 if kind == "lstm" else 1)]
    given = tuple(states) if kind == "lstm" else states[0]
    whole = lengths or [positions] * n
    packed = pack_padded_sequence(x, torch.tensor(whole), batch_first=True, enforce_sorted=False)
    y, final = module(packed, given)
    y, _ = pad_packed_sequence(y, batch_first=True, total_length=positions)
    final = final if kind == "lstm" else (final,)
    if output == "last":
        y = y[torch.arange(n), torch.tensor(whole) - 1]
    dy = rng.normal(size=tuple(y.shape))
    (torch.tensor(dy) * y).sum().backward()
    fields = {
        "params": flat(kind, module, value),
        "x": value(x),
        "dy": dy,
        "output": value(y),
        "grad": flat(kind, module, gradient),
        "x_grad": gradient(x),
        "begin": np.concatenate([value(state).ravel() for state in states]),
        "end": np.concatenate([value(state).ravel() for state in final]),
    }
    if lengths is not None:
        fields["lengths"] = np.array(lengths)
    return {"layer": kind, "units": units, "output": output, "carry": begun}, fields


def cases():
    """Return {case: (description, arrays)}."""
    return {
        f"{kind}/{'x'.join(map(str, size))}/{output}": solve(kind, size, lengths, begun, output)
        for kind in MODULES
        for size, (lengths, begun) in SIZES.items()
        for output in ("sequence", "last")
    }
