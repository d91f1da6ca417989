"""Neural Tangents: exact kernels and finite networks of our architectures.

`load` returns the `neural_tangents` package, and `to_stax` reads a network of
`jax_ntk_sketch.stax` as its `(init_fn, apply_fn, kernel_fn)`. The package is optional:
these two functions import it when they are called.
"""

import dataclasses
import functools
import importlib
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import jax
import jax.extend.core
import numpy as np
import scipy

from jax_ntk_sketch import stax
from jax_ntk_sketch._typing import ArrayLike, KernelFn, PyTree
from jax_ntk_sketch.interop import _import_hook
from jax_ntk_sketch.kernels.duals.activations import QUADRATURE_NODES
from jax_ntk_sketch.stax.scales import check_scales, with_scales

__all__ = ["load", "to_stax", "triple_rule"]

# `(init_fn, apply_fn, kernel_fn)`, as every layer of Neural Tangents is.
Triple: TypeAlias = tuple[Callable[..., PyTree], Callable[..., PyTree], KernelFn]

_PACKAGE = "neural_tangents"
_REQUIRED = (_PACKAGE, "frozendict", "typing_extensions")
_LOCK = threading.RLock()


def load() -> types.ModuleType:
    """Return the `neural_tangents` package (0.6.5), with every JAX that we support.

    As published it imports only with JAX < 0.6, TensorFlow and tf2jax. `load` runs the
    unmodified package and gives its modules, and no other, the names that JAX has moved
    since. JAX itself is not changed at any time. A `neural_tangents` that has been
    imported already is returned as it is. After the first call a plain
    `import neural_tangents` works too.

    The following does not work; all but the first fails with JAX 0.5.3 as well:

    * `neural_tangents.experimental` needs TensorFlow and is left out.
    * `empirical_ntk_fn` with `NtkImplementation.STRUCTURED_DERIVATIVES` or `AUTO`. The
      default `JACOBIAN_CONTRACTION` and `NTK_VECTOR_PRODUCTS` work.
    * `predict.gradient_descent_mse` of a kernel that `jit` or `vmap` traces. It works
      outside of them, and `gradient_descent_mse_ensemble` works within.

    Returns:
      The module: `stax`, `predict`, `batch`, `empirical_kernel_fn`, ...

    Raises:
      ImportError: Neural Tangents or one of its dependencies is not installed; the
        error message has the commands that install it.

    >>> import jax
    >>> from jax_ntk_sketch.interop import neural_tangents as jnt
    >>> nt = jnt.load()
    >>> init_fn, apply_fn, kernel_fn = nt.stax.Dense(1, W_std=2.0)
    >>> kernel_fn(jax.numpy.ones((2, 3)), None, "nngp").tolist()
    [[4.0, 4.0], [4.0, 4.0]]

    Source: Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in
    Python, arXiv 1912.02803.
    """
    with _LOCK:
        try:
            if _PACKAGE in sys.modules:
                return importlib.import_module(_PACKAGE)
            with _finder(), _all_or_nothing():
                return importlib.import_module(_PACKAGE)
        except ModuleNotFoundError as error:
            if error.name not in _REQUIRED:
                raise
            raise ImportError(
                f"Neural Tangents cannot be imported: {error.name} is not installed. "
                "Install it without TensorFlow, which is not needed here:\n"
                "  pip install frozendict typing_extensions\n"
                "  pip install --no-deps neural-tangents",
                name=error.name,
            ) from error


