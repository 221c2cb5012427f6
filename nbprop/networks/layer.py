"""What a layer is: a description of it, its parameters, and how it is written to and read from JSON."""

import dataclasses
import importlib
import math
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from nbprop.validation import choose, shown

REGISTRY: dict[str, type["Layer"]] = {}

# What an initial weight can be drawn from: (spread, distribution); see initializers.py for the formulas.
INITIALIZERS = {
    "glorot_uniform": ("average", "uniform"),
    "glorot_normal": ("average", "normal"),
    "he_uniform": ("he", "uniform"),
    "he_normal": ("he", "normal"),
    "lecun_uniform": ("in", "uniform"),
    "lecun_normal": ("in", "normal"),
    "orthogonal": ("", "orthogonal"),
    "zeros": ("", "zeros"),
    "ones": ("", "ones"),
    "normal": ("", "normal"),
    "small_normal": ("small", "normal"),
}


@dataclass(frozen=True)
class Parameter:
    """One named array of a layer. `init` names an initializer, whose fans are those of the weight, or is a number.

    Several names, one for each of as many equal blocks of the last axis: blocks are drawn one by one, each with its own
    fans (the gates of a recurrent layer). `trained` is False for numbers that training leaves as they are; the layer
    then gives them a gradient of 0.
    """

    name: str
    shape: tuple[int, ...]
    init: str | float | tuple[str, ...]
    trained: bool = True

    @property
    def size(self):
        return math.prod(self.shape)


def check_fields(described):
    """Check the fields of a frozen dataclass by its class's `checks`, {name: check}, and keep what they return."""
    for name, check in described.checks.items():
        value = check(f"{described.kind}: {name}", getattr(described, name))
        object.__setattr__(described, name, value)


class Layer:
    """A layer's description: a frozen dataclass whose fields are its constructor's arguments.

    Subclasses give `kind` (the name in the registry, in views and in JSON), `output_shape(input_shape)`,
    `parameters(input_shape)`, and `lower(build, x, parameters)`, which emits its ops (see lowering/programs.py).
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # of subclasses, which are dataclasses
    kind = ""
    checks: ClassVar[dict[str, Any]] = {}  # of fields by their names (see validation.py)
    tangents = False  # whether `lower` emits tangents where the builder asks for them: hvp, jvp
    # Whether `lower` leaves each sample's gradients apart where build.stride is above 0: bool, or a property.
    sample_gradients: Any = False
    modal = False  # whether `lower` heeds build.mode: training and inference differ (dropout, batch statistics)
    # Above 0: its x holds integers below it, and it stands first in the network; int, or a property.
    index_limit: Any = 0
    takes_lengths = False  # whether its kernels heed the `lengths` of a call, over the first axis of the input
    c_source = ""  # of a user's own layer: its kernels in C, for export_c

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if cls.kind:
            REGISTRY[cls.kind] = cls

    def __post_init__(self):
        check_fields(self)

    def output_shape(self, input_shape):
        return input_shape

    def parameters(self, input_shape):
        """The layer's own parameters, in order."""
        return ()

    def shared(self, input_shape):
        """(path, parameter) of parameters that belong to an earlier layer."""
        return ()

    def children(self, input_shape):
        """(name, layer, its input shape) of the layers inside this one."""
        return ()

    def set_initial(self, own, parts):
        """Set initial values that depend on others'.

        own: the layer's own parameters by name; parts: those of the layers inside it by path; views.
        """

    def flops(self, input_shape):
        """Floating-point operations of the layer's own products, forward, one sample: multiply-adds count as 2."""
        return 0

    def to_config(self):
        """A dict that JSON can hold; `from_config` reads it."""
        config = {"kind": self.kind}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                config[field.name] = _plain(value)
        return config

    @classmethod
    def from_config(cls, config):
        return cls(**{name: _layers(value) for name, value in config.items() if name != "kind"})


def _plain(value):
    if isinstance(value, Layer):
        return value.to_config()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _layers(value):
    if isinstance(value, dict) and "kind" in value:
        return layer_from_config(value)
    if isinstance(value, list):
        return tuple(_layers(item) for item in value)
    return value


def layer_from_config(config):
    if not isinstance(config, dict) or "kind" not in config:
        raise ValueError(f"a layer's JSON must be an object with a kind, got {shown(config)}")
    if "nbprop.layers" not in sys.modules:
        importlib.import_module("nbprop.layers")  # where the package's own enter the registry
    cls = choose("layer kind", config["kind"], REGISTRY)
    try:
        return cls.from_config(config)
    except TypeError as error:
        raise ValueError(f"{config['kind']}: its JSON does not fit: {error}") from None
