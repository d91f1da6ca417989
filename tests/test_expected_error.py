"""Expected errors and suggested sizes against measured errors, and method "auto"."""

import jax
import numpy as np
import pytest

import jax_ntk_sketch as jns
from jax_ntk_sketch import kernels, methods, stax

DENSE = stax.Dense(1, W_std=2**0.5)
NET = stax.serial(DENSE, stax.Relu(), DENSE)
DEEP = stax.serial(DENSE, stax.Relu(), DENSE, stax.Relu(), DENSE)
DIGITS = np.asarray(jns.data.load_digits().x_train, np.float32).reshape(-1, 64)
IMAGES = DIGITS.reshape(-1, 8, 8, 1)
KEY = jax.random.key(0)
KERNEL = methods.VarianceReduced(objective="kernel")


def measured(fmap, x, depth, sample=None, seeds=3):
    exact = kernels.exact_kernel(DEEP if depth == 2 else NET, x, get="ntk")
    errors = []
    for seed in range(seeds):
        params = fmap.init(jax.random.key(seed), x.shape[1:], sample=sample)
        phi = fmap.apply(params, x)
        gram = np.asarray(phi, np.float64) @ np.asarray(phi, np.float64).T
        errors.append(jns.validation.relative_error(np.asarray(exact), gram))
    return np.sqrt(np.mean(np.square(errors)))


@pytest.mark.parametrize("method", ["variance_reduced", KERNEL], ids=str)
@pytest.mark.parametrize("depth, net", [(1, NET), (2, DEEP)])
def test_plan_states_the_error_on_other_data(depth, net, method):
    fmap = jns.feature_map(net, num_features=512, method=method)
    plan = fmap.plan((64,), sample=DIGITS[:400])
    error = measured(fmap, DIGITS[400:800], depth)
    assert 1 / 1.5 < plan.relative_error / error < 1.5
    assert f"{plan.relative_error:.2g}" in str(plan)
    # Without data the plan states an error of the same order.
    assert 0.2 < fmap.plan((64,)).relative_error / error < 5


@pytest.mark.long
@pytest.mark.parametrize("method", ["one_pass", "ntk_sketch", "nystrom"])
def test_trials_predict_the_error_on_other_data(method):
    fmap = jns.feature_map(NET, num_features=256, method=method)
    predicted = jns.validation.expected_error(
        fmap, DIGITS[:600], key=KEY, num_examples=300
    )
    sample = DIGITS[:568] if method == "nystrom" else None
    error = measured(fmap, DIGITS[600:900], 1, sample)
    assert 1 / 1.5 < predicted / error < 1.5


def test_formulas_weigh_the_diagonal_by_the_number_of_examples():
    """Duplicates, where the low degrees are wrong, count for less among many."""
    fmap = jns.feature_map(NET, num_features=2048)
    few, many = (
        jns.validation.expected_error(fmap, DIGITS[:200], num_examples=n)
        for n in (200, 100_000)
    )
    assert jns.validation.expected_error(fmap, DIGITS[:200]) == few > 1.1 * many


@pytest.mark.long
def test_trials_draw_with_keys_of_their_own():
    """No key is used twice; another key is another trial, of about the same error."""
    fmap = jns.feature_map(NET, num_features=64, method="one_pass")
    with jax.debug_key_reuse(True):
        first, second = (
            jns.validation.expected_error(fmap, DIGITS[:40], key=jax.random.key(seed))
            for seed in range(2)
        )
    assert first != second and 0.5 < first / second < 2


@pytest.mark.long
def test_trials_of_compressed_maps():
    fmap = jns.feature_map(NET, num_features=256, method="ntk_random_features")
    cmap = jns.CompressedFeatureMap(fmap, 32)
    errors = [
        jns.validation.expected_error(m, DIGITS[:100], key=KEY) for m in (fmap, cmap)
    ]
    assert 0 < errors[0] < errors[1] < 0.5


@pytest.mark.long
def test_trials_of_images():
    net = jns.recipes.cntk(1)
    fmap = jns.feature_map(net, num_features=128, method="variance_reduced")
    assert fmap.plan((8, 8, 1), sample=IMAGES[:20]).relative_error is None
    assert (
        0
        < jns.validation.expected_error(fmap, IMAGES[:20], key=KEY, trial_size=10)
        < 0.2
    )


