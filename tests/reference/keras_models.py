"""Keras models with their outputs, in both of its file formats: keras/.

Needs keras with any backend, and h5py: KERAS_BACKEND=torch python tests/reference/keras_models.py
"""

import warnings
from pathlib import Path

import keras
import numpy as np
from keras import layers

FOLDER = Path(__file__).parent / "keras"


def chain():
    return keras.Sequential(
        [
            keras.Input((4,)),
            *(layers.Dense(8, activation="tanh"), layers.Dense(5, use_bias=False), layers.ELU(), layers.Dropout(0.2)),
            *(layers.Rescaling(0.5, 0.25), layers.Dense(3, activation="softmax")),
        ]
    )


def images():
    return keras.Sequential(
        [
            keras.Input((7, 6, 2)),
            *(layers.Conv2D(4, 3, padding="same", strides=2), layers.BatchNormalization(), layers.ReLU()),
            *(layers.ZeroPadding2D(1), layers.DepthwiseConv2D(2, depth_multiplier=2), layers.MaxPooling2D(2)),
            *(layers.SeparableConv2D(3, 2, activation="silu"), layers.Flatten(), layers.Dense(2, activation="gelu")),
        ]
    )


def branches():
    x = keras.Input((4,))
    a = layers.Dense(6, activation="relu", name="a")(x)
    b = layers.Dense(6)(layers.LayerNormalization()(layers.Dense(5, activation="softplus")(a)))
    c = layers.Concatenate()([layers.Add()([a, b]), layers.Dense(2)(a)])
    return keras.Model(x, layers.Dense(3, activation="sigmoid")(c))


def sequences():
    return keras.Sequential(
        [
            keras.Input((6, 3)),
            *(layers.Conv1D(5, 3, padding="same"), layers.AveragePooling1D(2), layers.LSTM(4, return_sequences=True)),
            *(layers.SimpleRNN(3, return_sequences=True), layers.GRU(4), layers.Dense(2)),
        ]
    )


def words():
    means = layers.Embedding(11, 4), layers.LSTM(5, return_sequences=True), layers.GlobalAveragePooling1D()
    return keras.Sequential([keras.Input((5,), dtype="int32"), *means, layers.Dense(3)])


def main():
    FOLDER.mkdir(exist_ok=True)
    keras.utils.set_random_seed(0)
    rng, results = np.random.default_rng(0), {}
    for make in (chain, images, branches, sequences, words):
        name, model = make.__name__, make()
        model.set_weights([rng.uniform(0.2, 1.0, w.shape) * rng.choice([1, 1, -1], 1) for w in model.get_weights()])
        for layer in model.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.set_weights([np.abs(weight) for weight in layer.get_weights()])
        shape = (3, *model.input_shape[1:])
        x = rng.integers(0, 11, shape) if name == "words" else rng.standard_normal(shape).astype(np.float32)
        results |= {f"{name}/x": x, f"{name}/y": np.asarray(model.predict(x, verbose=0))}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save(FOLDER / f"{name}.keras")
            model.save(FOLDER / f"{name}.h5")
    np.savez_compressed(FOLDER / "results.npz", **results)


if __name__ == "__main__":
    main()
