"""Weights by their names, as PyTorch and Hugging Face have them, for a network that is known: in its order.

Weights that share a prefix ("encoder.0.") belong to one layer. Layers with parameters take them one after another, each
after its shape: a Linear's weight is transposed, a convolution's turned to have the channels last, and behind a
flattened image rows are reordered. GPT-2's Conv1D has its weights as nbprop does.
"""

import numpy as np

from nbprop.interchange.orders import flattened, images_first, rows_in_order
from nbprop.interchange.torch_calls import recurrent_arrays
from nbprop.layers.conv.layer import Convolution
from nbprop.layers.reshape import Flatten, Reshape
from nbprop.networks.network import Network, views
from nbprop.validation import brief, shown

# Buffers that belong to no layer's mathematics: masks, counters, tables of positions.
_NO_WEIGHTS = ("num_batches_tracked", "position_ids", "masked_bias", "inv_freq")
_AS_THEY_ARE = ("c_attn", "c_proj", "c_fc")  # of GPT-2, whose products have weights of (inputs, outputs)
_RECURRENT = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}


def fill_network(function, source, net):
    """(net, params) with the weights of a state_dict, {name: tensor or array}."""
    if not isinstance(net, Network):
        raise TypeError(
            f"{function}: net must be what nbprop.network(...) returns, got {type(net).__name__}; weights "
            "alone hold no layers, and go into a network of the same ones"
        )
    groups = _groups(function, source)
    dtypes = {array.dtype for _, parts in groups for array in parts.values()}
    params = np.zeros(net.n_params, np.float64 if np.dtype(np.float64) in dtypes else np.float32)
    filled = _Filling(function, net, views(net, params), groups)
    filled.chain(net.layers, net.input_shape, "")
    filled.finish()
    return net, params