@pytest.mark.long
@pytest.mark.parametrize("wanted", [0.08, 0.03])
def test_suggested_size_reaches_the_error_and_not_much_less_would(wanted):
    m = jns.validation.suggest_num_features(
        NET, (64,), sample=DIGITS[:300], relative_error=wanted
    )
    at = [
        jns.feature_map(NET, num_features=size, method=KERNEL)
        .plan((64,), sample=DIGITS[:300])
        .relative_error
        for size in (m, int(0.85 * m))
    ]
    assert at[0] <= wanted < at[1]
    fmap = jns.feature_map(NET, num_features=m, method=KERNEL)
    assert measured(fmap, DIGITS[300:600], 1) < 1.5 * wanted


def test_auto_never_depends_on_data():
    fmap = jns.feature_map(NET, num_features=16)
    same = jns.feature_map(NET, num_features=16, method="variance_reduced")
    assert fmap.method == methods.Auto() and fmap.resolve((64,)) == same
    for sample in (None, DIGITS[:9], DIGITS[:16]):
        assert "VarianceReduced" in fmap.plan((64,), sample=sample).method
        params = fmap.init(KEY, (64,), sample=sample)
        jax.tree.map(np.testing.assert_array_equal, params, same.init(KEY, (64,)))


@pytest.mark.long
def test_the_map_that_was_initialized_is_measured():
    """The first sample has copies of few rows, and another draw would do better."""
    fmap = jns.feature_map(NET, num_features=64, method="nystrom")
    narrow = fmap.init(KEY, (64,), sample=np.repeat(DIGITS[:4], 16, axis=0))
    wide = fmap.init(KEY, (64,), sample=DIGITS[:600])
    x, errors = DIGITS[600:800], []
    for params in (narrow, wide):
        errors.append(jns.validation.expected_error(fmap, x, key=KEY, params=params))
        report = jns.validation.compare(
            fmap, lambda x, z, get: kernels.exact_kernel(NET, x, z, get=get), x,
            params=params,
        )  # fmt: skip
        assert 0.7 < report.ntk.relative.mean / errors[-1] < 1.4
    assert errors[0] > 5 * errors[1]
    assert "Measured: Nystrom" in str(report) and report.num_seeds == 1


def test_bad_arguments_are_named():
    fmap = jns.feature_map(NET, num_features=64, method="one_pass")
    with pytest.raises(TypeError, match="fmap must be a feature map"):
        jns.validation.expected_error(NET, DIGITS)
    with pytest.raises(ValueError, match="at least 4 examples"):
        jns.validation.expected_error(fmap, DIGITS[:3])
    both = jns.feature_map(NET, num_features=64, get=("nngp", "ntk"))
    with pytest.raises(ValueError, match="get must be"):
        jns.validation.expected_error(both, DIGITS)
    with pytest.raises(TypeError, match=r"because OnePass.* is tried"):
        jns.validation.expected_error(fmap, DIGITS[:9])
    with pytest.raises(ValueError, match="num_seeds must be None if params are"):
        jns.validation.expected_error(fmap, DIGITS[:9], params={}, num_seeds=2)
    sparse = jns.with_sparse_inputs(fmap, sketch_dim=64)
    with pytest.raises(TypeError, match="map of feature_map, landmark_features or"):
        jns.validation.expected_error(sparse, DIGITS[:9], key=KEY)
    with pytest.raises(ValueError, match="relative_error must be finite and > 0 and"):
        jns.validation.suggest_num_features(NET, (64,), relative_error=2)
    with pytest.raises(ValueError, match="sample must be given"):
        jns.validation.suggest_num_features(
            NET, (64,), relative_error=0.1, method="one_pass"
        )


@pytest.mark.long
def test_no_number_of_columns_suffices():
    """Below the bias, and above it."""
    for error, message in ((1e-7, "more than the bias"), (9e-4, "out of reach")):
        with pytest.raises(ValueError, match=message):
            jns.validation.suggest_num_features(NET, (64,), relative_error=error)


def test_examples_that_are_not_finite_are_named():
    bad = DIGITS[:20].copy()
    bad[7, 3] = np.nan
    fmap = jns.feature_map(NET, num_features=64)
    with pytest.raises(ValueError, match=r"sample must be finite, .* in example 7 "):
        jns.validation.expected_error(fmap, bad)
    with pytest.raises(ValueError, match=r"sample must be finite, .* in example 7 "):
        jns.validation.suggest_num_features(NET, (64,), sample=bad, relative_error=0.1)
