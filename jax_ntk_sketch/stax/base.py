"""What every record shares, how records are composed, and their text."""

import dataclasses
import json
import math
import operator
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["Layer", "Serial", "from_json", "serial", "to_json", "walk"]

# JSON spelling of every record, by class name; filled by Layer.__init_subclass__.
_RECORDS: dict[str, type["Layer"]] = {}


@dataclasses.dataclass(frozen=True)
class Layer:
    """Base of every record of the language.

    A subclass is a frozen dataclass whose fields are the layer's arguments, named
    as in `neural_tangents.stax`; fields that have defaults are keyword arguments
    and are left out of `repr` where they keep them.
    """

    def __init_subclass__(cls) -> None:
        _RECORDS[cls.__name__] = cls

    def __repr__(self) -> str:
        arguments = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING:
                arguments.append(_text(value))
            elif value != field.default:
                arguments.append(f"{field.name}={_text(value)}")
        return f"stax.{type(self).__name__}({', '.join(arguments)})"


@dataclasses.dataclass(frozen=True, repr=False)
class Serial(Layer):
    """Layers applied one after the other; written `serial(*layers)`."""

    layers: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        set_field(self, "layers", check_layers("serial", self.layers))

    def __repr__(self) -> str:
        return f"stax.serial({', '.join(map(repr, self.layers))})"


def check_layers(name: str, layers: Iterable[Any]) -> tuple[Layer, ...]:
    layers = tuple(layers)
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(
                f"{name}: argument {i} must be a layer record of "
                f"jax_ntk_sketch.stax, got {type(layer).__name__}. (Layers of "
                "neural_tangents.stax are closures that cannot be read; "
                "describe the network with jax_ntk_sketch.stax and get "
                "theirs from jax_ntk_sketch.interop.neural_tangents.to_stax.)"
            )
    return layers


def serial(*layers: Layer) -> Serial:
    """Composes layers in order of application, as `neural_tangents.stax.serial`.

    Args:
      *layers: records of this module, `serial` ones included.

    Returns:
      A `Serial` record.

    Raises:
      TypeError: an argument is not a layer record.
    """
    return Serial(layers)


