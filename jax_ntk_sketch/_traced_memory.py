"""The memory of a function that is given, from a trace of its operations."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def traced_bytes(function: Callable[..., Any], *shapes: Any) -> int:
    """Return the most bytes that a function's values take at once, arguments included.

    Arguments are pytrees of arrays or shapes. The bytes are those of operations that
    run one by one. Compilers fuse some and change the order of others: they took
    between a half and twice as much. The result is 0 if the function cannot be traced.

    >>> import jax
    >>> from jax_ntk_sketch._traced_memory import traced_bytes
    >>> x = jax.ShapeDtypeStruct((10, 3), "float32")
    >>> traced_bytes(lambda x: (x @ x.T + 1).sum(), x)  # two matrices (10, 10), and x
    920
    """
    try:
        return _peak(jax.make_jaxpr(function)(*shapes).jaxpr)
    except (TypeError, ValueError, NotImplementedError):
        return 0


def _peak(jaxpr: core.Jaxpr) -> int:
    last = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in _variables(eqn.invars)}
    last |= dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns))
    given = {*jaxpr.invars, *jaxpr.constvars}
    peak = live = _size(given)
    for i, eqn in enumerate(jaxpr.eqns):
        read, made = {*_variables(eqn.invars)}, {*_variables(eqn.outvars)}
        live += _size(made)
        # A function that is called has its arguments and results in common with this.
        inner = max((_peak(sub) for sub in _called(eqn)), default=0)
        peak = max(peak, live + max(0, inner - _size(read | made)))
        live -= _size({v for v in (read | made) - given if last.get(v, i) == i})
    return peak


def _called(eqn: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """Yield the functions that an operation calls, such as the body of a loop."""
    for leaf in jax.tree.leaves(list(eqn.params.values())):
        if isinstance(leaf, core.ClosedJaxpr):
            yield leaf.jaxpr
        elif isinstance(leaf, core.Jaxpr):
            yield leaf


def _variables(atoms: list[Any]) -> list[core.Var]:
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def _size(variables: set[core.Var]) -> int:
    arrays: list[Any] = [v.aval for v in variables]  # tokens have no dtype
    arrays = [a for a in arrays if hasattr(a, "dtype")]
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays)
