"""Error measures against their definitions, and reports of what was measured."""

import dataclasses
import json
from collections import namedtuple
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ntk_sketch import methods, validation
from jax_ntk_sketch._plan import Plan, PlanRow
from jax_ntk_sketch.validation import measures
from jax_ntk_sketch.validation._exact_kernel import ExactKernel
from jax_ntk_sketch.validation.report import Comparison, Estimate, KernelErrors

Both = namedtuple("Both", ["nngp", "ntk"])
KEY = jax.random.key(0)
METHOD = methods.NTKRandomFeatures()
N, D = 40, 6
X = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)


def linear_kernel(x1, x2, get):
    """x1 @ x2.T, called as Neural Tangents' kernels are; the NNGP is twice it."""
    x1 = np.asarray(x1, np.float64)
    kernel = x1 @ (x1 if x2 is None else np.asarray(x2)).T
    one = {"ntk": kernel, "nngp": 2 * kernel}
    return one[get] if isinstance(get, str) else Both(*(one[k] for k in Both._fields))


def projection(num_features, get="ntk"):
    """Gaussian projections, unbiased features of the linear kernel."""

    def init(key, example, sample=None):
        return jax.random.normal(key, (example[-1], num_features))

    def apply(w, x):
        phi = x @ w / num_features**0.5
        return phi if isinstance(get, str) else Both(2**0.5 * phi, phi)

    return Map(init, apply, get, num_features)


@dataclasses.dataclass(frozen=True)
class Map:
    """A feature map of two functions."""

    init: Callable = lambda key, shape, sample=None: None
    function: Callable = lambda params, x: x
    get: str | tuple = "ntk"
    num_features: int = D
    method: methods.Method = METHOD

    @property
    def kinds(self):
        return (self.get,) if isinstance(self.get, str) else self.get

    def apply(self, params, x, batch_size=None):
        return self.function(params, x)

    def plan(self, example, sample=None, batch_size=None):
        rows = (PlanRow("all", 0, self.num_features, 0, 0, 1),)
        return Plan(rows, "a method", example, self.num_features, 1, 1)


def identity():
    """The exact features of the linear kernel."""
    return Map()


def psd(n=12, rank=12, seed=0):
    a = np.random.default_rng(seed).standard_normal((n, rank))
    return a @ a.T


# --- measures -------------------------------------------------------------------


def test_measures_are_their_formulas():
    K, K_hat = psd(seed=1), psd(seed=2)
    H = np.eye(12) - 1 / 12
    norm = np.linalg.norm
    assert validation.relative_error(K, K_hat) == pytest.approx(
        norm(K - K_hat) / norm(K), rel=1e-14
    )
    assert validation.centered_relative_error(K, K_hat) == pytest.approx(
        norm(H @ (K - K_hat) @ H) / norm(H @ K @ H), rel=1e-12
    )
    assert validation.max_abs_error(K, K_hat) == pytest.approx(
        np.abs(K - K_hat).max() / np.abs(K).max(), rel=1e-14
    )


def test_the_centered_error_is_blind_to_a_constant():
    K = psd()
    assert validation.centered_relative_error(K, K + 7) < 1e-14
    assert validation.relative_error(K, K + 7) > 0.1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("reg", [1e-4, 1e-1, 10.0])
def test_the_spectral_error_is_the_least_that_satisfies_both_inequalities(seed, reg):
    K, K_hat = psd(rank=8, seed=seed), psd(rank=5, seed=seed + 10)
    epsilon = validation.spectral_error(K, K_hat, reg)
    shift = reg * 12 * np.eye(12)

    def least_eigenvalue(epsilon):
        upper = (1 + epsilon) * (K + shift) - (K_hat + shift)
        lower = (K_hat + shift) - (1 - epsilon) * (K + shift)
        return min(np.linalg.eigvalsh(upper)[0], np.linalg.eigvalsh(lower)[0])

    assert least_eigenvalue(epsilon * (1 + 1e-9)) > -1e-9
    assert least_eigenvalue(epsilon * (1 - 1e-4)) < 0


