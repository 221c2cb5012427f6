"""Read the stored results of PyTorch and JAX that tests/reference/README.md describes."""

import json

import numpy as np

from support import TESTS

FOLDER = TESTS / "reference"


def load(name):
    """Return {case: (description, {field: array})} of tests/reference/<name>.npz."""
    with np.load(FOLDER / f"{name}.npz") as file:
        index = json.loads(str(file["index"]))
        cases = {case: (description, {}) for case, description in index.items()}
        for key in file.files:
            if key != "index":
                case, field = key.rsplit("/", 1)
                cases[case][1][field] = file[key]
    return cases
