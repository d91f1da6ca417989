"""`choose`: the feature map that loses least on a sample."""

import dataclasses
import functools
import math
import sys
import time
import warnings
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch import stax
from jax_ntk_sketch._checks import check_get, check_key, check_size
from jax_ntk_sketch._numerics import seconds_per_flop
from jax_ntk_sketch._progress import is_shown
from jax_ntk_sketch._progress import progress as with_progress
from jax_ntk_sketch._protocol import FeatureMap, KernelFeatures, as_kinds
from jax_ntk_sketch._typing import Examples, Get, Key, Kind, PyTree, Task
from jax_ntk_sketch.features._feature_map import NetworkFeatureMap, feature_map
from jax_ntk_sketch.features._transform import transform
from jax_ntk_sketch.features.build import has_positions
from jax_ntk_sketch.features.methods.nystrom.network import replaces_network
from jax_ntk_sketch.kernels import exact_kernel, supports_exact_kernel
from jax_ntk_sketch.methods import NTKRandomFeatures, Nystrom
from jax_ntk_sketch.selection._landmarks_of_kernel import features_of_kernel
from jax_ntk_sketch.selection.candidates import (
    Candidate,
    candidates,
    most_landmarks,
)
from jax_ntk_sketch.selection.losses import (
    DistanceToMachine,
    ExpectedDistance,
    HeldOutError,
    Loss,
)
from jax_ntk_sketch.selection.rows import Rows, dense_coordinates, warn_if_sorted
from jax_ntk_sketch.selection.weighed import Weighed, WeighedMap
from jax_ntk_sketch.validation._exact_kernel import ExactKernel

# The rows that are compared, and the operations that the features of one map may take.
_MOST_ROWS, _FEWEST_ROWS, _MOST_FLOPS = 2048, 256, 1e12

# The most fitting rows for each column: then the three landmarks of a direction are at
# most half of the rows.
_ROWS_PER_COLUMN = 6

# A map whose loss is larger by this factor is as good if it is cheaper.
_HARDLY = 1.01

# The columns of the map that stands for a kernel that would take too long.
_REFERENCE_COLUMNS = 8192

# Seconds of a map besides its operations, most of them of compilation.
_SECONDS_PER_MAP = 3


def choose(
    key: Key,
    net: stax.Layer,
    num_features: int,
    *,
    sample: Examples,
    y: object = None,
    get: Get | Sequence[Kind] = "ntk",
    task: Task | None = None,
    max_bytes: int | None = None,
    progress: bool | None = None,
    pattern: PyTree = None,
    mask: PyTree = None,
) -> FeatureMap:
    """Return the map of a network that loses least on a sample.

    It does what `weigh` does, and shows the table of `weigh` on stderr.

    Args:
      key: a PRNG key.
      net: the network, a record of `jax_ntk_sketch.stax`.
      num_features: the number of columns.
      sample: n examples `(n, *shape)`, dense or sparse, finite and like those to come.
      y: their targets, or None; numbers `(n,)` or `(n, t)`, or class labels `(n,)`.
      get: "ntk", "nngp" or a tuple of both.
      task, max_bytes, progress, pattern, mask: as for `weigh`.

    Returns:
      A feature map, static and hashable, of sparse examples if the sample is sparse.
      Its `init(key, example, sample=sample)` is pure.

    Raises:
      TypeError, ValueError: as `weigh`.

    >>> import jax
    >>> import jax_ntk_sketch as jns
    >>> import numpy as np
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
    >>> x = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    >>> fmap = jns.choose(jax.random.key(0), net, 16, sample=x, y=x[:, 0])
    >>> params = fmap.init(jax.random.key(1), (3,), sample=x)
    >>> fmap.apply(params, x).shape
    (80, 16)
    """
    weighed = weigh(
        key,
        net,
        num_features,
        sample=sample,
        y=y,
        get=get,
        task=task,
        max_bytes=max_bytes,
        progress=progress,
        pattern=pattern,
        mask=mask,
    )
    if is_shown(progress):
        print(weighed, file=sys.stderr)
    return weighed.fmap