def to_stax(net: stax.Layer, *, scales: PyTree = None) -> Triple:
    """Return a network as a layer of `neural_tangents.stax`.

    Args:
      net: a record of `jax_ntk_sketch.stax`.
      scales: scalars in the places of all `W_std` and `b_std` of the network, as
        `fmap.scales()` has them, which may be traced. By default the numbers of `net`.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`. `init_fn(key, input_shape)` returns the shape of
      the output and the parameters of the finite network, and `apply_fn(params, x)` its
      outputs. `kernel_fn(x1, x2, get)` returns the exact kernel, (n1, n2), of the
      network of infinite width, where `get` is "nngp", "ntk" or a tuple of both.

    Raises:
      TypeError: `net` is not a record, or a record without an implementation.
      ValueError: Neural Tangents does not have this layer; `scales` have another
        structure.
      ImportError: Neural Tangents is not installed.

    >>> import jax
    >>> from jax_ntk_sketch import stax
    >>> from jax_ntk_sketch.interop import neural_tangents as jnt
    >>> net = stax.serial(stax.Dense(512, W_std=2.0), stax.Relu(), stax.Dense(1))
    >>> init_fn, apply_fn, kernel_fn = jnt.to_stax(net)
    >>> kernel_fn(jax.numpy.ones((1, 3)), None, ("nngp", "ntk"))
    AnalyticKernel(nngp=Array([[2.]], dtype=float32), ntk=Array([[4.]], dtype=float32))
    """
    if scales is not None:
        check_scales("to_stax", net, scales)
        net = with_scales(net, scales)
    return triple_rule(net)


@functools.singledispatch
def triple_rule(net: stax.Layer) -> Triple:
    """Return the triple of one layer; each type of record has an implementation.

    `@triple_rule.register` adds one.

    Raises:
      TypeError: `net` is not a record, or a record without an implementation.
    """
    known = ", ".join(sorted(record.__name__ for record in triple_rule.registry))
    raise TypeError(
        f"to_stax: net must be made of records of jax_ntk_sketch.stax that have a "
        f"rule ({known}), got {type(net).__name__}; give a record a rule with "
        "@triple_rule.register"
    )


def namesake_triple(
    net: stax.Layer, leave_out: Sequence[str] = (), **replaced: Any
) -> Triple:
    """Return the layer with the name of a record, given its fields by keyword."""
    arguments = {f.name: getattr(net, f.name) for f in dataclasses.fields(net)}
    for name in leave_out:
        del arguments[name]
    return getattr(load().stax, type(net).__name__)(**arguments | replaced)


for _record in (
    *(stax.Activation, stax.Dense, stax.ConvLocal, stax.ConvTranspose, stax.LayerNorm),
    *(stax.AvgPool, stax.SumPool, stax.GlobalAvgPool, stax.GlobalSumPool),
    *(stax.Dropout, stax.Flatten, stax.GlobalSelfAttention, stax.Identity),
    *(stax.FanInConcat, stax.FanInProd, stax.FanInSum, stax.FanOut),
):
    triple_rule.register(_record, namesake_triple)


@triple_rule.register
def elementwise_triple(net: stax.Elementwise) -> Triple:
    if net.nngp_fn is None:  # Neural Tangents' Elementwise has no kernel then
        return load().stax.ElementwiseNumerical(net.fn, QUADRATURE_NODES)
    return namesake_triple(net)


@triple_rule.register
def serial_triple(net: stax.Serial) -> Triple:
    # Neural Tangents has no empty `serial`.
    return load().stax.serial(*map(triple_rule, net.layers or (stax.Identity(),)))


@triple_rule.register
def parallel_triple(net: stax.Parallel) -> Triple:
    return load().stax.parallel(*map(triple_rule, net.layers))


@triple_rule.register
def conv_triple(net: stax.Conv) -> Triple:
    if any(step != 1 for step in net.dilation or ()):
        raise ValueError(
            "to_stax: dilation must be 1, because Neural Tangents has no dilated "
            f'convolution, got {net!r}; use its features, for example method="exact"'
        )
    return namesake_triple(net, leave_out=["dilation"])


@triple_rule.register
def aggregate_triple(net: stax.Aggregate) -> Triple:
    return _with_axes_in_order(namesake_triple(net, leave_out=["signed", "to_dense"]))


