"""Method "auto": the rule that chooses a method."""

import functools

from jax_ntk_sketch.methods import Auto, Method, VarianceReduced


@functools.singledispatch
def resolve_method(method: Method) -> Method:
    """Return the method that is used: the method that "auto" stands for, or `method`.

    It never depends on data, so that `plan` and `init` agree.
    """
    return method


@resolve_method.register
def resolve_auto(method: Auto) -> Method:
    """Return our method, which needs no data."""
    return VarianceReduced()
