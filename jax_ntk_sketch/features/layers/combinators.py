"""Branches: several features between layers, and how they become one again.

Sums and concatenations of independent branches add kernels, so that features stand side
by side; products of branches multiply kernels, so that features are tensor products,
which the random methods sketch.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_ntk_sketch import stax
from jax_ntk_sketch._typing import Kind
from jax_ntk_sketch.features.build import fit_peak_bytes, fit_steps
from jax_ntk_sketch.features.patches import materialize_patches, sketch_width
from jax_ntk_sketch.features.products import Product
from jax_ntk_sketch.features.state import Branches, ExactColumns, Features, Spec
from jax_ntk_sketch.features.step import Context, Step, extra_inputs, layer_rule

__all__: list[str] = []


@layer_rule.register
def fan_out_steps(layer: stax.FanOut, spec: Spec, context: Context) -> list[Step]:
    def apply(params: Any, f: Features) -> list[Features]:
        return [f] * layer.num

    out = Branches((spec,) * layer.num)
    return [
        Step(
            name=repr(layer),
            spec=out,
            apply=apply,
            live_elements=spec.live_elements() + out.live_elements(),
        )
    ]


@layer_rule.register
def parallel_steps(
    layer: stax.Parallel, spec: Branches, context: Context
) -> list[Step]:
    if len(layer.layers) != len(spec.specs):
        raise ValueError(
            f"parallel has {len(layer.layers)} branches, but what enters it has "
            f"{len(spec.specs)}: give FanOut({len(layer.layers)}) before it, or as "
            f"many layers as branches; got {layer!r}"
        )
    # In a serial each branch is checked like a whole network.
    built = [
        layer_rule(stax.serial(inner), one, context)
        for inner, one in zip(layer.layers, spec.specs, strict=True)
    ]
    return [_side_by_side(built, spec)]


def _side_by_side(built: list[list[Step]], spec: Branches) -> Step:
    """One step of all the steps of all branches."""
    specs = []
    for stages, entering in zip(built, spec.specs, strict=True):
        last = stages[-1].spec if stages else entering
        if isinstance(last, Branches):
            raise ValueError(
                "a branch of parallel ends in branches itself; end it with a fan-in"
            )
        specs.append(last)
    every = [stage for stages in built for stage in stages]

    def init(key: jax.Array) -> list[list[Any]]:
        keys = iter(jax.random.split(key, max(1, len(every))))
        return [[stage.init(next(keys)) for stage in stages] for stages in built]

    def apply(params: Any, fs: list[Features], **inputs: Any) -> list[Features]:
        out = []
        for stages, own, f in zip(built, params, fs, strict=True):
            for stage, p in zip(stages, own, strict=True):
                f = stage.run(p, f, **inputs)
            out.append(f)
        return out

    def fit(key: jax.Array, fs: list[Features], **inputs: Any) -> list[list[Any]]:
        keys = list(jax.random.split(key, max(1, len(every))))
        params = []
        for stages, f in zip(built, fs, strict=True):
            own = [keys.pop(0) for _ in stages]
            if any(stage.fit for stage in stages):
                params.append(fit_steps(stages, own, f, inputs))
            else:
                pairs = zip(stages, own, strict=True)
                params.append([stage.init(k) for stage, k in pairs])
        return params

    names = " | ".join(
        "; ".join(stage.name for stage in stages) or "-" for stages in built
    )
    biases = [stage.bias for stage in every if stage.bias]
    learns = any(stage.fit for stage in every)
    return Step(
        name=f"[{names}]",
        spec=Branches(tuple(specs)),
        apply=apply,
        init=init,
        flops=sum(stage.flops for stage in every),
        live_elements=spec.live_elements()
        + max((stage.live_elements for stage in every), default=0),
        fit=fit if learns else None,
        fit_elements=max(
            (fit_peak_bytes(stages, 1) // 4 for stages in built if stages),
            default=0,
        )
        + sum(stage.fit_elements for stage in every),
        bias=(lambda: _largest(biases)) if biases else None,
        extra_inputs=extra_inputs(every),
    )


def _largest(biases: list[Callable[[], dict[Kind, float]]]) -> dict[Kind, float]:
    """Return the largest bias of each kernel."""
    largest: dict[Kind, float] = {}
    for bias in biases:
        for kind, value in bias().items():
            largest[kind] = max(value, largest.get(kind, 0.0))
    return largest


@layer_rule.register
def fan_in_sum_steps(
    layer: stax.FanInSum, spec: Branches, context: Context
) -> list[Step]:
    before, specs = _settled(spec, context)
    _check_equal(layer, specs, spec)
    if not all(one.gaussian for one in specs) and len(specs) > 1:
        raise ValueError(
            "FanInSum: every branch must be Gaussian, that is, end in a linear layer "
            "such as Dense or Conv (or be the identity behind one); branch "
            f"{[one.gaussian for one in specs].index(False)} does not"
        )
    out = _joined(specs)

    def apply(params: Any, fs: list[Features]) -> Features:
        nngp, ntk, norm2 = zip(*fs, strict=True)
        return Features(
            jnp.concatenate(nngp, axis=-1),
            jnp.concatenate(ntk, axis=-1),
            functools.reduce(jnp.add, norm2),
        )

    return [
        *before,
        Step(
            name=repr(layer),
            spec=out,
            apply=apply,
            live_elements=2 * out.live_elements(),
        ),
    ]


@layer_rule.register
def fan_in_concat_steps(
    layer: stax.FanInConcat, spec: Branches, context: Context
) -> list[Step]:
    before, specs = _settled(spec, context)
    ndim = 2 + len(specs[0].shape)
    if not -ndim < layer.axis < ndim or layer.axis % ndim == 0:
        raise ValueError(
            f"{layer!r}: features have {ndim} axes here, the batch included, and the "
            "batch axis cannot be joined"
        )
    channels = context.channel_axis % ndim if specs[0].shape else 1
    if layer.axis % ndim == channels:
        stage = _channels(layer, specs, spec)
    else:
        axis = layer.axis % ndim
        stage = _positions(layer, specs, axis - (axis > channels) - 1)
    return [*before, stage]


def _channels(layer: stax.FanInConcat, specs: tuple[Spec, ...], spec: Branches) -> Step:
    """Channels side by side: kernels weighted by the finite network's widths."""
    _check_equal(layer, specs, spec, widths=False)
    total = sum(one.finite_channels for one in specs)
    shares = [one.finite_channels / total for one in specs]
    out = dataclasses.replace(_joined(specs), gaussian=False, finite_channels=total)

    def apply(params: Any, fs: list[Features]) -> Features:
        roots = [math.sqrt(share) for share in shares]
        return Features(
            jnp.concatenate([r * f.nngp for r, f in zip(roots, fs, strict=True)], -1),
            jnp.concatenate([r * f.ntk for r, f in zip(roots, fs, strict=True)], -1),
            functools.reduce(
                jnp.add, [w * f.nngp_diag for w, f in zip(shares, fs, strict=True)]
            ),
        )

    return Step(
        name=repr(layer), spec=out, apply=apply, live_elements=2 * out.live_elements()
    )