@triple_rule.register
def image_resize_triple(net: stax.ImageResize) -> Triple:
    if net.method not in ("nearest", "linear"):
        raise ValueError(
            'to_stax: method must be "nearest" or "linear", of which Neural Tangents '
            f'has kernels, got {net!r}; use its features, for example method="exact"'
        )
    precision = jax.lax.Precision[net.precision.upper()]
    return _with_axes_in_order(namesake_triple(net, precision=precision))


@triple_rule.register
def index_triple(net: stax.Index) -> Triple:
    return namesake_triple(net, idx=net.slices)


@triple_rule.register
def dot_general_triple(net: stax.DotGeneral) -> Triple:
    if net.lhs is None and net.rhs is None:  # Neural Tangents 0.6.5 fails here
        return load().stax.Identity()
    return namesake_triple(
        net,
        lhs=None if net.lhs is None else np.asarray(net.lhs),
        rhs=None if net.rhs is None else np.asarray(net.rhs),
        precision=net.precision and jax.lax.Precision[net.precision.upper()],
    )


def _with_axes_in_order(layer: Triple) -> Triple:
    """Return the layer, with the spatial axes of kernels in order when they reach it.

    After an odd number of convolutions the kernels of Neural Tangents have them in
    reverse. Its layers that take sizes or indices by axis, as of 0.6.5, do not expect
    that.
    """
    init_fn, apply_fn, kernel_fn = layer

    @functools.wraps(kernel_fn)  # copies its attributes, which state its requirements
    def ordered(k: PyTree, *args: Any, **kwargs: Any) -> PyTree:
        if getattr(k, "is_reversed", False):
            k = k.reverse()
        return kernel_fn(k, *args, **kwargs)

    return init_fn, apply_fn, ordered


@contextmanager
def _finder() -> Iterator[None]:
    """Import modules of Neural Tangents with views, in the `with` block."""
    views = _import_hook.make_views(_moved_names())
    # `predict.max_learning_rate` reads it.
    views["scipy.linalg"].eigvalsh = _eigvalsh  # type: ignore[attr-defined]
    reason = "jax_ntk_sketch leaves out this module, which needs TensorFlow"
    finder = _import_hook.Finder(_PACKAGE, views, {f"{_PACKAGE}.experimental": reason})
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _moved_names() -> dict[str, dict[str, Any]]:
    """Return the names that Neural Tangents 0.6.5 reads and JAX may have moved."""
    core = jax.extend.core
    moved = ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")
    return {
        "jax.core": {name: getattr(core, name) for name in moved},
        # JAX does not use it since 0.4.24. Neural Tangents gives it a rule that is
        # never looked up.
        "jax.interpreters.ad": {"zeros_like_p": core.Primitive("zeros_like")},
        "jax.util": {"safe_map": _safe_map, "safe_zip": _safe_zip},
        "scipy.linalg": {},
    }


def _safe_map(function: Callable[..., PyTree], *sequences: Sequence) -> list:
    return [function(*items) for items in zip(*sequences, strict=True)]


def _safe_zip(*sequences: Sequence) -> list[tuple]:
    return list(zip(*sequences, strict=True))


def _eigvalsh(a: ArrayLike, *, eigvals: tuple[int, int], **kwargs: Any) -> np.ndarray:
    """Call `scipy.linalg.eigvalsh` with the keyword that SciPy 1.14 renamed."""
    return scipy.linalg.eigvalsh(a, subset_by_index=eigvals, **kwargs)


@contextmanager
def _all_or_nothing() -> Iterator[None]:
    """Start without modules of Neural Tangents, and leave none if the block fails.

    A plain `import neural_tangents` that failed has left some of them.
    """
    found = _pop_modules()
    try:
        yield
    except BaseException:
        _pop_modules()
        sys.modules.update(found)
        raise


def _pop_modules() -> dict[str, types.ModuleType]:
    """Remove the modules of Neural Tangents from `sys.modules` and return them."""
    names = [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]
    return {name: sys.modules.pop(name) for name in names}
