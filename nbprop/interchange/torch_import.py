"""`from_torch`: a module of PyTorch as a network, or its state_dict's weights for one.

A module is traced by torch.fx, which records each call of its forward; nothing is computed. Only what is called from a
module's own file imports torch: this one never does before it is given a module.
"""

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbprop.interchange.graph import Graph
from nbprop.interchange.orders import BATCH, Value, images_first
from nbprop.interchange.state_dict import fill_network
from nbprop.interchange.torch_calls import FUNCTIONS, MODULES
from nbprop.interchange.torch_steps import TorchStep
from nbprop.networks.network import Network
from nbprop.validation import check_integer, shown

_IMAGES = ("Conv", "MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "BatchNorm", "LocalResponseNorm")
_IMAGE_CALLS = ("conv1d", "conv2d", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d")


def from_torch(
    source: Any, net: Network | None = None, input_shape: tuple[int, ...] | None = None
) -> tuple[Network, NDArray[Any]]:
    """A module of PyTorch as a network with its parameters, or a state_dict's weights for a network.

    Parameters
    ----------
    source : torch.nn.Module, or state_dict {name: tensor or array}
        A module is traced by torch.fx and read as it computes in use (`eval`); it is left as it is.
    net : Network or None
        For a state_dict, which holds no layers: the network that its weights belong to, in their order. A batch
        normalization is `standardize(), rescale(trainable=True)` there, as it is where a module is read.
    input_shape : tuple of int or None
        For a module: nbprop's shape of a sample, (height, width, channels) for images and (time, features) for
        sequences. None: that of its first layer, if that is a Linear.

    Returns
    -------
    (Network, params) : params is (net.n_params,), of the weights' dtype

    Read are linear, convolutional, pooling, normalization, embedding and recurrent layers, activations, and what
    forward does between them, in chains with residual blocks and concatenations. Images go in as nbprop has them, with
    the channels last, and weights behind a flattened image are reordered. Of parametrized weights (weight_norm,
    spectral_norm), what they compute is read.

    Raises
    ------
    TypeError, ValueError
        For a module, or a call in its forward, that no layer of nbprop is; for weights that do not fit the network. The
        message names the module or the weight.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> weights = {"0.weight": np.ones((3, 2)), "0.bias": np.zeros(3)}
    >>> weights |= {"2.weight": np.ones((1, 3)), "2.bias": np.ones(1)}
    >>> net = nbprop.network((2,), nbprop.dense(3, activation="relu"), nbprop.dense(1))
    >>> nbprop.from_torch(weights, net)[1]
    array([1., 1., 1., 1., 1., 1., 0., 0., 0., 1., 1., 1., 1.])
    """
    if isinstance(source, dict):
        if input_shape is not None:
            raise TypeError("from_torch: input_shape is for a module; a state_dict needs net instead")
        return fill_network("from_torch", source, net)
    if not hasattr(source, "named_modules") or isinstance(source, type):
        raise TypeError(f"from_torch: source must be a module of PyTorch or its state_dict, got {shown(source)}")
    if net is not None:
        raise TypeError("from_torch: net is for a state_dict; a module describes its own")
    return _Reader(source, input_shape).network()


def _with_computed_weights(module):
    """A module whose parametrized weights, such as those of weight_norm, are what they compute; it is changed."""
    import torch
    from torch.nn.utils import parametrize

    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            computed = {name: getattr(part, name).detach() for name in part.parametrizations}
            # Not remove_parametrizations, which takes the weight from the class, and so from what this is a copy of.
            part.__class__ = type(part).__bases__[0]
            del part.parametrizations
            for name, weight in computed.items():
                part.register_parameter(name, torch.nn.Parameter(weight))
    return module


class _Reader:
    """The calls of a traced module, one after another, as layers."""

    def __init__(self, module, input_shape):
        import torch.fx

        self.node_type = torch.fx.Node
        found = _with_computed_weights(copy.deepcopy(module).eval())
        if type(found).__module__.startswith("torch.nn.") and not isinstance(found, torch.nn.Sequential):
            found = torch.nn.Sequential(found)  # PyTorch's own layers are told by their kind, not traced
        try:
            self.traced = torch.fx.symbolic_trace(found)
        except Exception as error:  # of many kinds: whatever a forward does with what is no tensor
            raise ValueError(
                f"from_torch: {type(module).__name__} cannot be traced by torch.fx, since its forward depends on "
                f"its input's numbers: {error}"
            ) from None
        self.modules = dict(self.traced.named_modules())
        self.graph, self.results, self.dtypes = Graph("from_torch"), {}, set()
        self.input_shape = input_shape

    def network(self):
        output = None
        for node in self.traced.graph.nodes:
            step = TorchStep(self.graph, node.name, BATCH)
            step.reader = self
            if node.op == "placeholder":
                if self.graph.nodes:
                    raise step.fail("is a second input; nbprop's networks have one")
                self.results[node] = self._input(node)
            elif node.op == "get_attr":
                self.results[node] = self.array(self._attribute(node.target))
            elif node.op == "output":
                output = self.given(node.args[0])
                break
            else:
                self.results[node] = self._call(step, node)
        if isinstance(output, tuple) and output and isinstance(output[0], Value):
            output = output[0]
        if not isinstance(output, Value):
            raise ValueError(f"from_torch: its output is no tensor that depends on the input, but {shown(output)}")
        if output.perm is not None:
            raise ValueError("from_torch: its output is an image flattened with the channels first")
        return self.graph.network(output.node, np.float64 if np.dtype(np.float64) in self.dtypes else np.float32)

    def _attribute(self, target):
        found = self.traced
        for part in target.split("."):
            found = getattr(found, part)
        return found

    def _call(self, step, node):
        if node.op == "call_module":
            module = self.modules[node.target]
            kind = type(module).__name__
            step.said = f"module {node.target} ({kind})"
            read, arguments = MODULES.get(kind), (module, *map(self.given, node.args))
        else:
            name = node.target if isinstance(node.target, str) else node.target.__name__
            step.said = f"{name} ({node.name})"
            read, arguments = FUNCTIONS.get(name), tuple(map(self.given, node.args))
        if read is None:
            raise step.fail("has no layer in nbprop")
        options = {name: self.given(value) for name, value in node.kwargs.items()}
        try:
            return read(step, *arguments, **options)
        except (TypeError, IndexError, AttributeError, KeyError) as error:
            raise step.fail(f"is called in a way that is not read: {error}") from None

    def given(self, argument):
        """An argument with the values of what was called before."""
        if isinstance(argument, (tuple, list)):
            return type(argument)(map(self.given, argument))
        if isinstance(argument, slice):
            return slice(*map(self.given, (argument.start, argument.stop, argument.step)))
        return self.results[argument] if isinstance(argument, self.node_type) else argument

    def array(self, tensor):
        """A tensor's numbers."""
        found = tensor.detach().cpu().numpy()
        if found.dtype.kind == "f":
            if found.dtype.itemsize < 4:
                raise ValueError(f"from_torch: its weights are {found.dtype}; nbprop computes in float32 and float64")
            if not np.isfinite(found).all():
                raise ValueError("from_torch: its weights are not all finite")
            self.dtypes.add(found.dtype)
        return found

    def _input(self, node):
        shape, first = self.input_shape, next(iter(node.users), None)
        module = self.modules.get(first.target) if first is not None and first.op == "call_module" else None
        if shape is None:
            if module is None or type(module).__name__ != "Linear":
                raise TypeError("from_torch: input_shape is needed, where the first layer is no Linear")
            shape = (module.in_features,)
        shape = (shape,) if isinstance(shape, int) else shape
        if not isinstance(shape, (tuple, list)) or not shape:
            raise TypeError(f"from_torch: input_shape must be a tuple of integers, got {shown(shape)}")
        shape = tuple(check_integer("from_torch: input_shape", extent) for extent in shape)
        return Value(self.graph.input(shape), self._order(node, len(shape)))

    def _order(self, node, axes):
        """How the input's axes lie, by the first call that tells."""
        left, seen = list(node.users), set()
        while left and axes > 1:
            user = left.pop(0)
            module = self.modules.get(user.target) if user.op == "call_module" else None
            name = type(module).__name__ if module is not None else getattr(user.target, "__name__", user.target)
            if name.startswith(_IMAGES) or name in _IMAGE_CALLS:
                return images_first(axes - 1)
            if module is not None and name in ("RNN", "LSTM", "GRU"):
                return (0, 1, 2) if module.batch_first else (1, 0, 2)
            if user not in seen and MODULES.get(name, FUNCTIONS.get(name)) in TorchStep.elementwise:
                seen.add(user)
                left += user.users
        return tuple(range(axes + 1))
