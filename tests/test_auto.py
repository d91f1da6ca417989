"""Method "auto": which method it stands for, and that it fails only if all fail."""

import jax
import numpy as np
import pytest
from references import network_kernels

import jax_ntk_sketch as jns
from jax_ntk_sketch import methods, recipes, stax
from jax_ntk_sketch.validation import centered_relative_error

KERNEL = methods.VarianceReduced("kernel")
LOW = methods.VarianceReduced("regression")


def two_layers(activation, b_std=None):
    dense = stax.Dense(1, 1.4, b_std)
    return stax.serial(dense, activation, dense, activation, dense)


COSINE = two_layers(stax.Relu())
BIASED = two_layers(stax.Relu(), 0.3)
SMOOTH = two_layers(stax.Erf())
CASES = [
    (COSINE, 64, (64,), KERNEL),
    (COSINE, 16384, (2,), KERNEL),
    (stax.serial(stax.Flatten(), COSINE), 512, (8, 8), KERNEL),
    (BIASED, 256, (64,), methods.NTKSketch()),
    (BIASED, 1024, (64,), LOW),
    (BIASED, 1024, (1,), KERNEL),
    (SMOOTH, 256, (64,), methods.NTKSketch()),
    (SMOOTH, 1024, (64,), LOW),
    (SMOOTH, 256, (1,), methods.NTKRandomFeatures()),
    (SMOOTH, 256, (2,), KERNEL),
    (two_layers(stax.Sin()), 16, (1,), methods.NTKRandomFeatures()),
    (two_layers(stax.Gelu()), 256, (1,), KERNEL),
    (recipes.cntk(2), 128, (8, 8, 1), LOW),
    (recipes.cntk(2), 1024, (8, 8, 1), KERNEL),
    (recipes.gntk(2), 64, (28, 7), KERNEL),
    (recipes.gntk(4), 1024, (28, 7), KERNEL),
]


@pytest.mark.parametrize("net, columns, shape, wanted", CASES)
@pytest.mark.quick_cases("0", "3", "9")
def test_plan_and_init_agree_on_the_method(net, columns, shape, wanted):
    fmap = jns.feature_map(net, num_features=columns)
    resolved = fmap.resolve(shape)
    assert resolved.method == wanted
    assert fmap.plan(shape).method == repr(wanted)
    found, same = (
        jax.eval_shape(lambda key, f=f: f.init(key, shape), jax.random.key(0))
        for f in (fmap, resolved)
    )
    assert found == same


def test_another_method_takes_the_place_of_one_that_fails():
    """Too few columns for `VarianceReduced`, which needs those of the input."""
    net = stax.serial(
        stax.FanOut(2), stax.parallel(BIASED, COSINE), stax.FanInSum(), stax.Dense(1)
    )
    for columns in range(1, 9):
        fmap = jns.feature_map(net, num_features=columns).resolve((3,))
        shapes = []
        for method in (LOW, KERNEL, methods.NTKSketch(), methods.NTKRandomFeatures()):
            one = jns.feature_map(net, num_features=columns, method=method)
            try:
                one.plan((3,))
            except ValueError:
                continue
            shapes.append(method)
        if shapes:
            assert fmap.method in shapes
        else:
            with pytest.raises(ValueError, match="num_features must be at least"):
                fmap.plan((3,))


@pytest.mark.long
def test_the_error_is_near_that_of_the_best_method():
    """On inputs of unit variance: centered kernel errors, the mean of 4 draws."""
    x = np.random.default_rng(0).standard_normal((60, 12)).astype(np.float32)
    known = (KERNEL, LOW, methods.NTKSketch(), methods.NTKRandomFeatures())
    for net in (COSINE, BIASED, SMOOTH):
        exact = network_kernels(net, x.astype(float))["ntk"]
        for columns in (48, 512):
            errors = {}
            for method in ("auto", *known):
                fmap = jns.feature_map(net, num_features=columns, method=method)
                run = jax.jit(lambda key, f=fmap: f.apply(f.init(key, (12,)), x))
                phis = [np.asarray(run(jax.random.key(seed))) for seed in range(4)]
                errors[method] = np.mean(
                    [centered_relative_error(exact, phi @ phi.T) for phi in phis]
                )
            own = errors.pop("auto")
            assert own < 1.25 * min(errors.values()), (net, columns, own, errors)
