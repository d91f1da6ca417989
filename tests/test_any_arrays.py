"""Whatever arrays come in: each function gives the result of the NumPy array."""

import jax
import numpy as np
import optax
import pytest
from kinds_of_arrays import KINDS as ARRAYS

import jax_ntk_sketch as jns
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch import stax

pandas = pytest.importorskip("pandas")
NET = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
FMAP = jns.feature_map(NET, num_features=16, method="ntk_random_features")
PARAMS = FMAP.init(jax.random.key(0), (3,))
PROBE = np.ones((2, 3), np.float32)


def table(a, rng):
    index = rng.permutation(len(a))
    if a.ndim == 1:
        return pandas.Series(a, index=index)
    return pandas.DataFrame(a, columns=list("abc"), index=index)


KINDS = {
    **{name: lambda a, rng, kind=kind: kind(a) for name, kind in ARRAYS.items()},
    "pandas": table,
    "nullable": lambda a, rng: table(a, rng).convert_dtypes(),
}


def targets(n, rng):
    return {
        "numbers": rng.normal(size=n),
        "columns": rng.normal(size=(n, 3)),
        "labels": rng.integers(0, 3, n).astype(rng.choice(["i8", "u1", "i2"])),
        "text": rng.choice(["rose", "lily"], n),
        "signs": rng.choice([-1, 1], n),
        "bool": rng.random(n) > 0.5,
    }


def fitted(model):
    best = model.best if isinstance(model, lm.FittedModel) else model
    labels = model.predict_class(PROBE) if best.classes else np.zeros(2)
    return model.predict(PROBE), labels


def batches(x, y, w):
    parts = {"x": x, "y": y} | ({} if w is None else {"weight": w})
    return lm.fit(FMAP, PARAMS, lambda: iter([parts]), reg=0.1, task="regression")


JOBS = {
    "apply": lambda x, y, w: FMAP.apply(PARAMS, x),
    "transform": lambda x, y, w: jns.transform(FMAP, PARAMS, x),
    "zca_fit": lambda x, y, w: jns.preprocessing.zca_fit(x, reg=0.1).whitening,
    "fit_ridge": lambda x, y, w: fitted(lm.fit_ridge(x, y, reg=0.1, sample_weight=w)),
    "fit": lambda x, y, w: fitted(lm.fit(FMAP, PARAMS, x, y, reg=0.1, sample_weight=w)),
    "fit_cg": lambda x, y, w: fitted(
        lm.fit_cg(FMAP, PARAMS, x, y, key=jax.random.key(0), reg=0.1, sample_weight=w)
    ),
    "fit_gradient": lambda x, y, w: fitted(
        lm.fit_gradient(FMAP, PARAMS, x, y, optimizer=optax.sgd(0.1), sample_weight=w)
    ),
    "batches": lambda x, y, w: fitted(batches(x, y, w)),
}


def run(job, *arrays):
    """The result, or the kind of error: one with the name of an argument."""
    try:
        return JOBS[job](*arrays)
    except (TypeError, ValueError) as error:
        assert any(
            name in str(error) for name in (" x ", " phi ", " y ", "examples")
        ), error
        return type(error)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*y holds labels of")
@pytest.mark.parametrize("seed", range(100))
def test_the_result_is_that_of_numpy(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.choice([0, 1, 2, 7, 33]))
    dtype = rng.choice(["f4", "f8", "f2", "i4", "u1", "?", "i8"])
    x = (rng.choice([1, 5]) * rng.normal(size=(n, 3))).astype(dtype)
    y = targets(n, rng)[rng.choice(list(targets(n, rng)))]
    weight = None if rng.random() < 0.5 else rng.integers(1, 3, n).astype(np.float32)
    kind_x, kind_y = rng.choice(list(KINDS), 2)
    kind_x = "read-only" if kind_x == "rows" and n == 0 else kind_x  # has no shape
    job = rng.choice(list(JOBS))
    wanted = run(job, x, y, weight)
    others = KINDS[kind_x](x, rng), KINDS[kind_y](y, rng)
    found = run(job, *others, None if weight is None else KINDS[kind_y](weight, rng))
    if isinstance(wanted, type):
        assert found is wanted
        return
    same = dtype == "f2"  # a nullable float16 is float32
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        if b.dtype.kind in "Ui":
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=0.02 if same else 1e-5)
