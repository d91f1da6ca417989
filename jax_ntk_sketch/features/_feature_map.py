"""`feature_map`: reads a network as features whose inner products are its kernel."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_ntk_sketch import _checks, _plan, methods, stax
from jax_ntk_sketch._arrays import to_jax
from jax_ntk_sketch._numerics import in_batches
from jax_ntk_sketch._plan import Plan
from jax_ntk_sketch._protocol import KernelFeatures, Origin, as_kinds, in_order
from jax_ntk_sketch._typing import (
    Array,
    ArrayLike,
    Dtype,
    Examples,
    Get,
    Key,
    Kind,
    PyTree,
    Shape,
)
from jax_ntk_sketch.batches.sparse_rows import refuse_sparse
from jax_ntk_sketch.features import _bias, _maps, _steps_of, fitting
from jax_ntk_sketch.features._error_formula import first_features, formula_error
from jax_ntk_sketch.features._row_scales import scale_rows
from jax_ntk_sketch.features._steps_of import scaled_steps, steps_of
from jax_ntk_sketch.features.build import layers_with_positions
from jax_ntk_sketch.features.graph_inputs import check_extra_inputs
from jax_ntk_sketch.features.methods.auto import resolve_method
from jax_ntk_sketch.features.state import Features
from jax_ntk_sketch.features.step import Step, extra_inputs
from jax_ntk_sketch.stax.scales import check_scales, scales_of

# A number for each kernel: a float, or a tuple if `get` is a tuple; None if unknown.
PerKernel = float | tuple[float, ...] | None


@dataclasses.dataclass(frozen=True, repr=False)
class NetworkFeatureMap:
    """The feature map of a network: static, hashable, and made by `feature_map`.

    Attributes:
      net: the network, a record of `jax_ntk_sketch.stax`.
      num_features: the number of columns of the features of each kernel.
      get: "ntk", "nngp" or a tuple of both.
      method: a record of `jax_ntk_sketch.methods`.
    """

    net: stax.Layer
    num_features: int
    get: Get
    method: methods.Method

    def __repr__(self) -> str:
        return (
            f"feature_map({self.net!r}, num_features={self.num_features}, "
            f"get={self.get!r}, method={self.method!r})"
        )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kernels that `get` asks for, as a tuple."""
        return as_kinds(self.get)

    def resolve(self, example: Shape | Examples) -> "NetworkFeatureMap":
        """Return the map with the method that "auto" stands for.

        A map with another method is returned as it is.

        Args:
          example: the shape of one example or examples, as for `init`.
        """
        shape = _maps.example_shape("NetworkFeatureMap.resolve", example)
        if self.method != methods.Auto():
            return self
        return dataclasses.replace(self, method=resolve_method(self, shape))

    def init(
        self,
        key: Key,
        example: Shape | Examples,
        *,
        sample: Examples | None = None,
        max_bytes: int | None = None,
        pattern: PyTree = None,
        mask: ArrayLike | None = None,
        scales: PyTree = None,
    ) -> dict[str, PyTree]:
        """Return parameters, drawn at random or learned from a sample.

        Args:
          key: a PRNG key; a legacy `uint32` key is accepted. The features of one kernel
            do not depend on whether the other kernel is asked for too.
          example: the shape of one example: `(d,)`, or `(h, w, c)` for images. Or
            examples, `(n, d)` or `(n, h, w, c)`, of which only the shape is taken.
          sample: examples `(n, *shape)` to learn from, finite and like those to come.
            "nystrom" needs them, and other methods do not read them.
          max_bytes: the bytes that examples in work may take while they are learned
            from, >= 1. By default they are all memory.
          pattern, mask: the edges and nodes of the sample, as for `apply`.
          scales: the scales of the network that is learned from, as for `apply`.

        Returns:
          A pytree whose arrays are float32 or small integers.

        Raises:
          TypeError: `key` is not a PRNG key; the sample is complex or sparse.
          ValueError: `example` is neither a shape nor examples; the method does not
            support the network or needs more columns; the method needs a sample and
            there is none; the sample has another shape, or learning from it takes more
            than `max_bytes`.

        Warns:
          RuntimeWarning: the sample is too small for the columns of "nystrom".
        """
        owner = "NetworkFeatureMap.init"
        key = _checks.check_key(owner, key)
        refuse_sparse(owner, example, "example")
        shape = _maps.example_shape(owner, example)
        resolved = self.resolve(shape)
        reason = f"{resolved.method} learns from data"
        learns = _steps_of.learns(resolved, shape)
        rows = _maps.check_sample(owner, sample, shape, reason if learns else None)
        _bias.warn_of_bias(resolved, key, shape, sample)
        dtype = jnp.result_type(float) if rows is None else rows.dtype
        scales = resolved._check_scales(owner, scales, dtype)
        if rows is None:
            return resolved._draw(key, shape)
        needed = (
            _steps_of.fit_bytes(resolved, shape, len(rows))
            * max(4, dtype.itemsize)
            // 4
        )
        what, remedy = f"learning from {len(rows)} examples", "give fewer examples"
        _plan.check_max_bytes(owner, max_bytes, needed, what, remedy)
        inputs = resolved._extra_inputs(owner, rows, pattern, mask)
        return resolved._draw(key, shape, rows, inputs, scales)

    def scales(self) -> tuple[dict[str, float], ...]:
        """Return all `W_std` and `b_std` of the network: a dictionary for each layer.

        They are the numbers that `init`, `apply` and
        `jax_ntk_sketch.interop.neural_tangents.to_stax` take as `scales`. Attention has
        its four, `W_key_std` and others. Where `b_std` is None or 0 there is no bias,
        and no number.

        >>> import jax_ntk_sketch as jns
        >>> from jax_ntk_sketch import stax
        >>> net = stax.serial(stax.Dense(9, 1.4, 0.1), stax.Relu(), stax.Dense(1))
        >>> jns.feature_map(net, num_features=8).scales()
        ({'W_std': 1.4, 'b_std': 0.1}, {'W_std': 1.0})
        """
        return scales_of(self.net)

    def _check_scales(self, owner: str, scales: PyTree, dtype: Dtype) -> PyTree:
        """Return the scales in this dtype; None if there are none."""
        if scales is None:
            return None
        _maps.check_takes_scales(owner, self.method)
        check_scales(owner, self.net, scales)
        return jax.tree.map(lambda scale: jnp.asarray(scale, dtype), scales)

    def _draw(
        self,
        key: Key,
        shape: Shape,
        sample: Array | None = None,
        inputs: dict[str, PyTree] | None = None,
        scales: PyTree = None,
    ) -> dict[str, PyTree]:
        """Return parameters; steps that learn have their shapes only without a sample.

        The key is split for each kernel anew, so that the features of one kernel do not
        depend on the other.
        """
        params: dict[str, PyTree] = {"origin": Origin(shape, self.num_features).node()}
        inputs = inputs or {}
        for kind in self.kinds:
            first, *steps = scaled_steps(self, kind, shape, 1, scales)
            keys = jax.random.split(key, 1 + len(steps))
            f = None
            if sample is not None:
                f = first.run_on_sample((), first_features(sample), inputs)
                f = scale_rows(self.net, f)[0]
            params[kind] = [
                first.init(keys[0]),
                *fitting.draw_params(steps, keys[1:], f, inputs),
            ]
        return params

    def _enter(
        self, first: Step, x: Array, inputs: dict[str, PyTree]
    ) -> tuple[Features, Array]:
        """Return the inputs as features, and the factors of the output (n,)."""
        return scale_rows(self.net, first.run((), first_features(x), **inputs))

    def apply(
        self,
        params: PyTree,
        x: ArrayLike,
        *,
        batch_size: int | None = None,
        pattern: PyTree = None,
        mask: ArrayLike | None = None,
        scales: PyTree = None,
    ) -> Array | KernelFeatures:
        """Return the features of examples.

        Args:
          params: the parameters that `init` returned.
          x: real, `(n, d)`, or `(n, *spatial, c)` for networks with spatial layers,
            which state the axis of the channels. Integers and booleans are converted to
            the default float and not rescaled. An example with a NaN or an infinity has
            NaN features; other examples are not affected, except with method "exact".
            So does an example whose squared norm overflows, unless the outputs of the
            network are homogeneous in such inputs.
          batch_size: examples that are worked on at a time, which bounds the temporary
            memory; `plan` states it. By default all. On a CPU 128 is usually fast,
            because the arrays then fit in the caches.
          pattern: the edges of the graphs x, for networks with `stax.Aggregate`:
            `(n, nodes, nodes)`, or integers `(n, edges, 2)`.
          mask: bool `(n, nodes)`, True for nodes that exist; None if all do. Other
            nodes have no values and no edges, whatever x and pattern hold there, and
            are left out of sums and averages over nodes. Padded graphs need it if a
            layer has a bias or if nodes are averaged.
          scales: scalars in the places of `scales()`, which may be traced, with the
            methods "ntk_random_features", "nystrom" and "exact". Gradients with respect
            to them are those of the features. By default the numbers of the network.

        Returns:
          Features `(n, num_features)` in the dtype of `x`; `KernelFeatures` of two such
          arrays if `get` is a tuple. `phi @ phi.T` approximates
          `kernel_fn(x, None, get)` of Neural Tangents.

        Raises:
          TypeError: `params` is not a dictionary; `x` is complex or sparse.
          ValueError: `x` has the wrong rank or size; `params` were made for another map
            or another shape of examples; `batch_size` is given with method "exact"; the
            network needs a `pattern`, or cannot use the `pattern` or `mask` given;
            the method does not take `scales`.

        Warns:
          UserWarning: x is differentiated, and the mean gradient of inner products is
            not that of the kernel. It is off by more than 0.03 at a cosine of 0 to
            0.99, or the features are those of landmarks.
        """
        owner = "NetworkFeatureMap.apply"
        _maps.check_params(owner, params)
        refuse_sparse(owner, x)
        x = to_jax(owner, "x", x)
        if x.ndim < 2:
            hint = "; use x[None] for one example" if x.ndim == 1 else ""
            raise ValueError(
                f"{owner}: x must have shape (n, d), flat examples, or "
                f"(n, *spatial, c), images; got shape {x.shape}{hint}"
            )
        x = _checks.check_input(owner, "x", x, x.shape[-1])
        resolved = self._check_params(params, x)
        if resolved.method.batch_dependent and x.shape[0] == 0:
            raise ValueError(
                f"{owner}: x must hold at least one example with {resolved.method}, "
                f"got shape {x.shape}"
            )
        inputs = resolved._extra_inputs(owner, x, pattern, mask)
        scales = resolved._check_scales(owner, scales, x.dtype)
        if batch_size is None:
            return resolved._apply(params, x, inputs, scales)
        _checks.check_size(owner, "batch_size", batch_size)
        if resolved.method.batch_dependent:
            raise ValueError(
                f"{owner}: batch_size must be None with {resolved.method}, whose "
                f"features depend on the whole batch; got {batch_size}"
            )
        return in_batches(
            lambda rows: resolved._apply(params, rows[0], rows[1], scales),
            (x, inputs),
            batch_size,
        )

    def _extra_inputs(
        self, owner: str, x: Array, pattern: PyTree, mask: ArrayLike | None
    ) -> dict[str, PyTree]:
        """Return the arrays besides x that are given, checked, by name."""
        steps = [
            step
            for kind in self.kinds
            for step in steps_of(self, kind, x.shape[1:], x.shape[0])
        ]
        given = {"pattern": pattern, "mask": mask}
        layers, _ = layers_with_positions(self.net)
        return check_extra_inputs(owner, layers, extra_inputs(steps), x, given)

    def _apply(
        self, params: PyTree, x: Array, inputs: dict[str, PyTree], scales: PyTree
    ) -> Array | KernelFeatures:
        out: dict[Kind, Array] = {}
        x = _bias.warn_if_differentiated(self, x)
        for kind in self.kinds:
            n = x.shape[0]
            first, *steps = scaled_steps(self, kind, x.shape[1:], n, scales)
            f, factor = self._enter(first, x, inputs)
            f = fitting.run_steps(steps, params[kind][1:], f, inputs)
            out[kind] = getattr(f, kind) * factor[:, None]
        return in_order(self.kinds, out)

    def _check_params(self, params: PyTree, x: Array) -> "NetworkFeatureMap":
        """Return the map that the parameters are for, with the method that was used."""
        owner = "NetworkFeatureMap.apply"
        shape = x.shape[1:]
        origin = Origin.of(params)
        if origin is not None:
            _maps.check_shape(
                owner, x, origin.input_shape, "for which init made params"
            )
            resolved = self.resolve(shape)
            arrays = {name: params[name] for name in params if name != "origin"}
            if origin.output_dim == self.num_features and _param_shapes(
                resolved, shape
            ) == jax.tree.map(jnp.shape, arrays):
                return resolved
        raise ValueError(
            f"{owner}: params must come from init of an equal feature map, but they do "
            f"not fit {self}"
        )

    def plan(
        self,
        example: Shape | Examples,
        *,
        sample: Examples | None = None,
        batch_size: int | None = None,
    ) -> Plan:
        """Return sizes, operations and bytes, before anything is allocated.

        Args:
          example: the shape of one example, `(d,)` or `(h, w, c)`; or examples,
            `(n, d)`, all of which are counted as being in memory. Only their shape is
            read.
          sample: the examples that `init` will be given. Their number decides
            `fit_bytes`, and their cosines the expected error.
          batch_size: examples that `apply` works on at a time. By default it is n for
            examples and 1 for a shape.

        Returns:
          A `Plan`; `print` it for a table.

        Raises:
          TypeError: the examples are sparse.
          ValueError: `example` is neither a shape nor examples; the method does not
            support the network or needs more columns; the sample has another shape.

        >>> import jax_ntk_sketch as jns
        >>> from jax_ntk_sketch import stax
        >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
        >>> jns.feature_map(net, num_features=64).plan((784,)).num_features
        64
        """
        owner = "NetworkFeatureMap.plan"
        refuse_sparse(owner, example, "example")
        shape, count, batch = _maps.plan_sizes(owner, example, batch_size)
        resolved = self.resolve(shape)
        learned = count
        if sample is not None:
            _maps.check_sample(owner, sample, shape, None)
            learned = np.shape(sample)[0]
        rows, biases, width = [], [], 0
        for kind in self.kinds:
            steps = steps_of(resolved, kind, shape, batch)
            own_rows = [
                step.plan_row(f"{kind}[{i}] {step.name}")
                for i, step in enumerate(steps)
            ]
            rows += own_rows
            biases.append(_bias.bias(resolved, kind, shape, sample))
            width += steps[-1].single_spec.dim(kind)
        return Plan(
            rows=tuple(rows),
            method=repr(resolved.method),
            input_shape=shape,
            num_features=width,
            batch_size=batch,
            num_examples=max(count, batch),
            fit_bytes=_steps_of.fit_bytes(resolved, shape, learned),
            relative_error=resolved.expected_error(shape, sample=sample),
            bias=tuple(biases) if len(biases) > 1 else biases[0],
            traced_elements=_steps_of.traced_elements(resolved, shape),
        )

    def expected_error(
        self,
        example: Shape | Examples,
        *,
        sample: Examples | None = None,
        num_examples: int | None = None,
    ) -> PerKernel:
        r"""Return the expected error of the kernel matrix, if the method has a formula.

        .. math:: \|K - \Psi\Psi^\top\|_F \,/\, \|K\|_F

        `jax_ntk_sketch.validation.expected_error` measures the error of other methods.

        Args:
          example: the shape of one example, or examples of which only the shape counts.
          sample: examples `(n, *shape)`, whose cosines the error is averaged over. By
            default cosines are spread evenly over [0, 0.9].
          num_examples: the size of the data that the error is for; by default n.

        Returns:
          A number for each kernel: a float, or a tuple if `get` is a tuple. None if the
          method has no formula for this network.
        """
        shape = _maps.example_shape("NetworkFeatureMap.expected_error", example)
        resolved = self.resolve(shape)
        return self._per_kernel(
            [
                formula_error(steps_of(resolved, kind, shape, 1), sample, num_examples)
                for kind in self.kinds
            ]
        )

    def _per_kernel(self, values: Sequence[float | None]) -> PerKernel:
        """Return the number of each kernel, or None if one is unknown."""
        known = tuple(value for value in values if value is not None)
        if len(known) < len(values):
            return None
        return known[0] if isinstance(self.get, str) else known


