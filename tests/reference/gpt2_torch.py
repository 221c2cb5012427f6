"""A small GPT-2 by PyTorch, in float64: the case of gpt2.npz, its tensors under Hugging Face's names.

Written in plain operations after Radford et al. 2019, section 2.3, and Hugging Face's `modeling_gpt2`: `gelu_new` is
the tanh form, LayerNorm's epsilon is 1e-5, and `Conv1D` weights are (in, out).
"""

import numpy as np
import torch
import torch.nn.functional as F
from attention_torch import attend, rounded

VOCABULARY, POSITIONS, LAYERS, HEADS, WIDTH = 13, 7, 2, 2, 6


def shapes():
    """{name: shape}, in the order of Hugging Face's files."""
    found = {"wte.weight": (VOCABULARY, WIDTH), "wpe.weight": (POSITIONS, WIDTH)}
    for i in range(LAYERS):
        for name, n_in, n_out in (
            ("ln_1", None, WIDTH),
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("ln_2", None, WIDTH),
            ("mlp.c_fc", WIDTH, 4 * WIDTH),
            ("mlp.c_proj", 4 * WIDTH, WIDTH),
        ):
            found[f"h.{i}.{name}.weight"] = (n_out,) if n_in is None else (n_in, n_out)
            found[f"h.{i}.{name}.bias"] = (n_out,)
    return found | {"ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}


def logits(tensors, x):
    def norm(h, name):
        return F.layer_norm(h, (WIDTH,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-5)

    def linear(h, name):
        return h @ tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    h = tensors["wte.weight"][x] + tensors["wpe.weight"]
    for i in range(LAYERS):
        names = [f"h.{i}.attn.{name}.{part}" for name in ("c_attn", "c_proj") for part in ("weight", "bias")]
        h = h + attend(norm(h, f"h.{i}.ln_1"), *(tensors[name] for name in names), HEADS, causal=True)
        inner = F.gelu(linear(norm(h, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate="tanh")
        h = h + linear(inner, f"h.{i}.mlp.c_proj")
    return norm(h, "ln_f") @ tensors["wte.weight"].T


def cases():
    """Return {case: (description, arrays)}."""
    rng = np.random.default_rng(11)
    tensors = {
        name: torch.tensor(rounded(rng, *shape, scale=0.5), dtype=torch.float64, requires_grad=True)
        for name, shape in shapes().items()
    }
    x, target = rng.integers(0, VOCABULARY, (2, 3, POSITIONS))
    y = logits(tensors, torch.tensor(x))
    loss = F.cross_entropy(y.reshape(-1, VOCABULARY), torch.tensor(target).reshape(-1))
    loss.backward()
    arrays = {"x": x, "target": target, "output": y.detach().numpy(), "loss": loss.item()}
    arrays |= {name: tensor.detach().numpy().astype(np.float32) for name, tensor in tensors.items()}
    arrays |= {f"grad of {name}": tensor.grad.numpy() for name, tensor in tensors.items()}
    return {"small": ({"heads": HEADS}, arrays)}