def _groups(function, source):
    """[(prefix, {name: array})] in order; the layers of a stacked recurrent one apart."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in source.items():
        if not isinstance(name, str):
            raise TypeError(f"{function}: source is a state_dict, whose names must be str, got {shown(name)}")
        array = np.asarray(tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else tensor)
        prefix, _, last = name.rpartition(".")
        if last in _NO_WEIGHTS or (last == "bias" and array.ndim == 4):
            continue
        if array.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ValueError(f"{function}: {brief(name)} holds {array.dtype}; nbprop computes in float32 and float64")
        if not np.isfinite(array).all():
            raise ValueError(f"{function}: {brief(name)} is not finite everywhere")
        base, _, number = last.rpartition("_l")
        if base.startswith(("weight_", "bias_")) and number.isdecimal():
            prefix, last = f"{prefix}#{int(number):03d}", base
        found.setdefault(prefix, {})[last] = array
    return list(found.items())


class _Filling:
    """A walk through a network that takes groups of weights for its layers, in order."""

    def __init__(self, function, net, parts, groups):
        self.function, self.net, self.parts, self.groups, self.position = function, net, parts, groups, 0

    def fail(self, path, text):
        return ValueError(f"{self.function}: layer {path}: {text}")

    def take(self, path, wanted):
        if self.position == len(self.groups):
            raise self.fail(path, f"the state_dict has no weights left for it; it has {len(self.groups)} layers")
        prefix, group = self.groups[self.position]
        self.position += 1
        missing = [name for name in wanted if name not in group]
        if missing:
            has = ", ".join(f"{name} {array.shape}" for name, array in group.items())
            raise self.fail(path, f"{brief(prefix)} is next, and has no {', '.join(missing)}: {brief(has)}")
        return prefix, group

    def put(self, path, prefix, name, array):
        view = self.parts[f"{path}.{name}"]
        if view.shape != array.shape:
            raise self.fail(path, f"{name} must have shape {view.shape}, {brief(prefix)} gives {array.shape}")
        view[...] = array

    def finish(self):
        if self.position < len(self.groups):
            left = ", ".join(prefix for prefix, _ in self.groups[self.position :][:5])
            raise ValueError(f"{self.function}: net has no layers for {brief(left)}")

    def chain(self, layers, shape, prefix):
        """Fill layers one after another; the order of a flattened image goes along until a dense layer takes it."""
        perm, skip = None, False
        for index, layer in enumerate(layers):
            path, after = f"{prefix}{index}.{layer.kind}", tuple(layer.output_shape(shape))
            following = layers[index + 1] if index + 1 < len(layers) else None
            if skip:
                skip = False
            elif layer.kind == "standardize":
                skip = self.batchnorm(path, f"{prefix}{index + 1}.rescale", following, perm)
            elif isinstance(layer, (Flatten, Reshape)) and len(after) == 1 and len(shape) > 1:
                images = any(isinstance(other, Convolution) for other in layers[:index])
                perm = flattened(shape, images_first(len(shape) - 1)) if images else None
            elif layer.kind == "residual":
                self.chain(layer.layers, shape, f"{path}.")
            elif layer.kind == "concat":
                for number, branch in enumerate(layer.branches):
                    self.chain(branch, shape, f"{path}.{number}.")
            elif layer.kind == "attention":
                for name in ("qkv", "output"):
                    self.dense(f"{path}.{name}", layer.bias, None)
            elif layer.kind == "dense":
                self.dense_layer(path, layer, perm)
                perm = None
            elif self.net.parameter_names[path]:
                self.layer(path, layer)
            shape = after

    def dense_layer(self, path, layer, perm):
        own = [name.rpartition(".")[2] for name in self.net.parameter_names[path]]
        if own == ["weight", "bias"] or own == ["weight"]:
            self.dense(path, layer.bias, perm)
        elif own:
            raise self.fail(path, "shares its weight, but not its bias; fill it by hand, with nbprop.views")

    def dense(self, path, bias, perm):
        prefix, group = self.take(path, ["weight", "bias"] if bias else ["weight"])
        weight = group["weight"]
        straight = prefix.rpartition(".")[2] in _AS_THEY_ARE
        self.put(path, prefix, "weight", rows_in_order(weight if straight else weight.T, perm))
        if bias:
            self.put(path, prefix, "bias", group["bias"])

    def batchnorm(self, path, path_after, following, perm):
        """standardize() and rescale() from a batch normalization; whether the layer behind has been filled, too."""
        prefix, group = self.take(path, ["running_mean", "running_var"])
        eps = 1e-5  # PyTorch's; a state_dict does not hold it
        std = np.sqrt(group["running_var"].astype(np.float64) + eps)
        self.put(path, prefix, "mean", rows_in_order(group["running_mean"], perm))
        self.put(path, prefix, "std", rows_in_order(std, perm))
        if "weight" not in group:
            return False
        if following is None or following.kind != "rescale":
            raise self.fail(path, f"{brief(prefix)} has a scale and a shift, for which net has no rescale() behind it")
        self.put(path_after, prefix, "std", rows_in_order(group["weight"], perm))
        self.put(path_after, prefix, "mean", rows_in_order(group["bias"], perm))
        return True

    def layer(self, path, layer):
        names = [name.rpartition(".")[2] for name in self.net.parameter_names[path]]
        if isinstance(layer, Convolution):
            prefix, group = self.take(path, ["weight", "bias"] if layer.bias else ["weight"])
            axes = layer.axes
            if group["weight"].ndim != axes + 2:
                raise self.fail(path, f"{brief(prefix)} has a weight of shape {group['weight'].shape}")
            self.put(path, prefix, "weight", group["weight"].transpose(*range(2, axes + 2), 1, 0))
            if layer.bias:
                self.put(path, prefix, "bias", group["bias"])
        elif layer.kind in _RECURRENT:
            prefix, group = self.take(path, ["weight_ih", "weight_hh"])
            parts = {name: group.get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            arrays = recurrent_arrays(_RECURRENT[layer.kind], layer.units, parts)
            for name, array in zip(names, arrays, strict=True):
                self.put(path, prefix, name, array)
        elif layer.kind in ("layernorm", "rmsnorm"):
            theirs = {"scale": "weight", "shift": "bias"}
            prefix, group = self.take(path, [theirs[name] for name in names])
            for name in names:
                self.put(path, prefix, name, group[theirs[name]])
        elif layer.kind in ("embedding", "positions"):
            prefix, group = self.take(path, ["weight"])
            weight = group["weight"]
            rows = self.parts[f"{path}.weight"].shape[0]
            self.put(path, prefix, "weight", weight[:rows] if layer.kind == "positions" else weight)
        elif layer.kind == "rescale":
            raise self.fail(path, "a state_dict has no such scaling, but behind a batch normalization's standardize()")
        else:
            raise self.fail(path, f"a state_dict has no weights of a {layer.kind}; fill it by hand, with nbprop.views")