def walk(net: Layer, *, into_branches: bool = False) -> Iterator[Layer]:
    """Yield the records of `net` in order of application, with `serial` opened.

    Args:
      net: the network.
      into_branches: whether to open `parallel` as well, branch by branch; otherwise a
        `Parallel` is one record.

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
    """The JSON text of a network; `from_json` reads it back to an equal record.

    >>> from jax_ntk_sketch.stax import Abs, LeakyRelu, serial
    >>> to_json(serial(LeakyRelu(0.1), Abs()))
    '{"layer": "Serial", "layers": [{"layer": "LeakyRelu", "alpha": 0.1, ...}, ...]}'
    """
    if not isinstance(net, Layer):
        raise TypeError(f"to_json: net must be a layer record, got {net!r}")
    return json.dumps(_to_data(net))


def from_json(text: str) -> Layer:
    """Reads a network from the text that `to_json` wrote.

    Raises:
      ValueError: the text is not JSON, or names an unknown layer or argument.
    """
    return _from_data(json.loads(text))


def _text(value: Any) -> str:
    """`repr`, of functions by their names: addresses differ from run to run."""
    if not callable(value) or isinstance(value, Layer):
        return repr(value)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    return f"{value.__module__}.{name}" if name else repr(value)


def _to_data(value: Any) -> Any:
    if isinstance(value, Layer):
        fields = {
            f.name: _to_data(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
        return {"layer": type(value).__name__, **fields}
    if isinstance(value, tuple):
        return [_to_data(item) for item in value]
    if callable(value):
        raise TypeError(
            f"to_json: a Python function cannot be written as text, got {value!r}; "
            "keep the code that makes this network, or use a named activation"
        )
    return value


def _from_data(data: Any) -> Any:
    if isinstance(data, list):
        return tuple(_from_data(item) for item in data)
    if not isinstance(data, dict):
        return data
    fields = {name: _from_data(value) for name, value in data.items()}
    name = fields.pop("layer", None)
    if name not in _RECORDS:
        raise ValueError(
            f"from_json: unknown layer {name!r}; known: {', '.join(sorted(_RECORDS))}"
        )
    record = _RECORDS[name]
    unknown = fields.keys() - {field.name for field in dataclasses.fields(record)}
    if unknown:
        raise ValueError(f"from_json: {name} has no argument {sorted(unknown)[0]!r}")
    try:
        return record(**fields)
    except TypeError as error:
        raise ValueError(f"from_json: bad arguments of {name}: {error}") from error


def set_field(record: Layer, name: str, value: Any) -> None:
    object.__setattr__(record, name, value)


def positive_int(record: Layer, name: str, value: Any) -> int:
    where = f"{type(record).__name__}: {name}"
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{where} must be an integer, got {value!r}") from None
    if isinstance(value, bool) or number < 1:
        raise ValueError(f"{where} must be a positive integer, got {value!r}")
    return number


def scale(record: Layer, name: str, value: Any) -> float:
    where = f"{type(record).__name__}: {name}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{where} must be a number, got {value!r}") from None
    if isinstance(value, str | bool):
        raise TypeError(f"{where} must be a number, got {value!r}")
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{where} must be finite and >= 0, got {value!r}")
    return number


def set_parameterization(record: Any) -> None:
    """Checks `parameterization` and `s` of a layer with weights, and sets them."""
    name = type(record).__name__
    kind = record.parameterization
    if not isinstance(kind, str) or kind.lower() not in ("ntk", "standard"):
        raise ValueError(
            f'{name}: parameterization must be "ntk" or "standard", got {kind!r}'
        )
    set_field(record, "parameterization", kind.lower())
    s = record.s
    if isinstance(s, str) or not isinstance(s, Iterable) or len(tuple(s)) != 2:
        raise TypeError(f"{name}: s must be a pair of integers, got {s!r}")
    s = tuple(positive_int(record, "s", scaling) for scaling in s)
    set_field(record, "s", s)
    if kind.lower() == "ntk" and s != (1, 1):
        raise ValueError(
            f'{name}: s is for parameterization="standard", got s={s} with "ntk"'
        )
    if kind.lower() == "standard" and record.b_std == 0:
        raise ValueError(
            f'{name}: with parameterization="standard" b_std must be None or positive, '
            "got 0, biases that start at zero and are trained"
        )


def axis_number(record: Layer, name: str, value: Any) -> int:
    """The position of the channels, counted with the batch axis; not the batch axis."""
    where = f"{type(record).__name__}: {name}"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{where} must be one integer, got {value!r}")
    number = operator.index(value)
    if number == 0:
        raise ValueError(f"{where} must not be 0, the batch axis")
    return number


def set_axes(record: Any) -> None:
    """Checks `batch_axis` and `channel_axis`, and sets the latter."""
    if isinstance(record.batch_axis, bool) or record.batch_axis != 0:
        raise ValueError(
            f"{type(record).__name__}: batch_axis must be 0, examples come first "
            f"everywhere; got {record.batch_axis!r}"
        )
    axis = axis_number(record, "channel_axis", record.channel_axis)
    set_field(record, "channel_axis", axis)


def sizes(record: Layer, name: str, value: Any) -> tuple[int, ...]:
    """A tuple of positive integers, one for each spatial axis."""
    where = f"{type(record).__name__}: {name}"
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(
            f"{where} must be a sequence with an integer for each spatial axis, such "
            f"as (3, 3), got {value!r}"
        )
    numbers = tuple(positive_int(record, name, size) for size in value)
    if not numbers:
        raise ValueError(f"{where} must name at least one spatial axis, got {value!r}")
    return numbers


_PADDINGS = ("VALID", "SAME", "CIRCULAR")


def _set_axis(record: Any) -> None:
    value = axis_number(record, "channel_axis", record.channel_axis)
    set_field(record, "channel_axis", value)


def _set_window(record: Any, shape: str, *others: str) -> None:
    """Checks the window's fields, each with a size for every spatial axis."""
    owner = type(record).__name__
    set_field(record, shape, sizes(record, shape, getattr(record, shape)))
    rank = len(getattr(record, shape))
    for name in others:
        value = getattr(record, name)
        if value is None:
            continue
        set_field(record, name, sizes(record, name, value))
        if len(getattr(record, name)) != rank:
            raise ValueError(
                f"{owner}: {name} must have {rank} entries as {shape} has, got "
                f"{value!r}"
            )
    if record.padding not in _PADDINGS:
        raise ValueError(
            f"{owner}: padding must be one of {', '.join(map(repr, _PADDINGS))}, got "
            f"{record.padding!r}"
        )
