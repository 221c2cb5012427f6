"""GPT-2 in nbprop (Radford et al. 2019, section 2.3), with weights from a file in Hugging Face's layout.

A block is x + attention(layernorm(x)), then x + mlp(layernorm(x)); logits are products with the embedding's rows. The
weights of `c_attn`, `c_proj` and `c_fc` are (in, out) there as here, so every tensor is one of `nbprop.views`.
"""

import math
import re

import numpy as np

import nbprop

HEAD_WIDTH = 64  # the width of a head in all published sizes of GPT-2
# Tensors that some files hold besides the weights: the causal mask, and the weight of the logits, the embedding.
_MASK, _LOGITS = re.compile(r"h\.\d+\.attn\.(masked_)?bias"), "lm_head.weight"


def network(vocabulary, positions, layers, heads, width, dropout=0.0):
    """Integers (positions,) to logits (positions, vocabulary)."""
    dense = nbprop.dense

    def block():
        attention = nbprop.attention(heads, init="small_normal")
        mlp = dense(4 * width, "gelu_tanh", init="small_normal"), dense(width, init="small_normal")
        return (
            nbprop.residual(nbprop.layernorm(), attention, nbprop.dropout(dropout)),
            nbprop.residual(nbprop.layernorm(), *mlp, nbprop.dropout(dropout)),
        )

    return nbprop.network(
        (positions,),
        nbprop.embedding(vocabulary, width, init="small_normal"),
        nbprop.positions(),
        nbprop.dropout(dropout),
        *(half for _ in range(layers) for half in block()),
        nbprop.layernorm(),
        dense(vocabulary, bias=False, share="0.embedding.weight.T"),
    )


def names(layers):
    """{name in `nbprop.views`: name in Hugging Face's files}."""
    found = {"0.embedding.weight": "wte.weight", "1.positions.weight": "wpe.weight"}
    modules = {f"{2 * layers + 3}.layernorm": "ln_f"}
    for i in range(layers):
        attend, mlp = f"{2 * i + 3}.residual", f"{2 * i + 4}.residual"
        modules |= {
            f"{attend}.0.layernorm": f"h.{i}.ln_1",
            f"{attend}.1.attention.qkv": f"h.{i}.attn.c_attn",
            f"{attend}.1.attention.output": f"h.{i}.attn.c_proj",
            f"{mlp}.0.layernorm": f"h.{i}.ln_2",
            f"{mlp}.1.dense": f"h.{i}.mlp.c_fc",
            f"{mlp}.2.dense": f"h.{i}.mlp.c_proj",
        }
    for ours, theirs in modules.items():
        weight, bias = ("scale", "shift") if ours.endswith("layernorm") else ("weight", "bias")
        found |= {f"{ours}.{weight}": f"{theirs}.weight", f"{ours}.{bias}": f"{theirs}.bias"}
    return found


def initial(net, seed, dtype=np.float32):
    """Initial parameters: N(0, 0.02^2); projections into the residual stream, over the root of their number."""
    params = nbprop.init(net, seed, dtype)
    added = [part for name, part in nbprop.views(net, params).items() if re.search(r"(output|2\.dense)\.weight$", name)]
    for part in added:
        part /= math.sqrt(len(added))
    return params


def load(path, heads=None):
    """(network, parameters) from a safetensors file; the sizes are those of its tensors.

    heads: width / 64 if None, as in all published sizes. Raises ValueError, before any weight is read, if a tensor is
    missing, unknown, of the wrong shape or not float32.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            stored = {key.removeprefix("transformer."): file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            net = _described(path, stored, heads)
            params = np.empty(net.n_params, np.float32)
            for ours, part in nbprop.views(net, params).items():
                part[...] = stored[names(_layers(stored))[ours]][:]
            if _LOGITS in stored and not np.array_equal(stored[_LOGITS][:], stored["wte.weight"][:]):
                raise ValueError(f"{path}: {_LOGITS} differs from wte.weight; this network's logits use the embedding")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or cut: {error}") from error
    return net, params


def _layers(stored):
    return 1 + max((int(name.split(".")[1]) for name in stored if re.match(r"h\.\d+\.", name)), default=-1)


def _described(path, stored, heads):
    """The network of the stored tensors, after checking that all of them fit."""
    shapes = {name: tuple(piece.get_shape()) for name, piece in stored.items()}
    wanted, optional = set(names(_layers(stored)).values()), {_LOGITS, *filter(_MASK.fullmatch, shapes)}
    missing, extra = sorted(wanted - set(shapes)), sorted(set(shapes) - wanted - optional)
    if missing or extra or not _layers(stored):
        missing = missing if _layers(stored) else ["h.0.ln_1.weight", *missing]
        told = [f"{what} {', '.join(found[:5])}" for what, found in (("lacks", missing), ("has also", extra)) if found]
        raise ValueError(f"{path} is not a GPT-2 of Hugging Face's layout: it {' and '.join(told)}")
    for name in ("wte.weight", "wpe.weight"):
        if len(shapes[name]) != 2:
            raise ValueError(f"{path}: {name} must have two axes, got shape {shapes[name]}")
    (vocabulary, width), (positions, _) = shapes["wte.weight"], shapes["wpe.weight"]
    if heads is None and width % HEAD_WIDTH:
        raise ValueError(f"{path}: its width of {width} is no multiple of {HEAD_WIDTH}; say how many heads it has")
    net = network(vocabulary, positions, _layers(stored), heads or width // HEAD_WIDTH, width)
    for ours, slot in net.slots.items():
        name = names(_layers(stored))[ours]
        if shapes[name] != slot.parameter.shape:
            raise ValueError(f"{path}: {name} must have shape {slot.parameter.shape}, got {shapes[name]}")
    for name in (*sorted(wanted), *({_LOGITS} & set(shapes))):
        if stored[name].get_dtype() != "F32":
            raise ValueError(f"{path}: {name} must hold F32, got {stored[name].get_dtype()}; convert the file once")
    if _LOGITS in shapes and shapes[_LOGITS] != shapes["wte.weight"]:
        raise ValueError(f"{path}: {_LOGITS} must have wte.weight's shape {(vocabulary, width)}, got {shapes[_LOGITS]}")
    return net