def test_the_spectral_error_of_a_multiple():
    K = psd()
    assert validation.spectral_error(K, 1.25 * K, 0) == pytest.approx(0.25, rel=1e-9)
    assert validation.spectral_error(K, K, 0.1) == 0
    # Without the penalty a lost direction is an error of 1.
    assert validation.spectral_error(np.eye(2), np.diag([1.0, 0]), 0) == 1
    # With it, (0 - 1) / (1 + 0.5 * 2).
    assert validation.spectral_error(
        np.eye(2), np.diag([1.0, 0]), 0.5
    ) == pytest.approx(0.5)


def test_an_indefinite_kernel_raises():
    with pytest.raises(np.linalg.LinAlgError, match="must be positive definite"):
        validation.spectral_error(np.diag([1.0, -1.0]), np.eye(2), 0.1)


@pytest.mark.parametrize("slope", [-0.5, -1.0, 0.3])
def test_fitted_slope_of_a_power(slope):
    m = np.array([64, 128, 1024, 8192])
    assert measures.loglog_slope(m, 3 * m**slope) == pytest.approx(slope, abs=1e-12)


@pytest.mark.parametrize(
    "call, match",
    [
        (
            lambda: validation.relative_error(np.eye(3), np.eye(4)),
            r"one shape \(n, n\)",
        ),
        (lambda: validation.relative_error(np.ones(3), np.ones(3)), r"\(3,\) and \(3,"),
        (
            lambda: validation.relative_error(np.eye(2), np.eye(2) * np.nan),
            "K_hat must be finite",
        ),
        (
            lambda: validation.max_abs_error(np.zeros((2, 2)), np.eye(2)),
            "K must not be zero",
        ),
        (lambda: validation.spectral_error(np.eye(2), np.eye(2), -1), "reg must be"),
        (lambda: measures.loglog_slope([1, 1], [1, 2]), "two different num_features"),
        (lambda: measures.loglog_slope([1, 2], [1, 0]), "must be positive"),
        (lambda: measures.loglog_slope([1, 2], [1]), r"\(2,\) and \(1,\)"),
    ],
)
def test_measures_name_the_argument_at_fault(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# --- compare --------------------------------------------------------------------


def test_exact_features_have_no_error():
    report = validation.compare(identity(), linear_kernel, X, key=KEY, num_seeds=2)
    errors = report.ntk
    for estimate in (errors.relative, errors.centered, errors.max_abs):
        assert estimate.mean < 1e-14 and estimate.standard_error < 1e-14
    assert errors.spectral.mean < 1e-12
    assert report.nngp is None and report.kinds == ("ntk",)
    assert (report.num_features, report.num_examples, report.reg) == (D, N, 1e-3)


def test_the_error_of_gaussian_projections_is_that_of_theory():
    # E |K - K_hat|_F^2 = (|K|_F^2 + tr(K)^2) / m for normal W, exactly.
    m, seeds = 64, 200
    report = validation.compare(
        projection(m), linear_kernel, X, key=KEY, num_seeds=seeds
    )
    squares = np.square(report.ntk.relative.values)
    K = linear_kernel(X, None, "ntk")
    exact = (1 + (np.trace(K) / np.linalg.norm(K)) ** 2) / m
    # 4 standard errors: a false alarm in 16,000.
    assert abs(squares.mean() - exact) < 4 * squares.std(ddof=1) / seeds**0.5


def test_values_are_those_of_one_split_of_the_key():
    fmap = projection(32)
    report = validation.compare(fmap, linear_kernel, X, key=KEY, num_seeds=3, reg=0.1)
    K = linear_kernel(X, None, "ntk")
    for i, key in enumerate(jax.random.split(KEY, 3)):
        phi = np.asarray(fmap.apply(fmap.init(key, (D,)), jnp.asarray(X)), np.float64)
        for name, measure in (
            ("relative", validation.relative_error),
            ("centered", validation.centered_relative_error),
            ("max_abs", validation.max_abs_error),
            ("spectral", lambda K, K_hat: validation.spectral_error(K, K_hat, 0.1)),
        ):
            value = getattr(report.ntk, name).values[i]
            assert value == pytest.approx(measure(K, phi @ phi.T), rel=1e-5)
    assert len(set(report.ntk.relative.values)) == 3


def test_errors_fall_like_the_square_root():
    sizes = [32, 128, 512]
    reports = [
        validation.compare(projection(m), linear_kernel, X, key=KEY, num_seeds=20)
        for m in sizes
    ]
    for name in ("relative", "centered", "max_abs", "spectral"):
        errors = [getattr(r.ntk, name).mean for r in reports]
        assert -0.65 < measures.loglog_slope(sizes, errors) < -0.4, name


def test_both_kernels_and_either_of_them():
    fmap = projection(32, get=("nngp", "ntk"))
    both = validation.compare(fmap, linear_kernel, X, key=KEY)
    assert both.kinds == ("nngp", "ntk")
    # The NNGP here is twice the NTK, of features sqrt 2 as large.
    assert both.nngp.relative.mean == pytest.approx(both.ntk.relative.mean, rel=1e-5)
    one = validation.compare(fmap, linear_kernel, X, key=KEY, get="nngp")
    assert one.kinds == ("nngp",) and one.nngp == both.nngp


def test_the_kernel_is_computed_once():
    calls = []

    def kernel_fn(x1, x2, get):
        result = linear_kernel(x1, x2, get)  # it cannot be traced
        calls.append((x2, get))
        return result

    validation.compare(projection(8), kernel_fn, X, key=KEY)
    assert calls == [(None, "ntk")]


@pytest.mark.parametrize("max_bytes", [1000, None])
def test_kernels_in_blocks(max_bytes):
    """All blocks have one size, and the last ones are padded."""

    def kernel(x, z):
        return x @ (x if z is None else z).T

    x, z = X[:31], X[31:38]
    for run in (kernel, jax.jit(kernel)):
        exact = ExactKernel(run, max_bytes)
        for pair in ((x, None), (z, x)):
            found = exact(*pair)
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, kernel(*pair), rtol=1e-5, atol=1e-5)