def feature_map(
    net: stax.Layer,
    *,
    num_features: int,
    get: Get | Sequence[Kind] = "ntk",
    method: str | methods.Method = "auto",
) -> NetworkFeatureMap:
    r"""Return the feature map of a network.

    .. math:: \langle\Psi(x), \Psi(y)\rangle \approx \Theta(x, y),

    where :math:`\Theta` is the kernel of the network of infinite width.

    Args:
      net: the network, a record of `jax_ntk_sketch.stax`.
      num_features: the number of columns, which is exact. The error falls like its
        inverse square root, down to the bias of the method.
      get: "ntk", "nngp", or a tuple of both.
      method: a name or a record of `jax_ntk_sketch.methods`. "auto" is a method for a
        small error of the kernel, and never depends on data; see `methods.Auto`.

    Returns:
      A `NetworkFeatureMap`, with the pure functions `init(key, example)`,
      `apply(params, x)` and `plan(example)`. If `get` is a tuple, `apply` returns a
      named tuple with its fields in that order.

    Raises:
      TypeError: `net` is not a record of `stax`; `num_features` is not an integer;
        `method` is neither a string nor a record.
      ValueError: `num_features` is less than 1; `get` or `method` is unknown.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jax_ntk_sketch as jns
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(512, W_std=1.4), stax.Relu(), stax.Dense(1))
    >>> fmap = jns.feature_map(net, num_features=256)
    >>> params = fmap.init(jax.random.key(0), (10,))
    >>> fmap.apply(params, jnp.ones((3, 10))).shape
    (3, 256)
    """
    if not isinstance(net, stax.Layer):
        raise TypeError(
            "feature_map: net must be a record of jax_ntk_sketch.stax, got "
            f"{type(net).__name__}"
        )
    num_features = _checks.check_size("feature_map", "num_features", num_features)
    kinds = _checks.check_get("feature_map", get)
    if isinstance(get, str):
        return NetworkFeatureMap(net, num_features, get, methods.from_name(method))
    if len(kinds) < 2:
        raise ValueError(
            f"feature_map: get must name both kernels if it is a tuple, got {get!r}; "
            f"use get={kinds[0]!r}"
        )
    return NetworkFeatureMap(net, num_features, kinds, methods.from_name(method))


@functools.lru_cache(maxsize=256)
def _param_shapes(fmap: NetworkFeatureMap, shape: Shape) -> PyTree:
    """Return the shapes of the arrays that `init` returns, by kernel."""
    params = jax.eval_shape(lambda key: fmap._draw(key, shape), jax.random.key(0))
    del params["origin"]
    return jax.tree.map(lambda leaf: leaf.shape, params)
