"""ONNX files: written ones compute what nbprop does, by two others; read ones too, whoever wrote them."""

import re

import numpy as np
import pytest

import nbprop
from support import TESTS
from support.c_build import given
from support.cases import CASES, close, data

onnx = pytest.importorskip("onnx", reason="there is no onnx here")

# One of each kind of layer, in each precision; `make test-more` has all the others.
HANDFUL = (
    *("dense_no_bias", "dense_positions", "concat", "residual", "tied_transposed", "slicing", "reshape", "embedding"),
    *("conv2d", "conv2d_options", "conv1d", "max_pool2d", "max_pool2d_overlap", "avg_pool2d_overlap", "avg_pool1d"),
    *("global_max_pool", "layernorm", "rmsnorm", "batchnorm", "standardize_given", "local_response_norm", "positions"),
    *("rnn_last", "lstm", "lstm_last", "gru", "attention", "alone_gelu", "fused_softmax", "alone_silu"),
)
# Layers without a form in the file.
NO_FORM = ("elementwise", "groupnorm", "fourier_features", "bidirectional")
REST = tuple(case for case in CASES if case not in HANDFUL and CASES[case][1] is None and not case.startswith(NO_FORM))
# Attention has a form in ONNX that is not read; of an even window, the sum as a product; borders of an image's pixels.
WRITTEN_ALONE = {"ascending", "attention", "attention_not_causal", "local_response_norm"}
WRITTEN_ALONE |= {"glu", "glu_silu", "conv_transpose1d", "conv_transpose2d"}
WRITTEN_ALONE |= {"conv2d_reflect", "conv2d_replicate", "conv1d_circular"}


def forward(net, params, x, state=None):
    """What nbprop computes in inference, in float64."""
    plan = nbprop.plan(net, batch=len(x), mode="inference")
    y = np.empty((len(x), *net.output_shape))
    x = x if x.dtype.kind == "i" else x.astype(np.float64)
    state = None if state is None else state.astype(np.float64)
    nbprop.forward(plan, params.astype(np.float64), x, y, nbprop.workspace(plan), state)
    return y


def check(folder, case):
    net, _, params, state = given(case, np.float32)
    plan = nbprop.plan(net, batch=3, mode="inference")
    x, _, _ = data(plan, 3, np.random.default_rng(2), ties=False)
    x = x.astype(np.int64 if plan.x_classes else np.float32)
    wanted, path = forward(net, params, x, state), folder / f"{case}.onnx"
    wide = None if state is None else state.astype(np.float64)
    nbprop.to_onnx(path, net, params.astype(np.float64), wide)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {tensor.data_type for tensor in model.graph.initializer} <= {onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64}
    if case not in WRITTEN_ALONE:
        again, read = nbprop.from_onnx(path)
        assert read.dtype == np.float64
        close(f"{case} read", forward(again, read, x), wanted, 1e-13)
    return net, params, state, x, wanted, path


@pytest.mark.parametrize("case", HANDFUL)
def test_written_and_read(tmp_path, case):
    check(tmp_path, case)


@pytest.mark.more
@pytest.mark.parametrize("case", REST)
def test_the_rest_written_and_read(tmp_path, case):
    check(tmp_path, case)


@pytest.mark.more
@pytest.mark.parametrize("case", [*HANDFUL, *REST])
def test_two_others_compute_the_same(tmp_path, case):
    """ONNX Runtime in float32, ONNX's own reference implementation in float64."""
    runtime = pytest.importorskip("onnxruntime", reason="there is no onnxruntime here")
    from onnx.reference import ReferenceEvaluator

    net, params, state, x, wanted, path = check(tmp_path, case)
    wide = x if x.dtype == np.int64 else x.astype(np.float64)
    # Its recurrent operators take float32 constants, and its ConvTranspose no groups.
    if net.layers[0].kind not in ("rnn", "lstm", "gru", "conv_transpose2d"):
        (y,) = ReferenceEvaluator(str(path)).run(None, {"x": wide})
        close(f"{case} by the reference", y, wanted, 1e-6)
    nbprop.to_onnx(path, net, params, state)
    (y,) = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert y.dtype == np.float32
    close(f"{case} by ONNX Runtime", y, wanted, 2e-6)