def _positions(layer: stax.FanInConcat, specs: tuple[Spec, ...], axis: int) -> Step:
    """Positions side by side: branches are independent, so each has columns alone."""
    if not all(one.gaussian for one in specs):
        raise ValueError(
            f"{layer!r}: to join positions every branch must be Gaussian, that is, end "
            "in a linear layer such as Conv"
        )
    shapes = [one.shape for one in specs]
    others = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(others) > 1 or len({one.finite_channels for one in specs}) > 1:
        raise ValueError(
            f"{layer!r}: branches must agree in all other axes; their positions are "
            f"{shapes}, their widths {[one.finite_channels for one in specs]}"
        )
    shape = list(shapes[0])
    shape[axis] = sum(s[axis] for s in shapes)
    out = dataclasses.replace(
        _joined(specs),
        shape=tuple(shape),
        min_cosine=min(0.0, *(one.min_cosine for one in specs)),
    )
    # What is constant on one branch is not on the others.
    linears = out.exact_columns
    out = dataclasses.replace(
        out,
        exact_columns=ExactColumns(
            linears=linears.constants + linears.linears,
            ntk_linears=linears.ntk_constants + linears.ntk_linears,
        ),
    )

    def blocks(parts: list[jax.Array]) -> jax.Array:
        columns = [part.shape[-1] for part in parts]
        out, start = [], 0
        for part, size in zip(parts, columns, strict=True):
            pad = [(0, 0)] * (part.ndim - 1)
            out.append(jnp.pad(part, [*pad, (start, sum(columns) - start - size)]))
            start += size
        return jnp.concatenate(out, axis=1 + axis)

    def apply(params: Any, fs: list[Features]) -> Features:
        return Features(
            blocks([f.nngp for f in fs]),
            blocks([f.ntk for f in fs]),
            jnp.concatenate([f.nngp_diag for f in fs], axis=1 + axis),
        )

    return Step(
        name=repr(layer), spec=out, apply=apply, live_elements=2 * out.live_elements()
    )


