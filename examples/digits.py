"""Real handwritten digits: training in mini-batches, accuracy on held-out images, and saving the network to a file."""

import tempfile
from pathlib import Path

import numpy as np

import nbprop
import nbprop.data


def main():
    images, labels = nbprop.data.digits()
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[360:], order[:360]

    net = nbprop.network(
        (64,), nbprop.dense(128, activation="relu"), nbprop.dense(64, activation="relu"), nbprop.dense(10)
    )
    params = nbprop.init(net, seed=0, dtype=np.float32)
    nbprop.fit(
        net,
        params,
        images[train],
        labels[train],
        loss="softmax_cross_entropy",
        optimizer="adam",
        lr=3e-3,
        batch=32,
        epochs=30,
        schedule="cosine",
    )

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.safetensors"
        nbprop.save(path, net, params)
        net, params = nbprop.load(path)

    plan = nbprop.plan(net, batch=len(test), dtype=np.float32)
    logits = np.empty((len(test), 10), np.float32)
    nbprop.forward(plan, params, images[test], logits, nbprop.workspace(plan))
    print(f"held-out accuracy: {100 * np.mean(logits.argmax(1) == labels[test]):.1f} %")


if __name__ == "__main__":
    main()
