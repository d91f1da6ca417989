"""Neural Tangents: exact kernels and finite networks of our architectures.

`load` gives the `neural_tangents` package itself, `to_stax` reads a network of
`jax_ntk_sketch.stax` as its `(init_fn, apply_fn, kernel_fn)`. The package is
optional: it is imported by these two functions when they are called.
"""

import dataclasses
import functools
import importlib
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.extend.core
import numpy as np
import scipy

from jax_ntk_sketch import stax
from jax_ntk_sketch.interop import _import_hook
from jax_ntk_sketch.kernels.duals.activations import QUADRATURE_NODES

__all__ = ["load", "to_stax"]

_PACKAGE = "neural_tangents"
_REQUIRED = (_PACKAGE, "frozendict", "typing_extensions")
_LOCK = threading.RLock()


def load() -> types.ModuleType:
    """The `neural_tangents` package (0.6.5), on every JAX that we support.

    As published it imports only with JAX < 0.6, TensorFlow and tf2jax. `load`
    runs the unmodified package and gives its modules, and nobody else, the names
    that JAX has moved since; JAX itself is not changed, not even for a moment. A
    `neural_tangents` that has been imported already is returned as it is. The
    first call takes a fraction of a second, later ones microseconds; after it a
    plain `import neural_tangents` works too.

    What does not work (all but the first fail on JAX 0.5.3 in the same way):

    * `neural_tangents.experimental`, which needs TensorFlow, is left out.
    * `empirical_ntk_fn` with `NtkImplementation.STRUCTURED_DERIVATIVES` or `AUTO`;
      `JACOBIAN_CONTRACTION`, the default, and `NTK_VECTOR_PRODUCTS` work.
    * `predict.gradient_descent_mse` of a kernel that `jit` or `vmap` traces;
      outside of them, and `gradient_descent_mse_ensemble` within, work.

    Returns:
      The module: `stax`, `predict`, `batch`, `empirical_kernel_fn`, ...

    Raises:
      ImportError: Neural Tangents or a dependency of it is not installed; the
        message has the lines that install it.

    >>> import jax
    >>> nt = load()
    >>> init_fn, apply_fn, kernel_fn = nt.stax.Dense(1, W_std=2.0)
    >>> kernel_fn(jax.numpy.ones((2, 3)), None, "nngp").tolist()
    [[4.0, 4.0], [4.0, 4.0]]

    Source: Novak et al., "Neural Tangents: Fast and Easy Infinite Neural Networks
    in Python", arXiv 1912.02803.
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
                "Install it without TensorFlow, which it does not need here:\n"
                "  pip install frozendict typing_extensions\n"
                "  pip install --no-deps neural-tangents",
                name=error.name,
            ) from error


@functools.singledispatch
def to_stax(net: stax.Layer) -> tuple[Callable, Callable, Callable]:
    """Reads a network as a layer of `neural_tangents.stax`.

    A new layer joins by a rule of its own, `@to_stax.register`.

    Args:
      net: a record of `jax_ntk_sketch.stax`.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`: `init_fn(key, input_shape)` gives the output
      shape and the parameters of the finite network, `apply_fn(params, x)` its
      outputs, `kernel_fn(x1, x2, get)` the exact kernel, (n1, n2), of the network
      of infinite width, where `get` is "nngp", "ntk" or a tuple of both.

    Raises:
      TypeError: `net` is not a record, or one without a rule.
      ImportError: as `load`.

    >>> import jax
    >>> net = stax.serial(stax.Dense(512, W_std=2.0), stax.Relu(), stax.Dense(1))
    >>> init_fn, apply_fn, kernel_fn = to_stax(net)
    >>> kernel_fn(jax.numpy.ones((1, 3)), None, ("nngp", "ntk"))
    AnalyticKernel(nngp=Array([[2.]], dtype=float32), ntk=Array([[4.]], dtype=float32))
    """
    known = ", ".join(sorted(record.__name__ for record in to_stax.registry))
    raise TypeError(
        f"to_stax: net must be made of records of jax_ntk_sketch.stax that have a "
        f"rule ({known}), got {type(net).__name__}. Give a record a rule with "
        "@to_stax.register."
    )


@to_stax.register
def dense_to_stax(net: stax.Dense) -> tuple[Callable, Callable, Callable]:
    return load().stax.Dense(
        net.out_dim,
        net.W_std,
        net.b_std,
        parameterization=net.parameterization,
        s=net.s,
    )


@to_stax.register
def activation_to_stax(net: stax.Activation) -> tuple[Callable, Callable, Callable]:
    values = [getattr(net, field.name) for field in dataclasses.fields(net)]
    return getattr(load().stax, type(net).__name__)(*values)


@to_stax.register
def elementwise_to_stax(net: stax.Elementwise) -> tuple[Callable, Callable, Callable]:
    if net.nngp_fn is None:  # Neural Tangents' Elementwise then has no kernel
        return load().stax.ElementwiseNumerical(net.fn, QUADRATURE_NODES)
    return load().stax.Elementwise(net.fn, net.nngp_fn, net.d_nngp_fn)


@to_stax.register
def identity_to_stax(net: stax.Identity) -> tuple[Callable, Callable, Callable]:
    return load().stax.Identity()


@to_stax.register
def serial_to_stax(net: stax.Serial) -> tuple[Callable, Callable, Callable]:
    # Neural Tangents has no empty `serial`.
    return load().stax.serial(*map(to_stax, net.layers or (stax.Identity(),)))


@to_stax.register
def parallel_to_stax(net: stax.Parallel) -> tuple[Callable, Callable, Callable]:
    return load().stax.parallel(*map(to_stax, net.layers))


@to_stax.register
def fan_out_to_stax(net: stax.FanOut) -> tuple[Callable, Callable, Callable]:
    return load().stax.FanOut(net.num)


@to_stax.register
def fan_in_sum_to_stax(net: stax.FanInSum) -> tuple[Callable, Callable, Callable]:
    return load().stax.FanInSum()


@to_stax.register
def fan_in_prod_to_stax(net: stax.FanInProd) -> tuple[Callable, Callable, Callable]:
    return load().stax.FanInProd()


@to_stax.register
def fan_in_concat_to_stax(net: stax.FanInConcat) -> tuple[Callable, Callable, Callable]:
    return load().stax.FanInConcat(net.axis)


@to_stax.register
def layer_norm_to_stax(net: stax.LayerNorm) -> tuple[Callable, Callable, Callable]:
    return load().stax.LayerNorm(net.axis, net.eps, channel_axis=net.channel_axis)


@to_stax.register
def dropout_to_stax(net: stax.Dropout) -> tuple[Callable, Callable, Callable]:
    return load().stax.Dropout(net.rate, net.mode)


@to_stax.register
def conv_to_stax(net: stax.Conv) -> tuple[Callable, Callable, Callable]:
    if any(step != 1 for step in net.dilation or ()):
        raise ValueError(
            f"to_stax: Neural Tangents has no dilated convolution, got {net!r}; "
            'features of it, method="exact" included, work'
        )
    return load().stax.Conv(
        net.out_chan,
        net.filter_shape,
        net.strides,
        net.padding,
        net.W_std,
        b_std=net.b_std,
        dimension_numbers=net.dimension_numbers,
        parameterization=net.parameterization,
        s=net.s,
    )


@to_stax.register
def avg_pool_to_stax(net: stax.AvgPool) -> tuple[Callable, Callable, Callable]:
    return load().stax.AvgPool(
        net.window_shape,
        net.strides,
        net.padding,
        net.normalize_edges,
        channel_axis=net.channel_axis,
    )


@to_stax.register
def sum_pool_to_stax(net: stax.SumPool) -> tuple[Callable, Callable, Callable]:
    return load().stax.SumPool(
        net.window_shape, net.strides, net.padding, channel_axis=net.channel_axis
    )


@to_stax.register
def global_avg_pool_to_stax(
    net: stax.GlobalAvgPool,
) -> tuple[Callable, Callable, Callable]:
    return load().stax.GlobalAvgPool(channel_axis=net.channel_axis)


@to_stax.register
def global_sum_pool_to_stax(
    net: stax.GlobalSumPool,
) -> tuple[Callable, Callable, Callable]:
    return load().stax.GlobalSumPool(channel_axis=net.channel_axis)


@to_stax.register
def aggregate_to_stax(net: stax.Aggregate) -> tuple[Callable, Callable, Callable]:
    return _in_order(
        load().stax.Aggregate(
            net.aggregate_axis,
            net.batch_axis,
            net.channel_axis,
            implementation=net.implementation,
        )
    )


@to_stax.register(stax.ConvTranspose)
@to_stax.register(stax.ConvLocal)
def conv_transpose_to_stax(
    net: stax.ConvTranspose | stax.ConvLocal,
) -> tuple[Callable, Callable, Callable]:
    return getattr(load().stax, type(net).__name__)(
        net.out_chan,
        net.filter_shape,
        net.strides,
        net.padding,
        net.W_std,
        net.b_std,
        net.dimension_numbers,
        net.parameterization,
        net.s,
    )


@to_stax.register
def image_resize_to_stax(net: stax.ImageResize) -> tuple[Callable, Callable, Callable]:
    if net.method not in ("nearest", "linear"):
        raise ValueError(
            "to_stax: Neural Tangents has kernels of nearest and linear interpolation "
            f'only, got {net!r}; features of it, method="exact" included, work'
        )
    precision = jax.lax.Precision[net.precision.upper()]
    return _in_order(
        load().stax.ImageResize(
            net.shape,
            net.method,
            net.antialias,
            precision,
            channel_axis=net.channel_axis,
        )
    )


@to_stax.register
def dot_general_to_stax(net: stax.DotGeneral) -> tuple[Callable, Callable, Callable]:
    if net.lhs is None and net.rhs is None:  # which theirs, as of 0.6.5, fails on
        return load().stax.Identity()
    precision = net.precision and jax.lax.Precision[net.precision.upper()]
    return load().stax.DotGeneral(
        lhs=None if net.lhs is None else np.asarray(net.lhs),
        rhs=None if net.rhs is None else np.asarray(net.rhs),
        dimension_numbers=net.dimension_numbers,
        precision=precision,
        channel_axis=net.channel_axis,
    )


@to_stax.register
def global_self_attention_to_stax(
    net: stax.GlobalSelfAttention,
) -> tuple[Callable, Callable, Callable]:
    values = {f.name: getattr(net, f.name) for f in dataclasses.fields(net)}
    return load().stax.GlobalSelfAttention(**values)


@to_stax.register
def index_to_stax(net: stax.Index) -> tuple[Callable, Callable, Callable]:
    return load().stax.Index(net.slices, channel_axis=net.channel_axis)


@to_stax.register
def flatten_to_stax(net: stax.Flatten) -> tuple[Callable, Callable, Callable]:
    return load().stax.Flatten()


def _in_order(layer: tuple[Callable, Callable, Callable]) -> Any:
    """The layer with the spatial axes of kernels in order when they reach it.

    Behind an odd number of convolutions those of Neural Tangents are in reverse, which
    its layers that take sizes or indices by axis, as of 0.6.5, do not look at.
    """
    init_fn, apply_fn, kernel_fn = layer

    @functools.wraps(kernel_fn)  # and its attributes: what it requires
    def ordered(k: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(k, "is_reversed", False):
            k = k.reverse()
        return kernel_fn(k, *args, **kwargs)

    return init_fn, apply_fn, ordered


@contextmanager
def _finder() -> Iterator[None]:
    """While it lasts, modules of Neural Tangents are imported with views."""
    views = _import_hook.make_views(_moved_names())
    # Read by `predict.max_learning_rate`.
    views["scipy.linalg"].eigvalsh = _eigvalsh  # type: ignore[attr-defined]
    reason = "jax_ntk_sketch leaves this module, which needs TensorFlow, out."
    finder = _import_hook.Finder(_PACKAGE, views, {f"{_PACKAGE}.experimental": reason})
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _moved_names() -> dict[str, dict[str, Any]]:
    """What Neural Tangents 0.6.5 reads and JAX may no longer have there."""
    core = jax.extend.core
    moved = ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")
    return {
        "jax.core": {name: getattr(core, name) for name in moved},
        # Unused by JAX since 0.4.24: Neural Tangents gives it a rule that is never
        # looked up.
        "jax.interpreters.ad": {"zeros_like_p": core.Primitive("zeros_like")},
        "jax.util": {"safe_map": _safe_map, "safe_zip": _safe_zip},
        "scipy.linalg": {},
    }


def _safe_map(function: Callable, *sequences: Any) -> list:
    return [function(*items) for items in zip(*sequences, strict=True)]


def _safe_zip(*sequences: Any) -> list[tuple]:
    return list(zip(*sequences, strict=True))


def _eigvalsh(a: Any, *, eigvals: tuple[int, int], **kwargs: Any) -> Any:
    """`scipy.linalg.eigvalsh` with the keyword that SciPy 1.14 renamed."""
    return scipy.linalg.eigvalsh(a, subset_by_index=eigvals, **kwargs)


@contextmanager
def _all_or_nothing() -> Iterator[None]:
    """Starts without modules of Neural Tangents, and leaves none if it fails.

    A plain `import neural_tangents` that has failed leaves some of them behind.
    """
    found = _pop_modules()
    try:
        yield
    except BaseException:
        _pop_modules()
        sys.modules.update(found)
        raise


def _pop_modules() -> dict[str, types.ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]
    return {name: sys.modules.pop(name) for name in names}
