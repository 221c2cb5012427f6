"""Write this folder's results of PyTorch and JAX: a file of cases for each entry of FILES.

Run from the repository root, in an environment with torch 2.13 and jax (the package's extra "peers"):

    python tests/reference/make_reference.py

README.md in this folder defines the format. Neither nbprop nor the tests' own references are imported here.
"""

import json
from pathlib import Path

import alexnet_torch
import attention_torch
import gpt2_torch
import images_torch
import layers_torch
import losses_torch
import networks_torch
import norms_torch
import numpy as np
import optimizers_torch
import recurrent_torch
import second_order_jax

FOLDER = Path(__file__).parent
FILES = {
    "networks": networks_torch.cases,
    "images": images_torch.cases,
    "alexnet": alexnet_torch.cases,
    "losses": losses_torch.cases,
    "norms": norms_torch.cases,
    "layers": layers_torch.cases,
    "attention": attention_torch.cases,
    "gpt2": gpt2_torch.cases,
    "optimizers": optimizers_torch.trajectories,
    "recurrent": recurrent_torch.cases,
    "schedules": optimizers_torch.schedules,
    "second_order": second_order_jax.cases,
}


def main():
    """Compute each file's cases, {case: (description, {field: array})}, and store them."""
    for name, make in FILES.items():
        arrays, index = {}, {}
        for case, (description, fields) in make().items():
            index[case] = description
            for field, value in fields.items():
                array = np.asarray(value)
                if not np.all(np.isfinite(array)):
                    raise ValueError(f"{case}/{field} is not finite")
                arrays[f"{case}/{field}"] = array
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, index=np.array(json.dumps(index)), **arrays)
        print(f"{path.name}: {len(index)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