def weigh(
    key: Key,
    net: stax.Layer,
    num_features: int,
    *,
    sample: Examples,
    y: object = None,
    get: Get | Sequence[Kind] = "ntk",
    task: Task | None = None,
    max_bytes: int | None = None,
    progress: bool | None = None,
    pattern: PyTree = None,
    mask: PyTree = None,
) -> Weighed:
    r"""Weigh the maps of a network on a sample: methods, landmarks, compressed maps.

    At most 2048 examples of the sample are drawn, and a quarter of them are held out.
    Each map learns from the others, and ridge regression on its features predicts
    those held out. The loss is the distance of these predictions from those of exact
    kernel ridge regression, over their size. With y the penalty is the one of the
    machine's smallest leave-one-out error. Without y the loss is the expected one for
    targets of the kernel's own prior, the geometric mean over penalties of 1e-5 to
    1e-2 of the kernel's mean diagonal.

    For networks that `kernels.supports_exact_kernel` does not know, such as those of
    images and graphs, the loss is the held-out error of y. Without y, 8192 random
    features stand for the kernel. Fewer examples are drawn if their features take long.

    Maps of a sparse sample are those of `with_sparse_inputs`, with at least 4096 and at
    least 4 `num_features` numbers in a sketch. The loss counts the error of the sketch.
    No array (n, d) is made.

    Args:
      key: a PRNG key.
      net: the network, a record of `jax_ntk_sketch.stax`.
      num_features: the number of columns of the map that is wanted. As many columns for
        each fitting row are compared, but at most a half and at least a sixth, or all.
      sample: n >= 8 examples `(n, *shape)`, finite and like those to come; or sparse
        examples (n, d), `SparseRows` or any format of scipy.sparse.
      y: their targets, or None; numbers `(n,)` or `(n, t)`, or class labels `(n,)`.
      get: "ntk", "nngp" or a tuple of both, whose losses count alike.
      task: "regression" or "classification", where `y` leaves it open.
      max_bytes: the bytes that examples in work may take, as `transform` takes them.
      progress: True to show progress on stderr, False not to, None (default) to show it
        if stderr is a terminal.
      pattern, mask: the edges and nodes of the sample, if its examples are graphs.

    Returns:
      A `Weighed`: the maps with their losses, and the one that is chosen.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: the sample has fewer than 8 examples, or one that is not finite; y has
        another length; no map supports the network; a sparse sample has edges or
        nodes.

    Warns:
      UserWarning: the rows of the sample are sorted by length. If the sample is the
        head of a longer array, its rows are not like those to come.

    Cost: about a minute on two cores, and no more for more than 2048 examples.

    >>> import jax
    >>> import jax_ntk_sketch as jns
    >>> import numpy as np
    >>> from jax_ntk_sketch import stax
    >>> net = stax.serial(stax.Dense(9), stax.Relu(), stax.Dense(1))
    >>> x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    >>> weighed = jns.weigh(jax.random.key(0), net, 8, sample=x)
    >>> weighed.measure
    'expected distance to the exact predictions'
    """
    owner = "choose"
    key = check_key(owner, key)
    num_features = check_size(owner, "num_features", num_features)
    wanted: Get = get if isinstance(get, str) else check_get(owner, get)
    rows = Rows.read(owner, sample, y, task, {"pattern": pattern, "mask": mask})
    warn_if_sorted(owner, rows.x)
    made = candidates(net, wanted, sparse=rows.is_sparse)
    flops = {name: _flops(make, num_features, rows) for name, make in made.items()}
    known = [number for number, _ in flops.values() if math.isfinite(number)]
    most = _MOST_FLOPS / float(np.median(known)) if known else _MOST_ROWS
    most = int(np.clip(most, _FEWEST_ROWS, _MOST_ROWS))
    split_key, reference_key, map_key = jax.random.split(key, 3)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(split_key)))
    fitting, held_out = rows.split(rng, most)
    same = dense_coordinates(fitting, held_out)
    kernels = {
        kind: _kernels(reference_key, net, kind, *same, max_bytes)
        for kind in as_kinds(wanted)
    }
    losses = {kind: _loss(found, *same) for kind, found in kernels.items()}
    exact = {kind: found for kind, found in kernels.items() if found and found.exact}
    scale = _Comparison(num_features, len(rows), fitting, held_out, exact, max_bytes)
    shown = is_shown(progress)
    if shown:
        work = sum(min(number, _MOST_FLOPS / most) for number in known) * most
        seconds = _SECONDS_PER_MAP * len(known) + work * seconds_per_flop()
        print(
            f"{owner}: weighs {len(known)} maps on {len(fitting) + len(held_out)} "
            f"examples, which takes about {seconds:.0f} s",
            file=sys.stderr,
        )
    entries: list[WeighedMap] = []
    different: dict[FeatureMap, str] = {}
    for name, make in made.items():
        try:
            # Some are equal, for example where all rows are landmarks. Of these the
            # last one has the most landmarks if there are more rows or columns.
            different[make(scale.columns, scale.landmarks)] = name
        except ValueError as error:
            why_not = flops[name][1] or str(error)
            entries.append(WeighedMap(name, None, math.nan, math.nan, 0.0, why_not))
    entries += [
        _weigh_one(map_key, name, fmap, made[name], flops[name], losses, scale)
        for fmap, name in with_progress(different.items(), owner, len(different), shown)
    ]
    measured = next(iter(losses.values()))
    return Weighed.of(
        entries,
        hardly=_HARDLY,
        measure=measured.name,
        num_fitted=len(fitting),
        num_held_out=len(held_out),
        num_columns=scale.columns,
        penalty=measured.relative_penalty,
    )


