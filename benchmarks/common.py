"""What the benchmarks share: options, data, timing, kept results and tables.

A benchmark is a script with one function for each job. A job measures records (dicts),
turns them into Markdown tables and hands both to `report`. With `--write`, the tables
also replace the section of `RESULTS.md` between the markers that bear the job's name.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

Options = argparse.Namespace
Record = dict[str, Any]

FOLDER = pathlib.Path(__file__).parent
RESULTS = FOLDER / "RESULTS.md"
DATA_VARIABLE = "JAX_NTK_SKETCH_DATA"


class _HelpFormatter(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """A formatter that states defaults and keeps the lines of the description."""


def main(
    description: str | None,
    jobs: Mapping[str, Callable[[Options], object]],
    **settings: tuple[Any, ...],
) -> None:
    """Parse the command line and run the jobs that it names, in order.

    Args:
      description: the docstring of the script.
      jobs: a function for each job.
      **settings: for each option the default, a help text and perhaps the choices. A
        list as default takes several values, and `False` makes a switch.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=_HelpFormatter
    )
    add, names = parser.add_argument, ", ".join(jobs)
    add("jobs", nargs="*", default=list(jobs), help=f"the jobs to run: {names}")
    folder = f"folder with the data; the variable {DATA_VARIABLE} names it too"
    add("--data", default=os.environ.get(DATA_VARIABLE), help=folder)
    add("--output", default="report-benchmarks", help="folder for Markdown and JSON")
    add("--write", action="store_true", help="put the tables into RESULTS.md")
    for name, (default, text, *choices) in settings.items():
        flag = "--" + name.replace("_", "-")
        if default is False:
            add(flag, action="store_true", help=text)
            continue
        options = {"default": default, "type": type(default), "help": text}
        if isinstance(default, list):
            options |= {"nargs": "+", "type": type((*default, "")[0])}
        if choices:
            options["choices"] = list(choices[0])
        add(flag, **options)
    arguments = parser.parse_args()
    if unknown := set(arguments.jobs) - set(jobs):
        parser.error(f"jobs must be among {names}, got {sorted(unknown)}")
    for job in arguments.jobs:
        jobs[job](arguments)


def archive(folder: str | None, name: str) -> pathlib.Path:
    """Return the path of a file in the data folder.

    Raises:
      SystemExit: the file does not exist.
    """
    path = pathlib.Path(folder or ".") / name
    if not path.is_file():
        raise SystemExit(
            f"{path} does not exist; give the folder that holds {name} with --data or "
            f"in the environment variable {DATA_VARIABLE}"
        )
    return path


def arrays(folder: str | None, name: str, *keys: str) -> tuple[np.ndarray, ...]:
    """Return the arrays `keys` of an .npz file in the data folder."""
    with np.load(archive(folder, name), allow_pickle=False) as file:
        return tuple(file[key] for key in keys)


def mnist(folder: str | None) -> tuple[np.ndarray, ...]:
    """Return MNIST as float32 rows in [0, 1]: x_train, y_train, x_test, y_test."""
    x, y, x_test, y_test = arrays(
        folder, "mnist.npz", "x_train", "y_train", "x_test", "y_test"
    )
    x, x_test = (z.reshape(len(z), -1).astype(np.float32) / 255 for z in (x, x_test))
    return x, y, x_test, y_test


def averaged(x: np.ndarray, side: int) -> np.ndarray:
    """Return square images (n, s, s, c) averaged to `side` x `side` pixels."""
    block = x.shape[1] // side
    return x.reshape(len(x), side, block, side, block, -1).mean(axis=(2, 4))