def test_what_is_read_is_what_was_written(tmp_path):
    """The layers themselves, not only their results."""
    for case in (
        "dense",
        "residual_twice",
        "concat",
        "conv2d_options",
        "max_pool2d_overlap",
        "lstm_last",
        "rnn",
        "gru",
    ):
        net, _, params, _ = given(case, np.float32)
        nbprop.to_onnx(tmp_path / "net.onnx", net, params)
        again, read = nbprop.from_onnx(tmp_path / "net.onnx")
        assert repr(again) == repr(net)
        np.testing.assert_array_equal(read, params)


def test_layers_without_a_form_are_refused_by_name(tmp_path):
    for case in [case for case in CASES if case.startswith(NO_FORM)]:
        net, _, params, _ = given(case, np.float32)
        with pytest.raises(ValueError, match=r"to_onnx: layer \d\.\w+ has no form"):
            nbprop.to_onnx(tmp_path / "net.onnx", net, params)
    assert list(tmp_path.iterdir()) == []


def test_the_opset_is_stated(tmp_path):
    net = nbprop.network((3,), nbprop.dense(2))
    nbprop.to_onnx(tmp_path / "net.onnx", net, nbprop.init(net))
    model = onnx.load(tmp_path / "net.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert "opset 20" in nbprop.to_onnx.__doc__


# -- what others write -------------------------------------------------------------------------------------------------


def model_of(nodes, inputs, constants, outputs=("y",), opset=18, kind=np.float32, domains=()):
    """An ONNX model; inputs: {name: shape}."""
    helper = onnx.helper
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph(
        [
            helper.make_node(*node[:3], name=f"n{k}", **(node[3] if len(node) > 3 else {}))
            for k, node in enumerate(nodes)
        ],
        "test",
        [helper.make_tensor_value_info(name, element, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, element, None) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def read(tmp_path, model, **options):
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return nbprop.from_onnx(path, **options)


def rng():
    return np.random.default_rng(7)


def arrays(**shapes):
    generator = rng()
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def reference(model, x):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x})[0]


def check_read(tmp_path, model, x, ours=None, tolerance=2e-6):
    """nbprop's output for x, in nbprop's order if `ours` is given, is that of ONNX's reference."""
    net, params = read(tmp_path, model)
    y = forward(net, params, x if ours is None else ours)
    wanted = reference(model, x)
    if wanted.ndim > 2 and ours is not None and wanted.shape != y.shape:
        wanted = np.moveaxis(wanted, 1, -1)
    close("read", y, wanted.reshape(y.shape), tolerance)
    return net


def test_keras_graph_with_channels_last(tmp_path):
    """As tf2onnx writes Keras: transposes around convolutions, products with biases apart."""
    constants = arrays(k=(4, 1, 3, 3), kb=(1, 4, 1, 1), w=(4 * 9, 5), b=(5,)) | {"shape": np.array([-1, 36])}
    nodes = [
        ("Transpose", ["x"], ["t"], {"perm": [0, 3, 1, 2]}),
        ("Conv", ["t", "k"], ["c"], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ("Add", ["c", "kb"], ["cb"]),
        ("Relu", ["cb"], ["r"]),
        ("Transpose", ["r"], ["back"], {"perm": [0, 2, 3, 1]}),
        ("Reshape", ["back", "shape"], ["flat"]),
        ("MatMul", ["flat", "w"], ["m"]),
        ("Add", ["m", "b"], ["d"]),
        ("Softmax", ["d"], ["y"]),
    ]
    x = rng().standard_normal((3, 6, 6, 1)).astype(np.float32)
    net = check_read(tmp_path, model_of(nodes, {"x": ["n", 6, 6, 1]}, constants), x)
    conv = nbprop.conv2d(4, 3, stride=2, padding="same", activation="relu")
    wanted = nbprop.network((6, 6, 1), conv, nbprop.flatten(), nbprop.dense(5, activation="softmax"))
    assert repr(net) == repr(wanted)


def test_pytorch_graph_flattened_with_channels_first(tmp_path):
    """The dense layer's rows are reordered, behind a flatten and an activation, and shapes that the graph computes."""
    constants = arrays(k=(4, 2, 3, 3), kb=(4,), w=(5, 4 * 12), b=(5,)) | {"zero": np.array(0), "minus": np.array([-1])}
    nodes = [
        ("Conv", ["x", "k", "kb"], ["c"], {"kernel_shape": [3, 3]}),
        ("Shape", ["c"], ["s"]),
        ("Gather", ["s", "zero"], ["batch"]),
        ("Unsqueeze", ["batch", "axes"], ["batch1"]),
        ("Concat", ["batch1", "minus"], ["shape"], {"axis": 0}),
        ("Reshape", ["c", "shape"], ["flat"]),
        ("Tanh", ["flat"], ["a"]),
        ("Gemm", ["a", "w", "b"], ["y"], {"transB": 1}),
    ]
    constants |= {"axes": np.array([0])}
    x = rng().standard_normal((2, 2, 5, 6)).astype(np.float32)
    net = check_read(
        tmp_path, model_of(nodes, {"x": ["n", 2, 5, 6]}, constants), x, np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    )
    assert net.input_shape == (5, 6, 2)


def test_layers_written_in_pieces(tmp_path):
    """gelu with its factors in two orders, silu, leaky relu, softplus; layer and RMS normalization."""
    numbers = {"half": 0.5, "one": 1.0, "root": 2**0.5, "inverse": 2**-0.5, "eps": 1e-5, "two": 2.0, "slope": 0.01}
    numbers |= {"c": 0.044715, "three": 3.0, "r": (2 / np.pi) ** 0.5}
    constants = {name: np.array(value, np.float32) for name, value in numbers.items()} | arrays(s=(6,), b=(6,))
    constants |= {"axes": np.array([-1])}
    pieces = {
        "gelu": [
            ("Div", ["x", "root"], ["a"]),
            *(("Erf", ["a"], ["e"]), ("Add", ["e", "one"], ["p"])),
            *(("Mul", ["x", "p"], ["m"]), ("Mul", ["m", "half"], ["y"])),
        ],
        "gelu ": [
            *(("Mul", ["x", "half"], ["h"]), ("Mul", ["x", "inverse"], ["a"])),
            *(("Erf", ["a"], ["e"]), ("Add", ["e", "one"], ["p"]), ("Mul", ["h", "p"], ["y"])),
        ],
        "gelu_tanh": [
            *(("Pow", ["x", "three"], ["q"]), ("Mul", ["q", "c"], ["qc"]), ("Add", ["x", "qc"], ["i"])),
            *(("Mul", ["i", "r"], ["ir"]), ("Tanh", ["ir"], ["t"]), ("Add", ["t", "one"], ["p"])),
            *(("Mul", ["x", "half"], ["h"]), ("Mul", ["h", "p"], ["y"])),
        ],
        "silu": [("Sigmoid", ["x"], ["g"]), ("Mul", ["x", "g"], ["y"])],
        "leaky_relu": [("Mul", ["x", "slope"], ["g"]), ("Max", ["x", "g"], ["y"])],
        "softplus": [("Exp", ["x"], ["e"]), ("Add", ["e", "one"], ["p"]), ("Log", ["p"], ["y"])],
    }
    x = rng().standard_normal((5, 6)).astype(np.float32)
    for name, nodes in pieces.items():
        net = check_read(tmp_path, model_of(nodes, {"x": ["n", 6]}, constants), x)
        assert repr(net) == repr(nbprop.network((6,), nbprop.activation(name.strip())))
    scale = [("Mul", ["u", "s"], ["us"]), ("Add", ["us", "b"], ["y"])]
    centered = [
        *(("ReduceMean", ["x", "axes"], ["m"]), ("Sub", ["x", "m"], ["d"]), ("Pow", ["d", "two"], ["q"])),
        *(("ReduceMean", ["q", "axes"], ["v"]), ("Add", ["v", "eps"], ["ve"]), ("Sqrt", ["ve"], ["std"])),
        ("Div", ["d", "std"], ["u"]),
    ]
    net = check_read(tmp_path, model_of([*centered, *scale], {"x": ["n", 6]}, constants), x)
    assert re.fullmatch(r"network\(\(6,\), layernorm\(epsilon=9.99\d+e-06\)\)", repr(net))
    rms = [
        *(("Mul", ["x", "x"], ["q"]), ("ReduceMean", ["q", "axes"], ["v"]), ("Add", ["v", "eps"], ["ve"])),
        *(("Sqrt", ["ve"], ["std"]), ("Reciprocal", ["std"], ["i"]), ("Mul", ["x", "i"], ["u"])),
        ("Mul", ["u", "s"], ["y"]),
    ]
    net = check_read(tmp_path, model_of(rms, {"x": ["n", 6]}, constants), x)
    assert [layer.kind for layer in net.layers] == ["rmsnorm"]


def test_residual_blocks_and_concatenations_nest(tmp_path):
    """A U-net's skip, blocks inside blocks, and constants on either side."""
    constants = arrays(w=(6, 6), v=(6, 6), u=(12, 6), c=(6,))
    nodes = [
        ("MatMul", ["x", "w"], ["a"]),
        ("Tanh", ["a"], ["ta"]),
        ("MatMul", ["ta", "v"], ["b"]),
        ("Add", ["b", "ta"], ["r"]),
        ("Sub", ["c", "r"], ["d"]),
        ("Concat", ["d", "ta"], ["j"], {"axis": 1}),
        ("MatMul", ["j", "u"], ["k"]),
        ("Add", ["x", "k"], ["y"]),
    ]
    net = check_read(
        tmp_path, model_of(nodes, {"x": ["n", 6]}, constants), rng().standard_normal((5, 6)).astype(np.float32)
    )
    (outer,) = net.layers
    assert [layer.kind for layer in outer.layers] == ["dense", "concat", "dense"]


def test_recurrent_layers_of_both_layouts(tmp_path):
    constants = arrays(w=(1, 12, 4), r=(1, 12, 3), b=(1, 24)) | {"one": np.array([1]), "last": np.array(-1)}
    lstm = ("LSTM", ["t", "w", "r", "b"], ["s", "h", ""], {"hidden_size": 3})
    nodes = [
        ("Transpose", ["x"], ["t"], {"perm": [1, 0, 2]}),
        lstm,
        ("Squeeze", ["s", "one"], ["q"]),
        ("Transpose", ["q"], ["back"], {"perm": [1, 0, 2]}),
        ("Gather", ["back", "last"], ["y"], {"axis": 1}),
    ]
    x = rng().standard_normal((2, 5, 4)).astype(np.float32)
    net, params = read(tmp_path, model_of(nodes, {"x": ["n", 5, 4]}, constants))
    assert repr(net) == repr(nbprop.network((5, 4), nbprop.lstm(3, output="last")))
    close("lstm", forward(net, params, x), reference(model_of(nodes, {"x": ["n", 5, 4]}, constants), x), 2e-6)
    time_first = [("LSTM", ["x", *lstm[1][1:]], ["", "h", ""], lstm[3]), ("Squeeze", ["h", "zero"], ["y"])]
    constants |= {"zero": np.array([0])}
    again, same = read(tmp_path, model_of(time_first, {"x": [5, "n", 4]}, constants))
    assert again == net
    np.testing.assert_array_equal(same, params)


# -- bad input ---------------------------------------------------------------------------------------------------------

_W = np.ones((3, 2), np.float32)
_DENSE = [("MatMul", ["x", "w"], ["y"])]


def refused(nodes, told, constants=None, inputs=None, **options):
    return (
        nodes,
        told,
        {"w": _W} if constants is None else constants,
        {"x": ["n", 3]} if inputs is None else inputs,
        options,
    )


REFUSED = {
    "unknown": refused(
        [("Foo", ["x"], ["y"], {"domain": "com.acme"})], "'n0' .Foo.: operator Foo of domain 'com.acme'"
    ),
    "loop": refused([("Loop", ["", "", "x"], ["y"])], "is a loop or a branch"),
    "cosine": refused([("Cos", ["x"], ["y"])], "operator Cos has no layer in nbprop"),
    "circle": refused([("Add", ["x", "y"], ["z"]), ("Tanh", ["z"], ["y"])], "reads 'y', which no node before it gives"),
    "two inputs": refused([("Add", ["x", "z"], ["y"])], "depends on 2 inputs", inputs={"x": ["n", 3], "z": ["n", 3]}),
    "open size": refused(_DENSE, "sizes that are left open", inputs={"x": ["n", "m"]}),
    "two branches": refused(
        [("MatMul", ["x", "w"], ["a"]), ("MatMul", ["x", "w"], ["b"]), ("Add", ["a", "b"], ["y"])],
        "adds two branches that both change their input",
    ),
    "product": refused(
        [("Tanh", ["x"], ["a"]), ("Mul", ["x", "a"], ["y"])], "'n1' .Mul.: no layer of nbprop computes this"
    ),
    "computed weight": refused(
        [("MatMul", ["w", "x"], ["y"])], "computes with 'w', a constant|takes 'x' for its weights"
    ),
    "half": refused(_DENSE, "has weights of float16", {"w": _W.astype(np.float16)}),
    "nan": refused(_DENSE, "weights that are not finite", {"w": _W * np.nan}),
    "shapes": refused(
        _DENSE, r"its weights have shapes \[\(4, 2\)\].*needs \[\(3, 2\)\]", {"w": np.ones((4, 2), np.float32)}
    ),
    "constant": refused([("Tanh", ["w"], ["y"])], "depends on 0 inputs"),
    "outputs": refused(
        [*_DENSE, ("Tanh", ["x"], ["z"])], "has 2 outputs; name one with output=: y, z", outputs=("y", "z")
    ),
    "leaky": refused([("LeakyRelu", ["x"], ["y"], {"alpha": 0.2})], "has alpha=0.2"),
    "batch": refused([("Reshape", ["x", "s"], ["y"])], "nbprop keeps the batch", {"s": np.array([3, -1])}),
    "gru": refused(
        [("GRU", ["x", "g", "r"], ["s", ""], {"hidden_size": 1}), ("Squeeze", ["s", "i"], ["y"])],
        "resets before the product",
        {"g": np.ones((1, 3, 4), np.float32), "r": np.ones((1, 3, 1), np.float32), "i": np.array([1])},
        {"x": [5, "n", 4]},
    ),
    "huge": refused(
        [("ConstantOfShape", ["s"], ["c"]), ("Add", ["x", "c"], ["y"])],
        "would make an array of shape",
        {"s": np.array([2**40])},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_network_is_named(tmp_path, name):
    nodes, told, constants, inputs, options = REFUSED[name]
    with pytest.raises(ValueError, match=told) as caught:
        read(tmp_path, model_of(nodes, inputs, constants, **options))
    assert "from_onnx" in str(caught.value)
    assert "model.onnx" in str(caught.value)


def test_an_output_is_chosen(tmp_path):
    model = model_of([*_DENSE, ("Tanh", ["x"], ["z"])], {"x": ["n", 3]}, {"w": _W}, ("y", "z"))
    _, params = read(tmp_path, model, output="y")
    assert params.shape == (6,)
    assert read(tmp_path, model, output="z")[0].n_params == 0
    with pytest.raises(ValueError, match="output: its graph has no 'u'; known: y, z"):
        read(tmp_path, model, output="u")


def tensor_model(change):
    model = model_of(_DENSE, {"x": ["n", 3]}, {"w": _W})
    change(model.graph.initializer[0])
    return model


def test_tensors_that_claim_more_than_there_is(tmp_path):
    def four_gigabytes(tensor):
        tensor.dims[:] = [2**15, 2**15]

    def negative(tensor):
        tensor.dims[:] = [-3, -2]

    def unknown(tensor):
        tensor.data_type = 999

    for change, told in ((four_gigabytes, "claims 1,073,741,824 elements"), (negative, "negative"), (unknown, "type")):
        with pytest.raises(ValueError, match=told):
            read(tmp_path, tensor_model(change))


def test_external_data(tmp_path):
    """Beside the model they are read; outside its folder, never."""
    outside, folder = tmp_path / "secret.bin", tmp_path / "models"
    folder.mkdir()
    for path in (outside, folder / "weights.bin"):
        path.write_bytes(b"\0" * 8 + _W.tobytes())
    (folder / "link.bin").symlink_to(outside)

    def place(location, offset=8, length=24):
        def change(tensor):
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", offset), ("length", length)):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, str(value)

        return tensor_model(change)

    _, params = read(folder, place("weights.bin"))
    np.testing.assert_array_equal(params, _W.ravel())
    told = {
        "../secret.bin": "outside the model's folder",
        "link.bin": "outside the model's folder",
        str(outside): "no file beside the model",
        "nothing.bin": "which is not beside the model",
        "": "no file beside the model",
    }
    for location, text in told.items():
        with pytest.raises(ValueError, match=text):
            read(folder, place(location))
    for offset, length in ((16, 24), (-8, 24), (8, 20), ("x", 24)):
        with pytest.raises(ValueError, match=r"claims 24 bytes|is no number"):
            read(folder, place("weights.bin", offset, length))


@pytest.mark.scaled
def test_files_that_are_cut_or_none(tmp_path, rounds):
    net = nbprop.network((5, 6, 3), nbprop.conv2d(2, 3), nbprop.flatten(), nbprop.dense(2))
    path = tmp_path / "net.onnx"
    nbprop.to_onnx(path, net, nbprop.init(net))
    whole, generator = path.read_bytes(), rng()
    for length in (0, 1, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"from_onnx: .*net\.onnx"):
            nbprop.from_onnx(path)
    told = []
    for _ in range(rounds(100, 20_000)):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 3):
            damaged[place] = generator.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            nbprop.from_onnx(path)
        except ValueError as error:
            told.append(str(error))
    assert len(told) > 25
    assert all("from_onnx" in text for text in told)
    with pytest.raises(OSError, match="nowhere"):
        nbprop.from_onnx(tmp_path / "nowhere.onnx")


_NET = nbprop.network((3,), nbprop.dense(2))
_STATISTICS = nbprop.network((3,), nbprop.batchnorm())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"net": 3}, "to_onnx: net must be what nbprop.network"),
        ({"params": np.zeros(3)}, r"to_onnx: params must have shape \(8,\)"),
        ({"params": np.full(8, np.inf)}, "to_onnx: params must be finite, got inf at element 0"),
        ({"params": np.zeros(8, np.float16)}, "to_onnx: params must hold float32 or float64"),
        ({"net": _STATISTICS, "params": np.ones(6)}, "to_onnx: layer 0.batchnorm has running statistics; give state"),
        ({"state": np.zeros(3)}, "to_onnx: state is for networks with running statistics"),
        ({"net": CASES["elementwise"][0]}, "to_onnx: layer 1.bumpy has no form in ONNX's operators"),
        ({"net": CASES["groupnorm"][0]}, "to_onnx: layer 1.groupnorm has no form in ONNX's operators"),
        ({"net": nbprop.network((3, 2), nbprop.rnn(5, "selu"))}, "to_onnx: layer 0.rnn has selu, which ONNX's RNN has"),
        ({"net": nbprop.network((3, 2), nbprop.rnn(5, carry=True))}, "to_onnx: layer 0.rnn carries state"),
        ({"path": 3}, "to_onnx: path must be a str or a path"),
    ],
)
def test_what_cannot_be_written_is_told_and_nothing_is(tmp_path, arguments, told):
    given = {"path": tmp_path / "net.onnx", "net": _NET} | arguments
    if "params" not in given:
        given["params"] = nbprop.init(given["net"]) if isinstance(given["net"], nbprop.Network) else np.zeros(8)
    with pytest.raises((TypeError, ValueError), match=told):
        nbprop.to_onnx(**given)
    assert list(tmp_path.iterdir()) == []


# -- what PyTorch and scikit-learn have written (tests/reference/onnx_torch.py, onnx_sklearn.py) -----------------------

FILES = sorted((TESTS / "reference" / "onnx").glob("*.onnx"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_of_other_libraries(path):
    """The outputs of the library itself; images and sequences go in as nbprop has them."""
    name = path.stem.removesuffix("_old").removesuffix("_new")
    results = "sklearn.npz" if name.startswith("mlp") else "results.npz"
    with np.load(TESTS / "reference" / "onnx" / results) as file:
        x, wanted = file[f"{name}/x"], file[f"{name}/y"]
    output = "probabilities" if "class" in name and name.startswith("mlp") else None
    net, params = nbprop.from_onnx(path, output)
    y = forward(net, params, channels_last(name, x))
    wanted = wanted if name != "skips" else wanted.transpose(0, 2, 1)
    close(name, y, wanted.reshape(y.shape), 2e-6)


def channels_last(name, x):
    """x of one of PyTorch's modules as nbprop has it."""
    if name == "gru":
        return np.ascontiguousarray(x.transpose(1, 0, 2))
    images = name in ("classifier", "pooled", "skips")
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if images else x