def _flops(make: Candidate, columns: int, rows: Rows) -> tuple[float, str]:
    """Return the operations of one example, or NaN and why there is no such map."""
    # The operations of sparse examples are those of their nonzeros.
    example = rows.x if rows.is_sparse else rows.shape
    try:
        return float(make(columns, len(rows)).plan(example).flops), ""
    except ValueError as error:
        return math.nan, str(error)


@dataclasses.dataclass(frozen=True, eq=False)
class _Kernels:
    """The kernel of the fitting rows (n, n) and of the held-out ones with them, (h, n).

    Attributes:
      k, cross: float64.
      exact: whether they are not those of random features.
    """

    k: NDArray
    cross: NDArray
    exact: bool


@dataclasses.dataclass(frozen=True, eq=False)
class _Comparison:
    """The rows of the comparison, and the sizes of the map that is wanted.

    Attributes:
      num_features: the columns of the map that is wanted.
      num_rows: the rows that it will learn from.
      fitting, held_out: the rows of the comparison.
      exact: their exact kernels, where they are known.
      max_bytes: as `transform` takes it.
    """

    num_features: int
    num_rows: int
    fitting: Rows
    held_out: Rows
    exact: dict[Kind, _Kernels]
    max_bytes: int | None

    @property
    def columns(self) -> int:
        """The columns of the comparison.

        There are as many for each fitting row as in the end, but at most a half and at
        least a sixth, or all.
        """
        n = len(self.fitting)
        share = n * self.num_features / self.num_rows
        most = min(self.num_features, n // 2)
        return max(1, math.ceil(min(most, max(share, n / _ROWS_PER_COLUMN))))

    @property
    def landmarks(self) -> int:
        """The most landmarks of the comparison: as many per column as in the end.

        It is all fitting rows where all rows are landmarks in the end.
        """
        n, most = len(self.fitting), most_landmarks(self.num_features)
        if most >= self.num_rows:
            return n
        return min(n, math.ceil(most * self.columns / self.num_features))


def _kernels(
    key: Key,
    net: stax.Layer,
    kind: Kind,
    fitting: Rows,
    held_out: Rows,
    max_bytes: int | None,
) -> _Kernels | None:
    """Return the kernels of the comparison, or None if targets take their place."""
    if supports_exact_kernel(net) and not has_positions(net, fitting.shape):
        x, new = (rows.x.reshape(len(rows), -1) for rows in (fitting, held_out))
        function = functools.partial(exact_kernel, net, get=kind)
        kernel = ExactKernel(function, max_bytes, "choose")
        return _Kernels(kernel(x), kernel(new, x), exact=True)
    if fitting.y is not None:
        return None
    fmap = feature_map(
        net, num_features=_REFERENCE_COLUMNS, get=kind, method=NTKRandomFeatures()
    )
    params = fmap.init(key, fitting.shape)
    phi, new = _features(fmap, params, fitting, held_out, max_bytes)
    return _Kernels(phi @ phi.T, new @ phi.T, exact=False)


def _loss(kernels: _Kernels | None, fitting: Rows, held_out: Rows) -> Loss:
    """Return the loss of maps of one kernel."""
    if kernels is None:
        assert fitting.y is not None and held_out.y is not None
        return HeldOutError(fitting.y, held_out.y)
    if fitting.y is None:
        return ExpectedDistance(kernels.k, kernels.cross)
    return DistanceToMachine(kernels.k, kernels.cross, fitting.y)


def _features(
    fmap: FeatureMap,
    params: PyTree,
    fitting: Rows,
    held_out: Rows,
    max_bytes: int | None,
) -> PyTree:
    """Return the features of both, (n, m) and (k, m), float64; or tuples of them."""

    # One pass compiles the map once.
    rows, n = fitting.with_rows(held_out), len(fitting)
    phi = transform(
        fmap, params, rows.x, max_bytes=max_bytes, progress=False, **rows.extras
    )
    phi = jax.tree.map(lambda a: np.asarray(a, np.float64), phi)
    return jax.tree.map(lambda a: a[:n], phi), jax.tree.map(lambda a: a[n:], phi)


def _features_by_kind(
    key: Key, fmap: FeatureMap, kinds: Iterable[Kind], scale: _Comparison
) -> dict[Kind, tuple[NDArray, NDArray]]:
    """Return the features of the fitting and of the held-out rows, for each kernel."""
    method, fitting = fmap.method, scale.fitting
    if (
        scale.exact
        and isinstance(method, Nystrom)
        and isinstance(fmap, NetworkFeatureMap)
        and replaces_network(fmap.net)
    ):
        return {
            kind: features_of_kernel(key, method, scale.columns, known.k, known.cross)
            for kind, known in scale.exact.items()
        }
    with warnings.catch_warnings():
        # The map that is wanted warns when it is made.
        warnings.simplefilter("ignore")
        params = fmap.init(key, fitting.shape, sample=fitting.x, **fitting.extras)
        phi, new = _features(fmap, params, fitting, scale.held_out, scale.max_bytes)
    if not isinstance(phi, KernelFeatures):
        return dict.fromkeys(kinds, (phi, new))
    return {kind: (getattr(phi, kind), getattr(new, kind)) for kind in kinds}


def _weigh_one(
    key: Key,
    name: str,
    fmap: FeatureMap,
    make: Candidate,
    flops_or_why: tuple[float, str],
    losses: dict[Kind, Loss],
    scale: _Comparison,
) -> WeighedMap:
    """Return a map with its loss on the rows of the comparison."""
    start, fitting, held_out = time.perf_counter(), scale.fitting, scale.held_out
    flops, why_not = flops_or_why
    if why_not:
        return WeighedMap(name, None, math.nan, flops, 0.0, why_not)
    if flops * (len(fitting) + len(held_out)) > 4 * _MOST_FLOPS:
        return WeighedMap(name, None, math.nan, flops, 0.0, "takes too long")
    try:
        found = _features_by_kind(key, fmap, losses, scale)
    except ValueError as error:  # too few columns, or features that overflow
        return WeighedMap(name, None, math.nan, flops, 0.0, str(error))
    parts = [loss(*found[kind]) for kind, loss in losses.items()]
    value = float(np.exp(np.mean(np.log(np.maximum(parts, 1e-300)))))
    wanted = make(scale.num_features, scale.num_rows)
    return WeighedMap(name, wanted, value, flops, time.perf_counter() - start)
