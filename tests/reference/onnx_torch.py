"""ONNX files of tests/support/torch_models.py by both of PyTorch's exporters, with inputs and outputs: onnx/.

Needs torch, onnx and onnxscript: python tests/reference/onnx_torch.py
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from support.torch_models import MODELS, inputs, module  # noqa: E402


def clean(path):
    """Leave out what tells of the machine that wrote a file: the lines of source that each node comes from."""
    model = onnx.load(path)
    parts = [model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info]
    for part in (*parts, *model.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.graph.ClearField("value_info")
    onnx.save(model, path)


def main():
    folder = HERE / "onnx"
    folder.mkdir(exist_ok=True)
    results = {}
    for name in MODELS:
        model, x = module(name), inputs(name)
        axis = 1 if name == "gru" else 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            old = {"dynamo": False, "input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {axis: "n"}}}
            torch.onnx.export(model, (x,), folder / f"{name}_old.onnx", **old)
            shapes = ({axis: torch.export.Dim("n", min=2, max=1024)},)
            new = {"dynamo": True, "external_data": False, "verbose": False, "dynamic_shapes": shapes}
            if name != "rnn":  # it writes each time step of a simple recurrent layer as operations of its own
                torch.onnx.export(model, (x,), folder / f"{name}_new.onnx", **new)
        for path in folder.glob(f"{name}_*.onnx"):
            clean(path)
        with torch.no_grad():
            results |= {f"{name}/x": x.numpy(), f"{name}/y": model(x).numpy()}
        results |= {f"{name}/weights/{key}": part.numpy() for key, part in model.state_dict().items()}
    np.savez_compressed(folder / "results.npz", **results)


if __name__ == "__main__":
    main()
