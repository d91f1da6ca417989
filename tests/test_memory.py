"""Memory: what compiled functions take, against `max_bytes`, on any device.

XLA states the temporary memory of what it compiled. The caches of a CPU, to which work
is fitted too, are taken away, so that `max_bytes` alone bounds it.
"""

import functools
import importlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse

import jax_ntk_sketch as jns
from jax_ntk_sketch import _plan, kernels, methods, recipes, stax, validation
from jax_ntk_sketch import linear_model as lm
from jax_ntk_sketch.interop import neural_tangents as jnt

KEY = jax.random.key(0)
FLAT, IMAGE, CUBE, NODES = (40,), (8, 8, 3), (4, 4, 4, 2), (6, 3)
DEEP = stax.serial(*[stax.Dense(1), stax.Relu()] * 3, stax.Dense(1))
VOLUMES = stax.serial(
    stax.Conv(1, (3, 3, 3), padding="SAME"), stax.Relu(),
    stax.AvgPool((2, 2, 2), strides=(2, 2, 2)),
    stax.Conv(1, (3, 3, 3), padding="SAME"), stax.Relu(), stax.GlobalAvgPool(),
    stax.Dense(1),
)  # fmt: skip
M = 96


def network(net, shape, method):
    fmap = jns.feature_map(net, num_features=M, method=method)
    return fmap, shape


def dense_kernel(x1, x2, get):
    return kernels.exact_kernel(DEEP, x1, x2, get=get)


@functools.lru_cache
def image_kernel():
    return jnt.to_stax(recipes.cntk(2))[2]


