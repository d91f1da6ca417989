"""`Layer`, the base of all records; how records are composed; their text."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from jax_ntk_sketch._checks import (
    check_choice,
    check_integer,
    check_number,
    check_sizes,
    set_checked,
)

# A field as JSON has it: nested lists and dictionaries of numbers and strings.
_Data = Any

# Every type of record by its name in JSON, filled by `Layer.__init_subclass__`.
_RECORDS: dict[str, type["Layer"]] = {}

_PADDINGS = ("VALID", "SAME", "CIRCULAR")


@dataclasses.dataclass(frozen=True)
class Layer:
    """The base of all records of layers.

    A subclass is a frozen dataclass whose fields are the arguments of the layer. Fields
    with a default are keyword arguments, and `repr` leaves them out if they have it.

    The name of a record in `repr` and in JSON is that of its class. A class outside of
    this package has its module in front, so that it cannot replace one of ours.

    >>> from jax_ntk_sketch import stax
    >>> isinstance(stax.Dense(8), stax.Layer)
    True
    """

    def __init_subclass__(cls) -> None:
        _RECORDS[_json_name(cls)] = cls

    def __repr__(self) -> str:
        arguments = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING:
                arguments.append(_text(value))
            elif isinstance(value, jax.Array) or value != field.default:
                arguments.append(f"{field.name}={_text(value)}")
        prefix = "stax." if _is_ours(type(self)) else ""
        return f"{prefix}{_json_name(type(self))}({', '.join(arguments)})"

    def __iter__(self) -> Iterator[Any]:
        # Neural Tangents' layers are triples that users unpack.
        raise TypeError(
            f"stax.{type(self).__name__}: a record is not the triple of Neural "
            "Tangents and cannot be unpacked; use init_fn, apply_fn, kernel_fn = "
            "jax_ntk_sketch.interop.neural_tangents.to_stax(net)"
        )


def _is_ours(record: type[Layer]) -> bool:
    return record.__module__.startswith(__name__.rpartition(".")[0] + ".")


def _json_name(record: type[Layer]) -> str:
    name = record.__qualname__
    return name if _is_ours(record) else f"{record.__module__}.{name}"


@dataclasses.dataclass(frozen=True, repr=False)
class Serial(Layer):
    """Layers that are applied one after the other; `serial(*layers)` makes one.

    Args:
      layers: the layers in order of application.

    Raises:
      TypeError: one of the layers is not a record.

    >>> from jax_ntk_sketch import stax
    >>> stax.Serial((stax.Dense(8), stax.Relu()))
    stax.serial(stax.Dense(8), stax.Relu())
    """

    layers: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        set_field(self, "layers", check_layers("serial", self.layers))

    def __repr__(self) -> str:
        return f"stax.serial({', '.join(map(repr, self.layers))})"


def serial(*layers: Layer) -> Serial:
    """Return the network that applies layers one after the other.

    Args:
      *layers: records of this module, `serial` ones included. Each one takes the shape
        that the layer before it returns.

    Returns:
      A `Serial` record. Without layers it is the identity.

    Raises:
      TypeError: an argument is not a record.

    >>> from jax_ntk_sketch import stax
    >>> stax.serial(stax.Dense(512, W_std=1.4), stax.Relu(), stax.Dense(1))
    stax.serial(stax.Dense(512, W_std=1.4), stax.Relu(), stax.Dense(1))
    """
    return Serial(layers)


def walk(net: Layer, *, into_branches: bool = False) -> Iterator[Layer]:
    """Yield the records of `net` in order of application, those of `serial` one by one.

    Args:
      net: the network.
      into_branches: whether to yield the records of `parallel` as well, branch by
        branch; otherwise a `Parallel` is one record.

    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(9), stax.serial(stax.Relu(), stax.Dense(1)))
    >>> [type(layer).__name__ for layer in stax.walk(net)]
    ['Dense', 'Relu', 'Dense']
    """
    if hasattr(net, "layers") and (into_branches or isinstance(net, Serial)):
        for layer in net.layers:
            yield from walk(layer, into_branches=into_branches)
    else:
        yield net


def to_json(net: Layer) -> str:
    """Return the JSON text of a network, which `from_json` reads.

    Args:
      net: a record without functions, such as those of `Elementwise`.

    Returns:
      An object with the name of the record as "layer", and its arguments.

    Raises:
      TypeError: `net` is not a record, or has a Python function.

    >>> from jax_ntk_sketch import stax
    >>> stax.to_json(stax.serial(stax.LeakyRelu(0.1), stax.Identity()))
    '{"layer": "Serial", "layers": [{"layer": "LeakyRelu", "alpha": 0.1, ...}, ...]}'
    """
    if not isinstance(net, Layer):
        raise TypeError(f"to_json: net must be a layer record, got {net!r}")
    return json.dumps(_to_data(net))


def from_json(text: str) -> Layer:
    """Return the network that `to_json` wrote, an equal record.

    Args:
      text: JSON. Records of other packages can be read once their module is imported.

    Raises:
      ValueError: the text is not JSON or not a record, or it names an unknown layer or
        argument.

    >>> from jax_ntk_sketch import stax
    >>> stax.from_json('{"layer": "LeakyRelu", "alpha": 0.1}')
    stax.LeakyRelu(0.1)
    """
    net = _from_data(json.loads(text))
    if not isinstance(net, Layer):
        raise ValueError(f"from_json: text must be a layer record, got {text!r}")
    return net


def _text(value: object) -> str:
    """Return `repr`; of a function its name, since addresses differ in every run."""
    if not callable(value) or isinstance(value, Layer):
        return repr(value)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    return f"{value.__module__}.{name}" if name else repr(value)


def _to_data(value: object) -> _Data:
    if isinstance(value, Layer):
        fields = {
            f.name: _to_data(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
        return {"layer": _json_name(type(value)), **fields}
    if isinstance(value, tuple):
        return [_to_data(item) for item in value]
    if callable(value):
        raise TypeError(
            f"to_json: net must not have Python functions, got {value!r}; use a named "
            "activation, or keep the code that makes this network"
        )
    return value


def _from_data(data: _Data) -> _Data:
    if isinstance(data, list):
        return tuple(_from_data(item) for item in data)
    if not isinstance(data, dict):
        return data
    fields = {name: _from_data(value) for name, value in data.items()}
    name = fields.pop("layer", None)
    if name not in _RECORDS:
        known = (name for name in sorted(_RECORDS) if not name.startswith("_"))
        raise ValueError(
            f"from_json: unknown layer {name!r}; known layers are {', '.join(known)}"
        )
    record = _RECORDS[name]
    unknown = fields.keys() - {field.name for field in dataclasses.fields(record)}
    if unknown:
        raise ValueError(f"from_json: {name} has no argument {sorted(unknown)[0]!r}")
    try:
        return record(**fields)
    except TypeError as error:
        raise ValueError(f"from_json: bad arguments of {name}: {error}") from error


# Checks of the fields that several layers have


def set_field(record: Layer, name: str, value: object) -> None:
    """Store a value in a frozen record, in its `__post_init__`."""
    object.__setattr__(record, name, value)


def check_layers(owner: str, layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """Return the layers as a tuple of records."""
    layers = tuple(layers)
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(
                f"{owner}: argument {i} must be a layer record of "
                f"jax_ntk_sketch.stax, got {type(layer).__name__}; layers of "
                "neural_tangents.stax are closures that cannot be read, so describe "
                "the network with jax_ntk_sketch.stax and get theirs from "
                "jax_ntk_sketch.interop.neural_tangents.to_stax"
            )
    return layers


def check_callable(owner: str, name: str, value: Callable) -> Callable:
    """Return `value`, which must be a function."""
    if not callable(value):
        raise TypeError(f"{owner}: {name} must be a function, got {value!r}")
    return value


def check_axis(owner: str, name: str, value: object) -> int:
    """Return an axis that is counted with the batch axis and is not the batch axis."""
    number = check_integer(owner, name, value)
    if number == 0:
        raise ValueError(f"{owner}: {name} must not be 0, the batch axis")
    return number


def check_batch_axes(record: Layer, *names: str) -> None:
    """Check fields that are the axis of the batch, which must be 0."""
    for name in names:
        axis = getattr(record, name)
        if isinstance(axis, bool) or axis != 0:
            raise ValueError(
                f"{type(record).__name__}: {name} must be 0, got {axis!r}; examples "
                "lie along the first axis"
            )


def set_axes(record: Layer) -> None:
    """Check `channel_axis`, and `batch_axis`, which must be 0."""
    check_batch_axes(record, "batch_axis")
    set_checked(record, check_axis, "channel_axis")


def set_window(record: Layer, shape: str, *others: str) -> None:
    """Check the fields of a window, which have a size for each spatial axis.

    Args:
      record: has these fields, and `padding`.
      shape: the field with the shape of the window.
      *others: fields with as many sizes, such as "strides", or None.
    """
    owner = type(record).__name__
    # A window over no axes is that of flat examples.
    set_checked(record, check_sizes, shape, *others, may_be_empty=True)
    rank = len(getattr(record, shape))
    for name in others:
        value = getattr(record, name)
        if value is not None and len(value) != rank:
            raise ValueError(
                f"{owner}: {name} must have {rank} entries as {shape} has, got "
                f"{value!r}"
            )
    set_checked(record, check_choice, "padding", choices=_PADDINGS)


def set_weights(record: Any) -> None:
    """Check `W_std`, `b_std`, `parameterization` and `s` of a layer with weights."""
    owner = type(record).__name__
    set_checked(record, check_number, "W_std", "b_std", least=0)
    kind = record.parameterization
    kind = kind.lower() if isinstance(kind, str) else kind
    check_choice(owner, "parameterization", kind, ("ntk", "standard"))
    set_field(record, "parameterization", kind)
    set_checked(record, check_sizes, "s")
    if len(record.s) != 2:
        raise ValueError(f"{owner}: s must be a pair of integers, got {record.s!r}")
