"""Write nbprop/data/digits.npz from the CSV file that scikit-learn ships.

Run from the repository root, in an environment that has scikit-learn:

    python tests/reference/make_digits.py

The source is sklearn/datasets/data/digits.csv.gz: 1,797 rows of 64 pixels (0 to 16) and the class, the test
part of the UCI data set "Optical Recognition of Handwritten Digits" (nbprop/data/ATTRIBUTION.md).
"""

import gzip
from importlib.resources import files
from pathlib import Path

import numpy as np

DESTINATION = Path(__file__).resolve().parents[2] / "nbprop" / "data" / "digits.npz"


def main():
    """Convert the table to images (1797, 8, 8) and labels (1797,), both uint8, and store them compressed."""
    source = files("sklearn.datasets.data") / "digits.csv.gz"
    with source.open("rb") as raw, gzip.open(raw, "rt") as text:
        table = np.loadtxt(text, delimiter=",")
    pixels, labels = table[:, :64], table[:, 64]
    if table.shape != (1797, 65) or not np.array_equal(table, table.astype(np.uint8)):
        raise ValueError(f"digits.csv.gz is not 1797 rows of 65 small whole numbers: {table.shape}")
    np.savez_compressed(DESTINATION, images=pixels.reshape(1797, 8, 8).astype(np.uint8), labels=labels.astype(np.uint8))
    print(f"{DESTINATION}: {DESTINATION.stat().st_size} bytes")


if __name__ == "__main__":
    main()
