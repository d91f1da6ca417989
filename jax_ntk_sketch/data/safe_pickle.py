"""Reads the data in a pickle without running it.

A pickle is a program for a small stack machine, whose opcodes GLOBAL and REDUCE
import and call anything. Here is that machine without them: plain values, lists,
tuples and dicts are built, and the few calls of which a NumPy array consists are
recognised by name and carried out by our own code. Nothing is ever imported or
called by name, so that there is no list of permitted callables to abuse, as there
would be with `pickle.Unpickler.find_class`.
"""

import dataclasses
import math
import pickletools
import re
from typing import Any

import numpy as np

__all__ = ["read_pickle"]

_RECONSTRUCT = (
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",
)
_KNOWN = (*_RECONSTRUCT, "numpy ndarray", "numpy dtype", "_codecs encode")
# Opcodes whose argument, as `pickletools` decodes it, is the value.
_VALUES = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
)
_EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


@dataclasses.dataclass(frozen=True)
class _Name:
    """What GLOBAL would import: a name, and never more than that."""

    name: str


@dataclasses.dataclass(eq=False)
class _Array:
    """A NumPy array or dtype under construction; BUILD gives it its value."""

    kind: str
    code: str = ""
    value: Any = None


def read_pickle(raw: bytes, where: str) -> dict[str, Any]:
    """The dict in a pickle of protocol 2 to 4, without running anything.

    Python 2's strings come out as bytes. Arrays hold integers or floats; all other
    objects are refused.

    Args:
      raw: the pickle.
      where: what an error calls it.

    Returns:
      The dict, its keys as text.

    Raises:
      ValueError: truncated or damaged; it asks for an object other than a numeric
        array, which is named; its value is not a dict.

    >>> import pickle
    >>> raw = pickle.dumps({b"data": np.eye(2), b"labels": [3, 1]}, protocol=2)
    >>> read_pickle(raw, "example")
    {'data': array([[1., 0.],
           [0., 1.]]), 'labels': [3, 1]}
    """
    try:
        value = _run(raw)
    except _Refused as error:
        raise ValueError(
            f"{where}: {error}; only numbers, text, lists, dicts and numeric arrays "
            "are read, and nothing in a pickle is ever run"
        ) from None
    # What our machine and pickletools meet in a program that makes no sense.
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{where}: not a pickle of protocol 2 to 4, or damaged or truncated: "
            f"{error}"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: the pickle holds a {type(value).__name__}, expected a dict"
        )
    return {
        key.decode("latin-1") if isinstance(key, bytes) else key: (
            item.value if isinstance(item, _Array) else item
        )
        for key, item in value.items()
    }


class _Refused(Exception):
    """The pickle asks for something that data do not need."""


def _run(raw: bytes) -> Any:
    """The value that a pickle program leaves on its stack."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    argument: Any
    for opcode, argument, position in pickletools.genops(raw):
        op = opcode.name
        if op in _VALUES:
            stack.append(argument)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op in _EMPTY:
            stack.append(_EMPTY[op]())
        elif op in ("SHORT_BINSTRING", "BINSTRING"):  # Python 2's str
            stack.append(argument.encode("latin-1"))
        elif op == "MARK":
            marks.append(len(stack))
        elif op in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif op == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif op in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif op == "TUPLE":
            stack.append(tuple(since_mark()))
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(op[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif op == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif op == "APPENDS":
            items = since_mark()
            stack[-1].extend(items)
        elif op == "SETITEM":
            items = [stack.pop(-2), stack.pop()]
            _update(stack[-1], items)
        elif op == "SETITEMS":
            items = since_mark()
            _update(stack[-1], items)
        elif op == "GLOBAL":
            stack.append(_named(argument))
        elif op == "STACK_GLOBAL":
            module, name = stack.pop(-2), stack.pop()
            stack.append(_named(f"{module} {name}"))
        elif op == "REDUCE":
            function, arguments = stack.pop(-2), stack.pop()
            stack.append(_call(function, arguments))
        elif op == "BUILD":
            state = stack.pop()
            _build(stack[-1], state)
        elif op == "STOP":
            return stack.pop()
        elif op not in ("PROTO", "FRAME"):
            raise _Refused(f"the pickle uses opcode {op} (byte {position})")
    raise ValueError("no STOP")


def _update(target: dict, items: list[Any]) -> None:
    """Puts keys and values in turn into a dict."""
    # Text only: the hash of nested tuples can take exponentially long.
    if not all(isinstance(key, str | bytes) for key in items[::2]):
        raise _Refused("the pickle holds a dict whose keys are not text")
    target.update(zip(items[::2], items[1::2], strict=True))


def _named(name: str) -> _Name:
    if name not in _KNOWN:
        raise _Refused(f"the pickle asks for {name.replace(' ', '.', 1)!r}")
    return _Name(name)


def _call(function: Any, arguments: Any) -> Any:
    """What a call of one of the known functions would return, by our own code."""
    name = function.name if isinstance(function, _Name) else None
    if name in _RECONSTRUCT and arguments[0] == _Name("numpy ndarray"):
        return _Array("array")
    if name == "numpy dtype":
        code = arguments[0]
        code = code.decode("latin-1") if isinstance(code, bytes) else code
        if not (isinstance(code, str) and re.fullmatch("[iu][1248]|f[248]", code)):
            shown = repr(code) if isinstance(code, str) else type(code).__name__
            raise _Refused(f"the pickle holds an array of dtype {shown:.80}")
        return _Array("dtype", code)
    # How Python 3 spells bytes for protocol 2.
    if name == "_codecs encode" and arguments[1] in ("latin1", "latin-1"):
        return arguments[0].encode("latin-1")
    # Not the arguments: the text of nested ones can be exponentially long.
    name = name.replace(" ", ".") if name else type(function).__name__
    raise _Refused(f"the pickle calls {name} as no array does")


def _build(target: Any, state: Any) -> None:
    """Gives a dtype its byte order, an array its shape and entries."""
    if not isinstance(target, _Array) or not isinstance(state, tuple):
        raise _Refused(f"the pickle sets the state of a {type(target).__name__}")
    if target.kind == "dtype":
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        if order not in tuple("<>|=") or any(part is not None for part in state[2:5]):
            raise _Refused("the pickle holds an array of structured dtype")
        target.value = np.dtype(order + target.code)
        return
    _, shape, dtype, fortran, entries = state
    dtype = dtype.value if isinstance(dtype, _Array) else None
    if not isinstance(dtype, np.dtype) or not isinstance(entries, bytes):
        raise _Refused("the pickle holds an array whose entries are not plain numbers")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("an array's shape is not one of sizes")
    if math.prod(shape) * dtype.itemsize != len(entries):
        raise ValueError(f"{len(entries)} bytes for an array {shape} of {dtype}")
    array = np.frombuffer(entries, dtype)
    array = array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
    target.value = array.astype(dtype.newbyteorder("="))
