"""The network that a stored description names, built with nbprop."""

import nbprop


def _layer(description, path_of):
    kind = description["type"]
    if kind == "dense":
        share = None
        if "tied_to" in description:
            share = path_of(description["tied_to"]) + (".weight" if description["tied"] == ["weight"] else "")
        return nbprop.dense(description["units"], description.get("activation"), share=share)
    if kind == "activation":
        return nbprop.activation(description["activation"])
    if kind == "flatten":
        return nbprop.flatten()
    if kind == "residual":
        return nbprop.residual(*(_layer(inner, path_of) for inner in description["layers"]))
    if kind == "concat":
        return nbprop.concat(*([_layer(inner, path_of) for inner in branch] for branch in description["branches"]))
    if kind in ("bidirectional", "weight_norm", "spectral_norm"):
        return getattr(nbprop, kind)(_layer(description["layer"], path_of))
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in description.items()}
    return getattr(nbprop, options.pop("type"))(**options)


def network(description):
    """The network of a description in the format of tests/reference/README.md."""
    layers = description["layers"]

    def path_of(index):
        """The owner of a dense layer's weight: a layer tied to a tied one is tied to that one's owner."""
        return path_of(layers[index]["tied_to"]) if "tied_to" in layers[index] else f"{index}.dense"

    return nbprop.network(tuple(description["input_shape"]), *(_layer(item, path_of) for item in layers))