def test_the_sample_is_what_init_sees():
    seen = []

    def init(key, shape, sample=None):
        seen.append((shape, sample is not None and sample.shape))

    fmap = Map(init)
    validation.compare(fmap, linear_kernel, X, key=KEY, num_seeds=1)
    validation.compare(fmap, linear_kernel, X, key=KEY, num_seeds=1, sample=X[:5])
    assert seen == [((D,), False), ((D,), (5, D))]


def with_nan():
    x = X.copy()
    x[[3, 7], 0] = np.nan
    return x


def broken(value):
    return Map(function=lambda params, x: value)


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        ({"key": None}, TypeError, "key must be a JAX PRNG key, got None"),
        ({"params": 0}, ValueError, "key must be None if params are given"),
        ({"num_seeds": 0}, ValueError, "num_seeds must be an integer >= 1, got 0"),
        ({"num_seeds": 2.0}, TypeError, "num_seeds must be an integer"),
        ({"get": "nngp"}, ValueError, r"get must be among \('ntk',\).*got 'nngp'"),
        ({"get": ()}, ValueError, "get must be among"),
        ({"x": with_nan()}, ValueError, "x must be finite, but its rows 3, 7 are not"),
        ({"x": X[0]}, ValueError, r"x must have shape \(n, \.\.\.\)"),
        ({"reg": -1.0}, ValueError, "reg must be finite and >= 0"),
        (
            {"kernel_fn": lambda x1, x2, get: np.eye(3)},
            ValueError,
            r"finite \(40, 40\) matrix for 'ntk', got shape \(3, 3\)",
        ),
        (
            {"kernel_fn": lambda x1, x2, get: np.full((N, N), np.inf)},
            ValueError,
            "not finite",
        ),
        (
            {
                "fmap": projection(4, get=("nngp", "ntk")),
                "kernel_fn": lambda x1, x2, get: np.eye(N),
            },
            TypeError,
            "with the attributes",
        ),
        ({"fmap": broken(jnp.ones(3))}, ValueError, r"\(64, m\) .* got shape \(3,\)"),
        ({"fmap": len}, TypeError, "fmap must be a feature map"),
        (
            {"fmap": broken(jnp.ones((64, 2)).at[5].set(jnp.nan))},
            ValueError,
            "ntk features must be finite, but those of seed 0 are not in rows 5",
        ),
    ],
)
def test_compare_names_the_argument_at_fault(kwargs, error, match):
    arguments = {"fmap": projection(4), "kernel_fn": linear_kernel, "x": X, "key": KEY}
    with pytest.raises(error, match=match):
        validation.compare(**(arguments | kwargs))