@layer_rule.register
def fan_in_prod_steps(
    layer: stax.FanInProd, spec: Branches, context: Context
) -> list[Step]:
    """NNGP kernels multiply; the NTK is the sum over branches of its NTK times the
    NNGP kernels of the others.
    """
    before, specs = _settled(spec, context)
    _check_equal(layer, specs, spec)
    if len(specs) == 1:
        first: Callable = lambda params, fs: fs[0]  # noqa: E731
        return [*before, Step(name=repr(layer), spec=specs[0], apply=first)]
    steps, one = [], specs[0]
    for other in specs[1:]:
        steps.append(_product(one, other, context))
        one = steps[-1].single_spec

    def init(key: jax.Array) -> list[Any]:
        keys = jax.random.split(key, len(steps))
        return [step.init(k) for step, k in zip(steps, keys, strict=True)]

    def apply(params: Any, fs: list[Features]) -> Features:
        f = fs[0]
        for step, p, other in zip(steps, params, fs[1:], strict=True):
            f = step.apply(p, f, other)
        return f

    flops = sum(step.flops for step in steps)
    floats = spec.live_elements() + sum(step.live_elements for step in steps)
    return [
        *before,
        Step(
            name=repr(layer),
            spec=one,
            apply=apply,
            init=init,
            flops=flops,
            live_elements=floats,
        ),
    ]