def small_images(
    folder: str | None, count: int | None, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return CIFAR-10 images averaged to `side` x `side` pixels, and their labels.

    The images `(count, side, side, 3)` are float64 in [0, 1].
    """
    x, labels = arrays(folder, "cifar10_lossless_subset.npz", "x_train", "y_train")
    return averaged(x[:count] / 255, side), labels[:count].astype(int)


def seconds(run: Callable[[], Any], repeats: int = 5) -> tuple[float, float]:
    """Return the seconds of the first call and the median of `repeats` further calls.

    The first call includes compilation. Each call is waited for.
    """
    times = [timed(run) for _ in range(repeats + 1)]
    return times[0], statistics.median(times[1:])


def timed(run: Callable[[], Any]) -> float:
    """Return the seconds of one call, which is waited for."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def matmul_flops(size: int = 2048) -> float:
    """Return the operations per second of a float32 matrix product."""
    a = jax.numpy.ones((size, size), "float32")
    product = jax.jit(jax.numpy.matmul)
    return 2 * size**3 / seconds(lambda: product(a, a))[1]


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """Return the mean and its standard error, which is 0 for one value."""
    array = np.array(list(values), float)
    error = array.std(ddof=1) / len(array) ** 0.5 if len(array) > 1 else 0.0
    return float(array.mean()), float(error)


def slope(x: Iterable[float], y: Iterable[float]) -> float:
    """Return the slope of a line through the logarithms."""
    return float(np.polyfit(np.log(list(x)), np.log(list(y)), 1)[0])


class Kept:
    """Results in a JSON file, so that a long run can be stopped and continued.

    Delete the file after a change of the code, since what it holds is not measured
    again.
    """

    def __init__(self, folder: str, name: str) -> None:
        self.path = pathlib.Path(folder) / f"{name}-kept.json"
        self.results: dict[str, Record] = {}
        if self.path.is_file():
            self.results = json.loads(self.path.read_text())

    def get(self, run: Callable[[], Record], **labels: Any) -> Record | None:
        """Return the result with these labels, measured by `run` if it is new.

        The result is None where `run` raises `ValueError`, since the method does not
        support the network or the number of features.
        """
        name = " | ".join(f"{key} {value}" for key, value in labels.items())
        if name not in self.results:
            try:
                result = run()
            except ValueError as error:
                print(f"{name}: {str(error).splitlines()[0]}", flush=True)
                return None
            self.results[name] = {**labels, **result}
            write_whole(self.path, json.dumps(self.results, indent=1))
            print(self.results[name], flush=True)
        return self.results[name]

    def select(self, **labels: Any) -> list[Record]:
        """Return the results that agree with all the labels."""
        return [r for r in self.results.values() if labels.items() <= r.items()]

    def summary(self, keys: Iterable[str], values: Iterable[str]) -> list[Record]:
        """Return means over the results that agree on `keys`, in order of these.

        A record has the keys, `seeds`, and for each of the values its mean and, as
        `NAME_se`, the standard error.
        """
        keys, out = list(keys), []
        groups: dict[tuple, list[Record]] = {}
        for r in self.results.values():
            groups.setdefault(tuple(r[key] for key in keys), []).append(r)
        for group, results in sorted(groups.items()):
            record = dict(zip(keys, group, strict=True), seeds=len(results))
            for name in values:
                found = [r[name] for r in results]
                record[name], record[f"{name}_se"] = mean_and_error(found)
            out.append(record)
        return out


def cell(template: str, record: Record) -> str:
    """Fill in a template such as "{error:.4f}", or return "" if a field is missing."""
    try:
        return template.format_map(record)
    except (KeyError, TypeError):  # a missing field, or None with a format
        return ""


def table(records: Iterable[Record], head: str, row: str) -> str:
    """Return a Markdown table with one row for each record.

    Args:
      records: the rows.
      head: the headings, separated by " | ".
      row: the templates of the cells, separated by " | ".
    """
    templates = row.split(" | ")
    rows = [[cell(t, record) for t in templates] for record in records]
    return markdown(head.split(" | "), rows)


def wide_table(
    records: Iterable[Record], head: str, row: str, column: str, value: str
) -> str:
    """Return a Markdown table whose columns are, for example, methods.

    Args:
      records: one for each cell.
      head, row: headings and templates, as for `table`, of the leading columns.
      column: the template of the heading that a record belongs to.
      value: the template of the cells.
    """
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    heads: dict[str, None] = {}
    for record in records:
        key = tuple(cell(template, record) for template in row.split(" | "))
        heads[cell(column, record)] = None
        rows.setdefault(key, {})[cell(column, record)] = cell(value, record)
    body = [[*key, *(cells.get(h, "") for h in heads)] for key, cells in rows.items()]
    return markdown([*head.split(" | "), *heads], body)


def markdown(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def environment() -> dict[str, str]:
    """Return the versions and the devices, which every result records."""
    device = jax.devices()[0]
    cores = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    others = f", {jax.device_count()} x {device.device_kind}"
    return {
        "machine": cores + ("" if device.platform == "cpu" else others),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }


def command(args: Options) -> str:
    """Return the command that was run, without names of folders."""
    words = sys.argv[1:]
    for option, name in (("--data", "FOLDER"), ("--output", None)):
        if option in words:
            i = words.index(option)
            words[i : i + 2] = [option, name] if name else []
    if "--data" not in words and args.data:
        words += ["--data", "FOLDER"]
    return shlex.join(
        ["python", f"benchmarks/{pathlib.Path(sys.argv[0]).name}", *words]
    )


def provenance(args: Options) -> str:
    """Return a line that states the command, the date, the machine and the versions."""
    found = environment()
    versions = f"Python {found['python']}, JAX {found['jax']}, NumPy {found['numpy']}"
    return (
        f"- Command: `{command(args)}`\n"
        f"- Measured: {datetime.date.today()}; {found['machine']}; {versions}."
    )


def report(args: Options, name: str, text: str, records: object) -> None:
    """Print the tables of a job and keep them, together with the raw results.

    Args:
      args: the options of the run.
      name: of the script and the job, such as "sparse-time"; it names the files in
        the output folder and the section of RESULTS.md.
      text: Markdown.
      records: the results, which can be written as JSON.
    """
    print(text, flush=True)
    folder = pathlib.Path(args.output)
    data = {"environment": environment(), "command": command(args), "results": records}
    write_whole(folder / f"{name}.json", json.dumps(data, indent=1) + "\n")
    write_whole(folder / f"{name}.md", text + "\n")
    if args.write:
        replace_section(RESULTS, name, f"{provenance(args)}\n\n{text}")


def markers(name: str) -> tuple[str, str]:
    """Return the two comments that enclose a section that a script writes."""
    return f"<!-- begin: {name} -->", f"<!-- end: {name} -->"


def read_section(path: pathlib.Path, name: str) -> str:
    """Return what a script has written between the markers of a section.

    Raises:
      SystemExit: the file has no such markers.
    """
    begin, end = markers(name)
    text = path.read_text()
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"{path} must have the lines {begin} and {end}, each once")
    return text.split(begin)[1].split(end)[0].strip("\n")


def replace_section(path: pathlib.Path, name: str, text: str) -> None:
    """Put text between the markers of a section, and keep the rest of the file.

    A section without markers is appended to the file.
    """
    begin, end = markers(name)
    old = path.read_text()
    if begin not in old:
        old = f"{old}\n## {name}\n\n{begin}\n{end}\n"
        write_whole(path, old)
    read_section(path, name)
    before, after = old.split(begin)[0], old.split(end)[1]
    write_whole(path, f"{before}{begin}\n{text}\n{end}{after}")


def read_tables(text: str) -> list[list[dict[str, str]]]:
    """Return the Markdown tables of a text, each row as a dict from heading to cell."""
    tables: list[list[dict[str, str]]] = []
    head: list[str] = []
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if not line.startswith("|"):
            head = []
        elif not head:
            head = cells
            tables.append([])
        elif set(cells) != {"---"}:
            tables[-1].append(dict(zip(head, cells, strict=True)))
    return tables


def write_whole(path: pathlib.Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
