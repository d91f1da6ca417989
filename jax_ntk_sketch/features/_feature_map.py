"""`feature_map`: reads a network as features whose inner products are its kernel."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import methods, stax
from jax_ntk_sketch._checks import check_input, check_key, check_size
from jax_ntk_sketch._plan import Plan, PlanRow
from jax_ntk_sketch._protocol import FeatureMap as FeatureMap
from jax_ntk_sketch._protocol import KernelFeatures as KernelFeatures
from jax_ntk_sketch._protocol import as_kinds
from jax_ntk_sketch._typing import KINDS, Get, Kind
from jax_ntk_sketch.batches.sparse_rows import refuse_sparse
from jax_ntk_sketch.features.build import (
    build_steps,
    fit_peak_bytes,
    fit_steps,
    in_batches,
)
from jax_ntk_sketch.features.layers.graph import check_inputs
from jax_ntk_sketch.features.methods.nystrom.network import is_fully_connected
from jax_ntk_sketch.features.state import Features
from jax_ntk_sketch.features.step import Step, extra_inputs

# Examples whose cosines are looked at to say an error.
_PREDICTED = 256

# Among parameters, that "auto" took landmarks from a sample.
_SAMPLED = "sampled"


@dataclasses.dataclass(frozen=True)
class NetworkFeatureMap:
    """A feature map: static and hashable, made by `feature_map`.

    Attributes:
      net: the network, a record of `jax_ntk_sketch.stax`.
      num_features: columns of the features of each kernel.
      get: "ntk", "nngp" or a tuple of both.
      method: a record of `jax_ntk_sketch.methods`.
    """

    net: stax.Layer
    num_features: int
    get: Get
    method: methods.Method

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kernels that `get` asks for, as a tuple."""
        return as_kinds(self.get)

    def init(
        self, key: jax.Array, example: Any, *, pattern: Any = None, mask: Any = None
    ) -> dict[str, Any]:
        """Draws the random parameters, or learns them from a sample.

        Args:
          key: a PRNG key (typed; a legacy `uint32` key is accepted). The features of
            one kernel are the same whether the other is asked for with it or not.
          example: the shape of one example, `(d,)` or for images `(h, w, c)`, or an
            array of them, `(n, d)`: the sample that "nystrom" takes its landmarks
            from; other methods use its shape only.
          pattern, mask: of the sample, as for `apply`; unused where there is none.

        Returns:
          A pytree of arrays, small integers and float32.

        Raises:
          TypeError, ValueError: a bad key or shape; a network or `num_features` that
            the method cannot do, with what it can; no sample where one is needed.
        """
        key = check_key("NetworkFeatureMap.init", key)
        shape, _ = _example_shape(example)
        if isinstance(self.method, methods.Auto):
            chosen = self._chosen(self._enough(example))
            params = chosen.init(key, example)
            if isinstance(chosen.method, methods.Nystrom):
                params[_SAMPLED] = jnp.zeros((0,), jnp.float32)
            return params
        if _is_shape(example):
            for kind in self.kinds:
                if any(stage.fit for stage in _stages(self, kind, shape, 1)):
                    raise ValueError(
                        f"NetworkFeatureMap.init: {self.method} learns from data: give an "
                        "array of examples, (n, d) or (n, *spatial, c), in place of "
                        f"the shape {shape}"
                    )
            return self._draw(key, shape, None)
        sample = check_input("NetworkFeatureMap.init", "example", example, shape[-1])
        if not any(s.fit for kind in self.kinds for s in _stages(self, kind, shape, 1)):
            return self._draw(key, shape, None)
        inputs = self._check_inputs("NetworkFeatureMap.init", sample, pattern, mask)
        return self._draw(key, shape, sample, inputs)

    def _enough(self, example: Any) -> bool:
        """Whether an example is a sample with a landmark for each column."""
        return not _is_shape(example) and jnp.shape(example)[0] >= self.num_features

    def _chosen(self, sampled: bool) -> "NetworkFeatureMap":
        """The map of the method that "auto" stands for."""
        if not isinstance(self.method, methods.Auto):
            return self
        method: methods.Method = methods.VarianceReduced()
        if sampled and is_fully_connected(self.net):
            method = methods.Nystrom()
        return dataclasses.replace(self, method=method)

    def _draw(
        self,
        key: jax.Array,
        shape: tuple[int, ...],
        sample: jax.Array | None,
        inputs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Parameters; without a sample, of stages that need one their shapes only."""
        # Sketches pad, so that other sizes could have parameters of the same shapes:
        # the sizes are kept in the shape of an array without entries.
        sizes = jnp.zeros((0, *shape, self.num_features), jnp.float32)
        params: dict[str, Any] = {"sizes": sizes}
        for kind in self.kinds:
            built = _stages(self, kind, shape, 1)
            keys = jax.random.split(key, len(built))
            if sample is not None and any(stage.fit for stage in built):
                params[kind] = fit_steps(built, keys, _inputs(sample), inputs or {})
            else:
                params[kind] = [s.init(k) for s, k in zip(built, keys, strict=True)]
        return params

    def apply(
        self,
        params: dict[str, Any],
        x: Any,
        *,
        batch_size: int | None = None,
        pattern: Any = None,
        mask: Any = None,
    ) -> Any:
        """Maps examples to features.

        Args:
          params: what `init` returned.
          x: `(n, d)`, or `(n, *spatial, c)` for networks with spatial layers (channels
            where these layers say); real. Integers (uint8 images) and booleans are
            converted to the default float as they are, not rescaled. NaN or infinity in
            an example makes its features NaN, and no others ("exact" excepted);
            `jax_ntk_sketch.transform` names such examples instead.
          batch_size: examples that are worked on at a time, so that temporary memory
            is that of the plan for this size, whatever n is; by default all. On a CPU
            128 is also two to three times faster than thousands, because what is
            alive then fits in its caches.
          pattern: the edges of the graphs x, for networks with `stax.Aggregate`, which
            says how: `(n, nodes, nodes)`, or `(n, edges, 2)` integers.
          mask: `(n, nodes)`, which nodes of these graphs exist; None: all. Padding
            needs it where zero nodes do not stay zero (`b_std`) or are averaged over.

        Returns:
          Features `(n, num_features)`, dtype of `x`; `KernelFeatures` of two such
          arrays if `get` is a tuple. `phi @ phi.T` approximates `kernel_fn(x, None,
          get)` of Neural Tangents.

        Raises:
          ValueError: `x` has the wrong rank or size, or `params` were drawn for
            another map or input size; `batch_size` with method "exact"; a `pattern`
            or `mask` that the network cannot use, or that it lacks.
        """
        refuse_sparse("NetworkFeatureMap.apply", x)
        x = jnp.asarray(x)
        if x.ndim < 2:
            raise ValueError(
                "NetworkFeatureMap.apply: x must have shape (n, d), a batch of flat examples, "
                f"or (n, *spatial, c), one of images; got shape {x.shape}"
                + ("; use x[None] for one example" if x.ndim == 1 else "")
            )
        x = check_input("NetworkFeatureMap.apply", "x", x, x.shape[-1])
        if isinstance(self.method, methods.Auto):
            chosen = self._chosen(_SAMPLED in params)
            own = {k: v for k, v in params.items() if k != _SAMPLED}
            return chosen.apply(
                own, x, batch_size=batch_size, pattern=pattern, mask=mask
            )
        self._check_params(params, x.shape[1:])
        inputs = self._check_inputs("NetworkFeatureMap.apply", x, pattern, mask)
        if batch_size is None:
            return self._apply(params, x, inputs)
        check_size("NetworkFeatureMap.apply", "batch_size", batch_size)
        if isinstance(self.method, methods.Exact):
            raise ValueError(
                'NetworkFeatureMap.apply: method "exact" needs all examples in one batch; '
                "leave batch_size out"
            )
        rows = x, inputs
        return in_batches(lambda some: self._apply(params, *some), rows, batch_size)

    def _check_inputs(
        self, owner: str, x: jax.Array, pattern: Any, mask: Any
    ) -> dict[str, Any]:
        """The arrays beside x that are given, checked, by name."""
        built = [_stages(self, kind, x.shape[1:], len(x)) for kind in self.kinds]
        takes = extra_inputs(itertools.chain(*built))
        given = {"pattern": pattern, "mask": mask}
        return check_inputs(owner, self.net, takes, x, given)

    def _apply(
        self, params: dict[str, Any], x: jax.Array, inputs: dict[str, Any]
    ) -> Any:
        out = {}
        for kind in self.kinds:
            f = _inputs(x)
            built = _stages(self, kind, x.shape[1:], len(x))
            for stage, p in zip(built, params[kind], strict=True):
                f = stage.run(p, f, **inputs)
            out[kind] = getattr(f, kind)
        return KernelFeatures(**out) if len(out) > 1 else out[self.kinds[0]]

    def plan(self, example: Any, *, batch_size: int | None = None) -> Plan:
        """Says sizes, operations and bytes before anything is allocated.

        Args:
          example: the shape of one example, `(d,)` or `(h, w, c)`, or an array of them,
            `(n, d)`; its n are counted as being in memory.
          batch_size: examples that `apply` works on at a time, for the peak memory; by
            default all: the n of the array, or 1.

        Returns:
          A `Plan`; `print` it for a table.

        >>> from jax_ntk_sketch import stax
        >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
        >>> feature_map(net, num_features=64).plan((784,)).num_features
        64
        """
        if isinstance(self.method, methods.Auto):
            chosen = self._chosen(self._enough(example))
            return chosen.plan(example, batch_size=batch_size)
        shape, count = _example_shape(example)
        batch = count
        if batch_size is not None:
            batch = check_size("NetworkFeatureMap.plan", "batch_size", batch_size)
        rows, width, fit_bytes = [], 0, 0
        for kind in self.kinds:
            built = _stages(self, kind, shape, batch)
            for i, stage in enumerate(built):
                shapes = jax.eval_shape(stage.init, jax.random.key(0))
                size = sum(
                    math.prod(leaf.shape) * leaf.dtype.itemsize
                    for leaf in jax.tree.leaves(shapes)
                )
                spec = stage.spec
                rows.append(
                    PlanRow(
                        f"{kind}[{i}] {stage.name}" + _bias_text(stage),
                        spec.nngp_dim,
                        spec.ntk_dim,
                        size,
                        stage.flops,
                        stage.live_elements,
                        max(stage.bias().values()) if stage.bias else None,
                    )
                )
            width += built[-1].single_spec.dim(kind)
            fit_bytes = max(fit_bytes, fit_peak_bytes(built, count))
        count = max(count, batch)
        errors = [self._expected_error(kind, shape, example) for kind in self.kinds]
        known = tuple(error for error in errors if error is not None)
        return Plan(
            tuple(rows),
            repr(self.method),
            shape,
            width,
            batch,
            count,
            fit_bytes,
            relative_error=(known[0] if isinstance(self.get, str) else known)
            if len(known) == len(errors)
            else None,
        )

    def _expected_error(
        self,
        kind: Kind,
        shape: tuple[int, ...],
        example: Any,
        num_examples: int | None = None,
    ) -> float | None:
        """Of the kernel, relative, where the noise is known in closed form."""
        built = _stages(self, kind, shape, 1)
        known = [i for i, stage in enumerate(built) if stage.error is not None]
        if len(known) != 1 or isinstance(example, jax.core.Tracer):
            return None
        (i,) = known
        error = built[i].error
        assert error is not None
        if _is_shape(example) or not hasattr(example, "__array__"):
            exact, square = error(np.linspace(0, 0.9, 46))
            return float(np.sqrt(square.mean() / (exact**2).mean()))
        n = len(example)
        sample = np.asarray(example[:: max(1, n // _PREDICTED)][:_PREDICTED])
        f = _inputs(jnp.asarray(sample, jnp.result_type(sample, float)))
        for stage in built[:i]:
            f = stage.apply(stage.init(jax.random.key(0)), f)
        x = np.asarray(f.nngp, np.float64)
        norms = np.linalg.norm(x, axis=1)
        unit = x / np.where(norms > 0, norms, 1)[:, None]
        exact, square = error(np.clip(unit @ unit.T, -1, 1))
        # A sample has too few pairs, so that its diagonal weighs too much.
        weight = np.outer(norms, norms) ** 2
        same = np.eye(len(x), dtype=bool)
        if len(x) > 1:
            weight[~same] *= ((num_examples or n) - 1) / (len(x) - 1)
        return float(np.sqrt((weight * square).sum() / (weight * exact**2).sum()))

    def _check_params(self, params: Any, shape: tuple[int, ...]) -> None:
        # What init was told comes first: it is where most mistakes are.
        sizes = jnp.shape(params["sizes"]) if "sizes" in params else (0, *shape, 0)
        if sizes[1:-1] != shape:
            hint = "; use x[None] for one example" if shape == sizes[2:-1] else ""
            raise ValueError(
                "NetworkFeatureMap.apply: params do not belong to this map of inputs (n, "
                f"{', '.join(map(str, shape))}): as init was told, x must have shape "
                f"(n, {', '.join(map(str, sizes[1:-1]))}){hint}"
            )
        wanted = _param_shapes(self, shape)
        given = jax.tree.map(jnp.shape, params)
        if given != wanted:
            raise ValueError(
                "NetworkFeatureMap.apply: params do not belong to this map of inputs (n, "
                f"{', '.join(map(str, shape))}): x must have the size that init was "
                "told, and params must come from init of an equal feature map"
            )


def feature_map(
    net: stax.Layer,
    *,
    num_features: int,
    get: str | Sequence[str] = "ntk",
    method: str | methods.Method = "auto",
) -> NetworkFeatureMap:
    r"""Features :math:`\Psi(x)` with :math:`\langle\Psi(x), \Psi(y)\rangle \approx
    \Theta(x, y)`, the kernel of an infinitely wide network.

    Args:
      net: the network, a record of `jax_ntk_sketch.stax`.
      num_features: columns of the features, exactly; the error falls like its inverse
        square root until the polynomial's own error is reached.
      get: "ntk", "nngp", or a tuple of both.
      method: a name or a record of `jax_ntk_sketch.methods`; "auto" is "nystrom" for
        fully connected networks where `init` is given `num_features` examples or more,
        and "variance_reduced" elsewhere.

    Returns:
      A `NetworkFeatureMap`, with pure functions `init(key, example)`, `apply(params, x)` and
      `plan(example)`.

    Raises:
      TypeError, ValueError: a bad argument, named.

    >>> import jax, jax.numpy as jnp
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(512, W_std=1.4), stax.Relu(), stax.Dense(1))
    >>> fmap = feature_map(net, num_features=256)
    >>> params = fmap.init(jax.random.key(0), (10,))
    >>> fmap.apply(params, jnp.ones((3, 10))).shape
    (3, 256)
    """
    if not isinstance(net, stax.Layer):
        raise TypeError(
            "feature_map: net must be a record of jax_ntk_sketch.stax, got "
            f"{type(net).__name__}"
        )
    check_size("feature_map", "num_features", num_features)
    if not isinstance(get, str):
        get = tuple(get) if isinstance(get, Sequence) else (get,)
    if get not in (*KINDS, KINDS, KINDS[::-1]):
        raise ValueError(
            f'feature_map: get must be "ntk", "nngp" or a tuple of both, got {get!r}'
        )
    record = methods.from_name(method)
    return NetworkFeatureMap(net, int(num_features), get, record)


def _inputs(x: jax.Array) -> Features:
    """What the first stage is given."""
    return Features(x, x[..., :0], jnp.zeros(len(x), x.dtype))


def _bias_text(step: Step) -> str:
    """Return what the plan's row states of the step's bias."""
    if step.bias is None:
        return ""
    parts = (f"{value:g} of {kind}" for kind, value in step.bias().items())
    return f", bias <= {', '.join(parts)}"


def _is_shape(example: Any) -> bool:
    return isinstance(example, tuple | list) and all(
        isinstance(size, int | np.integer) for size in example
    )


def _example_shape(example: Any) -> tuple[tuple[int, ...], int]:
    """Shape of one example and their number, from a shape or an array."""
    refuse_sparse("example", example)
    is_shape = _is_shape(example)
    shape = tuple(example) if is_shape else jnp.shape(example)[1:]
    if not shape or min(shape) < 1:
        raise ValueError(
            "example must be the shape of one example, (d,) or (*spatial, channels), "
            "or an array of examples, (n, d) or (n, *spatial, channels); got "
            f"{example if is_shape else f'an array of shape {jnp.shape(example)}'}"
        )
    return tuple(map(int, shape)), 1 if is_shape else max(1, jnp.shape(example)[0])


@functools.lru_cache(maxsize=256)
def _stages(
    fmap: NetworkFeatureMap, kind: Kind, shape: tuple[int, ...], batch: int
) -> list[Step]:
    # Only "exact" depends on the batch; the others share one entry of the cache.
    if not isinstance(fmap.method, methods.Exact) and batch != 1:
        return _stages(fmap, kind, shape, 1)
    return build_steps(fmap.net, fmap.method, kind, fmap.num_features, shape, batch)


@functools.lru_cache(maxsize=256)
def _param_shapes(fmap: NetworkFeatureMap, shape: tuple[int, ...]) -> Any:
    shapes = jax.eval_shape(lambda key: fmap._draw(key, shape, None), jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf.shape, shapes)
