"""Serial networks, branches, and how branches become one again.

Sums and concatenations of independent branches add kernels, so that their features
stand side by side. Products of branches multiply kernels, so that features are tensor
products, which random methods sketch.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch._typing import Array, Key, PyTree
from jax_ntk_sketch.features.fitting import draw_params, fit_peak_bytes, run_steps
from jax_ntk_sketch.features.layers._spatial import resolve_axes
from jax_ntk_sketch.features.patches import materialize_patches
from jax_ntk_sketch.features.products import Product
from jax_ntk_sketch.features.state import Branches, ExactColumns, Features, Spec
from jax_ntk_sketch.features.step import Context, Step, extra_inputs, layer_rule
from jax_ntk_sketch.sketch.random_map import init_each

# The features of all branches, and the parameters of all steps of all branches.
BranchFeatures: TypeAlias = list[Features]
BranchParams: TypeAlias = list[list[PyTree]]

# Layers that pass patches on, or that do something better with them.
_KEEP_PATCHES = (stax.Serial, stax.Identity, stax.Activation, stax.FanOut)


@layer_rule.register
def serial_steps(
    layer: stax.Serial, spec: Spec | Branches, context: Context
) -> list[Step]:
    """Return the steps of all layers; patches are formed before a layer needs them.

    Raises:
      ValueError: a layer needs branches and gets none, or does not take branches.
    """
    steps: list[Step] = []
    for inner in layer.layers:
        before = steps[-1].spec if steps else spec
        _check_branches(inner, before)
        keeps_patches = isinstance(inner, _KEEP_PATCHES)
        if isinstance(before, Spec) and before.patches and not keeps_patches:
            steps.append(materialize_patches(before, context))
            before = steps[-1].spec
        steps += layer_rule(inner, before, context)
    return steps


def _check_branches(layer: stax.Layer, spec: Spec | Branches) -> None:
    needs_branches = isinstance(layer, stax.Parallel | stax.FanIn)
    takes_branches = needs_branches or isinstance(layer, stax.Serial | stax.Identity)
    if isinstance(spec, Branches) and not takes_branches:
        raise ValueError(
            f"{layer!r} takes one input, got {len(spec.specs)} branches; join them by "
            "FanInSum, FanInProd or FanInConcat, or put layers on each by parallel"
        )
    if isinstance(spec, Spec) and needs_branches:
        raise ValueError(
            f"{layer!r} takes branches, got one input; put FanOut(n) before it"
        )


@layer_rule.register
def fan_out_steps(layer: stax.FanOut, spec: Spec, context: Context) -> list[Step]:
    """Return the step that repeats the features."""

    def apply(params: PyTree, f: Features) -> BranchFeatures:
        return [f] * layer.num

    out = Branches((spec,) * layer.num)
    elements = spec.live_elements() + out.live_elements()
    return [Step(name=repr(layer), spec=out, apply=apply, live_elements=elements)]


@layer_rule.register
def parallel_steps(
    layer: stax.Parallel, spec: Branches, context: Context
) -> list[Step]:
    """Return one step with the steps of all layers.

    Raises:
      ValueError: there are more or fewer layers than branches.
    """
    if len(layer.layers) != len(spec.specs):
        raise ValueError(
            f"{layer!r} must have as many layers as branches, {len(spec.specs)}, got "
            f"{len(layer.layers)}; put FanOut({len(layer.layers)}) before it"
        )
    # In a serial each branch is checked as a whole network is.
    branches = [
        layer_rule(stax.serial(inner), before, context)
        for inner, before in zip(layer.layers, spec.specs, strict=True)
    ]
    return [_side_by_side(branches, spec)]


def _side_by_side(branches: list[list[Step]], spec: Branches) -> Step:
    """Return one step of all the steps of all branches.

    Args:
      branches: the steps of each branch.
      spec: what is known of the features that enter the branches.
    """
    outputs = []
    for steps, before in zip(branches, spec.specs, strict=True):
        after = steps[-1].spec if steps else before
        if isinstance(after, Branches):
            raise ValueError(
                "parallel: layers must have one output each, got one that ends in "
                "branches; end it with FanInSum, FanInProd or FanInConcat"
            )
        outputs.append(after)
    all_steps = [step for steps in branches for step in steps]

    def draw(
        key: Key, sample: BranchFeatures | None = None, **inputs: PyTree
    ) -> BranchParams:
        keys = iter(jax.random.split(key, max(1, len(all_steps))))
        samples: Sequence[Features | None] = sample or [None] * len(branches)
        return [
            draw_params(steps, [next(keys) for _ in steps], f, inputs)
            for steps, f in zip(branches, samples, strict=True)
        ]

    def apply(
        params: BranchParams, branch_features: BranchFeatures, **inputs: PyTree
    ) -> BranchFeatures:
        triples = zip(branches, params, branch_features, strict=True)
        return [run_steps(*triple, inputs) for triple in triples]

    names = ("; ".join(step.name for step in steps) or "-" for steps in branches)
    fit_elements = max((fit_peak_bytes(steps, 1) // 4 for steps in branches), default=0)
    return Step(
        name=f"[{' | '.join(names)}]",
        spec=Branches(tuple(outputs)),
        apply=apply,
        init=draw,
        fit=draw if any(step.fit for step in all_steps) else None,
        flops=sum(step.flops for step in all_steps),
        live_elements=spec.live_elements()
        + max((step.live_elements for step in all_steps), default=0),
        fit_elements=fit_elements + sum(step.fit_elements for step in all_steps),
        extra_inputs=extra_inputs(all_steps),
    )


def _materialized(
    spec: Branches, context: Context
) -> tuple[list[Step], tuple[Spec, ...]]:
    """Return the step that forms patches, if a branch has them, and the specs then."""
    if not any(one.patches for one in spec.specs):
        return [], spec.specs
    branches = [
        [materialize_patches(one, context)] if one.patches else [] for one in spec.specs
    ]
    step = _side_by_side(branches, spec)
    assert isinstance(step.spec, Branches)
    return [step], step.spec.specs


def _check_equal_shapes(
    layer: stax.FanIn, specs: Sequence[Spec], channels: bool = True
) -> None:
    """Check that branches have equal shapes, with or without the channels."""
    shapes = [(*spec.shape, spec.finite_channels) for spec in specs]
    compared = shapes if channels else [shape[:-1] for shape in shapes]
    if len(set(compared)) > 1:
        raise ValueError(
            f"{layer!r}: branches must have equal shapes, got "
            f"{', '.join(map(str, shapes))} for one example, channels last; a Dense or "
            "Conv of the right out_dim, strides and padding changes the shape of a "
            "branch"
        )


def _check_gaussian(layer: stax.FanIn, specs: Sequence[Spec]) -> None:
    """Check that all branches end in linear layers."""
    gaussian = [spec.gaussian for spec in specs]
    if not all(gaussian):
        raise ValueError(
            f"{layer!r}: every branch must be Gaussian, that is, end in a linear layer "
            "such as Dense or Conv (or be the identity after one); branch "
            f"{gaussian.index(False)} is not"
        )


def _joined(specs: Sequence[Spec]) -> Spec:
    """Return what is known of the columns of all branches side by side."""
    nngp_dim, ntk_dim, exact_columns = 0, 0, ExactColumns()
    for spec in specs:
        exact_columns = exact_columns.joined(spec.exact_columns, nngp_dim, ntk_dim)
        nngp_dim, ntk_dim = nngp_dim + spec.nngp_dim, ntk_dim + spec.ntk_dim
    min_cosine = min(spec.min_cosine for spec in specs)
    return dataclasses.replace(
        specs[0],
        nngp_dim=nngp_dim,
        ntk_dim=ntk_dim,
        gaussian=all(spec.gaussian for spec in specs),
        min_cosine=min_cosine if len(specs) == 1 else min(0.0, min_cosine),
        norms_from_features=any(spec.norms_from_features for spec in specs),
        after_dropout=any(spec.after_dropout for spec in specs),
        before_activations=all(spec.before_activations for spec in specs),
        exact_columns=exact_columns,
    )


def _join_step(layer: stax.FanIn, out: Spec, apply: Callable[..., Features]) -> Step:
    elements = 2 * out.live_elements()
    return Step(name=repr(layer), spec=out, apply=apply, live_elements=elements)


def _channels_step(layer: stax.FanIn, out: Spec, weights: Sequence[float]) -> Step:
    """Return the step that puts features side by side: a weighted sum of kernels."""

    def apply(params: PyTree, branch_features: BranchFeatures) -> Features:
        pairs = list(zip(weights, branch_features, strict=True))
        return Features(
            jnp.concatenate([math.sqrt(w) * f.nngp for w, f in pairs], axis=-1),
            jnp.concatenate([math.sqrt(w) * f.ntk for w, f in pairs], axis=-1),
            functools.reduce(jnp.add, [w * f.nngp_diag for w, f in pairs]),
        )

    return _join_step(layer, out, apply)


@layer_rule.register
def fan_in_sum_steps(
    layer: stax.FanInSum, spec: Branches, context: Context
) -> list[Step]:
    """Return the step of the sum of the kernels.

    Raises:
      ValueError: branches have different shapes, or one does not end in a linear layer.
    """
    before, specs = _materialized(spec, context)
    _check_equal_shapes(layer, specs)
    if len(specs) > 1:
        _check_gaussian(layer, specs)
    return [*before, _channels_step(layer, _joined(specs), [1.0] * len(specs))]


@layer_rule.register
def fan_in_concat_steps(
    layer: stax.FanInConcat, spec: Branches, context: Context
) -> list[Step]:
    """Return the step that concatenates channels or positions.

    Raises:
      ValueError: the axis does not exist; branches have different shapes on others.
    """
    before, specs = _materialized(spec, context)
    (axis,), channels = resolve_axes(layer, [layer.axis], specs[0], context)
    if axis != channels:
        return [*before, _concatenate_positions(layer, specs, axis - (axis > channels))]
    # Kernels are weighted by the channels of the finite network.
    _check_equal_shapes(layer, specs, channels=False)
    total = sum(spec.finite_channels for spec in specs)
    out = dataclasses.replace(_joined(specs), gaussian=False, finite_channels=total)
    weights = [spec.finite_channels / total for spec in specs]
    return [*before, _channels_step(layer, out, weights)]


def _concatenate_positions(
    layer: stax.FanInConcat, specs: Sequence[Spec], axis: int
) -> Step:
    """Return the step in which each branch has columns of its own.

    Branches are independent, so that kernels between their positions are zero.

    Args:
      layer: the record.
      specs: the branches.
      axis: the axis of (n, *shape).
    """
    _check_gaussian(layer, specs)
    shapes = [spec.shape for spec in specs]
    others = {(*shape[: axis - 1], *shape[axis:]) for shape in shapes}
    widths = [spec.finite_channels for spec in specs]
    if len(others) > 1 or len(set(widths)) > 1:
        raise ValueError(
            f"{layer!r}: branches must agree in all other axes, got positions {shapes} "
            f"and channels {widths}"
        )
    size = sum(shape[axis - 1] for shape in shapes)
    out = _joined(specs)
    out = dataclasses.replace(
        out,
        shape=(*shapes[0][: axis - 1], size, *shapes[0][axis:]),
        min_cosine=min(0.0, out.min_cosine),
        # A constant of one branch is not a constant of the others.
        exact_columns=out.exact_columns.without_constants(),
    )

    def blocks(parts: Sequence[Array]) -> Array:
        dims = [part.shape[-1] for part in parts]
        padded, start = [], 0
        for part, dim in zip(parts, dims, strict=True):
            pads = [(0, 0)] * (part.ndim - 1)
            pads.append((start, sum(dims) - start - dim))
            padded.append(jnp.pad(part, pads))
            start += dim
        return jnp.concatenate(padded, axis=axis)

    def apply(params: PyTree, branch_features: BranchFeatures) -> Features:
        nngp, ntk, variance = zip(*branch_features, strict=True)
        return Features(blocks(nngp), blocks(ntk), jnp.concatenate(variance, axis=axis))

    return _join_step(layer, out, apply)


@layer_rule.register
def fan_in_prod_steps(
    layer: stax.FanInProd, spec: Branches, context: Context
) -> list[Step]:
    """Return the step of products: NNGP kernels multiply.

    The NTK is a sum over branches: the NTK of the branch times the NNGP kernels of the
    others.

    Raises:
      ValueError: branches have different shapes.
    """
    before, specs = _materialized(spec, context)
    _check_equal_shapes(layer, specs)
    steps, out = [], specs[0]
    for other in specs[1:]:
        steps.append(_product_step(out, other, context))
        out = steps[-1].single_spec

    def init(key: Key) -> list[PyTree]:
        keys = jax.random.split(key, max(1, len(steps)))
        return [step.init(own) for step, own in zip(steps, keys, strict=False)]

    def apply(params: list[PyTree], branch_features: BranchFeatures) -> Features:
        f = branch_features[0]
        for step, own, other in zip(steps, params, branch_features[1:], strict=True):
            f = step.apply(own, f, other)
        return f

    live_elements = spec.live_elements() + sum(step.live_elements for step in steps)
    step = Step(
        name=repr(layer),
        spec=out,
        apply=apply,
        init=init,
        flops=sum(step.flops for step in steps),
        live_elements=live_elements,
    )
    return [*before, step]


def _product_step(left: Spec, right: Spec, context: Context) -> Step:
    """Return the step of the product of two branches, whose `apply` takes both."""
    max_columns = context.sketch_columns
    half, batch_columns = max(1, max_columns // 2), context.columns_of_batch(left)

    def product(left_dim: int, right_dim: int, max_columns: int) -> Product:
        return Product(left_dim, right_dim, max_columns, batch_columns)

    parts = {"nngp": product(left.nngp_dim, right.nngp_dim, max_columns)}
    if context.wants_ntk:
        parts["ntk1"] = product(left.ntk_dim, right.nngp_dim, half)
        parts["ntk2"] = product(left.nngp_dim, right.ntk_dim, half)
    nngp_dim, *ntk_dims = (part.columns for part in parts.values())
    cosines = (left.min_cosine, right.min_cosine)
    out = Spec(
        nngp_dim=nngp_dim,
        ntk_dim=sum(ntk_dims),
        min_cosine=min(math.prod(cosines), *cosines),
        shape=left.shape,
        norms_from_features=left.norms_from_features or right.norms_from_features,
        after_dropout=left.after_dropout or right.after_dropout,
        before_activations=False,
        finite_channels=left.finite_channels,
    )

    def apply(params: dict[str, PyTree], f: Features, g: Features) -> Features:
        factors = {
            "nngp": (f.nngp, g.nngp),
            "ntk1": (f.ntk, g.nngp),
            "ntk2": (f.nngp, g.ntk),
        }
        nngp, *ntk = (
            part.apply(params[name], *factors[name]) for name, part in parts.items()
        )
        variance = f.nngp_diag * g.nngp_diag
        if out.norms_from_features and not out.after_dropout:
            variance = jnp.sum(nngp**2, axis=-1)
        return Features(nngp, jnp.concatenate([nngp[..., :0], *ntk], axis=-1), variance)

    return Step(
        name="product",
        spec=out,
        apply=apply,
        init=functools.partial(init_each, parts),
        flops=out.pixels * sum(part.flops for part in parts.values()),
        live_elements=2 * out.live_elements(),
    )