def _product(a: Spec, b: Spec, context: Context) -> Step:
    """Of two branches; `apply` takes both."""
    width = sketch_width(context)
    half = max(1, width // 2)
    parts = {
        "nngp": Product.at(a.nngp_dim, b.nngp_dim, width, a, context),
        "ntk1": Product.at(a.ntk_dim, b.nngp_dim, half, a, context),
        "ntk2": Product.at(a.nngp_dim, b.ntk_dim, half, a, context),
    }
    if not context.wants_ntk:
        parts = {"nngp": parts["nngp"]}
    nngp, *ntk = (part.columns for part in parts.values())
    out = Spec(
        nngp,
        sum(ntk),
        min_cosine=min(a.min_cosine * b.min_cosine, a.min_cosine, b.min_cosine),
        shape=a.shape,
        norms_from_features=a.norms_from_features or b.norms_from_features,
        after_dropout=a.after_dropout or b.after_dropout,
        before_activations=False,
        finite_channels=a.finite_channels,
    )

    def init(key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, len(parts))
        pairs = zip(parts.items(), keys, strict=True)
        return {name: part.init(k) for (name, part), k in pairs}

    def apply(params: Any, f: Features, g: Features) -> Features:
        pairs = {"nngp": (f.nngp, g.nngp), "ntk1": (f.ntk, g.nngp)}
        pairs["ntk2"] = (f.nngp, g.ntk)
        nngp, *ntk = (
            part.apply(params[name], *pairs[name]) for name, part in parts.items()
        )
        norm2 = f.nngp_diag * g.nngp_diag
        if out.norms_from_features and not out.after_dropout:
            norm2 = jnp.sum(nngp**2, axis=-1)
        return Features(nngp, jnp.concatenate([nngp[..., :0], *ntk], axis=-1), norm2)

    flops = out.pixels * sum(part.flops for part in parts.values())
    return Step(
        name="product",
        spec=out,
        apply=apply,
        init=init,
        flops=flops,
        live_elements=2 * out.live_elements(),
    )


def _settled(spec: Branches, context: Context) -> tuple[list[Step], tuple[Spec, ...]]:
    """Branches that are patches of images become features."""
    if not any(one.window for one in spec.specs):
        return [], spec.specs
    built = [
        [materialize_patches(one, context)] if one.window else [] for one in spec.specs
    ]
    stage = _side_by_side(built, spec)
    assert isinstance(stage.spec, Branches)
    return [stage], stage.spec.specs


def _check_equal(
    layer: stax.FanIn, specs: tuple[Spec, ...], spec: Branches, widths: bool = True
) -> None:
    shapes = [(*one.shape, one.finite_channels) for one in specs]
    compared = shapes if widths else [shape[:-1] for shape in shapes]
    if len(set(compared)) > 1:
        raise ValueError(
            f"{layer!r}: branches must have equal shapes, but one example has the "
            f"shapes {', '.join(map(str, shapes))} (positions and channels, channels "
            "last) on them; a Dense or Conv of the right out_dim, strides and padding "
            "on a branch changes its shape"
        )


def _joined(specs: tuple[Spec, ...]) -> Spec:
    """Of the columns of all branches side by side."""
    nngp, ntk, carried = 0, 0, ExactColumns()
    for one in specs:
        c = one.exact_columns
        carried = ExactColumns(
            carried.constants + tuple(nngp + i for i in c.constants),
            carried.linears + tuple(nngp + i for i in c.linears),
            carried.ntk_constants + tuple(ntk + i for i in c.ntk_constants),
            carried.ntk_linears + tuple(ntk + i for i in c.ntk_linears),
        )
        nngp, ntk = nngp + one.nngp_dim, ntk + one.ntk_dim
    return dataclasses.replace(
        specs[0],
        nngp_dim=nngp,
        ntk_dim=ntk,
        gaussian=all(one.gaussian for one in specs),
        min_cosine=specs[0].min_cosine
        if len(specs) == 1
        else min(0.0, *(s.min_cosine for s in specs)),
        norms_from_features=any(one.norms_from_features for one in specs),
        after_dropout=any(one.after_dropout for one in specs),
        before_activations=all(one.before_activations for one in specs),
        exact_columns=carried,
    )


# Layers that do not care about patches, or do something better with them.
_KEEP_PATCHES = (
    stax.Serial,
    stax.Identity,
    stax.Activation,
    stax.FanOut,
)


@layer_rule.register
def serial_steps(layer: stax.Serial, spec: Spec, context: Context) -> list[Step]:
    stages: list[Step] = []
    for inner in layer.layers:
        before = stages[-1].spec if stages else spec
        _check_branches(inner, before)
        if isinstance(before, Branches):
            stages += layer_rule(inner, before, context)
            continue
        if before.window and not isinstance(inner, _KEEP_PATCHES):
            stages.append(materialize_patches(before, context))
            before = stages[-1].spec
        stages += layer_rule(inner, before, context)
    return stages


def _check_branches(layer: stax.Layer, spec: Spec | Branches) -> None:
    joins = isinstance(layer, stax.Parallel | stax.FanIn)
    passes = joins or isinstance(layer, stax.Serial | stax.Identity)
    if isinstance(spec, Branches) and not passes:
        raise ValueError(
            f"{layer!r} follows {len(spec.specs)} branches, but takes one input: join "
            "them by FanInSum, FanInProd or FanInConcat, or put layers on each by "
            "parallel"
        )
    if joins and not isinstance(spec, Branches):
        raise ValueError(
            f"{layer!r} needs branches, but one input enters it: put FanOut(n) before "
            "it"
        )
