"""A fit on two machines (or more): the same command on each, with its own number.

On the first machine, whose address the others must reach:

    python benchmarks/two_machines.py --coordinator HOST:PORT --num-processes 2 \
        --process-id 0 --data FOLDER --checkpoint SUMS --save model.npz

and on the second the same with `--process-id 1`. Each reads its own part of the
training examples, makes their features and adds them up on its devices; one reduction
joins the sums. FOLDER holds x_train.npy and y_train.npy, read as memory maps, and
perhaps x_test.npy and y_test.npy. It may also be a file, as `jax_ntk_sketch.data.load`
reads it whole; without `--data` it is scikit-learn's digits. After a crash start all
again: each goes on from its checkpoint.
"""

import argparse
import pathlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax

REGS = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3]


class Part:
    """Examples `start` to `stop` of an array or memory map, pixels as 0 to 1."""

    def __init__(self, array: Any, index: int, count: int) -> None:
        self.array = array
        self.start = len(array) * index // count
        self.stop = len(array) * (index + 1) // count

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        x = np.asarray(self.array[self.start + start : self.start + stop])
        return x / np.float32(255) if x.dtype == np.uint8 else x


def read(data: str | None) -> dict[str, Any]:
    """The arrays by name; memory maps where they are files of their own."""
    if data is not None and pathlib.Path(data).is_dir():
        files = pathlib.Path(data).glob("[xy]_t*.npy")
        arrays = {file.stem: np.load(file, mmap_mode="r") for file in files}
        if not {"x_train", "y_train"} <= arrays.keys():
            raise SystemExit(f"{data} must hold x_train.npy and y_train.npy")
        return arrays
    dataset = jns.data.load_digits() if data is None else jns.data.load(data)
    return {name: getattr(dataset, name) for name in NAMES}


NAMES = ("x_train", "y_train", "x_test", "y_test")


def main() -> None:
    args = arguments()
    if args.num_processes > 1:
        jax.distributed.initialize(
            args.coordinator,
            args.num_processes,
            args.process_id,
            heartbeat_timeout_seconds=args.heartbeat_seconds,
        )
    arrays = read(args.data)
    index, count = jax.process_index(), jax.process_count()
    mesh = jns.sharding.data_mesh()
    if index == 0:
        print(f"{count} processes, {mesh.size} devices", flush=True)
    x = Part(arrays["x_train"], index, count)
    y = arrays["y_train"][x.start : x.stop]
    net = stax.serial(
        stax.Flatten(), stax.Dense(1, W_std=2**0.5), stax.Relu(), stax.Dense(1)
    )
    fmap = jns.feature_map(net, num_features=args.features)
    params = fmap.init(jax.random.key(args.seed), arrays["x_train"].shape[1:])
    checkpoint = None
    if args.checkpoint is not None:
        checkpoint = pathlib.Path(args.checkpoint) / "sums.npz"
    fitted = jns.linear_model.fit(
        fmap,
        params,
        x,
        y,
        reg=REGS,
        batch_size=args.batch_size,
        checkpoint=checkpoint,
        checkpoint_seconds=args.checkpoint_seconds,
        mesh=mesh,
    )
    if index == 0:
        print(f"reg {float(fitted.model.reg):.0e}, by generalised cross-validation")
        if args.save is not None:
            jns.linear_model.save_model(args.save, fitted)
    if "x_test" in arrays and fitted.model.num_classes is not None:
        # Each has the whole model, and a part of the test examples too.
        x = Part(arrays["x_test"], index, count)
        right = fitted.predict_class(x, mesh=mesh) == arrays["y_test"][x.start : x.stop]
        right = multihost_utils.process_allgather(np.array(right.sum()))
        if index == 0:
            total = len(arrays["x_test"])
            print(f"test error {1 - right.sum() / total:.4f} of {total} examples")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Ridge regression on features, over several machines.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--coordinator", help="HOST:PORT of process 0, any free port")
    add("--num-processes", type=int, default=1)
    add("--process-id", type=int, default=0, help="0, 1, ...")
    add("--heartbeat-seconds", type=int, default=30, help="until a dead one is missed")
    add("--data", help="a folder of .npy files, or a file; default the digits")
    add("--features", type=int, default=1024)
    add("--seed", type=int, default=0, help="of the features, the same everywhere")
    add("--batch-size", type=int, default=1024, help="examples at a time, each device")
    add("--checkpoint", help="a folder, of each machine or shared")
    add("--checkpoint-seconds", type=float, default=60.0)
    add("--save", help="file for the model, written by process 0")
    args = parser.parse_args()
    if args.num_processes > 1 and args.coordinator is None:
        parser.error("--coordinator is needed with several processes")
    return args


if __name__ == "__main__":
    main()
