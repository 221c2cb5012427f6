"""The GPT-2 of examples/history: PyTorch's logits and gradients from a file of Hugging Face's layout; other files."""

import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import nbprop
from support import ROOT, stored
from support.cases import close

DESCRIPTION, ARRAYS = stored.load("gpt2")["small"]
TENSORS = {name: a for name, a in ARRAYS.items() if a.dtype == np.float32}
HEADS = DESCRIPTION["heads"]


@pytest.fixture(scope="module")
def gpt2():
    sys.path.insert(0, str(ROOT / "examples" / "history"))
    from language import gpt2

    yield gpt2
    sys.path.remove(str(ROOT / "examples" / "history"))


def saved(tmp_path, tensors):
    path = tmp_path / "model.safetensors"
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_logits_and_gradients_are_pytorchs(gpt2, tmp_path, prefix):
    more = {"h.0.attn.bias": np.ones((1, 1, 7, 7), np.float32), "h.1.attn.masked_bias": np.float32([-1e4])}
    more |= {} if prefix else {"lm_head.weight": TENSORS["wte.weight"]}
    net, params = gpt2.load(saved(tmp_path, {prefix + name: a for name, a in (TENSORS | more).items()}), HEADS)
    assert net.n_params == sum(a.size for a in TENSORS.values())
    params = params.astype(np.float64)
    x, target, names = ARRAYS["x"], ARRAYS["target"], gpt2.names(2)
    plan = nbprop.plan(net, "softmax_cross_entropy", batch=3)
    work, y, grads = nbprop.workspace(plan), np.empty((3, 7, 13)), np.empty_like(params)
    nbprop.forward(plan, params, x, y, work)
    close("logits", y, ARRAYS["output"], 1e-12)
    close("loss", nbprop.value_and_grad(plan, params, x, target, grads, work), ARRAYS["loss"], 1e-13)
    for name, part in nbprop.views(net, grads).items():
        close(name, part, ARRAYS[f"grad of {names[name]}"], 1e-11)


def test_initial_parameters_are_small_and_smaller_where_they_add_up(gpt2):
    net = gpt2.network(50, 8, layers=8, heads=2, width=64)
    parts = nbprop.views(net, gpt2.initial(net, 0))
    assert abs(parts["4.residual.1.dense.weight"].std() / 0.02 - 1) < 0.05
    for name in ("3.residual.1.attention.output.weight", "4.residual.2.dense.weight"):
        assert abs(parts[name].std() / (0.02 / 4) - 1) < 0.05


def without(*names):
    return {name: a for name, a in TENSORS.items() if name not in names}


WRONG = {
    "missing": (without("h.1.mlp.c_fc.bias"), "it lacks h.1.mlp.c_fc.bias"),
    "no embedding": (without("wte.weight"), "it lacks wte.weight"),
    "one too many": (TENSORS | {"h.0.attn.c_attn.scale": np.ones(3, np.float32)}, "it has also h.0.attn.c_attn.scale"),
    "a layer missing": (
        {name.replace("h.1.", "h.2."): a for name, a in TENSORS.items()},
        r"lacks h\.1\.attn\.c_attn\.bias",
    ),
    "something else": ({"weight": np.ones(3, np.float32)}, r"lacks h\.0\.ln_1\.weight.* and has also weight"),
    "misshapen": (
        TENSORS | {"h.0.mlp.c_proj.weight": TENSORS["h.0.mlp.c_proj.weight"].T},
        r"h\.0\.mlp\.c_proj\.weight must have shape \(24, 6\), got \(6, 24\)",
    ),
    "a flat embedding": (TENSORS | {"wte.weight": TENSORS["wte.weight"].ravel()}, "wte.weight must have two axes"),
    "half precision": (
        TENSORS | {"ln_f.bias": TENSORS["ln_f.bias"].astype(np.float16)},
        "ln_f.bias must hold F32, got F16",
    ),
    "logits of their own": (
        TENSORS | {"lm_head.weight": TENSORS["wte.weight"] + 1},
        "lm_head.weight differs from wte.weight",
    ),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_a_file_that_does_not_fit_is_refused(gpt2, tmp_path, what):
    tensors, message = WRONG[what]
    with pytest.raises(ValueError, match=message):
        gpt2.load(saved(tmp_path, tensors), HEADS)


def test_other_files_are_refused(gpt2, tmp_path):
    with pytest.raises(ValueError, match="width of 6 is no multiple of 64; say how many heads"):
        gpt2.load(saved(tmp_path, TENSORS))
    with pytest.raises(ValueError, match="4 heads do not divide 6 features"):
        gpt2.load(saved(tmp_path, TENSORS), heads=4)
    path = tmp_path / "cut.safetensors"
    path.write_bytes(saved(tmp_path, TENSORS).read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a safetensors file, or cut"):
        gpt2.load(path, HEADS)
    with pytest.raises(FileNotFoundError):
        gpt2.load(tmp_path / "nothing", HEADS)
