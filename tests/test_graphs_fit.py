"""Graphs from edges to predictions: transform, compress, every fit."""

import jax
import numpy as np
import optax
import pytest
from helpers import draw

import jax_ntk_sketch as jns
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch import recipes
from jax_ntk_sketch.graphs import pad

RNG = np.random.default_rng(0)
SIZES = RNG.integers(3, 7, 40)
GRAPHS = pad(
    [RNG.standard_normal((n, 2)).astype(np.float32) for n in SIZES],
    [[(i, i + 1) for i in range(n - 1)] for n in SIZES],
)
EXTRAS = dict(pattern=GRAPHS.pattern, mask=GRAPHS.mask)
LABELS = (SIZES > 4).astype(int)
FMAP = jns.feature_map(recipes.gntk(1), num_features=24, method="ntk_random_features")
PARAMS = draw(FMAP, GRAPHS.x.shape[1:])
PHI = np.asarray(FMAP.apply(PARAMS, GRAPHS.x, **EXTRAS))
OPTIONS = dict(reg=1e-3, batch_size=16, num_classes=2)


def close(a, b, tolerance=1e-4):
    np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@pytest.mark.long
def test_transform_and_compress():
    close(jns.transform(FMAP, PARAMS, GRAPHS.x, batch_size=16, **EXTRAS), PHI)
    small, params = jns.compress(
        FMAP, PARAMS, GRAPHS.x, num_features=24, batch_size=16, **EXTRAS
    )
    psi = jns.transform(small, params, GRAPHS.x, batch_size=16, **EXTRAS)
    close(psi @ psi.T, PHI @ PHI.T)
    close(small.apply(params, GRAPHS.x, batch_size=7, **EXTRAS), psi)
    small = jns.CompressedFeatureMap(FMAP, 3)
    shape = GRAPHS.x.shape[1:]
    own = small.init(jax.random.key(1), shape, sample=GRAPHS.x, **EXTRAS)
    assert own["project"].shape == (24, 3)


@pytest.mark.parametrize("batches", [False, True])
def test_fits_are_those_of_the_features(batches):
    wanted = lm.fit_ridge(PHI, LABELS, reg=1e-3)
    data = (GRAPHS.x, LABELS)
    extras = EXTRAS
    if batches:
        parts = [GRAPHS.take(slice(0, 30)), GRAPHS.take(slice(30, None))]
        targets = [LABELS[:30], LABELS[30:]]
        data = ([g._asdict() | {"y": y} for g, y in zip(parts, targets, strict=True)],)
        extras = {}
    fitted = lm.fit(FMAP, PARAMS, *data, **OPTIONS, **extras)
    close(fitted.best.weights, wanted.weights, 1e-3)
    scores = wanted.predict(PHI)
    close(fitted.predict(GRAPHS.x, **EXTRAS), scores, 1e-3)
    assert (fitted.predict_class(GRAPHS.x, **EXTRAS) == scores.argmax(1)).all()
    by_cg = lm.fit_cg(
        FMAP, PARAMS, *data, key=jax.random.key(1), rank=8, **OPTIONS, **extras
    )
    close(by_cg.predict(GRAPHS.x, **EXTRAS), scores, 1e-3)
    options = OPTIONS | dict(optimizer=optax.adam(0.02), num_epochs=40)
    by_sgd = lm.fit_gradient(FMAP, PARAMS, *data, **options, **extras)
    losses = by_sgd.info.losses
    assert losses[-1] < 0.7 * losses[0]


def test_a_mesh_splits_graphs():
    mesh = jns.sharding.data_mesh()
    one = lm.fit(FMAP, PARAMS, GRAPHS.x, LABELS, **OPTIONS, **EXTRAS)
    many = lm.fit(FMAP, PARAMS, GRAPHS.x, LABELS, mesh=mesh, **OPTIONS, **EXTRAS)
    close(many.best.weights, one.best.weights, 1e-3)
    close(many.predict(GRAPHS.x, mesh=mesh, **EXTRAS), one.predict(GRAPHS.x, **EXTRAS))


def test_mistakes():
    with pytest.raises(ValueError, match="pattern"):
        lm.fit(FMAP, PARAMS, GRAPHS.x, LABELS, **OPTIONS)
    with pytest.raises(ValueError, match="fit: pattern must have the 40 examples of x"):
        lm.fit(FMAP, PARAMS, GRAPHS.x, LABELS, pattern=GRAPHS.pattern[1:], **OPTIONS)
    with pytest.raises(ValueError, match="pattern must be left out, because batches"):
        lm.fit(FMAP, PARAMS, [(GRAPHS.x, LABELS)], pattern=GRAPHS.pattern, **OPTIONS)
    fitted = lm.fit(FMAP, PARAMS, GRAPHS.x, LABELS, **OPTIONS, **EXTRAS)
    with pytest.raises(ValueError, match="pattern"):
        fitted.predict(GRAPHS.x)
