"""`from_safetensors`: weights of PyTorch's and Hugging Face's files for a network that is known."""

import os
import re
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nbprop.interchange.state_dict import fill_network
from nbprop.io.atomic import as_path
from nbprop.io.networks import check_readable
from nbprop.networks.network import Network
from nbprop.validation import brief, choose

# Where the parts of GPT-2's names stand in its forward pass; other names come in the order of their numbers.
_GPT2 = {
    name: place for place, name in enumerate(("wte", "wpe", "ln_1", "attn", "ln_2", "mlp", "h", "ln_f", "lm_head"))
}
_WIDTHS = {"F32": np.float32, "F64": np.float64, "F16": np.float16}


def from_safetensors(
    path: str | os.PathLike[str], net: Network, layout: Literal["hf", "torch"] = "hf"
) -> tuple[Network, NDArray[Any]]:
    """The weights of a safetensors file that PyTorch or Hugging Face's libraries have written, for a network.

    Parameters
    ----------
    path : str or path
    net : Network
        The layers that the weights belong to, in their order, as `nbprop.from_torch` takes it for a state_dict.
    layout : "hf" or "torch"
        "hf": names as in Hugging Face's files, of which GPT-2's have an order of their own, and weights of c_attn,
        c_proj and c_fc as nbprop has them; "torch": the names of a state_dict. Names come in the order of the numbers
        in them, since these files are sorted.

    Returns
    -------
    (Network, params) : params is (net.n_params,), float64 if any tensor is; halves become float32, exactly

    Files that `nbprop.save` has written are for `nbprop.load`, which needs no network.

    Raises
    ------
    ValueError
        For a file that is cut or damaged, or weights that do not fit the network; names the layer.
    OSError
        When there is no such file, or it may not be read.

    Examples
    --------
    >>> import nbprop, numpy as np, os, tempfile
    >>> from safetensors.numpy import save_file
    >>> net = nbprop.network((2,), nbprop.dense(1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model.safetensors")
    ...     save_file({"fc.weight": np.float32([[2, 3]]), "fc.bias": np.float32([1])}, path)
    ...     nbprop.from_safetensors(path, net)[1]
    array([2., 3., 1.], dtype=float32)
    """
    name = as_path("from_safetensors: path", path)
    choose("from_safetensors: layout", layout, ("hf", "torch"))
    if not isinstance(net, Network):
        raise TypeError(f"from_safetensors: net must be what nbprop.network(...) returns, got {type(net).__name__}")
    tensors = _tensors(name)
    if layout == "hf":
        tensors = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
        head, embedding = tensors.get("lm_head.weight"), tensors.get("wte.weight")
        if head is not None and embedding is not None and np.array_equal(head, embedding):
            del tensors["lm_head.weight"]  # the embedding's, which the network shares
    ordered = sorted(tensors, key=lambda key: _place(key, layout == "hf"))
    return fill_network(f"from_safetensors: {name}", {key: tensors[key] for key in ordered}, net)


def _place(name, hf):
    """What names are sorted by: the numbers in them as numbers, GPT-2's parts in the order of its layers."""
    *parts, last = name.split(".")
    found = []
    for part in parts:
        number = int(part) if part.isdecimal() else -1
        found.append((_GPT2.get(part, 50) if hf else 50, number, _natural(part)))
    return found, _natural(last)


def _natural(text):
    """A text's letters and numbers, so that layer2 comes before layer10."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", text)]


def _tensors(name):
    """{name: array} of a file."""
    from safetensors import SafetensorError, deserialize

    check_readable("from_safetensors", name)
    if os.path.isdir(name):
        raise ValueError(f"from_safetensors: {name} is a folder")
    with open(name, "rb") as file:
        content = file.read()
    try:
        stored = deserialize(content)
    except SafetensorError as error:
        raise ValueError(f"from_safetensors: {name} is no safetensors file, or cut ({brief(error)})") from None
    found = {}
    for key, tensor in stored:
        dtype, data = tensor["dtype"], tensor["data"]
        if dtype == "BF16":
            array = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif dtype in _WIDTHS:
            array = np.frombuffer(data, np.dtype(_WIDTHS[dtype]).newbyteorder("<"))
            array = array.astype(np.float32 if dtype == "F16" else _WIDTHS[dtype])
        else:
            continue  # counters and masks
        found[key] = array.reshape(tensor["shape"])
    return found
