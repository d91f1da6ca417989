"""`fit`: from data and a network to a model, with an honest error."""

import dataclasses
import math
import sys
import time
import warnings

import jax
import numpy as np
from numpy.typing import NDArray

from jax_ntk_sketch import linear_model, stax
from jax_ntk_sketch._checks import check_choice, check_key, check_number, check_size
from jax_ntk_sketch._files import machine_bytes
from jax_ntk_sketch._plan import memory_budget
from jax_ntk_sketch._progress import is_shown
from jax_ntk_sketch._protocol import FeatureMap
from jax_ntk_sketch._typing import (
    KINDS,
    TASKS,
    Examples,
    Key,
    Kind,
    PyTree,
    Targets,
    Task,
)
from jax_ntk_sketch.features._feature_map import feature_map
from jax_ntk_sketch.features._transform import transform
from jax_ntk_sketch.linear_model import FittedModel
from jax_ntk_sketch.linear_model.ridge import sums_on_host
from jax_ntk_sketch.methods import Nystrom
from jax_ntk_sketch.model import size
from jax_ntk_sketch.model.error_estimate import ErrorEstimate
from jax_ntk_sketch.model.leave_one_out import LeftOut, Spread, least
from jax_ntk_sketch.model.machine import Machine, settle
from jax_ntk_sketch.model.model import Model, Uncertainty
from jax_ntk_sketch.model.table import Missing
from jax_ntk_sketch.model.training import Training, some_rows
from jax_ntk_sketch.selection import Weighed, weigh
from jax_ntk_sketch.selection.candidates import WIDTH, most_landmarks
from jax_ntk_sketch.selection.weighed import WeighedMap

# Penalties per example that are tried, over the mean squared norm of the features
# around their mean.
_POWERS = np.arange(-9.0, 1.1, 0.5)

# Up to this number of columns all penalties are compared by leave-one-out errors, and
# beyond those near the one of the smallest generalized cross-validation.
_FEW_COLUMNS = 1024

# The most bytes of examples in work. Sums take long for batches of one image.
_MOST_IN_WORK = 2**31

# The fewest rows that maps are weighed on.
_FEWEST_TO_WEIGH = 8

# The most columns of maps of images and graphs: so many for each example, but at least
# the first and at most the second number.
_PER_EXAMPLE, _LEAST_MOST, _MOST = 4, 512, 2048


