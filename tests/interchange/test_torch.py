"""PyTorch's modules and weights as networks: their own outputs, to rounding."""

import json

import numpy as np
import pytest
from interchange.test_onnx import channels_last, forward
from safetensors.numpy import save_file

import nbprop
from support import TESTS, stored
from support.cases import close

dense = nbprop.dense
RESULTS = TESTS / "reference" / "onnx" / "results.npz"
SCALING = nbprop.standardize(), nbprop.rescale(trainable=True)
# The modules of support/torch_models.py by hand, for their weights alone.
NETWORKS = {
    "chain": nbprop.network((4,), dense(8, "tanh"), dense(8, "softplus", bias=False), dense(2)),
    "classifier": nbprop.network(
        (8, 6, 2),
        *(nbprop.conv2d(4, 3, padding=1), *SCALING, nbprop.activation("relu"), nbprop.max_pool2d(2)),
        *(nbprop.conv2d(6, (3, 2), bias=False), nbprop.flatten(), dense(5, "tanh"), dense(3, "softmax")),
    ),
    "rnn": nbprop.network((6, 3), nbprop.rnn(5, "relu", "last"), dense(2)),
    "lstm": nbprop.network((6, 3), nbprop.lstm(5), nbprop.lstm(5, "last"), dense(2)),
    "gru": nbprop.network((6, 3), nbprop.gru(5, "last"), dense(2)),
    "words": nbprop.network((5,), nbprop.embedding(11, 4), nbprop.lstm(5), dense(3)),
}


def results(name):
    """(x, y, weights in order) of a module."""
    with np.load(RESULTS) as file:
        first = f"{name}/weights/"
        weights = {key.removeprefix(first): file[key] for key in file.files if key.startswith(first)}
        return file[f"{name}/x"], file[f"{name}/y"], weights


def in_order(name, weights):
    """A state_dict in the order of its module's forward, as the class of `classifier` has not been written."""
    if name != "classifier":
        return weights
    prefixes = ("conv1", "norm", "conv2", "first", "last")
    return {key: array for prefix in prefixes for key, array in weights.items() if key.startswith(f"{prefix}.")}


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_a_state_dict(name):
    x, wanted, weights = results(name)
    net, params = nbprop.from_torch(in_order(name, weights), NETWORKS[name])
    assert net is NETWORKS[name]
    assert params.dtype == np.float32
    close(name, forward(net, params, channels_last(name, x)), wanted, 2e-6)


def test_parametrized_weights():
    """What weight_norm and spectral_norm compute is read; the module is left as it is."""
    torch = pytest.importorskip("torch", reason="there is no PyTorch here")
    parametrizations = torch.nn.utils.parametrizations
    layers = parametrizations.weight_norm(torch.nn.Linear(3, 5)), parametrizations.spectral_norm(torch.nn.Linear(5, 2))
    module = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1]).double().eval()
    before, x = repr(module), np.random.default_rng(0).standard_normal((4, 3))
    net, params = nbprop.from_torch(module)
    assert repr(module) == before
    assert [layer.kind for layer in net.layers] == ["dense", "dense"]
    with torch.no_grad():
        close("y", nbprop.predict(net, params, x), module(torch.from_numpy(x)).numpy(), 1e-14)


@pytest.mark.parametrize("name", ["chain", "classifier", "residual", "skips", "pooled", "rnn", "lstm", "gru", "words"])
def test_modules(name):
    torch = pytest.importorskip("torch", reason="there is no PyTorch here")
    from support.torch_models import MODELS, inputs, module

    found, x = module(name), inputs(name)
    before = {key: array.clone() for key, array in found.state_dict().items()}
    net, params = nbprop.from_torch(found, input_shape=MODELS[name][2])
    with torch.no_grad():
        wanted = found(x).numpy()
    wanted = wanted.transpose(0, 2, 1) if name == "skips" else wanted
    close(name, forward(net, params, channels_last(name, x.numpy())), wanted, 2e-6)
    assert all(torch.equal(array, before[key]) for key, array in found.state_dict().items())
    if name in NETWORKS:
        assert repr(net) == repr(NETWORKS[name])


def test_modules_that_are_no_network_are_named():
    torch = pytest.importorskip("torch", reason="there is no PyTorch here")
    nn = torch.nn

    class Odd(nn.Module):
        def __init__(self, call):
            super().__init__()
            self.inner, self.call = nn.Linear(3, 3), call

        def forward(self, x):
            return self.call(self, x)

    told = {
        r"module 1 \(PReLU\) has no layer": nn.Sequential(nn.Linear(3, 3), nn.PReLU()),
        r"module 0 \(Conv2d\) pads with padding_mode='reflect'": nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        "cannot be traced by torch.fx": Odd(lambda self, x: x if x.sum() > 0 else -x),
        r"cos \(cos\) has no layer": Odd(lambda self, x: torch.cos(x)),
        "adds two branches that both change": Odd(lambda self, x: self.inner(x) + torch.tanh(x)),
        r"module 0 \(LeakyReLU\) has negative_slope=0.2": nn.Sequential(nn.LeakyReLU(0.2)),
        "has a weight of shape|is bidirectional": nn.LSTM(3, 3, batch_first=True, bidirectional=True),
    }
    for text, module in told.items():
        shape = (5, 6, 3) if isinstance(module, nn.Conv2d) else (4, 3) if isinstance(module, nn.LSTM) else (3,)
        module = nn.Sequential(module) if isinstance(module, nn.Conv2d) else module
        with pytest.raises(ValueError, match=f"from_torch: .*({text})"):
            nbprop.from_torch(module, input_shape=shape)
    with pytest.raises(TypeError, match="from_torch: input_shape is needed"):
        nbprop.from_torch(nn.Sequential(nn.Tanh()))
    with pytest.raises(TypeError, match="from_torch: net is for a state_dict"):
        nbprop.from_torch(nn.Linear(3, 3), net=NETWORKS["chain"])


