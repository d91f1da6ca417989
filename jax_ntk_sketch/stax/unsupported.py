"""Reasons for names of other libraries that have no record here, and the way round."""

_ELEMENTWISE = "it has no closed form; use stax.Elementwise(%s), by quadrature"
_CLOSURE = (
    "layers are records here, not closures; a new layer is a record with a rule, as "
    "CONTRIBUTING.md shows"
)
_STRING = "give %s as a string"

REASONS = {
    # Activations, and what is not one.
    "Tanh": _ELEMENTWISE % "jnp.tanh",
    "Softplus": _ELEMENTWISE % "jax.nn.softplus",
    "Sigmoid": _ELEMENTWISE % "jax.nn.sigmoid" + ", or stax.Sigmoid_like()",
    "Elu": _ELEMENTWISE % "jax.nn.elu",
    "Selu": _ELEMENTWISE % "jax.nn.selu",
    "Silu": _ELEMENTWISE % "jax.nn.silu",
    "Swish": _ELEMENTWISE % "jax.nn.silu",
    "Mish": _ELEMENTWISE % "jax.nn.mish",
    "Softmax": (
        "it mixes the outputs, so that they are not Gaussian; leave it out, and fit "
        "one-hot targets or use the loss of linear_model.fit_gradient"
    ),
    "LogSoftmax": (
        "it mixes the outputs, so that they are not Gaussian; leave it out, and fit "
        "one-hot targets or use the loss of linear_model.fit_gradient"
    ),
    # Layers without a kernel of infinite width.
    "MaxPool": (
        "the kernel of a maximum has no closed form; use stax.AvgPool or stax.SumPool"
    ),
    "GlobalMaxPool": (
        "the kernel of a maximum has no closed form; use stax.GlobalAvgPool or "
        "stax.GlobalSumPool"
    ),
    "BatchNorm": (
        "features of one example must not depend on the others; use stax.LayerNorm"
    ),
    "Embedding": (
        "it is a Dense layer of one-hot inputs; use jax.nn.one_hot and stax.Dense"
    ),
    # Other names of what there is.
    "Conv1DTranspose": "use stax.ConvTranspose with one size in filter_shape",
    "GeneralConv": "use stax.Conv with dimension_numbers",
    "GeneralConvTranspose": "use stax.ConvTranspose with dimension_numbers",
    "shape_dependent": _CLOSURE,
    # Neural Tangents' own machinery.
    "layer": _CLOSURE,
    "requires": _CLOSURE,
    "supports_masking": _CLOSURE,
    "Bool": _CLOSURE,
    "Diagonal": _CLOSURE,
    "Kernel": (
        "here features flow between layers, not kernels; see "
        "jax_ntk_sketch.features.Features"
    ),
    "MaskedArray": (
        "entries are not masked by a constant; padded graphs are given as "
        "fmap.apply(params, x, pattern=..., mask=...)"
    ),
    "unmask_fn": (
        "entries are not masked by a constant; padded graphs are given as "
        "fmap.apply(params, x, pattern=..., mask=...)"
    ),
    "Padding": _STRING % "padding",
    "AggregateImplementation": _STRING % "implementation",
    "AttentionMechanism": _STRING % "attention_mechanism",
    "PositionalEmbedding": _STRING % "pos_emb_type",
}