# --- reports --------------------------------------------------------------------


@pytest.fixture(scope="module")
def report():
    return validation.compare(
        projection(32, get=("nngp", "ntk")), linear_kernel, X, key=KEY, label="a|b"
    )


def test_estimates_are_means_with_standard_errors():
    values = (0.1, 0.12, 0.17)
    estimate = Estimate(values)
    assert estimate.mean == pytest.approx(np.mean(values))
    expected = np.std(values, ddof=1) / 3**0.5
    assert estimate.standard_error == pytest.approx(expected)
    assert str(estimate) == "0.13 ± 0.02"
    assert str(Estimate((2.5, 2.52))) == "2.51 ± 0.01"
    assert str(Estimate((1e-9, 2e-9))) == "1.5e-09 ± 5e-10"
    assert str(Estimate((1234.0, 1300.0))) == "1267 ± 33"
    assert str(Estimate((0.0, 0.0))) == "0"
    with pytest.raises(ValueError, match="finite numbers"):
        Estimate((0.1, np.nan))
    with pytest.raises(ValueError, match="finite numbers"):
        Estimate(())


def test_json_is_strict_and_complete(report):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    for one in (
        report,
        validation.compare(projection(4), linear_kernel, X, key=KEY, num_seeds=1),
    ):
        text = one.to_json()
        data = json.loads(text, parse_constant=refuse)
        assert data["num_features"] == one.num_features and data["reg"] == one.reg
        assert data["ntk"]["spectral"]["values"] == list(one.ntk.spectral.values)
        assert data["ntk"]["relative"]["mean"] == one.ntk.relative.mean
    assert data["ntk"]["relative"]["standard_error"] is None and data["nngp"] is None


def test_one_seed_has_no_standard_error():
    one = validation.compare(projection(8), linear_kernel, X, key=KEY, num_seeds=1)
    assert one.ntk.relative.standard_error is None
    assert "no standard error over 1 seed;" in str(one) and "±" not in str(one)


def test_text_is_aligned(report):
    lines = str(report).splitlines()
    assert len(lines) == 5 and "reg = 0.001" in lines[-2]
    assert lines[-1] == "Measured: a method."
    assert lines[0].index("num_features") == lines[1].index("32")
    assert lines[0].index("spectral") == lines[1].index(str(report.nngp.spectral))
    assert lines[0].index("spectral") == lines[2].index(str(report.ntk.spectral))


def at(m, label, values=(1.0, 1.2)):
    errors = KernelErrors(*[Estimate(tuple(v * m**-0.5 for v in values))] * 4)
    return Comparison(m, N, 2, 1e-3, ntk=errors, label=label)


def test_plots_join_a_line_for_each_label(tmp_path):
    pytest.importorskip("matplotlib")
    many = [at(m, label) for label in ("one", "two") for m in (256, 64, 1024)]
    axes = validation.plot_comparisons(many)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["one (slope -0.50)", "two (slope -0.50)"]
    assert axes.get_yscale() == "log" and "NTK" in axes.get_ylabel()
    axes.figure.draw_without_rendering()
    legend, curves = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert legend.y1 < curves.y0
    assert validation.plot_comparisons(many, axes, measure="spectral") is axes
    axes.figure.savefig(tmp_path / "many.png")
    assert (tmp_path / "many.png").stat().st_size > 5000


def test_plots_name_the_argument_at_fault(report, monkeypatch):
    with pytest.raises(ValueError, match="measure must be one of"):
        validation.plot_comparisons([report], measure="error")
    with pytest.raises(ValueError, match="one of kind 'nngp', got none"):
        validation.plot_comparisons([at(4, "")], kind="nngp")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "jax_ntk_sketch\[plots\]"'):
        validation.plot_comparisons([report])