W, B = np.ones((3, 4), np.float32), np.zeros(3, np.float32)
NET = nbprop.network((4,), dense(3))


@pytest.mark.parametrize(
    ("source", "net", "told"),
    [
        (3, NET, "source must be a module of PyTorch or its state_dict, got 3"),
        ({"a.weight": W}, None, "net must be what nbprop.network.*got NoneType"),
        ({"a.weight": W}, NET, r"layer 0.dense: a is next, and has no bias: weight \(3, 4\)"),
        ({"a.weight": W.T, "a.bias": B}, NET, r"layer 0.dense: weight must have shape \(4, 3\), a gives \(3, 4\)"),
        ({"a.weight": W, "a.bias": B, "b.weight": W}, NET, "net has no layers for b"),
        ({}, NET, "layer 0.dense: the state_dict has no weights left"),
        ({"a.weight": W.astype(np.int64)}, NET, "a.weight holds int64"),
        ({"a.weight": W * np.nan}, NET, "a.weight is not finite"),
        (
            {"a.weight": W},
            nbprop.network((4,), nbprop.batchnorm()),
            "layer 0.batchnorm: a state_dict has no weights of a",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(source, net, told):
    with pytest.raises((TypeError, ValueError), match=f"from_torch: {told}"):
        nbprop.from_torch(source, net)


def gpt2(heads, layers, vocabulary, positions, width):
    def block():
        yield nbprop.residual(nbprop.layernorm(), nbprop.attention(heads))
        yield nbprop.residual(nbprop.layernorm(), dense(4 * width, "gelu_tanh"), dense(width))

    return nbprop.network(
        (positions,),
        *(nbprop.embedding(vocabulary, width), nbprop.positions()),
        *(half for _ in range(layers) for half in block()),
        *(nbprop.layernorm(), dense(vocabulary, bias=False, share="0.embedding.weight.T")),
    )


def test_a_file_of_hugging_faces_layout(tmp_path):
    description, arrays = stored.load("gpt2")["small"]
    tensors = {name: array for name, array in arrays.items() if array.dtype == np.float32}
    more = {"h.0.attn.bias": np.ones((1, 1, 7, 7), np.float32), "lm_head.weight": tensors["wte.weight"]}
    path = tmp_path / "model.safetensors"
    written = {f"transformer.{name}": np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(written | more, path)
    (vocabulary, width), positions = tensors["wte.weight"].shape, len(tensors["wpe.weight"])
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("h."))
    net, params = nbprop.from_safetensors(path, gpt2(description["heads"], layers, vocabulary, positions, width))
    close("logits", forward(net, params, arrays["x"]), arrays["output"], 1e-12)


def test_half_precision_and_names_in_the_order_of_their_numbers(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "model.safetensors"
    tensors = {f"layers.{k}.weight": rng.standard_normal((4, 4)).astype(np.float16) for k in range(12)}
    net = nbprop.network((4,), *(dense(4, bias=False) for _ in range(12)))
    save_file(tensors, path)
    for layout in ("hf", "torch"):
        _, params = nbprop.from_safetensors(path, net, layout)
        assert params.dtype == np.float32
        wanted = [tensors[f"layers.{k}.weight"].T for k in range(12)]
        np.testing.assert_array_equal(params, np.concatenate([array.ravel() for array in wanted]).astype(np.float32))
    bits = np.float32([[1.5, -2.0, 0.25, 3.0]] * 4)
    data = (bits.view(np.uint32) >> 16).astype("<u2").tobytes()
    header = json.dumps({"weight": {"dtype": "BF16", "shape": [4, 4], "data_offsets": [0, 32]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    _, params = nbprop.from_safetensors(path, nbprop.network((4,), dense(4, bias=False)))
    np.testing.assert_array_equal(params, bits.T.ravel())


def test_damaged_files_and_wrong_arguments(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": W, "a.bias": B}, path)
    for arguments, told in (((path, 3), "net must be"), ((path, NET, "keras"), "layout: unknown name 'keras'")):
        with pytest.raises((TypeError, ValueError), match=f"from_safetensors: {told}"):
            nbprop.from_safetensors(*arguments)
    whole = path.read_bytes()
    for length in (0, 7, 60, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"from_safetensors: .*no safetensors file, or cut"):
            nbprop.from_safetensors(path, NET)
    with pytest.raises(OSError, match="nothing"):
        nbprop.from_safetensors(tmp_path / "nothing.safetensors", NET)