def compressed(base, shape):
    return jns.CompressedFeatureMap(base, M // 3), shape


def maps():
    """Return a function for each kind of map, which makes it and its shape."""
    found = {}
    for name in methods.METHODS:
        if name in ("exact", "auto"):
            continue
        found[f"flat {name}"] = functools.partial(network, DEEP, FLAT, name)
        if name == "one_pass":
            continue
        for kind, net, shape in (
            ("image", recipes.cntk(2), IMAGE),
            ("volume", VOLUMES, CUBE),
            ("graph", recipes.gntk(2), NODES),
        ):
            found[f"{kind} {name}"] = functools.partial(network, net, shape, name)
    flat = jns.feature_map(DEEP, num_features=M, method="ntk_random_features")
    image = jns.feature_map(
        recipes.cntk(2), num_features=M, method="ntk_random_features"
    )
    sparse = jns.with_sparse_inputs(flat, sketch_dim=64)
    found |= {
        "compressed flat": lambda: compressed(flat, FLAT),
        "compressed image": lambda: compressed(image, IMAGE),
        "sparse": lambda: (sparse, (500,)),
        "dense sparse": lambda: (sparse, (100,)),
        "compressed sparse": lambda: compressed(sparse, (500,)),
        "sparse compressed": lambda: (
            jns.with_sparse_inputs(compressed(flat, FLAT)[0], sketch_dim=64),
            (500,),
        ),
        "landmark flat": lambda: (
            jns.landmark_features(dense_kernel, num_features=M),
            FLAT,
        ),
        "landmark image": lambda: (
            jns.landmark_features(image_kernel(), num_features=M),
            IMAGE,
        ),
    }
    return found


MAPS = maps()


class Stop(Exception):
    """What was compiled is known."""


class Recorder:
    """A compiled function that states its memory in place of running."""

    def __init__(self, function, found):
        self.function, self.found = function, found

    def eval_shape(self, *args):
        return self.function.eval_shape(*args)

    def __call__(self, *args):
        memory = self.function.lower(*args).compile().memory_analysis()
        self.found.append(memory)
        raise Stop


def module(name):
    return importlib.import_module(f"jax_ntk_sketch.{name}")


COMPILED = (
    ("features._transform", "_apply"),
    ("linear_model._pass", "_add"),
    ("linear_model._fit_cg", "_add"),
)


def fitted(fmap, params):
    """Return a model whose predictions are features."""
    model = types.SimpleNamespace(predict=lambda phi: phi)
    return lm.FittedModel(fmap, params, model, model)


ENTRIES = {
    "transform": lambda f, p, x, y, **e: jns.transform(f, p, x, **e),
    "batch of 100": lambda f, p, x, y, **e: jns.transform(f, p, x, batch_size=100, **e),
    "compress": lambda f, p, x, y, **e: jns.compress(f, p, x, num_features=8, **e),
    "fit": lambda f, p, x, y, **e: lm.fit(f, p, x, y, reg=1e-3, **e),
    "fit_cg": lambda f, p, x, y, **e: lm.fit_cg(
        f, p, x, y, key=KEY, reg=1e-3, rank=4, **e
    ),
    "fit_gradient": lambda f, p, x, y, **e: lm.fit_gradient(
        f, p, x, y, optimizer=optax.sgd(0.1), batch_size=64, **e
    ),
    "predict": lambda f, p, x, y, **e: fitted(f, p).predict(x, **e),
}


@functools.lru_cache(maxsize=1)
def case(name):
    """Return a map, parameters of zeros, examples, and the graphs' edges."""
    fmap, shape = MAPS[name]()
    rng = np.random.default_rng(0)
    extras, x = {}, rng.normal(size=(1500, *shape)).astype(np.float32)
    if shape == NODES:
        extras["pattern"] = rng.integers(0, 6, (len(x), 8, 2), np.int32)
    sample = x[:300]
    if "sparse" in name and "dense" not in name:
        x = scipy.sparse.csr_array(np.where(rng.random(x.shape) < 0.1, x, 0))
        sample = x[:300]
    given = {"pattern": extras["pattern"][:300]} if extras else {}
    params = fmap.init(KEY, shape, sample=sample, **given)
    return fmap, params, x, extras


def taken(monkeypatch, entry, name, max_bytes):
    fmap, params, x, extras = case(name)
    found = []
    monkeypatch.setattr(_plan, "_on_cpu", lambda: False)
    for path, attribute in COMPILED:
        function = getattr(module(path), attribute)
        monkeypatch.setattr(module(path), attribute, Recorder(function, found))
    make = module("linear_model._fit_gradient")._make_step
    monkeypatch.setattr(
        module("linear_model._fit_gradient"),
        "_make_step",
        lambda *a: Recorder(make(*a), found),
    )
    y = np.zeros(x.shape[0], np.float32)
    with pytest.raises(Stop):
        ENTRIES[entry](fmap, params, x, y, max_bytes=max_bytes, **extras)
    return found[0]


def in_work(name, batch_size, rows):
    """Return what the plan states for a batch of which some rows are in work."""
    fmap, _, x, _ = case(name)
    plan, itemsize = module("features._transform").work_plan(fmap, x)
    return plan.with_sizes(batch_size, rows).work_bytes(itemsize)


# What the sums of a fit take, with 96 columns.
SUMS = 2**18
QUICK = {
    "fit": ("flat variance_reduced", "image ntk_random_features"),
    "transform": ("compressed sparse",),
}


@pytest.mark.parametrize("entry, name", [(e, n) for e in QUICK for n in QUICK[e]])
def test_compiled_functions_stay_within_max_bytes(monkeypatch, entry, name):
    budget = in_work(name, 100, 4)
    memory = taken(monkeypatch, entry, name, budget)
    assert memory.temp_size_in_bytes < budget + SUMS


@pytest.mark.long
@pytest.mark.parametrize("name", MAPS)
def test_every_function_with_every_kind_of_map(monkeypatch, name):
    above, budget = {}, in_work(name, 100, 4)
    for entry in ENTRIES:
        with monkeypatch.context() as patch:
            memory = taken(patch, entry, name, budget)
        if memory.temp_size_in_bytes > budget + SUMS:
            above[entry] = memory.temp_size_in_bytes / budget
    assert not above


def test_without_a_limit_more_is_taken(monkeypatch):
    """The tests above can fail."""
    name = "image ntk_random_features"
    memory = taken(monkeypatch, "batch of 100", name, 2**40)
    assert memory.temp_size_in_bytes > 2 * in_work(name, 100, 4)


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_does_not_fit_is_refused_with_its_bytes(monkeypatch, entry):
    """Before anything is compiled, so that nothing was allocated."""
    name = "flat variance_reduced"
    fmap, params, x, _ = case(name)
    size = {"batch of 100": 100, "fit_gradient": 64}.get(entry, 1)
    needed = in_work(name, size, 1)
    owner = "transform" if "batch" in entry else entry
    text = f"^{owner}: max_bytes must be at least {needed}, which is what one example "
    y = np.zeros(len(x), np.float32)
    for path, attribute in COMPILED:
        monkeypatch.setattr(module(path), attribute, Recorder(None, []))
    with pytest.raises(ValueError, match=text):
        ENTRIES[entry](fmap, params, x, y, max_bytes=needed - 1)
    # Without a number, the limit is all memory.
    monkeypatch.setattr(_plan, "machine_bytes", lambda: needed - 1)
    if size > 1 or entry in ("transform", "predict", "compress"):
        with pytest.raises(ValueError, match=f"takes {needed} bytes, and the device"):
            ENTRIES[entry](fmap, params, x, y)


def test_the_default_is_a_part_of_what_the_device_states(monkeypatch):
    stats = [{"bytes_limit": 2**34}]

    class Device:
        def memory_stats(self):
            return stats[0]

    monkeypatch.setattr(_plan, "_on_cpu", lambda: False)
    monkeypatch.setattr(_plan.jax, "local_devices", lambda: [Device()])
    assert _plan.memory_budget() == 2**32
    with pytest.raises(ValueError, match=f"takes {2**34 + 1} bytes, and .* {2**34};"):
        _plan.check_max_bytes("fit", None, 2**34 + 1, "it", "give less")
    stats[0] = None
    assert _plan.memory_budget() == 2**31


def test_results_do_not_depend_on_max_bytes():
    """In parts of a batch, which `apply` works on one after the other."""
    name = "flat variance_reduced"
    fmap, params, x, _ = case(name)
    x, y = x[:50], x[:50, 0]
    budget = in_work(name, 16, 2)
    model, whole = (
        lm.fit(fmap, params, x, y, reg=1e-2, batch_size=16, max_bytes=most)
        for most in (budget, None)
    )
    found = model.predict(x, max_bytes=budget)
    np.testing.assert_allclose(found, whole.predict(x), atol=1e-4)


def test_exact_kernels_are_computed_in_blocks():
    x = jax.random.normal(KEY, (50, 40))
    shapes = []

    def kernel_fn(x1, x2, get):
        shapes.append((len(x1), len(x1 if x2 is None else x2)))
        return dense_kernel(x1, x2, get)

    fmap = jns.feature_map(DEEP, num_features=M, method="ntk_random_features")
    whole = validation.compare(fmap, kernel_fn, x, key=KEY, num_seeds=1)
    assert set(shapes) == {(50, 50)}
    shapes.clear()
    parts = validation.compare(
        fmap, kernel_fn, x, key=KEY, num_seeds=1, max_bytes=2**14
    )
    assert shapes[-1] < (20, 20)
    wanted = whole.ntk.relative.mean
    assert parts.ntk.relative.mean == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(ValueError, match="exact kernel of two examples takes, got 600"):
        module("validation._exact_kernel").ExactKernel(dense_kernel_of_two, 600)(x)


def dense_kernel_of_two(x1, x2):
    return dense_kernel(x1, x2, "ntk")


@pytest.mark.long
def test_trials_on_images_are_bounded():
    """The kernel of 64 images of 16 x 16 pixels would be factored at once, 1 GiB."""
    fmap = jns.feature_map(recipes.cntk(1), num_features=64, method="ntk_sketch")
    x = np.random.default_rng(0).normal(size=(20, 8, 8, 3)).astype(np.float32)
    found = [
        validation.expected_error(fmap, x, key=KEY, max_bytes=most)
        for most in (2**20, 2**30)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    exact = module("validation._expected_error").kernel_of(fmap)
    kernel = module("validation._exact_kernel").ExactKernel(exact, 2**20)
    assert kernel._block_size(jnp.zeros((64, 8, 8, 3)), None) < 5


@pytest.mark.long
def test_landmarks_are_chosen_in_parts():
    fmap = jns.landmark_features(dense_kernel, num_features=20)
    x = np.random.default_rng(0).normal(size=(300, 40)).astype(np.float32)
    whole = fmap.init(KEY, (40,), sample=x)
    parts = fmap.init(KEY, (40,), sample=x, max_bytes=2**15)
    np.testing.assert_array_equal(whole["landmarks"], parts["landmarks"])
    phi, psi = fmap.apply(whole, x), fmap.apply(parts, x)
    np.testing.assert_allclose(phi @ phi.T, psi @ psi.T, atol=2e-3)
    with pytest.raises(ValueError, match=r"max_bytes must be at least .* got 99;"):
        fmap.init(KEY, (40,), sample=x, max_bytes=99)


@pytest.mark.long
def test_learning_states_what_it_takes():
    fmap = jns.feature_map(recipes.cntk(2), num_features=M, method="nystrom")
    x = np.zeros((30, *IMAGE), np.float32)
    needed = fmap.plan(IMAGE, sample=x).fit_bytes
    text = f"at least {needed}, which is what learning from 30 examples takes"
    with pytest.raises(ValueError, match=text):
        fmap.init(KEY, IMAGE, sample=x, max_bytes=needed - 1)
    memory = jax.jit(lambda x: fmap.init(KEY, IMAGE, sample=x)).lower(x).compile()
    assert memory.memory_analysis().temp_size_in_bytes < 2 * needed
