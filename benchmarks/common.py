"""What the benchmarks share: data, timing, and where results go."""

import argparse
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the options of every benchmark."""
    out = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    out.add_argument(
        "--data",
        default=os.environ.get("JAX_NTK_SKETCH_DATA"),
        help="folder with mnist.npz (x_train, y_train, x_test, y_test, uint8); "
        "the environment variable JAX_NTK_SKETCH_DATA also names it",
    )
    out.add_argument(
        "--output", default="report-benchmarks", help="folder for Markdown and JSON"
    )
    return out


def archive(folder: str | None, name: str) -> pathlib.Path:
    """The path of an archive in the data folder, or a message on what to do."""
    path = pathlib.Path(folder or ".") / name
    if not path.is_file():
        raise SystemExit(
            f"{path} not found: give the folder that holds {name} with --data or "
            "in the environment variable JAX_NTK_SKETCH_DATA"
        )
    return path


def run_jobs(
    options: argparse.ArgumentParser, jobs: dict[str, Callable[[Any], None]]
) -> None:
    """Parses the command line and runs the jobs that it names, in order."""
    options.add_argument("jobs", nargs="+", choices=jobs)
    args = options.parse_args()
    for job in args.jobs:
        jobs[job](args)


def mnist(folder: str | None) -> tuple[np.ndarray, ...]:
    """MNIST as float32 rows in [0, 1]: x_train, y_train, x_test, y_test."""
    with np.load(archive(folder, "mnist.npz"), allow_pickle=False) as file:
        images = [
            file[name].reshape(len(file[name]), -1) for name in ("x_train", "x_test")
        ]
        train, test = (x.astype(np.float32) / 255 for x in images)
        return train, file["y_train"], test, file["y_test"]


def seconds(run: Callable[[], Any], repeats: int = 5) -> tuple[float, float]:
    """First call (compilation included) and median of `repeats` further calls."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return times[0], statistics.median(times[1:])


def environment() -> dict[str, str]:
    """Versions and device, recorded with every result."""
    return {
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": f"{jax.devices()[0].device_kind} x{jax.device_count()}",
        "cpu_count": str(os.cpu_count()),
    }


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [
        "| " + " | ".join(head) + " |",
        "| " + " | ".join("---" for _ in head) + " |",
    ]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def write(folder: str, name: str, text: str, results: Any) -> None:
    """Prints `text`; keeps it and the raw results, each file whole or not at all."""
    print(text, flush=True)
    target = pathlib.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    data = json.dumps({"environment": environment(), "results": results}, indent=1)
    for suffix, content in ((".md", text + "\n"), (".json", data + "\n")):
        part = target / f"{name}{suffix}.part"
        part.write_text(content)
        part.replace(target / f"{name}{suffix}")
