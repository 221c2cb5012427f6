"""Attention, embeddings and tied logits by PyTorch, in float64: the cases of attention.npz.

The attention is written out in plain operations, and held against PyTorch's own where that has the same arguments.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

# name: (samples, positions, features, heads, causal, lengths)
ATTENTION = {
    "one_position": (1, 1, 3, 1, True, None),
    "causal": (3, 7, 6, 2, True, None),
    "not_causal": (1, 5, 6, 3, False, None),
    "second_block_of_queries": (2, 35, 5, 1, True, None),
    "second_block_of_keys": (1, 131, 2, 1, True, None),
    "second_block_of_keys_not_causal": (1, 131, 2, 2, False, None),
    "lengths": (4, 36, 6, 2, True, [36, 1, 33, 7]),
    "lengths_not_causal": (3, 9, 4, 4, False, [4, 9, 1]),
}


def rounded(rng, *shape, scale=1.0):
    """Numbers that float32 holds exactly and that compress well."""
    return np.rint(rng.normal(size=shape) * 64 * scale) / 64


def attend(x, qkv_weight, qkv_bias, output_weight, output_bias, heads, causal, lengths=None):
    """Multi-head self-attention of x (n, T, C); weights are (in, out)."""
    n, positions, width = x.shape
    split = (n, positions, heads, width // heads)
    q, k, v = (part.reshape(split).transpose(1, 2) for part in (x @ qkv_weight + qkv_bias).split(width, dim=-1))
    scores = q @ k.transpose(-1, -2) / math.sqrt(width // heads)
    allowed = torch.ones(positions, positions, dtype=torch.bool)
    allowed = (allowed.tril() if causal else allowed).expand(n, 1, positions, positions)
    if lengths is not None:
        allowed = allowed & (torch.arange(positions) < torch.tensor(lengths)[:, None, None, None])
    y = torch.softmax(scores.masked_fill(~allowed, -math.inf), dim=-1) @ v
    assert torch.allclose(y, F.scaled_dot_product_attention(q, k, v, attn_mask=allowed), rtol=1e-12, atol=1e-12)
    return y.transpose(1, 2).reshape(n, positions, width) @ output_weight + output_bias


def leaves(rng, *shapes):
    """Parameters in the order of nbprop's flat vector."""
    return [
        torch.tensor(rounded(rng, *shape, scale=1 / math.sqrt(shape[0])), dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]


def flat(tensors):
    return np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])


def attention_case(name, seed):
    n, positions, width, heads, causal, lengths = ATTENTION[name]
    rng = np.random.default_rng(seed)
    parameters = leaves(rng, (width, 3 * width), (3 * width,), (width, width), (width,))
    x = torch.tensor(rounded(rng, n, positions, width), requires_grad=True)
    dy = rounded(rng, n, positions, width)
    for sample, length in enumerate(lengths or ()):
        dy[sample, length:] = 0  # what stands there is no attention's business
    y = attend(x, *parameters, heads, causal, lengths)
    y.backward(torch.tensor(dy))
    description = {"shape": [positions, width], "heads": heads, "causal": causal}
    arrays = {"params": flat(parameters), "x": x.detach().numpy(), "dy": dy, "output": y.detach().numpy()}
    arrays |= {"grad": flat([p.grad for p in parameters]), "x_grad": x.grad.numpy()}
    return description, arrays | ({} if lengths is None else {"lengths": np.array(lengths)})


def tied_case(n, bias):
    """Embedding, positions, one residual attention, logits tied to the embedding; cross-entropy."""
    vocabulary, positions, width, heads = 11, 5, 6, 2
    rng = np.random.default_rng(100 + n)
    shapes = [(vocabulary, width), (positions, width), (width, 3 * width), (3 * width,), (width, width), (width,)]
    parameters = leaves(rng, *shapes, *([(vocabulary,)] if bias else []))
    embedding, places, *weights = parameters
    x = rng.integers(0, vocabulary, (n, positions))
    x[-1] = x[-1, 0]  # one row of the table takes the gradient of several positions
    target = rng.integers(0, vocabulary, (n, positions))
    h = embedding[torch.tensor(x)] + places
    h = h + attend(h, *weights[:4], heads, causal=True)
    y = h @ embedding.T + (weights[4] if bias else 0)
    loss = F.cross_entropy(y.reshape(-1, vocabulary), torch.tensor(target).reshape(-1))
    loss.backward()
    description = {"vocabulary": vocabulary, "shape": [positions], "width": width, "heads": heads, "bias": bias}
    arrays = {"params": flat(parameters), "x": x, "target": target, "output": y.detach().numpy()}
    return description, arrays | {"loss": loss.item(), "grad": flat([p.grad for p in parameters])}


def cases():
    """Return {case: (description, arrays)}."""
    result = {f"attention/{name}": attention_case(name, seed) for seed, name in enumerate(ATTENTION)}
    return result | {"tied/1": tied_case(1, bias=False), "tied/5": tied_case(5, bias=True)}