def fit(
    key: Key,
    net: stax.Layer | None,
    x: Examples,
    y: Targets = None,
    *,
    task: Task | None = None,
    get: Kind | None = None,
    num_features: int | None = None,
    sample_weight: Targets = None,
    missing: Missing = "raise",
    seconds: float = 600.0,
    max_memory: int | None = None,
    max_bytes: int | None = None,
    progress: bool | None = None,
    pattern: PyTree = None,
    mask: PyTree = None,
) -> Model:
    r"""Fit a kernel machine of a network to data: the whole job in one call.

    Columns of numbers are scaled in the way of the smallest leave-one-out error, and
    text becomes one-hot codes. Without a network, one is chosen by the same error.
    Up to as many rows as time and memory allow, the machine is that of the exact
    kernel. Beyond, `jax_ntk_sketch.choose` finds the map. Ridge regression on its
    features takes the penalty of the smallest leave-one-out error, and these errors
    tell what to expect on new examples.

    Args:
      key: a PRNG key.
      net: a network of `jax_ntk_sketch.stax`; None to choose depth, `b_std` and the
        kernel for rows of numbers, and `recipes.cntk(3)` or `recipes.gntk(2)` for
        images and graphs.
      x: n >= 2 examples: an array `(n, *shape)`, a memory map, sparse rows, a table of
        pandas, polars or Arrow, `jax_ntk_sketch.graphs.Graphs`; or, without y, an
        iterable of batches `(x, y)`, which are gathered in memory. Columns of text and
        of categories become one-hot codes. 8-bit images are divided by 255.
      y: targets `(n,)` or `(n, t)`. Integers, booleans and text `(n,)` are class
        labels.
      task: "regression" if integers are numbers, "classification" if floats are labels.
      get: "ntk" or "nngp". By default "ntk", or what is better without a network.
      num_features: the number of columns; by default as many as the budgets allow. For
        fully connected networks n columns are exact, and more are not made.
      sample_weight: `(n,)`, >= 0. Only ratios matter.
      missing: "raise" to name a column with missing cells, "impute" to replace numbers
        by the median, and text by none of the levels.
      seconds: the budget of time, > 0. The columns are those that take about a third of
        it, because estimates are rough. A fit that takes longer is not stopped.
      max_memory: the budget of memory in bytes; by default half of the machine's.
      max_bytes: the bytes that examples in work may take, as `transform` takes them; by
        default an eighth of `max_memory`, at most 2 GiB, or what `transform` has.
      progress: True to show progress on stderr, False not to, None (default) to show it
        if stderr is a terminal.
      pattern, mask: the edges and nodes of x, if its examples are graphs.

    Returns:
      A `Model`, which prints what was chosen and why.

    Raises:
      TypeError: an argument has the wrong type; a column holds dates.
      ValueError: the lengths of x and y differ; there are fewer than two examples or
        classes; a number is missing or not finite, and the message names where; or
        `max_memory` is too small for any model.

    Warns:
      RuntimeWarning: the targets are constant, or floats that may be labels.

    Cost: that of `linear_model.fit`, and a second look at no more than 20,000 rows. It
    is announced on stderr where progress is shown, and is in `Model.work`.
    Guarantee: the leave-one-out errors are exact for the features and the penalty. That
    these were chosen by the same rows is left out.

    >>> import jax
    >>> import jax_ntk_sketch as jns
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
    >>> label = np.where(x[:, 0] > x[:, 1], "left", "right")
    >>> model = jns.fit(jax.random.key(0), None, x, label)
    >>> float((model.predict_class(x) == label).mean()) > 0.9
    True
    >>> model.error.value < 0.2
    True
    """
    start = time.perf_counter()
    key = check_key("fit", key)
    check_choice("fit", "missing", missing, ("raise", "impute"))
    if task is not None:
        check_choice("fit", "task", task, TASKS)
    if get is not None:
        check_choice("fit", "get", get, KINDS)
    seconds = check_number("fit", "seconds", seconds, above=0)
    extras = {"pattern": pattern, "mask": mask}
    data = Training.read(
        x, y, task=task, weight=sample_weight, missing=missing, extras=extras
    )
    if np.ptp(data.codes, axis=0).max() == 0:
        warnings.warn(
            "fit: y is constant, so that the model predicts this constant only",
            RuntimeWarning,
            stacklevel=2,
        )
    rows_key, map_key, init_key = jax.random.split(key, 3)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(rows_key)))
    if max_bytes is None:
        memory = max_memory or machine_bytes()
        max_bytes = max(memory_budget(), min(memory // 8, _MOST_IN_WORK))
    machine = settle(net, get, data, rng)
    work = _work(machine, data, num_features, seconds, max_memory)
    if is_shown(progress):
        print(f"fit: {work}", file=sys.stderr)
    features = _choose(
        map_key, init_key, machine, data, work, seconds, rng, max_bytes, progress
    )
    fitted = _regress(features, data, max_bytes, progress)
    reg, left_out, spread = _leave_out(features, fitted, data, rng, max_bytes)
    fitted = dataclasses.replace(
        fitted,
        best=fitted.all_models.select(reg),
        preprocessing=machine.inputs,
        sums=None,
    )
    penalty = float(fitted.best.reg)
    return Model(
        fitted=fitted,
        table=data.table,
        scale=data.scale,
        error=ErrorEstimate.of(left_out, len(data), data.scale),
        uncertainty=Uncertainty.of(left_out, spread, penalty * spread.total),
        work=work,
        seconds=time.perf_counter() - start,
        sentences=(
            *(data.table.sentences() if data.table else ()),
            *machine.sentences,
            features.sentence,
            f"The penalty per example is {penalty:.2g}, by the leave-one-out errors of "
            f"{len(left_out.y)} examples{_at_the_end(reg, fitted)}.",
        ),
    )


def _at_the_end(position: int, fitted: FittedModel) -> str:
    """Return words for a penalty at an end of those that were tried."""
    ends = {0: "smallest", len(fitted.all_models.reg) - 1: "largest"}
    return f"; it is the {ends[position]} that was tried" if position in ends else ""


@dataclasses.dataclass(frozen=True, eq=False)
class _Features:
    """A map with its parameters, and the examples that it takes.

    Attributes:
      fmap, params: the map.
      x: all examples.
      sentence: how the map was chosen.
    """

    fmap: FeatureMap
    params: PyTree
    x: Examples
    sentence: str

    def of(self, data: Training, rows: NDArray, max_bytes: int | None) -> NDArray:
        """Return the features of some of the examples."""
        return np.asarray(
            transform(
                self.fmap,
                self.params,
                self.x[rows],
                max_bytes=max_bytes,
                progress=False,
                **data.extras_of(rows),
            )
        )


def _work(
    machine: Machine,
    data: Training,
    num_features: int | None,
    seconds: float,
    max_memory: int | None,
) -> size.Work:
    """Return the number of columns, and what the fit takes."""
    n, t = len(data), data.codes.shape[1]
    d = data.x.nnz / n if data.is_sparse else math.prod(data.shape)

    def of_columns(m: int) -> size.Work:
        if machine.is_exact:
            landmarks = n if m == n else min(n, most_landmarks(m))
            return size.work(n, d, t, m, landmarks, landmarks * (2 * d + 60 + 2 * m))
        fmap = feature_map(machine.net, num_features=m, get=machine.get)
        shape = data.shape if machine.inputs is None else machine.inputs.shape
        # A map that is compressed has so many times the columns.
        wide = size.SLOWER * WIDTH * fmap.plan(shape).flops
        return size.work(n, d, t, m, 0, wide)

    if num_features is not None:
        m = check_size("fit", "num_features", num_features)
        # With all rows as landmarks the kernel is exact, and more columns are zeros.
        return of_columns(min(n, m) if machine.is_exact else m)
    most = n
    if not machine.is_exact:
        most = min(_MOST, max(_LEAST_MOST, _PER_EXAMPLE * n))
    return size.largest(of_columns, most, seconds, max_memory)


def _affordable(found: Weighed, n: int, seconds: float) -> WeighedMap:
    """Return the map that was chosen, or the best one that takes less time."""
    known = [one for one in found.maps if math.isfinite(one.loss)]
    quick = [one for one in known if size.seconds_of(n * one.flops) <= seconds]
    if not quick:
        return min(known, key=lambda one: one.flops)
    return found.chosen if found.chosen in quick else quick[0]


def _choose(
    map_key: Key,
    init_key: Key,
    machine: Machine,
    data: Training,
    work: size.Work,
    seconds: float,
    rng: np.random.Generator,
    max_bytes: int | None,
    progress: bool | None,
) -> _Features:
    """Return the map, learned from the examples."""
    n, m, net, get = len(data), work.columns, machine.net, machine.get
    x = data.prepared(machine.inputs)
    number = math.prod(data.shape) if not data.is_sparse else data.x.nnz // n + 1
    rows = some_rows(n, max(_FEWEST_TO_WEIGH, size.BYTES_OF_ROWS // (4 * number)), rng)
    sample, extras = x[rows], data.extras_of(rows)
    if machine.is_exact and m == n == len(rows) and not data.is_sparse:
        method = Nystrom("uniform", oversample=1.0, normalize=False)
        fmap: FeatureMap = feature_map(net, num_features=m, get=get, method=method)
        sentence = f"All {n} rows are landmarks, so that the kernel is exact."
    elif n < _FEWEST_TO_WEIGH:
        fmap = feature_map(net, num_features=m, get=get)
        sentence = f"{m} columns of the method auto, because there are few rows."
    else:
        found = weigh(
            map_key,
            net,
            m,
            sample=sample,
            y=data.y[rows],
            get=get,
            task=data.task,
            max_bytes=max_bytes,
            progress=progress,
            **extras,
        )
        chosen = _affordable(found, n, seconds)
        assert chosen.fmap is not None
        fmap = chosen.fmap
        sentence = f"The features are {chosen.name}, {m} columns."
        if chosen is not found.chosen:
            sentence += f" {found.chosen.name.capitalize()} would take too long."
    with warnings.catch_warnings():
        # Directions that rounding leaves out are nothing that a user can change.
        warnings.filterwarnings("ignore", message=".*rounding makes the kernel")
        example = x[:1] if data.is_sparse else tuple(x.shape[1:])
        params = fmap.init(init_key, example, sample=sample, **extras)
    return _Features(fmap, params, x, sentence)


def _regress(
    features: _Features, data: Training, max_bytes: int | None, progress: bool | None
) -> FittedModel:
    """Return the ridge regression, with the models of all penalties."""
    n = len(data)
    rows = np.unique(np.arange(256) * n // 256)
    phi = features.of(data, rows, max_bytes).astype(np.float64)
    scale = float(np.square(phi - phi.mean(axis=0)).sum(axis=1).mean())
    scale = scale or float(np.square(phi).sum(axis=1).mean()) or 1.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ridge_solve: reg must be")
        warnings.filterwarnings("ignore", message=".*gcv is not finite")
        return linear_model.fit(
            features.fmap,
            features.params,
            features.x,
            data.y,
            reg=(scale * 10.0**_POWERS).tolist(),
            task=data.task,
            sample_weight=data.weight,
            max_bytes=max_bytes,
            progress=progress,
            **data.extras,
        )


def _leave_out(
    features: _Features,
    fitted: FittedModel,
    data: Training,
    rng: np.random.Generator,
    max_bytes: int | None,
) -> tuple[int, LeftOut, Spread]:
    """Return the position of the best penalty, and what it leaves of examples."""
    assert fitted.sums is not None
    models, m = fitted.all_models, features.fmap.num_features
    rows = some_rows(len(data), size.num_left_out(len(data), m), rng)
    phi, y = features.of(data, rows, max_bytes), data.codes[rows]
    weight = np.ones(len(rows)) if data.weight is None else data.weight[rows]
    sums = sums_on_host("fit", fitted.sums)

    def leave_out(i: int, some: NDArray) -> tuple[LeftOut, Spread]:
        model = models.select(i)
        spread = Spread.of(sums, m, float(model.reg) * sums[-1, -1])
        weights = np.asarray(model.weights, np.float64).reshape(m, -1)
        guess = phi[some] @ weights
        guess += np.asarray(model.intercept, np.float64).reshape(-1)
        return LeftOut.of(guess, y[some], spread(phi[some]), weight[some]), spread

    compared = some_rows(len(rows), size.MOST_COMPARED, rng)

    def loss(i: int) -> float:
        try:
            return leave_out(i, compared)[0].mean_squared_error
        except np.linalg.LinAlgError:
            return math.inf

    gcv = np.where(np.isfinite(models.info.gcv), models.info.gcv, math.inf)
    start = int(np.argmin(gcv))
    best = least(loss, len(models.reg), start, m <= _FEW_COLUMNS)
    return best, *leave_out(best, np.arange(len(rows)))
